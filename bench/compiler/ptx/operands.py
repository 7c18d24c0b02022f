"""Operands: how instructions read registers and addresses, and write results."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from zonos2_triton.bench.compiler.ptx.batches import Array, Batch, Path, predicate
from zonos2_triton.bench.compiler.ptx.flow import needed, space
from zonos2_triton.bench.compiler.ptx.memory import LANES, GlobalMemory
from zonos2_triton.bench.compiler.ptx.parse import (
    Function,
    Immediate,
    Instruction,
    Register,
    Special,
    Symbol,
    UnknownInstruction,
)

DTYPE: dict[str, type[np.generic]] = {"pred": np.bool_, "b16": np.uint16, "b32": np.uint32, "b64": np.uint64}
PARAM_BYTES = 1 << 12  # between the addresses of two parameters
Reached = tuple[Array | None, Array, Array | None, Array]
"""Of an access: the mask of its threads; addresses and mask as [1 | programs, threads]; addresses that are used."""


class Operands:
    """The state that all instructions of a launch share: its function's registers and parameters, and notes."""

    grid: tuple[int, ...]  # of the launch that runs

    def __init__(
        self,
        function: Function,
        params: Mapping[str, int],
        memory: GlobalMemory,
        shared: int,
        values: bool,
        holds_integers: Callable[[str], bool],
    ) -> None:
        self.function, self.params, self.memory, self.values = function, dict(params), memory, values
        self.code, self.threads, self.warps = function.instructions, function.threads, function.threads // LANES
        self.shared_bytes = shared
        self.number = {name: i for i, name in enumerate(function.registers)}
        self._wanted = set(function.registers) if values else needed(function, holds_integers)
        self._uses_shared = values or any(
            self._is_wanted(each) and space(each) == "shared" for each in self.code if each.name in ("ld", "ldmatrix")
        )
        self._params = {param.name: PARAM_BYTES * i for i, param in enumerate(function.params, 1)}
        self._conflicts: dict[int, list[int]] = {}  # by instruction: executions, wavefronts, ideal
        self._requests: dict[int, list[int]] = {}  # by instruction: executions, sectors
        self._seen: dict[Any, Any] = {}
        self.under_way = 0

    def _getter(self, operand: Any, kind: Any) -> Callable[[Batch], Array]:
        """Reads an operand as an array of that type."""
        if isinstance(operand, Register):
            number, own = self.number[operand.name], DTYPE[operand.type]

            def register(batch: Batch) -> Array:
                found = batch.registers[number]
                return np.zeros((1, 1), own) if found is None else found

            return register
        if isinstance(operand, Immediate):
            value = operand.value & ((1 << 8 * np.dtype(kind).itemsize) - 1) if kind is not np.bool_ else operand.value
            constant = np.full((1, 1), value).astype(kind) if kind is np.bool_ else np.full((1, 1), value, kind)
            return lambda batch: constant
        if isinstance(operand, Symbol):
            if operand.name not in self._params and operand.name != "global_smem":
                raise UnknownInstruction(f"{self.function.name}: the symbol {operand.name} is not known")
            address = np.full((1, 1), self._params.get(operand.name, 0), kind)
            return lambda batch: address
        if isinstance(operand, Special):
            return lambda batch: self._special(operand.name, batch).astype(kind)
        raise TypeError(operand)

    def _special(self, name: str, batch: Batch) -> Array:
        base, _, axis = name[1:].partition(".")
        place = "xyz".find(axis) if axis else 0
        lanes = np.arange(self.threads)[None]
        if base == "tid":
            return lanes if place == 0 else np.zeros((1, 1), np.int64)
        if base == "ntid":
            return np.full((1, 1), self.threads if place == 0 else 1)
        if base == "nctaid":
            return np.full((1, 1), self.grid[place])
        if base == "ctaid":
            x, y, _ = self.grid
            found = (batch.programs % x, batch.programs // x % y, batch.programs // (x * y))[place]
            return found[:, None] if len(set(found.tolist())) > 1 else found[:1, None]
        if base == "laneid":
            return lanes % LANES
        if base == "warpid":
            return lanes // LANES
        raise UnknownInstruction(f"{self.function.name}: the register {name} is not known")

    def _mask(self, each: Instruction) -> Callable[[Batch, Path], Array | None]:
        """The threads of the path that run a guarded instruction."""
        if each.guard is None:
            return lambda batch, path: path.mask
        number, negated = self.number[each.guard.name], each.negated

        def guarded(batch: Batch, path: Path) -> Array | None:
            found = predicate(batch.registers[number])
            found = ~found if negated else found
            if path.mask is not None:
                return found & path.mask
            return None if found.all() else found

        return guarded

    def _put(self, batch: Batch, number: int, new: Array, mask: Array | None) -> None:
        old = batch.registers[number]
        batch.registers[number] = new if mask is None or old is None else np.where(mask, new, old)

    def _is_wanted(self, each: Instruction) -> bool:
        """Whether a result is needed."""
        return any(register.name in self._wanted for register in each.writes)

    def _address(self, part: Any, kind: Any) -> Callable[[Batch], Array]:
        get = self._getter(part.base, kind)
        if not part.offset:
            return get
        offset = kind(part.offset & ((1 << 8 * np.dtype(kind).itemsize) - 1))
        return lambda batch: get(batch) + offset

    def _spread(self, addresses: Array, mask: Array | None) -> tuple[Array, Array | None]:
        """Addresses and mask as [1 | programs, threads]."""
        rows = max(len(addresses), 1 if mask is None else len(mask))
        shape = (rows, self.threads)
        return (
            addresses if addresses.shape == shape else np.broadcast_to(addresses, shape),
            mask if mask is None or mask.shape == shape else np.broadcast_to(mask, shape),
        )

    def _reach(self, each: Instruction, part: Any, kind: Any) -> Callable[[Batch, Path], Reached | None]:
        """Finds the threads and addresses of an access; None: no thread runs it. kind: of the address as it is read."""
        address, mask = self._address(part, kind), self._mask(each)
        wide = np.int64 if kind is np.uint32 else kind  # uint32: of shared memory

        def reach(batch: Batch, path: Path) -> Reached | None:
            where = mask(batch, path)
            if where is not None and not where.any():
                return None
            place, on = self._spread(address(batch).astype(wide, copy=False), where)
            return where, place, on, place.reshape(-1) if on is None else place[on]

        return reach


def element(each: Instruction) -> tuple[int, int]:
    """Bytes of an element, and elements of a thread."""
    bits = int(each.type.lstrip("bsuf"))
    return bits // 8, next((int(part[1:]) for part in each.opcode if part in ("v2", "v4", "v8")), 1)


def widened(value: Array, kind: Any, signed: bool) -> Array:
    """A loaded value as a register: extended by its sign, or by zeros."""
    if value.dtype.itemsize >= np.dtype(kind).itemsize:
        return value.astype(kind, copy=False)
    if signed:
        value = value.view(np.dtype(f"i{value.dtype.itemsize}")).astype(np.dtype(f"i{np.dtype(kind).itemsize}"))
        return value.view(kind)
    return value.astype(kind)


def narrowed(value: Array) -> Array:
    """An axis on which all values are the same gets size 1, where that is quick to see."""
    if value.shape[1] > 1 and len(value) > 1 and (value == value[:, :1]).all():
        value = value[:, :1]
    if len(value) > 1 and (value == value[:1]).all():
        value = value[:1]
    return value
