"""Values of PTX instructions on integers against Python's integers."""

import numpy as np
import pytest

from tests.bench.ptx_numbers import SAMPLES, sample, signed
from zonos2_triton.bench.compiler.ptx.arithmetic import evaluate
from zonos2_triton.bench.compiler.ptx.operations import UNSIGNED


def amounts(seed):
    return np.random.default_rng(seed).integers(0, 70, SAMPLES).astype(np.uint32)


def quotient(a, b):
    return (abs(a) // abs(b)) * (1 if (a < 0) == (b < 0) else -1) if b else -1


def field(x, at, n, bits, sign):
    at, n = at & 255, n & 255
    top = (x >> min(at + n - 1, bits - 1)) & 1 if sign and n else 0
    return sum(((x >> (at + i)) & 1 if i < n and at + i < bits else top) << i for i in range(bits))


def inserted(a, b, at, n, bits):
    for i in range(n & 255):
        if (at & 255) + i < bits:
            b = (b & ~(1 << (at + i))) | (((a >> i) & 1) << (at + i))
    return b


def two(kind, function):
    """The function of signed or unsigned numbers, modulo the size of the type."""
    bits = int(kind[1:])
    return lambda *a: function(*(signed(x, bits) if kind[0] == "s" else x for x in a))


INTEGERS = {}  # opcode -> bits of each source ("n": an amount), bits of the result, function
for kind in ("u16", "s16", "u32", "s32", "u64", "s64"):
    size = int(kind[1:])
    for name, function in {
        "add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul.lo": lambda a, b: a * b,
        "mul.hi": lambda a, b, size=size: (a * b) >> size, "min": min, "max": max, "div": quotient,
        "rem": lambda a, b: a - b * quotient(a, b) if b else a,
    }.items():  # fmt: skip
        INTEGERS[f"{name}.{kind}"] = ((size, size), size, two(kind, function))
    if size < 64:
        INTEGERS[f"mul.wide.{kind}"] = ((size, size), 2 * size, two(kind, lambda a, b: a * b))
        wide = lambda a, b, c, kind=kind: two(kind, lambda a, b: a * b)(a, b) + c  # noqa: E731
        INTEGERS[f"mad.wide.{kind}"] = ((size, size, 2 * size), 2 * size, wide)
    INTEGERS[f"mad.lo.{kind}"] = ((size,) * 3, size, lambda a, b, c: a * b + c)
    INTEGERS[f"shr.{kind}"] = ((size, "n"), size, lambda a, n, kind=kind: two(kind, lambda a: a >> n)(a))
    INTEGERS[f"shl.b{size}"] = ((size, "n"), size, lambda a, n: a << n)
    for name, function in {"lt": lambda a, b: a < b, "ge": lambda a, b: a >= b, "ne": lambda a, b: a != b}.items():
        INTEGERS[f"setp.{name}.{kind}"] = ((size, size), 1, two(kind, function))
for kind in ("s16", "s32", "s64"):
    size = int(kind[1:])
    INTEGERS[f"abs.{kind}"] = ((size,), size, two(kind, abs))
    INTEGERS[f"neg.{kind}"] = ((size,), size, two(kind, lambda a: -a))
for size in (32, 64):
    INTEGERS[f"popc.b{size}"] = ((size,), 32, lambda a: bin(a).count("1"))
    INTEGERS[f"clz.b{size}"] = ((size,), 32, lambda a, size=size: size - a.bit_length())
    INTEGERS[f"brev.b{size}"] = ((size,), size, lambda a, size=size: int(f"{a:0{size}b}"[::-1], 2))
    INTEGERS[f"bfind.u{size}"] = ((size,), 32, lambda a: a.bit_length() - 1)
    INTEGERS[f"bfi.b{size}"] = ((size, size, "n", "n"), size, lambda *a, size=size: inserted(*a, size))
    for sign in "us":
        extract = lambda a, at, n, size=size, sign=sign: field(a, at, n, size, sign == "s")  # noqa: E731
        INTEGERS[f"bfe.{sign}{size}"] = ((size, "n", "n"), size, extract)
for side, clamp in (("l", True), ("l", False), ("r", True), ("r", False)):

    def funnel(a, b, n, side=side, clamp=clamp):
        n = min(n, 32) if clamp else n & 31
        return (((b << 32 | a) << n) >> 32) if side == "l" else (b << 32 | a) >> n

    INTEGERS[f"shf.{side}.{'clamp' if clamp else 'wrap'}.b32"] = ((32, 32, "n"), 32, funnel)


@pytest.mark.parametrize("opcode", INTEGERS)
def test_integers(opcode):
    sources, bits, function = INTEGERS[opcode]
    arrays = [amounts(i) if size == "n" else sample(size, i) for i, size in enumerate(sources)]
    result = evaluate(opcode, *arrays)[0]
    expected = [int(function(*map(int, each))) % (1 << bits) for each in zip(*arrays, strict=True)]
    assert result.dtype == (np.bool_ if bits == 1 else UNSIGNED[bits])
    assert result.tolist() == expected


def test_a_scalar_is_an_immediate():
    x = sample(32, 0)
    assert (evaluate("add.s32", x, np.uint32(2**32 - 1))[0] == x - np.uint32(1)).all()
    assert (evaluate("shl.b32", x, np.uint32(3))[0] == x << np.uint32(3)).all()
    assert (evaluate("bfe.u32", x, np.uint32(4), np.uint32(8))[0] == (x >> np.uint32(4)) & np.uint32(255)).all()


def test_bytes_are_permuted():
    a, b = np.array([0x83020100], np.uint32), np.array([0x07060584], np.uint32)
    for opcode, selector, expected in (
        ("prmt.b32", 0x3210, 0x83020100), ("prmt.b32", 0x7654, 0x07060584), ("prmt.b32", 0x5410, 0x05840100),
        ("prmt.b32", 0xBBBC, 0xFFFFFFFF), ("prmt.b32", 0x888B, 0x000000FF), ("prmt.b32.f4e", 2, 0x05848302),
        ("prmt.b32.b4e", 1, 0x06070001), ("prmt.b32.rc8", 2, 0x02020202), ("prmt.b32.ecl", 2, 0x83020202),
        ("prmt.b32.ecr", 1, 0x01010100), ("prmt.b32.rc16", 1, 0x83028302),
    ):  # fmt: skip
        found = int(evaluate(opcode, a, b, np.array([selector], np.uint32))[0][0])
        assert found == expected, f"{opcode} {selector:x}: {found:08x}"


def test_a_table_of_three_inputs():
    a, b, c = (sample(32, i) for i in range(3))
    for table, expected in ((0x96, a ^ b ^ c), (0xE8, (a & b) | (b & c) | (a & c)), (0xCA, (a & b) | (~a & c))):
        assert (evaluate("lop3.b32", a, b, c, np.uint32(table))[0] == expected).all()


def test_both_results_of_a_comparison():
    a, b, p = sample(32, 0), sample(32, 1), sample(32, 2) % 2 == 1
    for name, function in (("and", np.logical_and), ("or", np.logical_or), ("xor", np.logical_xor)):
        first, second = evaluate(f"setp.lo.{name}.u32", a, b, p)
        assert (first == function(a < b, p)).all()
        assert (second == function(a >= b, p)).all()
