"""Checkpoints: the real layout, every format that loads, and every file that is refused."""

import dataclasses
import json
import math
import os
import pickle
import re
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from zonos2_triton.model import Backbone, Zonos2Config
from zonos2_triton.model.weights.checkpoint import Checkpoint, check_layout, one_file
from zonos2_triton.model.weights.tiny import backbone_weights
from zonos2_triton.reference import network as reference
from zonos2_triton.reference.embedding import speaker_row
from zonos2_triton.reference.experts import swiglu
from zonos2_triton.reference.ops import REFERENCE

Weights = dict[str, Tensor]

WQ, WO, NORM = "layers.2.attention.wq.weight", "layers.4.attention.wo.weight", "out_norm.weight"
TEMP = "layers.2.attention.temp"
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def config(golden) -> Zonos2Config:
    """A network of 90 KB, with every kind of tensor."""
    params = {"dim": 16, "head_dim": 8, "ffn_dim_multiplier": 1.0, "multiple_of": 8, "moe_router_dim": 4}
    ids = {"codebook_size": 14, "eoa_id": 14, "audio_pad_id": 15, "speaker_embedding_dim": 6, "speaker_lda_dim": 4}
    return Zonos2Config.from_params(golden.json("params_b") | params | ids)


@pytest.fixture(scope="module")
def weights(config) -> Weights:
    """Read only: tests that change a tensor replace it."""
    return backbone_weights(config, torch.Generator().manual_seed(1))


@pytest.fixture
def load(config, tmp_path) -> Callable[..., Backbone]:
    """Save the tensors as model.safetensors and load that."""

    def saved_and_loaded(tensors: Weights, **placement: Any) -> Backbone:
        save_file(tensors, tmp_path / "model.safetensors")
        return Backbone.load(tmp_path / "model.safetensors", config=config, **placement)

    return saved_and_loaded


def assert_same(loaded: Weights, expected: Weights) -> None:
    assert loaded.keys() == expected.keys()
    wrong = [n for n, t in expected.items() if loaded[n].dtype != t.dtype or not torch.equal(loaded[n], t)]
    assert wrong == []


# The real layout


@pytest.fixture(scope="module")
def real(golden) -> dict[str, Any]:
    return golden.json("checkpoint_layout")


def test_layout_is_the_real_one(real):
    config = Zonos2Config.from_params(real["params_json"])
    layout = Backbone.layout(config)
    assert len(layout) == 507
    assert layout == {name: tensor["shape"] for name, tensor in real["tensors"].items()}
    assert {tensor["dtype"] for tensor in real["tensors"].values()} == {config.dtype}
    assert sum(map(math.prod, layout.values())) == real["parameter_counts"]["total"]


class Recording(dict[str, Tensor]):
    """Keeps the names that are looked up."""

    def __init__(self, weights: Weights) -> None:
        super().__init__(weights)
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> Tensor:
        self.read.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        if name in self:
            self.read.add(name)
        return super().get(name, default)


def test_forward_reads_every_real_tensor(real):
    """On the meta device, where shapes are checked and nothing is computed."""

    config = Zonos2Config.from_params(real["params_json"])

    def first_expert(x: Tensor, norm_weight: Tensor, gate: Tensor, up: Tensor, down: Tensor, **_: object) -> Tensor:
        assert len(gate) == len(up) == len(down)  # a meta tensor cannot tell which ones were chosen
        return swiglu(x * norm_weight, gate[0], up[0], down[0])

    def queries(qkvg: Tensor, temp: Tensor, *_: object) -> Tensor:
        return qkvg[:, : config.heads * config.head_dim] * temp.repeat_interleave(config.head_dim)

    ops = replace(REFERENCE, experts=first_expert, prefill_attention=queries)
    tensors = {name: torch.empty(tensor["shape"], device="meta") for name, tensor in real["tensors"].items()}
    recording = Recording(tensors)
    ids = torch.zeros(2, config.n_codebooks + 1, dtype=torch.int64, device="meta")
    speaker = torch.empty(config.speaker_embedding_dim, device="meta")
    model = reference.bind(config, recording)
    row = speaker_row(speaker, model.speaker)
    batch = reference.Batch.single(ids, 0, torch.zeros(1, dtype=torch.int32, device="meta"), row)
    x = reference.forward(model, batch, reference.Cache(config, 1, len(ids), speaker), ops)
    assert reference.logits(model, x, ops).shape == (2, 9, 1026)
    assert recording.read == real["tensors"].keys()


