import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from zonos2_triton.model.training.dataset import load_dataset


def test_what_is_written_is_read(dataset, items, config):
    for found, item in zip(load_dataset(dataset, config, 500), items, strict=True):
        assert (found.id, found.text, found.prompt) == (item.id, item.text, item.prompt)
        assert torch.equal(found.codes, item.codes)
        assert torch.equal(found.alignment, item.alignment)


def with_line(dataset, **changes):
    """A copy of the first line with changes, as a second item of the same tensors."""
    line = json.loads(dataset.read_text().splitlines()[0]) | changes
    dataset.write_text(dataset.read_text() + json.dumps({k: v for k, v in line.items() if v is not None}) + "\n")


def with_tensors(dataset, **changes):
    file = dataset.with_suffix(".safetensors")
    tensors = load_file(file)
    save_file(tensors | {f"item2.{name}": tensor for name, tensor in changes.items()}, file)


BAD_LINES = [
    ({}, "id 'item0' must be unique, line 1 has it already"),
    ({"id": None}, "id must be a string that is not empty, got None"),
    ({"id": "new", "text": " "}, "text must be a string that is not empty, got ' '"),
    ({"id": "new"}, "train.safetensors holds no tensor new.codes"),
    ({"file": "other.safetensors"}, "other.safetensors is not a file"),
    ({"id": "x", "txt": ""}, "key 'txt' is not one of id, text, file, .*; did you mean 'text'"),
]


@pytest.mark.parametrize(("changes", "fault"), BAD_LINES, ids=[fault[:20] for _, fault in BAD_LINES])
def test_a_bad_line_is_named(dataset, config, changes, fault):
    with_line(dataset, **changes)
    with pytest.raises(ValueError, match=f"1 of 7 items are bad\n.*train.jsonl:7: .*{fault}"):
        load_dataset(dataset, config, 500)
    with pytest.warns(UserWarning, match="skipped: 1 of 7 items are bad"):
        assert len(load_dataset(dataset, config, 500, skip_bad=True)) == 6


def frames(fill):
    return torch.full((12, 9), fill, dtype=torch.int16)


BAD_TENSORS = [
    ({"codes": frames(1024)}, "codes must be in 0..1023, got 1024"),
    ({"codes": frames(-1)}, "codes must be in 0..1023, got -1"),
    ({"codes": frames(1)[:, :8].contiguous()}, r"codes must be integers \[frames, 9\], got torch.int16 \[12, 8\]"),
    ({"codes": frames(1).float()}, r"codes must be integers \[frames, 9\], got torch.float32"),
    ({"codes": frames(1)[:0].contiguous()}, r"codes must be integers \[frames, 9\], got torch.int16 \[0, 9\]"),
    ({"codes": torch.zeros(500, 9, dtype=torch.int16)}, "alignment must be integers .500., one a frame"),
    ({"alignment": torch.full((12,), 11, dtype=torch.int16)}, "alignment must be in -1..10, got 11"),
    ({"speaker": torch.zeros(3)}, r"speaker must be floats \[48\], got torch.float32 \[3\]"),
    ({"speaker": torch.full((48,), float("nan"))}, "speaker holds NaN"),
]


@pytest.mark.parametrize(("tensors", "fault"), BAD_TENSORS, ids=[fault[:30] for _, fault in BAD_TENSORS])
def test_a_bad_tensor_is_named(dataset, config, tensors, fault):
    with_tensors(dataset, **tensors)
    with pytest.raises(ValueError, match=f"1 of 6 items are bad\n.*train.jsonl:3: {fault}"):
        load_dataset(dataset, config, 500)


def test_an_overlong_item_is_named(dataset, config, items):
    longest = max(item.length(config) for item in items)
    with pytest.raises(
        ValueError, match=f"1 of 6 .*\n.*train.jsonl:5: has {longest} tokens, at most {longest - 1} are accepted"
    ):
        load_dataset(dataset, config, longest - 1)


def test_other_faults_of_a_manifest(dataset, config, tmp_path):
    dataset.write_text("{\n[]\n")
    with pytest.raises(ValueError, match=r"train.jsonl:1: must be a JSON object on one line.*\n.*:2: .*, got list"):
        load_dataset(dataset, config, 500)
    dataset.write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"train.jsonl must be UTF-8, byte 0 is not"):
        load_dataset(dataset, config, 500)
    dataset.write_text("\n")
    with pytest.raises(ValueError, match="holds no item"):
        load_dataset(dataset, config, 500)
    with pytest.raises(FileNotFoundError):
        load_dataset(tmp_path / "none.jsonl", config, 500)


def test_a_truncated_file_is_named_at_each_of_its_items(dataset, config):
    file = dataset.with_suffix(".safetensors")
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"6 of 6 items are bad\n.*train.jsonl:1: .*train.safetensors is truncated"):
        load_dataset(dataset, config, 500)
