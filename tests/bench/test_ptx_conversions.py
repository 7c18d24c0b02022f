"""Values of PTX conversions against Python's fractions and torch."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from tests.bench.ptx_numbers import INF, NEGATIVE, QUIET, numbers, rounded, sample, signed, values
from zonos2_triton.bench.compiler.ptx.arithmetic import evaluate
from zonos2_triton.bench.compiler.ptx.conversions import FP8


@pytest.mark.parametrize("mode", ["rn", "rz", "rm", "rp"])
@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_narrowed(kind, mode):
    x = numbers("f32", 0)
    if mode in ("rn", "rz"):
        packed = evaluate(f"cvt.{mode}.{kind}x2.f32", x, x[::-1])[0]
        assert (packed >> np.uint32(16) == evaluate(f"cvt.{mode}.{kind}.f32", x)[0]).all()
        assert (packed & np.uint32(0xFFFF) == evaluate(f"cvt.{mode}.{kind}.f32", x[::-1])[0]).all()
    found = values(kind, evaluate(f"cvt.{mode}.{kind}.f32", x)[0]).tolist()
    assert found == [rounded(Fraction(each), kind, mode) for each in values("f32", x).tolist()]


def test_narrowed_like_torch():
    x = sample(32, 0)
    for kind, dtype in (("f16", torch.float16), ("bf16", torch.bfloat16)):
        found = evaluate(f"cvt.rn.{kind}.f32", x)[0]
        expected = torch.from_numpy(x.view(np.float32)).to(dtype)
        assert torch.equal(torch.from_numpy(found).view(dtype).isnan(), expected.isnan())
        fine = ~expected.isnan()
        assert torch.equal(torch.from_numpy(found).view(torch.int16)[fine], expected.view(torch.int16)[fine])
        assert set(found[~fine.numpy()]) <= {0x7FFF}


def test_tf32():
    x = numbers("f32", 0)
    for mode in ("rn", "rna", "rz"):
        found = values("tf32", evaluate(f"cvt.{mode}.tf32.f32", x)[0]).tolist()
        assert found == [rounded(Fraction(each), "tf32", mode) for each in values("f32", x).tolist()]


def test_fp8():
    x = numbers("f32", 3)
    x = np.concatenate([x, np.array([0x43E00000, 0x43E80000, 0xC7000000, 0x3B000000, 0x3A800000, INF], np.uint32)])
    finite = np.isfinite(values("f32", x))
    for kind, dtype in (("e4m3", torch.float8_e4m3fn), ("e5m2", torch.float8_e5m2)):
        codes = torch.arange(256, dtype=torch.uint8).view(dtype).float().numpy()
        assert np.array_equal(FP8[kind], codes, equal_nan=True)
        found = evaluate(f"cvt.rn.satfinite.{kind}x2.f32", x, x[::-1])[0]
        top = torch.finfo(dtype).max
        expected = torch.from_numpy(x.view(np.float32)).clamp(-top, top).to(dtype).view(torch.uint8).numpy()
        assert ((found >> 8) == expected)[finite].all()
        assert ((found & 255) == expected[::-1])[finite[::-1]].all()
        halves = evaluate(f"cvt.rn.f16x2.{kind}x2", np.arange(256, dtype=np.uint16))[0].view(np.float16)[::2]
        assert np.array_equal(halves.astype(np.float32), codes, equal_nan=True)


def test_to_integers():
    x = np.concatenate([numbers("f32", 0), np.array([INF, INF | NEGATIVE, 0x4F000000, 0x5F000000], np.uint32)])
    for mode, function in (("rni", round), ("rzi", math.trunc), ("rmi", math.floor), ("rpi", math.ceil)):
        for kind in ("s32", "u32", "s64", "u64", "s16", "u8"):
            bits = int(kind[1:])
            low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if kind[0] == "s" else (0, (1 << bits) - 1)
            found = evaluate(f"cvt.{mode}.{kind}.f32", x)[0]
            for bits_found, value in zip(found.tolist(), values("f32", x).tolist(), strict=True):
                exact = function(value) if math.isfinite(value) else (high if value > 0 else low)
                assert bits_found == max(low, min(high, exact)) % (1 << max(bits, 16)), (mode, kind, value)
    nan = np.array([QUIET], np.uint32)
    assert [int(evaluate(f"cvt.rzi.{kind}.f32", nan)[0][0]) for kind in ("s32", "s64")] == [0, 1 << 63]


def test_from_integers():
    for kind in ("s32", "u32", "s64", "u64"):
        x = sample(int(kind[1:]), 5)
        numbers_of = [signed(int(each), int(kind[1:])) if kind[0] == "s" else int(each) for each in x]
        found = values("f32", evaluate(f"cvt.rn.f32.{kind}", x)[0]).tolist()
        assert found == [rounded(Fraction(each), "f32") for each in numbers_of]
    x = sample(32, 5)
    for mode in ("rn", "rz", "rm", "rp"):
        found = values("bf16", evaluate(f"cvt.{mode}.bf16.s32", x)[0]).tolist()
        assert found == [rounded(Fraction(signed(int(each), 32)), "bf16", mode) for each in x]


def test_between_integers():
    x = sample(32, 6)
    for opcode, function in {
        "cvt.s64.s32": lambda v: signed(v, 32) % (1 << 64), "cvt.u64.u32": lambda v: v,
        "cvt.u16.u32": lambda v: v % (1 << 16), "cvt.s16.s8": lambda v: signed(v % 256, 8) % (1 << 16),
        "cvt.u32.u16": lambda v: v % (1 << 16), "cvt.sat.u8.s32": lambda v: max(0, min(255, signed(v, 32))),
        "cvt.sat.s16.s32": lambda v: max(-(1 << 15), min((1 << 15) - 1, signed(v, 32))) % (1 << 16),
    }.items():  # fmt: skip
        source = x if opcode.endswith("32") else x.astype(np.uint16)
        assert evaluate(opcode, source)[0].tolist() == [function(int(each)) for each in x], opcode
