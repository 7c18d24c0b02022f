"""Residual add and RMS norm: s = x + residual; h[m, d] = weight[d] * s[m, d] / sqrt(mean_d(s[m, d]^2) + eps).

Shapes     x, residual, s, h [M, D]; weight [D]. M tokens, D their width. A residual of None adds nothing, a weight of
           None multiplies by nothing.
Dtypes     one of fp32, fp16, bf16; fp32 inside, the norm taken of the sum before it is rounded; s and h rounded once.
Raises     ValueError, TypeError naming operation, argument, what came and what is accepted.
Reference  zonos2_triton.reference.add_rms_norm.add_rms_norm
Source     Zhang & Sennrich 2019, arXiv:1910.07467.
"""

from collections.abc import Iterator
from typing import Annotated

import torch
import triton
import triton.language as tl
from torch import Tensor

from zonos2_triton.kernels._args import check_rows
from zonos2_triton.kernels._dependent_launch import wait_for_previous_launch
from zonos2_triton.kernels._launch_config import launch_config
from zonos2_triton.kernels._math import round_to
from zonos2_triton.kernels._operator import Cost, operator


@triton.jit
def _add_rms_norm_kernel(
    x_ptr,  # [M, D]
    residual_ptr,  # [M, D], or None
    weight_ptr,  # [D], or None
    s_ptr,  # [M, D], or None without a residual
    h_ptr,  # [M, D]
    D,
    eps,
    BLOCK_D: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid (M,): a program owns a token."""
    wait_for_previous_launch(PDL)
    row = tl.program_id(0).to(tl.int64) * D
    offs = tl.arange(0, BLOCK_D)
    mask = offs < D
    s = tl.load(x_ptr + row + offs, mask=mask, other=0.0).to(tl.float32)  # [BLOCK_D]
    if residual_ptr is not None:
        s += tl.load(residual_ptr + row + offs, mask=mask, other=0.0).to(tl.float32)
        tl.store(s_ptr + row + offs, round_to(s, s_ptr.dtype.element_ty), mask=mask)
    h = s * tl.rsqrt(tl.sum(s * s, axis=0) / D + eps)
    if weight_ptr is not None:
        h = h * tl.load(weight_ptr + offs, mask=mask, other=0.0).to(tl.float32)
    tl.store(h_ptr + row + offs, round_to(h, h_ptr.dtype.element_ty), mask=mask)


@operator()
def add_rms_norm(
    x: Annotated[Tensor, "M D"],
    residual: Annotated[Tensor | None, "M D"],
    weight: Annotated[Tensor | None, "D"],
    eps: float,
) -> Iterator[tuple[Tensor, Tensor]]:
    M, D = x.shape
    check_rows("add_rms_norm", x.dtype, D=D)
    s, h = torch.empty_like(x), torch.empty_like(x)
    yield s, h
    if residual is None:
        s.copy_(x)
    _add_rms_norm_kernel[(M,)](
        x,
        residual,
        weight,
        None if residual is None else s,
        h,
        D=D,
        eps=eps,
        BLOCK_D=triton.next_power_of_2(D),
        **launch_config("add_rms_norm", "row", x.dtype),
    )


def cost(M: int, D: int, itemsize: int) -> Cost:
    """With a residual and a weight."""
    return Cost(bytes=(4 * M * D + D) * itemsize, flops=5 * M * D)
