"""The operation of an instruction, the types of its registers, and the modifiers of its opcode."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

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


class Modifiers(list[str]):
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


Family = Callable[[Modifiers], Operation]


def register(kind: str) -> Any:
    """The type of a register that holds a value of a PTX type."""
    if kind == "pred":
        return np.bool_
    if kind in PACKED:
        return UNSIGNED[2 * FLOATS[PACKED[kind]]]
    return UNSIGNED[max(16, FLOATS[kind] if kind in FLOATS else int(kind[1:]))]


def pure(kind: str, sources: int, function: Function) -> Operation:
    """One result, and sources of the same type."""
    return Operation((register(kind),), (register(kind),) * sources, lambda *a: (function(*a),))


def read_integer(kind: str) -> Decode:
    """Reads bits of an integer type as numbers."""
    return (lambda x: x.view(SIGNED[int(kind[1:])])) if kind[0] == "s" else (lambda x: x)
