"""The kernels on a GPU, compiled: exactness on small workloads, and a captured step."""

import pytest
import torch

from zonos2_triton.bench.catalogue import KERNELS
from zonos2_triton.bench.proof.verify import verify
from zonos2_triton.bench.suite.device_checks import graph_capture, layer_chain

pytestmark = pytest.mark.gpu

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SMALL = [(kernel, each) for kernel in KERNELS.values() for each in kernel.workloads if not each.real]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("kernel", "workload"), SMALL, ids=lambda each: each.name)
def test_is_as_exact_as_pytorch(kernel, workload, dtype):
    verify(kernel, workload, "cuda", dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_captured_step_is_the_eager_one(dtype):
    graph_capture(layer_chain(small=True), "cuda", dtype)