def test_forward_reads_every_tensor(config, weights):
    recording = Recording(weights)
    model = reference.bind(config, recording)
    reference.trace(model, torch.zeros(2, 10, dtype=torch.int64), torch.ones(config.speaker_embedding_dim))
    assert recording.read == weights.keys() == Backbone.layout(config).keys()


# What loads


def save_shards(tensors: Weights, folder: Path) -> Path:
    names = list(tensors)
    shards = {"model-1-of-2.safetensors": names[::2], "model-2-of-2.safetensors": names[1::2]}
    for file, part in shards.items():
        save_file({name: tensors[name] for name in part}, folder / file)
    weight_map = {name: file for file, part in shards.items() for name in part}
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return folder / INDEX


def save_single(tensors: Weights, folder: Path) -> Path:
    save_file(tensors, folder / "model.safetensors")
    return folder / "model.safetensors"


def save_pickle(name: str, wrap: Callable[[Weights], Any] = dict) -> Callable[[Weights, Path], Path]:
    def save(tensors: Weights, folder: Path) -> Path:
        torch.save(wrap(tensors), folder / name)
        return folder / name

    return save


FORMATS = {
    "safetensors": save_single,
    "sharded": save_shards,
    "pth": save_pickle("model.pth"),
    "pt": save_pickle("model.pt"),
    "pth with model": save_pickle("model.pth", lambda tensors: {"model": tensors, "step": 7}),
    "pth with state_dict": save_pickle("model.pth", lambda tensors: {"state_dict": tensors, "metadata": {}}),
}
formats = pytest.mark.parametrize("save", [pytest.param(save, id=name) for name, save in FORMATS.items()])


@formats
def test_formats_hold_the_same_tensors(config, weights, tmp_path, save):
    path = save(weights, tmp_path)
    assert_same(Backbone.load(path, config=config).weights, weights)
    checkpoint = Checkpoint(path)
    assert checkpoint.shapes == Backbone.layout(config)
    assert set(checkpoint.dtypes.values()) == {torch.float32}


@formats
def test_names_of_the_training_are_translated(config, weights, tmp_path, save):
    router = "layers.2.feed_forward.router"
    trained = {re.sub(r"\.(wq|temp)\b", r".parametrizations.\1", name): t for name, t in weights.items()}
    trained = {name + ".original" if "parametrizations" in name else name: t for name, t in trained.items()}
    assert "layers.0.attention.parametrizations.wq.weight.original" in trained
    assert "layers.0.attention.parametrizations.temp.original" in trained
    statistics = {f"{router}.ent_denom": torch.ones(()), f"{router}.normalized_entropy": torch.full((4,), math.nan)}
    assert_same(Backbone.load(save(trained | statistics, tmp_path), config=config).weights, weights)


def test_name_that_two_tensors_translate_to(load, weights):
    with pytest.raises(ValueError, match=rf"holds {re.escape(TEMP)} twice"):
        load(weights | {TEMP.replace("temp", "parametrizations.temp.original"): weights[TEMP].clone()})


def test_params_json_beside_the_file_is_read(tiny_folder):
    backbone = Backbone.load(tiny_folder / "model.safetensors")
    assert backbone.config == Zonos2Config.from_json(tiny_folder / "params.json")
    assert backbone.dtype == torch.float32
    assert "random weights" in backbone.metadata["notice"]


@formats
@pytest.mark.parametrize(
    ("stored", "wanted"),
    [
        pytest.param(torch.float32, torch.bfloat16, id="fp32 to bf16"),
        pytest.param(torch.float32, torch.float64, id="fp32 to fp64"),
        pytest.param(torch.bfloat16, torch.float32, id="bf16 to fp32"),
    ],
)
def test_dtype_is_converted(config, weights, tmp_path, save, stored, wanted):
    tensors = {name: t.to(stored) for name, t in weights.items()}
    loaded = Backbone.load(save(tensors, tmp_path), config=config, dtype=wanted)
    assert loaded.dtype == wanted
    assert_same(loaded.weights, {name: t.to(wanted) for name, t in tensors.items()})


