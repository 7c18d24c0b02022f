"""PTX instructions on floats, and signs, extremes and comparisons of both floats and integers."""

import operator
from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np

from zonos2_triton.bench.compiler.ptx.operations import (
    FLOATS,
    INTEGERS,
    NAN,
    PACKED,
    SIGNED,
    U32,
    UNSIGNED,
    Bits,
    Decode,
    Family,
    Function,
    Modifiers,
    Operation,
    pure,
    read_integer,
    register,
)

# A type is read as fp64 or fp32, which are exact, and written with one rounding.


def read(kind: str) -> Decode:
    """Reads bits of a float type as fp32, or fp64 for f64."""
    if kind == "bf16":
        return lambda x: (x.astype(np.uint32) << U32(16)).view(np.float32)
    if kind == "f16":
        return lambda x: x.view(np.float16).astype(np.float32)
    if kind == "tf32":
        return lambda x: (x & U32(0xFFFFE000)).view(np.float32)
    return lambda x: x.view(np.float64 if kind == "f64" else np.float32)


def write(kind: str, rounding: str = "rn") -> Decode:
    """Rounds fp32 or fp64 to a float type, as bits. rounding: rn, rz, rm, rp, or rna for ties away from zero."""
    if kind == "f64":
        return lambda x: x.astype(np.float64).view(np.uint64)
    if rounding == "rna":
        return lambda x: _canonical(kind, _nearest_away(x))
    if rounding != "rn":
        return lambda x: _canonical(kind, _directed(kind, x, rounding))
    return lambda x: _canonical(kind, _nearest(kind, x))


def _nearest(kind: str, x: Bits) -> Bits:
    """Ties to even. The bits of a NaN are those of some NaN."""
    if kind == "f16":
        return x.astype(np.float16).view(np.uint16)
    if kind == "f32":
        return x.astype(np.float32).view(np.uint32)
    bits, drop = _odd32(x).view(np.uint32), {"bf16": 16, "tf32": 13}[kind]
    last = (bits >> U32(drop)) & U32(1)
    rounded = (bits + U32((1 << (drop - 1)) - 1) + last) >> U32(drop)
    rounded = np.where(np.isnan(x), U32(0x7FFFFFFF >> drop), rounded)
    return rounded.astype(np.uint16) if kind == "bf16" else rounded << U32(drop)


def _nearest_away(x: Bits) -> Bits:
    bits = x.view(np.uint32)
    return np.where(np.isfinite(x), (bits + U32(0x1000)) & U32(0xFFFFE000), bits & U32(0xFFFFE000))


def _directed(kind: str, x: Bits, rounding: str) -> Bits:
    bits = _nearest(kind, x)
    step = {"tf32": U32(0x2000)}.get(kind, bits.dtype.type(1))
    value = read(kind)(bits).astype(np.float64)
    exact, negative = x.astype(np.float64), np.signbit(value)
    above = value > exact if rounding in ("rz", "rm") else value < exact  # a step the other way is due
    if rounding == "rz":
        return np.where(np.abs(value) > np.abs(exact), bits - step, bits)
    down = negative if rounding == "rm" else ~negative  # away from zero
    return np.where(above, np.where(down, bits + step, bits - step), bits)


def _canonical(kind: str, bits: Bits) -> Bits:
    value = read(kind)(bits)
    wrong = value != value
    return np.where(wrong, NAN[kind], bits) if wrong.any() else bits


def _odd32(x: Bits) -> Bits:
    """fp32; what is not exact becomes the odd one of its two neighbours, so that a later rounding is right."""
    if x.dtype == np.float32:
        return np.ascontiguousarray(x)
    near = x.astype(np.float32)
    bits, error = near.view(np.uint32), x - near
    return _made_odd(bits, error, np.signbit(near)).view(np.float32)


def _made_odd(bits: Bits, error: Bits, negative: Bits) -> Bits:
    one = bits.dtype.type(1)
    even = (np.abs(error) > 0) & ((bits & one) == 0) & np.isfinite(error)
    return np.where(even, np.where((error < 0) == negative, bits + one, bits - one), bits)


def _sum_odd(a: Bits, b: Bits) -> Bits:
    """a + b of fp64, rounded to odd."""
    near = a + b
    part = near - a
    error = (a - (near - part)) + (b - part)
    return _made_odd(near.view(np.uint64), error, np.signbit(near)).view(np.float64)


def _double(function: Function) -> Function:
    """With sources in fp64."""
    return lambda *a: function(*(x.astype(np.float64) for x in a))


def _approximate_quotient(a: Bits, b: Bits) -> Bits:
    large = np.abs(b) > 2.0**126
    return np.where(large & np.isfinite(b), np.where(np.isinf(a), np.nan, np.copysign(0, a) * np.copysign(1, b)), a / b)


