"""The step from a drawn frame to the next state of its request: history, end of audio, feedback."""

import torch
from torch import Tensor

SLOT_FREE, SLOT_NONFINITE = -1, -2  # positions of idle slots: ended or empty; logits that were not finite


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
    """Advances each slot whose position is not negative by codes and nonfinite [B, C] of `sample_codes`, in place.

    positions   [B] of the newest token in the cache; becomes one more, or SLOT_FREE after the last frame
    steps       [B] frames so far
    max_frames  [B] the largest number of frames
    eoa_ids     [B] the code that ends the audio, or -1
    eos_frames  [B] the frame where the audio ends, or -1
    ids         [B, C + 1] the next input: the codes and text_id
    last_seen   [B, C, V] as `sample_codes` takes it
    frames      [B, N, C + 1] a ring; frame s is at s % N, with eos_frame as known by then

    The first frame with a code equal to eoa_id sets eos_frame = step - the highest such codebook, at least 0. C more
    frames follow, in which the delayed codebooks finish theirs. Later ends change nothing. A slot with nonfinite logits
    stops at SLOT_NONFINITE, and its frame is not counted.
    """
    C = codes.shape[1]
    for b in range(len(codes)):
        if positions[b] < 0:
            continue
        if nonfinite[b].any():
            positions[b] = SLOT_NONFINITE
            continue
        step = int(steps[b])
        ends = (codes[b] == eoa_ids[b]).nonzero()
        if len(ends) and eos_frames[b] < 0:
            eos_frames[b] = max(0, step - int(ends.max()))
            max_frames[b] = min(int(max_frames[b]), step + C + 1)
        last_seen[b, torch.arange(C, device=codes.device), codes[b].long()] = step
        ids[b, :C], ids[b, C] = codes[b], text_id
        row = frames[b, step % frames.shape[1]]
        row[:C], row[C] = codes[b], eos_frames[b]
        steps[b] = step + 1
        positions[b] = positions[b] + 1 if step + 1 < max_frames[b] else SLOT_FREE
