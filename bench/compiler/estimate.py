"""Estimated times, made from counts of the compiled code: of a launch, and of a frame. No GPU takes part.

The formula, in microseconds:

    floor    least bytes / copy bandwidth, or FLOPs / matrix rate: the slower of the two
    shared   shared-memory wavefronts of the fullest multiprocessor, one a clock
    issue    warp instructions of the fullest multiprocessor, four a clock
    chain    the longest program by itself: its dependent round trips to memory, and the longest of its wavefronts, its
             longest warp's instructions, and its products in order with its barriers; once per round of programs
    launch = START + max(ROUND_TRIP + max(floor, shared, issue), chain)
    frame  = sum of launch + GAP, for launches that run one after the other; `dependent_us` for those that overlap

Programs are dealt to the multiprocessors in turn; programs that return at once are left out. An estimate ranks kernels
and shows what limits one. It is no measurement: constants that are marked "assumed" await one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from zonos2_triton.bench.specs.gpus import Gpu, find_gpu
from zonos2_triton.bench.specs.roofline import Roofline

GPU = "h200"  # that estimates are of where none is named
COPY_SHARE = 4.3 / 4.8  # of the data sheet's bandwidth: copies on an H200, measured
CLOCK_SHARE = 0.96  # of the boost clock: 1.9 GHz on an H200, assumed
L2_GB_PER_S = 5500  # reads that hit an H200's L2 cache, assumed; by others, of an H100 PCIe: 5.5 to 5.7 TB/s
SCHEDULERS = 4  # warp instructions that a multiprocessor issues in a clock: white papers since Volta
CLOCKS_PER_INSTRUCTION = 2  # of one warp by itself, assumed
MMA_CLOCKS = 33  # until a product can add to the sum of the one before: Luo et al. 2024, arXiv:2402.13499
BARRIER_CLOCKS = 30  # with the wait for what it orders, assumed
ROUND_TRIP_US = 0.6  # of a load that depends on another one, between 0.3 in the L2 cache and 0.9 under load; assumed
START_US = 0.9  # from the end of a launch's gap to its first load, and from its last store to its end; assumed
GAP_US = 1.1  # between launches of a CUDA graph, assumed
# A dependent launch is charged the same gap, from the end of a launch to the first load after the wait of the next: all
# that it gains is overlap. So Llama-1B at one token takes 768 us in 100 launches; an H200 takes 794.7, with a graph and
# dependent launches (msaroufim/megakernels-vs-cuda-graphs).
DRAIN_US = 0.4  # the end of a launch's START_US, which overlaps with nothing; assumed


class Rates(NamedTuple):
    """A GPU's rates, as launches of this project reach them."""

    multiprocessors: int
    clock_ghz: float
    roofline: Roofline

    def us(self, clocks: float) -> float:
        return clocks / self.clock_ghz / 1e3


def rates_of(gpu: Gpu) -> Rates:
    """From the data sheet. `COPY_SHARE` and `CLOCK_SHARE` are of an H200; other GPUs are taken to be alike."""
    roofline = Roofline(COPY_SHARE * gpu.gb_per_s, gpu.tflop_per_s)
    return Rates(gpu.multiprocessors, CLOCK_SHARE * gpu.clock_ghz, roofline)


REFERENCE = rates_of(find_gpu(GPU))


@dataclass(frozen=True)
class Load:
    """The counts of a launch that its time is estimated from. Arrays hold one number for each live program."""

    wavefronts: NDArray[np.float64]
    instructions: NDArray[np.float64]  # of all its warps
    round_trips: int  # the most of one program; the first load is one
    warp_instructions: float = 0  # the most of one warp
    products: float = 0  # matrix products in order, the most of one warp
    barriers: float = 0  # the most of one program
    resident: int = 32  # programs that fit into a multiprocessor


class Estimate(NamedTuple):
    """The parts of a launch's time, and the whole, in microseconds."""

    floor: float
    shared: float
    issue: float
    chain: float

    @property
    def us(self) -> float:
        return START_US + max(ROUND_TRIP_US + max(self.floor, self.shared, self.issue), self.chain)

    @property
    def limit(self) -> str:
        """The part that decides: "floor" (memory or matrix rate), "shared", "issue" or "chain"."""
        streamed = {name: getattr(self, name) + ROUND_TRIP_US for name in ("floor", "shared", "issue")}
        parts = streamed | {"chain": self.chain}
        return max(parts, key=lambda name: parts[name])


def estimate(load: Load, moved: float, flops: float, rates: Rates = REFERENCE) -> Estimate:
    """A launch that moves so many bytes at least."""
    n = max(1, len(load.wavefronts))
    in_order = max(
        load.wavefronts.max(initial=0),
        load.warp_instructions * CLOCKS_PER_INSTRUCTION,
        load.products * MMA_CLOCKS + load.barriers * BARRIER_CLOCKS,
    )
    rounds = -(-n // (rates.multiprocessors * max(1, load.resident)))
    return Estimate(
        rates.roofline.floor_us(moved, flops) or 0.0,
        rates.us(fullest(load.wavefronts, rates.multiprocessors)),
        rates.us(fullest(load.instructions, rates.multiprocessors) / SCHEDULERS),
        rounds * (load.round_trips * ROUND_TRIP_US + rates.us(in_order)),
    )


def fullest(of_programs: NDArray[np.float64], multiprocessors: int) -> float:
    """The largest sum of a multiprocessor, to which programs are dealt in turn."""
    padded = np.pad(of_programs, (0, -len(of_programs) % multiprocessors))
    return float(padded.reshape(-1, multiprocessors).sum(0).max(initial=0))


class Step(NamedTuple):
    """A launch of a frame."""

    name: str
    estimate: Estimate
    bytes: float
    certain: float  # bytes that do not depend on an earlier launch, such as weights that are always read


def serial_us(steps: Sequence[Step]) -> float:
    """Launches that run one after the other."""
    return sum(step.estimate.us + GAP_US for step in steps)


def dependent_us(steps: Sequence[Step], rates: Rates = REFERENCE, ahead: float = float("inf")) -> float:
    """Launches of which the next is resident while one runs, and requests its certain bytes, up to `ahead` of them.

    Memory serves requests in their order. A launch becomes resident once all programs of the one before have started;
    two are resident at a time. After its wait it reads what it has requested through the L2 cache, and the rest from
    memory; then come shared memory, instructions and its chain, as when it runs alone.
    """
    speed = (rates.roofline.gb_per_s or 1) * 1e3  # bytes a microsecond
    served = resident = ended = ended_before = 0.0
    for step in steps:
        resident = max(resident + GAP_US, ended_before)
        early = min(step.certain, ahead)
        released = max(ended + GAP_US, resident)
        served = max(served, resident) + early / speed
        fetched = served
        if step.bytes > early:
            served = max(served, released) + (step.bytes - early) / speed
            fetched = served + ROUND_TRIP_US
        e = step.estimate
        work = max(ROUND_TRIP_US + max(early / (L2_GB_PER_S * 1e3), e.shared, e.issue), e.chain)
        ended_before, ended = ended, max(released + work, fetched) + DRAIN_US
    return ended
