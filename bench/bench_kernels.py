"""Every kernel of the catalogue beside its reference in plain PyTorch.

On a GPU at the 8B model's shapes; on a CPU a smoke test in Triton's interpreter at small ones, once, which says nothing
about speed. Nothing is timed before it was verified on the very inputs. `make gpu` measures the device itself; this is
the whole call.
"""

import os

import pytest
import torch

if not torch.cuda.is_available():  # settled when Triton is imported: kernels are interpreted
    os.environ.setdefault("TRITON_INTERPRET", "1")

from zonos2_triton.bench.catalogue import KERNELS
from zonos2_triton.bench.verify import verify

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
DTYPE = torch.bfloat16 if GPU else torch.float32
CASES = [
    pytest.param(kernel, workload, id=f"{kernel.name}-{workload.name}")
    for kernel in KERNELS.values()
    for workload in kernel.workloads
    if workload.real == GPU and (GPU or workload.name == "tiny")
]


@pytest.mark.parametrize("implementation", ["triton", "reference"])
@pytest.mark.parametrize(("kernel", "workload"), CASES)
def bench_kernel(benchmark, kernel, workload, implementation):
    verify(kernel, workload, DEVICE, DTYPE)
    arguments = kernel.make(DEVICE, DTYPE, **workload.sizes)
    call = kernel.op if implementation == "triton" else kernel.reference

    def run():
        call(**arguments)
        if GPU:
            torch.cuda.synchronize()

    benchmark.group = f"{kernel.name} {workload.name} {DTYPE}"
    with torch.inference_mode():
        benchmark.pedantic(run, rounds=50 if GPU else 1, warmup_rounds=5 if GPU else 0)
    machine = torch.cuda.get_device_name() if GPU else "CPU: no figure of speed"
    benchmark.extra_info |= {"machine": machine, "torch": torch.__version__}
    if GPU:
        cost, seconds = kernel.cost_of(workload, DTYPE.itemsize), benchmark.stats["median"]
        benchmark.extra_info |= {"GB/s": cost.bytes / seconds / 1e9, "TFLOP/s": cost.flops / seconds / 1e12}
