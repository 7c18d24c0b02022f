"""Instructions on registers alone: of each lane by itself, and between the lanes of a warp."""

import numpy as np

from zonos2_triton.bench.compiler.ptx.arithmetic import operation
from zonos2_triton.bench.compiler.ptx.batches import Batch, Handler, Path
from zonos2_triton.bench.compiler.ptx.matrix import exchange
from zonos2_triton.bench.compiler.ptx.memory import LANES, UINT
from zonos2_triton.bench.compiler.ptx.operands import DTYPE, PARAM_BYTES, Operands, narrowed
from zonos2_triton.bench.compiler.ptx.parse import Instruction, PtxError, Register


class Lanes(Operands):
    """Runs instructions on registers."""

    def _lanes(self, each: Instruction) -> Handler:
        """An instruction that works on each lane by itself."""
        found = operation(each.opcode)
        getters = [self._getter(part, kind) for part, kind in zip(each.sources, found.sources, strict=False)]
        results = [
            (i, self.number[part.name], DTYPE[part.type])
            for i, part in enumerate(each.results)
            if isinstance(part, Register)
        ]
        mask, function = self._mask(each), found.function
        if len(results) == 1 and each.guard is None:
            [(place, number, kind)] = results

            def simple(batch: Batch, path: Path, time: float, trips: int) -> None:
                new = function(*[get(batch) for get in getters])[place]
                if new.dtype != kind:
                    new = new.astype(kind)
                old = batch.registers[number]
                if path.mask is None or old is None:
                    batch.registers[number] = new
                else:
                    batch.registers[number] = np.where(path.mask, new, old)

            return simple

        def general(batch: Batch, path: Path, time: float, trips: int) -> None:
            where = mask(batch, path)
            made = function(*[get(batch) for get in getters])
            for place, number, kind in results:
                self._put(batch, number, made[place].astype(kind, copy=False), where)

        return general

    def _pack(self, each: Instruction) -> Handler:
        """mov between a register and a vector of its parts."""
        results = [part for part in each.results if isinstance(part, Register)]
        mask = self._mask(each)
        if len(each.results) > 1:
            bits = int(each.type[1:]) // len(each.results)
            get = self._getter(each.sources[0], UINT[bits * len(each.results) // 8])
            places = [(i, part) for i, part in enumerate(each.results) if isinstance(part, Register)]

            def unpack(batch: Batch, path: Path, time: float, trips: int) -> None:
                whole, where = get(batch), mask(batch, path)
                for place, part in places:
                    piece = (whole >> whole.dtype.type(bits * place)).astype(UINT[bits // 8]).astype(DTYPE[part.type])
                    self._put(batch, self.number[part.name], piece, where)

            return unpack
        bits = int(each.type[1:]) // len(each.sources)
        whole = UINT[bits * len(each.sources) // 8]
        getters = [self._getter(part, UINT[bits // 8]) for part in each.sources]

        def pack(batch: Batch, path: Path, time: float, trips: int) -> None:
            made = getters[0](batch).astype(whole)
            for place, get in enumerate(getters[1:], 1):
                made = made | (get(batch).astype(whole) << whole(bits * place))
            self._put(batch, self.number[results[0].name], made, mask(batch, path))

        return pack

    def _exchange(self, each: Instruction) -> Handler:
        """An instruction that exchanges values between the lanes of a warp."""
        found = exchange(each.opcode)
        getters = [self._getter(part, kind) for part, kind in zip(each.sources, found.sources, strict=False)]
        results = [(i, part) for i, part in enumerate(each.results) if isinstance(part, Register)]
        mask = self._mask(each)

        def run(batch: Batch, path: Path, time: float, trips: int) -> None:
            sources, where = [get(batch) for get in getters], mask(batch, path)
            rows = max(1 if where is None else len(where), *map(len, sources), 1)
            shape = (rows, self.threads)
            on = np.ones(shape, bool) if where is None else np.broadcast_to(where, shape)
            warps = [np.broadcast_to(x, shape).reshape(-1, LANES) for x in (on, *sources)]
            try:
                made = found.function(*warps)
            except PtxError as problem:
                raise PtxError(f"{self.function.name}: {each.where()}: {problem}") from None
            for place, part in results:
                new = made[place].astype(DTYPE[part.type], copy=False).reshape(shape)
                self._put(batch, self.number[part.name], narrowed(new), where)

        return run

    def _load_param(self, each: Instruction) -> Handler:
        address, mask, [result] = self._address(each.sources[0], np.uint64), self._mask(each), each.writes
        kind, number = DTYPE[result.type], self.number[result.name]
        names = [param.name for param in self.function.params]

        def value(at: int) -> int:
            if not PARAM_BYTES <= at < PARAM_BYTES * (len(names) + 1):
                raise PtxError(f"{self.function.name}: {each.where()} reads at {at}, where no parameter is")
            bits = self.params[names[at // PARAM_BYTES - 1]] >> 8 * (at % PARAM_BYTES)
            return bits & ((1 << 8 * np.dtype(kind).itemsize) - 1)

        def load(batch: Batch, path: Path, time: float, trips: int) -> None:
            places = address(batch)
            found, which = np.unique(places, return_inverse=True)
            values = np.array([value(int(at)) for at in found], kind)
            self._put(batch, number, values[which].reshape(places.shape), mask(batch, path))

        return load
