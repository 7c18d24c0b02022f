"""A residual unit of a vocoder step: y = residual + inner(snake(conv1d(x))), activated = snake(y); inner has one tap.

Shapes     x, residual, y and activated [B, R, C], rings of any lengths that hold the positions of a step; weight [C,
           taps * C], channels last, taps odd; inner_weight [C, C]; bias, inner_bias, inner_alpha, alpha [C]; C <= 192.
           step_meta [B, 4], and samples_per_frame, delay, tail_trim of x, as `_ring_conv` shows them. Taps lie
           `dilation` positions apart. The outputs' delay is delay + taps // 2 * dilation. x is snake(residual), which
           the layer before has stored. y, or activated with alpha, may be None; both are changed in place.
           snake(y) = y + sin(alpha y)^2 / (alpha + 1e-9).
Dtypes     one of fp32, fp16, bf16, but step_meta int32, and y and residual fp32; fp32 accumulation; the input of the
           inner convolution and activated are rounded once each. tf32=True multiplies fp32 as tf32.
Raises     ValueError, TypeError naming operation, argument, what came and what is accepted; step_meta out of range
           only on CPU tensors or under TRITON_DEBUG=1.
Reference  zonos2_triton.reference.residual_unit.residual_unit
Source     Kumar et al. 2023, arXiv:2306.06546.

One launch does the work of two `conv1d_snake`: a program computes all channels of its positions, so the values between
the convolutions stay on the chip. In half precision that saves 4 of 16 bytes for each position and channel, and a
launch. It does not pay above 192 channels. The accumulators would not fit the registers, and a short step has too few
positions for one program on each multiprocessor.
"""

from collections.abc import Iterator
from typing import Annotated

import torch
import triton
import triton.language as tl
from torch import Tensor

from zonos2_triton.kernels._dependent_launch import wait_for_previous_launch
from zonos2_triton.kernels._launch_config import launch_config
from zonos2_triton.kernels._math import dot_fp32, round_to, snake
from zonos2_triton.kernels._operator import Cost, operator
from zonos2_triton.kernels._ring_conv import (
    NOT_SPECIALIZED,
    check_outputs,
    check_ring,
    check_step,
    check_taps,
    im2col_tile,
    layer_cost,
    ring_arguments,
    ring_index,
    ring_offset,
    step_positions,
    store_epilogue,
    tap_range,
    weight_tile,
)

MAX_CHANNELS = 192


