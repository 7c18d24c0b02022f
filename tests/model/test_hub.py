"""resolve_path: folders, and the hub's cache on disk. Nothing here reaches the network."""

import shutil
import socket
import sys
from pathlib import Path

import pytest

from zonos2_triton.model import Zonos2
from zonos2_triton.model.weights.hub import FILES, resolve_path

needs_hub = pytest.mark.needs("huggingface_hub")


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """In an empty folder; a connection that is tried fails."""
    tried = []

    def refuse(_, address):
        tried.append(address)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    yield
    assert tried == []


@pytest.fixture
def cached(monkeypatch, tmp_path):
    """HF_HUB_OFFLINE=1; puts a folder into the hub's cache as the main branch of a repository."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def put(repo, folder):
        root, commit = tmp_path / "cache" / f"models--{repo.replace('/', '--')}", "0123456789abcdef" * 2 + "01234567"
        (root / "refs").mkdir(parents=True)
        (root / "refs" / "main").write_text(commit)
        return Path(shutil.copytree(folder, root / "snapshots" / commit))

    return put


@pytest.mark.parametrize("kind", [str, Path])
@pytest.mark.parametrize("name", ["model", "owner/name", "model/params.json"])
def test_what_is_here_needs_no_hub(monkeypatch, kind, name):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    Path("owner/name").mkdir(parents=True)
    Path("model").mkdir()
    Path("model/params.json").touch()
    assert resolve_path(kind(name)) == Path(name)


@needs_hub
def test_cached_repository_is_found_offline_unless_a_folder_has_its_name(cached, tiny_folder):
    snapshot = cached("owner/name", tiny_folder)
    assert resolve_path("owner/name").samefile(snapshot)
    folder = Path("owner/name")
    folder.mkdir(parents=True)
    assert resolve_path("owner/name").samefile(folder)


@needs_hub
def test_model_loads_from_three_cached_repositories(cached, tiny_folder):
    cached("owner/whole", tiny_folder)
    cached("descript/codec", tiny_folder / "dac")
    cached("someone/voices_1.7B", tiny_folder / "speaker_encoder")
    tts = Zonos2.load("owner/whole", device="cpu", vocoder="descript/codec", speaker_encoder="someone/voices_1.7B")
    assert tts.backbone.config.speaker_embedding_dim == tts.speaker_encoder.config.enc_dim


@needs_hub
@pytest.mark.parametrize("branch", [False, True], ids=["nothing", "a-branch-without-its-snapshot"])
def test_repository_that_is_not_cached(cached, tmp_path, branch):
    if branch:
        shutil.rmtree(cached("owner/name", tmp_path / "here"))
    with pytest.raises(FileNotFoundError) as raised:
        resolve_path("owner/name")
    text = str(raised.value)
    assert text.startswith("owner/name is no file or folder here, not in the hub's cache, and cannot be fetched: ")
    assert "HF_HUB_OFFLINE" in text


@needs_hub
def test_one_call_completes_what_the_cache_has(monkeypatch):
    """Asking the cache alone first would take half a download for a whole one."""
    calls = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda *args, **options: calls.append((args, options)) or "/downloaded"
    )
    assert resolve_path("owner/name") == Path("/downloaded")
    assert calls == [(("owner/name",), {"allow_patterns": FILES})]


@needs_hub
def test_files_that_are_fetched():
    from huggingface_hub.utils import filter_repo_objects

    fetched = ["params.json", "model.safetensors", "model.safetensors.index.json", "consolidated/consolidated.pth",
               "weights_44khz.pth", "model.pt"]  # fmt: skip
    others = ["README.md", "sample.wav", "modeling.py"]
    assert list(filter_repo_objects([*fetched, *others], allow_patterns=FILES)) == fetched


@pytest.mark.parametrize("name", ["gone", "/gone", "a/b/c", "owner/name\n", "./gone", Path("owner/name")], ids=repr)
def test_neither_here_nor_a_hub_id(monkeypatch, name):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(FileNotFoundError, match="is neither a file or folder here nor a hub id") as raised:
        resolve_path(name)
    assert str(raised.value).startswith(str(name))


@needs_hub
@pytest.mark.parametrize("name", ["owner/na--me", "owner/name.git", "owner/" + "n" * 97], ids=["--", ".git", "long"])
def test_id_that_the_hub_refuses(cached, name):
    with pytest.raises(FileNotFoundError, match=name):
        resolve_path(name)


def test_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"owner/name is no file or folder here; .*pip install huggingface_hub$"):
        resolve_path("owner/name")
