"""The machine: runs the programs of a launch, all at once, and counts.

Registers are arrays [programs, threads]; an axis on which all values are the same has size 1, so that most integer work
is done once for all programs. Warps diverge into paths, each with a mask of threads; the path with the least
instruction runs first, and paths that meet join: blocks lie in order, as LLVM lays them out. Where programs as a whole
part, each side goes on as a batch of its own until both meet again.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from zonos2_triton.bench.compiler.ptx.arithmetic import operation
from zonos2_triton.bench.compiler.ptx.counts import CLASSES, LATENCY, TRAFFIC, Access, Counts, classify
from zonos2_triton.bench.compiler.ptx.flow import blocks, deaths, exposed_loads, is_barrier, needed, space
from zonos2_triton.bench.compiler.ptx.hazards import Hazard, Hazards
from zonos2_triton.bench.compiler.ptx.matrix import exchange, mma, tile_addresses, warpgroup_rows, wgmma
from zonos2_triton.bench.compiler.ptx.memory import (
    LANES,
    UINT,
    GlobalMemory,
    OutOfBounds,
    sectors,
    wavefronts,
)
from zonos2_triton.bench.compiler.ptx.parse import (
    Address,
    Function,
    Immediate,
    Instruction,
    PtxError,
    Register,
    Special,
    Symbol,
    UnknownInstruction,
)

Array = npt.NDArray[Any]
DTYPE: dict[str, type[np.generic]] = {"pred": np.bool_, "b16": np.uint16, "b32": np.uint32, "b64": np.uint64}
PARAM_BYTES = 1 << 12  # between the addresses of two parameters
_TRAFFIC = {name: i for i, name in enumerate(TRAFFIC)}
_WRITES = ("st", "atom", "red")


class Deadlock(PtxError):
    """Threads wait at a barrier that the others will not reach."""


@dataclass
class Transfers:
    """Asynchronous copies between two commits."""

    bytes: int = 0  # of the program that has the most
    ready: float = 0
    copies: list[Any] = field(default_factory=list)  # (instruction, addresses, mask, bytes, values)


@dataclass
class Path:
    """Threads of a batch that are at one instruction."""

    pc: int
    mask: Array | None = None  # [1 | programs, threads]; None: all
    time: float = 0
    depth: int = 0
    waits: tuple[int, int] | None = None  # at a barrier: its number, and the threads that it needs (0: all)
    groups: list[Transfers] = field(default_factory=lambda: [Transfers()])  # the last is open
    stored: bool = False  # to global memory, since the last release
    _warps: Array | None = None

    def warps(self, threads: int) -> Array:
        """Which warps have a thread here: [1 | programs, warps]."""
        found = self._warps
        if found is None:
            mask = np.ones((1, threads), bool) if self.mask is None else self.mask
            found = self._warps = np.asarray(mask.reshape(len(mask), -1, LANES).any(2))
        return found


@dataclass
class Batch:
    """Programs whose registers lie in the same arrays."""

    programs: Array  # numbers in the grid, x fastest
    registers: list[Array | None]
    ready: list[float]  # by register: the clock at which its value is there
    depth: list[int]  # by register: global round trips behind its value
    paths: list[Path]
    classes: Array  # [1 | programs, classes, warps]
    traffic: Array  # [1 | programs, kinds]
    live: Array  # [programs]
    shared: Array  # [1 | programs, bytes]
    word_ready: Array  # [words of shared memory]
    word_depth: Array
    any_ready: float = 0  # of words whose address differs between programs
    any_depth: int = 0
    cycles: float = 0
    trips: int = 0
    hazards: Hazards | None = None  # None: not looked for

    def add(self, kind: str, n: Any) -> None:
        """Adds a number, or one for each program."""
        if isinstance(n, np.ndarray) and n.size > 1 and len(self.traffic) == 1:
            self.traffic = np.repeat(self.traffic, len(self.programs), 0)
        self.traffic[:, _TRAFFIC[kind]] += n


Handler = Callable[[Batch, Path, float, int], "tuple[float, int] | None"]
"""Runs an instruction for a path; its inputs are there at that clock, after so many round trips. Returns both for its
result, where they are not those of its class."""


class Machine:
    """One launch. values: floats too, and hazards; otherwise only what addresses and control rest on."""

    def __init__(
        self,
        function: Function,
        params: Mapping[str, int],
        memory: GlobalMemory,
        shared: int,
        values: bool = True,
        holds_integers: Callable[[str], bool] = lambda name: True,
    ) -> None:
        self.function, self.params, self.memory, self.values = function, dict(params), memory, values
        self.turns = 1 << 20  # of a loop, over all programs that part; a program that waits for another never ends
        self.code, self.threads, self.warps = function.instructions, function.threads, function.threads // LANES
        self.shared_bytes = shared
        self.blocks = blocks(function)
        self.number = {name: i for i, name in enumerate(function.registers)}
        self._wanted = set(function.registers) if values else needed(function, holds_integers)
        self._uses_shared = values or any(
            self._is_wanted(each) and space(each) == "shared" for each in self.code if each.name in ("ld", "ldmatrix")
        )
        dead = deaths(function, self.blocks)
        self._dead = [tuple(self.number[name] for name in names) for names in dead]
        for block in self.blocks.values():
            self._dead[block.last - 1] = ()  # a branch still reads its guard
        self._reads = [tuple({self.number[register.name] for register in each.reads}) for each in self.code]
        self._writes = [tuple(self.number[register.name] for register in each.writes) for each in self.code]
        self._class = [CLASSES.index(classify(each)) for each in self.code]
        self._latency = [self._latency_of(each) for each in self.code]
        self._waits = [each.name != "mov" for each in self.code]  # the assembler renames registers instead
        self._params = {param.name: PARAM_BYTES * i for i, param in enumerate(function.params, 1)}
        self._conflicts: dict[int, list[int]] = {}  # by instruction: executions, wavefronts, ideal
        self._requests: dict[int, list[int]] = {}  # by instruction: executions, sectors
        self._visits = np.zeros(len(self.code) + 1, np.int64)  # times that a path ran it
        self._seen: dict[Any, Any] = {}
        self.under_way = 0
        self._handlers = [self._handler(i) for i in range(len(self.code))]
        self._histogram = {
            first: np.bincount(self._class[first : block.last], minlength=len(CLASSES))
            for first, block in self.blocks.items()
        }

    def _latency_of(self, each: Instruction) -> float:
        kind = classify(each)
        if each.name == "wgmma":
            return LATENCY["wgmma"] if each.has("mma_async") else LATENCY["other"]
        kind = {"global_load": "global", "cp_async": "other", "global_store": "other"}.get(kind, kind)
        return LATENCY[kind]

    # Running

    def run(self, grid: Sequence[int], programs: Array | None = None, lanes: int = 1 << 18) -> Counts:
        """Runs these programs of the grid, or all, so many threads at a time."""
        self.grid = (*grid, 1, 1)[:3]
        total = int(np.prod(self.grid))
        ran = np.arange(total) if programs is None else np.asarray(programs)
        if not len(ran) or ran.min() < 0 or ran.max() >= total:
            raise ValueError(f"programs must be in 0..{total - 1} of grid {tuple(grid)}, got {ran.tolist()[:8]}")
        each = max(1, lanes // self.threads)
        done: list[Batch] = []
        with np.errstate(all="ignore"):
            for start in range(0, len(ran), each):
                done += self._run_batches([self._start(ran[start : start + each])])
        return self._counts(tuple(grid), total, done)

    def _start(self, programs: Array) -> Batch:
        n, words = len(self.number), self.shared_bytes // 4 + 1
        return Batch(
            programs,
            [None] * n,
            [0.0] * n,
            [0] * n,
            [Path(0)],
            np.zeros((1, len(CLASSES), self.warps), np.int64),
            np.zeros((1, len(TRAFFIC)), np.int64),
            np.zeros(len(programs), bool),
            np.zeros((1, self.shared_bytes + 16 - self.shared_bytes % 16), np.uint8),
            np.zeros(words),
            np.zeros(words, np.int32),
            hazards=Hazards(self.function.name, self.code, self.shared_bytes) if self.values else None,
        )

    def _run_batches(self, waiting: list[Batch]) -> list[Batch]:
        done: list[Batch] = []
        while waiting:
            waiting.sort(key=lambda batch: -self._next(batch).pc)
            batch = waiting.pop()
            while waiting and (merged := self._merged(batch, waiting[-1])):
                batch = merged
                waiting.pop()
            ahead = [pc for pc in (self._next(other).pc for other in waiting) if pc > self._next(batch).pc]
            more = self._run_until_parted(batch, min(ahead, default=len(self.code) + 1))
            for each in more:
                (waiting if each.paths else done).append(each)
        return done

    def _next(self, batch: Batch) -> Path:
        """The path to run; barriers that all have reached are opened first."""
        free = [path for path in batch.paths if path.waits is None]
        if not free:
            self._open_barriers(batch)
            free = [path for path in batch.paths if path.waits is None]
            if not free:
                where = "; ".join(self.code[path.pc - 1].where() for path in batch.paths)
                raise Deadlock(f"{self.function.name}: deadlock: threads wait at {where}")
        return min(free, key=lambda path: path.pc)

    def _run_until_parted(self, batch: Batch, limit: int) -> list[Batch]:
        """Runs up to the instruction where another batch waits, or until programs part."""
        moved = False  # batches at one instruction that do not merge take turns
        while batch.paths:
            path = self._next(batch)
            if moved and path.pc >= limit and len(batch.paths) == 1:
                return [batch]
            moved = True
            parted = self._run_block(batch, path)
            if parted:
                return parted
            if len(batch.paths) > 1:
                self._join(batch)
        return [batch]

    def _join(self, batch: Batch) -> None:
        """Makes paths that are at the same instruction one."""
        by_pc: dict[Any, Path] = {}
        for path in batch.paths:
            key = (path.pc, path.waits)
            if key not in by_pc:
                by_pc[key] = path
                continue
            other = by_pc[key]
            mask = _either(path.mask, other.mask)
            other.mask, other._warps = None if mask is None or mask.all() else mask, None
            other.time, other.depth = max(path.time, other.time), max(path.depth, other.depth)
            other.stored |= path.stored
            if path.groups is not other.groups:
                other.groups = _joined_groups(path.groups, other.groups)
        batch.paths = list(by_pc.values())

    def _run_block(self, batch: Batch, path: Path) -> list[Batch]:
        block = self.blocks[path.pc]
        warps = path.warps(self.threads)
        histogram = self._histogram[path.pc]
        added = histogram[None, :, None] * warps[:, None, :]
        if len(added) > len(batch.classes):
            batch.classes = np.repeat(batch.classes, len(batch.programs), 0)
        batch.classes += added
        alone, ready, depth = len(batch.paths) == 1, batch.ready, batch.depth
        start = latest = path.time
        handlers, reads, writes = self._handlers, self._reads, self._writes
        latencies, dead, waits = self._latency, self._dead, self._waits
        for pc in range(block.first, block.last):
            time, trips = path.time, path.depth
            for register in reads[pc]:
                if ready[register] > time:
                    time = ready[register]
                if depth[register] > trips:
                    trips = depth[register]
            if time > latest and waits[pc]:
                latest = time
            handler = handlers[pc]
            result = handler(batch, path, time, trips) if handler else None
            time, trips = result or (time + latencies[pc], trips)
            for register in writes[pc]:
                ready[register], depth[register] = time, trips
            if trips > batch.trips:
                batch.trips = trips
            if alone and dead[pc]:
                for register in dead[pc]:
                    batch.registers[register] = None
        self._visits[block.first : block.last] += 1
        if self._visits[block.first] > self.turns:
            where = self.code[block.last - 1].where()
            raise PtxError(f"{self.function.name}: {where} was reached {self.turns} times: the loop does not end")
        per_scheduler = -(-int(warps.sum(1).max()) // 4)
        path.time = max(latest, path.time, start + per_scheduler * (block.last - block.first))
        batch.cycles = max(batch.cycles, path.time)
        return self._leave(batch, path, block.last - 1)

    def _leave(self, batch: Batch, path: Path, pc: int) -> list[Batch]:
        """Where a block's last instruction leads. Batches, where programs part."""
        end = self.code[pc]
        path.pc = pc + 1
        if is_barrier(end):
            if end.has("arrive"):
                raise UnknownInstruction(f"{self.function.name}: {end.where()}")
            numbers = [part.value if isinstance(part, Immediate) else -1 for part in end.sources]
            if -1 in numbers:
                raise UnknownInstruction(f"{self.function.name}: {end.where()}: a barrier by register")
            path.waits = (numbers[0] if numbers else 0, numbers[1] if len(numbers) > 1 else 0)
            path.time += LATENCY["barrier"]
            self._open_barriers(batch)
            return []
        if end.name == "trap":
            raise PtxError(f"{self.function.name}: {end.where()} was reached")
        if end.name not in ("bra", "ret", "exit"):
            if path.pc == len(self.code):
                batch.paths.remove(path)
            return []
        if end.guard is None:
            return self._go(batch, path, end)
        taken = _predicate(batch.registers[self.number[end.guard.name]])
        path.depth = max(path.depth, batch.depth[self.number[end.guard.name]])
        path.time = max(path.time, batch.ready[self.number[end.guard.name]]) + LATENCY["branch"]
        if end.negated:
            taken = ~taken
        return self._branch(batch, path, end, taken)

    def _branch(self, batch: Batch, path: Path, end: Instruction, taken: Array) -> list[Batch]:
        if path.mask is not None:
            taken, stay = taken & path.mask, ~taken & path.mask
        else:
            stay = ~taken
        if not stay.any():
            return self._go(batch, path, end)
        if not taken.any():
            return []
        if len(batch.paths) == 1 and len(taken) > 1:  # only whole programs part?
            goes, stays = np.asarray(taken.any(1)), np.asarray(stay.any(1))
            if not (goes & stays).any() and (goes | stays).all():
                parts = []
                for chosen, jumps in ((stays, False), (goes, True)):
                    part = _taken_from(batch, chosen)
                    if jumps:
                        self._go(part, part.paths[0], end)
                    parts.append(part)
                return parts
        taken, stay = (np.broadcast_to(mask, (len(mask), self.threads)) for mask in (taken, stay))
        other = Path(path.pc, taken, path.time, path.depth, None, list(path.groups), path.stored)
        path.mask, path._warps = stay, None
        batch.paths.append(other)
        return self._go(batch, other, end)

    def _go(self, batch: Batch, path: Path, end: Instruction) -> list[Batch]:
        if end.name == "bra":
            path.pc = end.target
        else:
            batch.paths.remove(path)
        return []

    def _open_barriers(self, batch: Batch) -> None:
        for path in batch.paths:
            if path.waits is None:
                continue
            number, wanted = path.waits
            here = [each for each in batch.paths if each.waits and each.waits[0] == number]
            if wanted:
                arrived = sum(_threads(each, self.threads) for each in here)
                is_complete = bool(np.all(arrived >= wanted))
            else:
                is_complete = len(here) == len(batch.paths)
            if is_complete:
                time, depth = max(each.time for each in here), max(each.depth for each in here)
                for each in here:
                    each.waits, each.time, each.depth = None, time, depth
                if batch.hazards:
                    batch.hazards.barrier()
                return

    # Batches that meet

    def _merged(self, a: Batch, b: Batch) -> Batch | None:
        """Both as one, or None: they are not at the same instruction in the same state."""
        if len(a.paths) != 1 or len(b.paths) != 1:
            return None
        p, q = a.paths[0], b.paths[0]
        if p.pc != q.pc or len(p.groups) != len(q.groups) or (p.mask is None) != (q.mask is None):
            return None
        if any(group.copies for group in (*p.groups, *q.groups)):
            return None
        na, nb = len(a.programs), len(b.programs)
        order = np.argsort(np.concatenate([a.programs, b.programs]), kind="stable")

        def both(x: Array, y: Array) -> Array:
            if x is y or (len(x) == 1 and len(y) == 1 and x.shape == y.shape and (x == y).all()):
                return x
            width = (max(x.shape[1], y.shape[1]), *x.shape[2:])
            return np.concatenate([np.broadcast_to(x, (na, *width)), np.broadcast_to(y, (nb, *width))])[order]

        registers = [
            x if x is y else both(_or_zero(x, y), _or_zero(y, x)) for x, y in zip(a.registers, b.registers, strict=True)
        ]
        groups = [
            Transfers(max(g.bytes, h.bytes), max(g.ready, h.ready)) for g, h in zip(p.groups, q.groups, strict=True)
        ]
        mask = None if p.mask is None or q.mask is None else both(p.mask, q.mask)
        path = Path(p.pc, mask, max(p.time, q.time), max(p.depth, q.depth), None, groups, p.stored | q.stored)
        return Batch(
            np.concatenate([a.programs, b.programs])[order],
            registers,
            list(map(max, a.ready, b.ready)),
            list(map(max, a.depth, b.depth)),
            [path],
            both(a.classes, b.classes),
            both(a.traffic, b.traffic),
            np.concatenate([a.live, b.live])[order],
            both(a.shared, b.shared),
            np.maximum(a.word_ready, b.word_ready),
            np.maximum(a.word_depth, b.word_depth),
            max(a.any_ready, b.any_ready),
            max(a.any_depth, b.any_depth),
            max(a.cycles, b.cycles),
            max(a.trips, b.trips),
            a.hazards.combined(b.hazards, both) if a.hazards and b.hazards else None,
        )

    # Operands

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
            found = _predicate(batch.registers[number])
            found = ~found if negated else found
            if path.mask is not None:
                return found & path.mask
            return None if found.all() else found

        return guarded

    def _put(self, batch: Batch, number: int, new: Array, mask: Array | None) -> None:
        old = batch.registers[number]
        batch.registers[number] = new if mask is None or old is None else np.where(mask, new, old)

    # Instructions

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
                self._put(batch, self.number[part.name], _narrowed(new), where)

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

    # Global memory

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
        address, mask = self._address(each.sources[0], np.uint64), self._mask(each)
        size, parts = _element(each)
        width, keep = size * parts, self._is_wanted(each)
        results = [(i, part) for i, part in enumerate(each.results) if isinstance(part, Register)]
        signed = each.type[0] == "s"
        latency = LATENCY["global"]

        def load(batch: Batch, path: Path, time: float, trips: int) -> tuple[float, int] | None:
            where = mask(batch, path)
            if where is not None and not where.any():
                return time, trips
            place, on = self._spread(address(batch), where)
            active = place.reshape(-1) if on is None else place[on]
            self._check_global(each, active, width)
            self._count_global(pc, batch, "load", place, on, width, self.threads if on is None else on.sum(1))
            if keep:
                for i, part in results:
                    found = self.memory.load(active + np.uint64(i * size), size)
                    new = _widened(found, DTYPE[part.type], signed)
                    if on is None:
                        new = new.reshape(place.shape)
                    else:
                        filled = np.zeros(place.shape, new.dtype)
                        filled[on] = new
                        new = filled
                    self._put(batch, self.number[part.name], _narrowed(new), where)
            return time + latency, trips + 1

        return load

    def _is_wanted(self, each: Instruction) -> bool:
        """Whether a result is needed."""
        return any(register.name in self._wanted for register in each.writes)

    def _store_global(self, pc: int, each: Instruction) -> Handler:
        address, mask = self._address(each.sources[0], np.uint64), self._mask(each)
        size, parts = _element(each)
        width = size * parts
        getters = [self._getter(part, UINT[max(size, 2)]) for part in each.sources[1:]]

        def store(batch: Batch, path: Path, time: float, trips: int) -> None:
            where = mask(batch, path)
            if where is not None and not where.any():
                return
            place, on = self._spread(address(batch), where)
            active = place.reshape(-1) if on is None else place[on]
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
        size, _ = _element(each)
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

    # Shared memory

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
        address = self._address(next(part for part in each.sources if isinstance(part, Address)), np.uint32)
        mask = self._mask(each)

        def access(batch: Batch, path: Path) -> Any:
            where = mask(batch, path)
            if where is not None and not where.any():
                return None
            place, on = self._spread(address(batch).astype(np.int64), where)
            active = place.reshape(-1) if on is None else place[on]
            self._check_shared(each, active, width)
            if batch.hazards:
                (batch.hazards.read if each.name == "ld" else batch.hazards.write)(pc, place, on, width)
            return where, place, on, *self._count_shared(pc, batch, place, on, width)

        return access

    def _load_shared(self, pc: int, each: Instruction) -> Handler:
        size, parts = _element(each)
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
                    new = _widened(self._gather(batch, safe + i * size, size), DTYPE[part.type], signed)
                    self._put(batch, self.number[part.name], _narrowed(new), where)
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
        size, parts = _element(each)
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

    # Asynchronous copies

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
        target, source = (
            self._address(part, kind) for part, kind in zip(each.sources, (np.uint32, np.uint64), strict=False)
        )
        size = each.sources[2].value  # type: ignore[union-attr]
        given = self._getter(each.sources[3], np.uint32) if len(each.sources) > 3 else None
        mask = self._mask(each)
        keep = self._uses_shared

        def copy(batch: Batch, path: Path, time: float, trips: int) -> tuple[float, int] | None:
            where = mask(batch, path)
            if where is not None and not where.any():
                return None
            place, on = self._spread(target(batch).astype(np.int64), where)
            self._check_shared(each, place.reshape(-1) if on is None else place[on], size)
            if batch.hazards:
                batch.hazards.write(pc, place, on, size, arrives=False)
            waves, words = self._count_shared(pc, batch, place, on, size)
            reads = where
            if given is not None:
                some = given(batch) > 0
                reads = some if where is None else some & where
                reads = None if reads.all() else reads
            group, values = path.groups[-1], None
            if reads is None or reads.any():
                origin, lanes = self._spread(source(batch), reads)
                active = origin.reshape(-1) if lanes is None else origin[lanes]
                self._check_global(each, active, size)
                by_program = self.threads if lanes is None else lanes.sum(1)
                self._count_global(pc, batch, "async", origin, lanes, size, by_program)
                group.bytes += int(np.max(by_program)) * size
                trips += 1
                if keep:
                    values = self._fetched(origin, lanes, active, size)
            group.ready = max(group.ready, time + LATENCY["global"])
            self._note_words(batch, words, time + LATENCY["global"] + waves - 1, trips)
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

    # Matrices

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

    # Results

    def _counts(self, grid: tuple[int, ...], total: int, done: list[Batch]) -> Counts:
        order = np.argsort(np.concatenate([batch.programs for batch in done]), kind="stable")

        def over(make: Callable[[Batch], Any]) -> Array:
            rows = [np.broadcast_to(make(each), (len(each.programs), *np.shape(make(each))[1:])) for each in done]
            return np.concatenate(rows)[order]

        classes = over(lambda each: each.classes)
        traffic = over(lambda each: each.traffic)
        matrix = CLASSES.index("matrix")
        longest = classes.sum(1)
        conflicts = [
            Access(self.code[pc].text, self.code[pc].source, *note)
            for pc, note in sorted(self._conflicts.items(), key=lambda item: item[1][2] - item[1][1])
            if note[2] and note[1] > note[2]
        ]
        exposed = [
            Access(self.code[pc].text, self.code[pc].source, self._requests[pc][0], self._requests[pc][1], 0)
            for pc in exposed_loads(self.function)
            if pc in self._requests and self._visits[pc] > len(done)
        ]
        return Counts(
            self.function.name,
            self.function.target,
            grid,
            total,
            tuple(int(n) for batch in done for n in batch.programs) if total != len(order) else tuple(range(total)),
            self.threads,
            tuple(bool(n) for n in over(lambda each: each.live)),
            {name: tuple(classes[:, i].sum(1).tolist()) for i, name in enumerate(CLASSES)},
            tuple(longest.max(1).tolist()),
            tuple(classes[:, matrix].max(1).tolist()),
            {name: tuple(traffic[:, i].tolist()) for i, name in enumerate(TRAFFIC)},
            tuple(over(lambda each: np.full((1,), each.trips)).tolist()),
            tuple(over(lambda each: np.full((1,), int(each.cycles))).tolist()),
            self.under_way,
            tuple(conflicts),
            tuple(exposed),
        )


