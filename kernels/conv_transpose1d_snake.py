"""The strided transposed convolution of a vocoder's clips, a step at a time: y = conv_t(x), act = snake(y).

Shapes     x [B, R, Ci], y, act [B, R', Co], rings of any lengths that hold what the step reads and writes; weight
           [stride * Co, 2 * Ci]: row r * Co + o holds what inputs q - 1 and q count for channel o at stride * q -
           padding + r, padding = ceil(stride / 2); bias, alpha [Co]; spans [B, 4]: frames before the step, of the step,
           of the clip (OPEN: not known), of codes that came. x has rate positions a frame, lags by `lag`, and rate *
           length - short of a clip; of y and act they are stride * rate, stride * lag + padding, stride * short +
           stride % 2. snake(y) = y + sin(alpha y)^2 / (alpha + 1e-9).
Dtypes     one of fp32, fp16, bf16, but spans int32, and y and residual fp32; fp32 accumulation; act rounded once.
           tf32=True multiplies fp32 as tf32.
Raises     ValueError, TypeError naming operation, argument, what came and what is accepted; spans out of range where
           looking costs nothing (CPU tensors, TRITON_DEBUG=1).
Reference  zonos2_triton.reference.vocoder_layers.conv_transpose1d_snake
Source     Kumar et al. 2023, arXiv:2306.06546; sub-pixel form: Shi et al. 2016, arXiv:1609.05158.

2 * stride taps at a stride are 2 taps of stride * Co channels at none, which lie one after the other in the ring: an
implicit GEMM whose lanes are the inputs, for even and odd strides alike.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from zonos2_triton.kernels._args import Arg, check
from zonos2_triton.kernels._launch_config import launch_config
from zonos2_triton.kernels._operator import Cost, cpu_fallback, fake, runs_kernel
from zonos2_triton.kernels._ring_conv import (
    check_outputs,
    check_ring,
    check_step,
    emit,
    lanes,
    layer_cost,
    long,
    offset,
    onward,
    place,
    positions,
    span,
    taps,
)


@triton.jit(do_not_specialize=["B", "frames", "blocks", "lag", "short", "ring_x", "ring_y", "ring_act"])
def _conv_transpose1d_snake_kernel(
    x_ptr, w_ptr, bias_ptr, alpha_ptr, y_ptr, act_ptr, spans_ptr, B, frames, blocks, rate, lag, short, ring_x, ring_y,
    ring_act, CI: tl.constexpr, CO: tl.constexpr, STRIDE: tl.constexpr, HAS_Y: tl.constexpr, HAS_ACT: tl.constexpr,
    TF32: tl.constexpr, LONG: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Grid (tiles of lanes, tiles of stride * Co): a program owns a tile of y and act, a lane some of its outputs."""
    row, _, q, size, live = lanes(spans_ptr, B, frames, rate, lag, short, BLOCK_M)
    live = live & (q >= 0) & (q <= size)  # the last outputs have their later input beyond the end
    if tl.max(live.to(tl.int32), axis=0) == 0:
        return
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_n = n < STRIDE * CO
    acc = taps(
        x_ptr, w_ptr, row, q - 1, size, live, n, mask_n, ring_x, 1, blocks, CI, 2, TF32, LONG, BLOCK_M, BLOCK_N, BLOCK_K
    )
    phase, channel = n // CO, n % CO
    acc += tl.load(bias_ptr + channel, mask=mask_n, other=0.0).to(tl.float32)[None, :]
    t = q * STRIDE - (STRIDE + 1) // 2
    begin, end = span(t, size * STRIDE - STRIDE % 2, live)
    mask = mask_n[None, :] & (phase[None, :] >= begin[:, None]) & (phase[None, :] < end[:, None])
    y_at = onward(place(t, ring_y)[:, None], phase[None, :], ring_y)
    y_rows = offset(row[:, None], y_at, ring_y, CO, LONG)
    act_at = onward(place(t, ring_act)[:, None], phase[None, :], ring_act)
    act_rows = offset(row[:, None], act_at, ring_act, CO, LONG)
    emit(acc, y_ptr, act_ptr, alpha_ptr, y_rows, act_rows, mask, channel, mask_n, HAS_Y, HAS_ACT)


@torch.library.custom_op("zonos2_triton::conv_transpose1d_snake", mutates_args=("y", "act"))
def conv_transpose1d_snake(
    x: Tensor, weight: Tensor, bias: Tensor, spans: Tensor, frames: int, rate: int, lag: int, short: int,
    stride: int, alpha: Tensor | None = None, y: Tensor | None = None, act: Tensor | None = None, tf32: bool = False,
) -> None:  # fmt: skip
    sizes = check(
        "conv_transpose1d_snake",
        x=Arg(x, "B R Ci"),
        bias=Arg(bias, "Co"),
        weight=Arg(weight, "N K"),
        spans=Arg(spans, "B 4", torch.int32),
        alpha=Arg(alpha, "Co"),
        y=Arg(y, "B Ry Co", torch.float32),
        act=Arg(act, "B Ra Co"),
    )
    B, R, Ci, Co = (sizes[axis] for axis in ("B", "R", "Ci", "Co"))
    if stride < 1:
        raise ValueError(f"conv_transpose1d_snake: stride must be at least 1, got {stride}")
    if weight.shape != (stride * Co, 2 * Ci):
        raise ValueError(
            f"conv_transpose1d_snake: weight must have shape [stride * Co={stride * Co}, 2 * Ci={2 * Ci}], got "
            f"{list(weight.shape)}"
        )
    check_step("conv_transpose1d_snake", x, spans, frames, rate, lag, short, tf32, stride)
    check_outputs("conv_transpose1d_snake", y, act, alpha)
    each = frames * rate
    check_ring("conv_transpose1d_snake", "x", x, each + 1, "those of a step and the one before")
    for name, ring in (("y", y), ("act", act)):
        check_ring("conv_transpose1d_snake", name, ring, each * stride, "those of a step")
    if not runs_kernel(x):
        return cpu_fallback(
            "conv_transpose1d_snake", x, weight, bias, spans, frames, rate, lag, short, stride, alpha, y, act, tf32
        )  # fmt: skip
    launch = launch_config("conv_transpose1d_snake", "taps", x.dtype, tf32=tf32)
    grid = triton.cdiv(B * each, launch["BLOCK_M"]), triton.cdiv(stride * Co, launch["BLOCK_N"])
    blocks = 2 * triton.cdiv(Ci, launch["BLOCK_K"])
    _conv_transpose1d_snake_kernel[grid](
        x, weight, bias, alpha, y, act, spans, B, frames, blocks, rate, lag, short, R, positions(y), positions(act),
        CI=Ci, CO=Co, STRIDE=stride, HAS_Y=y is not None, HAS_ACT=act is not None, TF32=tf32,
        LONG=long(x, y, act), **launch,
    )  # fmt: skip


@fake(conv_transpose1d_snake)
def _(
    x: Tensor, weight: Tensor, bias: Tensor, spans: Tensor, frames: int, rate: int, lag: int, short: int,
    stride: int, alpha: Tensor | None = None, y: Tensor | None = None, act: Tensor | None = None, tf32: bool = False,
) -> None:  # fmt: skip
    return None


def cost(
    B: int, frames: int, rate: int, Ci: int, Co: int, stride: int, itemsize: int, y: bool = True, act: bool = True
) -> Cost:
    """Of rows whose every position of the step lies in the clip; rate is that of x."""
    macs = 2 * stride * Ci * Co
    return layer_cost(B * frames * rate, macs, macs, Ci + stride * Co * act, stride * Co * y, itemsize)
