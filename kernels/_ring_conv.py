"""Shared by the vocoder's kernels: ring buffers, the metadata of a step, and the convolution over them.

Each of B batch slots holds a clip. Between two layers lies a ring buffer [B, R, channels], where position p of a clip
has index p % R. A step computes the positions by which a layer's input has grown. Positions outside of the clip are
never read: they are the zero padding.

`step_meta` [B, 4] int32 says which frames of each slot a step computes:

    0  done    frames before this step
    1  count   frames of this step, at most `frames`; 0: the slot sits out
    2  length  frames of the clip; LENGTH_UNKNOWN: not known yet
    3  known   frames of codes that have come; ~known: no more will

A layer's input has samples_per_frame positions a frame. They come `delay` positions late, for a convolution waits for
its later taps. The clip has samples_per_frame * length - tail_trim positions. A step computes those from
samples_per_frame * done - delay on, samples_per_frame * count of them.

An example: frames = 2, samples_per_frame = 4, delay = 3, tail_trim = 0.

    step_meta                  positions    of these in the clip
    0, 2, LENGTH_UNKNOWN, 2    -3 .. 4      0 .. 4
    2, 2, LENGTH_UNKNOWN, 5    5 .. 12      5 .. 12
    4, 0, LENGTH_UNKNOWN, 5    none         none
    4, 2, 5, ~5                13 .. 20     13 .. 19

A program computes BLOCK_M of the B * frames * samples_per_frame positions of a step, those of one slot after those of
the other. Each position is one sum over taps and channels, in one order for any tile, batch and length of step. So
streams, batches and whole clips are bitwise identical.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from zonos2_triton.kernels._args import check_range, may_sync
from zonos2_triton.kernels._math import dot_fp32, round_to, snake
from zonos2_triton.kernels._operator import Cost, Launch

LENGTH_UNKNOWN = 2**31 - 1
MAX_POSITIONS = 2**31 - 2**16  # of a step
INT64_FROM = 2**31 - 2**20  # elements of a ring; a tile may reach a little beyond
# Arguments that change from step to step and from layer to layer: one binary serves all values.
NOT_SPECIALIZED = ["B", "frames", "n_blocks", "delay", "tail_trim", "dilation"]
NOT_SPECIALIZED += ["x_ring_len", "residual_ring_len", "y_ring_len", "activated_ring_len"]


@triton.jit
def step_positions(
    step_meta_ptr,  # [B, 4] int32
    B,
    frames,
    samples_per_frame,
    delay,
    tail_trim,
    BLOCK_M: tl.constexpr,
):
    """Slot, column within the slot's step, position, length of the clip in positions, and mask of this program's tile.

    step_meta and the rings may only be read where the mask is set.
    """
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    slot = m // (frames * samples_per_frame)
    column = m - slot * (frames * samples_per_frame)
    mask = slot < B
    done = tl.load(step_meta_ptr + slot * 4, mask=mask, other=0).to(tl.int64)
    count = tl.load(step_meta_ptr + slot * 4 + 1, mask=mask, other=0)
    length = tl.load(step_meta_ptr + slot * 4 + 2, mask=mask, other=0).to(tl.int64)
    position = done * samples_per_frame - delay + column
    clip_len = length * samples_per_frame - tail_trim
    return slot, column, position, clip_len, mask & (column < count * samples_per_frame)


@triton.jit
def ring_index(position, R):
    """The index of a position in its ring. A negative position has a negative index, which `ring_advance` continues."""
    return (position % R).to(tl.int32)


@triton.jit
def ring_advance(index, distance, R):
    """The index `distance` < R positions after `index`."""
    return tl.where(index + distance >= R, index + distance - R, index + distance)


@triton.jit
def ring_offset(
    slot,  # [BLOCK_M], or [BLOCK_M, 1]
    index,  # [BLOCK_M], or [BLOCK_M, BLOCK_N]
    R,
    channels,
    INT64: tl.constexpr,
):
    """The offsets of the first channel at ring indices, in their shape. INT64: a ring has 2^31 elements or more."""
    if INT64:
        return (slot.to(tl.int64) * R + index) * channels
    else:
        return (slot * R + index) * channels


@triton.jit
def tap_range(
    first,  # [BLOCK_M] int64
    clip_len,  # [BLOCK_M] int64
    mask_m,  # [BLOCK_M]
):
    """begin, end [BLOCK_M] int32: positions first + i lie in the clip for begin <= i < end."""
    begin = tl.minimum(tl.maximum(-first, 0), 1 << 30).to(tl.int32)
    end = tl.minimum(tl.maximum(clip_len - first, 0), 1 << 30).to(tl.int32)
    return begin, tl.where(mask_m, end, 0)


@triton.jit
def im2col_tile(
    x_ptr,  # [B, R, CI]
    slot,  # [BLOCK_M]
    index,  # [BLOCK_M] ring index of the first tap
    R,
    begin,  # [BLOCK_M]
    end,  # [BLOCK_M]
    i,
    dilation,
    CI: tl.constexpr,
    BLOCK_K: tl.constexpr,
    INT64: tl.constexpr,
):
    """Block i of the left operand [BLOCK_M, BLOCK_K]: BLOCK_K channels of one tap. Also its columns k, and their mask.

    Blocks go through the channels of a tap before the next tap: k = tap * CI + channel.
    """
    CHUNKS: tl.constexpr = (CI + BLOCK_K - 1) // BLOCK_K
    tap = i // CHUNKS
    c = (i % CHUNKS) * BLOCK_K + tl.arange(0, BLOCK_K)
    ahead = tap * dilation
    mask = ((ahead >= begin) & (ahead < end))[:, None]
    if CI % BLOCK_K != 0:
        mask = mask & (c < CI)[None, :]
    offs = ring_offset(slot, ring_advance(index, ahead, R), R, CI, INT64)
    x = tl.load(x_ptr + offs[:, None] + c[None, :], mask=mask, other=0.0)
    return x, tap * CI + c, c < CI


@triton.jit
def weight_tile(
    w_ptr,  # [N, K]
    n,  # [BLOCK_N]
    k,  # [BLOCK_K]
    mask_n,  # [BLOCK_N]
    mask_k,  # [BLOCK_K]
    K: tl.constexpr,
    EVEN: tl.constexpr,
):
    """The right operand [BLOCK_K, BLOCK_N]: columns k of rows n of the weights. EVEN: mask_k holds everywhere."""
    mask = mask_n[None, :]
    if not EVEN:
        mask = mask & mask_k[:, None]
    return tl.load(w_ptr + n[None, :] * K + k[:, None], mask=mask, other=0.0)


@triton.jit
def implicit_gemm(
    x_ptr,  # [B, R, CI]
    w_ptr,  # [N, TAPS * CI]
    slot,  # [BLOCK_M]
    first,  # [BLOCK_M] position of the first tap
    clip_len,  # [BLOCK_M]
    mask_m,  # [BLOCK_M]
    n,  # [BLOCK_N]
    mask_n,  # [BLOCK_N]
    R,
    dilation,
    n_blocks,
    CI: tl.constexpr,
    TAPS: tl.constexpr,
    TF32: tl.constexpr,
    INT64: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """fp32 [BLOCK_M, BLOCK_N]: the sum over taps j and channels of x[first + j * dilation] w[n, j].

    n_blocks is TAPS * cdiv(CI, BLOCK_K). It is no constant, for the compiler would unroll the loop.
    """
    index = ring_index(first, R)
    begin, end = tap_range(first, clip_len, mask_m)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for i in range(n_blocks):
        x, k, mask_k = im2col_tile(x_ptr, slot, index, R, begin, end, i, dilation, CI, BLOCK_K, INT64)
        acc = dot_fp32(x, weight_tile(w_ptr, n, k, mask_n, mask_k, TAPS * CI, CI % BLOCK_K == 0), acc, TF32)
    return acc


@triton.jit
def store_epilogue(
    out,  # [BLOCK_M, BLOCK_N] fp32
    y_ptr,  # ring in fp32, or None
    activated_ptr,  # ring, or None
    alpha_ptr,
    y_offs,  # [BLOCK_M, 1 or BLOCK_N] offsets of the first channel
    activated_offs,
    mask,  # [BLOCK_M, BLOCK_N]
    channel,  # [BLOCK_N]
    mask_n,  # [BLOCK_N]
):
    """Stores `out` into ring y, and snake(out), rounded, into ring activated."""
    if y_ptr is not None:
        tl.store(y_ptr + y_offs + channel[None, :], out, mask=mask)
    if activated_ptr is not None:
        alpha = tl.load(alpha_ptr + channel, mask=mask_n, other=1.0).to(tl.float32)
        activated_ptrs = activated_ptr + activated_offs + channel[None, :]
        tl.store(activated_ptrs, round_to(snake(out, alpha), activated_ptr.dtype.element_ty), mask=mask)


def check_step(
    op: str,
    x: Tensor,
    step_meta: Tensor,
    frames: int,
    samples_per_frame: int,
    delay: int,
    tail_trim: int,
    tf32: bool,
    outputs: int = 1,
) -> Launch:
    """The launch arguments of a step. ValueError: numbers that no step has, or too many positions.

    outputs: positions made of one of the input.
    """
    if tf32 and x.dtype != torch.float32:
        raise ValueError(f"{op}: tf32 is a way to multiply torch.float32, got {x.dtype}")
    sizes = ("frames", frames, 1), ("samples_per_frame", samples_per_frame, 1)
    for name, value, least in (*sizes, ("delay", delay, 0), ("tail_trim", tail_trim, 0)):
        if value < least:
            raise ValueError(f"{op}: {name} must be at least {least}, got {value}")
    if step_meta.shape[0] * frames * samples_per_frame * outputs > MAX_POSITIONS:
        raise ValueError(
            f"{op}: a step makes at most {MAX_POSITIONS} positions, got {step_meta.shape[0]} slots of {frames} frames "
            f"of {samples_per_frame * outputs}; take fewer frames"
        )
    if may_sync(step_meta):
        done, count, length, _ = step_meta.unbind(1)
        latest = LENGTH_UNKNOWN - frames
        check_range(op, "frames before the step (step_meta[:, 0])", done, 0, latest, "frames of a clip")
        check_range(op, "frames of the step (step_meta[:, 1])", count, 0, frames, "at most `frames`")
        check_range(op, "frames of the clip (step_meta[:, 2])", length, 0, LENGTH_UNKNOWN, "or LENGTH_UNKNOWN")
    timing = {"samples_per_frame": samples_per_frame, "delay": delay, "tail_trim": tail_trim}
    return {"step_meta_ptr": step_meta, "B": step_meta.shape[0], "frames": frames, **timing, "TF32": tf32}


def check_taps(op: str, weight: Tensor, x: Tensor, dilation: int = 1, axis: str = "Ci") -> int:
    """The taps of weight [Co, taps * Ci]. ValueError: no odd number of them, or no dilation. axis: the name of Ci."""
    (_, K), channels = weight.shape, x.shape[2]
    if K % channels or K // channels % 2 == 0:
        raise ValueError(f"{op}: weight must hold an odd number of taps of {axis}={channels} channels, got {K} columns")
    if dilation < 1:
        raise ValueError(f"{op}: dilation must be at least 1, got {dilation}")
    return K // channels


def check_ring(op: str, name: str, ring: Tensor | None, least: int, what: str = "those of a step") -> None:
    """ValueError: a ring is shorter than the positions that a step reads from it or writes into it."""
    if ring is not None and ring.shape[1] < least:
        raise ValueError(f"{op}: {name} must hold {least} positions, {what}, got {ring.shape[1]}")


def check_outputs(op: str, positions: int, alpha: Tensor | None, y: Tensor | None, activated: Tensor | None) -> None:
    """ValueError: no output, an activation without its alpha, or a ring that is too short for a step's positions."""
    if y is None and activated is None:
        raise ValueError(f"{op}: y or activated must be given, got neither")
    if (activated is None) != (alpha is None):
        have, lack = ("alpha", "activated") if activated is None else ("activated", "alpha")
        raise ValueError(f"{op}: activated and alpha must be given together, got {have} without {lack}")
    check_ring(op, "y", y, positions)
    check_ring(op, "activated", activated, positions)


def needs_int64(*rings: Tensor | None) -> bool:
    """Whether offsets into one of the rings need 64 bits."""
    return any(ring is not None and ring.numel() >= INT64_FROM for ring in rings)


def ring_arguments(**rings: Tensor | None) -> Launch:
    """The launch arguments of a kernel's rings, by name: pointers, lengths (1 where a ring is absent), INT64."""
    pointers = {f"{name}_ptr": ring for name, ring in rings.items()}
    lengths = {f"{name}_ring_len": 1 if ring is None else ring.shape[1] for name, ring in rings.items()}
    return {**pointers, **lengths, "INT64": needs_int64(*rings.values())}


def layer_cost(positions: int, macs: int, weights: int, moved: int, wide: int, itemsize: int) -> Cost:
    """macs, elements moved and elements moved in fp32 are those of one position; the weights are read once."""
    return Cost((weights + positions * moved) * itemsize + positions * wide * 4, 2 * positions * macs)