def _taken_from(batch: Batch, chosen: Array) -> Batch:
    """A batch of these programs."""

    def rows(x: Array) -> Array:
        return x if len(x) == 1 else x[chosen]

    paths = []
    for path in batch.paths:
        mask = None if path.mask is None else rows(path.mask)
        groups = [Transfers(g.bytes, g.ready, [_copy_of(copy, rows) for copy in g.copies]) for g in path.groups]
        paths.append(Path(path.pc, mask, path.time, path.depth, path.waits, groups, path.stored))
    return Batch(
        batch.programs[chosen],
        [None if x is None else rows(x) for x in batch.registers],
        list(batch.ready),
        list(batch.depth),
        paths,
        rows(batch.classes).copy(),
        rows(batch.traffic).copy(),
        batch.live[chosen],
        rows(batch.shared).copy(),
        batch.word_ready.copy(),
        batch.word_depth.copy(),
        batch.any_ready,
        batch.any_depth,
        batch.cycles,
        batch.trips,
        batch.hazards.mapped(rows) if batch.hazards else None,
    )


def _copy_of(copy: Any, rows: Callable[[Array], Array]) -> Any:
    pc, place, on, size, values = copy
    return (
        pc,
        rows(place),
        None if on is None else rows(on),
        size,
        None if values is None else [rows(value) for value in values],
    )


