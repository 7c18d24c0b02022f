"""The next frame of a batch, drawn from its logits, and the state of its slots after it."""

from typing import Any

import torch
from torch import Tensor

from zonos2_triton.reference.advance_frame import advance_frame
from zonos2_triton.reference.sampling import distributions, draw


def sample_codes(
    logits: Tensor,
    settings: Tensor,
    seeds: Tensor,
    steps: Tensor,
    last_seen: Tensor,
    positions: Tensor | None = None,
    max_frames: Tensor | None = None,
    eoa_ids: Tensor | None = None,
    eos_frames: Tensor | None = None,
    ids: Tensor | None = None,
    frames: Tensor | None = None,
    text_id: int = 0,
) -> tuple[Tensor, Tensor]:
    """The next frame of B requests: logits [B, C, V] -> codes [B, C] int32, nonfinite [B, C] int32.

    settings   [B, 8] fp32: `Sampling.packed` of each request
    seeds      [B] int64: the bits of a seed
    steps      [B] int32: frames before this one
    last_seen  [B, C, V] int32: the frame in which a code came last in its codebook, or NEVER_SEEN

    A code depends on its own logits and last_seen, its request's settings and seed, its frame and codebook only.

    A row with NaN or +inf in it, or with nothing above -inf, has nonfinite 1 and the code V - 1 (padding); others 0.

    With positions, `advance_frame` then changes the rest, and steps and last_seen, in place.
    """
    wide = logits.float()
    nonfinite = ~wide.amax(-1).isfinite()  # NaN is the largest number here
    sound = torch.where(nonfinite[..., None], 0.0, wide)
    codes = draw(distributions(sound, settings, steps, last_seen), seeds[:, None], steps[:, None])
    codes, flags = torch.where(nonfinite, logits.shape[-1] - 1, codes).int(), nonfinite.int()
    if positions is not None:
        state: Any = (positions, steps, max_frames, eoa_ids, eos_frames, ids, last_seen, frames, text_id)
        advance_frame(codes, flags, *state)
    return codes, flags
