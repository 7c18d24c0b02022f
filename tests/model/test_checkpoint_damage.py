"""Checkpoints that are refused: damaged files, files that hold code, and files that are not there."""

import json
import os
import pickle
import re
import struct
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from zonos2_triton.model.weights.checkpoint import Checkpoint, one_file

INDEX = "model.safetensors.index.json"
TENSORS = {f"layers.{i}.weight": torch.full((16, 16), i / 8) for i in range(8)}


def saved(path):
    (save_file if path.suffix == ".safetensors" else torch.save)(TENSORS, path)
    return path


NO_SAFETENSORS = "truncated, corrupt or no safetensors file"
NO_PICKLE = "truncated, corrupt or no file of torch.save"


def refused(path, match=None):
    with pytest.raises(ValueError, match=match) as raised:
        Checkpoint(path)
    assert str(path) in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize(("name", "message"), [("x.safetensors", NO_SAFETENSORS), ("x.pth", NO_PICKLE)])
def test_truncated(tmp_path, name, message):
    path = saved(tmp_path / name)
    whole = path.read_bytes()
    n, header = len(whole), 8 + struct.unpack("<Q", whole[:8])[0]  # of safetensors
    for length in (0, 1, 7, 8, 9, 100, header // 2, header - 1, header, header + 1, n // 2, n - 22, n - 1):
        path.write_bytes(whole[: min(length, n - 1)])
        refused(path, message)


DAMAGED = {
    "header of garbage": struct.pack("<Q", 64) + b"\xff" * 64,
    "header of 2^63 bytes": struct.pack("<Q", 2**63) + b"{}",
    "bytes that belong to no tensor": struct.pack("<Q", 2) + b"{}more",
    "git-lfs pointer": b"version https://git-lfs.github.com/spec/v1\n",
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_damaged_safetensors(tmp_path, content):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    refused(path, NO_SAFETENSORS)


def test_pickle_of_old_torch(tmp_path):
    path = tmp_path / "model.pth"
    torch.save(TENSORS, path, _use_new_zipfile_serialization=False)
    assert "_use_new_zipfile_serialization=True" in refused(path, NO_PICKLE)


def test_archive_with_a_damaged_pickle(tmp_path):
    """It reads a memo that is not there, ends within an opcode, and holds a text that is not UTF-8."""
    path, whole = tmp_path / "model.pth", tmp_path / "whole.pth"
    torch.save({}, whole)
    for stream in (b"\x80\x02h\x05.", b"\x80\x02K", b"\x80\x02X\x01\x00\x00\x00\xff."):
        with zipfile.ZipFile(whole) as old, zipfile.ZipFile(path, "w") as new:
            for name in old.namelist():
                new.writestr(name, stream if name.endswith("/data.pkl") else old.read(name))
        refused(path)


class Trap:
    """Unpickled, it makes a folder."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


PLACES = {
    "among the tensors": lambda tensors, trap: tensors | {"trap": trap},
    "within model": lambda tensors, trap: {"model": tensors | {"trap": trap}},
    "beside model": lambda tensors, trap: {"model": tensors, "optimizer": trap},
    "in metadata": lambda tensors, trap: {"state_dict": tensors, "metadata": {"kwargs": trap}},
    "alone": lambda tensors, trap: trap,
}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_code_is_refused_and_not_run(tmp_path, place):
    target, path = tmp_path / "trapped", tmp_path / "model.pth"
    torch.save(place(TENSORS, Trap(target)), path)
    message = refused(path, "is refused: it holds .*mkdir, whose code would run")
    assert "weights_only" not in message  # no advice on how to run it
    assert not target.exists()
    path.write_bytes(pickle.dumps(Trap(target)))
    refused(path)
    assert not target.exists()
    pickle.loads(path.read_bytes())
    assert target.exists()  # so the trap was live


NO_TENSORS = {
    "others": ({"x": torch.zeros(3), "step": 3, "name": "x"}, r"by name only; these entries are none: step, name$"),
    "list": ([1, 2], "must hold a dictionary of tensors, got list"),
    "number for a name": ({0: torch.zeros(3)}, r"by name only; these entries are none: 0$"),
}


@pytest.mark.parametrize(("value", "message"), NO_TENSORS.values(), ids=NO_TENSORS)
def test_pickle_that_is_no_dictionary_of_tensors(tmp_path, value, message):
    torch.save(value, tmp_path / "model.pth")
    refused(tmp_path / "model.pth", message)


@pytest.mark.parametrize("name", ["model.bin", "model", "index.json"])
def test_wrong_ending(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    endings = "a checkpoint must end in .safetensors, .safetensors.index.json, .pth or .pt"
    refused(tmp_path / name, re.escape(endings))


@pytest.mark.parametrize("name", ["model.safetensors", INDEX, "model.pth", "model.bin", "folder.safetensors"])
def test_missing_file(tmp_path, name):
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(FileNotFoundError, match=rf"{re.escape(name)} is not a file$"):
        Checkpoint(tmp_path / name)


def test_missing_shard(tmp_path):
    saved(tmp_path / "one.safetensors")
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}))
    with pytest.raises(FileNotFoundError, match=r"two\.safetensors is not a file$"):
        Checkpoint(tmp_path / INDEX)


@pytest.mark.parametrize("place", ["../{}", "{folder}/{}", "sub/{}", "sub/../../{}"])
def test_index_that_leaves_its_folder(tmp_path, place):
    """The file that it names is a good one, so only the check can refuse it."""
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    for parent in (tmp_path, folder / "sub"):
        saved(parent / "model.safetensors")
    named = place.format("model.safetensors", folder=tmp_path)
    (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(TENSORS, named)}))
    assert (folder / named).is_file()
    assert named in refused(folder / INDEX, "names files outside of its folder")


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": ["a"]}', '{"weight_map": {"a": 5}}'])
def test_damaged_index(tmp_path, content):
    (tmp_path / INDEX).write_text(content)
    refused(tmp_path / INDEX, "is no index of safetensors files")


def test_one_file_takes_the_first_pattern_that_matches(tmp_path):
    for name in ("b.pth", "a.safetensors"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "folder.safetensors").mkdir()
    patterns = ["model.safetensors", "*.safetensors", "*.pth"]
    assert one_file(tmp_path, "weights", patterns).name == "a.safetensors"
    (tmp_path / "c.safetensors").write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"several files for weights: a\.safetensors, c\.safetensors; name one of them inst"
    ):
        one_file(tmp_path, "weights", patterns)
    shards = [(tmp_path / f"model-0000{i}-of-00002.safetensors") for i in (1, 2)]
    for path in shards:
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"2\.safetensors: shards, without the index .*\*\.safetensors\.index\.json"):
        one_file(tmp_path, "weights", ["model-*.safetensors"])
    with pytest.raises(FileNotFoundError, match=r"holds no weights; looked for model\.gguf, \*\.gguf"):
        one_file(tmp_path, "weights", iter(["model.gguf", "*.gguf"]))
