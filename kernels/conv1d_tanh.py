"""The end of a vocoder, a step at a time: samples = tanh(conv(x)), one channel.

Shapes     x [B, R, Ci], a ring that holds what the step reads; weight [1, taps * Ci], channels last, taps odd; bias
           [1]; spans [B, 4]: frames before the step, of the step, of the clip (OPEN: not known), of codes that came. x
           has rate positions a frame, lags by `lag`, and rate * length - short of a clip. -> samples [B, frames *
           rate]: column j of a row is its position rate * done - lag - taps // 2 + j; outside of the clip, and behind
           the row's own frames, it is 0. y [B, R', 1], optional, a ring: the same before the tanh.
Dtypes     one of fp32, fp16, bf16, but spans int32, samples and y fp32; fp32 accumulation. tf32=True multiplies fp32 as
           tf32.
Raises     ValueError, TypeError naming operation, argument, what came and what is accepted; spans out of range where
           looking costs nothing (CPU tensors, TRITON_DEBUG=1).
Reference  zonos2_triton.reference.vocoder_layers.conv1d_tanh
Source     Kumar et al. 2023, arXiv:2306.06546.

A product with one column of weights and fifteen of zeros: the matrix units are faster at that than the others at one.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from zonos2_triton.kernels._args import Arg, check
from zonos2_triton.kernels._launch_config import launch_config
from zonos2_triton.kernels._math import tanh
from zonos2_triton.kernels._operator import Cost, cpu_fallback, fake, runs_kernel
from zonos2_triton.kernels._ring_conv import (
    check_ring,
    check_step,
    lanes,
    layer_cost,
    long,
    offset,
    place,
    positions,
    taps,
)


@triton.jit(do_not_specialize=["B", "frames", "blocks", "lag", "short", "ring_x", "ring_y"])
def _conv1d_tanh_kernel(
    x_ptr, w_ptr, bias_ptr, samples_ptr, y_ptr, spans_ptr, B, frames, blocks, rate, lag, short, ring_x, ring_y,
    CI: tl.constexpr, TAPS: tl.constexpr, HAS_Y: tl.constexpr, TF32: tl.constexpr, LONG: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Grid (tiles of lanes,): a program owns a tile of samples."""
    row, column, t, size, live = lanes(spans_ptr, B, frames, rate, lag + TAPS // 2, short, BLOCK_M)
    live = live & (t >= 0) & (t < size)
    n = tl.arange(0, BLOCK_N)
    acc = taps(
        x_ptr, w_ptr, row, t - TAPS // 2, size, live, n, n < 1, ring_x, 1, blocks, CI, TAPS, TF32, LONG, BLOCK_M,
        BLOCK_N, BLOCK_K,
    )  # fmt: skip
    out = tl.sum(tl.where((n == 0)[None, :], acc, 0.0), axis=1) + tl.load(bias_ptr).to(tl.float32)
    if HAS_Y:
        tl.store(y_ptr + offset(row, place(t, ring_y), ring_y, 1, LONG), out, mask=live)
    tl.store(samples_ptr + row * (frames * rate) + column, tl.where(live, tanh(out), 0.0), mask=row < B)


@torch.library.custom_op("zonos2_triton::conv1d_tanh", mutates_args=("y",))
def conv1d_tanh(
    x: Tensor, weight: Tensor, bias: Tensor, spans: Tensor, frames: int, rate: int, lag: int, short: int,
    y: Tensor | None = None, tf32: bool = False,
) -> Tensor:  # fmt: skip
    sizes = check(
        "conv1d_tanh",
        x=Arg(x, "B R Ci"),
        weight=Arg(weight, "1 K"),
        bias=Arg(bias, "1"),
        spans=Arg(spans, "B 4", torch.int32),
        y=Arg(y, "B Ry 1", torch.float32),
    )
    B, R, Ci, K = (sizes[axis] for axis in ("B", "R", "Ci", "K"))
    if K % Ci or K // Ci % 2 == 0:
        raise ValueError(f"conv1d_tanh: weight must hold an odd number of taps of Ci={Ci} channels, got {K} columns")
    check_step("conv1d_tanh", x, spans, frames, rate, lag, short, tf32)
    each, count = frames * rate, K // Ci
    check_ring("conv1d_tanh", "x", x, each + count - 1, "those of a step and the taps around them")
    check_ring("conv1d_tanh", "y", y, each, "those of a step")
    if not runs_kernel(x):
        return cpu_fallback("conv1d_tanh", x, weight, bias, spans, frames, rate, lag, short, y, tf32)
    samples = x.new_empty((B, each), dtype=torch.float32)
    launch = launch_config("conv1d_tanh", "taps", x.dtype, tf32=tf32)
    blocks = count * triton.cdiv(Ci, launch["BLOCK_K"])
    _conv1d_tanh_kernel[(triton.cdiv(B * each, launch["BLOCK_M"]),)](
        x, weight, bias, samples, y, spans, B, frames, blocks, rate, lag, short, R, positions(y), CI=Ci, TAPS=count,
        HAS_Y=y is not None, TF32=tf32, LONG=long(x), **launch,
    )  # fmt: skip
    return samples


@fake(conv1d_tanh)
def _(
    x: Tensor, weight: Tensor, bias: Tensor, spans: Tensor, frames: int, rate: int, lag: int, short: int,
    y: Tensor | None = None, tf32: bool = False,
) -> Tensor:  # fmt: skip
    return x.new_empty((len(x), frames * rate), dtype=torch.float32)


def cost(B: int, frames: int, rate: int, Ci: int, taps: int, itemsize: int) -> Cost:
    """Of rows whose every position of the step lies in the clip."""
    return layer_cost(B * frames * rate, taps * Ci, taps * Ci, Ci, 1, itemsize)
