"""What a drawn frame does: last_seen[b, c, codes[b, c]] = steps[b], the end of the audio, the row that is fed back.

The first frame with a code equal to eoa_ids[b] sets eos_frames[b] = step - the highest such codebook, at least 0, and
lets C more frames follow; later ends change nothing. After its last frame a row is idle: its position is -1.

Shapes     codes, nonfinite [B, C]; positions, steps, max_frames, eoa_ids, eos_frames [B]; ids [B, C + 1];
           last_seen [B, C, V]; frames [B, N, C + 1], a ring: frame s and eos_frame as known by then lie at s % N. C <
           32.
Dtypes     int32. positions: of the newest row in the cache, negative: idle, nothing of it changes; steps: frames so
           far; max_frames: how many there will be at most; eoa_ids: the code that ends, -1: none; eos_frames: -1 before
           the end is known.
Raises     ValueError, TypeError naming operation, argument, what came and what is accepted; codes out of range where
           looking costs nothing (CPU tensors, TRITON_DEBUG=1).
Reference  zonos2_triton.reference.advance_frame.advance_frame
Source     Zyphra/ZONOS2, scheduler: the serial rule of its request class.

A row with a fault stops as it was, at position -2; the frame is not counted. All arguments but the first two and
eoa_ids are changed in place.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from zonos2_triton.kernels._args import Arg, check, check_range
from zonos2_triton.kernels._launch_config import launch_config
from zonos2_triton.kernels._operator import Cost, cpu_fallback, fake, runs_kernel

SLOT_FREE, SLOT_NONFINITE = -1, -2
MOST_CODEBOOKS = 32  # lanes of the one warp


@triton.jit(
    do_not_specialize=["N"],
    do_not_specialize_on_alignment=[
        "positions_ptr",
        "steps_ptr",
        "max_frames_ptr",
        "eoa_ids_ptr",
        "eos_frames_ptr",
        "ids_ptr",
        "last_seen_ptr",
        "frames_ptr",
    ],  # begin at any row,
)
def _advance_frame_kernel(
    codes_ptr,
    nonfinite_ptr,
    positions_ptr,
    steps_ptr,
    max_frames_ptr,
    eoa_ids_ptr,
    eos_frames_ptr,
    ids_ptr,
    last_seen_ptr,
    frames_ptr,
    text_id,
    V,
    N,
    C: tl.constexpr,
    SLOT_FREE: tl.constexpr,
    SLOT_NONFINITE: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Grid (B,): a program owns a request."""
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
    limit = tl.load(max_frames_ptr + b)
    eoa_id = tl.load(eoa_ids_ptr + b)
    eos_frame = tl.load(eos_frames_ptr + b)
    highest = tl.max(tl.where(mask & (codes == eoa_id), offs, -1), axis=0)
    ends = (highest >= 0) & (eos_frame < 0)
    eos_frame = tl.where(ends, tl.maximum(step - highest, 0), eos_frame)
    limit = tl.where(ends, tl.minimum(limit, step + C + 1), limit)
    tl.store(last_seen_ptr + (b * C + offs) * V + codes, step, mask=mask)
    fed = tl.where(mask, codes, text_id)
    tl.store(ids_ptr + b * (C + 1) + offs, fed, mask=offs <= C)
    kept = tl.where(mask, codes, eos_frame)
    tl.store(frames_ptr + (b * N + step % N) * (C + 1) + offs, kept, mask=offs <= C)
    tl.store(max_frames_ptr + b, limit)
    tl.store(eos_frames_ptr + b, eos_frame)
    tl.store(steps_ptr + b, step + 1)
    tl.store(positions_ptr + b, tl.where(step + 1 < limit, position + 1, SLOT_FREE))


_CHANGED = ("positions", "steps", "max_frames", "eos_frames", "ids", "last_seen", "frames")


@torch.library.custom_op("zonos2_triton::advance_frame", mutates_args=_CHANGED)
def advance_frame(
    codes: Tensor,
    nonfinite: Tensor,
    positions: Tensor,
    steps: Tensor,
    max_frames: Tensor,
    eoa_ids: Tensor,
    eos_frames: Tensor,
    ids: Tensor,
    last_seen: Tensor,
    frames: Tensor,
    text_id: int,
) -> None:
    whole = torch.int32
    sizes = check(
        "advance_frame",
        codes=Arg(codes, "B C", whole),
        nonfinite=Arg(nonfinite, "B C", whole),
        positions=Arg(positions, "B", whole),
        steps=Arg(steps, "B", whole),
        max_frames=Arg(max_frames, "B", whole),
        eoa_ids=Arg(eoa_ids, "B", whole),
        eos_frames=Arg(eos_frames, "B", whole),
        ids=Arg(ids, "B C+1", whole),
        last_seen=Arg(last_seen, "B C V", whole),
        frames=Arg(frames, "B N C+1", whole),
    )
    B, C, V, N = (sizes[axis] for axis in ("B", "C", "V", "N"))
    if C >= MOST_CODEBOOKS:
        raise ValueError(f"advance_frame: codes must have fewer than {MOST_CODEBOOKS} codebooks, got {C}")
    check_range("advance_frame", "codes", codes, 0, V - 1, "the codes that last_seen has room for")
    if not runs_kernel(codes):
        return cpu_fallback(
            "advance_frame",
            codes,
            nonfinite,
            positions,
            steps,
            max_frames,
            eoa_ids,
            eos_frames,
            ids,
            last_seen,
            frames,
            text_id,
        )
    _advance_frame_kernel[(B,)](
        codes,
        nonfinite,
        positions,
        steps,
        max_frames,
        eoa_ids,
        eos_frames,
        ids,
        last_seen,
        frames,
        text_id,
        V,
        N,
        C=C,
        SLOT_FREE=SLOT_FREE,
        SLOT_NONFINITE=SLOT_NONFINITE,
        BLOCK_C=triton.next_power_of_2(C + 1),
        **launch_config("advance_frame", "row", torch.int32),
    )


@fake(advance_frame)
def _(
    codes: Tensor,
    nonfinite: Tensor,
    positions: Tensor,
    steps: Tensor,
    max_frames: Tensor,
    eoa_ids: Tensor,
    eos_frames: Tensor,
    ids: Tensor,
    last_seen: Tensor,
    frames: Tensor,
    text_id: int,
) -> None:
    return None


def cost(B: int, C: int, itemsize: int) -> Cost:
    """itemsize has no part in it. A comparison for each code and each fault."""
    return Cost(bytes=B * 4 * (2 * C + 5 + 4 + C + 2 * (C + 1)), flops=2 * B * C)
