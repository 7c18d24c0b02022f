"""The tiny model: reproducible bytes, its notice, and audio that is worth a test."""

import json
from unittest.mock import Mock

import pytest
import torch
from safetensors import safe_open

from zonos2_triton.model import Sampling, Zonos2
from zonos2_triton.model.weights.tiny import NOTICE, PARAMS, write_tiny

FILES = {"README.txt", "params.json", "model.safetensors", "dac/weights.pth", "speaker_encoder/config.json",
         "speaker_encoder/model.safetensors"}  # fmt: skip
PARTS = ("backbone", "vocoder", "speaker_encoder")


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def other_folder(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("other") / "tiny", seed=1)


def test_a_seed_is_bytes(tmp_path, tiny_folder, other_folder):
    """The same seed gives the same bytes, in an empty folder too, whatever the state of the global generator."""
    torch.rand(1)
    assert write_tiny(tmp_path, seed=1) == tmp_path
    default, first, second = map(contents, (tiny_folder, other_folder, tmp_path))
    assert first.keys() == FILES
    assert [name for name in FILES if first[name] != second[name]] == []
    differing = {name for name in FILES if default[name] != first[name]}
    assert differing == {name for name in FILES if not name.endswith(".json")}


def test_files_of_other_programs_do_not_fill_a_folder(tmp_path, other_folder):
    (tmp_path / ".DS_Store").write_text("of Finder")
    (tmp_path / ".git").mkdir()
    assert write_tiny(tmp_path, seed=1) == tmp_path
    assert contents(tmp_path) == {**contents(other_folder), ".DS_Store": b"of Finder"}
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == [".DS_Store", ".git"]


def test_notice_in_every_file(tiny_folder):
    for name in ("model.safetensors", "speaker_encoder/model.safetensors"):
        with safe_open(tiny_folder / name, framework="pt") as file:
            assert file.metadata() == {"notice": NOTICE}
    assert (tiny_folder / "README.txt").read_text(encoding="utf-8").startswith(NOTICE)
    stored = torch.load(tiny_folder / "dac" / "weights.pth", weights_only=True)
    assert stored["metadata"]["notice"] == NOTICE


@pytest.mark.parametrize("part", PARTS)
def test_notice_of_one_part_is_enough(tts, monkeypatch, part):
    assert NOTICE in getattr(tts, part).metadata["notice"]
    for other in PARTS:
        if other != part:
            monkeypatch.setattr(getattr(tts, other), "metadata", {})
    assert (tts.notice, tts.comment) == (NOTICE, f"synthetic speech by zonos2-triton; {NOTICE}")


def test_folder_with_files_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="is no empty folder; name a new folder"):
        write_tiny(tmp_path)
    assert contents(tmp_path) == {"notes.txt": b"mine"}
    with pytest.raises(NotADirectoryError, match=r"^cannot write .*notes\.txt.new: Not a directory$"):
        write_tiny(tmp_path / "notes.txt" / "new")


def test_params_have_the_real_keys(golden, tiny_folder):
    params = json.loads((tiny_folder / "params.json").read_text(encoding="utf-8"))
    real = golden.json("checkpoint_layout")["params_json"]
    assert params == PARAMS
    assert params.keys() == real.keys()
    same = ("n_codebooks", "codebook_size", "eoa_id", "audio_pad_id", "text_vocab", "speaking_rate_num_buckets",
            "quality_num_buckets", "quality_features", "moe_router_topk")  # fmt: skip
    assert {key: params[key] for key in same} == {key: real[key] for key in same}


@pytest.mark.parametrize("seed", [0, 1])
def test_audio_is_neither_silent_nor_clipped(tiny_folder, other_folder, seed):
    """Measured 2026-11-22 on a 2-core CPU: RMS 0.12 to 0.17, peaks 0.56 to 0.84."""
    tts = Zonos2.load((tiny_folder, other_folder)[seed], device="cpu")
    samples = tts.speak("It means nothing.", sampling=Sampling(seed=0, max_frames=40, ignore_eos=True)).samples
    assert len(samples) == 40 * 512
    assert samples.square().mean().sqrt() > 0.02
    assert (samples.abs() > 0.99).float().mean() < 0.001


@pytest.mark.parametrize("name", ["torch.save", "_write_json"])
def test_a_full_disk_is_an_error_of_the_system(tmp_path, monkeypatch, name):
    full = "No space left on device"
    faults = {"torch.save": RuntimeError(full), "_write_json": OSError(28, full)}
    monkeypatch.setattr(f"zonos2_triton.model.weights.tiny.{name}", Mock(side_effect=faults[name]))
    with pytest.raises(OSError, match=r"cannot write .*tiny: No space left on device"):
        write_tiny(tmp_path / "tiny")
    assert list(tmp_path.iterdir()) == []
