"""The configuration of a ZONOS2 backbone, as params.json states it."""

import json
import math
import warnings
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from zonos2_triton._settings import local_path
from zonos2_triton.reference.scalars import as_python

BYTE_VOCAB = 448  # 192 symbol ids, of which 2 and 3 are begin and end of text, then the 256 bytes

# Sign of the router's balancing_biases by the name of the strategy.
BALANCING_SIGN = dict.fromkeys(("legacy", "old", "aux", "aux_loss"), 1)
BALANCING_SIGN |= dict.fromkeys(("quantile", "current", "qbalancing"), -1)

# Keys of params.json that inference does not need, and keys that restate others.
UNUSED_KEYS = frozenset({"moe_impl", "quality_dropout"})
RESTATED_KEYS = frozenset({"speaking_rate_buckets", "quality_num_buckets", "quality_buckets"})  # null: derived


@dataclass(frozen=True)
class Zonos2Config:
    """Sizes and ids of a model, read by `from_json`. A contradiction is a ValueError.

    Fields without a default must be in params.json. `quality_bucket_counts` and `quality_buckets` are derived there
    from its `quality_features` and `quality_buckets`.
    """

    n_layers: int
    dim: int
    head_dim: int
    n_kv_heads: int | None
    ffn_dim_multiplier: float
    multiple_of: int
    norm_eps: float
    rope_theta: float
    max_seqlen: int
    n_codebooks: int
    codebook_size: int
    eoa_id: int
    audio_pad_id: int
    text_vocab: int
    loss_softcap: float  # 0: none
    speaker_enabled: bool
    speaker_embedding_dim: int
    speaker_background_token_enabled: bool
    accurate_mode_token_enabled: bool
    speaking_rate_num_buckets: int
    quality_features: tuple[str, ...]
    quality_bucket_counts: tuple[int, ...]
    moe_n_experts: int
    moe_router_topk: int
    moe_router_dim: int
    moe_start_from_layer: int
    moe_end_from_layer: int
    n_heads: int | None = None  # None: dim / head_dim
    speaker_lda_dim: int | None = None  # None: the embedding is projected in one step
    special_topk_layers: tuple[tuple[int, int], ...] = ()  # (absolute layer, experts per token)
    speaking_rate_buckets: tuple[str, ...] = ()  # ranges of bytes per second, "a-b", the last "c+"
    quality_buckets: tuple[tuple[str, ...], ...] = ()  # by feature: values, ranges "a-b" or "c+"
    moe_balancing_strategy: str = "legacy"
    dtype: str = "bfloat16"  # of the stored weights

    @classmethod
    def from_json(cls, path: str | Path) -> "Zonos2Config":
        """Read params.json. ValueError: not JSON, or a missing, mistyped or contradictory key. Unknown keys warn."""
        path = local_path(path)
        try:
            params = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_without_doubles)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{path.parent} holds no {path.name}; it comes with the weights") from error
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is not valid JSON: {error}") from error
        if not isinstance(params, dict):
            raise ValueError(f"{path} must hold one JSON object, got {type(params).__name__}")
        try:
            return cls.from_params(params)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    @classmethod
    def from_params(cls, params: dict[str, Any]) -> "Zonos2Config":
        """From the parsed object, or from one that holds it under "model"."""
        params = params["model"] if isinstance(params.get("model"), dict) else params
        own = {field.name: field for field in fields(cls)}
        required = {name for name, field in own.items() if field.default is MISSING}
        required = required - {"quality_bucket_counts"} | RESTATED_KEYS
        if missing := sorted(required - params.keys()):
            raise ValueError(f"missing keys: {', '.join(missing)}")
        if unknown := sorted(params.keys() - own.keys() - UNUSED_KEYS - RESTATED_KEYS - {"model_type"}):
            warnings.warn(f"params.json: unknown keys are ignored: {', '.join(unknown)}", stacklevel=3)
        if params.get("model_type", "zonos2") != "zonos2":
            raise ValueError(f"model_type must be 'zonos2', got {params['model_type']!r}")
        values = {name: params[name] for name in own if name in params}
        values["quality_features"], values["quality_buckets"] = _quality(params)
        values["quality_bucket_counts"] = tuple(map(len, values["quality_buckets"]))
        values["special_topk_layers"] = _special_topk_layers(params.get("special_topk_layers"))
        if isinstance(strategy := values.get("moe_balancing_strategy"), str):
            values["moe_balancing_strategy"] = strategy.strip().lower().replace("-", "_")
        rates = _list("speaking_rate_buckets", params["speaking_rate_buckets"])
        stated = params["speaking_rate_num_buckets"]
        if rates and len(rates) != stated:
            raise ValueError(f"speaking_rate_num_buckets is {stated!r}, but speaking_rate_buckets lists {len(rates)}")
        values["speaking_rate_buckets"] = tuple(map(str, rates))
        return cls(**values)

    def __post_init__(self) -> None:
        _check_types(self)
        if self.n_heads is None and self.dim < self.head_dim:
            raise ValueError(f"n_heads is null, but dim {self.dim} is below head_dim {self.head_dim}")
        for contradiction in self._contradictions():
            raise ValueError(contradiction)

    def _contradictions(self) -> Iterator[str]:
        special = ", ".join(f"{layer}: {k}" for layer, k in self.special_topk_layers)
        moe, ks = self.moe_layers, [self.moe_router_topk, *(k for _, k in self.special_topk_layers)]
        if self.n_heads is None and self.dim % self.head_dim != 0:
            yield f"n_heads is null, but dim {self.dim} is no multiple of head_dim {self.head_dim}"
        if self.heads % self.kv_heads != 0:
            yield f"n_heads {self.heads} is no multiple of n_kv_heads {self.kv_heads}"
        if self.head_dim % 2 != 0:
            yield f"head_dim must be even for rotary pairs, got {self.head_dim}"
        if self.eoa_id != self.codebook_size:
            yield f"eoa_id must be codebook_size {self.codebook_size}, got {self.eoa_id}"
        if self.audio_pad_id != self.codebook_size + 1:
            yield f"audio_pad_id must be codebook_size + 1 = {self.codebook_size + 1}, got {self.audio_pad_id}"
        if self.ffn_dim == 0:
            yield f"ffn_dim_multiplier {self.ffn_dim_multiplier} * dim {self.dim} is below one"
        if self.conditioning_base < BYTE_VOCAB:
            ids = f"text_vocab {self.text_vocab} leaves {self.conditioning_base} ids beside the conditioning tokens"
            yield f"{ids}, but text needs {BYTE_VOCAB}"
        if self.moe_start_from_layer + self.moe_end_from_layer > self.n_layers:
            layers = f"moe_start_from_layer {self.moe_start_from_layer} + moe_end_from_layer {self.moe_end_from_layer}"
            yield f"{layers} exceeds n_layers {self.n_layers}"
        if self.moe_n_experts > 1 and not all(1 <= k <= self.moe_n_experts for k in ks):
            counts = f"moe_router_topk {self.moe_router_topk} and special_topk_layers {{{special}}}"
            yield f"{counts} must be in 1..moe_n_experts = {self.moe_n_experts}"
        if any(layer not in moe for layer, _ in self.special_topk_layers):
            layers = f"special_topk_layers {{{special}}} names a layer that is no mixture of experts"
            yield f"{layers}; those are {moe.start} to {moe.stop - 1}"
        if self.moe_balancing_strategy not in BALANCING_SIGN:
            strategies = ", ".join(BALANCING_SIGN)
            yield f"moe_balancing_strategy must be one of {strategies}, got {self.moe_balancing_strategy!r}"
        if self.dtype not in ("bfloat16", "float16", "float32", "float64"):
            yield f"dtype must be bfloat16, float16, float32 or float64, got {self.dtype!r}"

    @property
    def heads(self) -> int:
        """Query heads."""
        return self.n_heads or self.dim // self.head_dim

    @property
    def kv_heads(self) -> int:
        """Key/value heads."""
        return self.n_kv_heads or self.heads

    @property
    def ffn_dim(self) -> int:
        """Width of a dense feed-forward layer and of each expert."""
        return self.multiple_of * math.ceil(int(self.ffn_dim_multiplier * self.dim) / self.multiple_of)

    @property
    def codebook_vocab(self) -> int:
        """Codes of a codebook, end of audio and padding."""
        return self.codebook_size + 2

    @property
    def moe_layers(self) -> range:
        """The layers that are mixtures of experts; the others are dense."""
        if self.moe_n_experts <= 1:
            return range(0)
        return range(self.moe_start_from_layer, self.n_layers - self.moe_end_from_layer)

    def experts_per_token(self, layer: int) -> int:
        """k of a mixture layer, by its absolute number."""
        return dict(self.special_topk_layers).get(layer, self.moe_router_topk)

    @property
    def max_experts_per_token(self) -> int:
        """The largest k; 0 without mixtures."""
        return max((self.experts_per_token(layer) for layer in self.moe_layers), default=0)

    @property
    def background_ids(self) -> int:
        """Text ids of the clean and the noisy background marker."""
        return 2 if self.speaker_background_token_enabled else 0

    @property
    def accurate_ids(self) -> int:
        """Text ids of the accuracy marker, which requires the background markers."""
        return 1 if self.accurate_mode_token_enabled and self.background_ids else 0

    @property
    def conditioning_base(self) -> int:
        """First conditioning id. Rates, qualities, background and accuracy markers end the vocabulary."""
        conditioning = self.speaking_rate_num_buckets + sum(self.quality_bucket_counts)
        return self.text_vocab - conditioning - self.background_ids - self.accurate_ids


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Reject duplicate keys, which JSON allows."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"keys stand twice: {', '.join(sorted({key for key in keys if keys.count(key) > 1}))}")
    return found


