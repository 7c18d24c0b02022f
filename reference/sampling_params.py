"""Sampling settings of a request. This file needs no torch, because the command line reads it first."""

import math
from dataclasses import dataclass, fields, replace
from typing import TypedDict

from zonos2_triton.reference.scalars import as_python

LARGEST = (2 - 2.0**-23) * 2.0**127  # of fp32
LONGEST = 2**24  # fp32 holds every integer up to here; no clip has as many frames


class Default(int):
    """A default value, which `Zonos2.speak` may replace. It behaves like any other int."""


MAX_FRAMES = Default(1024)


@dataclass(frozen=True)
class Sampling:
    """Settings of one request. Any finite number is accepted and clamped as the official request path does.

    temperature         at least 1e-6, which is one-hot unless the maximum is tied
    top_k               keeps the k largest logits and ties with the last; below 1 means 1024
    top_p               0..1; keeps the most probable codes until more than top_p lies before one; 0 and 1: off
    min_p               drops codes below min_p times the most probable one's probability; 0: off
    repetition_window   generated frames looked back at; 0: no penalty
    repetition_penalty  at least 1, which is off; positive logits of seen codes are divided by it, others multiplied
    repetition_codebooks  the first so many codebooks are penalised; negative or above 9: all
    max_frames          at least 1, at most what the context holds; the default is cut to it, and `Zonos2.speak` raises
                        it for a long text
    ignore_eos          generate max_frames frames, whatever the codes
    seed                0 .. 2^64 - 1, or None: a new one for each request
    """

    temperature: float = 1.15
    top_k: int = 106
    top_p: float = 0.0
    min_p: float = 0.18
    repetition_window: int = 50
    repetition_penalty: float = 1.2
    repetition_codebooks: int = 8
    max_frames: int = MAX_FRAMES
    ignore_eos: bool = False
    seed: int | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            name, value = field.name, as_python(getattr(self, field.name))
            object.__setattr__(self, name, value)
            if name == "ignore_eos":
                if not isinstance(value, bool):
                    raise TypeError(f"sampling: ignore_eos must be True or False, got {value!r}")
            elif value is None and name == "seed":
                continue
            elif isinstance(value, bool) or not isinstance(value, int | float):
                raise TypeError(f"sampling: {name} must be a number, got {value!r}")
            elif not _is_finite(value):
                raise ValueError(f"sampling: {name} must be finite, got {value!r}")
        if self.max_frames < 1:
            raise ValueError(f"sampling: max_frames must be at least 1, got {self.max_frames!r}")
        if self.seed is not None and (self.seed != int(self.seed) or not 0 <= self.seed < 2**64):
            raise ValueError(f"sampling: seed must be an integer in 0..2**64 - 1 or None, got {self.seed!r}")

    def clamped(self) -> "Sampling":
        """The values that take effect."""
        top_k, codebooks = int(self.top_k), int(self.repetition_codebooks)
        return replace(
            self,
            temperature=float(max(self.temperature, 1e-6)),
            top_k=top_k if top_k >= 1 else 1024,
            top_p=min(max(self.top_p, 0.0), 1.0),
            min_p=float(max(self.min_p, 0.0)),
            repetition_window=max(int(self.repetition_window), 0),
            repetition_penalty=float(max(self.repetition_penalty, 1.0)),
            repetition_codebooks=9 if codebooks < 0 else min(codebooks, 9),
            max_frames=int(self.max_frames),
            seed=None if self.seed is None else int(self.seed),
        )

    def packed(self) -> list[float]:
        """The eight fp32 numbers that `sample_codes` takes; the last is not used. Larger values mean the same."""
        s = self.clamped()
        values = s.temperature, s.top_k, s.top_p, s.min_p, s.repetition_window, s.repetition_penalty
        most = LARGEST, LONGEST, 1, LARGEST, LONGEST, LARGEST
        return [*(float(min(pair)) for pair in zip(values, most, strict=True)), float(s.repetition_codebooks), 0.0]


class SamplingOptions(TypedDict, total=False):
    """The fields of `Sampling` as keywords."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_window: int
    repetition_penalty: float
    repetition_codebooks: int
    max_frames: int
    ignore_eos: bool
    seed: int | None


def _is_finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # an integer beyond every float
        return False
