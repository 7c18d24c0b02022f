"""Values of the PTX instructions that a whole warp works on together: matrix products, matrix loads, shuffles, votes.

Arrays are [warps, 32] over lanes, or [warps, 32, registers], of bit patterns as in `arithmetic`. Fragment layouts are
those of the PTX ISA: with g = lane / 4, t = lane % 4 and e elements in a register, register r of a lane holds

    A [16, k]  row g + 8 (r % 2), columns e t + 4 e (r / 2) + 0 .. e - 1
    B [k, 8]   rows e t + 4 e r + 0 .. e - 1, column g
    C [16, 8]  row g + 8 (r / 2), column 2 t + r % 2; in fp16 two to a register

mma and wgmma: products are exact. C and the products of k = 0, 1, .. are added in fp64, and their sum is rounded to
nearest once.
The PTX ISA leaves order and rounding open. Measurements of Ampere and Hopper show the addends of one step (8 or 16 of
k) aligned to the largest exponent and cut to at least 24 bits, then the sum cut to fp32. With n steps in an instruction
a chip's result therefore differs from this one by at most (k + n) 2^-23 of the largest addend.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from zonos2_triton.bench.compiler.ptx import arithmetic
from zonos2_triton.bench.compiler.ptx.conversions import FP8
from zonos2_triton.bench.compiler.ptx.floats import read, write
from zonos2_triton.bench.compiler.ptx.operations import NAN, SIGNED, UNSIGNED, Bits, Operation
from zonos2_triton.bench.compiler.ptx.parse import PtxError, UnknownInstruction

LANES = np.arange(32, dtype=np.uint32)
_G, _T = np.arange(32) // 4, np.arange(32) % 4
_OPS: dict[str, Any] = {"add": np.add, "min": np.minimum, "max": np.maximum}
_OPS |= {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}


class Mma(NamedTuple):
    """A matrix product d = a b + c."""

    registers: tuple[int, int, int]  # of a, b and c; d has as many as c
    function: Callable[[Bits, Bits, Bits], Bits]  # of [warps, 32, registers] each


_BITS = {"bf16": 16, "f16": 16, "tf32": 32, "e4m3": 8, "e5m2": 8, "s8": 8, "u8": 8}
_ACCUMULATE = {"f32": _BITS.keys() - {"s8", "u8"}, "f16": {"f16"}, "s32": {"s8", "u8"}}


@cache
def mma(opcode: tuple[str, ...]) -> Mma:
    """The product of an opcode such as mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32.

    UnknownInstruction: another shape, type or layout.
    """
    *words, to, left, right, accumulator = opcode
    known = words[:3] == ["mma", "sync", "aligned"] and words[4:] == ["row", "col"] and words[3][:6] == "m16n8k"
    known = known and to == accumulator and to in _ACCUMULATE and {left, right} <= _ACCUMULATE[to]
    k = int(words[3][6:]) if known else 0
    bits = _BITS.get(left, 0)
    if not known or _BITS[right] != bits or k * bits not in (128, 256):
        raise UnknownInstruction(".".join(opcode))
    each = 32 // bits
    registers = 16 * k // (32 * each), 8 * k // (32 * each), 4 if to != "f16" else 2
    place_a, place_b = _place(16, k, each, True), _place(8, k, each, False)
    load_a, load_b = _element(left), _element(right)
    row, column = _accumulator()
    half = to == "f16"

    def multiply(a: Bits, b: Bits, c: Bits) -> Bits:
        warps = len(a)
        x = load_a(_elements(a, bits))[:, place_a]  # [warps, 16, k]
        y = load_b(_elements(b, bits))[:, place_b]  # [warps, 8, k]
        total = _numbers(c, to).reshape(warps, 32, 4)
        table = np.empty((warps, 16, 8), total.dtype)
        table[:, row, column] = total
        for i in range(k):
            table += x[:, :, None, i] * y[:, None, :, i]
        found = table[:, row, column]
        if to == "s32":
            return found.astype(np.uint32)
        bits_found = write(to)(found)
        return bits_found.view(np.uint32).reshape(warps, 32, 2) if half else bits_found

    return Mma(registers, multiply)


def _place(rows: int, k: int, each: int, is_a: bool) -> Bits:
    """[rows, k]: where each element is among those of the lanes' registers."""
    registers = rows * k // (32 * each)
    places = np.empty((rows, k), np.int64)
    for r in range(registers):
        for i in range(each):
            row = _G + 8 * (r % 2) if is_a else _G
            column = each * _T + 4 * each * (r // 2 if is_a else r) + i
            places[row, column] = (np.arange(32) * registers + r) * each + i
    return places


def _accumulator() -> tuple[Bits, Bits]:
    """[32, 4]: row and column of each lane's elements of C."""
    r = np.arange(4)
    return _G[:, None] + 8 * (r // 2), 2 * _T[:, None] + r % 2


def _elements(registers: Bits, bits: int) -> Bits:
    """[warps, elements] of so many bits, in the order of lanes and registers."""
    return np.ascontiguousarray(registers).view(UNSIGNED[bits]).reshape(len(registers), -1)


def _element(kind: str) -> Callable[[Bits], Bits]:
    """Reads elements as fp64, in which products are exact, or as int64."""
    if kind in FP8:
        table = FP8[kind].astype(np.float64)
        return lambda x: table[x]
    if kind in ("s8", "u8"):
        return lambda x: (x.view(SIGNED[8]) if kind == "s8" else x).astype(np.int64)
    load = read(kind)
    return lambda x: load(x).astype(np.float64)


def _numbers(registers: Bits, kind: str) -> Bits:
    """The accumulator as numbers."""
    if kind == "s32":
        return np.ascontiguousarray(registers).view(np.int32).astype(np.int64)
    return _element(kind)(_elements(registers, 32 if kind == "f32" else 16))


# Products of a warpgroup, with operands in shared memory


class Wgmma(NamedTuple):
    """A product d = a b + c of four warps, [64, 16] times [16, n]; warp w has rows 16 w .. of a and d."""

    n: int
    function: Callable[[Bits, Bits, Bits], Bits]  # a [groups, 64, 16], b [groups, n, 16]; c, d [4 groups, 32, n / 2]


@cache
def wgmma(opcode: tuple[str, ...]) -> Wgmma:
    """The product of wgmma.mma_async with 16-bit factors and fp32 sums, as in `mma`. UnknownInstruction: another."""
    *words, to, left, right = opcode
    shape = words[-1]
    known = words[:-1] == ["wgmma", "mma_async", "sync", "aligned"] and (to, left) == ("f32", right)
    if not known or left not in ("bf16", "f16") or shape[:4] != "m64n" or shape[-3:] != "k16":
        raise UnknownInstruction(".".join(opcode))
    n, load = int(shape[4:-3]), _element(left)
    i = np.arange(n // 2)
    row, column = _G[:, None] + 8 * (i // 2 % 2), 2 * _T[:, None] + i % 2 + 8 * (i // 4)

    def multiply(a: Bits, b: Bits, c: Bits) -> Bits:
        x, y = load(a), load(b)
        table = np.empty((len(c), 16, n))
        table[:, row, column] = _numbers(c, "f32").reshape(c.shape)
        total = table.reshape(-1, 64, n)
        for k in range(16):
            total += x[:, :, None, k] * y[:, None, :, k]
        return write("f32")(table[:, row, column])

    return Wgmma(n, multiply)


def warpgroup_rows(registers: Bits) -> Bits:
    """a [groups, 64, 16] of 16 bits, from a fragment [4 groups, 32, 4]."""
    return _elements(registers, 16)[:, _place(16, 16, 2, True)].reshape(-1, 64, 16)


def tile_addresses(descriptors: Bits, rows: int, transposed: bool) -> Bits:
    """Bytes [tiles, rows, 16] in shared memory of 16-bit elements, for matrix descriptors [tiles] of wgmma.

    transposed: neighbours along the rows, not along k, are neighbours in memory. UnknownInstruction: tiles of unlike
    swizzle, or with a base offset.
    """
    fields = descriptors.astype(np.uint64)
    start, leading, stride = (
        ((fields >> np.uint64(at)) & np.uint64(0x3FFF)).astype(np.int64)[:, None, None] * 16 for at in (0, 16, 32)
    )
    modes = np.unique(fields >> np.uint64(49))  # base offset, reserved bits, swizzle
    if len(modes) != 1 or int(modes[0]) & 7:
        raise UnknownInstruction("matrix descriptors of unlike swizzle, or with a base offset")
    span = {0: 16, 1: 128, 2: 64, 3: 32}[int(modes[0]) >> 13]  # bytes that are contiguous but for the swizzle
    i, k = np.arange(rows)[:, None], np.arange(16)
    if span == 16:
        leading, stride = (stride, leading) if transposed else (leading, stride)
    if transposed:
        wide = span // 2
        place = 2 * (i % wide) + i // wide * leading + k % 8 * span + k // 8 * stride
    else:
        place = i % 8 * span + i // 8 * stride + (2 * k if span > 16 else 2 * (k % 8) + k // 8 * leading)
    place = start + place
    return place ^ ((place >> 7 & (span // 16 - 1)) << 4)


# Matrices of 8 x 8 elements of 16 bits


def fragments(matrices: Bits, transposed: bool = False) -> Bits:
    """The registers [warps, 32, n] of ldmatrix for matrices [warps, n, 8, 8] of 16 bits.

    Lane l gets the elements 2 (l % 4) and the next of row l / 4; transposed: of that column.
    """
    if transposed:
        matrices = matrices.swapaxes(2, 3)
    warps, n = matrices.shape[:2]
    pairs = np.ascontiguousarray(matrices).view(np.uint32)  # [warps, n, 8, 4]
    return pairs.reshape(warps, n, 32).swapaxes(1, 2)


def matrices(registers: Bits, transposed: bool = False) -> Bits:
    """The matrices [warps, n, 8, 8] that stmatrix stores for registers [warps, 32, n]: the inverse of `fragments`."""
    warps, _, n = registers.shape
    found = np.ascontiguousarray(registers.swapaxes(1, 2)).view(np.uint16).reshape(warps, n, 8, 8)
    return found.swapaxes(2, 3) if transposed else found


# Between lanes


@cache
def exchange(opcode: tuple[str, ...]) -> Operation:
    """shfl, redux, vote, match, activemask, elect and movmatrix.

    The function takes `active`, the lanes [warps, 32] that execute, and then the sources. PtxError: a shuffle reads a
    lane that does not. UnknownInstruction: another opcode.
    """
    found = _EXCHANGES.get(opcode[0])
    operation = found(opcode) if found else None
    if operation is None:
        raise UnknownInstruction(".".join(opcode))
    return operation


def _shfl(opcode: tuple[str, ...]) -> Operation | None:
    """Value and predicate: whether the lane that is read lies in the segment; else the lane reads itself."""
    if opcode[1:2] != ("sync",) or opcode[3:] != ("b32",) or opcode[2] not in ("up", "down", "bfly", "idx"):
        return None
    mode = opcode[2]

    def shuffle(active: Bits, a: Bits, b: Bits, c: Bits, mask: Bits) -> tuple[Bits, Bits]:
        a, b, c = (np.broadcast_to(x, active.shape) for x in (a, b, c))
        lane, by = LANES.astype(np.int64), (b & np.uint32(31)).astype(np.int64)
        clamp, segment = (c & np.uint32(31)).astype(np.int64), ((c >> np.uint32(8)) & np.uint32(31)).astype(np.int64)
        low = lane & segment
        last = low | (clamp & ~segment)
        source = {"up": lane - by, "down": lane + by, "bfly": lane ^ by, "idx": low | (by & ~segment)}[mode]
        inside = source >= last if mode == "up" else source <= last
        source = np.where(inside, source, lane)
        lost = active & ~np.take_along_axis(active, source, 1)
        if lost.any():
            warp, reader = np.argwhere(lost)[0]
            raise PtxError(f"lane {reader} reads lane {source[warp, reader]}, which does not execute")
        return np.take_along_axis(a, source, 1), inside

    return Operation((np.uint32, np.bool_), (np.uint32,) * 4, shuffle)


def _members(mask: Bits, active: Bits) -> Bits:
    """[warps, 32, 32]: the lanes that each lane works with."""
    mask = np.broadcast_to(mask, active.shape)
    return ((mask[:, :, None] >> LANES) & np.uint32(1) == 1) & active[:, None, :]


def _redux(opcode: tuple[str, ...]) -> Operation | None:
    *words, kind = opcode
    name, rest = words[2] if len(words) > 2 else "", words[3:]
    if words[1:2] != ["sync"] or name not in _OPS:
        return None
    if kind == "f32" and name in ("min", "max") and set(rest) <= {"NaN", "abs"}:
        return Operation((np.uint32,), (np.uint32,) * 2, _redux_floats(name, "NaN" in rest, "abs" in rest))
    if rest or kind not in (("b32",) if name in ("and", "or", "xor") else ("s32", "u32")):
        return None
    number = np.dtype(np.int32 if kind == "s32" else np.uint32)
    limits = np.iinfo(number)
    neutral = {"min": limits.max, "max": limits.min, "and": limits.max}.get(name, 0)

    def reduce(active: Bits, a: Bits, mask: Bits) -> tuple[Bits]:
        a = np.ascontiguousarray(np.broadcast_to(a, active.shape)).view(number)
        values = np.where(_members(mask, active), a[:, None, :], number.type(neutral))
        return (_OPS[name].reduce(values, axis=2, dtype=number).view(np.uint32),)

    return Operation((np.uint32,), (np.uint32,) * 2, reduce)


def _redux_floats(name: str, nan: bool, magnitude: bool) -> Callable[..., Any]:
    words = (name, "NaN", "f32") if nan else (name, "f32")
    pick = arithmetic.operation(words).function
    neutral = NAN["f32"] if not nan else np.uint32(0xFF800000 if name == "max" else 0x7F800000)

    def reduce(active: Bits, a: Bits, mask: Bits) -> tuple[Bits]:
        a = np.broadcast_to(a & np.uint32(0x7FFFFFFF) if magnitude else a, active.shape)
        values = np.where(_members(mask, active), a[:, None, :], neutral)
        while values.shape[2] > 1:
            half = values.shape[2] // 2
            [values] = pick(values[:, :, :half], values[:, :, half:])
        return (values[:, :, 0],)

    return reduce


def _ballot(lanes: Bits) -> Bits:
    """The lanes of the last axis as bits."""
    return np.packbits(lanes, axis=-1, bitorder="little").view(np.uint32)[..., 0]


def _vote(opcode: tuple[str, ...]) -> Operation | None:
    mode = opcode[2] if opcode[1:2] == ("sync",) and len(opcode) == 4 else ""
    if opcode[3:] != ("b32" if mode == "ballot" else "pred",) or mode not in ("all", "any", "uni", "ballot"):
        return None

    def vote(active: Bits, p: Bits, mask: Bits) -> tuple[Bits]:
        members = _members(mask, active)
        holds, fails = members & p[:, None, :], members & ~p[:, None, :]
        if mode == "ballot":
            return (_ballot(holds),)
        some, every = np.asarray(holds.any(2)), ~np.asarray(fails.any(2))
        return ({"all": every, "any": some, "uni": every | ~some}[mode],)

    result = np.uint32 if mode == "ballot" else np.bool_
    return Operation((result,), (np.bool_, np.uint32), vote)


def _match(opcode: tuple[str, ...]) -> Operation | None:
    if opcode[1:] not in [(mode, "sync", kind) for mode in ("any", "all") for kind in ("b32", "b64")]:
        return None
    kind = np.uint32 if opcode[3] == "b32" else np.uint64

    def match(active: Bits, a: Bits, mask: Bits) -> tuple[Bits, Bits]:
        members = _members(mask, active)
        same = members & (a[:, None, :] == a[:, :, None])
        if opcode[1] == "any":
            return _ballot(same), same.any(2)
        every = (same == members).all(2)
        return np.where(every, _ballot(members), np.uint32(0)), every

    return Operation((np.uint32, np.bool_), (kind, np.uint32), match)


def _activemask(opcode: tuple[str, ...]) -> Operation | None:
    def executing(active: Bits) -> tuple[Bits]:
        return (np.broadcast_to(_ballot(active)[:, None], active.shape),)

    return Operation((np.uint32,), (), executing) if opcode[1:] == ("b32",) else None


def _elect(opcode: tuple[str, ...]) -> Operation | None:
    """The lowest lane of the mask."""

    def elect(active: Bits, mask: Bits) -> tuple[Bits, Bits]:
        leader = _members(mask, active).argmax(2)
        return leader.astype(np.uint32), leader == LANES

    return Operation((np.uint32, np.bool_), (np.uint32,), elect) if opcode[1:] == ("sync",) else None


def _movmatrix(opcode: tuple[str, ...]) -> Operation | None:
    def transpose(active: Bits, a: Bits) -> tuple[Bits]:
        return (fragments(matrices(a[:, :, None]), transposed=True)[:, :, 0],)

    known = opcode[1:] == ("sync", "aligned", "m8n8", "trans", "b16")
    return Operation((np.uint32,), (np.uint32,), transpose) if known else None


_EXCHANGES: dict[str, Callable[[tuple[str, ...]], Operation | None]] = {
    "shfl": _shfl,
    "redux": _redux,
    "vote": _vote,
    "match": _match,
    "activemask": _activemask,
    "elect": _elect,
    "movmatrix": _movmatrix,
}
