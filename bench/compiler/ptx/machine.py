"""The machine: runs the programs of a launch, all at once, and counts.

Registers are arrays [programs, threads]; an axis on which all values are the same has size 1, so that most integer work
is done once for all programs. Warps diverge into paths, each with a mask of threads; the path with the least
instruction runs first, and paths that meet join: blocks lie in order, as LLVM lays them out. Where programs as a whole
part, each side goes on as a batch of its own until both meet again.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from zonos2_triton.bench.compiler.ptx.batches import (
    Array,
    Batch,
    Path,
    Transfers,
    either,
    joined_groups,
    merged,
    predicate,
    taken_from,
    threads_of,
)
from zonos2_triton.bench.compiler.ptx.counts import AFTER_WAIT, CLASSES, LATENCY, TRAFFIC, Access, Counts, classify
from zonos2_triton.bench.compiler.ptx.flow import blocks, deaths, exposed_loads, is_barrier, waits_for_launch
from zonos2_triton.bench.compiler.ptx.hazards import Hazards
from zonos2_triton.bench.compiler.ptx.instructions import Instructions
from zonos2_triton.bench.compiler.ptx.memory import GlobalMemory
from zonos2_triton.bench.compiler.ptx.parse import Function, Immediate, Instruction, PtxError, UnknownInstruction


class Deadlock(PtxError):
    """Threads wait at a barrier that the others will not reach."""


class Waited(NamedTuple):
    """A program at its wait for the launch before."""

    time: float
    arrived: float  # when all that it has loaded is there
    classes: Array  # [classes, warps]
    traffic: Array  # [kinds]


class Machine(Instructions):
    """One launch.

    values   floats too, and hazards; otherwise only what addresses and control rest on
    arrives  the wait for the launch before is long: all that was loaded ahead of it is there when it ends. Otherwise
             it takes no time, as when launches run one after the other
    """

    def __init__(
        self,
        function: Function,
        params: Mapping[str, int],
        memory: GlobalMemory,
        shared: int,
        values: bool = True,
        holds_integers: Callable[[str], bool] = lambda name: True,
        arrives: bool = False,
    ) -> None:
        super().__init__(function, params, memory, shared, values, holds_integers)
        self.arrives = arrives
        self._waited: dict[int, Waited] = {}  # by program
        self.turns = 1 << 20  # of a loop, over all programs that part; a program that waits for another never ends
        self.blocks = blocks(function)
        dead = deaths(function, self.blocks)
        self._dead = [tuple(self.number[name] for name in names) for names in dead]
        for block in self.blocks.values():
            self._dead[block.last - 1] = ()  # a branch still reads its guard
        self._reads = [tuple({self.number[register.name] for register in each.reads}) for each in self.code]
        self._writes = [tuple(self.number[register.name] for register in each.writes) for each in self.code]
        self._class = [CLASSES.index(classify(each)) for each in self.code]
        self._latency = [self._latency_of(each) for each in self.code]
        self._waits = [each.name != "mov" for each in self.code]  # the assembler renames registers instead
        self._visits = np.zeros(len(self.code) + 1, np.int64)  # times that a path ran it
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
            while waiting and (joined := merged(batch, waiting[-1])):
                batch = joined
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
            mask = either(path.mask, other.mask)
            other.mask, other._warps = None if mask is None or mask.all() else mask, None
            other.time, other.depth = max(path.time, other.time), max(path.depth, other.depth)
            other.stored |= path.stored
            if path.groups is not other.groups:
                other.groups = joined_groups(path.groups, other.groups)
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
        path.time = max(latest, path.time)
        if not waits_for_launch(self.code[block.last - 1]):  # that ends no block for the serial chain
            per_scheduler = -(-int(warps.sum(1).max()) // 4)
            path.time = max(path.time, start + per_scheduler * (block.last - block.first))
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
        if waits_for_launch(end):
            self._pass(batch, path)
            return []
        if end.name == "trap":
            raise PtxError(f"{self.function.name}: {end.where()} was reached")
        if end.name not in ("bra", "ret", "exit"):
            if path.pc == len(self.code):
                batch.paths.remove(path)
            return []
        if end.guard is None:
            return self._go(batch, path, end)
        taken = predicate(batch.registers[self.number[end.guard.name]])
        path.depth = max(path.depth, batch.depth[self.number[end.guard.name]])
        path.time = max(path.time, batch.ready[self.number[end.guard.name]]) + LATENCY["branch"]
        if end.negated:
            taken = ~taken
        return self._branch(batch, path, end, taken)

    def _pass(self, batch: Batch, path: Path) -> None:
        """The launch before has ended."""
        time = path.time
        found = [*batch.ready, float(batch.word_ready.max()), batch.any_ready, *(each.ready for each in path.groups)]
        for i, program in enumerate(batch.programs.tolist()):
            classes, traffic = batch.classes[i % len(batch.classes)], batch.traffic[i % len(batch.traffic)]
            self._waited[program] = Waited(time, max(time, *found), classes.copy(), traffic.copy())
        if self.arrives:
            batch.ready = [min(each, time) for each in batch.ready]
            batch.word_ready, batch.any_ready = np.minimum(batch.word_ready, time), min(batch.any_ready, time)
            path.groups = [Transfers(each.bytes, min(each.ready, time), each.copies) for each in path.groups]

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
                    part = taken_from(batch, chosen)
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
                arrived = sum(threads_of(each, self.threads) for each in here)
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
        cycles = over(lambda each: np.full((1,), int(each.cycles)))
        programs = np.concatenate([batch.programs for batch in done])[order].tolist()
        nothing = Waited(0, 0, np.zeros_like(classes[0]), np.zeros_like(traffic[0]))
        waited = [self._waited.get(program, nothing) for program in programs]
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
            tuple(programs),
            self.threads,
            tuple(bool(n) for n in over(lambda each: each.live)),
            {name: tuple(classes[:, i].sum(1).tolist()) for i, name in enumerate(CLASSES)},
            tuple(longest.max(1).tolist()),
            tuple(classes[:, matrix].max(1).tolist()),
            {name: tuple(traffic[:, i].tolist()) for i, name in enumerate(TRAFFIC)},
            tuple(over(lambda each: np.full((1,), each.trips)).tolist()),
            tuple(cycles.tolist()),
            tuple(int(each.arrived) for each in waited),
            _after(
                cycles - np.array([int(each.time) for each in waited]),
                classes - np.stack([each.classes for each in waited]),
                traffic - np.stack([each.traffic for each in waited]),
            ),
            self.under_way,
            tuple(conflicts),
            tuple(exposed),
        )


def _after(cycles: Array, classes: Array, traffic: Array) -> dict[str, tuple[int, ...]]:
    """By program, of AFTER_WAIT. cycles [programs], classes [programs, classes, warps], traffic [programs, kinds]."""
    kinds = {name: traffic[:, i] for i, name in enumerate(TRAFFIC)}
    issued = np.delete(classes, CLASSES.index("other"), 1).sum((1, 2))
    sectors = kinds["load_sectors"] + kinds["async_sectors"]
    found = (cycles, issued, classes.sum(1).max(1), kinds["wavefronts"], kinds["ideal_wavefronts"], sectors)
    return {name: tuple(each.tolist()) for name, each in zip(AFTER_WAIT, found, strict=True)}
