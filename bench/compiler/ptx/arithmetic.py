"""Values of the PTX instructions that work on each lane by itself, on numpy arrays of bit patterns.

`operation(opcode)` looks an instruction up once; its function then maps sources to results, lane by lane. Registers are
unsigned: pred bool, b16 uint16, b32 uint32, b64 uint64. A source may be a scalar of its type, for an immediate.
Integers wrap. Callers hold `np.errstate(all="ignore")`.

add, sub, mul, fma, cvt, and div, rcp, sqrt with .rn are correctly rounded; fma rounds once. NaN results are canonical
in fp32, fp16 and bf16, as on the chip. The other functions are approximate on the chip. Here they round the fp64 value
to nearest, so that their error is at most 0.5001 ulp. The PTX ISA allows:

    div.full                2 ulp
    div.approx              2 ulp, for divisors of 2^-126 .. 2^126; beyond them 0, here too
    rcp.approx              1 ulp
    sqrt.approx             relative error 2^-23
    rsqrt.approx            relative error 2^-22.9
    ex2.approx              2 ulp
    lg2.approx              absolute error 2^-22.6 in 0.5 .. 2, relative error 2^-22.6 elsewhere
    sin.approx, cos.approx  absolute error 2^-20.5 in -pi .. pi
    tanh.approx             relative error 2^-11

A chip's result and this one therefore differ by at most the sum of both bounds. A quotient of integers by 0, which PTX
leaves open, has all bits set.
"""

import operator
from collections.abc import Callable
from functools import cache, reduce
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from zonos2_triton.bench.compiler.ptx.parse import UnknownInstruction

Bits = npt.NDArray[Any]
Function = Callable[..., Any]
Decode = Callable[[Bits], Bits]


class Operation(NamedTuple):
    """The numpy types of an instruction's operands, and its function of arrays."""

    results: tuple[Any, ...]
    sources: tuple[Any, ...]  # as many as it may have
    function: Callable[..., tuple[Bits, ...]]


UNSIGNED: dict[int, Any] = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}
SIGNED: dict[int, Any] = {8: np.int8, 16: np.int16, 32: np.int32, 64: np.int64}
FLOATS = {"f16": 16, "bf16": 16, "f32": 32, "f64": 64}
PACKED = {"f16x2": "f16", "bf16x2": "bf16", "f32x2": "f32"}
INTEGERS = tuple(kind + size for kind in "usb" for size in ("8", "16", "32", "64"))
U32 = UNSIGNED[32]
NAN: dict[str, Any] = {
    "f16": np.uint16(0x7FFF),
    "bf16": np.uint16(0x7FFF),
    "f32": np.uint32(0x7FFFFFFF),
    "tf32": np.uint32(0x7FFFFFFF),
}


@cache
def operation(opcode: tuple[str, ...]) -> Operation:
    """The operation of an opcode, such as ("mad", "lo", "s32"). UnknownInstruction: it has no meaning here."""
    name, *modifiers = opcode
    try:
        words = _Modifiers(modifiers)
        found = _FAMILIES[name](words)
        if words:
            raise ValueError
    except (KeyError, ValueError, IndexError):
        raise UnknownInstruction(".".join(opcode)) from None
    return found


def evaluate(opcode: str, *sources: Bits) -> tuple[Bits, ...]:
    """The results of one instruction. UnknownInstruction: it has no meaning here."""
    with np.errstate(all="ignore"):
        return operation(tuple(opcode.split("."))).function(*sources)


class _Modifiers(list[str]):
    """The modifiers that a family has not used yet."""

    def take(self, *choices: str, default: str = "") -> str:
        for word in self:
            if word in choices:
                self.remove(word)
                return word
        if default:
            return default
        raise ValueError

    def flag(self, word: str) -> bool:
        return bool(self.take(word, default="no") == word)


