"""Memory that the 8B model takes on a device, by the code that `Zonos2.load` runs.

Each component is made by its own class on the meta device, where a tensor has a shape and no memory. Memory that no
tensor holds between two calls is an estimate.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from zonos2_triton.bench.suite.device_checks import whole_model
from zonos2_triton.model.backbone import Backbone
from zonos2_triton.model.backend import resolve_dtype
from zonos2_triton.model.ops import MAX_BATCH_SIZE, MAX_PREFILL_TOKENS, PAGE_SIZE
from zonos2_triton.model.pipeline import Zonos2
from zonos2_triton.model.runtime.batch_state import cache_pages, pages_of
from zonos2_triton.model.runtime.cuda_graphs import buckets
from zonos2_triton.model.runtime.scheduler import SYNC_INTERVAL, BatchingOptions
from zonos2_triton.model.speaker import SpeakerEncoder
from zonos2_triton.model.vocoder import Vocoder
from zonos2_triton.model.vocoder_decoder import VocoderDecoder
from zonos2_triton.reference import network, speaker_encoder, vocoder
from zonos2_triton.reference.config import Zonos2Config
from zonos2_triton.reference.speaker_encoder import SpeakerEncoderConfig
from zonos2_triton.reference.vocoder import VocoderConfig

MODEL, CODEC = whole_model(), VocoderConfig()
RESERVE = 1.0e9  # bytes: the context of CUDA, loaded kernels and graphs, what the allocator cannot use; not measured
LAYOUT, ESTIMATE = "layout", "estimate"  # kinds of a size

# What a tensor belongs to, by the first of these that is in its name.
GROUPS = {
    "multi_embedder.": "embedding", "speaker_": "speaker", "multi_output.": "head", "out_norm.": "head",
    ".attention": "attention", ".router.": "routers, norms", ".ffn_norm.": "routers, norms", ".experts.": "experts",
    ".feed_forward.": "dense FFN",
}  # fmt: skip

# The dtype of the backbone, and bits of an expert's weight, scales included: 16 of them for every 64 weights of int4.
PRECISIONS = {
    "bf16": ("bfloat16", 16.0), "fp16": ("float16", 16.0), "fp32": ("float32", 32.0), "int8": ("bfloat16", 8.0),
    "int4": ("bfloat16", 4.25),
}  # fmt: skip
VOCODER_DTYPES = ("float32", "tf32", "float16", "bfloat16")


class Sizes(NamedTuple):
    """The configurations of everything that `Zonos2.load` reads; the released ones by default."""

    model: Zonos2Config = MODEL
    codec: VocoderConfig = CODEC
    speaker: SpeakerEncoderConfig = SpeakerEncoderConfig()


RELEASED = Sizes()


class Component(NamedTuple):
    """One share of the memory."""

    name: str
    bytes: float
    kind: str


def memory(precision: str, vocoder_dtype: str, options: BatchingOptions, prompt: int) -> list[Component]:
    """The memory that `Zonos2.load` needs with these options on a GPU. prompt: tokens of each prompt."""
    dtype, _ = PRECISIONS[precision]
    found = planned(dtype, vocoder_dtype, options)
    found["weights: experts"] *= expert_share(precision)
    prefill = _prefill(min(options.max_batch_size * prompt, MAX_PREFILL_TOKENS), resolve_dtype(dtype).itemsize)
    return [
        *(Component(name, size, LAYOUT) for name, size in found.items()),
        Component("activations of a prefill", prefill, ESTIMATE),
        Component("context, kernels, graphs, allocator", RESERVE, ESTIMATE),
    ]


def expert_share(precision: str) -> float:
    """Bytes of an expert's weight over those of the same weight in the dtype of the others."""
    dtype, bits = PRECISIONS[precision]
    return bits / 8 / resolve_dtype(dtype).itemsize


def most(
    precision: str, vocoder_dtype: str, prompt: int, capacity: float, rows: int | None, batch_size: int = MAX_BATCH_SIZE
) -> BatchingOptions | None:
    """The largest batch, of at most batch_size, that fits into capacity bytes. rows: cache tokens per request."""
    # Not by bisection: with a larger batch the rings may take less, in more steps.
    for n in range(batch_size, 0, -1):
        options = BatchingOptions(n, rows and n * pages_of(rows) * PAGE_SIZE)
        if sum(each.bytes for each in memory(precision, vocoder_dtype, options, prompt)) <= capacity:
            return options
    return None


