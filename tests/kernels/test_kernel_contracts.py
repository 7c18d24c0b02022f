"""What every kernel module promises: its docstring, its place in the catalogue, its arguments, its cost."""

import ast
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest
import torch
from torch.library import CustomOpDef

from zonos2_triton import kernels
from zonos2_triton.bench.catalogue import KERNELS
from zonos2_triton.kernels import residual_unit
from zonos2_triton.kernels._operator import Cost
from zonos2_triton.model import VocoderConfig

MODULES = [info.name for info in pkgutil.iter_modules(kernels.__path__) if not info.name.startswith("_")]
HEADS = ("Shapes", "Dtypes", "Raises", "Reference", "Source")


def module(name):
    return importlib.import_module(f"zonos2_triton.kernels.{name}")


def test_modules_and_catalogue_agree():
    assert sorted(KERNELS) == sorted(MODULES)
    assert all(name == kernel.name for name, kernel in KERNELS.items())


@pytest.mark.parametrize("name", MODULES)
def test_docstring(name):
    lines = module(name).__doc__.splitlines()
    assert ": " in lines[0], "the first line is the maths or the effect"
    headed = dict(re.findall(rf"^({'|'.join(HEADS)}) +(\S.*)$", module(name).__doc__, re.MULTILINE))
    assert tuple(headed) == HEADS
    where, _, function = headed["Reference"].rpartition(".")
    assert getattr(importlib.import_module(where), function) is KERNELS[name].reference


@pytest.mark.parametrize("name", MODULES)
def test_operation(name):
    """A registered operator, named as its file, that takes what its reference takes."""
    op, kernel = getattr(module(name), name), KERNELS[name]
    assert isinstance(op, CustomOpDef)
    assert op is kernel.op
    schema = getattr(torch.ops.zonos2_triton, name).default._schema
    assert schema.name == f"zonos2_triton::{name}"
    ours = [argument.name for argument in schema.arguments]
    assert [argument for argument in ours if argument != "counters"] == [
        *inspect.signature(kernel.reference).parameters
    ]
    assert "counters" not in ours[:-1], "counters come last"
    changed = {argument.name for argument in schema.arguments if argument.alias_info and argument.alias_info.is_write}
    assert changed - {"counters"} == set(kernel.mutates)
    for mine, theirs in zip(schema.arguments, inspect.signature(kernel.reference).parameters.values(), strict=False):
        assert mine.has_default_value() == (theirs.default is not inspect.Parameter.empty)
        if mine.has_default_value():
            assert mine.default_value == theirs.default


@pytest.mark.parametrize("name", MODULES)
def test_workloads(name):
    kernel = KERNELS[name]
    names = [workload.name for workload in kernel.workloads]
    assert len({*names}) == len(names)
    assert all(re.fullmatch(r"[a-zA-Z0-9]+(-[a-zA-Z0-9]+)*", one) for one in names)
    assert any(workload.real for workload in kernel.workloads)
    assert "tiny" in {workload.name for workload in kernel.workloads if not workload.real}
    taken = {*inspect.signature(kernel.make).parameters} - {"device", "dtype", "seed"}
    for workload in kernel.workloads:
        assert workload.sizes.keys() <= taken
        cost = kernel.cost_of(workload, 2)
        assert isinstance(cost, Cost)
        assert cost.bytes > 0
        assert cost.flops > 0


