"""The project's targets on an H200 in bf16, and the figures that a run reached."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from zonos2_triton.bench.catalogue import KERNELS
from zonos2_triton.bench.suite.results import Result, all_passed, baselines, items, passed

GPU = "NVIDIA H200"
REPETITIONS = 20  # that a median must be of, to count
LIBRARIES = ("sdpa", "flash-attn", "flashinfer")  # of attention
UNMEASURED = "not yet measured on a GPU"
CHECKS = ("tests", "accuracy", "invariance", "cuda_graph", "sanitizer")

# A figure in its goal's unit, and how many repetitions it is the median of; None: it is no time.
Measurement = tuple[float, int | None]


@dataclass(frozen=True)
class Goal:
    """One figure to reach."""

    what: str
    limit: float
    unit: str
    find: Callable[[Result], Measurement | None]
    at_least: bool = False  # otherwise at most

    def row(self, result: Result | None) -> tuple[str, str, str, str]:
        """The target, the measured figure, and the verdict."""
        goal = f"{'≥' if self.at_least else '≤'} {self.limit:g} {self.unit}"
        found = self.find(result) if result and not result["environment"]["smoke"] else None
        if result is None or found is None:
            return self.what, goal, UNMEASURED, ""
        return self.what, goal, f"{found[0]:.3g} {self.unit}", self._verdict(*found, result)

    def _verdict(self, value: float, repetitions: int | None, result: Result) -> str:
        """Never "met" where a check failed, on another GPU, or of too few repetitions."""
        if not result["environment"]["gpu"].startswith(GPU):
            return f"another GPU than the goal's, {GPU}"
        if not (value >= self.limit if self.at_least else value <= self.limit):
            return "not met"
        if any(each["status"] != "passed" for stage in CHECKS for each in items(result, stage).values()):
            return "does not count: checks failed"
        if repetitions is not None and repetitions < REPETITIONS:
            return f"does not count: {repetitions} repetitions, of {REPETITIONS}"
        return "met"


def _least(stage: str, names: Sequence[str], *keys: str, per: float = 1.0) -> Callable[[Result], Measurement | None]:
    """The least value of items under nested keys, in units of `per`; None: an item has none."""

    def find(result: Result) -> Measurement | None:
        known = []
        for name in names:
            item = passed(result, stage, name) or {}
            value: Any = item
            for key in keys:
                value = (value or {}).get(key)
            if value is None:
                return None
            known.append((value / per, len(item.get("samples_us") or item["samples_ms"])))
        return min(known)

    return find


def _prefill_attention(result: Result) -> Measurement | None:
    """The quickest library's time as a share of ours, where that is least. Shapes that none takes do not count."""
    shares = []
    for name, found in all_passed(result, "timings").items():
        others = (baselines(result, name).get(library, {}).get("speed_up") for library in LIBRARIES)
        known = [each for each in others if each is not None]
        if name.startswith("prefill_attention/") and known:
            shares.append((100 * min(known), len(found["samples_us"])))
    return min(shares, default=None)


def _memory(result: Result) -> Measurement | None:
    """GB beside the weights of backbone and vocoder."""
    found = passed(result, "end_to_end", "memory")
    if found is None or found["peak_bytes"] is None or round(found["seconds_of_audio"]) < 60:
        return None
    return (found["peak_bytes"] - found["weights_bytes"] - found["vocoder_bytes"]) / 1e9, None


_ATTENTION = KERNELS["decode_attention"]
_LONG = [w.name for w in _ATTENTION.workloads if w.real and w.sizes["B"] >= 16 and w.sizes["context"] >= 4000]
_VOCODER = [f"{work}/{dtype}" for work in ("clips-1", "streams-64") for dtype in ("bfloat16", "float16")]

GOALS = (
    Goal("frame, 1 stream, 1,000 frames of context", 0.52, "ms", _least("frames", ["B1"], "median_us", per=1e3)),
    Goal("frame, 16 streams", 3.0, "ms", _least("frames", ["B16"], "median_us", per=1e3)),
    Goal("frame, 64 streams", 5.2, "ms", _least("frames", ["B64"], "median_us", per=1e3)),
    Goal("frame, 1 stream, 8-bit experts", 0.40, "ms", lambda result: None),
    Goal("frame, 1 stream, 4-bit experts", 0.34, "ms", lambda result: None),
    Goal("text to the first 16 frames of audio, 1 stream", 30, "ms",
         _least("end_to_end", ["first-audio/1"], "sixteen_frames_ms")),
    Goal("vocoder, a 10 s clip and 64 streams, against torch.compile", 2, "times",
         _least("vocoder", _VOCODER, "compiled", "speed_up"), at_least=True),
    Goal("vocoder, a 10 s clip and 64 streams, share of its floor", 50, "%",
         _least("vocoder", _VOCODER, "pct_floor"), at_least=True),
    Goal("sampler, 1 stream", 8, "µs", _least("timings", ["sample_codes/decode-B1"], "median_us")),
    Goal("sampler, 64 streams", 20, "µs", _least("timings", ["sample_codes/decode-B64"], "median_us")),
    Goal("decode attention, 16 streams or more at 4,000 or more, share of copy bandwidth", 80, "%",
         _least("timings", [f"{_ATTENTION.name}/{name}" for name in _LONG], "pct_measured_bandwidth"), at_least=True),
    Goal("prefill attention, speed as a share of the best library's", 75, "%", _prefill_attention, at_least=True),
    Goal("peak memory beside the weights, 1 stream of 60 s", 1.0, "GB", _memory),
)  # fmt: skip