def planned(
    dtype: str, vocoder_dtype: str, options: BatchingOptions, sizes: Sizes = RELEASED, backend: str = "triton"
) -> dict[str, float]:
    """`components` of what `Zonos2.load` would make with these arguments: on a GPU, unless sync_interval is 1."""
    # Batch sizes of a bucket differ in the cache alone, whose pages are alike.
    top = BatchingOptions(buckets(options.max_batch_size)[-1], PAGE_SIZE, options.sync_interval or SYNC_INTERVAL, "off")
    found = dict[str, float](_components(dtype, vocoder_dtype, top, sizes, backend))
    found["cache"] *= cache_pages(sizes.model, options.max_batch_size, options.kv_cache_tokens)
    return found


def components(tts: Zonos2) -> dict[str, int]:
    """Bytes that it holds between two frames, by component; memory that several share counts for the first of them."""
    backbone, codec, scheduler = tts.backbone, tts.vocoder, tts.backbone.scheduler
    weights = backbone.weights.items()
    named: dict[str, object] = {
        **{f"weights: {own}": [t for name, t in weights if group_of(name) == own] for own in GROUPS.values()},
        "embedding again, as one table": backbone.model.table,
        "rotary table": backbone.model.cos_sin_cache,
        "vocoder, as loaded": codec.state,
        "vocoder, packed": vars(codec).get("decoder"),
        "speaker encoder": tts.speaker_encoder,
        "cache": scheduler.state.cache,
        "vocoder's rings": scheduler.vocoder_runner and scheduler.vocoder_runner._rings,
        "state of the scheduler": tts,  # all the rest
    }
    found, before, seen = dict[str, int](), 0, list[Tensor]()
    for name, owner in named.items():
        seen += tensors(owner)
        found[name], before = held(seen) - before, held(seen)
    return found


def held(found: Iterable[Tensor]) -> int:
    """Bytes of the memory behind tensors, counted once each."""
    storages = [tensor.untyped_storage() for tensor in found]
    return sum({storage._cdata: storage.nbytes() for storage in storages}.values())


def tensors(found: object, seen: set[int] | None = None) -> Iterator[Tensor]:
    """All that an object of this package reaches."""
    seen = set() if seen is None else seen
    if id(found) in seen:
        return
    seen.add(id(found))
    inner: Any = ()
    if isinstance(found, Tensor):
        yield found
    elif isinstance(found, partial):
        inner = found.keywords.values()
    elif isinstance(found, Mapping):
        inner = found.values()
    elif isinstance(found, list | tuple):
        inner = found
    elif type(found).__module__.startswith("zonos2_triton."):
        inner = vars(found).values()
    for each in inner:
        yield from tensors(each, seen)


@cache
def decoder() -> VocoderDecoder:
    """Without its weights."""
    return unloaded("bfloat16", "float32", BatchingOptions(1)).vocoder.decoder


@cache
def parameters() -> dict[str, int]:
    """The number of the backbone's parameters, by group."""
    counts = dict.fromkeys(GROUPS.values(), 0)
    for name, shape in network.layout(MODEL).items():
        counts[group_of(name)] += math.prod(shape)
    return counts


def group_of(name: str) -> str:
    """The group of a weight, by its name."""
    return next(group for mark, group in GROUPS.items() if mark in name)


@cache
def _components(dtype: str, vocoder_dtype: str, options: BatchingOptions, sizes: Sizes, backend: str) -> dict[str, int]:
    return components(unloaded(dtype, vocoder_dtype, options, sizes, backend))


def unloaded(
    dtype: str, vocoder_dtype: str, options: BatchingOptions, sizes: Sizes = RELEASED, backend: str = "triton"
) -> Zonos2:
    """As `Zonos2.load` puts it together, on the meta device."""

    def weights(layout: Mapping[str, list[int]], dtype: str) -> dict[str, Tensor]:
        return {name: torch.empty(shape, dtype=resolve_dtype(dtype), device="meta") for name, shape in layout.items()}

    stored = vocoder_dtype.replace("tf32", "float32")
    return Zonos2(
        Backbone(sizes.model, weights(network.layout(sizes.model), dtype), backend, options),
        Vocoder(sizes.codec, weights(vocoder.layout(sizes.codec), stored), backend, vocoder_dtype == "tf32"),
        SpeakerEncoder(sizes.speaker, weights(speaker_encoder.layout(sizes.speaker), "float32")),
    )


def _prefill(rows: int, itemsize: int) -> float:
    """Bytes that live at once in a layer: the stream before and after, norm, projections, attention, the experts' h."""
    c = MODEL
    attention = 2 * (c.heads + c.kv_heads) * c.head_dim + c.heads
    return rows * (3 * c.dim + attention + c.max_experts_per_token * c.ffn_dim) * itemsize