def register(kind: str) -> Any:
    """The type of a register that holds a value of a PTX type."""
    if kind == "pred":
        return np.bool_
    if kind in PACKED:
        return UNSIGNED[2 * FLOATS[PACKED[kind]]]
    return UNSIGNED[max(16, FLOATS[kind] if kind in FLOATS else int(kind[1:]))]


def _pure(kind: str, sources: int, function: Function) -> Operation:
    """One result, and sources of the same type."""
    return Operation((register(kind),), (register(kind),) * sources, lambda *a: (function(*a),))


# Integers


def _value(kind: str) -> Decode:
    """Reads bits as numbers."""
    return (lambda x: x.view(SIGNED[int(kind[1:])])) if kind[0] == "s" else (lambda x: x)


def _wide(kind: str) -> Decode:
    """Reads bits as numbers of twice the width, as bits of these."""
    bits, value = int(kind[1:]), _value(kind)
    if kind[0] == "s":
        return lambda x: value(x).astype(SIGNED[2 * bits]).view(UNSIGNED[2 * bits])
    return lambda x: x.astype(UNSIGNED[2 * bits])


def _multiply(kind: str, part: str) -> Function:
    bits = int(kind[1:])
    if part == "lo":
        return operator.mul
    if bits == 64:
        return _high64_signed if kind[0] == "s" else _high64
    wide, narrow = _wide(kind), UNSIGNED[bits]
    if part == "wide":
        return lambda a, b: wide(a) * wide(b)
    return lambda a, b: ((wide(a) * wide(b)) >> UNSIGNED[2 * bits](bits)).astype(narrow)


def _high64(a: Bits, b: Bits) -> Bits:
    low, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    a0, a1, b0, b1 = a & low, a >> half, b & low, b >> half
    middle = a1 * b0 + ((a0 * b0) >> half)
    other = a0 * b1 + (middle & low)
    return a1 * b1 + (middle >> half) + (other >> half)


def _high64_signed(a: Bits, b: Bits) -> Bits:
    zero = np.uint64(0)
    return _high64(a, b) - np.where(a.view(np.int64) < 0, b, zero) - np.where(b.view(np.int64) < 0, a, zero)


def _mul(words: _Modifiers) -> Operation:
    if words[-1] not in INTEGERS:
        return _float(words, "mul", 2)
    part, kind = words.take("lo", "hi", "wide"), words.take(*INTEGERS)
    result = UNSIGNED[2 * int(kind[1:])] if part == "wide" else register(kind)
    function = _multiply(kind, part)
    return Operation((result,), (register(kind),) * 2, lambda a, b: (function(a, b),))


def _mad(words: _Modifiers) -> Operation:
    if words[-1] not in INTEGERS:
        return _float(words, "fma", 3)
    part, kind = words.take("lo", "hi", "wide"), words.take(*INTEGERS)
    result = UNSIGNED[2 * int(kind[1:])] if part == "wide" else register(kind)
    function = _multiply(kind, part)
    return Operation((result,), (register(kind), register(kind), result), lambda a, b, c: (function(a, b) + c,))


def _add(name: str) -> Function:
    def build(words: _Modifiers) -> Operation:
        if words[-1] not in INTEGERS:
            return _float(words, name, 2)
        return _pure(words.take(*INTEGERS), 2, operator.add if name == "add" else operator.sub)

    return build


def _divide(kind: str, remainder: bool) -> Function:
    """Towards zero. By 0: all ones, and the dividend."""
    one = UNSIGNED[int(kind[1:])](1)
    value = _value(kind)

    def divide(a: Bits, b: Bits) -> Bits:
        negative_a, negative_b = value(a) < 0, value(b) < 0
        size_a, size_b = np.where(negative_a, -a, a), np.where(negative_b, -b, b)
        divisor = np.where(b == 0, one, size_b)
        if remainder:
            rest = size_a % divisor
            return np.where(b == 0, a, np.where(negative_a, -rest, rest))
        quotient = size_a // divisor
        return np.where(b == 0, ~(b & ~b), np.where(negative_a != negative_b, -quotient, quotient))

    return divide


