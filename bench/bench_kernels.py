"""Every kernel of the catalogue beside the other ways to compute the same (`beside.implementations`).

On a GPU at the 8B model's shapes, by `timing.measure`: caches cold, launches from a CUDA graph; extra_info has what
`make gpu` records of it. The benchmark's own figures there are of the whole call, launched by the host. On a CPU it is
a smoke test, once, in Triton's interpreter at small shapes, which says nothing about speed.

Nothing is timed before it was verified on the very inputs. A kernel that fails fails its bench; of the others the
bench is skipped, with the reason.
"""

from functools import partial

import pytest
import torch

from zonos2_triton.bench.baselines.providers import beside
from zonos2_triton.bench.catalogue import KERNELS
from zonos2_triton.bench.proof.verify import Case, Mismatch
from zonos2_triton.bench.specs.roofline import UNKNOWN, Roof
from zonos2_triton.bench.suite.environment import environment
from zonos2_triton.bench.timing import timer
from zonos2_triton.reference.numeric import exact_numerics

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
DTYPE = torch.bfloat16 if GPU else torch.float32
SECONDS = 0.2  # of samples
OURS = "triton"
KNOWN = ("card", "driver", "torch", "triton", "commit")


def timed(kernel):
    """Its workloads that a bench is for."""
    return [w for w in kernel.workloads if w.real == GPU and (GPU or w.name == "tiny")]


def cases():
    """One that is skipped for an implementation that has no workload of a kernel."""
    for kernel in KERNELS.values():
        for workload in timed(kernel):
            yield pytest.param(kernel, workload, None, id=f"{kernel.name}-{workload.name}-{OURS}")
        for other in beside(kernel):
            if why := other.missing(kernel, None, DTYPE, DEVICE):
                skipped = pytest.mark.skip(reason=f"{other.name}: {why}")
                yield pytest.param(kernel, None, other, id=f"{kernel.name}-{other.name}", marks=skipped)
                continue
            for workload in timed(kernel):
                yield pytest.param(kernel, workload, other, id=f"{kernel.name}-{workload.name}-{other.name}")


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
    return {name: found.get(name) for name in KNOWN}


@pytest.mark.parametrize(("kernel", "workload", "other"), list(cases()))
def bench_kernel(benchmark, kernel, workload, other, device, roof, machine):
    if other is not None and (why := other.missing(kernel, workload, DTYPE, DEVICE)):
        pytest.skip(f"{other.name}: {why}")
    with torch.inference_mode(), exact_numerics():
        case = Case(kernel, workload, DEVICE, DTYPE)
        if other is None:
            case.compare(case.run())
        else:
            differing(other, case)
        if GPU:
            benchmark.extra_info |= figures(kernel, workload, other, device, roof)
        inputs = kernel.make(DEVICE, DTYPE, **workload.sizes)
        call = other.prepare(kernel, inputs) if other else partial(kernel.op, **inputs)

        def run():
            call()
            if GPU:
                torch.cuda.synchronize()

        benchmark.group = f"{kernel.name} {workload.name} {DTYPE}"
        benchmark.extra_info |= machine
        benchmark.pedantic(run, rounds=20 if GPU else 1, warmup_rounds=5 if GPU else 0)
    torch.compiler.reset()


def figures(kernel, workload, other, device, roof):
    """Device time and rates, as `make gpu` records them."""
    if other is None:
        found = timer.time_kernel(kernel, workload, device, DTYPE, SECONDS, roof)
    else:
        cost = kernel.cost_of(workload, DTYPE.itemsize)
        found = other.time(kernel, *timer.input_sets(kernel, workload, device, DTYPE), device, SECONDS)
        found |= timer.rates(cost.bytes, cost.flops, found["median_us"], roof)
    return {name: value for name, value in found.items() if name != "samples_us"}


def differing(other, case):
    """Skips what is not as exact as it must be, or fails to run."""
    try:
        other.verify(case)
    except Mismatch as error:
        pytest.skip(f"{other.name} differs: {error}")
    except Exception as error:
        pytest.skip(f"{other.name}: {type(error).__name__}: {error}".splitlines()[0])