def _joined_groups(a: list[Transfers], b: list[Transfers]) -> list[Transfers]:
    """The groups of two paths that become one, newest last."""
    n = max(len(a), len(b))
    a, b = ([Transfers() for _ in range(n - len(each))] + each for each in (a, b))
    return [
        g if g is h else Transfers(g.bytes + h.bytes, max(g.ready, h.ready), g.copies + h.copies)
        for g, h in zip(a, b, strict=True)
    ]


def _or_zero(found: Array | None, like: Array | None) -> Array:
    """A register that one side has not written, zero."""
    if found is not None:
        return found
    return np.zeros((1, 1), np.uint32 if like is None else like.dtype)


def _predicate(found: Array | None) -> Array:
    return np.zeros((1, 1), bool) if found is None else found


def _either(a: Array | None, b: Array | None) -> Array | None:
    return None if a is None or b is None else a | b


def _threads(path: Path, threads: int) -> Array:
    return np.array([threads]) if path.mask is None else path.mask.sum(1)


def _element(each: Instruction) -> tuple[int, int]:
    """Bytes of an element, and elements of a thread."""
    bits = int(each.type.lstrip("bsuf"))
    return bits // 8, next((int(part[1:]) for part in each.opcode if part in ("v2", "v4", "v8")), 1)


def _widened(value: Array, kind: Any, signed: bool) -> Array:
    """A loaded value as a register: extended by its sign, or by zeros."""
    if value.dtype.itemsize >= np.dtype(kind).itemsize:
        return value.astype(kind, copy=False)
    if signed:
        value = value.view(np.dtype(f"i{value.dtype.itemsize}")).astype(np.dtype(f"i{np.dtype(kind).itemsize}"))
        return value.view(kind)
    return value.astype(kind)


def _narrowed(value: Array) -> Array:
    """An axis on which all values are the same gets size 1, where that is quick to see."""
    if value.shape[1] > 1 and len(value) > 1 and (value == value[:, :1]).all():
        value = value[:, :1]
    if len(value) > 1 and (value == value[:1]).all():
        value = value[:1]
    return value


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
