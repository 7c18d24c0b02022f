"""What a card can do with the 8B model: does it fit, how fast can a frame be at best, how many streams in real time.

    zonos2-triton plan --gpu NAME [--streams N] [--precision P] [--context N | --seconds S] [--prompt N]

Each figure says of what kind it is:

floor                       bytes over bandwidth, or operations over the matrix rate, whichever takes longer, at the
                            data sheet's rates: no kernel is quicker, a real one is slower
floor (measured bandwidth)  the same at the rates that a result of `make gpu` measured on that card
measured                    such a result holds this very figure
layout, estimate            of memory: from the tensors' shapes; and what those do not say
"""

import argparse
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from textwrap import fill
from typing import Any

import torch

from zonos2_triton.bench.cli_choices import chosen
from zonos2_triton.bench.planner import footprint
from zonos2_triton.bench.planner.footprint import ESTIMATE, MODEL, PRECISIONS, Part, Precision
from zonos2_triton.bench.planner.forecast import FRAME_US, MEASURED, FirstAudio, Forecast, Moved, Time
from zonos2_triton.bench.specs.gpus import CARDS, Card, card, recognised
from zonos2_triton.bench.suite import results as stored
from zonos2_triton.bench.suite.presets import REAL
from zonos2_triton.model.ops import SEQUENCES_AT_ONCE
from zonos2_triton.model.prompt import build_prompt

LONGEST = MODEL.max_seqlen
CONTEXT = 1000  # by default
THIS = "this"
WIDTH = 100  # of text


@dataclass(frozen=True)
class Plan:
    """Of so many streams on one card."""

    card: Card
    streams: int
    precision: Precision
    context: int
    prompt: int
    memory: tuple[Part, ...]
    capacity: Part
    cost: Moved  # of the backbone's frame
    floor: Time  # of it, whatever was measured
    frame: Time
    vocoder: Time  # its share of a frame
    fit: int  # streams, up to those that one loop takes
    real_time: int
    real_time_kind: str
    first_audio: FirstAudio
    advice: tuple[str, ...]  # what would fit, where this does not
    used: tuple[str, ...]  # results that a figure came from

    @property
    def needed(self) -> float:
        """Bytes."""
        return sum(part.bytes for part in self.memory)

    @property
    def fits(self) -> bool:
        return self.needed <= self.capacity.bytes

    @property
    def both(self) -> Time:
        """Of a frame and its sound."""
        return self.frame.plus(self.vocoder)

    def rates(self, time: Time) -> dict[str, float]:
        """Real-time factor of each stream, seconds of sound a second of all together, frames a second of each."""
        rtf = time.us / FRAME_US
        return {"rtf": rtf, "times_real_time": self.streams / rtf, "frames_per_s": 1e6 / time.us}

    def notes(self) -> list[str]:
        """What a reader must know besides."""
        return [text for applies, text in self._notes() if applies]

    def _notes(self) -> Iterator[tuple[bool, str]]:
        p = self.precision
        yield not p.runs, f"{p.name} has no kernels in this project yet: its figures are floors of what could be"
        yield (
            p.dtype == torch.float32,
            "floors of fp32 are those of its bytes alone: matrix rates are of half precision",
        )
        yield self.card.tflop_per_s is None, "no matrix rate is known of this card: floors are those of bytes alone"
        yield not self.fits, "as it does not fit, its times are those of such a card with more memory"
        yield self.both.us > FRAME_US, f"not in real time: a frame is {FRAME_US / 1e3:.2f} ms of sound"
        half, full = (footprint.vocoder_of(dtype)[1] for dtype in (torch.float16, torch.float32))
        yield (
            p.codec == torch.float16,
            f"the vocoder is taken in float16 (vocoder_dtype); its default, float32, takes {_gb(full - half)} more, "
            "and more for its rings",
        )
        yield (
            True,
            (
                f"results used: {', '.join(self.used)}"
                if self.used
                else "no result of such a card: not yet measured on a GPU"
            ),
        )

    def as_json(self) -> dict[str, Any]:
        def timed(time: Time) -> dict[str, Any]:
            return time._asdict() | self.rates(time)

        first = vars(self.first_audio).items()
        return {
            "card": asdict(self.card), "streams": self.streams, "precision": self.precision.name,
            "has_kernels": self.precision.runs, "context": self.context, "prompt": self.prompt,
            "memory": {
                "fits": self.fits, "bytes": self.needed, "capacity": self.capacity._asdict(),
                "parts": [part._asdict() for part in self.memory], "would_fit": list(self.advice),
            },
            "frame": {
                **self.cost._asdict(), "sound_us": FRAME_US, "floor": timed(self.floor), "backbone": timed(self.frame),
                "vocoder": self.vocoder._asdict(), "both": timed(self.both),
            },
            "streams_at_once": {
                "fit": self.fit, "real_time": self.real_time, "real_time_kind": self.real_time_kind,
                "both": min(self.fit, self.real_time), "most": SEQUENCES_AT_ONCE,
            },
            "first_audio": {name: each._asdict() if isinstance(each, Time) else each for name, each in first},
            "results": list(self.used), "notes": self.notes(),
        }  # fmt: skip

    def as_text(self) -> str:
        """For a terminal of 100 columns."""
        sheet = [f"{self.card.memory_gb:.4g} GB", f"{self.card.gb_per_s:g} GB/s"]
        sheet += [f"{self.card.tflop_per_s:g} TFLOP/s in bf16"] if self.card.tflop_per_s else []
        count = f"{self.streams} stream{'s' if self.streams > 1 else ''}"
        head = [
            f"{self.card.name} ({self.card.arch}): {', '.join(sheet)}", f"source: {self.card.source}",
            f"{count}, {self.precision.name}, {self.context} rows of context each, a prompt of {self.prompt} included",
        ]  # fmt: skip
        notes = [fill(note, WIDTH, initial_indent="- ", subsequent_indent="  ") for note in self.notes()]
        tables = [self._memory(), self._frame(), self._at_once(), self._first_audio()]
        return "\n\n".join(["\n".join(head), *tables, "\n".join(notes)])

    def _memory(self) -> str:
        rows = [("memory", "GB", "")]
        rows += [(part.name, f"{part.bytes / 1e9:.3f}", ESTIMATE * (part.kind == ESTIMATE)) for part in self.memory]
        verdict = "fits" if self.fits else "DOES NOT FIT"
        rows.append((f"of {_gb(self.capacity.bytes)} ({self.capacity.kind})", f"{self.needed / 1e9:.3f}", verdict))
        return "\n".join([
            _table(rows), *(fill(f"would fit: {line}", WIDTH, subsequent_indent="  ") for line in self.advice)
        ])  # fmt: skip

    def _frame(self) -> str:
        rows = [("frame", "moves", "ms", "RTF", "x real time", "frames/s", "kind")]
        moves = _gb(self.cost.bytes)
        timed = [("at best", moves, self.floor)] if self.frame.kind == MEASURED else []
        timed += [("backbone", moves, self.frame), ("with its sound", "", self.both)]
        for name, moved, time in timed:
            rtf, total, frames = self.rates(time).values()
            rows.append((name, moved, f"{time.us / 1e3:.3f}", f"{rtf:.3f}", f"{total:.0f}", f"{frames:.0f}", time.kind))
        return _table(rows)

    def _at_once(self) -> str:
        counts = [("fit, at this context", self.fit, "layout"), ("in real time", self.real_time, self.real_time_kind),
                  ("both", min(self.fit, self.real_time), "")]  # fmt: skip
        rows = [
            (name, str(n), "the most of one loop" if n == SEQUENCES_AT_ONCE else "", kind) for name, n, kind in counts
        ]
        return _table([("streams", "", "", "kind"), *rows])

    def _first_audio(self) -> str:
        first = self.first_audio
        named = {
            "prompts into the cache": first.prefill, f"{first.frames} frames": first.frames_time,
            "their sound": first.vocoder, "text to first audio": first.total,
        }  # fmt: skip
        rows = [(name, f"{time.us / 1e3:.2f}", time.kind) for name, time in named.items()]
        return _table([("first audio", "ms", "kind"), *rows])


