"""The least time that a frame, its sound and a first sound can take on a card: a floor, unless it was measured there.

Bytes and operations are the kernels' own costs. A backbone's are weights and cache; the vocoder's are all that its
kernels move, of which a large cache may keep some where streams are few.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch

from zonos2_triton.bench.planner.footprint import CODEC, LOOK, MODEL, Precision, vocoder_of
from zonos2_triton.bench.specs.frame_cost import frame_cost, prompt_cost
from zonos2_triton.bench.specs.gpus import Card
from zonos2_triton.bench.specs.roofline import Roof
from zonos2_triton.bench.suite import results as stored
from zonos2_triton.bench.timing.vocoder import step_costs
from zonos2_triton.kernels._operator import Cost
from zonos2_triton.model.ops import ROWS_AT_ONCE, SEQUENCES_AT_ONCE

FLOOR, MEASURED_FLOOR, MEASURED = "floor", "floor (measured bandwidth)", "measured"
FRAME_US = 1e6 * CODEC.hop / CODEC.sample_rate  # of sound
NO_WEIGHTS = ("decode_attention", "prefill_attention", "sample", "advance")


class Time(NamedTuple):
    """Microseconds, and of what kind."""

    us: float
    kind: str

    def plus(self, *others: "Time") -> "Time":
        kinds = dict.fromkeys(time.kind for time in (self, *others))
        return Time(self.us + sum(other.us for other in others), " + ".join(kinds))


class Moved(NamedTuple):
    """As Cost, with weights in a fraction of their bytes."""

    bytes: float
    flops: float


@dataclass(frozen=True)
class FirstAudio:
    """From the texts of all streams, which begin together, to the first samples of each."""

    prefill: Time
    frames: int  # until there is sound
    frames_time: Time
    vocoder: Time
    total: Time


class Forecast:
    """Times of one precision and context on one card."""

    def __init__(self, card: Card, precision: Precision, context: int, results: Sequence[stored.Result]) -> None:
        """results: of this card, those that count most first. Figures in them are of a model in bf16."""
        self.precision, self.context = precision, context
        self._results, self.used = results, dict[str, None]()  # used: which of them a figure came from
        known = [(result, roof) for result in results if (roof := stored.roof(result)).gb_per_s]
        measured = known[0][1] if known else card.roof
        self.kind = MEASURED_FLOOR if known else FLOOR
        if known:
            self._use(known[0][0])
        matrix = measured.tflop_per_s or card.tflop_per_s
        self.roof = Roof(measured.gb_per_s, None if precision.dtype == torch.float32 else matrix)

    def floor(self, cost: Moved) -> Time:
        floor = self.roof.floor_us(*cost)
        assert floor is not None  # every card has a bandwidth
        return Time(floor, self.kind)

    def cost(self, streams: int, context: int | None = None) -> Moved:
        """Of a frame of all streams, codes drawn."""
        # The last frame of a full context has one row less behind it.
        behind = min(context or self.context, MODEL.max_seqlen - 1)
        return self._moved(_frame(streams, behind, self.precision.dtype.itemsize))

    def frame(self, streams: int) -> Time:
        """Of the backbone."""
        if found := self._measured("frames", "B", streams=streams, context=self.context):
            return Time(found["median_us"], MEASURED)
        return self.floor(self.cost(streams))

    def vocoder(self, streams: int) -> Time:
        """Its share of a frame of all streams."""
        if found := self._measured("vocoder", "stream", "/float16", rows=streams):
            return Time(found["median_us"] / found["frames"], MEASURED)
        return Time(self.floor(_step(streams, self.precision.codec.itemsize)).us / LOOK, self.kind)

    def first_audio(self, streams: int, prompt: int) -> FirstAudio:
        frames = frames_to_sound()
        later = self.floor(self.cost(streams, prompt))  # the first is drawn from what the prompts left behind
        made = Time((frames - 1) * later.us, later.kind)
        share = self.vocoder(streams)
        prefill, sound = self._prefill(streams, prompt), Time(frames * share.us, share.kind)
        total = prefill.plus(made, sound)
        if found := self._measured("whole", "first-audio", streams=streams, prompt_rows=prompt):
            total = Time(found["median_ms"] * 1e3, MEASURED)
        return FirstAudio(prefill, frames, made, sound, total)

    def in_real_time(self) -> tuple[int, str]:
        """How many streams, at most, and of what kind the time is that says so."""
        kind = self.kind
        for n in range(1, SEQUENCES_AT_ONCE + 1):
            time = self.frame(n).plus(self.vocoder(n))
            if time.us > FRAME_US:
                return n - 1, time.kind
            kind = time.kind
        return SEQUENCES_AT_ONCE, kind

    def _prefill(self, streams: int, prompt: int) -> Time:
        """Of all prompts together, in pieces of at most ROWS_AT_ONCE rows, each of which reads the weights."""
        if streams == 1 and (found := self._measured("whole", "prefill", rows=prompt)):
            return Time(found["median_us"], MEASURED)
        size, rows = self.precision.dtype.itemsize, streams * prompt
        alone = prompt_cost(MODEL, prompt, size)["prefill_attention"]
        pieces = [min(ROWS_AT_ONCE, rows - first) for first in range(0, rows, ROWS_AT_ONCE)]
        # A prompt attends to no other one: a piece has so many prompts' worth of attention.
        shares = [Cost(round(n / prompt * alone.bytes), round(n / prompt * alone.flops)) for n in pieces]
        costs = [self._moved({**prompt_cost(MODEL, n, size), "prefill_attention": share})
                 for n, share in zip(pieces, shares, strict=True)]  # fmt: skip
        return Time(sum(self.floor(cost).us for cost in costs), self.kind)

    def _moved(self, costs: Mapping[str, Cost]) -> Moved:
        """All together, with the weights in this precision's bits."""
        moved = (c.bytes * (1.0 if part in NO_WEIGHTS else self.precision.share(part)) for part, c in costs.items())
        return Moved(sum(moved), float(sum(cost.flops for cost in costs.values())))

    def _measured(self, part: str, begin: str, end: str = "", **wanted: int) -> dict[str, Any] | None:
        """The item whose name begins and ends so and which holds what is wanted, where a result has it."""
        for result in self._results if self.precision.name == "bf16" else ():
            for name, item in stored.items(result, part).items():
                if (
                    name.startswith(begin)
                    and name.endswith(end)
                    and {"status": "passed", **wanted}.items() <= item.items()
                ):
                    self._use(result)
                    return item
        return None

    def _use(self, result: stored.Result) -> None:
        found = result["environment"]
        self.used[f"{found['commit']} of {found['date'][:10]}"] = None


@cache
def _frame(streams: int, behind: int, itemsize: int) -> Mapping[str, Cost]:
    return frame_cost(MODEL, streams, behind, itemsize)


@cache
def _step(streams: int, itemsize: int) -> Moved:
    """Of the vocoder, of the frames between two looks."""
    costs = step_costs(CODEC, streams, LOOK, itemsize)
    return Moved(sum(cost.bytes for cost in costs), sum(cost.flops for cost in costs))


def frames_to_sound() -> int:
    """Frames that a stream has made when the loop hands out its first samples.

    The last codebook comes n_codebooks - 1 frames late, the vocoder's first sample waits for its lag, and the loop
    looks after the first frame and then every LOOK.
    """
    decoder, _ = vocoder_of(torch.float16)
    frames = decoder.lag // CODEC.hop + 1 + MODEL.n_codebooks - 1
    return 1 + LOOK * math.ceil((frames - 1) / LOOK)
