"""What this project has to reach on an H200 in bf16, and what a run reached of it."""

from collections.abc import Callable, Iterable
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


def _median(part: str, name: str, per: float = 1.0) -> Callable[[Result], Found | None]:
    """Microseconds, in units of so many."""

    def find(result: Result) -> Found | None:
        found = passed(result, part, name)
        return None if found is None else Found(found["median_us"] / per, len(found["samples_us"]))

    return find


def _sixteen_frames(result: Result) -> Found | None:
    found = passed(result, "whole", "first-audio/1") or {}
    return Found(found["sixteen_frames_ms"], len(found["samples_ms"])) if "sixteen_frames_ms" in found else None


def _worst(found: Iterable[Found | None]) -> Found | None:
    """None where one of them is not known."""
    listed = list(found)
    known = [each for each in listed if each is not None]
    return min(known, default=None) if len(known) == len(listed) else None


def _vocoder(work: str, figure: Callable[[dict[str, Any]], float | None]) -> Callable[[Result], Found | None]:
    """The worse of both precisions."""

    def one(result: Result, dtype: str) -> Found | None:
        found = passed(result, "vocoder", f"{work}/{dtype}")
        value = None if found is None else figure(found)
        return None if found is None or value is None else Found(value, len(found["samples_us"]))

    return lambda result: _worst(one(result, dtype) for dtype in DTYPES)


def _long_attention(result: Result) -> Found | None:
    """The worst share of copy bandwidth where 16 sequences or more have 4,000 rows or more in the cache."""
    kernel = KERNELS["decode_attention"]
    names = [w.name for w in kernel.workloads if w.real and w.sizes["B"] >= 16 and w.sizes["context"] >= 4000]
    found = [passed(result, "timings", f"{kernel.name}/{name}") or {} for name in names]
    shares = [(each.get("percent_of_copy"), len(each.get("samples_us", ()))) for each in found]
    return _worst(None if value is None else Found(value, repetitions) for value, repetitions in shares)


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


def _compiled(found: dict[str, Any]) -> float | None:
    return found["compiled"].get("speed_up")


def _floor(found: dict[str, Any]) -> float | None:
    return found.get("percent_of_floor")


GOALS = (
    Goal("frame, 1 stream, 1,000 frames of context", 0.52, "ms", _median("frames", "B1", 1e3)),
    Goal("frame, 16 streams", 3.0, "ms", _median("frames", "B16", 1e3)),
    Goal("frame, 64 streams", 5.2, "ms", _median("frames", "B64", 1e3)),
    Goal("frame, 1 stream, 8-bit experts", 0.40, "ms", lambda result: None),
    Goal("frame, 1 stream, 4-bit experts", 0.34, "ms", lambda result: None),
    Goal("text to the first 16 frames of audio, 1 stream", 30, "ms", _sixteen_frames),
    Goal("vocoder, a 10 s clip, against torch.compile", 2, "times", _vocoder("clips-1", _compiled), at_least=True),
    Goal("vocoder, 64 streams, against torch.compile", 2, "times", _vocoder("streams-64", _compiled), at_least=True),
    Goal("vocoder, a 10 s clip, share of its floor", 50, "%", _vocoder("clips-1", _floor), at_least=True),
    Goal("vocoder, 64 streams, share of its floor", 50, "%", _vocoder("streams-64", _floor), at_least=True),
    Goal("sampler, 1 stream", 8, "µs", _median("timings", "sample/decode-B1")),
    Goal("sampler, 64 streams", 20, "µs", _median("timings", "sample/decode-B64")),
    Goal("decode attention, 16 streams or more at 4,000 or more, share of copy bandwidth", 80, "%", _long_attention,
         at_least=True),
    Goal("prefill attention, speed as a share of the best library's", 75, "%", _prefill_attention, at_least=True),
    Goal("peak memory beside the weights, 1 stream of 60 s", 1.0, "GB", _memory),
)  # fmt: skip
