"""Shared memory: loads and stores, ldmatrix and stmatrix."""

from collections.abc import Callable
from typing import Any

import numpy as np

from zonos2_triton.bench.compiler.ptx.batches import Array, Batch, Handler, Path
from zonos2_triton.bench.compiler.ptx.counts import LATENCY
from zonos2_triton.bench.compiler.ptx.hazards import Hazard
from zonos2_triton.bench.compiler.ptx.memory import LANES, UINT, wavefronts
from zonos2_triton.bench.compiler.ptx.operands import DTYPE, Operands, element, narrowed, widened
from zonos2_triton.bench.compiler.ptx.parse import Address, Instruction, PtxError, Register, UnknownInstruction


class SharedAccess(Operands):
    """Runs accesses to shared memory, and counts them."""

    def _count_shared(self, pc: int, batch: Batch, addresses: Array, mask: Array | None, width: int) -> tuple[int, Any]:
        """The wavefronts of an access, of the program that has the most, and the words that it touches."""
        if addresses.shape[0] == 1:
            key = (pc, addresses.tobytes(), None if mask is None else mask.tobytes())
            if key not in self._seen:
                on = np.ones(addresses.shape, bool) if mask is None else mask
                found = [int(n.sum()) for n in wavefronts(addresses.reshape(-1, LANES), on.reshape(-1, LANES), width)]
                words = np.unique(addresses[on][:, None] // 4 + np.arange(max(1, width // 4)))
                warps = int(on.reshape(-1, LANES).any(1).sum())
                self._seen[key] = (found[0], found[1], warps, words)
            waves, ideal, warps, words = self._seen[key]
            batch.add("wavefronts", waves)
            batch.add("ideal_wavefronts", ideal)
            n = len(batch.programs)
            note = self._conflicts.setdefault(pc, [0, 0, 0])
            note[0], note[1], note[2] = note[0] + warps * n, note[1] + waves * n, note[2] + ideal * n
            return waves, words
        on = np.ones(addresses.shape, bool) if mask is None else mask
        lanes = on.reshape(-1, LANES)
        shape = (len(addresses), self.warps)
        waves, ideal = (n.reshape(shape).sum(1) for n in wavefronts(addresses.reshape(-1, LANES), lanes, width))
        batch.add("wavefronts", waves)
        batch.add("ideal_wavefronts", ideal)
        note = self._conflicts.setdefault(pc, [0, 0, 0])
        for i, n in enumerate((lanes.any(1), waves, ideal)):
            note[i] += int(n.sum())
        return int(waves.max()), None

    def _check_shared(self, each: Instruction, active: Array, width: int) -> None:
        low, high = int(active.min()), int(active.max())
        if low < 0 or high + width > self.shared_bytes:
            size = self.shared_bytes
            raise PtxError(f"{self.function.name}: {each.where()} accesses {width} bytes at {high} of {size} shared")
        if (active % min(width, 16)).any():
            raise PtxError(f"{self.function.name}: {each.where()} accesses an address that is no multiple of {width}")

    def _note_words(self, batch: Batch, words: Any, ready: float, trips: int) -> None:
        """Words of shared memory have a value that is there at that clock, after so many round trips."""
        if words is None:
            batch.any_ready, batch.any_depth = max(batch.any_ready, ready), max(batch.any_depth, trips)
        else:
            batch.word_ready[words], batch.word_depth[words] = ready, trips

    def _of_words(self, batch: Batch, words: Any, time: float, trips: int) -> tuple[float, int]:
        if words is None:
            ready, depth = float(batch.word_ready.max()), int(batch.word_depth.max())
        else:
            ready, depth = float(batch.word_ready[words].max()), int(batch.word_depth[words].max())
        return max(time, ready, batch.any_ready), max(trips, depth, batch.any_depth)

    def _shared_access(self, pc: int, each: Instruction, width: int) -> Callable[[Batch, Path], Any]:
        reach = self._reach(each, next(part for part in each.sources if isinstance(part, Address)), np.uint32)

        def access(batch: Batch, path: Path) -> Any:
            reached = reach(batch, path)
            if reached is None:
                return None
            where, place, on, active = reached
            self._check_shared(each, active, width)
            if batch.hazards:
                (batch.hazards.read if each.name == "ld" else batch.hazards.write)(pc, place, on, width)
            return where, place, on, *self._count_shared(pc, batch, place, on, width)

        return access

    def _load_shared(self, pc: int, each: Instruction) -> Handler:
        size, parts = element(each)
        access = self._shared_access(pc, each, size * parts)
        results = [(i, part) for i, part in enumerate(each.results) if isinstance(part, Register)]
        keep, signed = self._is_wanted(each), each.type[0] == "s"

        def load(batch: Batch, path: Path, time: float, trips: int) -> tuple[float, int]:
            found = access(batch, path)
            if found is None:
                return time, trips
            where, place, on, waves, words = found
            if keep:
                safe = place if on is None else np.where(on, place, 0)
                for i, part in results:
                    new = widened(self._gather(batch, safe + i * size, size), DTYPE[part.type], signed)
                    self._put(batch, self.number[part.name], narrowed(new), where)
            ready, depth = self._of_words(batch, words, time, trips)
            return ready + LATENCY["shared_load"] + waves - 1, depth

        return load

    def _gather(self, batch: Batch, place: Array, size: int) -> Array:
        typed = batch.shared.view(UINT[size])
        index = place // size
        if len(typed) == 1:
            return typed[0][index]
        return typed[np.arange(len(typed))[:, None], index]

    def _scatter(self, batch: Batch, place: Array, on: Array | None, value: Array, size: int) -> None:
        rows = max(len(place), len(value))
        if rows > len(batch.shared):
            batch.shared = np.repeat(batch.shared, len(batch.programs), 0)
        rows = len(batch.shared)
        shape = (rows, place.shape[1])
        typed, value = batch.shared.view(UINT[size]), np.broadcast_to(value, shape).astype(UINT[size], copy=False)
        index = np.broadcast_to(place // size, shape)
        row = np.broadcast_to(np.arange(rows)[:, None], shape)
        if on is None:
            typed[row, index] = value
        else:
            on = np.broadcast_to(on, shape)
            typed[row[on], index[on]] = value[on]

    def _store_shared(self, pc: int, each: Instruction) -> Handler:
        size, parts = element(each)
        access = self._shared_access(pc, each, size * parts)
        getters = [
            (i, self._getter(part, UINT[max(size, 2)]))
            for i, part in enumerate(each.sources[1:])
            if self._uses_shared and (not isinstance(part, Register) or part.name in self._wanted)
        ]

        def store(batch: Batch, path: Path, time: float, trips: int) -> tuple[float, int]:
            found = access(batch, path)
            if found is None:
                return time, trips
            _, place, on, waves, words = found
            for i, get in getters:
                value = get(batch)
                self._scatter(batch, place + i * size, on, value, size)
                if batch.hazards:
                    self._check_agreed(each, batch, place + i * size, on, value, size)
            self._note_words(batch, words, time + LATENCY["shared_store"] + waves - 1, trips)
            return time, trips

        return store

    def _check_agreed(
        self, each: Instruction, batch: Batch, place: Array, on: Array | None, value: Array, size: int
    ) -> None:
        """Hazard: threads of one instruction store different values at one address."""
        differs = self._gather(batch, place if on is None else np.where(on, place, 0), size) != value.astype(UINT[size])
        if (differs if on is None else differs & on).any():
            raise Hazard(f"{self.function.name}: {each.where()} stores different values of two threads at one address")

    def _matrix_access(self, pc: int, each: Instruction) -> Handler:
        """ldmatrix and stmatrix: 8 x 8 elements of 16 bits a matrix, one row from each address."""
        if each.type != "b16" or not each.has("m8n8"):
            raise UnknownInstruction(f"{self.function.name}: {each.where()} is not known")
        matrices = 4 if each.has("x4") else 2 if each.has("x2") else 1
        [part] = [part for part in each.sources if isinstance(part, Address)]
        address = self._address(part, np.uint32)
        is_load, transposed = each.name == "ldmatrix", each.has("trans")
        registers = [r for r in (each.results if is_load else each.sources) if isinstance(r, Register)]
        keep = self._is_wanted(each) if is_load else self._uses_shared and registers[0].name in self._wanted
        lane = np.arange(LANES)

        def access(batch: Batch, path: Path, time: float, trips: int) -> tuple[float, int]:
            place = address(batch).astype(np.int64)
            place = np.broadcast_to(place, (len(place), self.threads))
            on = np.broadcast_to(np.arange(self.threads) % LANES < 8 * matrices, place.shape)
            if path.mask is not None:
                place, _ = self._spread(place, path.mask)
                on = on & path.mask
            self._check_shared(each, place[on], 16)
            if batch.hazards:
                (batch.hazards.read if is_load else batch.hazards.write)(pc, place, on, 16)
            waves, words = self._count_shared(pc, batch, np.ascontiguousarray(place), on, 16)
            if keep:
                rows = place.reshape(len(place), self.warps, LANES)
                for i, register in enumerate(registers):
                    number = self.number[register.name]
                    if transposed:
                        firsts = [rows[:, :, 8 * i + lane % 4 * 2 + half] + lane // 4 * 2 for half in (0, 1)]
                    else:
                        firsts = [rows[:, :, 8 * i + lane // 4] + lane % 4 * 4 + 2 * half for half in (0, 1)]
                    at = [first.reshape(len(place), self.threads) for first in firsts]
                    if is_load:
                        low, high = (self._gather(batch, each_at, 2).astype(np.uint32) for each_at in at)
                        self._put(batch, number, low | high << np.uint32(16), path.mask)
                    else:
                        value = self._getter(register, np.uint32)(batch)
                        for half in (0, 1):
                            piece = (value >> np.uint32(16 * half)).astype(np.uint16)
                            self._scatter(batch, at[half], path.mask, piece, 2)
            if is_load:
                ready, depth = self._of_words(batch, words, time, trips)
                return ready + LATENCY["ldmatrix"] + waves - 1, depth
            self._note_words(batch, words, time + LATENCY["shared_store"] + waves - 1, trips)
            return time, trips

        return access