def plan(
    card: Card, streams: int = 1, precision: str = "bf16", context: int = CONTEXT, prompt: int | None = None,
    results: Sequence[stored.Result] = (),
) -> Plan:  # fmt: skip
    """context: rows of the cache that each stream has, its prompt among them; prompt: by default as long as the text
    that first audio is measured with. results: of `make gpu`, newest first; those of other cards are passed over.

    ValueError: an argument is out of range.
    """
    check_range("streams", streams, SEQUENCES_AT_ONCE)
    check_range("context", context, LONGEST)
    prompt = min(usual_prompt(), context) if prompt is None else prompt
    check_range("prompt", prompt, context, " = context, which it is part of")
    chosen = precision_of(precision)
    results = [result for result in results if _counts(result, card)]
    forecast = Forecast(card, chosen, context, results)
    rows = min(context + 1, LONGEST)
    memory, capacity = footprint.parts(chosen, streams, rows, prompt), _capacity(card, results)
    fit = footprint.most(chosen, rows, prompt, capacity.bytes)
    cost, (real_time, kind) = forecast.cost(streams), forecast.in_real_time()
    advice: Iterator[str] = iter(())
    if sum(part.bytes for part in memory) > capacity.bytes:
        advice = _would_fit(chosen, streams, rows, prompt, capacity.bytes, fit)
    return Plan(
        card=card, streams=streams, precision=chosen, context=context, prompt=prompt, memory=tuple(memory),
        capacity=capacity, cost=cost, floor=forecast.floor(cost), frame=forecast.frame(streams),
        vocoder=forecast.vocoder(streams), fit=fit, real_time=real_time, real_time_kind=kind,
        first_audio=forecast.first_audio(streams, prompt), advice=tuple(advice), used=tuple(forecast.used),
    )  # fmt: skip


