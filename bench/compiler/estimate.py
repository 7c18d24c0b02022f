"""Estimated times, made from counts of the compiled code: of a launch, and of a frame. No GPU takes part.

The formula, in microseconds:

    floor    least bytes / copy bandwidth, or FLOPs / matrix rate: the slower of the two
    l2       bytes that the fullest multiprocessor loads, 64 a clock; or those of all / bandwidth of the L2 cache
    shared   shared-memory wavefronts of the fullest multiprocessor, one a clock
    issue    warp instructions of the fullest multiprocessor, four a clock
    chain    the longest program by itself, once per round of programs: its longest chain of dependent instructions by
             the latencies of `ptx.counts.LATENCY`, and the wavefronts that bank conflicts add; or, where that is more,
             the instructions of its longest warp
    launch = START + max(FILL + max(floor, l2, shared, issue), chain)
    frame  = sum of launch + GAP, for launches that run one after the other; `dependent_us` for those that overlap

Programs are dealt to the multiprocessors in turn; programs that return at once are left out. An estimate ranks kernels
and shows what limits one. It is no measurement: constants that are marked "assumed" await one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from zonos2_triton.bench.compiler.cubin_stats import RESERVED_SHARED, Stats
from zonos2_triton.bench.compiler.ptx.counts import Counts
from zonos2_triton.bench.specs.gpus import Gpu, find_gpu
from zonos2_triton.bench.specs.roofline import Roofline
from zonos2_triton.kernels._operator import Cost

GPU = "h200"  # that estimates are of where none is named
COPY_SHARE = 4.3 / 4.8  # of the data sheet's bandwidth: copies on an H200, measured
CLOCK_SHARE = 0.96  # of the boost clock: 1.9 GHz on an H200, assumed
L2_GB_PER_S = 5500  # of all that goes through an H200's L2 cache, assumed; by others, of an H100 PCIe: 5.5 to 5.7 TB/s
L2_BYTES_PER_CLOCK = 64  # to one multiprocessor, as wide as one of the L2 cache's 80 slices of an H100; assumed
SECTOR = 32  # bytes
REGISTERS, SHARED, WARPS = 1 << 16, 228 * 1024, 64  # of a multiprocessor, sm_90: CUDA programming guide
SCHEDULERS = 4  # warp instructions that a multiprocessor issues in a clock: white papers since Volta
CLOCKS_PER_INSTRUCTION = 2  # of one warp by itself, assumed
FILL_US = 0.6  # from the first load to its data, between 0.3 in the L2 cache and 0.9 under load; assumed
START_US = 0.9  # from the end of a launch's gap to its first load, and from its last store to its end; assumed
GAP_US = 1.1  # between launches of a CUDA graph, assumed
# A dependent launch is charged the same gap, from the end of a launch to the first load after the wait of the next: all
# that it gains is overlap. So the model says 768 and 992 us of Llama-1B at one token in 100 launches, on an H200 and an
# H100; 794.7 and 979.5 are measured (msaroufim/megakernels-vs-cuda-graphs: a graph, dependent launches).
DRAIN_US = 0.4  # the end of a launch's START_US, which overlaps with nothing; assumed


class Rates(NamedTuple):
    """A GPU's rates, as launches of this project reach them."""

    multiprocessors: int
    clock_ghz: float
    roofline: Roofline

    @property
    def l2_gb_per_s(self) -> float:
        """No slower than memory."""
        return max(L2_GB_PER_S, self.roofline.gb_per_s or 0)

    def us(self, clocks: float) -> float:
        return clocks / self.clock_ghz / 1e3


def rates_of(gpu: Gpu) -> Rates:
    """From the data sheet. `COPY_SHARE` and `CLOCK_SHARE` are of an H200; other GPUs are taken to be alike."""
    roofline = Roofline(COPY_SHARE * gpu.gb_per_s, gpu.tflop_per_s)
    return Rates(gpu.multiprocessors, CLOCK_SHARE * gpu.clock_ghz, roofline)


REFERENCE = rates_of(find_gpu(GPU))