def _list(key: str, value: object) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise ValueError(f"{key} must be a list, got {value!r}")
    return value


def _quality(params: dict[str, Any]) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """(features, buckets of each). Without a list of features, the order of the buckets counts."""
    buckets = params["quality_buckets"] or {}
    if not isinstance(buckets, dict):
        raise ValueError(f"quality_buckets must map features to lists of buckets, got {buckets!r}")
    features = _list("quality_features", params["quality_features"]) or list(buckets)
    if not all(isinstance(feature, str) for feature in features):
        raise ValueError(f"quality_features must be a list of names, got {features!r}")
    if sorted(features) != sorted(buckets):
        raise ValueError(f"quality_features {features} and the keys of quality_buckets {list(buckets)} differ")
    lists = tuple(tuple(map(str, _list(f"quality_buckets.{feature}", buckets[feature]))) for feature in features)
    count = sum(map(len, lists))
    stated = params["quality_num_buckets"]
    if stated not in (None, count):
        raise ValueError(f"quality_num_buckets is {stated!r}, but quality_buckets lists {count}")
    return tuple(features), lists


def _special_topk_layers(value: dict[str, int] | None) -> tuple[tuple[int, int], ...]:
    try:
        pairs = tuple(sorted((int(layer), k) for layer, k in (value or {}).items()))
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"special_topk_layers must map layer numbers to counts, got {value!r}") from error
    if len(dict(pairs)) < len(pairs):
        raise ValueError(f"special_topk_layers names a layer twice, got {value!r}")
    return pairs


