"""Plain data: a request of the scheduler, its frames, and its result."""

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
    """Why a request ended: by an end-of-audio code, or at its last frame."""
    return "max_frames" if eos_frame is None else "end_of_audio"


def for_each(name: str, value: Any, n: int, what: str = "prompts") -> Sequence[Any]:
    """`value` n times, or `value` itself if it is a sequence. ValueError: its length is not n."""
    values = value if isinstance(value, list | tuple) else [value] * n
    if len(values) != n:
        raise ValueError(f"{name} must be one for all or one for each of {n} {what}, got {len(values)}")
    return values


class Frame(NamedTuple):
    """One generated frame."""

    codes: Tensor  # [9] int64, still delayed
    eos_frame: int | None  # where the audio ends, from the frame on that shows it
    last: bool
    samples: Tensor | None = None  # fp32 [m] that became final, with a vocoder attached; some frames have none

    @property
    def ended(self) -> str | None:
        """The last frame has "end_of_audio" or "max_frames", the others None."""
        return how_ended(self.eos_frame) if self.last else None


@dataclass(frozen=True)
class Generation:
    """The result of one prompt."""

    frames: Tensor  # [F, 9] int64 as sampled, still delayed, without the prompt
    eos_frame: int | None  # the audio is aligned frames 0 .. eos_frame - 1; None: it was cut off
    seed: int  # makes the same frames again
    samples: Tensor | None = None  # fp32 [N], with a vocoder attached

    @property
    def ended(self) -> str:
        """ "end_of_audio", or "max_frames": cut off there, or at the end of the context."""
        return how_ended(self.eos_frame)


class Request:
    """One prompt: its arguments and its progress."""

    def __init__(self, name: str, prompt: Tensor, sampling: Sampling, speaker: Tensor | None, config: Zonos2Config):
        """name: of the prompt, in errors. prompt: on the host. speaker: the embedding, on the device.

        ValueError: more frames than the context holds.
        """
        settings, most = sampling.clamped(), config.max_seqlen - len(prompt)
        if settings.max_frames > most and settings.max_frames != Sampling.max_frames:
            raise ValueError(
                f"{name}: max_frames is {settings.max_frames}, but behind a prompt of {len(prompt)} tokens the context "
                f"(max_seqlen {config.max_seqlen}) holds {most} frames; only the default is cut to that"
            )
        self.name, self.prompt, self.speaker = name, prompt, speaker
        self.settings = settings.packed()
        self.seed = fresh_seed(settings)
        self.max_frames = min(settings.max_frames, most)
        self.eoa_id = -1 if settings.ignore_eos else config.eoa_id
        self.cache_len = len(prompt) + self.max_frames - 1  # the last frame is not fed back
        self.pages: list[int] = []
        self.num_prefilled = 0  # tokens of the prompt in the cache
        self.hidden: list[Tensor]  # x, x_scaled and sum_sq after the newest of them, one axis each
        self.num_scheduled = 0  # frames launched; an ended request made fewer
        self.frames: deque[Frame] = deque()  # not read yet
        self.error: BaseException | None = None
        self.finished = False  # no more frames will come
        self.cancelled = False

    def finish(self, error: BaseException | None = None) -> None:
        self.finished, self.error = True, error


def fresh_seed(sampling: Sampling) -> int:
    """The seed that sampling names, or a random one."""
    return secrets.randbits(63) if sampling.seed is None else int(sampling.seed)


@isolated()
def to_generation(frames: list[Frame], seed: int) -> Generation:
    """Join the frames of a finished request."""
    parts = [frame.samples for frame in frames if frame.samples is not None]
    samples = torch.cat(parts) if parts else None
    return Generation(torch.stack([frame.codes for frame in frames]), frames[-1].eos_frame, seed, samples)