@dataclass(frozen=True)
class Counted:
    """The counts of a launch that are kept. The fullest multiprocessor is that of `REFERENCE`."""

    launch: int  # of its operation, from 0
    live: int  # programs that do not return at once
    wavefronts: int  # of the fullest multiprocessor
    issued: int  # warp instructions of the fullest multiprocessor
    chain: int  # clocks of the longest program, times the rounds of programs
    round_trips: int  # dependent ones to global memory, the most of one program
    conflict: float  # the worst: wavefronts of an instruction for each that would do
    exposed: int  # global loads in loops that wait in the iteration that issues them
    under_way: int  # bytes of cp.async, or loaded before the wait, for each multiprocessor, on average
    moved: int  # bytes that its programs load and store; several may load the same
    through_l2: int  # bytes of the sectors that its programs load and store
    loaded: int  # bytes of the sectors that the fullest multiprocessor loads
    # For launches that overlap: what comes before the wait for the launch before, and after it. Without a wait all is
    # after it. Only the first round of programs can be there early.
    early_loaded: int  # bytes of sectors that are in registers or shared memory before the wait; prefetches are not
    loaded_after: int  # like `loaded`
    wavefronts_after: int
    issued_after: int
    chain_before: int  # clocks until the slowest program has reached its wait, and all that it has loaded is there
    chain_after: int  # like `chain`, where all that was loaded before the wait is there
    registers: int  # of a thread
    shared: int  # bytes of a program
    warps: int  # of a program
    resident: int  # programs that fit into a multiprocessor


# By how much a count of a snapshot may grow before it is worse: a factor, and a number.
SLACK = {
    "wavefronts": (1.05, 50), "issued": (1.1, 50), "chain": (1.1, 100), "chain_after": (1.1, 100), "loaded": (1.05, 0),
    "through_l2": (1.05, 0), "round_trips": (1, 0), "conflict": (1, 0.05), "exposed": (1, 0),
}  # fmt: skip


