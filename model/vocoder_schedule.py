"""When a row of the vocoder takes a step, and which frames the step takes: the one place that plans it.

A clip comes as delayed frames: codebook c of a frame comes c frames late, so frame f is complete once f + C frames have
come. A step takes some complete frames of each row through the decoder. Samples depend on `behind` frames after their
own, so at its end a clip is flushed: `behind` frames that do not exist go through as well.

The operations read a step as one row of int32 numbers for each clip, `step_meta`:

    done    frames that went through the decoder before this step
    count   frames that go through in this step; 0: the row sits out
    length  frames of the clip, LENGTH_UNKNOWN while nobody knows
    known   frames that have come, written as ~n once no more will

An example: C = 3 codebooks, behind = 2, chunk = 4, first_chunk = 1, and a clip whose audio ends at frame 6.

    frames come   known so far     complete   goal         step_meta (? is LENGTH_UNKNOWN)
    2             no end           0          0            none
    5             no end           3          3 = 2 + 1    (0, 3, ?, 5)       the first: lookahead + first_chunk
    8             no end           6          3            none               3 new frames, not yet a chunk of 4
    9             ends at frame 6  6 = end    8 = 6 + 2    (3, 5, 6, 9)       all is there: flushed
    9, closed     ends at frame 6  6          8            (8, 0, 6, ~9)      nothing is left to do

Every number may be an integer, of one row on the host, or a tensor, of each row on the device. Then nothing is read
back and no shape depends on a value, so a CUDA graph may hold the plan.
"""

from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from zonos2_triton.reference.vocoder_layers import LENGTH_UNKNOWN

Number = TypeVar("Number", int, Tensor)
NO_END = -1  # of eos_frame: the frame that ends the audio has not come


@dataclass(frozen=True)
class Schedule:
    """The rules by which rows advance.

    codebooks    of a frame; 1 also where frames come whole
    behind       frames behind a frame that its samples depend on
    lookahead    complete frames that the first samples wait for, in front of first_chunk; below `behind`, samples are
                 shown before they are final
    chunk        complete frames that later samples wait for
    first_chunk  likewise the first samples
    """

    codebooks: int
    behind: int
    lookahead: int = 0
    chunk: int = 1
    first_chunk: int = 1

    def length(self, came: Number, eos_frame: Number, closed: bool | Tensor) -> Number:
        """Frames of the clip. closed: no more frames will come."""
        return _where(eos_frame > NO_END, eos_frame, _where(closed, came, LENGTH_UNKNOWN))

    def complete(self, came: Number, length: Number) -> Number:
        """Frames of the clip whose last codebook has come."""
        return _least(_clamp(came - (self.codebooks - 1), 0, None), length)

    def over(self, complete: Number, length: Number, closed: bool | Tensor) -> bool | Tensor:
        """Whether all frames of the clip are there; those that follow its end are no part of the audio."""
        return closed | (complete == length)

    def goal(
        self, done: Number, complete: Number, length: Number, closed: bool | Tensor, begun: bool | Tensor = True
    ) -> Number:
        """What `done` is to become now. begun: the row has made samples before."""
        flushed = _where(length > 0, length + self.behind, 0)
        waiting = complete  # with chunk = 1 whatever is there: `step` takes no frame twice
        if self.chunk > 1 or begun is not True:
            enough = _where(begun, done + self.chunk, self.lookahead + self.first_chunk)
            waiting = _where(complete >= enough, complete, done)
        return _where(self.over(complete, length, closed), flushed, waiting)

    def preview(self, moved: bool, goal: int, length: int) -> int:
        """Frames that a row decodes beyond its goal for samples that are not final; they will be decoded again."""
        return self.behind - self.lookahead if moved and goal <= length else 0


def step(
    done: Number, goal: Number, frames: int, length: Number, came: Number, closed: bool | Tensor
) -> tuple[Number, Number, Number, Number]:
    """The row of `step_meta` that leads towards the goal by at most so many frames."""
    return done, _clamp(goal - done, 0, frames), length, _where(closed, ~came, came)


def clip_steps(lengths: Tensor, longest: int, frames: int, behind: int, codebooks: int = 1) -> Tensor:
    """step_meta [steps, rows, 4] int32 of the steps of `frames` that take whole clips to their end.

    lengths [rows] int32, on the device; longest: the largest, which the host must know. codebooks: of frames that are
    delayed; 1: aligned frames.
    """
    schedule = Schedule(codebooks, behind)
    done = torch.arange(0, longest + behind, frames, dtype=torch.int32, device=lengths.device)[:, None]
    came = lengths + (codebooks - 1)
    goal = schedule.goal(done, lengths, lengths, True)
    return torch.stack(torch.broadcast_tensors(*step(done, goal, frames, lengths, came, True)), -1)


def same_clips(rows: int, length: int, frames: int, behind: int, device: torch.device) -> Tensor:
    """`clip_steps` of clips of one length; nothing is sent to the device, so a CUDA graph may hold the decoding."""
    lengths = torch.full((rows,), length, dtype=torch.int32, device=device)
    return clip_steps(lengths, length, frames, behind)


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