def test_dtype_of_params_json_is_the_default(config, weights, tmp_path):
    path = save_single(weights, tmp_path)
    loaded = Backbone.load(path, config=dataclasses.replace(config, dtype="float16"))
    assert_same(loaded.weights, {name: t.half() for name, t in weights.items()})


def test_mixed_dtypes_become_one(load, weights):
    mixed = {name: t.bfloat16() if name == WQ else t for name, t in weights.items()}
    assert_same(load(mixed).weights, {name: t.float() for name, t in mixed.items()})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_temperature_is_rounded_to_bf16(load, weights, dtype):
    exact = torch.full_like(weights[TEMP], 1.003)  # between 1 and 1.0078125
    loaded = load(weights | {TEMP: exact, NORM: torch.full_like(weights[NORM], 1.003)}, dtype=dtype).weights
    assert loaded[TEMP].dtype == dtype
    assert loaded[TEMP].unique().tolist() == [1.0]
    assert loaded[NORM].unique().tolist() == [exact.flatten()[0].item()]


# Tensors that do not fit


def test_misfits_are_all_listed(load, weights):
    tensors = {name: t for name, t in weights.items() if name not in (WQ, NORM)}
    tensors |= {"layers.9.extra": torch.zeros(3), "bias": torch.zeros(1), TEMP: torch.zeros(2, 1, 1)}
    tensors[WO] = weights[WO].flatten()
    with pytest.raises(ValueError, match="do not fit the configuration") as raised:
        load(tensors)
    lines = str(raised.value).splitlines()[1:]
    assert lines == [
        f"  missing (2): {WQ} [16, 16]; {NORM} [16]",
        "  surplus (2): bias [1]; layers.9.extra [3]",
        f"  wrong shape (2): {TEMP} is [2, 1, 1], expected [1, 2, 1]; {WO} is [256], expected [16, 16]",
    ]


@pytest.mark.parametrize(
    ("shapes", "line"),
    [
        ({}, "  missing (1): a [2, 3]"),
        ({"a": [2, 3], "b": []}, "  surplus (1): b []"),
        ({"a": [3, 2]}, "  wrong shape (1): a is [3, 2], expected [2, 3]"),
    ],
    ids=["missing", "surplus", "transposed"],
)
def test_only_what_is_wrong_is_listed(shapes, line):
    with pytest.raises(ValueError, match="the tensors of here do not fit") as raised:
        check_layout("here", shapes, {"a": [2, 3]})
    assert str(raised.value).splitlines()[1:] == [line]


@formats
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["as stored", "converted"])
def test_tensors_that_are_not_finite_are_all_listed(config, weights, tmp_path, save, dtype):
    bad = {WQ: math.nan, WO: math.inf, NORM: -math.inf}
    tensors = weights | {name: weights[name].clone() for name in bad}
    for name, value in bad.items():
        tensors[name].view(-1)[-1] = value
    with pytest.raises(ValueError, match="cannot be used") as raised:
        Backbone.load(save(tensors, tmp_path), config=config, dtype=dtype)
    lines = {f"  {name} holds NaN or Inf as {dtype}" for name in bad}
    assert set(str(raised.value).splitlines()[1:]) == lines


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.complex64], ids=str)
def test_tensor_that_is_not_of_floats(config, weights, tmp_path, dtype):
    path = save_pickle("model.pth")(weights | {NORM: weights[NORM].to(dtype)}, tmp_path)
    with pytest.raises(ValueError, match=rf"{NORM} must be a dense floating-point tensor, got {dtype}"):
        Backbone.load(path, config=config)


def test_integers_in_safetensors(load, weights):
    with pytest.raises(ValueError, match=rf"{WQ} must be a dense floating-point tensor, got torch.int32"):
        load(weights | {WQ: weights[WQ].int()})


def test_integers_do_not_hide_a_nan(load, weights):
    with pytest.raises(ValueError, match=rf"{WQ} must be a dense floating-point tensor") as raised:
        load(weights | {WQ: weights[WQ].int(), TEMP: torch.full_like(weights[TEMP], math.nan)})
    assert TEMP in str(raised.value)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # torch 2.11 says so on making one
