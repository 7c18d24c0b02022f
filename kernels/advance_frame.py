"""Advance of each slot by one frame: last_seen[b, c, codes[b, c]] = steps[b], the end of audio, the next input token.

The first frame with a code equal to eoa_ids[b] sets eos_frames[b] = steps[b] - the highest such codebook, at least 0,
and lets C more frames follow. Later ends change nothing. After its last frame a slot is free: its position is -1.

Shapes     codes, nonfinite [B, C]; positions, steps, max_frames, eoa_ids, eos_frames [B]; ids [B, C + 1];
           last_seen [B, C, V]; frames [B, N, C + 1]. C < 32.
Dtypes     int32.
Raises     ValueError, TypeError naming operation, argument, what came and what is accepted; codes out of range where
           looking costs nothing (CPU tensors, TRITON_DEBUG=1).
Reference  zonos2_triton.reference.advance_frame.advance_frame
Source     Zyphra/ZONOS2, scheduler: the serial rule of its request class.

codes       the frame of `sample_codes`; nonfinite: its flag. A slot with any flag set keeps its state, but for its
            position, which becomes -2; the frame is not counted.
positions   of the newest token in the cache. Negative: the slot is free, and nothing of it changes.
steps       frames so far; max_frames: how many there will be at most.
eoa_ids     the code that ends the audio, or -1: none; eos_frames: where the audio ends, or -1: not known yet.
ids         the next input token: the codes and text_id.
last_seen   the frame in which each code came last.
frames      a ring: frame s, and eos_frame as known by then, lie at s % N.

Example: C = 3, steps[b] = 20, codes[b] = [7, 1024, 5] and eoa_ids[b] = 1024. The highest ending codebook is 1, so
eos_frames[b] = 19, and max_frames[b] becomes at most 24.

All arguments but codes, nonfinite and eoa_ids change in place.
"""

from collections.abc import Iterator
from typing import Annotated

import torch
import triton
import triton.language as tl
from torch import Tensor

from zonos2_triton.kernels._args import check_range
from zonos2_triton.kernels._dependent_launch import wait_for_previous_launch
from zonos2_triton.kernels._launch_config import launch_config
from zonos2_triton.kernels._operator import Cost, operator

SLOT_FREE, SLOT_NONFINITE = -1, -2
MOST_CODEBOOKS = 32  # lanes of the one warp


@triton.jit(
    do_not_specialize=["N"],
    do_not_specialize_on_alignment=[  # batches begin at any slot
        "positions_ptr",
        "steps_ptr",
        "max_frames_ptr",
        "eoa_ids_ptr",
        "eos_frames_ptr",
        "ids_ptr",
        "last_seen_ptr",
        "frames_ptr",
    ],
)
def _advance_frame_kernel(
    codes_ptr,  # [B, C]
    nonfinite_ptr,  # [B, C]
    positions_ptr,  # [B]
    steps_ptr,  # [B]
    max_frames_ptr,  # [B]
    eoa_ids_ptr,  # [B]
    eos_frames_ptr,  # [B]
    ids_ptr,  # [B, C + 1]
    last_seen_ptr,  # [B, C, V]
    frames_ptr,  # [B, N, C + 1]
    text_id,
    V,
    N,
    C: tl.constexpr,
    SLOT_FREE: tl.constexpr,
    SLOT_NONFINITE: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid (B,): a program owns a slot."""
    wait_for_previous_launch(PDL)
    b = tl.program_id(0).to(tl.int64)
    position = tl.load(positions_ptr + b)
    if position < 0:
        return
    offs = tl.arange(0, BLOCK_C)
    mask = offs < C
    codes = tl.load(codes_ptr + b * C + offs, mask=mask, other=0)
    nonfinite = tl.load(nonfinite_ptr + b * C + offs, mask=mask, other=0)
    if tl.max(nonfinite, axis=0) != 0:
        tl.store(positions_ptr + b, SLOT_NONFINITE)
        return
    step = tl.load(steps_ptr + b)
    max_frames = tl.load(max_frames_ptr + b)
    eoa_id = tl.load(eoa_ids_ptr + b)
    eos_frame = tl.load(eos_frames_ptr + b)
    highest = tl.max(tl.where(mask & (codes == eoa_id), offs, -1), axis=0)
    ends = (highest >= 0) & (eos_frame < 0)
    eos_frame = tl.where(ends, tl.maximum(step - highest, 0), eos_frame)
    max_frames = tl.where(ends, tl.minimum(max_frames, step + C + 1), max_frames)
    tl.store(last_seen_ptr + (b * C + offs) * V + codes, step, mask=mask)
    tl.store(ids_ptr + b * (C + 1) + offs, tl.where(mask, codes, text_id), mask=offs <= C)
    tl.store(frames_ptr + (b * N + step % N) * (C + 1) + offs, tl.where(mask, codes, eos_frame), mask=offs <= C)
    tl.store(max_frames_ptr + b, max_frames)
    tl.store(eos_frames_ptr + b, eos_frame)
    tl.store(steps_ptr + b, step + 1)
    tl.store(positions_ptr + b, tl.where(step + 1 < max_frames, position + 1, SLOT_FREE))


@operator(mutates_args=("positions", "steps", "max_frames", "eos_frames", "ids", "last_seen", "frames"))
def advance_frame(
    codes: Annotated[Tensor, "B C", torch.int32],
    nonfinite: Annotated[Tensor, "B C", torch.int32],
    positions: Annotated[Tensor, "B", torch.int32],
    steps: Annotated[Tensor, "B", torch.int32],
    max_frames: Annotated[Tensor, "B", torch.int32],
    eoa_ids: Annotated[Tensor, "B", torch.int32],
    eos_frames: Annotated[Tensor, "B", torch.int32],
    ids: Annotated[Tensor, "B C+1", torch.int32],
    last_seen: Annotated[Tensor, "B C V", torch.int32],
    frames: Annotated[Tensor, "B N C+1", torch.int32],
    text_id: int,
) -> Iterator[None]:
    (B, C, V), N = last_seen.shape, frames.shape[1]
    if C >= MOST_CODEBOOKS:
        raise ValueError(f"advance_frame: codes must have fewer than {MOST_CODEBOOKS} codebooks, got {C}")
    check_range("advance_frame", "codes", codes, 0, V - 1, "the codes that last_seen has room for")
    yield
    _advance_frame_kernel[(B,)](
        codes_ptr=codes,
        nonfinite_ptr=nonfinite,
        positions_ptr=positions,
        steps_ptr=steps,
        max_frames_ptr=max_frames,
        eoa_ids_ptr=eoa_ids,
        eos_frames_ptr=eos_frames,
        ids_ptr=ids,
        last_seen_ptr=last_seen,
        frames_ptr=frames,
        text_id=text_id,
        V=V,
        N=N,
        C=C,
        SLOT_FREE=SLOT_FREE,
        SLOT_NONFINITE=SLOT_NONFINITE,
        BLOCK_C=triton.next_power_of_2(C + 1),
        **launch_config("advance_frame", "row", torch.int32),
    )


def cost(B: int, C: int, itemsize: int) -> Cost:
    """A comparison for each code and each flag; itemsize has no effect."""
    return Cost(bytes=B * 4 * (2 * C + 5 + 4 + C + 2 * (C + 1)), flops=2 * B * C)
