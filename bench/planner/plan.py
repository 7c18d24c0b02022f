"""What a card can do with the 8B model: does it fit, how fast can a frame be at best, how many streams in real time.

    zonos2-triton plan --gpu NAME [--streams N] [--precision P] [--context N | --seconds S] [--prompt N]

Every time is a floor: bytes over bandwidth, or operations over the matrix rate, whichever takes longer, at the data
sheet's rates. A backbone's bytes are weights and cache, the vocoder's all that its kernels move. Memory is by the
tensors' shapes; what those do not say is an estimate, and marked so.
"""

import argparse
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import cache
from typing import Any

from zonos2_triton.bench.cli_choices import chosen
from zonos2_triton.bench.figures import text_table
from zonos2_triton.bench.planner import footprint
from zonos2_triton.bench.planner.footprint import CODEC, CODEC_DTYPE, LOOK, MODEL, PRECISIONS, decoder, share
from zonos2_triton.bench.specs.frame_cost import frame_cost, prompt_cost
from zonos2_triton.bench.specs.gpus import CARDS, Card, card
from zonos2_triton.bench.suite.presets import REAL
from zonos2_triton.bench.timing.vocoder import step_costs
from zonos2_triton.kernels._operator import Cost
from zonos2_triton.model.ops import ROWS_AT_ONCE, SEQUENCES_AT_ONCE
from zonos2_triton.model.prompt import build_prompt

LONGEST = MODEL.max_seqlen
FRAME_US = 1e6 * CODEC.hop / CODEC.sample_rate  # of sound
CONTEXT = 1000  # by default


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


def plan(
    card: Card, streams: int = 1, precision: str = "bf16", context: int = CONTEXT, prompt: int | None = None
) -> dict[str, Any]:
    """Of so many streams on one card, for json.dumps.

    context: rows of the cache that each stream has, its prompt among them. ValueError: an argument is out of range.
    """
    check_range("streams", streams, SEQUENCES_AT_ONCE)
    check_range("context", context, LONGEST)
    prompt = min(usual_prompt(), context) if prompt is None else prompt
    check_range("prompt", prompt, context, " = context, which it is part of")
    chosen("precision", [precision], PRECISIONS)
    rows = min(context + 1, LONGEST)
    parts, capacity = footprint.parts(precision, streams, rows, prompt), card.memory_gb * 1e9
    needed, fit = sum(part.bytes for part in parts), footprint.most(precision, rows, prompt, capacity)
    forecast = Forecast(card, precision, context)
    frame, sound, real_time = forecast.frame(streams), forecast.vocoder(streams), forecast.in_real_time()
    notes = ["the vocoder is taken in float16 (vocoder_dtype); its default, float32, takes about twice as much"]
    if precision != "bf16":
        notes.append(f"{precision} has no kernels in this project yet: its figures are floors of what could be")
    at_once = {"fit": fit, "real_time": real_time, "both": min(fit, real_time), "most": SEQUENCES_AT_ONCE}
    return {
        "card": asdict(card),
        "streams": streams,
        "precision": precision,
        "has_kernels": precision == "bf16",
        "context": context,
        "prompt": prompt,
        "memory": {
            "fits": needed <= capacity,
            "bytes": needed,
            "capacity": {"bytes": capacity},
            "parts": [part._asdict() for part in parts],
        },
        "frame": {
            **forecast.cost(streams)._asdict(),
            "sound_us": FRAME_US,
            "backbone": _rates(frame, streams),
            "vocoder": {"us": sound},
            "both": _rates(frame + sound, streams),
        },
        "streams_at_once": at_once,
        "first_audio": forecast.first_audio(streams, prompt),
        "notes": notes,
    }


def _rates(us: float, streams: int) -> dict[str, float]:
    """Real-time factor of each stream, seconds of sound a second of all together, frames a second of each."""
    rtf = us / FRAME_US
    return {"us": us, "rtf": rtf, "times_real_time": streams / rtf, "frames_per_s": 1e6 / us}


