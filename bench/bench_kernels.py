"""Every kernel of the catalogue beside the other ways to compute the same (`baselines.providers`).

On a GPU at the 8B model's shapes, by `timer.measure`: caches cold, launches from a CUDA graph; extra_info has what
`make gpu` records of it. The benchmark's own figures there are of the whole call, launched by the host. On a CPU it is
a smoke test, one call after another, in Triton's interpreter at small shapes, which says nothing about speed.

Nothing is timed before it was verified on the very inputs. A kernel that fails fails its bench; of the others the
bench is skipped, with the reason.
"""

from functools import partial

import pytest
import torch

from zonos2_triton.bench.baselines.providers import beside, time_one
from zonos2_triton.bench.catalogue import KERNELS
from zonos2_triton.bench.proof.verify import verify
from zonos2_triton.bench.specs.roofline import UNKNOWN, Roof
from zonos2_triton.bench.suite.environment import environment
from zonos2_triton.bench.suite.presets import REAL, REHEARSAL
from zonos2_triton.bench.suite.recorder import NotRun
from zonos2_triton.bench.timing import timer
from zonos2_triton.reference.numeric import exact_numerics

GPU = torch.cuda.is_available()
SCALE, DEVICE, DTYPE = (REAL, "cuda", torch.bfloat16) if GPU else (REHEARSAL, "cpu", torch.float32)
SECONDS = 0.2  # of samples
CASES = [
    pytest.param(kernel, workload, other, id=f"{kernel.name}-{workload.name}-{other.name if other else 'triton'}")
    for kernel in KERNELS.values()
    for other in (None, *beside(kernel))
    for workload in SCALE.timed(kernel)
]


@pytest.fixture(scope="session")
def device():
    return timer.cuda_device() if GPU else timer.cpu_device()


@pytest.fixture(scope="session")
def roof(device):
    """This card's own, measured before anything else."""
    if not GPU:
        return UNKNOWN
    return Roof(timer.copy_bandwidth(device)["gb_per_s"], timer.matmul_rate(device)["tflop_per_s"])


@pytest.fixture(scope="session")
def machine():
    if not GPU:
        return {"machine": "CPU: no figure of speed", "torch": torch.__version__}
    found = environment(0)
    return {name: found.get(name) for name in ("card", "driver", "torch", "triton", "commit")}


@pytest.mark.parametrize(("kernel", "workload", "other"), CASES)
def bench_kernel(benchmark, kernel, workload, other, device, roof, machine):
    if other is None:
        verify(kernel, workload, DEVICE, DTYPE)
        found = timer.time_kernel(kernel, workload, device, DTYPE, SECONDS, roof) if GPU else {}
    else:
        try:
            found = time_one(other, kernel, workload, device, DTYPE, None, SECONDS)
        except NotRun as reason:
            pytest.skip(f"{other.name}: {reason}")
        cost = kernel.cost_of(workload, DTYPE.itemsize)
        found |= timer.rates(cost.bytes, cost.flops, found["median_us"], roof)
    benchmark.group = f"{kernel.name} {workload.name} {DTYPE}"
    benchmark.extra_info |= machine
    if GPU:
        benchmark.extra_info |= {name: value for name, value in found.items() if name != "samples_us"}
    inputs = kernel.make(DEVICE, DTYPE, **workload.sizes)
    with torch.inference_mode(), exact_numerics():
        call = other.prepare(kernel, inputs) if other else partial(kernel.op, **inputs)

        def run():
            call()
            if GPU:
                torch.cuda.synchronize()

        benchmark.pedantic(run, rounds=20 if GPU else 1, warmup_rounds=5 if GPU else 1)
    torch.compiler.reset()
