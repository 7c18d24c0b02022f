"""Plain data: a request on its way through the frame loop, its frames, and what they add up to."""

import secrets
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from zonos2_triton.reference.config import Zonos2Config
from zonos2_triton.reference.numeric import isolated
from zonos2_triton.reference.sampling import Sampling


def how_ended(eos_frame: int | None) -> str:
    """By itself, or because no more frames were asked for or fitted."""
    return "max_frames" if eos_frame is None else "end_of_audio"


def for_each(name: str, value: Any, n: int, what: str = "prompts") -> Sequence[Any]:
    """One for all, or a list of one each. ValueError: of another length."""
    values = value if isinstance(value, list | tuple) else [value] * n
    if len(values) != n:
        raise ValueError(f"{name} must be one for all or one for each of {n} {what}, got {len(values)}")
    return values


class Frame(NamedTuple):
    """One generated frame."""

    codes: Tensor  # [9] int64, still delayed
    eos_frame: int | None  # where the audio ends, from the frame on that shows it
    last: bool
    samples: Tensor | None = None  # fp32 [m]: what became final, where the loop speaks; some frames have none

    @property
    def ended(self) -> str | None:
        """Of the last one "end_of_audio" or "max_frames"; of the others None."""
        return how_ended(self.eos_frame) if self.last else None


@dataclass(frozen=True)
class Generation:
    """What one prompt became."""

    frames: Tensor  # [F, 9] int64 as sampled, still delayed, without the prompt
    eos_frame: int | None  # audio is made of aligned frames 0 .. eos_frame - 1; None: it did not end by itself
    seed: int  # that makes the same frames again
    samples: Tensor | None = None  # fp32 [N], where the loop speaks

    @property
    def ended(self) -> str:
        """ "end_of_audio", or "max_frames": cut off there, or where the context was full."""
        return how_ended(self.eos_frame)


class Request:
    """One prompt: what was asked for, and what has come of it so far."""

    def __init__(self, name: str, prompt: Tensor, sampling: Sampling, speaker: Tensor | None, config: Zonos2Config):
        """name: of the prompt, in errors; the prompt lies on the host, the speaker's embedding on the device.

        ValueError: more frames than the context holds.
        """
        settings, room = sampling.clamped(), config.max_seqlen - len(prompt)
        if settings.max_frames > room and settings.max_frames != Sampling.max_frames:
            raise ValueError(
                f"{name}: max_frames is {settings.max_frames}, but behind a prompt of {len(prompt)} rows the context "
                f"(max_seqlen {config.max_seqlen}) holds {room} frames; only the default is cut to that"
            )
        self.name, self.prompt, self.speaker = name, prompt, speaker
        self.settings = settings.row()
        self.seed = fresh_seed(settings)
        self.limit = min(settings.max_frames, room)
        self.eoa_id = -1 if settings.ignore_eos else config.eoa_id
        self.room = len(prompt) + self.limit - 1  # rows of the cache: the last frame is not fed back
        self.pages: list[int] = []
        self.filled = 0  # rows of the prompt that lie in the cache
        self.hidden: Tensor  # [D], what the newest of them left
        self.issued = 0  # frames that were asked for; the device may have made fewer
        self.frames: deque[Frame] = deque()  # that nobody has read yet
        self.error: BaseException | None = None
        self.over = False  # nothing will come any more
        self.cancelled = False

    def end(self, error: BaseException | None = None) -> None:
        self.over, self.error = True, error


def fresh_seed(sampling: Sampling) -> int:
    """The request's own seed, or one that no other request has."""
    return secrets.randbits(63) if sampling.seed is None else int(sampling.seed)


@isolated()
def collected(frames: list[Frame], seed: int) -> Generation:
    """The frames of a request that has ended."""
    spoken = [frame.samples for frame in frames if frame.samples is not None]
    samples = torch.cat(spoken) if spoken else None
    return Generation(torch.stack([frame.codes for frame in frames]), frames[-1].eos_frame, seed, samples)
