"""How long a call takes on a device: caches cold where a model's would be, launches replayed from a graph, medians.

A sample is one replay of a graph that calls an operation on several sets of inputs, one after the other, between two
events. A large write goes before each sample: it clears the L2 cache, and while it runs the host queues the rest.
"""

import inspect
import math
import statistics
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from typing import Any

import torch
from torch import Tensor

from zonos2_triton.bench.specs.roofline import UNKNOWN, Roofline
from zonos2_triton.bench.specs.spec import Kernel, Workload

MOST_HELD = 2 << 30  # bytes of all sets of inputs together
MOST_COPIES = 256
OWN_VALUES = 4  # sets of inputs that are no copies
SMALL = 1 << 19  # bytes: what a decode step's own activations come to; the launch before leaves those in L2
ENOUGH_CALLS, ENOUGH_MS = 20, 1.0  # in a sample: either makes the events' resolution no matter
LEAST_SAMPLES, MOST_SAMPLES = 20, 200

Call = Callable[[], object]


@dataclass(frozen=True)
class Device:
    """As much of a device as measuring asks for; tests have one of their own."""

    name: str  # of torch
    l2: int  # bytes of its last cache
    clear: Call  # queues a write that fills the cache
    elapsed: Callable[[Call], float]  # milliseconds on the device from the call's first work to its last
    capture: Callable[[Call], Call] | None  # what replays the call's launches; None: it runs as it is
    samples: tuple[int, int] = LEAST_SAMPLES, MOST_SAMPLES
    warm: int = 3  # calls before the first that counts