@triton.jit
def _activate(
    acc,  # [BLOCK_M, BLOCK_N] fp32
    bias_ptr,  # [C]
    alpha_ptr,  # [C]
    n,  # [BLOCK_N]
    C: tl.constexpr,
    dtype: tl.constexpr,
):
    """snake(acc + bias), rounded: channels n of the input of the inner convolution."""
    acc += tl.load(bias_ptr + n, mask=n < C, other=0.0).to(tl.float32)[None, :]
    return round_to(snake(acc, tl.load(alpha_ptr + n, mask=n < C, other=1.0).to(tl.float32)), dtype)


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def _residual_unit_kernel(
    x_ptr,  # [B, x_ring_len, C]
    residual_ptr,  # [B, residual_ring_len, C] fp32
    w_ptr,  # [C, TAPS * C]
    bias_ptr,  # [C]
    inner_alpha_ptr,  # [C]
    inner_w_ptr,  # [C, C]
    inner_bias_ptr,  # [C]
    alpha_ptr,  # [C], or None without activated
    y_ptr,  # [B, y_ring_len, C] fp32, or None
    activated_ptr,  # [B, activated_ring_len, C], or None
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
    C: tl.constexpr,
    TAPS: tl.constexpr,
    N_TILES: tl.constexpr,  # of BLOCK_N channels: 1 or 3
    TF32: tl.constexpr,
    INT64: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid (tiles of positions,): a program computes all channels of its positions, as N_TILES accumulators."""
    wait_for_previous_launch(PDL)
    reach = TAPS // 2 * dilation
    slot, _, t, clip_len, mask_m = step_positions(
        step_meta_ptr, B, frames, samples_per_frame, delay + reach, tail_trim, BLOCK_M
    )
    mask_m = mask_m & (t >= 0) & (t < clip_len)
    if tl.max(mask_m.to(tl.int32), axis=0) == 0:
        return
    index = ring_index(t - reach, x_ring_len)
    begin, end = tap_range(t - reach, clip_len, mask_m)
    n0 = tl.arange(0, BLOCK_N)
    n1, n2 = n0 + BLOCK_N, n0 + 2 * BLOCK_N
    K: tl.constexpr = TAPS * C
    EVEN: tl.constexpr = C % BLOCK_K == 0
    acc0 = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    acc1, acc2 = acc0, acc0
    for i in range(n_blocks):
        x, k, mask_k = im2col_tile(x_ptr, slot, index, x_ring_len, begin, end, i, dilation, C, BLOCK_K, INT64)
        acc0 = dot_fp32(x, weight_tile(w_ptr, n0, k, n0 < C, mask_k, K, EVEN), acc0, TF32)
        if N_TILES == 3:
            acc1 = dot_fp32(x, weight_tile(w_ptr, n1, k, n1 < C, mask_k, K, EVEN), acc1, TF32)
            acc2 = dot_fp32(x, weight_tile(w_ptr, n2, k, n2 < C, mask_k, K, EVEN), acc2, TF32)
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    h0 = _activate(acc0, bias_ptr, inner_alpha_ptr, n0, C, dtype)
    h1 = _activate(acc1, bias_ptr, inner_alpha_ptr, n1, C, dtype)
    h2 = _activate(acc2, bias_ptr, inner_alpha_ptr, n2, C, dtype)
    residual_offs = ring_offset(slot, ring_index(t, residual_ring_len), residual_ring_len, C, INT64)[:, None]
    y_offs = ring_offset(slot, ring_index(t, y_ring_len), y_ring_len, C, INT64)[:, None]
    activated_offs = ring_offset(slot, ring_index(t, activated_ring_len), activated_ring_len, C, INT64)[:, None]
    for tile in tl.static_range(N_TILES):
        n = tile * BLOCK_N + n0
        mask_n = n < C
        out = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        out = dot_fp32(h0, weight_tile(inner_w_ptr, n, n0, mask_n, n0 < C, C, C % BLOCK_N == 0), out, TF32)
        if N_TILES == 3:
            out = dot_fp32(h1, weight_tile(inner_w_ptr, n, n1, mask_n, n1 < C, C, C % BLOCK_N == 0), out, TF32)
            out = dot_fp32(h2, weight_tile(inner_w_ptr, n, n2, mask_n, n2 < C, C, C % BLOCK_N == 0), out, TF32)
        out += tl.load(inner_bias_ptr + n, mask=mask_n, other=0.0).to(tl.float32)[None, :]
        mask = mask_m[:, None] & mask_n[None, :]
        out += tl.load(residual_ptr + residual_offs + n[None, :], mask=mask, other=0.0)
        store_epilogue(out, y_ptr, activated_ptr, alpha_ptr, y_offs, activated_offs, mask, n, mask_n)


@operator(mutates_args=("y", "activated"))
def residual_unit(
    x: Annotated[Tensor, "B R C"],
    residual: Annotated[Tensor, "B Rr C", torch.float32],
    weight: Annotated[Tensor, "C K"],
    bias: Annotated[Tensor, "C"],
    inner_alpha: Annotated[Tensor, "C"],
    inner_weight: Annotated[Tensor, "C C"],
    inner_bias: Annotated[Tensor, "C"],
    step_meta: Annotated[Tensor, "B 4", torch.int32],
    frames: int,
    samples_per_frame: int,
    delay: int,
    tail_trim: int,
    dilation: int = 1,
    alpha: Annotated[Tensor | None, "C"] = None,
    y: Annotated[Tensor | None, "B Ry C", torch.float32] = None,
    activated: Annotated[Tensor | None, "B Ra C"] = None,
    tf32: bool = False,
) -> Iterator[None]:
    (B, _, C), positions = x.shape, frames * samples_per_frame
    taps = check_taps("residual_unit", weight, x, dilation, "C")
    if C > MAX_CHANNELS:
        raise ValueError(f"residual_unit: C must be at most {MAX_CHANNELS}, got {C}; use two of conv1d_snake")
    step = check_step("residual_unit", x, step_meta, frames, samples_per_frame, delay, tail_trim, tf32)
    least = positions + (taps - 1) * dilation
    check_ring("residual_unit", "x", x, least, "those of a step and the taps around them")
    check_ring("residual_unit", "residual", residual, positions)
    check_outputs("residual_unit", positions, alpha, y, activated)
    yield
    # 192 is three times 64: three tiles need no padding. For 96, tiles of 32 would keep the matrix units waiting.
    n_tiles = 3 if C > 128 else 1
    launch = launch_config("residual_unit", "wide" if n_tiles == 3 else "narrow", x.dtype, tf32=tf32)
    _residual_unit_kernel[(triton.cdiv(B * positions, launch["BLOCK_M"]),)](
        w_ptr=weight,
        bias_ptr=bias,
        inner_alpha_ptr=inner_alpha,
        inner_w_ptr=inner_weight,
        inner_bias_ptr=inner_bias,
        alpha_ptr=alpha,
        n_blocks=taps * triton.cdiv(C, launch["BLOCK_K"]),
        dilation=dilation,
        **step,
        **ring_arguments(x=x, residual=residual, y=y, activated=activated),
        C=C,
        TAPS=taps,
        N_TILES=n_tiles,
        BLOCK_N=max(16, triton.next_power_of_2(triton.cdiv(C, n_tiles))),
        **launch,
    )


def cost(
    B: int,
    frames: int,
    samples_per_frame: int,
    C: int,
    taps: int,
    itemsize: int,
    y: bool = True,
    activated: bool = True,
) -> Cost:
    """The cost where every position of the step lies in the clip. The values between the convolutions do not move."""
    macs = (taps + 1) * C * C
    return layer_cost(B * frames * samples_per_frame, macs, macs, C * (1 + activated), C * (1 + y), itemsize)