def _div(words: _Modifiers) -> Operation:
    if words[-1] in INTEGERS:
        kind = words.take(*INTEGERS)
        return _pure(kind, 2, _divide(kind, False))
    how = words.take("full", "approx", "rn", default="rn")
    return _float(words, "div.approx" if how == "approx" else "div", 2)


def _rem(words: _Modifiers) -> Operation:
    kind = words.take(*INTEGERS)
    return _pure(kind, 2, _divide(kind, True))


def _logic(function: Function, sources: int = 2) -> Function:
    return lambda words: _pure(words.take("pred", *INTEGERS), sources, function)


def _shift_left(a: Bits, amount: Bits) -> Bits:
    bits = 8 * a.dtype.itemsize
    shifted = a << np.minimum(amount, U32(bits - 1)).astype(a.dtype)
    return np.where(amount < bits, shifted, a.dtype.type(0))


def _shift_right(a: Bits, amount: Bits) -> Bits:
    """The sign of a signed type comes in."""
    bits = 8 * a.dtype.itemsize
    shifted = a >> np.minimum(amount, U32(bits - 1)).astype(a.dtype)
    return shifted if a.dtype.kind == "i" else np.where(amount < bits, shifted, a.dtype.type(0))


def _shl(words: _Modifiers) -> Operation:
    kind = register(words.take(*INTEGERS))
    return Operation((kind,), (kind, U32), lambda a, n: (_shift_left(a, n),))


def _shr(words: _Modifiers) -> Operation:
    name = words.take(*INTEGERS)
    kind, value = register(name), _value(name)
    return Operation((kind,), (kind, U32), lambda a, n: (_shift_right(value(a), n).view(kind),))


def _funnel(words: _Modifiers) -> Operation:
    left, clamp = words.take("l", "r") == "l", words.take("clamp", "wrap") == "clamp"
    words.take("b32")

    def shf(a: Bits, b: Bits, n: Bits) -> Bits:
        n = (np.minimum(n, U32(32)) if clamp else n & U32(31)).astype(np.uint64)
        both = (b.astype(np.uint64) << np.uint64(32)) | a.astype(np.uint64)
        return (((both << n) >> np.uint64(32)) if left else both >> n).astype(np.uint32)

    return _pure("b32", 3, shf)


def _ones(n: Bits, kind: Any) -> Bits:
    """The lowest n bits set."""
    return ~_shift_left(np.asarray(~kind(0)), n)


def _bfe(words: _Modifiers) -> Operation:
    name = words.take("u32", "s32", "u64", "s64")
    kind, value, bits = register(name), _value(name), U32(int(name[1:]))

    def extract(a: Bits, at: Bits, n: Bits) -> Bits:
        at, n = at & U32(255), n & U32(255)
        low = _shift_right(value(a), at).view(kind)
        if name[0] == "u":
            return low & _ones(n, kind)
        spare = bits - np.minimum(n, bits)
        signed = _shift_right(value(_shift_left(low, spare)), spare).view(kind)
        return np.where(n == 0, kind(0), signed)

    return Operation((kind,), (kind, U32, U32), lambda a, at, n: (extract(a, at, n),))


def _bfi(words: _Modifiers) -> Operation:
    kind = register(words.take("b32", "b64"))

    def insert(a: Bits, b: Bits, at: Bits, n: Bits) -> Bits:
        at = at & U32(255)
        field = _shift_left(_ones(n & U32(255), kind), at)
        return (b & ~field) | (_shift_left(a, at) & field)

    return Operation((kind,), (kind, kind, U32, U32), lambda *a: (insert(*a),))