@pytest.mark.parametrize(
    "strange",
    [
        pytest.param(lambda t: t.to(torch.float8_e4m3fn), id="float8"),
        pytest.param(lambda t: t.to_sparse(), id="sparse"),
        pytest.param(lambda t: t.to("meta"), id="meta"),
    ],
)
def test_tensor_of_a_kind_that_is_not_supported(config, weights, tmp_path, strange):
    path = save_pickle("model.pth")(weights | {NORM: strange(weights[NORM])}, tmp_path)
    with pytest.raises(ValueError, match=NORM):
        Backbone.load(path, config=config)


# Damaged files


def refused(path: Path, config: Zonos2Config, match: str | None = None) -> str:
    with pytest.raises(ValueError, match=match) as raised:
        Backbone.load(path, config=config)
    assert str(path) in str(raised.value)
    return str(raised.value)


def test_truncated_safetensors(config, weights, tmp_path):
    path = save_single(weights, tmp_path)
    whole = path.read_bytes()
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    for length in (0, 1, 7, 8, 9, header // 2, header - 1, header, header + 1, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        refused(path, config, "truncated, corrupt or no safetensors file")
    path.write_bytes(whole)
    assert_same(Backbone.load(path, config=config).weights, weights)


def header_of(text: bytes, length: int | None = None, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(text) if length is None else length) + text + data


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(header_of(b"\xff" * 64), id="header of garbage"),
        pytest.param(header_of(b"[1, 2]"), id="header that is no object"),
        pytest.param(header_of(b"{}", 2**63), id="header of 2^63 bytes"),
        pytest.param(header_of(b"{}", 2**40), id="header of 2^40 bytes"),
        pytest.param(header_of(b"{}", 3), id="header longer than the file"),
        pytest.param(header_of(b"{}", data=b"more"), id="bytes that belong to no tensor"),
        pytest.param(
            header_of(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}', data=bytes(4)), id="shape beyond data"
        ),
        pytest.param(
            header_of(b'{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}}'),
            id="shape that overflows",
        ),
        pytest.param(b"PK\x03\x04" + bytes(96), id="zip"),
        pytest.param(b"version https://git-lfs.github.com/spec/v1\n", id="git-lfs pointer"),
    ],
)
def test_damaged_safetensors(config, tmp_path, content):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    refused(path, config, "truncated, corrupt or no safetensors file")


def test_truncated_pickle(config, weights, tmp_path):
    path = save_pickle("model.pth")(weights, tmp_path)
    whole = path.read_bytes()
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 22, len(whole) - 1):
        path.write_bytes(whole[:length])
        refused(path, config, "truncated, corrupt or no file of torch.save")


def test_pickle_of_old_torch(config, weights, tmp_path):
    path = tmp_path / "model.pth"
    torch.save(weights, path, _use_new_zipfile_serialization=False)
    assert "_use_new_zipfile_serialization=True" in refused(path, config, "truncated, corrupt or no file of torch.save")


@pytest.mark.parametrize(
    "stream",
    [
        pytest.param(b"\x80\x02h\x05.", id="reads a memo that is not there"),
        pytest.param(b"\x80\x020.", id="pops from an empty stack"),
        pytest.param(b"\x80\x02K", id="ends within an opcode"),
        pytest.param(b"\x80\x02X\x01\x00\x00\x00\xff.", id="text that is not UTF-8"),
    ],
)
def test_archive_with_a_damaged_pickle(config, tmp_path, stream):
    path, whole = tmp_path / "model.pth", tmp_path / "whole.pth"
    torch.save({}, whole)
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            new.writestr(name, stream if name.endswith("/data.pkl") else old.read(name))
    refused(path, config)


