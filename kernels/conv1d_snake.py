"""A convolution of a vocoder step: y = conv1d(x) + residual, activated = snake(y).

Shapes     x [B, R, Ci], residual, y and activated [B, R', Co], rings of any lengths that hold the positions of a step;
           weight [Co, taps * Ci], channels last, taps odd; bias, alpha [Co]; step_meta [B, 4], and samples_per_frame,
           delay, tail_trim of x, as `_ring_conv` shows them. Taps lie `dilation` positions apart. The outputs'
           delay is delay + taps // 2 * dilation. residual, y and activated with alpha are optional; y or activated is
           given. Both are changed in place. snake(y) = y + sin(alpha y)^2 / (alpha + 1e-9).
Dtypes     one of fp32, fp16, bf16, but step_meta int32, and y and residual fp32; fp32 accumulation; activated is
           rounded once. tf32=True multiplies fp32 as tf32.
Raises     ValueError, TypeError naming operation, argument, what came and what is accepted; step_meta out of range
           only on CPU tensors or under TRITON_DEBUG=1.
Reference  zonos2_triton.reference.conv1d_snake.conv1d_snake
Source     Kumar et al. 2023, arXiv:2306.06546; snake: Ziyin et al. 2020, arXiv:2006.08195.

An implicit GEMM: [positions, taps * Ci] times the weights, whose left operand is gathered from the ring tap by tap.
The layer that makes a value applies snake to it once. Each tap and tile that reads the value would have to repeat it,
and a sine costs as much as a dozen multiplications. A later layer adds y itself: the residual stream, never rounded.
"""

from collections.abc import Iterator
from typing import Annotated

import torch
import triton
import triton.language as tl
from torch import Tensor

from zonos2_triton.kernels._dependent_launch import wait_for_previous_launch
from zonos2_triton.kernels._launch_config import launch_config
from zonos2_triton.kernels._operator import Cost, operator
from zonos2_triton.kernels._ring_conv import (
    NOT_SPECIALIZED,
    check_outputs,
    check_ring,
    check_step,
    check_taps,
    implicit_gemm,
    layer_cost,
    ring_arguments,
    ring_index,
    ring_offset,
    step_positions,
    store_epilogue,
)


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def _conv1d_snake_kernel(
    x_ptr,  # [B, x_ring_len, CI]
    w_ptr,  # [CO, TAPS * CI]
    bias_ptr,  # [CO]
    residual_ptr,  # [B, residual_ring_len, CO] fp32, or None
    alpha_ptr,  # [CO], or None without activated
    y_ptr,  # [B, y_ring_len, CO] fp32, or None
    activated_ptr,  # [B, activated_ring_len, CO], or None
    step_meta_ptr,  # [B, 4] int32
    B,
    frames,
    n_blocks,  # of the sum over taps and channels
    samples_per_frame,
    delay,
    tail_trim,
    dilation,
    x_ring_len,
    residual_ring_len,
    y_ring_len,
    activated_ring_len,
    CI: tl.constexpr,
    CO: tl.constexpr,
    TAPS: tl.constexpr,
    TF32: tl.constexpr,
    INT64: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid (tiles of positions, tiles of CO): a program computes a tile of y and activated."""
    wait_for_previous_launch(PDL)
    reach = TAPS // 2 * dilation
    slot, _, t, clip_len, mask_m = step_positions(
        step_meta_ptr, B, frames, samples_per_frame, delay + reach, tail_trim, BLOCK_M
    )
    mask_m = mask_m & (t >= 0) & (t < clip_len)
    if tl.max(mask_m.to(tl.int32), axis=0) == 0:
        return
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_n = n < CO
    first = t - reach
    acc = implicit_gemm(
        x_ptr,
        w_ptr,
        slot,
        first,
        clip_len,
        mask_m,
        n,
        mask_n,
        x_ring_len,
        dilation,
        n_blocks,
        CI,
        TAPS,
        TF32,
        INT64,
        BLOCK_M,
        BLOCK_N,
        BLOCK_K,
    )
    acc += tl.load(bias_ptr + n, mask=mask_n, other=0.0).to(tl.float32)[None, :]
    mask = mask_m[:, None] & mask_n[None, :]
    if residual_ptr is not None:
        residual_offs = ring_offset(slot, ring_index(t, residual_ring_len), residual_ring_len, CO, INT64)
        acc += tl.load(residual_ptr + residual_offs[:, None] + n[None, :], mask=mask, other=0.0)
    y_offs = ring_offset(slot, ring_index(t, y_ring_len), y_ring_len, CO, INT64)[:, None]
    activated_offs = ring_offset(slot, ring_index(t, activated_ring_len), activated_ring_len, CO, INT64)[:, None]
    store_epilogue(acc, y_ptr, activated_ptr, alpha_ptr, y_offs, activated_offs, mask, n, mask_n)


@operator(mutates_args=("y", "activated"))
def conv1d_snake(
    x: Annotated[Tensor, "B R Ci"],
    weight: Annotated[Tensor, "Co K"],
    bias: Annotated[Tensor, "Co"],
    step_meta: Annotated[Tensor, "B 4", torch.int32],
    frames: int,
    samples_per_frame: int,
    delay: int,
    tail_trim: int,
    dilation: int = 1,
    residual: Annotated[Tensor | None, "B Rr Co", torch.float32] = None,
    alpha: Annotated[Tensor | None, "Co"] = None,
    y: Annotated[Tensor | None, "B Ry Co", torch.float32] = None,
    activated: Annotated[Tensor | None, "B Ra Co"] = None,
    tf32: bool = False,
) -> Iterator[None]:
    (B, _, Ci), Co, positions = x.shape, weight.shape[0], frames * samples_per_frame
    taps = check_taps("conv1d_snake", weight, x, dilation)
    step = check_step("conv1d_snake", x, step_meta, frames, samples_per_frame, delay, tail_trim, tf32)
    least = positions + (taps - 1) * dilation
    check_ring("conv1d_snake", "x", x, least, "those of a step and the taps around them")
    check_ring("conv1d_snake", "residual", residual, positions)
    check_outputs("conv1d_snake", positions, alpha, y, activated)
    yield
    launch = launch_config("conv1d_snake", "first" if samples_per_frame == 1 else "taps", x.dtype, tf32=tf32)
    _conv1d_snake_kernel[(triton.cdiv(B * positions, launch["BLOCK_M"]), triton.cdiv(Co, launch["BLOCK_N"]))](
        w_ptr=weight,
        bias_ptr=bias,
        alpha_ptr=alpha,
        n_blocks=taps * triton.cdiv(Ci, launch["BLOCK_K"]),
        dilation=dilation,
        **step,
        **ring_arguments(x=x, residual=residual, y=y, activated=activated),
        CI=Ci,
        CO=Co,
        TAPS=taps,
        **launch,
    )


def cost(
    B: int,
    frames: int,
    samples_per_frame: int,
    Ci: int,
    Co: int,
    taps: int,
    itemsize: int,
    residual: bool = False,
    y: bool = False,
    activated: bool = True,
) -> Cost:
    """The cost where every position of the step lies in the clip, and the taps around them in the caches."""
    macs = taps * Ci * Co
    return layer_cost(B * frames * samples_per_frame, macs, macs, Ci + Co * activated, Co * (residual + y), itemsize)
