"""How long a call takes on a device: caches cold where a model's would be, launches replayed from a graph, medians.

A sample is one replay of a graph that calls an operation on several sets of inputs, one after the other, between two
events. A large write goes before each sample: it clears the L2 cache, and while it runs the host queues the rest.
"""

import inspect
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from typing import Any

import torch
from torch import Tensor

from zonos2_triton.bench.catalogue import Kernel, Workload
from zonos2_triton.reference.numeric import exact_numerics

MOST_HELD = 2 << 30  # bytes of all sets of inputs together
MOST_COPIES = 256
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


@dataclass(frozen=True)
class Rotation:
    """How the inputs of a call are kept out of the cache, or why they are not."""

    copies: int  # sets of inputs that take turns
    cache: str  # rotated: they exceed it; flushed: it is cleared before each call; warm: they are small and stay in it


def rotation(touched: int, held: int, l2: int) -> Rotation:
    """touched: bytes that a call reads and writes; held: bytes that its inputs take, unused parts included."""
    copies = max(1, min(-(-2 * l2 // touched), MOST_HELD // held, MOST_COPIES))
    if copies * touched >= 2 * l2:
        return Rotation(copies, "rotated")
    if touched < SMALL:
        return Rotation(1, "warm")
    return Rotation(1, "flushed")


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

    def capture(run: Call) -> Call:
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            run()
        return graph.replay

    return Device("cuda", l2, filler.zero_, elapsed, capture)


def measure(
    calls: Sequence[Call], device: Device, seconds: float, cache: str = "rotated", graph: bool = True,
    least: int = LEAST_SAMPLES,
) -> dict[str, Any]:  # fmt: skip
    """Microseconds of one of `calls`, which take turns; about `seconds` of samples, at least `least` of them."""
    for call in islice(cycle(calls), max(3, len(calls))):  # compiles, loads, and leaves no first time to measure
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

    timed()
    first = timed()
    wanted = int(seconds * 1e6 / max(first * per_sample, 1e-3))
    samples = [timed() for _ in range(min(max(wanted, least), MOST_SAMPLES))]
    low, middle, high = quantiles(samples)
    result = {
        "median_us": middle, "low_us": low, "high_us": high, "samples_us": [round(s, 3) for s in samples],
        "calls_per_sample": per_sample, "launch": launch, "cache": cache,
    }  # fmt: skip
    return result | ({"not_captured": trouble} if trouble else {})


def quantiles(samples: Sequence[float]) -> tuple[float, float, float]:
    """20 %, 50 % and 80 %."""
    if len(samples) == 1:
        return (samples[0],) * 3
    cuts = statistics.quantiles(samples, n=10, method="inclusive")
    return cuts[1], cuts[4], cuts[7]


def time_kernel(
    kernel: Kernel, workload: Workload, device: Device, dtype: torch.dtype = torch.bfloat16, seconds: float = 0.3,
    bandwidth: float | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Time, rates and, of the copy bandwidth measured on this card (GB/s), the share."""
    cost = kernel.cost_of(workload, dtype.itemsize)
    op: Callable[..., Any] = kernel.op
    if "counters" in inspect.signature(kernel.op._init_fn).parameters:  # the model keeps some: making them is a launch
        op = partial(op, counters=torch.zeros(4096, dtype=torch.int32, device=device.name))
    made = kernel.make(device.name, dtype, **workload.sizes)
    held = sum(t.untyped_storage().nbytes() for t in _own_storage(made))
    turns = rotation(cost.bytes, held, device.l2)
    sets = [made, *(_another(kernel, workload, made, device.name, dtype, n) for n in range(1, turns.copies))]
    with torch.inference_mode():
        timing = measure([partial(op, **inputs) for inputs in sets], device, seconds, turns.cache)
    return timing | {"copies": turns.copies} | rates(cost.bytes, cost.flops, timing["median_us"], bandwidth)


def time_reference(
    kernel: Kernel, workload: Workload, device: Device, dtype: torch.dtype = torch.bfloat16, seconds: float = 0.5
) -> dict[str, Any]:
    """The same call in plain PyTorch, launched by the host as PyTorch does: for scale beside the kernel's time."""
    inputs = kernel.make(device.name, dtype, **workload.sizes)
    with torch.inference_mode(), exact_numerics():
        return measure([partial(kernel.reference, **inputs)], device, seconds, "flushed", graph=False, least=5)


def rates(moved: int, flops: int, microseconds: float, bandwidth: float | None) -> dict[str, Any]:
    """moved and flops are the least that the call needs."""
    gbps = moved / microseconds / 1e3
    share = None if bandwidth is None else round(100 * gbps / bandwidth, 1)
    return {"gb_per_s": round(gbps, 2), "tflop_per_s": round(flops / microseconds / 1e6, 3), "percent_of_copy": share}


def copy_bandwidth(device: Device, size: int = 1 << 30, seconds: float = 0.5) -> dict[str, Any]:
    """Of a large copy within the device, reads and writes counted."""
    # Not zeros: memory and links may spend less on them.
    source = torch.randint(-128, 127, (size,), dtype=torch.int8, device=device.name)
    target = torch.empty_like(source)
    timing = measure([partial(target.copy_, source)], device, seconds, "flushed")
    return timing | {"bytes": 2 * size, "gb_per_s": round(2 * size / timing["median_us"] / 1e3, 1)}


def matmul_rate(device: Device, n: int = 8192, seconds: float = 0.5) -> dict[str, Any]:
    """Of a large product in bfloat16 by the library that torch calls."""
    a, b = (torch.randn(n, n, device=device.name).bfloat16() for _ in range(2))
    out = torch.empty_like(a)
    timing = measure([partial(torch.matmul, a, b, out=out)], device, seconds, "flushed")
    return timing | {"flops": 2 * n**3, "tflop_per_s": round(2 * n**3 / timing["median_us"] / 1e6, 2)}


def _own_storage(inputs: dict[str, Any]) -> list[Tensor]:
    """One tensor per storage: gate and up are views of one."""
    tensors = [value for value in inputs.values() if isinstance(value, Tensor)]
    return list({t.untyped_storage().data_ptr(): t for t in tensors}.values())


def _another(
    kernel: Kernel, workload: Workload, made: dict[str, Any], device: str, dtype: torch.dtype, number: int
) -> dict[str, Any]:
    """Inputs of the same sizes in memory of their own. The first few have values of their own: other experts, say."""
    if number < 4:
        return kernel.make(device, dtype, seed=number, **workload.sizes)
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().clone() for t in _own_storage(made)}
    return {
        name: _moved(value, storages[value.untyped_storage().data_ptr()]) if isinstance(value, Tensor) else value
        for name, value in made.items()
    }


def _moved(tensor: Tensor, storage: Any) -> Tensor:
    """The tensor's place in a copy of its storage."""
    empty = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return empty.set_(storage, tensor.storage_offset(), tensor.shape, tensor.stride())