def check_sizes(config: Any) -> None:
    """ValueError: a field of a frozen dataclass is no positive integer or list of them. Lists become tuples."""
    for field in fields(config):
        value, many = as_python(getattr(config, field.name)), field.type == tuple[int, ...]
        numbers = (value,) if not many else tuple(value) if isinstance(value, list | tuple) else ()
        if not numbers or not all(type(n) is int and n > 0 for n in numbers):
            kind = "a list of positive integers" if many else "a positive integer"
            raise ValueError(f"{type(config).__name__}: {field.name} must be {kind}, got {value!r}")
        object.__setattr__(config, field.name, numbers if many else value)


MAY_BE_ZERO = {"loss_softcap", "moe_n_experts", "moe_start_from_layer", "moe_end_from_layer"}
MAY_BE_ZERO |= {"quality_bucket_counts", "speaking_rate_num_buckets"}


def _check_types(config: Zonos2Config) -> None:
    for field in fields(config):
        name, value, kind = field.name, as_python(getattr(config, field.name)), field.type
        object.__setattr__(config, name, value)
        if value is None and kind == int | None:
            continue
        low = 0 if name in MAY_BE_ZERO else 1

        def counts(*numbers: object, low: int = low) -> bool:
            return all(type(n) is int and n >= low for n in numbers)

        if kind in (int, int | None):
            ok, wanted = counts(value), f"an integer from {low}"
        elif kind is float:
            ok = type(value) in (int, float) and 0 <= value < math.inf and (value > 0 or low == 0)
            wanted = "a number from 0" if low == 0 else "a positive number"
        elif kind is bool:
            ok, wanted = isinstance(value, bool), "true or false"
        elif kind is str:
            ok, wanted = isinstance(value, str), "a string"
        elif kind == tuple[str, ...]:
            ok, wanted = all(isinstance(item, str) for item in value), "a list of names"
        elif kind == tuple[tuple[str, ...], ...]:
            ok, wanted = all(isinstance(item, str) for own in value for item in own), "lists of buckets"
        elif kind == tuple[int, ...]:
            ok, wanted = counts(*value), "lists of buckets"
        else:  # special_topk_layers
            ok, wanted = all(counts(k) for _, k in value), "layer numbers with integers from 1"
        if not ok:
            raise ValueError(f"{name} must be {wanted}, got {value!r}")
