"""resolve_path: folders, and the hub's cache on disk. Nothing here reaches the network."""

import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from zonos2_triton.model import Zonos2
from zonos2_triton.model.weights.hub import CODEC_REPO, FILES, REPO_ID, SPEAKER_REPO, resolve_path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """HF_HUB_OFFLINE=1 with an empty cache, in an empty folder; a connection that is tried all the same fails."""
    tried: list[object] = []

    def refuse(_: socket.socket, address: object) -> None:
        tried.append(address)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    yield
    assert tried == []


@pytest.fixture
def cached(monkeypatch, tmp_path) -> Callable[..., Path]:
    """Put a folder into the hub's cache as the main branch of a repository."""
    constants = pytest.importorskip("huggingface_hub.constants", reason="needs the hub extra")
    cache = tmp_path / "cache"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def put(repo: str, folder: Path, commit: str = COMMIT) -> Path:
        root = cache / f"models--{repo.replace('/', '--')}"
        (root / "refs").mkdir(parents=True)
        (root / "refs" / "main").write_text(commit)
        return Path(shutil.copytree(folder, root / "snapshots" / commit))

    return put


@pytest.fixture
def downloads(monkeypatch, cached) -> list[dict[str, Any]]:
    """The calls of snapshot_download; the cache lacks the repository, the hub has it."""
    hub = pytest.importorskip("huggingface_hub", reason="needs the hub extra")
    calls: list[dict[str, Any]] = []

    def snapshot_download(repo: str, **options: Any) -> str:
        calls.append({"repo": repo, **options})
        if options.get("local_files_only"):
            raise hub.errors.LocalEntryNotFoundError("not in the cache")
        return "/downloaded"

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    return calls


@pytest.mark.parametrize("kind", [str, Path])
@pytest.mark.parametrize("name", ["model", "owner/name", "model/params.json"])
def test_what_is_here_needs_no_hub(monkeypatch, kind, name):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    Path("owner/name").mkdir(parents=True)
    Path("model").mkdir()
    Path("model/params.json").touch()
    assert resolve_path(kind(name)) == Path(name)


def test_cached_repository_is_found_offline(cached, tiny_folder):
    snapshot = cached("owner/name", tiny_folder)
    assert resolve_path("owner/name").samefile(snapshot)


def test_folder_wins_over_a_cached_repository_of_its_name(cached, tiny_folder):
    snapshot = cached("owner/name", tiny_folder)
    folder = Path("owner/name")
    folder.mkdir(parents=True)
    found = resolve_path("owner/name")
    assert found.samefile(folder)
    assert not found.samefile(snapshot)


def test_model_loads_from_three_cached_repositories(cached, tiny_folder):
    cached("owner/whole", tiny_folder)
    cached("descript/codec", tiny_folder / "dac")
    cached("someone/voices_1.7B", tiny_folder / "speaker_encoder")
    tts = Zonos2.load("owner/whole", device="cpu", vocoder="descript/codec", speaker_encoder="someone/voices_1.7B")
    assert tts.backbone.config.speaker_embedding_dim == tts.speaker_encoder.config.enc_dim


def test_repository_that_is_not_cached(cached):
    with pytest.raises(FileNotFoundError) as raised:
        resolve_path("owner/name")
    text = str(raised.value)
    assert text.startswith("owner/name is no local folder, not in the hub's cache, and cannot be fetched: ")
    assert "HF_HUB_OFFLINE" in text


def test_branch_without_its_snapshot(cached, tiny_folder):
    shutil.rmtree(cached("owner/name", tiny_folder))
    with pytest.raises(FileNotFoundError, match="not in the hub's cache"):
        resolve_path("owner/name")


def test_one_call_completes_what_the_cache_has(downloads):
    """Asking the cache alone first would take half a download for a whole one."""
    assert resolve_path("owner/name") == Path("/downloaded")
    assert [(call["repo"], call.get("local_files_only", False)) for call in downloads] == [("owner/name", False)]
    assert all(call["allow_patterns"] == FILES for call in downloads)


@pytest.mark.parametrize(
    ("file", "fetched"),
    [
        ("params.json", True),
        ("model.safetensors", True),
        ("model.safetensors.index.json", True),
        ("consolidated/consolidated.pth", True),
        ("weights_44khz.pth", True),
        ("model.pt", True),
        ("README.md", False),
        ("sample.wav", False),
        ("modeling.py", False),
    ],
)
def test_files_that_are_fetched(file, fetched):
    utils = pytest.importorskip("huggingface_hub.utils", reason="needs the hub extra")
    assert list(utils.filter_repo_objects([file], allow_patterns=FILES)) == [file] * fetched


@pytest.mark.parametrize("error", [OSError("no route"), ValueError("404"), RuntimeError("disk")], ids=repr)
def test_whatever_fails_at_fetching_is_told(monkeypatch, downloads, error):
    hub = sys.modules["huggingface_hub"]
    from_cache = hub.snapshot_download

    def snapshot_download(repo: str, **options: Any) -> str:
        if options.get("local_files_only"):
            return from_cache(repo, **options)
        raise error

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    with pytest.raises(FileNotFoundError, match=f"owner/name is no local folder.*cannot be fetched: {error}") as raised:
        resolve_path("owner/name")
    assert raised.value.__cause__ is error


@pytest.mark.parametrize("hub", [True, False], ids=["with the extra", "without the extra"])
@pytest.mark.parametrize(
    "name",
    [
        "gone",
        "gone/",
        "/gone",
        "/gone/model",
        "a/b/c",
        "owner/na me",
        "owner/name\n",
        "https://hub/owner/name",
        pytest.param("./gone", id="./gone"),
        pytest.param("../gone", id="../gone"),
        pytest.param(Path("owner/name"), id="Path"),
    ],
)
def test_neither_here_nor_a_hub_id(monkeypatch, request, name, hub):
    if hub:
        request.getfixturevalue("cached")
    else:
        monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(FileNotFoundError, match="is neither a file or folder here nor a hub id") as raised:
        resolve_path(name)
    assert str(raised.value).startswith(str(name))


@pytest.mark.parametrize("name", ["owner/na--me", "owner/name.git", "owner/" + "n" * 97], ids=["--", ".git", "long"])
def test_id_that_the_hub_refuses(cached, name):
    with pytest.raises(FileNotFoundError, match=name):
        resolve_path(name)


def test_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"owner/name is no local folder.*pip install 'zonos2-triton\[hub\]'"):
        resolve_path("owner/name")


@pytest.mark.parametrize("repo", [CODEC_REPO, SPEAKER_REPO])
def test_named_repositories_are_hub_ids(repo):
    assert REPO_ID.fullmatch(repo)
