"""Every kernel beside the other ways to compute the same, verified on the very inputs, as a host calls them.

On a GPU at the 8B model's shapes; `zonos2-triton bench` times the same with caches cold and launches from a CUDA graph.
On a CPU it is a smoke test in Triton's interpreter at small shapes, which says nothing about speed.
"""

from functools import partial

import pytest
import torch

from zonos2_triton.bench.baselines.providers import providers_of
from zonos2_triton.bench.catalogue import KERNELS
from zonos2_triton.bench.proof.verify import Case, verify
from zonos2_triton.bench.suite.presets import FULL, SMOKE
from zonos2_triton.bench.suite.recorder import lacking
from zonos2_triton.reference.numeric import exact_numerics

GPU = torch.cuda.is_available()
PRESET, DEVICE, DTYPE = (FULL, "cuda", torch.bfloat16) if GPU else (SMOKE, "cpu", torch.float32)
CASES = [
    pytest.param(kernel, workload, other, id=f"{kernel.name}-{workload.name}-{other.name if other else 'triton'}")
    for kernel in KERNELS.values()
    for other in (None, *providers_of(kernel))
    for workload in PRESET.timed(kernel)
]


@pytest.mark.parametrize(("kernel", "workload", "other"), CASES)
def bench_kernel(benchmark, kernel, workload, other):
    inputs = kernel.make_inputs(DEVICE, DTYPE, **workload.sizes)
    with torch.inference_mode(), exact_numerics():
        if other is None:
            verify(kernel, workload, DEVICE, DTYPE)
            call = partial(kernel.op, **inputs)
        elif why := other.missing(kernel, workload, DTYPE, DEVICE):
            pytest.skip(f"{other.name}: {why}")
        else:
            try:
                other.verify(Case(kernel, workload, DEVICE, DTYPE))
            except RuntimeError as error:
                if not lacking(error):
                    raise
                pytest.skip(f"{other.name}: {error}")
            call = other.prepare(kernel, inputs)

        def run():
            call()
            if GPU:
                torch.cuda.synchronize()

        benchmark.group = f"{kernel.name} {workload.name} {DTYPE}"
        benchmark.pedantic(run, rounds=20 if GPU else 1, warmup_rounds=5 if GPU else 1)
    torch.compiler.reset()
