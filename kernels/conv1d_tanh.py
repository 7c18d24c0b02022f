"""The last convolution of a vocoder step, to one channel: samples = tanh(conv1d(x)).

Shapes     x [B, R, Ci], a ring that holds the positions of a step; weight [1, taps * Ci], channels last, taps odd; bias
           [1]; step_meta [B, 4], and samples_per_frame, delay, tail_trim of x, as `_ring_conv` shows them. -> samples
           [B, frames * samples_per_frame]: column j of a slot is its position samples_per_frame * done - delay - taps
           // 2 + j. It is 0 outside of the clip and after the slot's own frames. y [B, R', 1], optional, a ring that
           is changed in place: the result before tanh.
Dtypes     one of fp32, fp16, bf16, but step_meta int32, samples and y fp32; fp32 accumulation. tf32=True multiplies
           fp32 as tf32.
Raises     ValueError, TypeError naming operation, argument, what came and what is accepted; step_meta out of range
           only on CPU tensors or under TRITON_DEBUG=1.
Reference  zonos2_triton.reference.conv1d_tanh.conv1d_tanh
Source     Kumar et al. 2023, arXiv:2306.06546.

The weights are one column of the right operand; its other 15 columns are zero. Matrix units compute 16 columns faster
than the other units compute one.
"""

from collections.abc import Iterator
from typing import Annotated

import torch
import triton
import triton.language as tl
from torch import Tensor

from zonos2_triton.kernels._dependent_launch import wait_for_previous_launch
from zonos2_triton.kernels._launch_config import launch_config
from zonos2_triton.kernels._math import tanh
from zonos2_triton.kernels._operator import Cost, operator
from zonos2_triton.kernels._ring_conv import (
    NOT_SPECIALIZED,
    check_ring,
    check_step,
    check_taps,
    implicit_gemm,
    layer_cost,
    ring_arguments,
    ring_index,
    ring_offset,
    step_positions,
)


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def _conv1d_tanh_kernel(
    x_ptr,  # [B, x_ring_len, CI]
    w_ptr,  # [1, TAPS * CI]
    bias_ptr,  # [1]
    samples_ptr,  # [B, frames * samples_per_frame] fp32
    y_ptr,  # [B, y_ring_len, 1] fp32, or None
    step_meta_ptr,  # [B, 4] int32
    B,
    frames,
    n_blocks,  # of the sum over taps and channels
    samples_per_frame,
    delay,
    tail_trim,
    x_ring_len,
    y_ring_len,
    CI: tl.constexpr,
    TAPS: tl.constexpr,
    TF32: tl.constexpr,
    INT64: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid (tiles of positions,): a program computes a tile of samples."""
    wait_for_previous_launch(PDL)
    slot, column, t, clip_len, mask_m = step_positions(
        step_meta_ptr, B, frames, samples_per_frame, delay + TAPS // 2, tail_trim, BLOCK_M
    )
    mask_m = mask_m & (t >= 0) & (t < clip_len)
    n = tl.arange(0, BLOCK_N)
    first = t - TAPS // 2
    acc = implicit_gemm(
        x_ptr,
        w_ptr,
        slot,
        first,
        clip_len,
        mask_m,
        n,
        n < 1,
        x_ring_len,
        1,
        n_blocks,
        CI,
        TAPS,
        TF32,
        INT64,
        BLOCK_M,
        BLOCK_N,
        BLOCK_K,
    )
    out = tl.sum(tl.where((n == 0)[None, :], acc, 0.0), axis=1) + tl.load(bias_ptr).to(tl.float32)
    if y_ptr is not None:
        tl.store(y_ptr + ring_offset(slot, ring_index(t, y_ring_len), y_ring_len, 1, INT64), out, mask=mask_m)
    samples = tl.where(mask_m, tanh(out), 0.0)
    tl.store(samples_ptr + slot * (frames * samples_per_frame) + column, samples, mask=slot < B)


@operator(mutates_args=("y",))
def conv1d_tanh(
    x: Annotated[Tensor, "B R Ci"],
    weight: Annotated[Tensor, "1 K"],
    bias: Annotated[Tensor, "1"],
    step_meta: Annotated[Tensor, "B 4", torch.int32],
    frames: int,
    samples_per_frame: int,
    delay: int,
    tail_trim: int,
    y: Annotated[Tensor | None, "B Ry 1", torch.float32] = None,
    tf32: bool = False,
) -> Iterator[Tensor]:
    (B, _, Ci), positions = x.shape, frames * samples_per_frame
    taps = check_taps("conv1d_tanh", weight, x)
    step = check_step("conv1d_tanh", x, step_meta, frames, samples_per_frame, delay, tail_trim, tf32)
    check_ring("conv1d_tanh", "x", x, positions + taps - 1, "those of a step and the taps around them")
    check_ring("conv1d_tanh", "y", y, positions)
    samples = x.new_empty((B, positions), dtype=torch.float32)
    yield samples
    launch = launch_config("conv1d_tanh", "taps", x.dtype, tf32=tf32)
    _conv1d_tanh_kernel[(triton.cdiv(B * positions, launch["BLOCK_M"]),)](
        w_ptr=weight,
        bias_ptr=bias,
        samples_ptr=samples,
        n_blocks=taps * triton.cdiv(Ci, launch["BLOCK_K"]),
        **step,
        **ring_arguments(x=x, y=y),
        CI=Ci,
        TAPS=taps,
        **launch,
    )


def cost(B: int, frames: int, samples_per_frame: int, Ci: int, taps: int, itemsize: int) -> Cost:
    """The cost where every position of the step lies in the clip."""
    return layer_cost(B * frames * samples_per_frame, taps * Ci, taps * Ci, Ci, 1, itemsize)