_PERMUTES: dict[str, Function] = {  # the byte that comes to place i for selector s
    "f4e": lambda s, i: (s & U32(3)) + i,
    "b4e": lambda s, i: ((s & U32(3)) - i) & U32(7),
    "rc8": lambda s, i: s & U32(3),
    "ecl": lambda s, i: np.maximum(s & U32(3), i),
    "ecr": lambda s, i: np.minimum(s & U32(3), i),
    "rc16": lambda s, i: U32(2) * (s & U32(1)) + (i & U32(1)),
}


def _prmt(words: _Modifiers) -> Operation:
    words.take("b32")
    mode = words.take(*_PERMUTES, default="bytes")

    def permute(a: Bits, b: Bits, selector: Bits) -> Bits:
        both = (b.astype(np.uint64) << np.uint64(32)) | a.astype(np.uint64)
        result = U32(0)
        for i in map(U32, range(4)):
            nibble = selector >> (U32(4) * i)
            place = nibble & U32(7) if mode == "bytes" else _PERMUTES[mode](selector, i)
            byte = ((both >> (U32(8) * place).astype(np.uint64)) & np.uint64(255)).astype(np.uint32)
            if mode == "bytes":
                byte = np.where(nibble & U32(8), (byte >> U32(7)) * U32(255), byte)
            result = result | (byte << (U32(8) * i))
        return result

    return _pure("b32", 3, permute)


def _lop3(words: _Modifiers) -> Operation:
    words.take("b32")

    def combine(a: Bits, b: Bits, c: Bits, table: Bits) -> Bits:
        result = a & U32(0)
        for i in range(8):
            term = (a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c)
            result = result | np.where((table >> U32(i)) & U32(1), term, U32(0))
        return result

    return _pure("b32", 4, combine)


def _popc(x: Bits) -> Bits:
    """Set bits of each element, as uint32."""
    return np.unpackbits(np.ascontiguousarray(x)[..., None].view(np.uint8), axis=-1).sum(-1, dtype=np.uint32)


def _smeared(x: Bits) -> Bits:
    """Every bit set below the highest that is."""
    for i in (1, 2, 4, 8, 16, 32)[: 5 if x.dtype.itemsize == 4 else 6]:
        x = x | (x >> x.dtype.type(i))
    return x


def _count(function: Decode) -> Function:
    return lambda words: Operation((U32,), (register(words.take("b32", "b64")),), lambda a: (function(a),))


def _bfind(words: _Modifiers) -> Operation:
    amount, name = words.flag("shiftamt"), words.take("u32", "s32", "u64", "s64")
    kind, value, top = register(name), _value(name), U32(int(name[1:]) - 1)

    def find(a: Bits) -> Bits:
        a = np.where(value(a) < 0, ~a, a)
        place = _popc(_smeared(a)) - U32(1)
        return np.where(a == 0, place, top - place) if amount else place

    return Operation((U32,), (kind,), lambda a: (find(a),))


def _reverse(x: Bits) -> Bits:
    octets = np.ascontiguousarray(x)[..., None].view(np.uint8)
    return np.packbits(np.unpackbits(octets, axis=-1)[..., ::-1], axis=-1).view(x.dtype)[..., 0]


def _brev(words: _Modifiers) -> Operation:
    return _pure(words.take("b32", "b64"), 1, _reverse)


def _selp(words: _Modifiers) -> Operation:
    kind = register(words.take(*INTEGERS, *FLOATS, *PACKED))

    def select(a: Bits, b: Bits, p: Bits) -> tuple[Bits]:
        return (np.where(p, a, b),)

    return Operation((kind,), (kind, kind, np.bool_), select)


def _mov(words: _Modifiers) -> Operation:
    return _pure(words.take("pred", *INTEGERS, *FLOATS, *PACKED), 1, lambda a: a)


# Floats: a type is read as fp64 or fp32, which are exact, and written with one rounding.


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


def _flush(bits: Bits) -> Bits:
    """Subnormal fp32 numbers become 0 with their sign."""
    return np.where(bits & U32(0x7F800000), bits, bits & U32(0x80000000))


