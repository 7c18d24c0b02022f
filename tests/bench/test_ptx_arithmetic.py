"""Values of PTX instructions against Python's integers and fractions."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from zonos2_triton.bench.compiler.ptx import arithmetic
from zonos2_triton.bench.compiler.ptx.arithmetic import FP8, UNSIGNED, evaluate
from zonos2_triton.bench.compiler.ptx.parse import UnknownInstruction

SAMPLES = 200


def sample(bits, seed):
    """Random patterns, half of them near the edges of the type."""
    rng = np.random.default_rng(seed)
    edges = [0, 1, 2, 31, 32, 33, (1 << bits) - 1, (1 << bits) - 2, 1 << (bits - 1), (1 << (bits - 1)) - 1]
    values = rng.integers(0, 1 << bits, SAMPLES, dtype=np.uint64)
    some = rng.integers(0, 2, SAMPLES) == 1
    values[some] = rng.choice(np.array(edges, np.uint64), int(some.sum()))
    return values.astype(UNSIGNED[bits])


def amounts(seed):
    return np.random.default_rng(seed).integers(0, 70, SAMPLES).astype(np.uint32)


def signed(x, bits):
    return x - (1 << bits) if x >> (bits - 1) else x


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


# Floats: (bits, bits of the significand with the leading one, least exponent, largest finite number)
FORMATS = {
    "f32": (32, 24, -126, Fraction(2) ** 128 - Fraction(2) ** 104),
    "f16": (16, 11, -14, Fraction(65504)),
    "bf16": (16, 8, -126, Fraction(2) ** 128 - Fraction(2) ** 120),
    "tf32": (32, 11, -126, Fraction(2) ** 128 - Fraction(2) ** 117),
}


def rounded(x, kind, mode="rn"):
    """A fraction to the format; beyond its largest number infinity, or that number where the mode stops there."""
    _, precision, least, largest = FORMATS[kind]
    if x == 0:
        return 0.0
    exponent = max(math.floor(math.log2(abs(x.numerator)) - math.log2(x.denominator)), least)
    while abs(x) >= Fraction(2) ** (exponent + 1):
        exponent += 1
    while abs(x) < Fraction(2) ** exponent and exponent > least:
        exponent -= 1
    unit = Fraction(2) ** (exponent - precision + 1)
    low = math.floor(x / unit)
    rest = x / unit - low
    up = {"rz": x < 0 and rest > 0, "rm": False, "rp": rest > 0}.get(mode)
    if mode == "rn":
        up = rest > Fraction(1, 2) or (rest == Fraction(1, 2) and low % 2 == 1)
    if mode == "rna":
        up = rest > Fraction(1, 2) or (rest == Fraction(1, 2) and x > 0)
    found = (low + up) * unit
    if abs(found) > largest:
        stops = mode == "rz" or (mode == "rm" and x > 0) or (mode == "rp" and x < 0)
        return math.copysign(float(largest) if stops else math.inf, x)
    return float(found)


def numbers(kind, seed):
    """Finite numbers of a format: random patterns, neighbours of powers of two, and near ones, so that sums cancel."""
    bits = FORMATS[kind][0]
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 1 << bits, SAMPLES, dtype=np.uint64).astype(UNSIGNED[bits])
    one = {"f32": 0x3F800000, "f16": 0x3C00, "bf16": 0x3F80}[kind]
    near = rng.integers(-40, 41, SAMPLES) + one
    sign = rng.integers(0, 2, SAMPLES) << (bits - 1)
    x = np.where(rng.integers(0, 2, SAMPLES) == 1, x, (near | sign).astype(x.dtype))
    x[:6] = [0, 1, 1 << (bits - 1), one, one + 1, one - 1]
    return np.where(np.isfinite(values(kind, x)), x, x.dtype.type(one))


def values(kind, bits):
    with np.errstate(invalid="ignore"):
        return arithmetic.read(kind)(bits).astype(np.float64)


def wrong(opcode, kind, arrays, function, mode="rn"):
    """How many results are not the rounded value of the exact one."""
    found = values(kind, evaluate(opcode, *arrays)[0])
    exact = [[*map(Fraction, each)] for each in zip(*(values(kind, x).tolist() for x in arrays), strict=True)]
    expected = [rounded(function(*each), kind, mode) for each in exact]
    return sum(a != b for a, b in zip(found.tolist(), expected, strict=True))


EXACT = {
    "add": (2, lambda a, b: a + b),
    "sub": (2, lambda a, b: a - b),
    "mul": (2, lambda a, b: a * b),
    "fma": (3, lambda a, b, c: a * b + c),
}


@pytest.mark.parametrize("mode", ["rn", "rz", "rm", "rp"])
@pytest.mark.parametrize("kind", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("name", EXACT)
def test_correctly_rounded(name, kind, mode):
    count, function = EXACT[name]
    arrays = [numbers(kind, i) for i in range(count)]
    assert wrong(f"{name}.{mode}.{kind}", kind, arrays, function, mode) == 0


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_packed_halves(kind):
    arrays = [numbers(kind, i) for i in range(3)]
    packed = [x.view(np.uint32) for x in arrays]
    found = evaluate(f"fma.rn.{kind}x2", *packed)[0].view(np.uint16)
    assert (found == evaluate(f"fma.rn.{kind}", *arrays)[0]).all()
    constant = evaluate(f"fma.rn.{kind}x2", packed[0], packed[1], np.uint32(0x80008000))[0].view(np.uint16)
    product = values(kind, evaluate(f"mul.rn.{kind}", *arrays[:2])[0])
    assert np.array_equal(values(kind, constant), product, equal_nan=True)


def test_quotients_and_roots():
    a, b = numbers("f32", 0), numbers("f32", 1)
    b = np.where(values("f32", b) == 0, a.dtype.type(0x3F800000), b)
    divide = lambda x, y: x / y  # noqa: E731
    assert wrong("div.rn.f32", "f32", (a, b), divide) == 0
    assert wrong("div.full.f32", "f32", (a, b), divide) == 0
    assert wrong("rcp.rn.f32", "f32", (b,), lambda x: 1 / x) == 0
    root = values("f32", evaluate("sqrt.rn.f32", a & np.uint32(0x7FFFFFFF))[0])
    for x, y in zip(values("f32", a & np.uint32(0x7FFFFFFF)).tolist(), root.tolist(), strict=True):
        ulp = Fraction(float(np.spacing(np.float32(y)))) if y else Fraction(0)
        assert (Fraction(y) - ulp / 2) ** 2 <= Fraction(x) <= (Fraction(y) + ulp / 2) ** 2


@pytest.mark.parametrize(
    ("function", "naive", "kind", "sources"),
    [  # a square that is a tie of the format, plus a number that the wider format drops
        ("_sum_odd", lambda a, b: a + b, "f32", (0x3F800800, 0x3F800800, 0x21800000)),
        ("_sum_odd", lambda a, b: a + b, "bf16", (0x3F88, 0x3F88, 0x2180)),
        ("_odd32", lambda x: x.astype(np.float32), "bf16", (0x3F88, 0x3F88, 0x2B80)),
    ],
)
def test_a_double_rounding_is_noticed(function, naive, kind, sources, monkeypatch):
    arrays = [np.array([bits], UNSIGNED[FORMATS[kind][0]]) for bits in sources]
    assert wrong(f"fma.rn.{kind}", kind, arrays, EXACT["fma"][1]) == 0
    monkeypatch.setattr(arithmetic, function, naive)
    assert wrong(f"fma.rn.{kind}", kind, arrays, EXACT["fma"][1]) == 1


def test_the_wrong_rounding_is_noticed():
    arrays = [numbers("f32", i) for i in range(2)]
    assert wrong("mul.rz.f32", "f32", arrays, EXACT["mul"][1], "rn") > SAMPLES / 4


# Conversions

INF, NEGATIVE, QUIET, FIRST = 0x7F800000, 0x80000000, 0x7FC00000, 0x3F800000  # FIRST is 1.0


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


# NaN, zeros, subnormal numbers


def f32(*numbers):
    return np.array(numbers, np.float32).view(np.uint32)


def test_nan_is_canonical():
    x, nan = f32(1, 2), np.array([QUIET | 5, NEGATIVE | QUIET], np.uint32)
    for opcode, sources in (
        ("add.rn.f32", (x, nan)), ("mul.f32", (nan, x)), ("fma.rn.f32", (x, x, nan)), ("max.f32", (nan, nan)),
        ("sub.rn.f32", (np.array([INF], np.uint32),) * 2), ("max.NaN.f32", (x, nan)), ("ex2.approx.f32", (nan,)),
    ):  # fmt: skip
        assert set(evaluate(opcode, *sources)[0].tolist()) == {0x7FFFFFFF}, opcode
    assert evaluate("max.f32", x, nan)[0].tolist() == x.tolist()
    assert evaluate("min.f32", nan, x)[0].tolist() == x.tolist()


def test_extremes():
    zeros = np.array([0, NEGATIVE], np.uint32)
    assert evaluate("max.f32", zeros, zeros[::-1])[0].tolist() == [0, 0]
    assert evaluate("min.f32", zeros, zeros[::-1])[0].tolist() == [NEGATIVE, NEGATIVE]
    a, b, c = f32(-3, 1, 2), f32(-4, 5, -7), f32(9, 0, 1)
    assert evaluate("max.f32", a, b, c)[0].view(np.float32).tolist() == [9, 5, 2]
    assert evaluate("min.xorsign.abs.f32", a, b)[0].view(np.float32).tolist() == [3, 1, -2]
    for kind in ("f16", "bf16"):
        x, y = numbers(kind, 0), numbers(kind, 1)
        found = evaluate(f"max.{kind}x2", x.view(np.uint32), y.view(np.uint32))[0].view(np.uint16)
        assert (values(kind, found) == np.maximum(values(kind, x), values(kind, y))).all()


def test_signs():
    x, y = numbers("f32", 0), numbers("f32", 1)
    assert (evaluate("neg.f32", x)[0] == x ^ np.uint32(NEGATIVE)).all()
    assert (evaluate("abs.f32", x)[0] == x & np.uint32(~NEGATIVE & 0xFFFFFFFF)).all()
    expected = np.copysign(y.view(np.float32), x.view(np.float32)).view(np.uint32)
    assert (evaluate("copysign.f32", x, y)[0] == expected).all()


def test_subnormal_numbers_are_flushed():
    tiny = np.array([1, NEGATIVE | 0x7FFFFF, 0x00800000], np.uint32)
    assert evaluate("add.ftz.f32", tiny, f32(0, 0, 0))[0].tolist() == [0, 0, 0x00800000]
    assert evaluate("mul.ftz.f32", tiny, f32(0.5, 0.5, 0.5))[0].tolist() == [0, NEGATIVE, 0]
    assert evaluate("mul.f32", tiny, f32(1, 1, 0.5))[0].tolist() == [1, NEGATIVE | 0x7FFFFF, 0x00400000]
    assert evaluate("rsqrt.approx.ftz.f32", tiny[:1])[0].tolist() == [INF]
    assert evaluate("setp.eq.ftz.f32", tiny, f32(0, 0, 0))[0].tolist() == [True, True, False]
    assert evaluate("testp.subnormal.f32", tiny)[0].tolist() == [True, True, False]


def test_unordered_comparisons():
    x, y = f32(1, 2, np.nan, 1), f32(1, 1, 1, np.nan)
    for name, ordered in (("eq", 1), ("ne", 2), ("lt", 0), ("le", 1), ("gt", 2), ("ge", 3)):
        first = [bool(ordered & 1), bool(ordered & 2)]
        assert evaluate(f"setp.{name}.f32", x, y)[0].tolist() == [*first, False, False], name
        assert evaluate(f"setp.{name}u.f32", x, y)[0].tolist() == [*first, True, True], name
    assert evaluate("setp.num.f32", x, y)[0].tolist() == [True, True, False, False]
    assert evaluate("setp.nan.f32", x, y)[0].tolist() == [False, False, True, True]


# Approximate functions

APPROXIMATE = {
    "ex2": (np.exp2, -30, 30),
    "lg2": (np.log2, 0, 100),
    "rcp": (np.reciprocal, -9, 9),
    "sqrt": (np.sqrt, 0, 9),
    "rsqrt": (lambda x: 1 / np.sqrt(x), 0, 9),
    "sin": (np.sin, -3, 3),
    "cos": (np.cos, -3, 3),
    "tanh": (np.tanh, -5, 5),
}


@pytest.mark.parametrize("name", APPROXIMATE)
def test_approximate_functions(name):
    function, low, high = APPROXIMATE[name]
    x = np.random.default_rng(0).uniform(low, high, 4000).astype(np.float32)
    found = evaluate(f"{name}.approx.f32", x.view(np.uint32))[0].view(np.float32)
    exact = function(x.astype(np.longdouble))
    assert (np.abs(found - exact) <= 0.5001 * np.spacing(np.abs(found)).astype(np.float64)).all()


def test_the_edges_of_approximate_functions():
    one = f32(1.0)
    assert evaluate("div.approx.f32", one, f32(2.0**127))[0].tolist() == [0]
    assert evaluate("div.full.f32", one, f32(2.0**127))[0].tolist() == f32(2.0**-127).tolist()
    assert evaluate("ex2.approx.ftz.f32", f32(-np.inf))[0].tolist() == [0]
    assert evaluate("ex2.approx.ftz.f32", f32(-130))[0].tolist() == [0]
    assert evaluate("rcp.approx.f32", f32(-0.0))[0].tolist() == [INF | NEGATIVE]
    assert evaluate("lg2.approx.f32", f32(0))[0].tolist() == [INF | NEGATIVE]


@pytest.mark.parametrize(
    "opcode",
    ["add.cc.u32", "mul.f32x4", "fma.rn.f64", "add.ftz.bf16", "cvt.rn.s32", "frobnicate.b32", "setp.eq", "add"],
)
def test_what_has_no_meaning_is_an_error(opcode):
    with pytest.raises(UnknownInstruction, match=opcode.replace(".", "[.]")):
        evaluate(opcode, f32(1), f32(1), f32(1))
