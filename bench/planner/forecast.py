"""The least time that a frame, its sound and a first sound can take on a card, in microseconds.

Bytes and operations are the kernels' own costs. A backbone's are weights and cache; the vocoder's are all that its
kernels move, of which a large cache may keep some where streams are few.
"""

import math
from collections.abc import Mapping
from functools import cache
from typing import Any

from zonos2_triton.bench.planner.footprint import CODEC, CODEC_DTYPE, LOOK, MODEL, decoder, share
from zonos2_triton.bench.specs.frame_cost import frame_cost, prompt_cost
from zonos2_triton.bench.specs.gpus import Card
from zonos2_triton.bench.timing.vocoder import step_costs
from zonos2_triton.kernels._operator import Cost
from zonos2_triton.model.ops import ROWS_AT_ONCE, SEQUENCES_AT_ONCE

FRAME_US = 1e6 * CODEC.hop / CODEC.sample_rate  # of sound


class Forecast:
    """Floors of one precision and context, at the rates of a card's data sheet."""

    def __init__(self, card: Card, precision: str, context: int) -> None:
        self.card, self.precision, self.context = card, precision, context

    def cost(self, streams: int, context: int | None = None) -> Cost:
        """Of a frame of all streams, codes drawn."""
        # The last frame of a full context has one row less behind it.
        return self._moved(_frame(streams, min(context or self.context, MODEL.max_seqlen - 1)))

    def frame(self, streams: int, context: int | None = None) -> float:
        """Of the backbone."""
        return self._floor(self.cost(streams, context))

    def vocoder(self, streams: int) -> float:
        """Its share of a frame of all streams."""
        return self._floor(_step(streams)) / LOOK

    def first_audio(self, streams: int, prompt: int) -> dict[str, Any]:
        """From the texts of all streams, which begin together, to the first samples of each."""
        frames = frames_to_sound()
        times = {
            "prefill": self._prefill(streams, prompt),
            # The first is drawn from what the prompts left behind.
            "frames_time": (frames - 1) * self.frame(streams, prompt),
            "vocoder": frames * self.vocoder(streams),
        }
        times["total"] = sum(times.values())
        return {"frames": frames, **{name: {"us": us} for name, us in times.items()}}

    def in_real_time(self) -> int:
        """How many streams, at most."""
        counts = range(1, SEQUENCES_AT_ONCE + 1)
        return next((n - 1 for n in counts if self.frame(n) + self.vocoder(n) > FRAME_US), SEQUENCES_AT_ONCE)

    def _prefill(self, streams: int, prompt: int) -> float:
        """Of all prompts together, in pieces of at most ROWS_AT_ONCE rows, each of which reads the weights."""
        rows, alone = streams * prompt, prompt_cost(MODEL, prompt)["prefill_attention"]
        time = 0.0
        for first in range(0, rows, ROWS_AT_ONCE):
            n = min(ROWS_AT_ONCE, rows - first)
            # A prompt attends to no other one: a piece has so many prompts' worth of attention.
            attention = Cost(round(n / prompt * alone.bytes), round(n / prompt * alone.flops))
            time += self._floor(self._moved({**prompt_cost(MODEL, n), "prefill_attention": attention}))
        return time

    def _floor(self, cost: Cost) -> float:
        floor = self.card.roof.floor_us(*cost)
        assert floor is not None  # every card has a bandwidth
        return floor

    def _moved(self, costs: Mapping[str, Cost]) -> Cost:
        """All together, with the experts' weights in this precision's bits."""
        moved = sum(c.bytes * share(self.precision, part) for part, c in costs.items())
        return Cost(round(moved), sum(cost.flops for cost in costs.values()))


@cache
def _frame(streams: int, behind: int) -> Mapping[str, Cost]:
    return frame_cost(MODEL, streams, behind)


@cache
def _step(streams: int) -> Cost:
    """Of the vocoder, of the frames between two looks."""
    costs = step_costs(CODEC, streams, LOOK, CODEC_DTYPE.itemsize)
    return Cost(sum(cost.bytes for cost in costs), sum(cost.flops for cost in costs))


def frames_to_sound() -> int:
    """Frames that a stream has made when the loop hands out its first samples.

    The last codebook comes n_codebooks - 1 frames late, the vocoder's first sample waits for its lag, and the loop
    looks after the first frame and then every LOOK.
    """
    frames = decoder()[0].lag // CODEC.hop + 1 + MODEL.n_codebooks - 1
    return 1 + LOOK * math.ceil((frames - 1) / LOOK)
