"""Global memory: loads, stores, fences and atomics."""

from collections.abc import Callable
from typing import Any

import numpy as np

from zonos2_triton.bench.compiler.ptx.batches import Array, Batch, Handler, Path
from zonos2_triton.bench.compiler.ptx.counts import LATENCY
from zonos2_triton.bench.compiler.ptx.flow import space
from zonos2_triton.bench.compiler.ptx.memory import LANES, UINT, OutOfBounds, sectors
from zonos2_triton.bench.compiler.ptx.operands import DTYPE, Operands, element, narrowed, widened
from zonos2_triton.bench.compiler.ptx.parse import Instruction, PtxError, Register, UnknownInstruction


class GlobalAccess(Operands):
    """Runs accesses to global memory, and counts them."""

    def _check_global(self, each: Instruction, active: Array, width: int) -> None:
        try:
            self.memory.check(active, width)
        except OutOfBounds as problem:
            raise PtxError(f"{self.function.name}: {each.where()} accesses {problem}") from None

    def _count_global(
        self, pc: int, batch: Batch, kind: str, addresses: Array, mask: Array | None, width: int, lanes: Array | int
    ) -> None:
        """lanes: active ones, by program or of each."""
        flat = addresses.reshape(-1, LANES).astype(np.int64)
        on = None if mask is None else mask.reshape(-1, LANES)
        found = sectors(flat, on, width)
        by_program = found.reshape(len(addresses), self.warps).sum(1)
        asked = self.warps if on is None else on.any(1).reshape(len(addresses), self.warps).sum(1)
        batch.add(f"{kind}_sectors", by_program)
        batch.add(f"{kind}_requests", asked)
        batch.add(f"{kind}_bytes", lanes * width)
        share = len(batch.programs) // len(addresses)
        note = self._requests.setdefault(pc, [0, 0])
        note[0] += int(np.sum(asked) if on is not None else self.warps * len(addresses)) * share
        note[1] += int(by_program.sum()) * share

    def _load_global(self, pc: int, each: Instruction) -> Handler:
        reach = self._reach(each, each.sources[0], np.uint64)
        size, parts = element(each)
        width, keep = size * parts, self._is_wanted(each)
        results = [(i, part) for i, part in enumerate(each.results) if isinstance(part, Register)]
        signed = each.type[0] == "s"
        latency = LATENCY["global"]

        def load(batch: Batch, path: Path, time: float, trips: int) -> tuple[float, int] | None:
            reached = reach(batch, path)
            if reached is None:
                return time, trips
            where, place, on, active = reached
            self._check_global(each, active, width)
            self._count_global(pc, batch, "load", place, on, width, self.threads if on is None else on.sum(1))
            if keep:
                for i, part in results:
                    found = self.memory.load(active + np.uint64(i * size), size)
                    new = widened(found, DTYPE[part.type], signed)
                    if on is None:
                        new = new.reshape(place.shape)
                    else:
                        filled = np.zeros(place.shape, new.dtype)
                        filled[on] = new
                        new = filled
                    self._put(batch, self.number[part.name], narrowed(new), where)
            return time + latency, trips + 1

        return load

    def _store_global(self, pc: int, each: Instruction) -> Handler:
        reach = self._reach(each, each.sources[0], np.uint64)
        size, parts = element(each)
        width = size * parts
        getters = [self._getter(part, UINT[max(size, 2)]) for part in each.sources[1:]]

        def store(batch: Batch, path: Path, time: float, trips: int) -> None:
            reached = reach(batch, path)
            if reached is None:
                return
            _, place, on, active = reached
            self._check_global(each, active, width)
            self._count_global(pc, batch, "store", place, on, width, self.threads if on is None else on.sum(1))
            batch.live |= True if on is None else on.any(1)
            path.stored = True
            owner = self.memory.owner(int(active.min()), int(active.max()) + width)
            if owner is not None and (owner.data is None or (not self.values and not owner.whole)):
                return
            for i, get in enumerate(getters):
                value = np.broadcast_to(get(batch), (max(len(place), 1), self.threads))
                value = value.reshape(-1) if on is None else value[on]
                self.memory.store(active + np.uint64(i * size), value, size)

        return store

    def _fence(self, batch: Batch, path: Path, time: float, trips: int) -> tuple[float, int]:
        """Waits until the stores before it are seen."""
        if path.stored:
            path.time, path.depth, path.stored = max(path.time, time) + LATENCY["global"], path.depth + 1, False
        return path.time, path.depth

    def _atomic(self, pc: int, each: Instruction) -> Handler:
        parts = list(each.sources)
        address, mask = self._address(parts[0], np.uint64), self._mask(each)
        size, _ = element(each)
        getters = [self._getter(part, UINT[size]) for part in parts[1:]]
        kind = next((word for word in each.opcode if word in _ATOMICS), "")
        if not kind or space(each) not in ("global", "generic"):
            raise UnknownInstruction(f"{self.function.name}: {each.where()} is not known")
        result = each.writes[0] if each.writes else None
        compute = _ATOMICS[kind](each.type)
        releases = each.has("release", "acq_rel")

        def atomic(batch: Batch, path: Path, time: float, trips: int) -> tuple[float, int]:
            where = mask(batch, path)
            if where is not None and not where.any():
                return time, trips
            if releases:
                waited, depth = self._fence(batch, path, time, trips)
                time, trips = max(time, waited), max(trips, depth)
            full = (len(batch.programs), self.threads)
            place = np.broadcast_to(address(batch), full)
            on = np.ones(full, bool) if where is None else np.broadcast_to(where, full)
            active = place[on]
            self._check_global(each, active, size)
            values = [np.broadcast_to(get(batch), full)[on] for get in getters]
            old = np.zeros(len(active), UINT[size])
            for i in range(len(active)):
                here = active[i : i + 1]
                old[i] = self.memory.load(here, size)[0]
                self.memory.store(here, np.array([compute(old[i], *(v[i] for v in values))], UINT[size]), size)
            batch.live |= on.any(1)
            if result is not None:
                filled = np.zeros(full, DTYPE[result.type])
                filled[on] = old
                self._put(batch, self.number[result.name], filled, where)
            return time + LATENCY["atomic"], trips + 1

        return atomic


def _signed(kind: str) -> Callable[[Any], int]:
    bits = int(kind[1:])
    return lambda x: int(x) - (1 << bits) if kind[0] == "s" and int(x) >> (bits - 1) else int(x)


def _integer(function: Callable[..., int]) -> Callable[[str], Callable[..., int]]:
    def build(kind: str) -> Callable[..., int]:
        if kind[0] not in "usb":
            raise UnknownInstruction(f"an atomic of type {kind}")
        read, bits = _signed(kind), int(kind[1:])
        return lambda *values: function(*map(read, values)) & ((1 << bits) - 1)

    return build


def _adder(kind: str) -> Callable[..., int]:
    if kind != "f32":
        return _integer(lambda old, new: old + new)(kind)
    return lambda old, new: int(np.array(_f32(old) + _f32(new), np.float32).view(np.uint32))


def _f32(bits: Any) -> Any:
    return np.array(bits, np.uint32).view(np.float32)[()]


_ATOMICS: dict[str, Callable[[str], Callable[..., int]]] = {
    "add": _adder,
    "min": _integer(min),
    "max": _integer(max),
    "exch": _integer(lambda old, new: new),
    "and": _integer(lambda old, new: old & new),
    "or": _integer(lambda old, new: old | new),
    "xor": _integer(lambda old, new: old ^ new),
    "cas": _integer(lambda old, compared, new: new if old == compared else old),
}
