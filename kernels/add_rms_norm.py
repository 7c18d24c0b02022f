"""Residual add and RMS norm: s = x + residual; h[m, d] = weight[d] * s[m, d] / sqrt(mean_d(s[m, d]^2) + eps).

Shapes     x, residual, s, h [M, D]; weight [D]. M rows, D their width. A residual of None adds nothing, a weight of
           None multiplies by nothing.
Dtypes     one of fp32, fp16, bf16; fp32 inside, the norm taken of the sum before it is rounded; s and h rounded once.
Raises     ValueError, TypeError naming operation, argument, what came and what is accepted.
Reference  zonos2_triton.reference.norm.add_rms_norm
Source     Zhang & Sennrich 2019, arXiv:1910.07467.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from zonos2_triton.kernels._args import Arg, check, check_rows
from zonos2_triton.kernels._launch_config import launch_config
from zonos2_triton.kernels._math import round_to
from zonos2_triton.kernels._operator import Cost, cpu_fallback, fake, runs_kernel


@triton.jit
def _add_rms_norm_kernel(
    x_ptr, residual_ptr, weight_ptr, s_ptr, h_ptr, D, eps,
    ADD: tl.constexpr, SCALE: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Grid (M,): a program owns a row."""
    row = tl.program_id(0).to(tl.int64) * D
    offs = tl.arange(0, BLOCK_D)
    mask = offs < D
    s = tl.load(x_ptr + row + offs, mask=mask, other=0.0).to(tl.float32)  # [BLOCK_D]
    if ADD:
        s += tl.load(residual_ptr + row + offs, mask=mask, other=0.0).to(tl.float32)
        tl.store(s_ptr + row + offs, round_to(s, s_ptr.dtype.element_ty), mask=mask)
    h = s * tl.rsqrt(tl.sum(s * s, axis=0) / D + eps)
    if SCALE:
        h = h * tl.load(weight_ptr + offs, mask=mask, other=0.0).to(tl.float32)
    tl.store(h_ptr + row + offs, round_to(h, h_ptr.dtype.element_ty), mask=mask)


@torch.library.custom_op("zonos2_triton::add_rms_norm", mutates_args=())
def add_rms_norm(x: Tensor, residual: Tensor | None, weight: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    sizes = check("add_rms_norm", x=Arg(x, "M D"), residual=Arg(residual, "M D"), weight=Arg(weight, "D"))
    check_rows("add_rms_norm", x.dtype, D=sizes["D"])
    if not runs_kernel(x):
        return cpu_fallback("add_rms_norm", x, residual, weight, eps)
    s, h = torch.empty_like(x), torch.empty_like(x)
    if residual is None:
        s.copy_(x)
    launch_norm(x, residual, weight, s, h, eps)
    return s, h


@fake(add_rms_norm)
def _(x: Tensor, residual: Tensor | None, weight: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(x)


def launch_norm(
    x: Tensor, residual: Tensor | None, weight: Tensor | None, s: Tensor, h: Tensor, eps: float
) -> None:  # fmt: skip
    """The launch alone: also the first one of the projections in prefill, which then have no norm of their own."""
    M, D = x.shape
    _add_rms_norm_kernel[(M,)](
        x, x if residual is None else residual, x if weight is None else weight, s, h, D, eps,
        ADD=residual is not None, SCALE=weight is not None, BLOCK_D=triton.next_power_of_2(D),
        **launch_config("add_rms_norm", "row", x.dtype),
    )  # fmt: skip


def normed(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """rms_norm(x) by one launch."""
    h = torch.empty_like(x)
    launch_norm(x, None, weight, h, h, eps)
    return h


def cost(M: int, D: int, itemsize: int) -> Cost:
    """With a residual and a weight."""
    return Cost(bytes=(4 * M * D + D) * itemsize, flops=5 * M * D)