def _flushing(function: Function) -> Function:
    return lambda *a: _flush(function(*map(_flush, a)))


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
    return _pure(kind, sources, function)


def _float(words: _Modifiers, name: str, sources: int) -> Operation:
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

    def build(words: _Modifiers) -> Operation:
        words.take(*qualifiers, default="approx" if name in ("sin", "cos") else "")
        return _float(words, name, 1)

    return build


def _sign(function: Callable[[Bits, Bits], Bits], integer: Function) -> Function:
    """abs and neg: of the bits, with those of the sign."""

    def build(words: _Modifiers) -> Operation:
        if words[-1] in INTEGERS:
            kind = words.take(*INTEGERS)
            return _pure(kind, 1, integer(_value(kind)))
        ftz, kind = words.flag("ftz"), words.take(*FLOATS, *PACKED)
        bits = FLOATS[PACKED.get(kind, kind)]
        return _on_floats(kind, lambda a: function(a, UNSIGNED[bits](1 << (bits - 1))), ftz, 1)

    return build


def _extreme(largest: bool) -> Function:
    """min and max, of two or three."""

    def build(words: _Modifiers) -> Operation:
        if words[-1] in INTEGERS:
            kind = words.take(*INTEGERS)
            value, choose = _value(kind), np.maximum if largest else np.minimum
            return _pure(kind, 2, lambda a, b: choose(value(a), value(b)).view(register(kind)))
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


def _copysign(words: _Modifiers) -> Operation:
    kind = words.take("f32", "f64")
    top = UNSIGNED[FLOATS[kind]](1 << (FLOATS[kind] - 1))
    return _pure(kind, 2, lambda a, b: (a & top) | (b & ~top))


_TESTS: dict[str, Decode] = {
    "finite": np.isfinite,
    "infinite": np.isinf,
    "number": lambda x: ~np.isnan(x),
    "notanumber": np.isnan,
    "normal": lambda x: np.isfinite(x) & (np.abs(x) >= np.finfo(x.dtype).tiny),
    "subnormal": lambda x: (x != 0) & (np.abs(x) < np.finfo(x.dtype).tiny),
}


def _testp(words: _Modifiers) -> Operation:
    test, kind = _TESTS[words.take(*_TESTS)], words.take("f32", "f64")
    load = read(kind)
    return Operation((np.bool_,), (register(kind),), lambda a: (test(load(a)),))


# Comparisons

_COMPARE: dict[str, Function] = {
    "eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge,
}  # fmt: skip
_UNSIGNED_COMPARE = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}
_COMBINE: dict[str, Function] = {"and": operator.and_, "or": operator.or_, "xor": operator.xor}


def _comparison(words: _Modifiers) -> Function:
    """A comparison of bits. The name of the type stays in `words`."""
    kind = words[-1]
    if kind in INTEGERS:
        name = words.take(*_COMPARE, *_UNSIGNED_COMPARE)
        compare, value = _COMPARE[_UNSIGNED_COMPARE.get(name, name)], _value(kind)
        return lambda a, b: compare(value(a), value(b))
    ftz, load = words.flag("ftz"), read(kind)
    if kind not in FLOATS or (ftz and kind != "f32"):
        raise ValueError(kind)
    name = words.take("num", "nan", *_COMPARE, *(each + "u" for each in _COMPARE))
    flushed = _flush if ftz else (lambda x: x)

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


def _setp(words: _Modifiers) -> Operation:
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


# Conversions

_INTEGRAL: dict[str, Function] = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


def _fp8(exponents: int, mantissas: int) -> Bits:
    """The values of all 256 codes, in fp32."""
    codes = np.arange(128)
    exponent, mantissa = codes >> mantissas, codes & ((1 << mantissas) - 1)
    bias, scale = (1 << (exponents - 1)) - 1, 2.0**-mantissas
    size = np.where(
        exponent == 0, mantissa * scale * 2.0 ** (1 - bias), (1 + mantissa * scale) * 2.0 ** (exponent - bias)
    )
    if mantissas == 3:
        size[127] = np.nan
    else:
        size[124:] = [np.inf, np.nan, np.nan, np.nan]
    return np.concatenate([size, -size]).astype(np.float32)