# Exact for sources of up to 24 bits, rounded to odd, or so close that one more rounding is right.
_EXACT: dict[str, Function] = {
    "add": _double(_sum_odd),
    "sub": _double(lambda a, b: _sum_odd(a, -b)),
    "mul": _double(operator.mul),
    "fma": _double(lambda a, b, c: _sum_odd(a * b, c)),
    "div": _double(operator.truediv),
    "div.approx": _double(_approximate_quotient),
    "rcp": _double(lambda a: 1 / a),
    "sqrt": _double(np.sqrt),
    "rsqrt": _double(lambda a: 1 / np.sqrt(a)),
    "ex2": _double(np.exp2),
    "lg2": _double(np.log2),
    "sin": _double(np.sin),
    "cos": _double(np.cos),
    "tanh": _double(np.tanh),
}
_NATIVE: dict[str, Function] = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "div": operator.truediv, "sqrt": np.sqrt,
}  # fmt: skip
_ROUNDED_ANY_WAY = "add", "sub", "mul", "fma"


def flush(bits: Bits) -> Bits:
    """Subnormal fp32 numbers become 0 with their sign."""
    return np.where(bits & U32(0x7F800000), bits, bits & U32(0x80000000))


def _flushing(function: Function) -> Function:
    return lambda *a: flush(function(*map(flush, a)))


def _halves(function: Function, whole: Any, part: Any) -> Function:
    """A function of each part of a packed register."""

    def apply(*a: Bits) -> Bits:
        parts = [np.ascontiguousarray(x)[..., None].view(part) for x in np.broadcast_arrays(*a)]
        return np.ascontiguousarray(function(*parts)).view(whole)[..., 0]

    return apply


def _on_floats(kind: str, function: Function, ftz: bool, sources: int) -> Operation:
    """An operation of float type `kind`, packed or not, from a function of the bits of one number each."""
    if ftz:
        if PACKED.get(kind, kind) != "f32":
            raise ValueError(kind)
        function = _flushing(function)
    if kind in PACKED:
        function = _halves(function, register(kind), register(PACKED[kind]))
    return pure(kind, sources, function)


def float_operation(words: Modifiers, name: str, sources: int) -> Operation:
    ftz, saturate, relu = words.flag("ftz"), words.flag("sat"), words.flag("relu")
    rounding = words.take("rn", "rz", "rm", "rp", default="rn")
    kind = words.take(*FLOATS, *PACKED)
    return _on_floats(kind, _arithmetic(PACKED.get(kind, kind), name, rounding, saturate, relu), ftz, sources)


def _arithmetic(kind: str, name: str, rounding: str, saturate: bool, relu: bool) -> Function:
    if rounding != "rn" and (name not in _ROUNDED_ANY_WAY or kind == "f64"):
        raise ValueError(rounding)
    native = kind in ("f32", "f64") and rounding == "rn" and name in _NATIVE
    if kind == "f64" and not native:
        raise ValueError(name)
    load, store = read(kind), write(kind, rounding)
    exact = _NATIVE[name] if native else _EXACT[name]

    def compute(*a: Bits) -> Bits:
        value = exact(*map(load, a))
        if saturate:
            value = np.clip(np.where(np.isnan(value), 0, value), 0, 1).astype(value.dtype)
        if relu:
            value = np.where(value <= 0, value.dtype.type(0), value)
        return store(value)

    return compute


def _unary(name: str, *qualifiers: str) -> Function:
    """Approximate, or with rn where it is among the qualifiers."""

    def build(words: Modifiers) -> Operation:
        words.take(*qualifiers, default="approx" if name in ("sin", "cos") else "")
        return float_operation(words, name, 1)

    return build


def _sign(function: Callable[[Bits, Bits], Bits], integer: Function) -> Function:
    """abs and neg: of the bits, with those of the sign."""

    def build(words: Modifiers) -> Operation:
        if words[-1] in INTEGERS:
            kind = words.take(*INTEGERS)
            return pure(kind, 1, integer(read_integer(kind)))
        ftz, kind = words.flag("ftz"), words.take(*FLOATS, *PACKED)
        bits = FLOATS[PACKED.get(kind, kind)]
        return _on_floats(kind, lambda a: function(a, UNSIGNED[bits](1 << (bits - 1))), ftz, 1)

    return build


def _extreme(largest: bool) -> Function:
    """min and max, of two or three."""

    def build(words: Modifiers) -> Operation:
        if words[-1] in INTEGERS:
            kind = words.take(*INTEGERS)
            value, choose = read_integer(kind), np.maximum if largest else np.minimum
            return pure(kind, 2, lambda a, b: choose(value(a), value(b)).view(register(kind)))
        ftz, nan = words.flag("ftz"), words.flag("NaN")
        signs = words.flag("xorsign") and words.flag("abs")
        kind = words.take(*FLOATS, *PACKED)
        pick = _extreme_of_floats(PACKED.get(kind, kind), largest, nan, signs)
        return _on_floats(kind, lambda *a: reduce(pick, a), ftz, 3)

    return build


