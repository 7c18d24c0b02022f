"""Asynchronous copies from global to shared memory."""

import numpy as np

from zonos2_triton.bench.compiler.ptx.batches import Array, Batch, Handler, Path, Transfers
from zonos2_triton.bench.compiler.ptx.counts import LATENCY
from zonos2_triton.bench.compiler.ptx.global_access import GlobalAccess
from zonos2_triton.bench.compiler.ptx.parse import Instruction, UnknownInstruction
from zonos2_triton.bench.compiler.ptx.shared_access import SharedAccess


class Copies(GlobalAccess, SharedAccess):
    """Runs cp.async, its groups and the waits for them."""

    def _copy(self, pc: int, each: Instruction) -> Handler | None:
        if each.opcode[:2] != ("cp", "async"):
            raise UnknownInstruction(f"{self.function.name}: {each.where()} is not known")
        if each.has("commit_group"):
            return self._commit
        if each.has("wait_group", "wait_all"):
            last = each.sources[0].value if each.sources else 0  # type: ignore[union-attr]
            return lambda batch, path, time, trips: self._wait(batch, path, last)
        if each.has("bulk"):
            if each.has("prefetch"):
                return None
            raise UnknownInstruction(f"{self.function.name}: {each.where()} is not known")
        if not each.has("shared", "shared::cta"):
            raise UnknownInstruction(f"{self.function.name}: {each.where()} is not known")
        reach, source = self._reach(each, each.sources[0], np.uint32), self._address(each.sources[1], np.uint64)
        size = each.sources[2].value  # type: ignore[union-attr]
        given = self._getter(each.sources[3], np.uint32) if len(each.sources) > 3 else None
        keep = self._uses_shared

        def copy(batch: Batch, path: Path, time: float, trips: int) -> tuple[float, int] | None:
            reached = reach(batch, path)
            if reached is None:
                return None
            where, place, on, written = reached
            self._check_shared(each, written, size)
            if batch.hazards:
                batch.hazards.write(pc, place, on, size, arrives=False)
            waves, words = self._count_shared(pc, batch, place, on, size)
            reads = where
            if given is not None:
                some = given(batch) > 0
                reads = some if where is None else some & where
                reads = None if reads.all() else reads
            group, values = path.groups[-1], None
            there = time + LATENCY["shared_store"]  # of zeros
            if reads is None or reads.any():
                origin, lanes = self._spread(source(batch), reads)
                active = origin.reshape(-1) if lanes is None else origin[lanes]
                self._check_global(each, active, size)
                by_program = self.threads if lanes is None else lanes.sum(1)
                self._count_global(pc, batch, "async", origin, lanes, size, by_program)
                group.bytes += int(np.max(by_program)) * size
                trips, there = trips + 1, time + LATENCY["global"]
                if keep:
                    values = self._fetched(origin, lanes, active, size)
            group.ready = max(group.ready, there)
            self._note_words(batch, words, there + waves - 1, trips)
            if keep:
                group.copies.append((pc, place, on, size, values))
            self.under_way = max(self.under_way, sum(each.bytes for each in path.groups))
            return time, trips

        return copy

    def _fetched(self, origin: Array, lanes: Array | None, active: Array, size: int) -> list[Array]:
        """The words that a copy brings; zero where it reads nothing."""
        found = []
        for start in range(0, size, 4):
            filled = np.zeros(origin.shape, np.uint32)
            piece = self.memory.load(active + np.uint64(start), 4)
            if lanes is None:
                filled = piece.reshape(origin.shape)
            else:
                filled[lanes] = piece
            found.append(filled)
        return found

    def _commit(self, batch: Batch, path: Path, time: float, trips: int) -> None:
        path.groups = [*path.groups, Transfers()]

    def _wait(self, batch: Batch, path: Path, last: int) -> None:
        """Waits until all but the last so many groups have arrived."""
        committed = path.groups[:-1]
        arrived = committed[: len(committed) - last]
        for group in arrived:
            path.time = max(path.time, group.ready)
            for pc, place, on, size, values in group.copies:
                if path.mask is not None:
                    place, on = self._spread(place, path.mask if on is None else on & path.mask)
                if batch.hazards:
                    batch.hazards.arrive(pc, place, on, size)
                for i in range(size // 4):
                    piece = np.zeros((1, 1), np.uint32) if values is None else values[i]
                    self._scatter(batch, place + 4 * i, on, piece, 4)
        path.groups = [*committed[len(arrived) :], path.groups[-1]]