def summary(counts: Counts, launch: int, stats: Stats) -> Counted:
    """The kept counts of a launch of the binary that `stats` are of.

    Programs that the machine did not run are taken to be like those that it ran, in their order.
    """
    n, resident, live = REFERENCE.multiprocessors, max(1, stats.blocks), np.flatnonzero(counts.live)
    of_grid = live[np.arange(counts.live_programs) % max(1, len(live))]
    rounds = max(1, -(-len(of_grid) // (n * resident)))
    is_first = np.arange(len(of_grid)) < n * resident  # in the first round of programs
    whole = {kind: np.array(numbers) for kind, numbers in counts.whole.items()}
    after = {kind: np.array(numbers) for kind, numbers in counts.after_wait.items()}

    def most(kind: str) -> int:
        return fullest(whole[kind][of_grid], n)

    def most_after(kind: str) -> int:
        return fullest(np.where(is_first, after[kind][of_grid], whole[kind][of_grid]), n)

    chain = _longest(whole)
    early_loaded = SECTOR * int(np.array(counts.early("loaded_sectors"))[of_grid[is_first]].sum())
    return Counted(
        launch=launch,
        live=len(of_grid),
        wavefronts=most("wavefronts"),
        issued=most("instructions"),
        chain=rounds * chain,
        round_trips=max(counts.round_trips),
        conflict=round(counts.ways, 2),
        exposed=len(counts.exposed_loads),
        under_way=max(round(counts.bytes_under_way * min(stats.blocks, len(of_grid) / n)), early_loaded // n),
        moved=round(sum(counts.total(kind) for kind in ("load_bytes", "store_bytes", "async_bytes"))),
        through_l2=SECTOR * round(sum(counts.total(f"{kind}_sectors") for kind in ("load", "store", "async"))),
        loaded=SECTOR * most("loaded_sectors"),
        early_loaded=early_loaded,
        loaded_after=SECTOR * most_after("loaded_sectors"),
        wavefronts_after=most_after("wavefronts"),
        issued_after=most_after("instructions"),
        chain_before=max(counts.until_wait),
        chain_after=(rounds - 1) * chain + _longest(after),
        registers=stats.registers,
        shared=stats.shared,
        warps=stats.warps,
        resident=stats.blocks,
    )


def _longest(counts: Mapping[str, NDArray[np.int64]]) -> int:
    """Clocks of the longest program."""
    in_order = counts["cycles"] + counts["wavefronts"] - counts["ideal_wavefronts"]
    return int(np.maximum(in_order, counts["longest_warp"] * CLOCKS_PER_INSTRUCTION).max())


def fullest(of_programs: NDArray[np.int64], multiprocessors: int) -> int:
    """The largest sum of a multiprocessor, to which programs are dealt in turn."""
    padded = np.pad(of_programs, (0, -len(of_programs) % multiprocessors))
    return int(padded.reshape(-1, multiprocessors).sum(0).max(initial=0))


class Estimate(NamedTuple):
    """The parts of a launch's time, and the whole, in microseconds."""

    floor: float
    l2: float
    shared: float
    issue: float
    chain: float

    @property
    def us(self) -> float:
        return START_US + self.work

    @property
    def work(self) -> float:
        """From the first load on."""
        return max(FILL_US + max(self.floor, self.l2, self.shared, self.issue), self.chain)

    @property
    def share(self) -> float:
        """The floor as a share of what a launch takes beside START and FILL."""
        return self.floor / max(self.us - START_US - FILL_US, 1e-9)

    @property
    def limit(self) -> str:
        """The part that decides: "floor" (memory or matrix rate), "l2", "shared", "issue" or "chain"."""
        streamed = {name: getattr(self, name) + FILL_US for name in ("floor", "l2", "shared", "issue")}
        parts = streamed | {"chain": self.chain}
        return max(parts, key=lambda name: parts[name])


def estimate(counted: Counted, moved: float, flops: float, rates: Rates = REFERENCE) -> Estimate:
    """A launch that moves so many bytes at least. A GPU with fewer multiprocessors has more programs on each."""
    parts = counted.loaded, counted.wavefronts, counted.issued, counted.chain
    return _estimate(rates.roofline.floor_us(moved, flops) or 0.0, counted.through_l2, *parts, rates)


def after_wait(counted: Counted, flops: float, rates: Rates = REFERENCE) -> Estimate:
    """The same launch after its wait for the launch before. Memory is another matter: see `dependent_us`."""
    parts = counted.loaded_after, counted.wavefronts_after, counted.issued_after, counted.chain_after
    through_l2 = counted.through_l2 - counted.early_loaded
    return _estimate(rates.roofline.floor_us(0, flops) or 0.0, through_l2, *parts, rates)


def _estimate(
    floor: float, through_l2: float, loaded: float, wavefronts: float, issued: float, chain: float, rates: Rates
) -> Estimate:
    share = max(1.0, REFERENCE.multiprocessors / rates.multiprocessors)
    l2 = max(through_l2 / rates.l2_gb_per_s / 1e3, rates.us(share * loaded / L2_BYTES_PER_CLOCK))
    return Estimate(floor, l2, *map(rates.us, (share * wavefronts, share * issued / SCHEDULERS, chain)))


class Held(NamedTuple):
    """Resources of a multiprocessor that programs hold."""

    registers: int = 0
    shared: int = 0
    warps: int = 0

    def fits_beside(self, other: "Held") -> bool:
        """Whether one multiprocessor has room for both."""
        return all(a + b <= most for a, b, most in zip(self, other, (REGISTERS, SHARED, WARPS), strict=True))


def held(counted: Counted, programs: int | None = None) -> Held:
    """By so many programs; None: by those that the fullest multiprocessor runs at a time.

    Registers are given to warps in units of 256.
    """
    n = min(counted.resident, -(-counted.live // REFERENCE.multiprocessors)) if programs is None else programs
    registers = n * counted.warps * -(-counted.registers * 32 // 256) * 256
    return Held(registers, n * (counted.shared + RESERVED_SHARED), n * counted.warps)


class Step(NamedTuple):
    """A launch of a frame."""

    name: str
    estimate: Estimate
    bytes: float
    certain: float  # bytes that do not depend on an earlier launch, such as weights that are always read
    before: float  # us until it has reached its wait for the launch before, and its loads have arrived
    after: Estimate  # of what comes after that
    held: Held  # by the programs of the fullest multiprocessor
    program: Held  # by one of them

    def fits_beside(self, running: "Step") -> bool:
        """Whether a program of this launch has room on the fullest multiprocessor of one that runs."""
        return self.program.fits_beside(running.held)


def steps(cost: Cost, launches: Sequence[tuple[str, Counted]], certain: bool, rates: Rates = REFERENCE) -> list[Step]:
    """The launches of an operation, by name. They share its least bytes and FLOPs as they share the bytes they move.

    certain: what it reads is known before. Otherwise the first launch knows it, and requests it for the others too.
    """
    made, moved = [], max(1, sum(counted.moved for _, counted in launches))
    for i, (name, counted) in enumerate(launches):
        share = counted.moved / moved
        moves, flops = share * cost.bytes, share * cost.flops
        found, after = estimate(counted, moves, flops, rates), after_wait(counted, flops, rates)
        known, before = moves if certain or i > 0 else 0.0, rates.us(counted.chain_before)
        made.append(Step(name, found, moves, known, before, after, held(counted), held(counted, 1)))
    return made


def serial_us(steps: Sequence[Step]) -> float:
    """Launches that run one after the other."""
    return sum(step.estimate.us + GAP_US for step in steps)


def dependent_us(
    steps: Sequence[Step], rates: Rates = REFERENCE, ahead: float = float("inf"), gap: float = GAP_US
) -> float:
    """Launches of which the next is resident while one runs, and requests its certain bytes, up to `ahead` of them.

    A launch becomes resident once the one before has passed its own wait: two are resident at a time. Where the
    fullest multiprocessor has no room for a program of it, it becomes resident when that one has ended. Memory serves
    requests in their order. Released, a launch reads the rest from memory, and does all that comes after its wait.
    """
    speed = (rates.roofline.gb_per_s or 1) * 1e3  # bytes a microsecond
    served = released = ended = 0.0
    running = None
    for step in steps:
        resident = (released if running is None or step.fits_beside(running) else ended) + gap
        early = min(step.certain, ahead)
        served = max(served, resident) + early / speed
        released = max(ended + gap, resident + step.before)
        fetched = served
        if step.bytes > early:
            served = max(served, released) + (step.bytes - early) / speed
            fetched = served + FILL_US
        ended, running = max(released + step.after.work, fetched) + DRAIN_US, step
    return ended


def crowded(steps: Sequence[Step]) -> list[str]:
    """Launches that have no room beside the launch before, and do not overlap with it, each pair once."""
    pairs = [(before, step) for before, step in pairwise(steps) if not step.fits_beside(before)]
    return list(dict.fromkeys(f"{step.name} after {before.name}" for before, step in pairs))


MOST_TOKENS = 64  # of a launch that bounds are of
LEAST_SHARE = 0.5  # of the floor in a launch of a prompt or a clip; below it the catalogue has a reason


@dataclass(frozen=True)
class Bounds:
    """Bounds on the counts of decode launches; None: none.

    held: by name of a bound, the most tokens of a launch that fails the gate where it does not keep it. Others that do
    not are printed.
    """

    shared: Mapping[int, float] = field(default_factory=dict)  # by the most tokens: share of shared memory in the floor
    shared_dense: Mapping[int, float] | None = None  # in place of `shared`, in dense layers
    issue: float | None = None  # share of the instructions in the floor
    shared_us: float | None = None  # shared memory, at one token
    under_way: int | None = None  # least bytes of cp.async a multiprocessor
    live: int | None = None  # least programs
    round_trips: int | None = None
    conflict: float = 2.0
    exposed: int = 0
    held: Mapping[str, int] = field(default_factory=dict)

    def over(self, counted: Counted, found: Estimate, tokens: int, is_dense: bool = False) -> dict[str, str]:
        """The bounds that a launch for so many tokens on the reference GPU does not keep, by name, in words."""
        shares, shared = (
            (self.shared_dense, "shared_dense") if is_dense and self.shared_dense else (self.shared, "shared")
        )
        share = next((share for most, share in sorted(shares.items()) if tokens <= most), None)
        over = {}
        for name, what, value, most in (
            (shared, "shared memory takes", found.shared, share),
            ("issue", "instructions take", found.issue, self.issue),
        ):
            if most is not None and value > most * found.floor:
                over[name] = f"{what} {value / max(found.floor, 1e-9):.2f} of the floor, at most {most:g}"
        if self.shared_us is not None and tokens == 1 and found.shared > self.shared_us:
            over["shared_us"] = f"shared memory takes {found.shared:.1f} us, at most {self.shared_us:g}"
        for name, what in (("under_way", "bytes under way a multiprocessor"), ("live", "programs")):
            least, value = getattr(self, name), getattr(counted, name)
            if least is not None and value < least:
                over[name] = f"{value} {what}, at least {least}"
        if self.round_trips is not None and counted.round_trips > self.round_trips:
            over["round_trips"] = f"{counted.round_trips} dependent round trips, at most {self.round_trips}"
        return over | self.over_on_any_target(counted.conflict, counted.exposed)

    def over_on_any_target(self, conflict: float, exposed: int) -> dict[str, str]:
        """Likewise, of what does not depend on the GPU."""
        over = {}
        if conflict > self.conflict:
            over["conflict"] = f"{conflict:g} wavefronts for one, at most {self.conflict:g}"
        if exposed > self.exposed:
            over["exposed"] = f"{exposed} loads in loops that wait where they are issued, at most {self.exposed}"
        return over