def _extreme_of_floats(kind: str, largest: bool, nan: bool, signs: bool) -> Function:
    """-0 is below +0. A NaN loses, or wins with `nan`. signs: of magnitudes, with the product of both signs."""
    if kind == "f64":
        raise ValueError(kind)
    bits, load = FLOATS[kind], read(kind)
    whole, integer = UNSIGNED[bits], SIGNED[bits]
    top = whole(1 << (bits - 1))

    def ordered(x: Bits) -> Bits:
        return (x ^ np.where(x & top, ~top, whole(0))).view(integer)

    def pick(a: Bits, b: Bits) -> Bits:
        sign = (a ^ b) & top
        if signs:
            a, b = a & ~top, b & ~top
        first = ordered(a) >= ordered(b) if largest else ordered(a) <= ordered(b)
        result = np.where(first, a, b)
        bad_a, bad_b = np.isnan(load(a)), np.isnan(load(b))
        if bad_a.any() or bad_b.any():
            lost = bad_a | bad_b if nan else bad_a & bad_b
            result = np.where(lost, NAN[kind], np.where(bad_a, b, np.where(bad_b, a, result)))
        return (result & ~top) | sign if signs else result

    return pick


def _copysign(words: Modifiers) -> Operation:
    kind = words.take("f32", "f64")
    top = UNSIGNED[FLOATS[kind]](1 << (FLOATS[kind] - 1))
    return pure(kind, 2, lambda a, b: (a & top) | (b & ~top))


_TESTS: dict[str, Decode] = {
    "finite": np.isfinite,
    "infinite": np.isinf,
    "number": lambda x: ~np.isnan(x),
    "notanumber": np.isnan,
    "normal": lambda x: np.isfinite(x) & (np.abs(x) >= np.finfo(x.dtype).tiny),
    "subnormal": lambda x: (x != 0) & (np.abs(x) < np.finfo(x.dtype).tiny),
}


def _testp(words: Modifiers) -> Operation:
    test, kind = _TESTS[words.take(*_TESTS)], words.take("f32", "f64")
    load = read(kind)
    return Operation((np.bool_,), (register(kind),), lambda a: (test(load(a)),))


# Comparisons

_COMPARE: dict[str, Function] = {
    "eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge,
}  # fmt: skip
_UNSIGNED_COMPARE = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}
_COMBINE: dict[str, Function] = {"and": operator.and_, "or": operator.or_, "xor": operator.xor}


def _comparison(words: Modifiers) -> Function:
    """A comparison of bits. The name of the type stays in `words`."""
    kind = words[-1]
    if kind in INTEGERS:
        name = words.take(*_COMPARE, *_UNSIGNED_COMPARE)
        compare, value = _COMPARE[_UNSIGNED_COMPARE.get(name, name)], read_integer(kind)
        return lambda a, b: compare(value(a), value(b))
    ftz, load = words.flag("ftz"), read(kind)
    if kind not in FLOATS or (ftz and kind != "f32"):
        raise ValueError(kind)
    name = words.take("num", "nan", *_COMPARE, *(each + "u" for each in _COMPARE))
    flushed = flush if ftz else (lambda x: x)

    def compare_floats(a: Bits, b: Bits) -> Bits:
        x, y = load(flushed(a)), load(flushed(b))
        if name in ("num", "nan"):
            ordered = (x == x) & (y == y)
            return ordered if name == "num" else ~ordered
        found = _COMPARE[name[:2]](x, y)
        if name == "ne":  # numpy's holds for NaN
            return found & (x == x) & (y == y)
        return found | (x != x) | (y != y) if len(name) == 3 else found

    return compare_floats


def _setp(words: Modifiers) -> Operation:
    """The comparison, and its opposite; each combined with a predicate."""
    combine = words.take(*_COMBINE, default="none")
    compare = _comparison(words)
    kind = register(words.take(*INTEGERS, *FLOATS))

    def plain(a: Bits, b: Bits) -> tuple[Bits, Bits]:
        found = compare(a, b)
        return found, ~found

    def combined(a: Bits, b: Bits, c: Bits) -> tuple[Bits, Bits]:
        found = compare(a, b)
        return _COMBINE[combine](found, c), _COMBINE[combine](~found, c)

    function = plain if combine == "none" else combined
    return Operation((np.bool_, np.bool_), (kind, kind, np.bool_), function)


FAMILIES: dict[str, Family] = {
    "fma": lambda words: float_operation(words, "fma", 3),
    "abs": _sign(lambda a, top: a & ~top, lambda value: lambda a: np.where(value(a) < 0, -a, a)),
    "neg": _sign(operator.xor, lambda value: operator.neg),
    "min": _extreme(False),
    "max": _extreme(True),
    "setp": _setp,
    "copysign": _copysign,
    "testp": _testp,
    "rcp": _unary("rcp", "approx", "rn"),
    "sqrt": _unary("sqrt", "approx", "rn"),
    "rsqrt": _unary("rsqrt", "approx"),
    "ex2": _unary("ex2", "approx"),
    "lg2": _unary("lg2", "approx"),
    "sin": _unary("sin", "approx"),
    "cos": _unary("cos", "approx"),
    "tanh": _unary("tanh", "approx"),
}
