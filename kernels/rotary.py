"""Interleaved rotary embedding: y[2i], y[2i + 1] = x[2i], x[2i + 1] rotated by the angle of its position and i.

Shapes     x, y [M, H, DH]; positions [M]; cos_sin_cache [P, 2, DH / 2], cosines and sines by position.
Dtypes     x, y one of fp32, fp16, bf16; positions int32; cos_sin_cache fp32; fp32 inside, y rounded once.
Raises     ValueError, TypeError naming operation, argument, what came and what is accepted; a position beyond
           cos_sin_cache where looking costs nothing (CPU tensors, TRITON_DEBUG=1).
Reference  zonos2_triton.reference.rotary.rotary
Source     Su et al. 2021, arXiv:2104.09864; the pairs are neighbours, as in the paper.
"""

from collections.abc import Iterator
from typing import Annotated

import torch
import triton
import triton.language as tl
from torch import Tensor

from zonos2_triton.kernels._args import check_range, check_rows
from zonos2_triton.kernels._dependent_launch import wait_for_previous_launch
from zonos2_triton.kernels._launch_config import launch_config
from zonos2_triton.kernels._math import apply_rotary, round_to
from zonos2_triton.kernels._operator import Cost, operator


@triton.jit
def _rotary_kernel(
    x_ptr,  # [M, H, DH]
    positions_ptr,  # [M] int32
    cos_sin_ptr,  # [P, 2, DH / 2] fp32
    y_ptr,  # [M, H, DH]
    H,
    DH: tl.constexpr,
    BLOCK_H: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid (M,): a program owns the heads of a token."""
    wait_for_previous_launch(PDL)
    m = tl.program_id(0).to(tl.int64)
    offs_h = tl.arange(0, BLOCK_H)
    offs_d = tl.arange(0, DH)
    offs_i = tl.arange(0, DH // 2)
    angle_ptr = cos_sin_ptr + tl.load(positions_ptr + m).to(tl.int64) * DH
    cos = tl.load(angle_ptr + offs_i)[None, :]
    sin = tl.load(angle_ptr + DH // 2 + offs_i)[None, :]
    offs = (m * H + offs_h)[:, None] * DH + offs_d[None, :]
    mask = (offs_h < H)[:, None]
    x = tl.load(x_ptr + offs, mask=mask, other=0.0).to(tl.float32)  # [BLOCK_H, DH]
    tl.store(y_ptr + offs, round_to(apply_rotary(x, cos, sin, BLOCK_H, DH), y_ptr.dtype.element_ty), mask=mask)


@operator()
def rotary(
    x: Annotated[Tensor, "M H DH"],
    positions: Annotated[Tensor, "M", torch.int32],
    cos_sin_cache: Annotated[Tensor, "P 2 DH/2", torch.float32],
) -> Iterator[Tensor]:
    M, H, DH = x.shape
    check_head_dim("rotary", DH)
    check_rows("rotary", x.dtype, DH=DH)
    check_range("rotary", "positions", positions, 0, cos_sin_cache.shape[0] - 1, "the rows of cos_sin_cache")
    y = torch.empty_like(x)
    yield y
    launch = launch_config("rotary", "row", x.dtype)
    _rotary_kernel[(M,)](x, positions, cos_sin_cache, y, H, DH=DH, BLOCK_H=triton.next_power_of_2(H), **launch)


def check_head_dim(op: str, head_dim: int) -> None:
    """ValueError: a head is an axis of a tile: a power of two, and at least the 16 of a matrix instruction."""
    if head_dim < 16 or head_dim & (head_dim - 1):
        raise ValueError(f"{op}: the head dimension must be a power of two from 16, got {head_dim}")


def cost(M: int, H: int, DH: int, itemsize: int) -> Cost:
    """Each token reads its own row of cos_sin_cache once."""
    return Cost(bytes=2 * M * H * DH * itemsize + 4 * M * (DH + 1), flops=3 * M * H * DH)