def rotation(touched: int, held: int, l2: int) -> tuple[int, str]:
    """How many sets of inputs take turns; and: rotated: they exceed the cache; flushed: it is cleared before each call;
    warm: they are small and stay in it.

    touched: bytes that a call reads and writes; held: bytes that its inputs take, unused parts included.
    """
    copies = max(1, min(-(-2 * l2 // touched), MOST_HELD // held, MOST_COPIES))
    if copies * touched >= 2 * l2:
        return copies, "rotated"
    return 1, "warm" if touched < SMALL else "flushed"


def cuda_graph(run: Call) -> Call:
    """A replay of the call's launches."""
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def cuda_device() -> Device:
    """The current GPU."""
    properties: Any = torch.cuda.get_device_properties(torch.cuda.current_device())
    l2 = int(getattr(properties, "L2_cache_size", 0)) or 64 << 20  # older versions of torch do not tell
    # Long enough, too, for the host to queue a replay behind it.
    filler = torch.empty(max(2 * l2, 256 << 20), dtype=torch.int8, device="cuda")

    def elapsed(run: Call) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end))

    return Device("cuda", l2, filler.zero_, elapsed, cuda_graph)


def cpu_device() -> Device:
    """The host, for smoke runs: by its clock, with few samples, and caches as they are."""

    def elapsed(run: Call) -> float:
        started = time.perf_counter()
        run()
        return (time.perf_counter() - started) * 1e3

    return Device("cpu", 1, lambda: None, elapsed, None, samples=(1, 1), warm=1)


def measure(
    calls: Sequence[Call], device: Device, seconds: float, cache: str = "rotated", graph: bool = True,
    least: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Microseconds of one of `calls`, which take turns; about `seconds` of samples, at least `least` of them."""
    # Compiles, loads, and leaves no first time to measure.
    for call in islice(cycle(calls), max(device.warm, len(calls))):
        call()
    once = max(device.elapsed(calls[0]), 1e-3)
    per_sample = 1 if cache == "flushed" else max(len(calls), min(ENOUGH_CALLS, math.ceil(ENOUGH_MS / once)))

    def run() -> None:
        for call in islice(cycle(calls), per_sample):
            call()

    launch, trouble = "eager", ""
    sample: Call = run
    if graph and device.capture is not None:
        try:
            sample, launch = device.capture(run), "graph"
        except RuntimeError as error:
            trouble = str(error).splitlines()[0]

    def timed() -> float:
        device.clear()
        return device.elapsed(sample) * 1e3 / per_sample

    if launch == "graph":
        timed()  # the first replay loads it
    first = timed()
    wanted = int(seconds * 1e6 / max(first * per_sample, 1e-3))
    fewest, most = device.samples
    samples = [timed() for _ in range(min(max(wanted, fewest if least is None else least), most))]
    low, middle, high = quantiles(samples)
    result = {
        "median_us": middle, "p20_us": low, "p80_us": high, "samples_us": [round(s, 3) for s in samples],
        "calls_per_sample": per_sample, "launch": launch, "cache": cache,
    }  # fmt: skip
    return result | ({"not_captured": trouble} if trouble else {})


def peak(device: Device, call: Call) -> int | None:
    """Bytes that a call takes beyond what was held before it; None: the device does not tell."""
    if device.name != "cuda":
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def quantiles(samples: Sequence[float]) -> tuple[float, float, float]:
    """20 %, 50 % and 80 %."""
    if len(samples) == 1:
        return (samples[0],) * 3
    cuts = statistics.quantiles(samples, n=10, method="inclusive")
    return cuts[1], cuts[4], cuts[7]


def input_sets(
    kernel: Kernel, workload: Workload, device: Device, dtype: torch.dtype = torch.bfloat16
) -> tuple[list[dict[str, Any]], str]:
    """Inputs of the same sizes that take turns, as many as `rotation` asks for, and what it says of the cache.

    The first few have values of their own: other experts, say. The rest are copies.
    """
    made = kernel.make_inputs(device.name, dtype, **workload.sizes)
    storages = [t.untyped_storage() for t in made.values() if isinstance(t, Tensor)]
    held = sum({s.data_ptr(): s.nbytes() for s in storages}.values())  # gate and up are views of one
    copies, cache = rotation(kernel.cost_of(workload, dtype.itemsize).bytes, held, device.l2)
    sets = [kernel.make_inputs(device.name, dtype, seed=n, **workload.sizes) for n in range(1, min(copies, OWN_VALUES))]
    return [made, *sets, *(deepcopy(made) for _ in range(OWN_VALUES, copies))], cache


def time_kernel(
    kernel: Kernel, workload: Workload, device: Device, dtype: torch.dtype = torch.bfloat16, seconds: float = 0.3,
    roofline: Roofline = UNKNOWN, datasheet: Roofline = UNKNOWN,
) -> dict[str, Any]:  # fmt: skip
    """Time, rates, and shares of the rooflines: `roofline` measured on this GPU, `datasheet` promised for it."""
    op: Callable[..., Any] = kernel.op
    if "counters" in inspect.signature(kernel.op._init_fn).parameters:  # the model keeps some: making them is a launch
        op = partial(op, counters=torch.zeros(4096, dtype=torch.int32, device=device.name))
    sets, cache = input_sets(kernel, workload, device, dtype)
    with torch.inference_mode():
        timing = measure([partial(op, **inputs) for inputs in sets], device, seconds, cache)
    cost = kernel.cost_of(workload, dtype.itemsize)
    return timing | {"copies": len(sets)} | rates(cost.bytes, cost.flops, timing["median_us"], roofline, datasheet)


def rates(
    moved: float, flops: float, microseconds: float, roofline: Roofline = UNKNOWN, datasheet: Roofline = UNKNOWN
) -> dict[str, Any]:
    """moved and flops are the least that the call needs. A share of what is not known is None."""
    gbps, tflops = moved / microseconds / 1e3, flops / microseconds / 1e6
    floor = roofline.floor_us(moved, flops)
    return {
        "bytes": moved, "flops": flops, "gb_per_s": round(gbps, 2), "tflop_per_s": round(tflops, 3),
        "pct_measured_bandwidth": percent(gbps, roofline.gb_per_s),
        "pct_measured_tflops": percent(tflops, roofline.tflop_per_s),
        "floor_us": floor and round(floor, 3), "pct_floor": floor and percent(floor, microseconds),
        "pct_datasheet": percent(datasheet.floor_us(moved, flops) or 0, microseconds) or None,
    }  # fmt: skip


def percent(part: float, whole: float | None) -> float | None:
    """None: the whole is not known."""
    return round(100 * part / whole, 1) if whole else None


def ratio(part: float, whole: float) -> float:
    """Four digits of it: even where one of them is interpreted it is not 0, which a result may not be."""
    return float(f"{part / whole:.4g}")


def copy_bandwidth(device: Device, size: int = 1 << 30, seconds: float = 0.5) -> dict[str, Any]:
    """Bandwidth of a large copy within the device; reads and writes count."""
    # Not zeros: memory and links may spend less on them.
    source = torch.randint(-128, 127, (size,), dtype=torch.int8, device=device.name)
    timing = measure([partial(torch.empty_like(source).copy_, source)], device, seconds, "flushed")
    return timing | {"bytes": 2 * size, "gb_per_s": round(2 * size / timing["median_us"] / 1e3, 1)}


def matmul_rate(device: Device, n: int = 8192, seconds: float = 0.5) -> dict[str, Any]:
    """FLOP rate of a large product in bfloat16, by the library that torch calls."""
    a, b = (torch.randn(n, n, device=device.name).bfloat16() for _ in range(2))
    out = torch.empty_like(a)
    timing = measure([partial(torch.matmul, a, b, out=out)], device, seconds, "flushed")
    return timing | {"flops": 2 * n**3, "tflop_per_s": round(2 * n**3 / timing["median_us"] / 1e6, 2)}


def first_line(error: Exception) -> str:
    """An error as a result file has it."""
    return f"{type(error).__name__}: {error}".strip().splitlines()[0][:300]