class Trap:
    """Unpickled, it makes a folder."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize(
    "place",
    [
        pytest.param(lambda tensors, trap: tensors | {"trap": trap}, id="among the tensors"),
        pytest.param(lambda tensors, trap: {"model": tensors | {"trap": trap}}, id="within model"),
        pytest.param(lambda tensors, trap: {"model": tensors, "optimizer": trap}, id="beside model"),
        pytest.param(lambda tensors, trap: {"state_dict": tensors, "metadata": {"kwargs": trap}}, id="in metadata"),
        pytest.param(lambda tensors, trap: trap, id="alone"),
    ],
)
def test_code_is_refused_and_not_run(config, weights, tmp_path, place):
    target, path = tmp_path / "trapped", tmp_path / "model.pth"
    torch.save(place(weights, Trap(target)), path)
    refused(path, config, "is refused: it holds .*mkdir, whose code would run")
    assert not target.exists()
    torch.load(path, weights_only=False)
    assert target.exists()  # so the trap was live


def test_refusal_names_the_code_and_suggests_no_way_to_run_it(config, tmp_path):
    torch.save({"trap": Trap(tmp_path / "trapped")}, tmp_path / "model.pth")
    message = refused(tmp_path / "model.pth", config)
    assert "mkdir" in message
    assert "weights_only" not in message


def test_code_in_a_bare_pickle_is_not_run(config, tmp_path):
    target, path = tmp_path / "trapped", tmp_path / "model.pth"
    path.write_bytes(pickle.dumps(Trap(target)))
    refused(path, config)
    assert not target.exists()
    pickle.loads(path.read_bytes())
    assert target.exists()  # so the trap was live


def test_entries_that_are_no_tensors_are_all_listed(config, weights, tmp_path):
    path = save_pickle("model.pth")(weights | {"step": 3, "name": "x"}, tmp_path)
    assert refused(path, config, "must hold tensors by name only").endswith("these entries are none: step, name")


@pytest.mark.parametrize(("value", "got"), [(torch.zeros(3), "Tensor"), ([1, 2], "list")], ids=["tensor", "list"])
def test_pickle_that_is_no_dictionary(config, tmp_path, value, got):
    torch.save(value, tmp_path / "model.pth")
    refused(tmp_path / "model.pth", config, f"must hold a dictionary of tensors, got {got}")


def test_names_that_are_no_text(config, tmp_path):
    torch.save({0: torch.zeros(3)}, tmp_path / "model.pth")
    refused(tmp_path / "model.pth", config, "0")


# Files that are not there, or not where they should be


@pytest.mark.parametrize("name", ["model.bin", "model.ckpt", "model", "model.safetensors.index", "index.json"])
def test_wrong_ending(config, tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    endings = "a checkpoint must end in .safetensors, .safetensors.index.json, .pth or .pt"
    refused(tmp_path / name, config, re.escape(endings))


@pytest.mark.parametrize("name", ["model.safetensors", INDEX, "model.pth", "model.bin"])
def test_missing_file(config, tmp_path, name):
    with pytest.raises(FileNotFoundError, match=rf"{re.escape(name)} is not a file$"):
        Backbone.load(tmp_path / name, config=config)


def test_folder_for_a_file(config, tmp_path):
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors is not a file$"):
        Backbone.load(tmp_path / "model.safetensors", config=config)


def test_missing_shard(config, weights, tmp_path):
    index = save_shards(weights, tmp_path)
    (tmp_path / "model-2-of-2.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model-2-of-2\.safetensors is not a file$"):
        Backbone.load(index, config=config)


@pytest.mark.parametrize("place", ["../{}", "{folder}/{}", "sub/{}", "sub/../../{}"])
def test_index_that_leaves_its_folder(config, weights, tmp_path, place):
    """The file that it names is a good one, so only the check can refuse it."""
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    for parent in (tmp_path, folder / "sub"):
        save_single(weights, parent)
    named = place.format("model.safetensors", folder=tmp_path)
    (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(weights, named)}))
    assert (folder / named).is_file()
    assert named in refused(folder / INDEX, config, "names files outside of its folder")


@pytest.mark.parametrize(
    "content",
    [
        pytest.param("", id="empty"),
        pytest.param("{", id="cut"),
        pytest.param("[]", id="list"),
        pytest.param("{}", id="no weight_map"),
        pytest.param('{"weight_map": ["a"]}', id="weight_map is a list"),
        pytest.param('{"weight_map": {"a": ["b"]}}', id="file is a list"),
        pytest.param('{"weight_map": {"a": 5}}', id="file is a number"),
        pytest.param('{"weight_map": {"a": null}}', id="file is null"),
    ],
)
def test_damaged_index(config, tmp_path, content):
    (tmp_path / INDEX).write_text(content)
    refused(tmp_path / INDEX, config, "is no index of safetensors files")


def test_one_file_takes_the_first_pattern_that_matches(tmp_path):
    for name in ("b.pth", "a.safetensors"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "folder.safetensors").mkdir()
    patterns = ["model.safetensors", "*.safetensors", "*.pth"]
    assert one_file(tmp_path, "weights", patterns).name == "a.safetensors"
    (tmp_path / "c.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"several files for weights: a\.safetensors, c\.safetensors; name one"):
        one_file(tmp_path, "weights", patterns)
    with pytest.raises(FileNotFoundError, match=r"holds no weights; looked for model\.gguf, \*\.gguf"):
        one_file(tmp_path, "weights", iter(["model.gguf", "*.gguf"]))


# Memory

MIB = 2**20

MEASURE = """
import json, sys
from zonos2_triton.model import Backbone

