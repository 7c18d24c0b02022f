"""Liger's place beside the kernels: layouts and roundings, with a stand-in of its signatures."""

import sys
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F

from zonos2_triton.bench.baselines.providers import ALL
from zonos2_triton.bench.catalogue import KERNELS
from zonos2_triton.bench.proof.verify import Case

MINE = next(one for one in ALL if one.name == "liger")


def cases(real):
    return [
        pytest.param(KERNELS[name], workload, id=f"{name}-{workload.name}")
        for name in MINE.prepares
        for workload in KERNELS[name].workloads
        if workload.real == real and MINE.fits(KERNELS[name], workload) is None
    ]


class LigerRMSNormFunction:
    @staticmethod
    def apply(X, W, eps, offset=0.0, casting_mode="llama", in_place=True, row_mode=None):
        assert casting_mode == "gemma"  # all in fp32, rounded once
        assert offset == 0.0
        wide = X.float()
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * W.float()).to(X.dtype)


class LigerFusedAddRMSNormFunction:
    @staticmethod
    def apply(X, R, W, eps, offset=0.0, casting_mode="llama", in_place=False):
        total = X + R  # rounded before the norm
        return LigerRMSNormFunction.apply(total, W, eps, offset, casting_mode), total


class LigerSiLUMulFunction:
    @staticmethod
    def apply(a, b, gate_multiplier=1.0, down_multiplier=1.0):
        return F.silu(a.float()).to(b.dtype) * b


class LigerLlama4RopeFunction:
    @staticmethod
    def apply(q, k, freqs_cis, BLOCK_SIZE=None):
        """In place where q and k are contiguous: q [B, T, H, DH], freqs_cis [T, DH / 2, 2], of neighbouring pairs."""
        assert q.is_contiguous()
        assert k.is_contiguous()
        assert k.shape[2] >= 1
        assert freqs_cis.shape == (q.shape[1], q.shape[3] // 2, 2)
        for rows in (q, k):
            pairs = torch.view_as_complex(rows.float().unflatten(-1, (-1, 2)))
            turned = pairs * torch.view_as_complex(freqs_cis)[None, :, None]
            rows.copy_(torch.view_as_real(turned).flatten(-2))
        return q, k


FUNCTIONS = {
    "rms_norm": LigerRMSNormFunction,
    "fused_add_rms_norm": LigerFusedAddRMSNormFunction,
    "swiglu": LigerSiLUMulFunction,
    "llama4_rope": LigerLlama4RopeFunction,
}


@pytest.fixture
def package(monkeypatch):
    for name in ("liger_kernel", "liger_kernel.ops"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    for stem, function in FUNCTIONS.items():
        module = ModuleType(f"liger_kernel.ops.{stem}")
        setattr(module, function.__name__, function)
        monkeypatch.setitem(sys.modules, module.__name__, module)


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize("dtype", MINE.dtypes, ids=str)
@pytest.mark.parametrize(("kernel", "workload"), cases(real=False))
def test_matches_the_reference(kernel, workload, dtype):
    MINE.verify(Case(kernel, workload, "cpu", dtype))


@pytest.mark.usefixtures("package")
def test_what_works_in_place_leaves_the_inputs_alone():
    kernel = KERNELS["rotary"]
    inputs = kernel.make("cpu", torch.bfloat16, **kernel.workloads[0].sizes)
    before = inputs["x"].clone()
    MINE.prepare(kernel, inputs)()
    assert torch.equal(inputs["x"], before)


def test_the_mixture_is_not_its():
    experts = KERNELS["experts"]
    routed = [w for w in experts.workloads if w.sizes.get("routed", True)]
    assert len(routed) == len([w for w in experts.workloads if "made for training" in (MINE.fits(experts, w) or "")])


@pytest.mark.gpu
@pytest.mark.needs("liger_kernel")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("kernel", "workload"), [*cases(real=False), *cases(real=True)])
def test_the_package_itself(kernel, workload, dtype):
    MINE.verify(Case(kernel, workload, "cuda", dtype))
