"""What the 8B model takes of a device's memory: weights, vocoder, cache, and what the frame loop keeps beside them.

Sizes are those of the code itself: the loop's state, its cache and the vocoder's rings are made on the meta device,
where a tensor has a shape and no memory.
"""

import math
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from zonos2_triton.bench.suite.device_checks import whole_model
from zonos2_triton.model.ops import PAGE_SIZE, ROWS_AT_ONCE, SEQUENCES_AT_ONCE, vocoder_ops
from zonos2_triton.model.runtime.batch_state import Slots, pages_of
from zonos2_triton.model.runtime.cuda_graphs import buckets
from zonos2_triton.model.runtime.vocoder_runner import Speech
from zonos2_triton.model.vocoder_decoder import Decoder
from zonos2_triton.reference import network, vocoder
from zonos2_triton.reference.rotary import rotary_table
from zonos2_triton.reference.vocoder import VocoderConfig

MODEL, CODEC = whole_model(), VocoderConfig()
LOOK = 8  # frames between two looks of the host, on a GPU
RESERVE = 1.0e9  # bytes: the context of CUDA, loaded kernels and graphs, what the allocator cannot use; not measured
LAYOUT, ESTIMATE = "layout", "estimate"  # kinds of a size

# What a tensor belongs to, by the first of these that is in its name.
GROUPS = {
    "multi_embedder.": "embedding", "speaker_": "speaker", "multi_output.": "head", "out_norm.": "head",
    ".attention": "attention", ".router.": "routers, norms", ".ffn_norm.": "routers, norms", ".experts.": "experts",
    ".feed_forward.": "dense FFN",
}  # fmt: skip

# Bits of an expert's weight, scales included. The cache and all else that is computed are in bf16, the vocoder in fp16.
PRECISIONS = {"bf16": 16.0, "int8": 8.0, "int4": 4.25}  # a scale of 16 bits for every 64 weights
DTYPE, CODEC_DTYPE = torch.bfloat16, torch.float16
LIKE = torch.empty(0, dtype=DTYPE, device="meta")  # what tensors of the model are like


class Part(NamedTuple):
    """Of the memory."""

    name: str
    bytes: float
    kind: str


def parts(precision: str, streams: int, rows: int, prompt: int) -> list[Part]:
    """Of a loop whose streams have `rows` rows of the cache each; prompt: rows that each begins with."""
    weights = {name: count * DTYPE.itemsize * share(precision, name) for name, count in parameters().items()}
    state, rings = _loop(buckets(streams)[-1])
    rotary = rotary_table(MODEL.max_seqlen, MODEL.head_dim, MODEL.rope_theta, LIKE).nbytes
    return [
        *(Part(f"weights: {name}", size, LAYOUT) for name, size in weights.items()),
        Part("embedding again, as one table", weights["embedding"], LAYOUT),
        Part("rotary table", rotary, LAYOUT),
        Part("vocoder, float16, as loaded and packed", decoder()[1], LAYOUT),
        Part("cache", streams * pages_of(rows) * _page(), LAYOUT),
        Part("vocoder's rings", rings, LAYOUT),
        Part("state of the loop", state, LAYOUT),
        Part("activations of a prefill", _prefill(min(streams * prompt, ROWS_AT_ONCE)), ESTIMATE),
        Part("context, kernels, allocator", RESERVE, ESTIMATE),
    ]


def share(precision: str, part: str) -> float:
    """Of the bytes that a part of the weights has in bf16."""
    return PRECISIONS[precision] / PRECISIONS["bf16"] if part == "experts" else 1.0


def most(precision: str, rows: int, prompt: int, capacity: float) -> int:
    """How many streams fit into so many bytes, up to those that one loop takes; 0: none."""
    # Not by bisection: with more streams the rings may take less, in more steps.
    for streams in range(SEQUENCES_AT_ONCE, 0, -1):
        if sum(part.bytes for part in parts(precision, streams, rows, prompt)) <= capacity:
            return streams
    return 0


@cache
def parameters() -> dict[str, int]:
    """Of the backbone, by group."""
    counts = dict.fromkeys(GROUPS.values(), 0)
    for name, shape in network.layout(MODEL).items():
        counts[next(group for mark, group in GROUPS.items() if mark in name)] += math.prod(shape)
    return counts


@cache
def decoder() -> tuple[Decoder, int]:
    """Without its weights, and how many bytes those would take: as they were loaded, and as its layers read them."""
    like = torch.empty(0, dtype=CODEC_DTYPE, device="meta")
    state = {name: like.new_empty(shape) for name, shape in vocoder.layout(CODEC).items()}
    made = Decoder(CODEC, state, vocoder_ops(CODEC_DTYPE))
    return made, _held([state, vars(made)])


@cache
def _loop(rows: int) -> tuple[float, float]:
    """Bytes of the state of a loop of so many rows, and of the rings of its vocoder."""
    slots = Slots(MODEL, rows, 0, LOOK + MODEL.n_codebooks, LIKE)
    speech = Speech(decoder()[0], slots, LOOK + 1)
    return _held([vars(slots), vars(speech)]), _held(speech._rings.tensors())


def _held(found: object) -> int:
    """Bytes of the memory behind all tensors in dictionaries, lists and tuples, counted once each."""
    storages = [leaf.untyped_storage() for leaf in tree_leaves(found) if isinstance(leaf, Tensor)]
    return sum({storage._cdata: storage.nbytes() for storage in storages}.values())


@cache
def _page() -> int:
    """Bytes of a page of the cache in all layers."""
    return _held(vars(network.Cache(MODEL, 1, PAGE_SIZE, LIKE)))


def _prefill(rows: int) -> float:
    """What lives at once in a layer: the stream before and after, its norm, projections, attention, the experts' h."""
    c = MODEL
    attention = 2 * (c.heads + c.kv_heads) * c.head_dim + c.heads
    return rows * (3 * c.dim + attention + c.max_experts_per_token * c.ffn_dim) * DTYPE.itemsize
