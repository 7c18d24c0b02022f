"""A residual unit of a vocoder, a step at a time: y = residual + point(snake(conv(x))), act = snake(y).

Shapes     x, residual, y, act [B, R, C], rings of any lengths that hold what the step reads and writes; weight [C, taps
           * C], channels last, taps odd; inner_weight [C, C]; bias, inner_bias, inner_alpha, alpha [C]; C up to 192.
           spans [B, 4]: frames before the step, of the step, of the clip (OPEN: not known), of codes that came. x has
           rate positions a frame, lags by `lag`, and rate * length - short of a clip; y and act lag by taps // 2 *
           dilation more. x is snake of residual, as whoever made residual left it.
Dtypes     one of fp32, fp16, bf16, but spans int32, and y and residual fp32; fp32 accumulation; what is between the
           convolutions and act rounded once each. tf32=True multiplies fp32 as tf32.
Raises     ValueError, TypeError naming operation, argument, what came and what is accepted; spans out of range where
           looking costs nothing (CPU tensors, TRITON_DEBUG=1).
Reference  zonos2_triton.reference.vocoder_layers.residual_unit
Source     Kumar et al. 2023, arXiv:2306.06546.

One launch for two of `conv1d_snake`: a program owns all channels of its positions, so what is between the convolutions
stays on the chip. That saves writing and reading it, in half precision 4 of 16 bytes a position and channel, and a
launch. Above 192 channels it does not pay: the sums of all channels would not fit the registers of a program, and a
short step has too few positions to fill the card with one program each.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from zonos2_triton.kernels._args import Arg, check
from zonos2_triton.kernels._launch_config import launch_config
from zonos2_triton.kernels._math import dot_fp32, round_to, snake
from zonos2_triton.kernels._operator import Cost, cpu_fallback, fake, runs_kernel
from zonos2_triton.kernels._ring_conv import (
    check_outputs,
    check_ring,
    check_step,
    emit,
    gathered,
    lanes,
    layer_cost,
    long,
    offset,
    place,
    positions,
    span,
    weights,
)

WIDEST = 192


@triton.jit
def _between(acc, bias_ptr, alpha_ptr, n, C: tl.constexpr, dtype: tl.constexpr):
    """What the second convolution reads of channels n."""
    acc += tl.load(bias_ptr + n, mask=n < C, other=0.0).to(tl.float32)[None, :]
    return round_to(snake(acc, tl.load(alpha_ptr + n, mask=n < C, other=1.0).to(tl.float32)), dtype)


@triton.jit(
    do_not_specialize=["B", "frames", "blocks", "lag", "short", "step", "ring_x", "ring_r", "ring_y", "ring_act"]
)
def _residual_unit_kernel(
    x_ptr, residual_ptr, w_ptr, bias_ptr, inner_alpha_ptr, inner_w_ptr, inner_bias_ptr, alpha_ptr, y_ptr, act_ptr,
    spans_ptr, B, frames, blocks, rate, lag, short, step, ring_x, ring_r, ring_y, ring_act, C: tl.constexpr,
    TAPS: tl.constexpr, PARTS: tl.constexpr, HAS_Y: tl.constexpr, HAS_ACT: tl.constexpr, TF32: tl.constexpr,
    LONG: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Grid (tiles of lanes,): a program owns all channels of its lanes, in PARTS, 1 or 3, of BLOCK_N."""
    reach = TAPS // 2 * step
    row, _, t, size, live = lanes(spans_ptr, B, frames, rate, lag + reach, short, BLOCK_M)
    live = live & (t >= 0) & (t < size)
    if tl.max(live.to(tl.int32), axis=0) == 0:
        return
    at = place(t - reach, ring_x)
    begin, end = span(t - reach, size, live)
    n0 = tl.arange(0, BLOCK_N)
    n1, n2 = n0 + BLOCK_N, n0 + 2 * BLOCK_N
    WIDE: tl.constexpr = TAPS * C
    EVEN: tl.constexpr = C % BLOCK_K == 0
    acc0 = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    acc1, acc2 = acc0, acc0
    for i in range(blocks):
        x, k, mask_k = gathered(x_ptr, row, at, ring_x, begin, end, i, step, C, BLOCK_K, LONG)
        acc0 = dot_fp32(x, weights(w_ptr, n0, k, n0 < C, mask_k, WIDE, EVEN), acc0, TF32)
        if PARTS == 3:
            acc1 = dot_fp32(x, weights(w_ptr, n1, k, n1 < C, mask_k, WIDE, EVEN), acc1, TF32)
            acc2 = dot_fp32(x, weights(w_ptr, n2, k, n2 < C, mask_k, WIDE, EVEN), acc2, TF32)
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    h0 = _between(acc0, bias_ptr, inner_alpha_ptr, n0, C, dtype)
    h1 = _between(acc1, bias_ptr, inner_alpha_ptr, n1, C, dtype)
    h2 = _between(acc2, bias_ptr, inner_alpha_ptr, n2, C, dtype)
    r_rows = offset(row, place(t, ring_r), ring_r, C, LONG)[:, None]
    y_rows = offset(row, place(t, ring_y), ring_y, C, LONG)[:, None]
    act_rows = offset(row, place(t, ring_act), ring_act, C, LONG)[:, None]
    for part in tl.static_range(PARTS):
        n = part * BLOCK_N + n0
        mask_n = n < C
        out = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        out = dot_fp32(h0, weights(inner_w_ptr, n, n0, mask_n, n0 < C, C, C % BLOCK_N == 0), out, TF32)
        if PARTS == 3:
            out = dot_fp32(h1, weights(inner_w_ptr, n, n1, mask_n, n1 < C, C, C % BLOCK_N == 0), out, TF32)
            out = dot_fp32(h2, weights(inner_w_ptr, n, n2, mask_n, n2 < C, C, C % BLOCK_N == 0), out, TF32)
        out += tl.load(inner_bias_ptr + n, mask=mask_n, other=0.0).to(tl.float32)[None, :]
        mask = live[:, None] & mask_n[None, :]
        out += tl.load(residual_ptr + r_rows + n[None, :], mask=mask, other=0.0)
        emit(out, y_ptr, act_ptr, alpha_ptr, y_rows, act_rows, mask, n, mask_n, HAS_Y, HAS_ACT)


