"""Products of matrices: mma and wgmma."""

import numpy as np

from zonos2_triton.bench.compiler.ptx.batches import Array, Batch, Handler, Path
from zonos2_triton.bench.compiler.ptx.matrix import mma, tile_addresses, warpgroup_rows, wgmma
from zonos2_triton.bench.compiler.ptx.memory import LANES
from zonos2_triton.bench.compiler.ptx.parse import Immediate, Instruction, Register, UnknownInstruction
from zonos2_triton.bench.compiler.ptx.shared_access import SharedAccess


class Products(SharedAccess):
    """Runs products; without values, keeps what was there."""

    def _matrix(self, pc: int, each: Instruction) -> Handler | None:
        if self.values:
            if each.name == "mma":
                return self._product(each)
            if each.name == "wgmma":
                return self._warpgroup_product(pc, each) if each.has("mma_async") else None
            raise UnknownInstruction(f"{self.function.name}: {each.where()} has no values")
        if each.name == "mbarrier":
            [done] = each.writes or [None]
            if done is None:
                return None
            number = self.number[done.name]
            return lambda batch, path, time, trips: self._put(batch, number, np.ones((1, 1), bool), path.mask)
        if each.name != "mma":  # wgmma adds to its accumulators
            return None
        getters = [self._getter(part, np.uint32) for part in each.sources[-len(each.results) :]]

        def keep(batch: Batch, path: Path, time: float, trips: int) -> None:
            for part, get in zip(each.writes, getters, strict=True):
                self._put(batch, self.number[part.name], get(batch), path.mask)

        return keep

    def _product(self, each: Instruction) -> Handler:
        found = mma(each.opcode)
        getters = [self._getter(part, np.uint32) for part in each.sources]
        results = [(i, self.number[part.name]) for i, part in enumerate(each.results) if isinstance(part, Register)]

        def multiply(batch: Batch, path: Path, time: float, trips: int) -> None:
            sources = [get(batch) for get in getters]
            rows = max(map(len, sources))
            lanes = [np.broadcast_to(x, (rows, self.threads)).reshape(-1, LANES) for x in sources]
            a, b, _ = found.registers
            parts = [np.stack(lanes[i:j], 2) for i, j in ((0, a), (a, a + b), (a + b, len(lanes)))]
            made = found.function(*parts)
            for i, number in results:
                self._put(batch, number, made[:, :, i].reshape(rows, self.threads), path.mask)

        return multiply

    def _warpgroup_product(self, pc: int, each: Instruction) -> Handler:
        """wgmma with values. It reads shared memory at once, so that a missing wait for its group is not found."""
        found = wgmma(each.opcode)
        in_registers = isinstance(each.operands[1], tuple)
        parts = list(each.sources)
        n_left = 4 if in_registers else 1
        signs, turned = parts[n_left + 2 : n_left + 4], parts[n_left + 4 :]
        if any(part != Immediate(1) for part in signs):
            raise UnknownInstruction(f"{self.function.name}: {each.where()} has no values")
        transposed = [part != Immediate(0) for part in turned]  # a, where it is in shared memory, and b
        left = [self._getter(part, np.uint32 if in_registers else np.uint64) for part in parts[:n_left]]
        right, keeps = self._getter(parts[n_left], np.uint64), self._getter(parts[n_left + 1], np.bool_)
        sums = [(self._getter(part, np.uint32), self.number[part.name]) for part in each.writes]
        groups = self.threads // (4 * LANES)

        def multiply(batch: Batch, path: Path, time: float, trips: int) -> None:
            a, b, kept, c = [get(batch) for get in left], right(batch), keeps(batch), [get(batch) for get, _ in sums]
            rows = max(len(batch.shared), *map(len, (*a, b, kept, *c)))
            shape = (rows, self.threads)

            def by_warp(arrays: list[Array]) -> Array:
                return np.stack([np.broadcast_to(x, shape).reshape(-1, LANES) for x in arrays], 2)

            def tile(descriptors: Array, height: int, turned: bool) -> Array:
                each_group = np.broadcast_to(descriptors, shape).reshape(rows * groups, -1)[:, 0]
                places = tile_addresses(each_group, height, turned)
                self._check_shared(each, places, 2)
                if batch.hazards:
                    chunks = (places[:, ::8] if turned else places[:, :, ::8]).reshape(rows, groups, -1) & ~15
                    for start in range(0, chunks.shape[2], 128):  # each thread of the group reads one
                        these = start + np.arange(128)
                        piece = chunks[:, :, these % chunks.shape[2]].reshape(shape)
                        batch.hazards.read(pc, piece, None, 16)
                return self._gather(batch, places.reshape(rows, -1), 2).reshape(places.shape)

            x = warpgroup_rows(by_warp(a)) if in_registers else tile(a[0], 64, transposed[0])
            y = tile(b, found.n, transposed[-1])
            before = by_warp(c)
            made = found.function(x, y, np.where(by_warp([kept]), before, np.uint32(0)))
            for i, (_, number) in enumerate(sums):
                self._put(batch, number, made[:, :, i].reshape(shape), path.mask)

        return multiply
