"""PTX instructions on integers and on bits. add, sub, mul, mad and div take floats too."""

import operator
from typing import Any

import numpy as np

from zonos2_triton.bench.compiler.ptx.floats import float_operation
from zonos2_triton.bench.compiler.ptx.operations import (
    FLOATS,
    INTEGERS,
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


def _wide(kind: str) -> Decode:
    """Reads bits as numbers of twice the width, as bits of these."""
    bits, value = int(kind[1:]), read_integer(kind)
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


def _mul(words: Modifiers) -> Operation:
    if words[-1] not in INTEGERS:
        return float_operation(words, "mul", 2)
    part, kind = words.take("lo", "hi", "wide"), words.take(*INTEGERS)
    result = UNSIGNED[2 * int(kind[1:])] if part == "wide" else register(kind)
    function = _multiply(kind, part)
    return Operation((result,), (register(kind),) * 2, lambda a, b: (function(a, b),))


def _mad(words: Modifiers) -> Operation:
    if words[-1] not in INTEGERS:
        return float_operation(words, "fma", 3)
    part, kind = words.take("lo", "hi", "wide"), words.take(*INTEGERS)
    result = UNSIGNED[2 * int(kind[1:])] if part == "wide" else register(kind)
    function = _multiply(kind, part)
    return Operation((result,), (register(kind), register(kind), result), lambda a, b, c: (function(a, b) + c,))


def _add(name: str) -> Function:
    def build(words: Modifiers) -> Operation:
        if words[-1] not in INTEGERS:
            return float_operation(words, name, 2)
        return pure(words.take(*INTEGERS), 2, operator.add if name == "add" else operator.sub)

    return build


def _divide(kind: str, remainder: bool) -> Function:
    """Towards zero. By 0: all ones, and the dividend."""
    one = UNSIGNED[int(kind[1:])](1)
    value = read_integer(kind)

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


def _div(words: Modifiers) -> Operation:
    if words[-1] in INTEGERS:
        kind = words.take(*INTEGERS)
        return pure(kind, 2, _divide(kind, False))
    how = words.take("full", "approx", "rn", default="rn")
    return float_operation(words, "div.approx" if how == "approx" else "div", 2)


def _rem(words: Modifiers) -> Operation:
    kind = words.take(*INTEGERS)
    return pure(kind, 2, _divide(kind, True))


def _logic(function: Function, sources: int = 2) -> Function:
    return lambda words: pure(words.take("pred", *INTEGERS), sources, function)


def _shift_left(a: Bits, amount: Bits) -> Bits:
    bits = 8 * a.dtype.itemsize
    shifted = a << np.minimum(amount, U32(bits - 1)).astype(a.dtype)
    return np.where(amount < bits, shifted, a.dtype.type(0))


def _shift_right(a: Bits, amount: Bits) -> Bits:
    """The sign of a signed type comes in."""
    bits = 8 * a.dtype.itemsize
    shifted = a >> np.minimum(amount, U32(bits - 1)).astype(a.dtype)
    return shifted if a.dtype.kind == "i" else np.where(amount < bits, shifted, a.dtype.type(0))


def _shl(words: Modifiers) -> Operation:
    kind = register(words.take(*INTEGERS))
    return Operation((kind,), (kind, U32), lambda a, n: (_shift_left(a, n),))


def _shr(words: Modifiers) -> Operation:
    name = words.take(*INTEGERS)
    kind, value = register(name), read_integer(name)
    return Operation((kind,), (kind, U32), lambda a, n: (_shift_right(value(a), n).view(kind),))


def _funnel(words: Modifiers) -> Operation:
    left, clamp = words.take("l", "r") == "l", words.take("clamp", "wrap") == "clamp"
    words.take("b32")

    def shf(a: Bits, b: Bits, n: Bits) -> Bits:
        n = (np.minimum(n, U32(32)) if clamp else n & U32(31)).astype(np.uint64)
        both = (b.astype(np.uint64) << np.uint64(32)) | a.astype(np.uint64)
        return (((both << n) >> np.uint64(32)) if left else both >> n).astype(np.uint32)

    return pure("b32", 3, shf)


def _ones(n: Bits, kind: Any) -> Bits:
    """The lowest n bits set."""
    return ~_shift_left(np.asarray(~kind(0)), n)


def _bfe(words: Modifiers) -> Operation:
    name = words.take("u32", "s32", "u64", "s64")
    kind, value, bits = register(name), read_integer(name), U32(int(name[1:]))

    def extract(a: Bits, at: Bits, n: Bits) -> Bits:
        at, n = at & U32(255), n & U32(255)
        low = _shift_right(value(a), at).view(kind)
        if name[0] == "u":
            return low & _ones(n, kind)
        spare = bits - np.minimum(n, bits)
        signed = _shift_right(value(_shift_left(low, spare)), spare).view(kind)
        return np.where(n == 0, kind(0), signed)

    return Operation((kind,), (kind, U32, U32), lambda a, at, n: (extract(a, at, n),))


def _bfi(words: Modifiers) -> Operation:
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


def _prmt(words: Modifiers) -> Operation:
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

    return pure("b32", 3, permute)


def _lop3(words: Modifiers) -> Operation:
    words.take("b32")

    def combine(a: Bits, b: Bits, c: Bits, table: Bits) -> Bits:
        result = a & U32(0)
        for i in range(8):
            term = (a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c)
            result = result | np.where((table >> U32(i)) & U32(1), term, U32(0))
        return result

    return pure("b32", 4, combine)


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


def _bfind(words: Modifiers) -> Operation:
    amount, name = words.flag("shiftamt"), words.take("u32", "s32", "u64", "s64")
    kind, value, top = register(name), read_integer(name), U32(int(name[1:]) - 1)

    def find(a: Bits) -> Bits:
        a = np.where(value(a) < 0, ~a, a)
        place = _popc(_smeared(a)) - U32(1)
        return np.where(a == 0, place, top - place) if amount else place

    return Operation((U32,), (kind,), lambda a: (find(a),))


def _reverse(x: Bits) -> Bits:
    octets = np.ascontiguousarray(x)[..., None].view(np.uint8)
    return np.packbits(np.unpackbits(octets, axis=-1)[..., ::-1], axis=-1).view(x.dtype)[..., 0]


def _brev(words: Modifiers) -> Operation:
    return pure(words.take("b32", "b64"), 1, _reverse)


def _selp(words: Modifiers) -> Operation:
    kind = register(words.take(*INTEGERS, *FLOATS, *PACKED))

    def select(a: Bits, b: Bits, p: Bits) -> tuple[Bits]:
        return (np.where(p, a, b),)

    return Operation((kind,), (kind, kind, np.bool_), select)


def _mov(words: Modifiers) -> Operation:
    return pure(words.take("pred", *INTEGERS, *FLOATS, *PACKED), 1, lambda a: a)


FAMILIES: dict[str, Family] = {
    "mov": _mov,
    "add": _add("add"),
    "sub": _add("sub"),
    "mul": _mul,
    "mad": _mad,
    "div": _div,
    "rem": _rem,
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
}
