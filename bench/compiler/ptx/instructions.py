"""Instructions: each gets its handler."""

from zonos2_triton.bench.compiler.ptx.batches import Batch, Handler, Path
from zonos2_triton.bench.compiler.ptx.copies import Copies
from zonos2_triton.bench.compiler.ptx.flow import is_barrier, space
from zonos2_triton.bench.compiler.ptx.lanes import Lanes
from zonos2_triton.bench.compiler.ptx.parse import Instruction, UnknownInstruction
from zonos2_triton.bench.compiler.ptx.products import Products


class Instructions(Lanes, Copies, Products):
    """Finds the handler of an instruction."""

    def _handler(self, pc: int) -> Handler | None:
        each = self.code[pc]
        try:
            made = self._made(pc, each)
        except UnknownInstruction as problem:
            message = str(problem)
            if self.function.name not in message:
                message = f"{self.function.name}: {each.where()} is not known"

            def unknown(batch: Batch, path: Path, time: float, trips: int) -> None:
                raise UnknownInstruction(message)

            return unknown
        return made

    def _made(self, pc: int, each: Instruction) -> Handler | None:
        name = each.name
        if name in ("bra", "ret", "exit", "trap") or is_barrier(each):
            return None
        if name in ("ld", "st"):
            where = space(each)
            if where == "param":
                return self._load_param(each)
            if where == "shared":
                return self._load_shared(pc, each) if name == "ld" else self._store_shared(pc, each)
            if where == "global":
                return self._load_global(pc, each) if name == "ld" else self._store_global(pc, each)
            raise UnknownInstruction(f"{self.function.name}: {each.where()} is not known")
        if name in ("ldmatrix", "stmatrix"):
            return self._matrix_access(pc, each)
        if name == "cp":
            return self._copy(pc, each)
        if name in ("atom", "red"):
            return self._atomic(pc, each)
        if name in ("fence", "membar"):
            return self._fence if not each.has("proxy") else None
        if name in ("prefetch", "discard", "griddepcontrol", "nanosleep", "setmaxnreg", "bar", "applypriority"):
            return None
        if not self._is_wanted(each):
            return None
        if name in ("mma", "wgmma", "tcgen05", "mbarrier"):
            return self._matrix(pc, each)
        if name in ("shfl", "redux", "vote", "match", "elect", "activemask", "movmatrix"):
            return self._exchange(each)
        if name in ("mov", "cvta") and (len(each.sources) > 1 or len(each.results) > 1):
            return self._pack(each)
        if name == "cvta":
            raise UnknownInstruction(f"{self.function.name}: {each.where()} is not known")
        return self._lanes(each)