def usual_prompt() -> int:
    """Rows of the text that first audio is measured with."""
    return len(build_prompt(MODEL, REAL.text))


def precision_of(name: str) -> Precision:
    chosen("precision", [name], PRECISIONS)
    return PRECISIONS[name]


def check_range(name: str, value: object, high: int, why: str = "") -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= high:
        raise ValueError(f"{name} must be an integer in 1..{high}{why}, got {value!r}")


def _counts(result: stored.Result, card: Card) -> bool:
    """Whether it was measured on such a card."""
    found = recognised(result["environment"]["card"])
    return found is not None and found.name == card.name and not result["environment"]["rehearsal"]


def _capacity(card: Card, results: Sequence[stored.Result]) -> Part:
    if card not in CARDS:
        return Part("this card", card.memory_gb * 1e9, "as it says itself")
    if results:
        return Part("such a card", results[0]["environment"]["memory_gib"] * 2**30, "as such a card said")
    return Part("the label", card.memory_gb * 1e9, "by its label")


def _would_fit(
    precision: Precision, streams: int, rows: int, prompt: int, capacity: float, fit: int
) -> Iterator[str]:  # fmt: skip
    """Each way to make do with less, or with more."""
    if fit:
        yield f"{fit} stream{'s' if fit > 1 else ''} of this context"
    smaller = [p for p in PRECISIONS.values() if footprint.total(p, streams, rows, prompt) <= capacity]
    if smaller:
        yield "precision " + ", ".join(f"{p.name}{'' if p.runs else ' (no kernels yet)'}" for p in smaller)
    needed = footprint.total(precision, streams, rows, prompt)
    sizes = sorted(c.memory_gb for c in CARDS if c.memory_gb * 1e9 >= needed)
    if sizes:
        yield f"a card of {sizes[0]:g} GB: {', '.join(c.name for c in CARDS if c.memory_gb == sizes[0])}"
    if not (fit or smaller or sizes):
        yield "nothing that this table knows"


def _gb(size: float) -> str:
    return f"{size / 1e9:.3g} GB"


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    """Columns as wide as they must be; those between the first and the last are flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    last = len(widths) - 1
    return "\n".join(
        "  ".join(
            cell.rjust(width) if 0 < i < last else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def command(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    """Add the options of the command to `parser`; what comes back runs it and returns its exit status."""
    parser.description = "Memory, floors and streams of the 8B model on a card that need not be here."
    parser.add_argument("--gpu", required=True, metavar="NAME", help=f"{', '.join(c.name for c in CARDS)}; or {THIS}")
    parser.add_argument("--streams", type=int, default=1, metavar="N", help="that speak at once; default: 1")
    parser.add_argument("--precision", default="bf16", metavar="P", help=f"{', '.join(PRECISIONS)}; default: bf16")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--context", type=int, default=CONTEXT, metavar="N",
                        help="rows of the cache of each stream; default: %(default)s")  # fmt: skip
    length.add_argument("--seconds", type=float, metavar="S", help="of audio instead: the context at its end")
    parser.add_argument("--prompt", type=int, metavar="N", help="rows of each prompt; default: a sentence's")
    parser.add_argument("--results", type=Path, metavar="DIR", help="results of make gpu; default: bench/results")
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")
    return _command


def _command(options: argparse.Namespace) -> int:
    """Exit status: 0 it fits, 1 it does not."""
    chosen = this_card() if options.gpu == THIS else card(options.gpu)
    if options.results is not None and not options.results.is_dir():
        raise ValueError(f"--results must be a folder with results of make gpu, got {str(options.results)!r}")
    results = stored.committed(options.results or stored.RESULTS)
    context = options.context
    if options.seconds is not None:
        context = context_of(options.seconds, usual_prompt() if options.prompt is None else options.prompt)
    found = plan(chosen, options.streams, options.precision, context, options.prompt, results)
    print(json.dumps(found.as_json(), indent=1) if options.json else found.as_text())
    return 0 if found.fits else 1


def context_of(seconds: float, prompt: int) -> int:
    """Rows of a stream that has spoken so long. ValueError: more than the model knows."""
    check_range("prompt", prompt, LONGEST - 1)
    most = (LONGEST - prompt) * FRAME_US / 1e6
    if not 0 < seconds <= most:
        raise ValueError(
            f"seconds must be above 0, and behind a prompt of {prompt} at most {most:.1f}, got {seconds:g}"
        )
    return prompt + math.ceil(seconds * 1e6 / FRAME_US)


def this_card() -> Card:
    """The machine's own, with its own memory. ValueError: there is none, or none of the table."""
    if not torch.cuda.is_available():
        raise ValueError(f"--gpu {THIS}: torch finds no GPU here; name one of {', '.join(c.name for c in CARDS)}")
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    if (found := recognised(properties.name)) is None:
        raise ValueError(f"--gpu {THIS}: {properties.name!r} is not among {', '.join(c.name for c in CARDS)}; name one")
    return replace(found, memory_gb=properties.total_memory / 1e9)
