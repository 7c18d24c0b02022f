"""Conditioning by value: rates in bytes per second, speeds and qualities in their own units, to buckets.

Source: the official engine, python/zonos2/tts/conditioning.py.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, TypedDict, cast

import torch
from torch import Tensor

from zonos2_triton.model.prompt import PromptOptions, Quality, checked_quality
from zonos2_triton.reference.config import Zonos2Config
from zonos2_triton.reference.numeric import isolated
from zonos2_triton.reference.scalars import as_int

MAX_RATE = 86 * 44070 / 44000  # bytes per second that the buckets of a model without ranges cover
NEUTRAL_RATE = 15.0  # bytes per second, where the ranges name no other
NUMBER = r"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?"
RANGE = re.compile(rf"\s*({NUMBER})\s*(?:(\+)|-\s*({NUMBER}))?\s*")

Values = Sequence[float | None] | Mapping[str, float | None] | None


class ValueOptions(TypedDict, total=False):
    """Conditioning by value, as keywords of `Zonos2.speak`."""

    bytes_per_second: float | None
    speed: float | None
    quality_values: Values


class _Range(NamedTuple):
    """Values low .. high of a bucket; an exact value has high = low."""

    low: float
    high: float


def resolve_speaking_rate_bucket(
    config: Zonos2Config,
    *,
    speaking_rate_bucket: int | None = None,
    speaking_rate: float | None = None,
    speed: float | None = None,
) -> int | None:
    """The bucket of a rate in bytes of UTF-8 per second, or of a speed as a factor of the neutral rate.

    A rate at a bound belongs to the bucket above it. The neutral rate is the middle of range n // 2. A model without
    rates ignores a speed. None: nothing was given.

    ValueError: more than one was given, it is no positive number or no bucket, or the model has no such rates.
    """
    given = {"speaking_rate_bucket": speaking_rate_bucket, "speaking_rate": speaking_rate, "speed": speed}
    given = {name: value for name, value in given.items() if value is not None}
    if len(given) > 1:
        raise ValueError(f"give one of speaking_rate_bucket, speaking_rate and speed, got {' and '.join(given)}")
    n = config.speaking_rate_num_buckets
    if speaking_rate_bucket is not None:
        bucket = as_int(speaking_rate_bucket)
        if bucket is None or not 0 <= bucket < n:
            raise ValueError(f"speaking_rate_bucket must be in {_buckets(n)}, got {speaking_rate_bucket!r}")
        return bucket
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise ValueError(f"{name} must be a positive number, got {value!r}")
    if not given or (n == 0 and speaking_rate is None):
        return None
    if n == 0:
        raise ValueError(f"speaking_rate must be None: this model has no speaking rates, got {speaking_rate!r}")
    ranges = _rate_ranges(config)
    rate = _neutral(ranges) * speed if speed is not None else cast(float, speaking_rate)
    if not ranges:
        return min(int(rate / MAX_RATE * n), n - 1)
    return next(i for i, own in enumerate(ranges) if rate < own.high and not _close(rate, own.high))


def resolve_quality_buckets(
    config: Zonos2Config, *, quality_buckets: Quality = None, quality_values: Values = None
) -> list[int | None] | None:
    """One bucket or None per feature, from buckets or from values in the feature's unit. None: nothing was given.

    A value goes to the bucket of an equal exact value, else to the first range that holds it. Below the first range
    it goes there, elsewhere to the last range. A value that is not finite gives None. Lists may be shorter or longer
    than the features, and unknown features are ignored.

    ValueError: both were given, a bucket is out of range, or the model has no features.
    """
    if quality_buckets is not None and quality_values is not None:
        raise ValueError("give one of quality_buckets and quality_values, got both")
    given = quality_values if quality_buckets is None else quality_buckets
    if given is None:
        return None
    features, counts = config.quality_features, config.quality_bucket_counts
    if len(given) and not features:
        raise ValueError(f"quality must be None: this model has no quality features, got {given!r}")
    listed = [given.get(name) for name in features] if isinstance(given, Mapping) else list(given)[: len(features)]
    listed += [None] * (len(features) - len(listed))
    if quality_values is None:
        for name, bucket, count in zip(features, listed, counts, strict=True):
            if bucket is not None and not 0 <= bucket < count:
                raise ValueError(f"quality_buckets: {name} must be in {_buckets(count)}, got {bucket!r}")
        return cast(list[int | None], listed)
    return [_value_bucket(config, i, value) for i, value in enumerate(listed)]


def resolve_max_tokens(config: Zonos2Config, requested: int | None) -> int:
    """Frames of a request, at most the context. None: the context. ValueError: below 1."""
    if requested is None:
        return config.max_seqlen
    number = as_int(requested)
    if number is None or number < 1:
        raise ValueError(f"max_tokens must be a positive integer or None, got {requested!r}")
    return min(number, config.max_seqlen)


def resolve_prompt(config: Zonos2Config, options: PromptOptions, values: ValueOptions) -> PromptOptions:
    """Options of `build_prompt`, with values replaced by their buckets.

    ValueError, TypeError: an argument is wrong, or a value and a bucket were given for the same thing.
    """
    rate, quality = options.get("speaking_rate"), options.get("quality")
    given, speed = values.get("bytes_per_second"), values.get("speed")
    resolved = cast(PromptOptions, dict(options))
    if given is not None or speed is not None:
        try:
            bucket = resolve_speaking_rate_bucket(config, speaking_rate_bucket=rate, speaking_rate=given, speed=speed)
        except ValueError as error:
            text = str(error).replace("speaking_rate ", "bytes_per_second ").replace("rate,", "bytes_per_second,")
            raise ValueError(text.replace("speaking_rate_bucket", "speaking_rate")) from error
        resolved["speaking_rate"] = bucket
    if (wanted := values.get("quality_values")) is not None:
        if quality is not None:
            raise ValueError("give one of quality and quality_values, got both")
        _check_values(config, wanted)
        resolved["quality"] = resolve_quality_buckets(config, quality_values=wanted)
    return resolved


@isolated()
def slerp_embeddings(v0: Tensor, v1: Tensor, t: float) -> Tensor:
    """Blend two speaker embeddings [D] along the arc between their directions; lengths blend too.

    (sin((1 - t) w) v0 + sin(t w) v1) / sin w, where w is the angle between them; t = 0: v0, t = 1: v1. Vectors of equal
    or opposite direction, which no single arc joins, are blended linearly. fp64 inside, dtype of v0 out.

    ValueError: sizes differ, a vector is not finite, or t is not in 0..1.
    """
    for name, v in (("v0", v0), ("v1", v1)):
        if not isinstance(v, Tensor) or v.ndim != 1 or not v.is_floating_point() or not bool(v.isfinite().all()):
            got = f"{v.dtype} {list(v.shape)}" if isinstance(v, Tensor) else type(v).__name__
            raise ValueError(f"{name} must be a tensor [D] of finite floats, got {got}")
    if len(v0) != len(v1):
        raise ValueError(f"v0 and v1 must be of one size, got {len(v0)} and {len(v1)}")
    if isinstance(t, bool) or not isinstance(t, int | float) or not 0 <= t <= 1:
        raise ValueError(f"t must be in 0..1, got {t!r}")
    a, b = v0.double(), v1.double().to(v0.device)
    cosine = torch.dot(a / (a.norm() + 1e-8), b / (b.norm() + 1e-8)).clamp(-1, 1)
    w = float(cosine.acos())
    if math.sin(w) < 1e-6:
        return ((1 - t) * a + t * b).to(v0.dtype)
    return ((math.sin((1 - t) * w) * a + math.sin(t * w) * b) / math.sin(w)).to(v0.dtype)


def _close(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-12, abs_tol=1e-9)


def _buckets(count: int) -> str:
    return f"0..{count - 1} or None" if count else "None: this model has no such buckets"


def _parsed(key: str, buckets: Iterable[str]) -> list[_Range]:
    ranges = []
    for text in buckets:
        if not (match := RANGE.fullmatch(text)):
            raise ValueError(f"{key} of params.json must hold numbers, 'a-b' or 'c+' to take a value, got {text!r}")
        low, high = float(match[1]), match[3]
        ranges.append(_Range(low, math.inf if match[2] else low if high is None else float(high)))
    return ranges


def _rate_ranges(config: Zonos2Config) -> list[_Range]:
    """The ranges of the rates; empty if the model states none. ValueError: they do not follow each other."""
    ranges, start = _parsed("speaking_rate_buckets", config.speaking_rate_buckets), 0.0
    for own in ranges:
        if abs(own.low - start) > 1e-9 or own.high <= own.low:
            stated = ", ".join(config.speaking_rate_buckets)
            raise ValueError(f"speaking_rate_buckets of params.json must follow each other from 0, got {stated}")
        start = own.high
    if ranges and start != math.inf:
        stated = config.speaking_rate_buckets[-1]
        raise ValueError(f"speaking_rate_buckets of params.json must end with an open range 'c+', got {stated!r}")
    return ranges


def _neutral(ranges: list[_Range]) -> float:
    if not ranges:
        return NEUTRAL_RATE
    middle = ranges[len(ranges) // 2]
    return max(middle.low, NEUTRAL_RATE) if middle.high == math.inf else (middle.low + middle.high) / 2


def _value_bucket(config: Zonos2Config, feature: int, value: float | None) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    key = f"quality_buckets.{config.quality_features[feature]}"
    parsed = _parsed(key, config.quality_buckets[feature]) if config.quality_buckets else []
    ranges = [(i, own) for i, own in enumerate(parsed) if own.high > own.low]
    for i, own in enumerate(parsed):
        if own.high == own.low and _close(value, own.low):
            return i
    for i, own in ranges:
        if own.low <= value < own.high or (i == ranges[-1][0] and value == own.high):
            return i
    if not ranges:
        return None
    return ranges[0][0] if value < ranges[0][1].low else ranges[-1][0]


def _check_values(config: Zonos2Config, values: Values) -> None:
    """TypeError, ValueError: no finite numbers for features of this model."""
    checked_quality("quality_values", config, values)
    items = values.items() if isinstance(values, Mapping) else enumerate(values or ())
    for name, value in items:
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if value is not None and not number:
            raise ValueError(f"quality_values[{name!r}] must be a finite number or None, got {value!r}")