@torch.library.custom_op("zonos2_triton::residual_unit", mutates_args=("y", "act"))
def residual_unit(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, inner_alpha: Tensor, inner_weight: Tensor,
    inner_bias: Tensor, spans: Tensor, frames: int, rate: int, lag: int, short: int, dilation: int = 1,
    alpha: Tensor | None = None, y: Tensor | None = None, act: Tensor | None = None, tf32: bool = False,
) -> None:  # fmt: skip
    sizes = check(
        "residual_unit",
        x=Arg(x, "B R C"),
        residual=Arg(residual, "B Rr C", torch.float32),
        weight=Arg(weight, "C K"),
        bias=Arg(bias, "C"),
        inner_alpha=Arg(inner_alpha, "C"),
        inner_weight=Arg(inner_weight, "C C"),
        inner_bias=Arg(inner_bias, "C"),
        spans=Arg(spans, "B 4", torch.int32),
        alpha=Arg(alpha, "C"),
        y=Arg(y, "B Ry C", torch.float32),
        act=Arg(act, "B Ra C"),
    )
    B, R, C, K = (sizes[axis] for axis in ("B", "R", "C", "K"))
    if K % C or K // C % 2 == 0:
        raise ValueError(f"residual_unit: weight must hold an odd number of taps of C={C} channels, got {K} columns")
    if C > WIDEST:
        raise ValueError(f"residual_unit: C must be at most {WIDEST}, got {C}; use two of conv1d_snake")
    check_step("residual_unit", x, spans, frames, rate, lag, short, tf32)
    if dilation < 1:
        raise ValueError(f"residual_unit: dilation must be at least 1, got {dilation}")
    check_outputs("residual_unit", y, act, alpha)
    each, count = frames * rate, K // C
    check_ring("residual_unit", "x", x, each + (count - 1) * dilation, "those of a step and the taps around them")
    for name, ring in (("residual", residual), ("y", y), ("act", act)):
        check_ring("residual_unit", name, ring, each, "those of a step")
    if not runs_kernel(x):
        return cpu_fallback(
            "residual_unit", x, residual, weight, bias, inner_alpha, inner_weight, inner_bias, spans, frames, rate,
            lag, short, dilation, alpha, y, act, tf32,
        )  # fmt: skip
    # 192 is three times 64: in three parts nothing is padded. For 96, parts of 32 would keep the matrix units waiting.
    parts = 3 if C > 128 else 1
    launch = launch_config("residual_unit", "wide" if parts == 3 else "narrow", x.dtype, tf32=tf32)
    launch = {**launch, "BLOCK_N": max(16, triton.next_power_of_2(triton.cdiv(C, parts)))}
    blocks = count * triton.cdiv(C, launch["BLOCK_K"])
    _residual_unit_kernel[(triton.cdiv(B * each, launch["BLOCK_M"]),)](
        x, residual, weight, bias, inner_alpha, inner_weight, inner_bias, alpha, y, act, spans, B, frames, blocks, rate,
        lag, short, dilation, R, positions(residual), positions(y), positions(act), C=C, TAPS=count, PARTS=parts,
        HAS_Y=y is not None, HAS_ACT=act is not None, TF32=tf32, LONG=long(x, residual, y, act), **launch,
    )  # fmt: skip


@fake(residual_unit)
def _(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, inner_alpha: Tensor, inner_weight: Tensor,
    inner_bias: Tensor, spans: Tensor, frames: int, rate: int, lag: int, short: int, dilation: int = 1,
    alpha: Tensor | None = None, y: Tensor | None = None, act: Tensor | None = None, tf32: bool = False,
) -> None:  # fmt: skip
    return None


def cost(
    B: int, frames: int, rate: int, C: int, taps: int, itemsize: int, y: bool = True, act: bool = True
) -> Cost:  # fmt: skip
    """Of rows whose every position of the step lies in the clip; what is between the convolutions does not move."""
    macs = (taps + 1) * C * C
    return layer_cost(B * frames * rate, macs, macs, C * (1 + act), C * (1 + y), itemsize)