# By hand, in bf16, at the 8B model's sizes: bytes, then floating-point operations.
COSTS = {
    # ten rows of 2048 read and one written, each twice; ten ids
    ("frame_embedding", "decode-B1"): (11 * 2048 * 2 + 10 * 4, 13 * 2048),
    # of 64 rows the same; nothing is squared, and nothing scaled
    ("frame_embedding", "no-norm-B64"): (64 * (11 * 2048 * 2 + 10 * 4), 64 * 10 * 2048),
    # x, residual, sum and result, each 64 rows; the weight
    ("add_rms_norm", "decode-B64"): (4 * 64 * 2048 * 2 + 2048 * 2, 5 * 64 * 2048),
    # 20 heads of 128 in and out; 64 cosines, 64 sines, a position
    ("rotary", "decode-B1"): (2 * 20 * 128 * 2 + (128 + 1) * 4, 3 * 20 * 128),
    # 2048 + 2 * 512 + 16 rows of weights; the norm's; a row in and one out
    ("qkv_projection", "decode-B1"): ((3088 * 2048 + 2048 + 2048 + 3088) * 2, 2 * 3088 * 2048),
    # the same without the norm's
    ("qkv_projection", "normed-B1"): ((3088 * 2048 + 2048 + 3088) * 2, 2 * 3088 * 2048),
    # keys and values of 4 heads at 1001 positions; the row in (3088) and out (2048); 64 cosines, 64 sines
    ("decode_attention", "decode-B1"): (
        (2 * 4 * 128 * 1001 + 3088 + 2048) * 2 + 128 * 4,
        2 * 2 * 16 * 128 * 1001,
    ),
    # of 16 sequences the same, but rows without 16 gates (3072), and no angles
    ("decode_attention", "plain-B16"): (
        16 * (2 * 4 * 128 * 1001 + 3072 + 2048) * 2,
        16 * 2 * 2 * 16 * 128 * 1001,
    ),
    # 32 * 33 / 2 pairs of positions; keys and values of 32; 32 rows in and out; 32 angles of 128
    ("prefill_attention", "prefill-32"): (
        (2 * 4 * 128 * 32 + 32 * (3088 + 2048)) * 2 + 32 * 128 * 4,
        2 * 2 * 16 * 128 * 528,
    ),
    # 2048 * 2049 / 2 pairs; rows without gates, no angles
    ("prefill_attention", "plain-2048"): (
        (2 * 4 * 128 * 2048 + 2048 * (3072 + 2048)) * 2,
        2 * 2 * 16 * 128 * 2098176,
    ),
    # the square matrix; a row in, its residual, a row out
    ("output_projection", "decode-B1"): ((2048 * 2048 + 3 * 2048) * 2, 2 * 2048 * 2048),
    # the same without the residual
    ("output_projection", "no-residual-B1"): ((2048 * 2048 + 2 * 2048) * 2, 2 * 2048 * 2048),
    # 128 x 2048, twice 128 x 128, 16 x 128 weights; norm, three biases, the state's scale and norm, the balance; x, old
    # and new state; 16 probabilities, id, weight and slot in 4 bytes each, 17 offsets
    ("router", "decode-B1"): (
        (262144 + 2 * 16384 + 2048 + 2048 + 5 * 128 + 16 + 2048 + 2 * 128) * 2 + 4 * (16 + 3 + 17),
        2 * (262144 + 2 * 16384 + 2048),
    ),
    # the weights once, without the norm's; 16 of everything that is a row's
    ("router", "normed-B16"): (
        (262144 + 2 * 16384 + 2048 + 5 * 128 + 16 + 16 * (2048 + 2 * 128)) * 2 + 4 * (16 * (16 + 3) + 17),
        16 * 2 * (262144 + 2 * 16384 + 2048),
    ),
    # one expert's three matrices of 3072 x 2048; x in and out, the norm; h written and read; slot and weight
    ("experts", "decode-B1"): (
        (3 * 3072 * 2048 + 2 * 2048 + 2048 + 2 * 3072) * 2 + 2 * 4,
        2 * 3 * 3072 * 2048,
    ),
    # all experts; of 2048 rows x in and the sum out, h written and read; slots and weights
    ("experts", "prefill-sum-2048"): (
        (16 * 3 * 3072 * 2048 + 2048 * (2 * 2048 + 2 * 3072)) * 2 + 2048 * 2 * 4,
        2048 * 2 * 3 * 3072 * 2048,
    ),
    # 9 x 1026 logits and as many frames of history in; 8 settings, seed and step; a code and a fault of 9 codebooks
    ("sample", "decode-B1"): (2 * 4 * 9 * 1026 + 8 * 4 + 8 + 4 + 2 * 4 * 9, 60 * 9 * 1026),
    # 9 codes and faults and 5 numbers in; 4 numbers, 9 entries of the history, and two rows of 10 out
    ("advance", "decode-B1"): (4 * (18 + 5 + 4 + 9 + 20), 18),
    # 9234 rows of weights, the norm's, a row; fp32 logits
    ("head", "decode-B1"): ((9234 * 2048 + 2048 + 2048) * 2 + 9234 * 4, 2 * 9234 * 2048),
    # 9 projections of 8 and their biases, to 1024; of 16 frames 9 codes, as many vectors of 8, a row of 1024
    ("codebook_sum", "chunk-16"): ((81 * 1024 + 16 * (72 + 1024)) * 2 + 16 * 9 * 4, 2 * 16 * 81 * 1024),
    # 7 x 1024 x 1536 weights; of 16 frames 1024 channels in, 1536 activated out
    ("convolution", "first-chunk-16"): (
        (7 * 1024 * 1536 + 16 * (1024 + 1536)) * 2,
        2 * 16 * 7 * 1024 * 1536,
    ),
    # 768 x 768 weights; of 128 positions 768 channels in and activated out, in fp32 what is added and the sum
    ("convolution", "point-768-chunk-16"): (
        (768 * 768 + 128 * 2 * 768) * 2 + 128 * 2 * 768 * 4,
        2 * 128 * 768 * 768,
    ),
    # 16 taps; of 16 frames 1536 channels in, of eight times as many positions 768 out, activated and in fp32
    ("transposed_convolution", "1536-768-chunk-16"): (
        (16 * 1536 * 768 + 16 * 1536 + 128 * 768) * 2 + 128 * 768 * 4,
        2 * 16 * 16 * 1536 * 768,
    ),
    # 8 squares of weights; of 16 x 512 positions 96 channels in and out, twice: activated, and in fp32
    ("residual_unit", "96-chunk-16"): (
        (8 * 96 * 96 + 8192 * 2 * 96) * 2 + 8192 * 2 * 96 * 4,
        2 * 8192 * 8 * 96 * 96,
    ),
    # 7 x 96 weights; of 16 x 512 positions 96 channels in, a sample in fp32 out
    ("waveform", "chunk-16"): ((7 * 96 + 8192 * 96) * 2 + 8192 * 4, 2 * 8192 * 7 * 96),
}  # fmt: skip


