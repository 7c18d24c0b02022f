"""A convolution of a vocoder's clips, a step at a time: y = conv(x) + residual, act = snake(y).

Shapes     x [B, R, Ci], y, act, residual [B, R', Co], rings of any lengths that hold what the step reads and writes;
           weight [Co, taps * Ci], channels last, taps odd; bias, alpha [Co]; spans [B, 4]: frames before the step, of
           the step, of the clip (OPEN: not known), of codes that came. x has rate positions a frame, lags by `lag`, and
           rate * length - short of a clip; y and act lag by taps // 2 * dilation more.
           snake(y) = y + sin(alpha y)^2 / (alpha + 1e-9).
Dtypes     one of fp32, fp16, bf16, but spans int32, and y and residual fp32; fp32 accumulation; act rounded once.
           tf32=True multiplies fp32 as tf32.
Raises     ValueError, TypeError naming operation, argument, what came and what is accepted; spans out of range where
           looking costs nothing (CPU tensors, TRITON_DEBUG=1).
Reference  zonos2_triton.reference.vocoder_layers.conv1d_snake
Source     Kumar et al. 2023, arXiv:2306.06546; snake: Ziyin et al. 2020, arXiv:2006.08195.

An implicit GEMM. Snake is applied by the layer that makes a value, once, and not by each of the taps and tiles that
read it: a sine costs as much as a dozen of the products it would stand before. Where a later layer adds the value
itself, y is kept beside act: the residual stream, which is never rounded. Both are optional, and changed in place.
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
    place,
    positions,
    taps,
)


@triton.jit(
    do_not_specialize=["B", "frames", "blocks", "lag", "short", "step", "ring_x", "ring_r", "ring_y", "ring_act"]
)
def _conv1d_snake_kernel(
    x_ptr, w_ptr, bias_ptr, residual_ptr, alpha_ptr, y_ptr, act_ptr, spans_ptr, B, frames, blocks, rate, lag, short,
    step, ring_x, ring_r, ring_y, ring_act, CI: tl.constexpr, CO: tl.constexpr, TAPS: tl.constexpr,
    RESIDUAL: tl.constexpr, HAS_Y: tl.constexpr, HAS_ACT: tl.constexpr, TF32: tl.constexpr, LONG: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Grid (tiles of lanes, tiles of Co): a program owns a tile of y and act."""
    reach = TAPS // 2 * step
    row, _, t, size, live = lanes(spans_ptr, B, frames, rate, lag + reach, short, BLOCK_M)
    live = live & (t >= 0) & (t < size)
    if tl.max(live.to(tl.int32), axis=0) == 0:
        return
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_n = n < CO
    acc = taps(
        x_ptr, w_ptr, row, t - reach, size, live, n, mask_n, ring_x, step, blocks, CI, TAPS, TF32, LONG, BLOCK_M,
        BLOCK_N, BLOCK_K,
    )  # fmt: skip
    acc += tl.load(bias_ptr + n, mask=mask_n, other=0.0).to(tl.float32)[None, :]
    mask = live[:, None] & mask_n[None, :]
    if RESIDUAL:
        at = offset(row, place(t, ring_r), ring_r, CO, LONG)
        acc += tl.load(residual_ptr + at[:, None] + n[None, :], mask=mask, other=0.0)
    y_rows = offset(row, place(t, ring_y), ring_y, CO, LONG)
    act_rows = offset(row, place(t, ring_act), ring_act, CO, LONG)
    emit(acc, y_ptr, act_ptr, alpha_ptr, y_rows[:, None], act_rows[:, None], mask, n, mask_n, HAS_Y, HAS_ACT)


@torch.library.custom_op("zonos2_triton::conv1d_snake", mutates_args=("y", "act"))
def conv1d_snake(
    x: Tensor, weight: Tensor, bias: Tensor, spans: Tensor, frames: int, rate: int, lag: int, short: int,
    dilation: int = 1, residual: Tensor | None = None, alpha: Tensor | None = None, y: Tensor | None = None,
    act: Tensor | None = None, tf32: bool = False,
) -> None:  # fmt: skip
    sizes = check(
        "conv1d_snake",
        x=Arg(x, "B R Ci"),
        weight=Arg(weight, "Co K"),
        bias=Arg(bias, "Co"),
        spans=Arg(spans, "B 4", torch.int32),
        residual=Arg(residual, "B Rr Co", torch.float32),
        alpha=Arg(alpha, "Co"),
        y=Arg(y, "B Ry Co", torch.float32),
        act=Arg(act, "B Ra Co"),
    )
    B, R, Ci, Co, K = (sizes[axis] for axis in ("B", "R", "Ci", "Co", "K"))
    if K % Ci or K // Ci % 2 == 0:
        raise ValueError(f"conv1d_snake: weight must hold an odd number of taps of Ci={Ci} channels, got {K} columns")
    check_step("conv1d_snake", x, spans, frames, rate, lag, short, tf32)
    if dilation < 1:
        raise ValueError(f"conv1d_snake: dilation must be at least 1, got {dilation}")
    check_outputs("conv1d_snake", y, act, alpha)
    each, count = frames * rate, K // Ci
    check_ring("conv1d_snake", "x", x, each + (count - 1) * dilation, "those of a step and the taps around them")
    for name, ring in (("residual", residual), ("y", y), ("act", act)):
        check_ring("conv1d_snake", name, ring, each, "those of a step")
    if not runs_kernel(x):
        return cpu_fallback(
            "conv1d_snake", x, weight, bias, spans, frames, rate, lag, short, dilation, residual, alpha, y, act, tf32
        )  # fmt: skip
    launch = launch_config("conv1d_snake", "first" if rate == 1 else "taps", x.dtype, tf32=tf32)
    grid = triton.cdiv(B * each, launch["BLOCK_M"]), triton.cdiv(Co, launch["BLOCK_N"])
    blocks = count * triton.cdiv(Ci, launch["BLOCK_K"])
    _conv1d_snake_kernel[grid](
        x, weight, bias, residual, alpha, y, act, spans, B, frames, blocks, rate, lag, short, dilation, R,
        positions(residual), positions(y), positions(act), CI=Ci, CO=Co, TAPS=count, RESIDUAL=residual is not None,
        HAS_Y=y is not None, HAS_ACT=act is not None, TF32=tf32, LONG=long(x, residual, y, act), **launch,
    )  # fmt: skip


@fake(conv1d_snake)
def _(
    x: Tensor, weight: Tensor, bias: Tensor, spans: Tensor, frames: int, rate: int, lag: int, short: int,
    dilation: int = 1, residual: Tensor | None = None, alpha: Tensor | None = None, y: Tensor | None = None,
    act: Tensor | None = None, tf32: bool = False,
) -> None:  # fmt: skip
    return None


def cost(
    B: int, frames: int, rate: int, Ci: int, Co: int, taps: int, itemsize: int, residual: bool = False,
    y: bool = False, act: bool = True,
) -> Cost:  # fmt: skip
    """Of rows whose every position of the step lies in the clip; the tails around them are in the caches."""
    macs = taps * Ci * Co
    return layer_cost(B * frames * rate, macs, macs, Ci + Co * act, Co * (residual + y), itemsize)
