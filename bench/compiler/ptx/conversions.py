"""The PTX instruction that converts between types."""

from typing import Any

import numpy as np

from zonos2_triton.bench.compiler.ptx.floats import flush, read, write
from zonos2_triton.bench.compiler.ptx.operations import (
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
    register,
)

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


def _cvt(words: Modifiers) -> Operation:
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
        bits = function(flush(x) if flush_in else x)
        return (flush(bits) if flush_out else bits,)

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


def _cvt_packed(words: Modifiers, target: str, source: str) -> Operation:
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


FAMILIES: dict[str, Family] = {
    "cvt": _cvt,
}