@pytest.mark.parametrize(("name", "workload"), COSTS, ids=["-".join(pair) for pair in COSTS])
def test_cost_by_hand(name, workload):
    found = next(entry for entry in KERNELS[name].workloads if entry.name == workload)
    assert found.real
    assert KERNELS[name].cost_of(found, 2) == COSTS[name, workload]


def test_every_cost_is_checked_by_hand():
    assert {name for name, _ in COSTS} == {*KERNELS}


def test_the_vocoder_multiplies_what_its_layers_have_weights_for():
    """Millions of products a frame; a block is its transposed convolution and three residual units."""

    def millions(name, workload):
        found = next(entry for entry in KERNELS[name].workloads if entry.name == f"{workload}-16")
        return KERNELS[name].cost_of(found, 2).flops / 2 / 16 / 1e6

    config = VocoderConfig()
    blocks = []
    for i in range(len(config.decoder_rates)):
        width = config.decoder_dim // 2 ** (i + 1)
        fused = width <= residual_unit.WIDEST
        parts = [("residual_unit", "")] if fused else [("convolution", "unit-"), ("convolution", "point-")]
        unit = sum(millions(name, f"{part}{width}-chunk") for name, part in parts)
        blocks.append(millions("transposed_convolution", f"{2 * width}-{width}-chunk") + 3 * unit)
    first, last = millions("convolution", "first-chunk"), millions("waveform", "chunk")
    assert blocks == pytest.approx([132, 264, 264, 132], rel=0.01)
    assert first == pytest.approx(11, rel=0.01)
    assert millions("codebook_sum", "chunk") + first + sum(blocks) + last == pytest.approx(804.2, rel=0.01)


def test_the_only_atomic_counts():
    """An integer, in the one function that waits for nobody: sums of floats have a fixed order."""
    calls = {
        (path.name, node.func.attr)
        for path in Path(kernels.__file__).parent.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and "atomic" in node.func.attr
    }
    assert calls == {("_math.py", "atomic_add")}
