"""A strided transposed convolution of a vocoder step: y = conv_transpose1d(x), activated = snake(y).

Shapes     x [B, R, Ci], y and activated [B, R', Co], rings of any lengths that hold the positions of a step; weight
           [stride * Co, 2 * Ci], whose row r * Co + o has the taps of channel o at phase r: of inputs q - 1, then q;
           bias, alpha [Co]; step_meta [B, 4], and samples_per_frame, delay, tail_trim of x, as `_ring_conv` shows them.
           For the outputs these are stride * samples_per_frame, stride * delay + padding, stride * tail_trim + stride
           % 2, with padding = ceil(stride / 2). y, or activated with alpha, may be None; both are changed in place.
           snake(y) = y + sin(alpha y)^2 / (alpha + 1e-9).
Dtypes     one of fp32, fp16, bf16, but step_meta int32, and y fp32; fp32 accumulation; activated is rounded once.
           tf32=True multiplies fp32 as tf32.
Raises     ValueError, TypeError naming operation, argument, what came and what is accepted; step_meta out of range
           only on CPU tensors or under TRITON_DEBUG=1.
Reference  zonos2_triton.reference.conv_transpose1d_snake.conv_transpose1d_snake
Source     Kumar et al. 2023, arXiv:2306.06546; sub-pixel form: Shi et al. 2016, arXiv:1609.05158.

Input q and the one before it make `stride` outputs, which lie one after the other in the ring. Phase r of them is

    y[stride * q - padding + r] = weight[r * Co :][: Co] @ [x[q - 1], x[q]] + bias

So 2 * stride taps at a stride are 2 taps without one, of stride * Co channels: an implicit GEMM over the inputs.
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
    implicit_gemm,
    layer_cost,
    ring_advance,
    ring_arguments,
    ring_index,
    ring_offset,
    step_positions,
    store_epilogue,
    tap_range,
)


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def _conv_transpose1d_snake_kernel(
    x_ptr,  # [B, x_ring_len, CI]
    w_ptr,  # [STRIDE * CO, 2 * CI]
    bias_ptr,  # [CO]
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
    x_ring_len,
    y_ring_len,
    activated_ring_len,
    CI: tl.constexpr,
    CO: tl.constexpr,
    STRIDE: tl.constexpr,
    TF32: tl.constexpr,
    INT64: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid (tiles of inputs, tiles of STRIDE * CO): a program computes some phases and channels of its outputs."""
    wait_for_previous_launch(PDL)
    slot, _, q, clip_len, mask_m = step_positions(
        step_meta_ptr, B, frames, samples_per_frame, delay, tail_trim, BLOCK_M
    )
    mask_m = mask_m & (q >= 0) & (q <= clip_len)  # the last outputs have their later input beyond the end
    if tl.max(mask_m.to(tl.int32), axis=0) == 0:
        return
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_n = n < STRIDE * CO
    first = q - 1
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
        1,
        n_blocks,
        CI,
        2,
        TF32,
        INT64,
        BLOCK_M,
        BLOCK_N,
        BLOCK_K,
    )
    phase, channel = n // CO, n % CO
    acc += tl.load(bias_ptr + channel, mask=mask_n, other=0.0).to(tl.float32)[None, :]
    t = q * STRIDE - (STRIDE + 1) // 2
    begin, end = tap_range(t, clip_len * STRIDE - STRIDE % 2, mask_m)
    mask = mask_n[None, :] & (phase[None, :] >= begin[:, None]) & (phase[None, :] < end[:, None])
    y_index = ring_advance(ring_index(t, y_ring_len)[:, None], phase[None, :], y_ring_len)
    y_offs = ring_offset(slot[:, None], y_index, y_ring_len, CO, INT64)
    activated_index = ring_advance(ring_index(t, activated_ring_len)[:, None], phase[None, :], activated_ring_len)
    activated_offs = ring_offset(slot[:, None], activated_index, activated_ring_len, CO, INT64)
    store_epilogue(acc, y_ptr, activated_ptr, alpha_ptr, y_offs, activated_offs, mask, channel, mask_n)


@operator(mutates_args=("y", "activated"))
def conv_transpose1d_snake(
    x: Annotated[Tensor, "B R Ci"],
    weight: Annotated[Tensor, "N K"],
    bias: Annotated[Tensor, "Co"],
    step_meta: Annotated[Tensor, "B 4", torch.int32],
    frames: int,
    samples_per_frame: int,
    delay: int,
    tail_trim: int,
    stride: int,
    alpha: Annotated[Tensor | None, "Co"] = None,
    y: Annotated[Tensor | None, "B Ry Co", torch.float32] = None,
    activated: Annotated[Tensor | None, "B Ra Co"] = None,
    tf32: bool = False,
) -> Iterator[None]:
    (B, _, Ci), Co, inputs = x.shape, bias.shape[0], frames * samples_per_frame
    if stride < 1:
        raise ValueError(f"conv_transpose1d_snake: stride must be at least 1, got {stride}")
    if weight.shape != (stride * Co, 2 * Ci):
        raise ValueError(
            f"conv_transpose1d_snake: weight must have shape [stride * Co={stride * Co}, 2 * Ci={2 * Ci}], got "
            f"{list(weight.shape)}"
        )
    step = check_step("conv_transpose1d_snake", x, step_meta, frames, samples_per_frame, delay, tail_trim, tf32, stride)
    check_ring("conv_transpose1d_snake", "x", x, inputs + 1, "those of a step and the one before")
    check_outputs("conv_transpose1d_snake", inputs * stride, alpha, y, activated)
    yield
    launch = launch_config("conv_transpose1d_snake", "taps", x.dtype, tf32=tf32)
    grid = triton.cdiv(B * inputs, launch["BLOCK_M"]), triton.cdiv(stride * Co, launch["BLOCK_N"])
    _conv_transpose1d_snake_kernel[grid](
        w_ptr=weight,
        bias_ptr=bias,
        alpha_ptr=alpha,
        n_blocks=2 * triton.cdiv(Ci, launch["BLOCK_K"]),
        **step,
        **ring_arguments(x=x, y=y, activated=activated),
        CI=Ci,
        CO=Co,
        STRIDE=stride,
        **launch,
    )


def cost(
    B: int,
    frames: int,
    samples_per_frame: int,
    Ci: int,
    Co: int,
    stride: int,
    itemsize: int,
    y: bool = True,
    activated: bool = True,
) -> Cost:
    """The cost where every position of the step lies in the clip; samples_per_frame is that of x."""
    inputs, macs = B * frames * samples_per_frame, 2 * stride * Ci * Co
    return layer_cost(inputs, macs, macs, Ci + stride * Co * activated, stride * Co * y, itemsize)
