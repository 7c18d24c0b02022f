"""What a card can do with the 8B model: does it fit, how fast can a frame be at best, how many streams in real time.

    zonos2-triton plan --gpu NAME [--streams N] [--precision P] [--context N | --seconds S] [--prompt N]

Every time is a floor: bytes over bandwidth, or operations over the matrix rate, whichever takes longer, at the data
sheet's rates. No kernel is quicker, a real one is slower. Memory is by the tensors' shapes; what those do not say is
an estimate, and marked so.
"""

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from zonos2_triton.bench.cli_choices import chosen
from zonos2_triton.bench.figures import text_table
from zonos2_triton.bench.planner import footprint
from zonos2_triton.bench.planner.footprint import MODEL, PRECISIONS
from zonos2_triton.bench.planner.forecast import FRAME_US, Forecast
from zonos2_triton.bench.specs.gpus import CARDS, Card, card
from zonos2_triton.bench.suite.presets import REAL
from zonos2_triton.model.ops import SEQUENCES_AT_ONCE
from zonos2_triton.model.prompt import build_prompt

LONGEST = MODEL.max_seqlen
CONTEXT = 1000  # by default


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
