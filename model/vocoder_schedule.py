"""The schedule of the vocoder's steps: which frames of each clip a step decodes. All callers plan here.

A clip comes as delayed frames. Codebook c of a frame comes c frames late, so frame f is complete once f + C frames have
been received. A step decodes some complete frames of each clip. Samples depend on `right_context` later frames, so a
clip is flushed at its end: `right_context` frames that do not exist are decoded as well.

The operations read a step as four int32 numbers for each clip, `step_meta`:

    done      frames decoded before this step
    count     frames decoded in this step; 0: the slot is idle
    length    frames of the clip, or LENGTH_UNKNOWN
    received  frames received, or ~n once no more will come

An example: C = 3 codebooks, right_context = 2, chunk = 4, first_chunk = 1, and a clip whose audio ends at frame 6.

    received      known so far     complete   target       step_meta (? is LENGTH_UNKNOWN)
    2             no end           0          0            none
    5             no end           3          3 = 2 + 1    (0, 3, ?, 5)       the first: lookahead + first_chunk
    8             no end           6          3            none               3 new frames, not yet a chunk of 4
    9             ends at frame 6  6 = end    8 = 6 + 2    (3, 5, 6, 9)       complete: flushed
    9, closed     ends at frame 6  6          8            (8, 0, 6, ~9)      nothing is left to do

Every number may be an integer of one clip, on the host, or a tensor of all clips, on the device. With tensors nothing
is read back and no shape depends on a value, so a CUDA graph may hold the schedule.
"""

from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from zonos2_triton.reference.vocoder_layers import LENGTH_UNKNOWN

Number = TypeVar("Number", int, Tensor)
NO_END = -1  # eos_frame before it is known


@dataclass(frozen=True)
class Schedule:
    """The rules by which clips advance.

    codebooks      of a delayed frame; 1: frames are aligned
    right_context  later frames that the samples of a frame depend on
    lookahead      complete frames that the first samples wait for, besides first_chunk; below right_context, samples
                   are emitted before they are final
    chunk          complete frames that later samples wait for
    first_chunk    complete frames that the first samples wait for
    """

    codebooks: int
    right_context: int
    lookahead: int = 0
    chunk: int = 1
    first_chunk: int = 1

    def length(self, received: Number, eos_frame: Number, closed: bool | Tensor) -> Number:
        """Frames of the clip. closed: no more frames will come."""
        return _where(eos_frame > NO_END, eos_frame, _where(closed, received, LENGTH_UNKNOWN))

    def complete(self, received: Number, length: Number) -> Number:
        """Frames of the clip whose last codebook has come."""
        return _least(_clamp(received - (self.codebooks - 1), 0, None), length)

    def finished(self, complete: Number, length: Number, closed: bool | Tensor) -> bool | Tensor:
        """Whether all frames of the clip are complete. Frames behind its end are not part of it."""
        return closed | (complete == length)

    def target(
        self, done: Number, complete: Number, length: Number, closed: bool | Tensor, begun: bool | Tensor = True
    ) -> Number:
        """The next value of `done`. begun: samples of the clip have been emitted."""
        flushed = _where(length > 0, length + self.right_context, 0)
        waiting = complete  # with chunk = 1 all complete frames: `plan_step` takes no frame twice
        if self.chunk > 1 or begun is not True:
            enough = _where(begun, done + self.chunk, self.lookahead + self.first_chunk)
            waiting = _where(complete >= enough, complete, done)
        return _where(self.finished(complete, length, closed), flushed, waiting)

    def preview(self, moved: bool, target: int, length: int) -> int:
        """Frames to decode beyond the target for samples that are not final; they are decoded again later."""
        return self.right_context - self.lookahead if moved and target <= length else 0


def plan_step(
    done: Number, target: Number, frames: int, length: Number, received: Number, closed: bool | Tensor
) -> tuple[Number, Number, Number, Number]:
    """The `step_meta` of a step of at most `frames` frames towards the target."""
    return done, _clamp(target - done, 0, frames), length, _where(closed, ~received, received)


def clip_steps(lengths: Tensor, longest: int, frames: int, right_context: int, codebooks: int = 1) -> Tensor:
    """step_meta [steps, B, 4] int32 of the steps of `frames` frames that decode whole clips.

    lengths [B] int32, on the device. longest: the largest of them, on the host. codebooks: of delayed frames; 1:
    aligned frames.
    """
    schedule = Schedule(codebooks, right_context)
    done = torch.arange(0, longest + right_context, frames, dtype=torch.int32, device=lengths.device)[:, None]
    target = schedule.target(done, lengths, lengths, True)
    step_meta = plan_step(done, target, frames, lengths, lengths + (codebooks - 1), True)
    return torch.stack(torch.broadcast_tensors(*step_meta), -1)


def same_clips(batch_size: int, length: int, frames: int, right_context: int, device: torch.device) -> Tensor:
    """`clip_steps` of clips of one length. Nothing is copied to the device, so a CUDA graph may hold the decoding."""
    lengths = torch.full((batch_size,), length, dtype=torch.int32, device=device)
    return clip_steps(lengths, length, frames, right_context)


def _where(condition: Any, yes: Any, no: Any) -> Any:
    if isinstance(condition, Tensor):
        return torch.where(condition, yes, no)
    return yes if condition else no


def _clamp(value: Any, low: int, high: int | None) -> Any:
    if isinstance(value, Tensor):
        return value.clamp(low, high)
    return max(value, low) if high is None else min(max(value, low), high)


def _least(a: Number, b: Number) -> Number:
    return torch.minimum(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else min(a, b)