def as_text(found: dict[str, Any]) -> str:
    """A plan for a terminal of 100 columns."""
    of, memory, first, most = found["card"], found["memory"], found["first_audio"], SEQUENCES_AT_ONCE
    about = "{name} ({arch}): {memory_gb:g} GB, {gb_per_s:g} GB/s, {tflop_per_s:g} TFLOP/s in bf16\nsource: {source}"
    streams = "{streams} streams, {precision}; rows of each: {context}, a prompt of {prompt} included"
    head = "\n".join([about.format(**of), streams.format(**found)])
    parts = [(part["name"], f"{part['bytes'] / 1e9:.3f}", part["kind"]) for part in memory["parts"]]
    verdict = "fits" if memory["fits"] else "DOES NOT FIT"
    parts.append((f"of {_gb(memory['capacity']['bytes'])}", f"{memory['bytes'] / 1e9:.3f}", verdict))
    frames = [
        (name, f"{r['us'] / 1e3:.3f}", f"{r['rtf']:.3f}", f"{r['times_real_time']:.0f}", f"{r['frames_per_s']:.0f}")
        for name, r in (("backbone", found["frame"]["backbone"]), ("with its sound", found["frame"]["both"]))
    ]
    counts = {"fit, at this context": "fit", "in real time": "real_time", "both": "both"}
    times = {"prompts into the cache": "prefill", f"{first['frames']} frames": "frames_time",
             "their sound": "vocoder", "text to first audio": "total"}  # fmt: skip
    tables: list[list[tuple[str, ...]]] = [
        [("memory", "GB", ""), *parts],
        [("frame, " + _gb(found["frame"]["bytes"]), "ms at least", "RTF", "x real time", "frames/s"), *frames],
        [(f"streams, of {most}", ""), *((name, str(found["streams_at_once"][key])) for name, key in counts.items())],
        [("first audio", "ms at least"), *((name, f"{first[key]['us'] / 1e3:.2f}") for name, key in times.items())],
    ]
    return "\n\n".join([head, *map(text_table, tables), "\n".join(found["notes"])])


def usual_prompt() -> int:
    """Rows of the text that first audio is measured with."""
    return len(build_prompt(MODEL, REAL.text))


def check_range(name: str, value: int, high: int, why: str = "") -> None:
    if not 1 <= value <= high:
        raise ValueError(f"{name} must be an integer in 1..{high}{why}, got {value!r}")


def _gb(size: float) -> str:
    return f"{size / 1e9:.3g} GB"


def command(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    """Add the options of the command to `parser`; what comes back runs it and returns its exit status."""
    parser.description = "Memory, floors and streams of the 8B model on a card that need not be here."
    parser.add_argument("--gpu", required=True, metavar="NAME", help=", ".join(c.name for c in CARDS))
    parser.add_argument("--streams", type=int, default=1, metavar="N", help="that speak at once; default: 1")
    parser.add_argument("--precision", default="bf16", metavar="P", help=f"{', '.join(PRECISIONS)}; default: bf16")
    length, rows = parser.add_mutually_exclusive_group(), "rows of the cache of each stream; default: %(default)s"
    length.add_argument("--context", type=int, default=CONTEXT, metavar="N", help=rows)
    length.add_argument("--seconds", type=float, metavar="S", help="of audio instead: the context at its end")
    parser.add_argument("--prompt", type=int, metavar="N", help="rows of each prompt; default: a sentence's")
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")
    return _command


def _command(options: argparse.Namespace) -> int:
    """Exit status: 0 it fits, 1 it does not."""
    context = options.context
    if options.seconds is not None:
        context = context_of(options.seconds, usual_prompt() if options.prompt is None else options.prompt)
    found = plan(card(options.gpu), options.streams, options.precision, context, options.prompt)
    print(json.dumps(found, indent=1) if options.json else as_text(found))
    return 0 if found["memory"]["fits"] else 1


def context_of(seconds: float, prompt: int) -> int:
    """Rows of a stream that has spoken so long. ValueError: more than the model knows."""
    check_range("prompt", prompt, LONGEST - 1)
    most = (LONGEST - prompt) * FRAME_US / 1e6
    if not 0 < seconds <= most:
        raise ValueError(f"seconds must be above 0, behind a prompt of {prompt} at most {most:.1f}, got {seconds:g}")
    return prompt + math.ceil(seconds * 1e6 / FRAME_US)