def kib(field):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(field + ":"))

measured = {"private_before": kib("RssAnon"), "imported": kib("VmHWM")}
backbone = Backbone.load(sys.argv[1])
measured |= {"own_peak": kib("VmHWM"), "own_private": kib("RssAnon")}
assert str(backbone.dtype) == "torch.bfloat16"
del backbone
backbone = Backbone.load(sys.argv[1], dtype="float32")
assert str(backbone.dtype) == "torch.float32"
print(json.dumps(measured | {"converted_peak": kib("VmHWM")}))
"""


def large_params(golden) -> dict[str, Any]:
    sizes = {"n_layers": 8, "dim": 1024, "head_dim": 128, "ffn_dim_multiplier": 1.0, "multiple_of": 256}
    return golden.json("params_b") | sizes | {"moe_n_experts": 8, "dtype": "bfloat16"}


def save_sparse_safetensors(layout: dict[str, list[int]], path: Path) -> None:
    """Zeros in bf16 that take no room on the disk."""
    header, end = {}, 0
    for name, shape in layout.items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(header_of(text))
        file.truncate(8 + len(text) + end)


def save_zeros_pickle(layout: dict[str, list[int]], path: Path) -> None:
    torch.save({name: torch.zeros(shape, dtype=torch.bfloat16) for name, shape in layout.items()}, path)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc/self/status")
@pytest.mark.parametrize(
    ("name", "save"), [("model.safetensors", save_sparse_safetensors), ("model.pth", save_zeros_pickle)],
    ids=["safetensors", "pth"],
)  # fmt: skip
def test_memory(golden, tmp_path, name, save):
    """A file of 400 MB is mapped, not read; converting it takes the result and little more."""
    params = large_params(golden)
    layout = Backbone.layout(Zonos2Config.from_params(params))
    (tmp_path / "params.json").write_text(json.dumps(params))
    path = tmp_path / name
    save(layout, path)
    size = path.stat().st_size / MIB
    layer = max(
        sum(2 * math.prod(shape) for tensor, shape in layout.items() if tensor.startswith(f"layers.{i}."))
        for i in range(params["n_layers"])
    )
    command = [sys.executable, "-c", MEASURE, str(path)]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    finally:
        path.unlink()
    assert result.returncode == 0, result.stderr
    measured = {field: value / 1024 for field, value in json.loads(result.stdout).items()}  # MiB
    print(f"file {size:.0f}, layer {layer / MIB:.0f}, {measured}")
    # Measured 2026-11-22 on a 2-core CPU, torch 2.13.0: both formats 378 MiB, peaks 604 and 1,000, private growth 0.3;
    # the interpreter with torch takes about 225 of each, and 490 where torch is a CUDA build.
    rest = max(300, measured["imported"] + 75)
    assert 350 < size < 450
    assert measured["own_peak"] < 1.1 * size + rest
    assert measured["own_private"] - measured["private_before"] < 50
    assert measured["converted_peak"] < 2 * size + layer / MIB + rest + 50


def test_what_only_overflows_in_the_wanted_precision(load, weights):
    big = {WQ: weights[WQ] * 1e6}
    assert load(weights | big).dtype == torch.float32
    with pytest.raises(ValueError, match=rf"{WQ} holds NaN or Inf as torch.float16"):
        load(weights | big, dtype=torch.float16)
