"""What the vocoder's kernels share: clips whose activations lie in rings, and the convolution over them.

A ring [B, R, channels] holds position p of a row's clip at p mod R. Lanes are the positions that a step computes, those
of one row after those of the other, so that a tile may hold several short ones. What a lane computes is one sum over
taps and channels in one order: it depends neither on the tile that the lane is in, nor on how a clip was cut into
steps. That is what makes streams, batches and whole clips equal bit for bit.

A convolution is a product of [positions, taps * channels] with the weights, whose left side is gathered from the ring
tap by tap. Positions outside of the clip are not read: they are its zero padding.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from zonos2_triton.kernels._args import check_range, may_sync
from zonos2_triton.kernels._math import dot_fp32, round_to, snake
from zonos2_triton.kernels._operator import Cost

OPEN = 2**31 - 1  # the length of a clip that is not known yet
MOST_LANES = 2**31 - 2**16
LONG_FROM = 2**31 - 2**20  # elements of a ring; a tile may look a little beyond


@triton.jit
def lanes(spans_ptr, B, frames, rate, lag, short, BLOCK_M: tl.constexpr):
    """Of this program's lanes: row, column within the row's `frames`, position, length of the clip, whether it exists.

    spans and rings are read where a lane exists alone.
    """
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    row = m // (frames * rate)
    column = m - row * (frames * rate)
    mask = row < B
    done = tl.load(spans_ptr + row * 4, mask=mask, other=0).to(tl.int64)
    count = tl.load(spans_ptr + row * 4 + 1, mask=mask, other=0)
    length = tl.load(spans_ptr + row * 4 + 2, mask=mask, other=0).to(tl.int64)
    return row, column, done * rate - lag + column, length * rate - short, mask & (column < count * rate)


@triton.jit
def place(position, ring):
    """Where a position lies in a ring. A negative one lies nowhere, but `onward` leads from here to those behind it."""
    return (position % ring).to(tl.int32)


@triton.jit
def offset(row, at, ring, channels, LONG: tl.constexpr):
    """Where the channels of a place begin; LONG: a ring tensor has 2^31 elements or more."""
    if LONG:
        return (row.to(tl.int64) * ring + at) * channels
    else:
        return (row * ring + at) * channels


@triton.jit
def onward(at, step, ring):
    """The place `step` positions after place `at`; step is less than the ring."""
    return tl.where(at + step >= ring, at + step - ring, at + step)


@triton.jit
def span(first, size, live):
    """begin and end of the steps i from `first` that stay within the clip: begin <= i < end."""
    begin = tl.minimum(tl.maximum(-first, 0), 1 << 30).to(tl.int32)
    end = tl.minimum(tl.maximum(size - first, 0), 1 << 30).to(tl.int32)
    return begin, tl.where(live, end, 0)


@triton.jit
def gathered(
    x_ptr, row, at, ring, begin, end, i, step, CI: tl.constexpr, BLOCK_K: tl.constexpr, LONG: tl.constexpr
):  # fmt: skip
    """Part i of the left side, [BLOCK_M, BLOCK_K], and which columns of a row of weights go with it."""
    CHUNKS: tl.constexpr = (CI + BLOCK_K - 1) // BLOCK_K
    tap = i // CHUNKS
    c = (i % CHUNKS) * BLOCK_K + tl.arange(0, BLOCK_K)
    ahead = tap * step
    mask = ((ahead >= begin) & (ahead < end))[:, None]
    if CI % BLOCK_K != 0:
        mask = mask & (c < CI)[None, :]
    x_rows = offset(row, onward(at, ahead, ring), ring, CI, LONG)
    x = tl.load(x_ptr + x_rows[:, None] + c[None, :], mask=mask, other=0.0)
    return x, tap * CI + c, c < CI


@triton.jit
def weights(w_ptr, n, k, mask_n, mask_k, K: tl.constexpr, EVEN: tl.constexpr):
    """The right side [BLOCK_K, BLOCK_N]: rows n of weights [N, K], columns k."""
    mask = mask_n[None, :]
    if not EVEN:
        mask = mask & mask_k[:, None]
    return tl.load(w_ptr + n[None, :] * K + k[:, None], mask=mask, other=0.0)


@triton.jit
def taps(
    x_ptr, w_ptr, row, first, size, live, n, mask_n, ring, step, blocks, CI: tl.constexpr, TAPS: tl.constexpr,
    TF32: tl.constexpr, LONG: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """fp32 [BLOCK_M, BLOCK_N]: of each lane, the sum over taps j and channels of x[first + j * step] w[n, j].

    blocks: of the sum, TAPS times those of CI; the compiler is not to know, or it unrolls the loop.
    """
    at = place(first, ring)
    begin, end = span(first, size, live)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for i in range(blocks):
        x, k, mask_k = gathered(x_ptr, row, at, ring, begin, end, i, step, CI, BLOCK_K, LONG)
        acc = dot_fp32(x, weights(w_ptr, n, k, mask_n, mask_k, TAPS * CI, CI % BLOCK_K == 0), acc, TF32)
    return acc


@triton.jit
def emit(
    out, y_ptr, act_ptr, alpha_ptr, y_rows, act_rows, mask, channel, mask_n, HAS_Y: tl.constexpr, HAS_ACT: tl.constexpr
):  # fmt: skip
    """out into ring y, which is fp32, and snake(out), rounded, into ring act; rows are their places, as offsets."""
    if HAS_Y:
        tl.store(y_ptr + y_rows + channel[None, :], out, mask=mask)
    if HAS_ACT:
        alpha = tl.load(alpha_ptr + channel, mask=mask_n, other=1.0).to(tl.float32)
        act = round_to(snake(out, alpha), act_ptr.dtype.element_ty)
        tl.store(act_ptr + act_rows + channel[None, :], act, mask=mask)


def check_step(
    op: str, x: Tensor, spans: Tensor, frames: int, rate: int, lag: int, short: int, tf32: bool, outputs: int = 1
) -> None:  # fmt: skip
    """ValueError: numbers that no step has, or more lanes than there are. outputs: positions that a lane makes."""
    if tf32 and x.dtype != torch.float32:
        raise ValueError(f"{op}: tf32 is a way to multiply torch.float32, got {x.dtype}")
    for name, value, least in (("frames", frames, 1), ("rate", rate, 1), ("lag", lag, 0), ("short", short, 0)):
        if value < least:
            raise ValueError(f"{op}: {name} must be at least {least}, got {value}")
    if len(spans) * frames * rate * outputs > MOST_LANES:
        raise ValueError(
            f"{op}: a step makes at most {MOST_LANES} positions, got {len(spans)} rows of {frames} frames of "
            f"{rate * outputs}; take fewer frames"
        )
    if may_sync(spans):
        check_range(op, "frames before the step (spans[:, 0])", spans[:, 0], 0, OPEN - frames, "frames of a clip")
        check_range(op, "frames of the step (spans[:, 1])", spans[:, 1], 0, frames, "at most `frames`")
        check_range(op, "frames of the clip (spans[:, 2])", spans[:, 2], 0, OPEN, "or OPEN")


def check_ring(op: str, name: str, ring: Tensor | None, least: int, what: str) -> None:
    """ValueError: a ring that is too short for what a step reads of it, or writes into it."""
    if ring is not None and ring.shape[1] < least:
        raise ValueError(f"{op}: {name} must hold {least} positions, {what}, got {ring.shape[1]}")


def check_outputs(op: str, y: Tensor | None, act: Tensor | None, alpha: Tensor | None) -> None:
    """ValueError: nothing to write, or an activation without its alpha."""
    if y is None and act is None:
        raise ValueError(f"{op}: y or act must be given, got neither")
    if (act is None) != (alpha is None):
        have, lack = ("alpha", "act") if act is None else ("act", "alpha")
        raise ValueError(f"{op}: act and alpha must be given together, got {have} without {lack}")


def long(*rings: Tensor | None) -> bool:
    """Whether offsets into one of them need 64 bits."""
    return any(ring is not None and ring.numel() >= LONG_FROM for ring in rings)


def positions(ring: Tensor | None) -> int:
    """What a launch is told of a ring's length; of one that it does not touch, anything."""
    return 1 if ring is None else ring.shape[1]


def layer_cost(positions: int, macs: int, weights: int, moved: int, wide: int, itemsize: int) -> Cost:
    """macs of one position, elements that it moves, those in fp32 apart; and the weights, which are read once."""
    return Cost((weights + positions * moved) * itemsize + positions * wide * 4, 2 * positions * macs)