FP8 = {"e4m3": _fp8(4, 3), "e5m2": _fp8(5, 2)}


def _to_fp8(kind: str, x: Bits) -> Bits:
    """To nearest even; what is beyond the largest number becomes that."""
    values = FP8[kind][:128].astype(np.float64)
    values = values[np.isfinite(values)]
    size = np.minimum(np.abs(x.astype(np.float64)), values[-1])
    low = np.minimum(np.searchsorted(values, size, "right") - 1, len(values) - 2)
    below, above = size - values[low], values[low + 1] - size
    code = low + ((above < below) | ((above == below) & (low % 2 == 1)))
    return np.where(np.isnan(x), 0x7F, code | (np.signbit(x) * 0x80)).astype(np.uint16)


def _cvt(words: _Modifiers) -> Operation:
    source, target = words.pop(), words.pop()
    if target in PACKED or target[:4] in FP8 or source[:4] in FP8:
        return _cvt_packed(words, target, source)
    ftz, saturate, relu = words.flag("ftz"), words.flag("sat"), words.flag("relu")
    rounding = words.take("rn", "rz", "rm", "rp", "rna", *_INTEGRAL, default="none")
    if source in INTEGERS:
        function = _from_integer(source, target, rounding, saturate)
    elif target in INTEGERS:
        function = _to_integer(target, rounding, read(source))
    else:
        function = _between_floats(target, read(source), rounding, saturate, relu)
    result = register("f32" if target == "tf32" else target)
    flush_in, flush_out = ftz and source == "f32", ftz and target == "f32"

    def convert(x: Bits) -> tuple[Bits]:
        bits = function(_flush(x) if flush_in else x)
        return (_flush(bits) if flush_out else bits,)

    return Operation((result,), (register(source),), convert)


def _from_integer(source: str, target: str, rounding: str, saturate: bool) -> Function:
    bits = int(source[1:])
    narrow = SIGNED[bits] if source[0] == "s" else UNSIGNED[bits]

    def value(x: Bits) -> Bits:
        return x.astype(UNSIGNED[bits]).view(narrow)  # a register may be wider than the type

    if target not in INTEGERS:
        store = write(target, rounding)
        if rounding == "none" or (bits == 64 and (rounding != "rn" or target not in ("f32", "f64"))):
            raise ValueError(rounding)
        return lambda x: store(value(x) if bits == 64 else value(x).astype(np.float64))
    if rounding != "none":
        raise ValueError(rounding)
    size = int(target[1:])
    goal, wide = SIGNED[size] if target[0] == "s" else UNSIGNED[size], SIGNED if target[0] == "s" else UNSIGNED
    low, high = int(np.iinfo(goal).min), int(np.iinfo(goal).max)

    def convert(x: Bits) -> Bits:
        number = value(x)
        if saturate:
            limits = np.iinfo(narrow)
            number = np.clip(number, narrow(max(low, int(limits.min))), narrow(min(high, int(limits.max))))
        return number.astype(goal).astype(wide[max(16, size)]).view(register(target))

    return convert


