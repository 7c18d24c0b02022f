"""Values of PTX instructions on floats against Python's fractions."""

from fractions import Fraction

import numpy as np
import pytest

from tests.bench.ptx_numbers import FORMATS, INF, NEGATIVE, QUIET, SAMPLES, f32, numbers, rounded, values
from zonos2_triton.bench.compiler.ptx import floats
from zonos2_triton.bench.compiler.ptx.arithmetic import evaluate
from zonos2_triton.bench.compiler.ptx.operations import UNSIGNED
from zonos2_triton.bench.compiler.ptx.parse import UnknownInstruction


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
    monkeypatch.setattr(floats, function, naive)
    assert wrong(f"fma.rn.{kind}", kind, arrays, EXACT["fma"][1]) == 1


def test_the_wrong_rounding_is_noticed():
    arrays = [numbers("f32", i) for i in range(2)]
    assert wrong("mul.rz.f32", "f32", arrays, EXACT["mul"][1], "rn") > SAMPLES / 4


# NaN, zeros, subnormal numbers


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
