"""What this project has to reach on an H200 in bf16, and what a run reached of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from zonos2_triton.bench.catalogue import KERNELS
from zonos2_triton.bench.suite.results import Result, beside, items, passed

CARD = "NVIDIA H200"
REPETITIONS = 20  # that a median must be of, to count
LIBRARIES = ("sdpa", "flash-attn", "flashinfer")  # of attention
CHECKS = ("tests", "kernels", "invariance", "graph", "sanitizer")
DTYPES = ("bfloat16", "float16")  # of the vocoder


class Found(NamedTuple):
    """A figure, in its goal's unit."""

    value: float
    repetitions: int | None  # None: it is no time


@dataclass(frozen=True)
class Goal:
    """One figure to reach."""

    what: str
    limit: float
    unit: str
    find: Callable[[Result], Found | None]
    at_least: bool = False  # otherwise at most

    @property
    def text(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.limit:g} {self.unit}"

    def verdict(self, result: Result) -> str:
        """In words; never "met" where a check failed, on another card, or of too few repetitions."""
        found = self.find(result)
        environment = result["environment"]
        if found is None or environment["rehearsal"]:
            return "not yet measured on a GPU" if environment["rehearsal"] else "not yet measured"
        if not environment["card"].startswith(CARD):
            return f"another card than the goal's, {CARD}"
        reached = found.value >= self.limit if self.at_least else found.value <= self.limit
        if not reached:
            return "not met"
        if any(each["status"] != "passed" for part in CHECKS for each in items(result, part).values()):
            return "does not count: checks failed"
        if found.repetitions is not None and found.repetitions < REPETITIONS:
            return f"does not count: {found.repetitions} repetitions, of {REPETITIONS}"
        return "met"


def _least(part: str, names: Sequence[str], *keys: str, per: float = 1.0) -> Callable[[Result], Found | None]:
    """Of items, the least of what stands under nested keys, in units of so many; None: it is not known of each."""

    def find(result: Result) -> Found | None:
        known = []
        for name in names:
            item = passed(result, part, name) or {}
            value: Any = item
            for key in keys:
                value = (value or {}).get(key)
            if value is None:
                return None
            known.append(Found(value / per, len(item.get("samples_us") or item["samples_ms"])))
        return min(known)

    return find


def _median(part: str, name: str, per: float = 1.0) -> Callable[[Result], Found | None]:
    return _least(part, [name], "median_us", per=per)


def _prefill_attention(result: Result) -> Found | None:
    """The quickest library's time as a share of ours, where that is least. Shapes that none takes do not count."""
    shares = []
    for name in items(result, "timings"):
        found = passed(result, "timings", name)
        if found and name.split("/")[0] == "prefill_attention":
            others = [beside(result, name).get(library, {}).get("speed_up") for library in LIBRARIES]
            best = min((each for each in others if each is not None), default=None)
            shares += [Found(100 * best, len(found["samples_us"]))] if best is not None else []
    return min(shares, default=None)


def _memory(result: Result) -> Found | None:
    """GB beside the weights of backbone and vocoder."""
    found = passed(result, "whole", "memory")
    if found is None or found["peak_bytes"] is None or round(found["seconds_of_audio"]) < 60:
        return None
    return Found((found["peak_bytes"] - found["weights_bytes"] - found["vocoder_bytes"]) / 1e9, None)


_ATTENTION = KERNELS["decode_attention"]
_LONG = [w.name for w in _ATTENTION.workloads if w.real and w.sizes["B"] >= 16 and w.sizes["context"] >= 4000]
_CLIP, _STREAMS = ([f"{work}/{dtype}" for dtype in DTYPES] for work in ("clips-1", "streams-64"))

GOALS = (
    Goal("frame, 1 stream, 1,000 frames of context", 0.52, "ms", _median("frames", "B1", 1e3)),
    Goal("frame, 16 streams", 3.0, "ms", _median("frames", "B16", 1e3)),
    Goal("frame, 64 streams", 5.2, "ms", _median("frames", "B64", 1e3)),
    Goal("frame, 1 stream, 8-bit experts", 0.40, "ms", lambda result: None),
    Goal("frame, 1 stream, 4-bit experts", 0.34, "ms", lambda result: None),
    Goal("text to the first 16 frames of audio, 1 stream", 30, "ms",
         _least("whole", ["first-audio/1"], "sixteen_frames_ms")),
    Goal("vocoder, a 10 s clip, against torch.compile", 2, "times",
         _least("vocoder", _CLIP, "compiled", "speed_up"), at_least=True),
    Goal("vocoder, 64 streams, against torch.compile", 2, "times",
         _least("vocoder", _STREAMS, "compiled", "speed_up"), at_least=True),
    Goal("vocoder, a 10 s clip, share of its floor", 50, "%",
         _least("vocoder", _CLIP, "percent_of_floor"), at_least=True),
    Goal("vocoder, 64 streams, share of its floor", 50, "%",
         _least("vocoder", _STREAMS, "percent_of_floor"), at_least=True),
    Goal("sampler, 1 stream", 8, "µs", _median("timings", "sample/decode-B1")),
    Goal("sampler, 64 streams", 20, "µs", _median("timings", "sample/decode-B64")),
    Goal("decode attention, 16 streams or more at 4,000 or more, share of copy bandwidth", 80, "%",
         _least("timings", [f"{_ATTENTION.name}/{name}" for name in _LONG], "percent_of_copy"), at_least=True),
    Goal("prefill attention, speed as a share of the best library's", 75, "%", _prefill_attention, at_least=True),
    Goal("peak memory beside the weights, 1 stream of 60 s", 1.0, "GB", _memory),
)  # fmt: skip