def _to_integer(target: str, rounding: str, load: Decode) -> Function:
    """Beyond the target's range its nearest number; NaN gives 0, or the top bit alone in 64 bits."""
    bits = int(target[1:])
    kind = SIGNED[bits] if target[0] == "s" else UNSIGNED[bits]
    low, high = float(np.iinfo(kind).min), float(int(np.iinfo(kind).max) + 1)
    integral, wide = _INTEGRAL[rounding], (SIGNED if target[0] == "s" else UNSIGNED)[max(16, bits)]

    def convert(x: Bits) -> Bits:
        value = load(x)
        number = integral(value.astype(np.float64))
        beyond = number >= high
        inside = np.where((number >= low) & ~beyond, number, 0).astype(kind)
        result = np.where(beyond, np.iinfo(kind).max, np.where(number < low, np.iinfo(kind).min, inside)).astype(kind)
        result = result.astype(wide).view(register(target))
        if bits == 64 or value.dtype == np.float64:
            result = np.where(np.isnan(value), register(target)(1 << (bits - 1)), result)
        return result

    return convert


def _between_floats(target: str, load: Decode, rounding: str, saturate: bool, relu: bool) -> Function:
    integral = _INTEGRAL.get(rounding)
    store = write(target, "rn" if integral or rounding == "none" else rounding)

    def convert(x: Bits) -> Bits:
        value = load(x)
        if integral:
            value = integral(value)
        if saturate:
            value = np.clip(np.where(np.isnan(value), 0, value), 0, 1).astype(value.dtype)
        if relu:
            value = np.where(value <= 0, value.dtype.type(0), value)
        return store(value)

    return convert


def _cvt_packed(words: _Modifiers, target: str, source: str) -> Operation:
    """Two numbers in one register: of two sources the first is the upper half."""
    relu = words.flag("relu")
    result: Any
    if source[:4] in FP8:
        words.take("rn")
        if source[4:] != "x2" or target != "f16x2":
            raise ValueError(source)
        half, table = write("f16"), FP8[source[:4]]

        def unpack(x: Bits) -> tuple[Bits]:
            low, high = (half(table[(x >> x.dtype.type(n)) & 255]).astype(np.uint32) for n in (0, 8))
            return (low | (high << U32(16)),)

        return Operation((np.uint32,), (np.uint16,), unpack)
    if source != "f32":
        raise ValueError(source)
    if target[:4] in FP8:
        words.take("rn")
        words.take("satfinite")
        kind, shift, result = target[:4], 8, np.uint16
        store: Decode = lambda x: _to_fp8(kind, x)  # noqa: E731
    else:
        store, shift, result = write(PACKED[target], words.take("rn", "rz")), 16, np.uint32

    def pack(high: Bits, low: Bits) -> tuple[Bits]:
        both = [x.view(np.float32) for x in (high, low)]
        if relu:
            both = [np.where(x <= 0, np.float32(0), x) for x in both]
        upper, lower = (store(x).astype(result) for x in both)
        return ((upper << result(shift)) | lower,)

    return Operation((result,), (np.uint32, np.uint32), pack)


_FAMILIES: dict[str, Callable[[_Modifiers], Operation]] = {
    "mov": _mov,
    "add": _add("add"),
    "sub": _add("sub"),
    "mul": _mul,
    "mad": _mad,
    "fma": lambda words: _float(words, "fma", 3),
    "div": _div,
    "rem": _rem,
    "abs": _sign(lambda a, top: a & ~top, lambda value: lambda a: np.where(value(a) < 0, -a, a)),
    "neg": _sign(operator.xor, lambda value: operator.neg),
    "min": _extreme(False),
    "max": _extreme(True),
    "and": _logic(operator.and_),
    "or": _logic(operator.or_),
    "xor": _logic(operator.xor),
    "not": _logic(operator.invert, 1),
    "cnot": _logic(lambda a: (a == 0).astype(a.dtype), 1),
    "shl": _shl,
    "shr": _shr,
    "shf": _funnel,
    "bfe": _bfe,
    "bfi": _bfi,
    "prmt": _prmt,
    "lop3": _lop3,
    "popc": _count(_popc),
    "clz": _count(lambda a: U32(8 * a.dtype.itemsize) - _popc(_smeared(a))),
    "bfind": _bfind,
    "brev": _brev,
    "selp": _selp,
    "setp": _setp,
    "cvt": _cvt,
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
