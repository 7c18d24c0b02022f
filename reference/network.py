"""The 28-layer backbone: ids in, logits out, with every stage kept on request.

It is written once over a table of operations: `REFERENCE`, or that of the kernels, passed in.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zonos2_triton.reference.config import BALANCING_SIGN, Zonos2Config
from zonos2_triton.reference.frame_embedding import project_speaker
from zonos2_triton.reference.moe_router import Routing
from zonos2_triton.reference.ops import REFERENCE, Ops
from zonos2_triton.reference.rotary import compute_cos_sin_cache

Weights = Mapping[str, Tensor]  # by official name, all of one dtype on one device


def layout(config: Zonos2Config) -> dict[str, list[int]]:
    """{official tensor name: shape} of the checkpoint that `config` describes."""
    c, q_dim, kv_dim = config, config.heads * config.head_dim, config.kv_heads * config.head_dim
    R, E, I = c.moe_router_dim, c.moe_n_experts, c.ffn_dim
    names: dict[str, list[int]] = {}
    for i, ids in enumerate([c.codebook_vocab] * c.n_codebooks + [c.text_vocab + 1]):
        names[f"multi_embedder.embedders.{i}.weight"] = [ids, c.dim]
    if c.speaker_enabled:
        width = c.speaker_embedding_dim
        if c.speaker_lda_dim is not None:
            names["speaker_lda_projection.weight"] = [c.speaker_lda_dim, width]
            names["speaker_lda_projection.bias"] = [width := c.speaker_lda_dim]
        names["speaker_projection.weight"] = [c.dim, width]
        names["speaker_projection.bias"] = [c.dim]
    for i in range(c.n_layers):
        at, ff, router = (f"layers.{i}.{part}" for part in ("attention", "feed_forward", "feed_forward.router"))
        names[f"{at}.temp"] = [1, c.heads, 1]
        names[f"{at}.wq.weight"] = [q_dim, c.dim]
        names[f"{at}.wkv.weight"] = [2, kv_dim, c.dim]
        names[f"{at}.wo.weight"] = [c.dim, q_dim]
        names[f"{at}.gater.weight"] = [c.heads, c.dim]
        names[f"layers.{i}.attention_norm.weight"] = [c.dim]
        names[f"layers.{i}.ffn_norm.weight"] = [c.dim]
        if i not in c.moe_layers:
            names[f"{ff}.w_in.weight"] = [2, I, c.dim]
            names[f"{ff}.w_out.weight"] = [c.dim, I]
            continue
        if i != c.moe_start_from_layer:
            names[f"{router}.router_states_scale"] = [R]
        names[f"{router}.balancing_biases"] = [E]
        names[f"{router}.down_proj.weight"] = [R, c.dim]
        names[f"{router}.down_proj.bias"] = [R]
        for j in (0, 2):
            names[f"{router}.router_mlp.{j}.weight"] = [R, R]
            names[f"{router}.router_mlp.{j}.bias"] = [R]
        names[f"{router}.router_mlp.4.weight"] = [E, R]
        names[f"{router}.rmsnorm_eda.weight"] = [R]
        names[f"{ff}.experts.w13"] = [E, 2 * I, c.dim]
        names[f"{ff}.experts.w2"] = [E, c.dim, I]
    names["out_norm.weight"] = [c.dim]
    names["multi_output.weight"] = [c.n_codebooks * c.codebook_vocab, c.dim]
    return names


@dataclass(frozen=True)
class Layer:
    """The weights of one layer as the operations take them: keyword arguments by operation."""

    projection: dict[str, Tensor]
    qk_temperature: Tensor
    output: Tensor
    router: dict[str, Any] | None  # None: dense
    experts: dict[str, Tensor]


@dataclass(frozen=True)
class Model:
    """A configuration and its weights by use. They are views, except for the embedding table and the biases."""

    config: Zonos2Config
    table: Tensor  # embedding: codebooks, then text
    speaker: list[tuple[Tensor, Tensor]]
    cos_sin_cache: Tensor
    layers: list[Layer]
    out_norm: Tensor
    head: Tensor


def bind(config: Zonos2Config, weights: Weights) -> Model:
    """The tensors of `layout(config)` -> Model."""
    tables = [weights[f"multi_embedder.embedders.{i}.weight"] for i in range(config.n_codebooks + 1)]
    names = ["speaker_lda_projection"] * (config.speaker_lda_dim is not None) + ["speaker_projection"]
    return Model(
        config,
        table=torch.cat(tables),
        speaker=[(weights[f"{name}.weight"], weights[f"{name}.bias"]) for name in names if config.speaker_enabled],
        cos_sin_cache=compute_cos_sin_cache(config.max_seqlen, config.head_dim, config.rope_theta, tables[0]),
        layers=[_bind_layer(config, weights, i) for i in range(config.n_layers)],
        out_norm=weights["out_norm.weight"],
        head=weights["multi_output.weight"],
    )


def _bind_layer(config: Zonos2Config, weights: Weights, i: int) -> Layer:
    at, ff = f"layers.{i}.attention", f"layers.{i}.feed_forward"
    norm = weights[f"layers.{i}.ffn_norm.weight"]
    if i in config.moe_layers:
        w13 = weights[f"{ff}.experts.w13"]  # even rows are the gate, odd rows the up projection
        gate, up, down = w13[:, 0::2], w13[:, 1::2], weights[f"{ff}.experts.w2"]
    else:
        up, gate = weights[f"{ff}.w_in.weight"].unsqueeze(1)
        down = weights[f"{ff}.w_out.weight"][None]
    return Layer(
        projection={
            "norm_weight": weights[f"layers.{i}.attention_norm.weight"],
            "wq": weights[f"{at}.wq.weight"],
            "wkv": weights[f"{at}.wkv.weight"],
            "gater": weights[f"{at}.gater.weight"],
        },
        qk_temperature=weights[f"{at}.temp"].flatten(),
        output=weights[f"{at}.wo.weight"],
        router=_bind_router(config, weights, i, norm) if i in config.moe_layers else None,
        experts={"norm_weight": norm, "gate": gate, "up": up, "down": down},
    )


def _bind_router(config: Zonos2Config, weights: Weights, i: int, norm: Tensor) -> dict[str, Any]:
    part = f"layers.{i}.feed_forward.router"
    return {
        "norm_weight": norm,
        "state_scale": weights.get(f"{part}.router_states_scale"),
        "down_weight": weights[f"{part}.down_proj.weight"],
        "down_bias": weights[f"{part}.down_proj.bias"],
        "state_norm": weights[f"{part}.rmsnorm_eda.weight"],
        "w1": weights[f"{part}.router_mlp.0.weight"],
        "b1": weights[f"{part}.router_mlp.0.bias"],
        "w2": weights[f"{part}.router_mlp.2.weight"],
        "b2": weights[f"{part}.router_mlp.2.bias"],
        "w3": weights[f"{part}.router_mlp.4.weight"],
        "balancing_biases": BALANCING_SIGN[config.moe_balancing_strategy] * weights[f"{part}.balancing_biases"],
        "k": config.experts_per_token(i),
    }


class Cache:
    """The keys and values of every layer, [pages, page_size, HKV, DH] each."""

    def __init__(self, config: Zonos2Config, pages: int, page_size: int, like: Tensor) -> None:
        shape = pages, page_size, config.kv_heads, config.head_dim
        self.page_size = page_size
        self.k, self.v = ([like.new_zeros(shape) for _ in range(config.n_layers)] for _ in range(2))


@dataclass(frozen=True)
class Batch:
    """New tokens of some sequences, one sequence after the other, and the pages of their earlier tokens."""

    ids: Tensor  # [M, C + 1]
    block_table: Tensor  # [B, pages] int32
    cache_seqlens: Tensor  # [B] int32: tokens of each sequence in the cache; negative when decoding: idle
    cu_seqlens: Tensor | None = None  # [B + 1] int32: first token of each sequence; None: decoding, one token each
    max_seqlen_q: int = 1  # new tokens of the longest
    speakers: Tensor | None = None  # [S, D] of `project_speaker`
    speaker_index: Tensor | None = None  # [M] int32: the speaker that replaces the token's embedding; negative: none

    @classmethod
    def single(cls, ids: Tensor, start: int, pages: Tensor, speaker: Tensor | None = None) -> "Batch":
        """New tokens of one sequence with `start` tokens in the cache; a speaker [D] replaces the first."""
        T, device = len(ids), ids.device
        numbers = torch.tensor([start, 0, T], dtype=torch.int32, device=device)
        index = torch.full((T,), -1, dtype=torch.int32, device=device)
        index[:1] = 0
        voice = (None, None) if speaker is None else (speaker[None], index)
        return cls(ids, pages[None], numbers[:1], numbers[1:], T, *voice)


@dataclass
class Stages:
    """Intermediate results of `forward`, in order."""

    hidden_states: list[Tensor] = field(default_factory=list)  # n_layers + 1 of [M, D]
    routings: list[Routing] = field(default_factory=list)  # one per mixture layer


UNWATCHED = nullcontext()


def forward(
    model: Model,
    batch: Batch,
    cache: Cache,
    ops: Ops = REFERENCE,
    stages: Stages | None = None,
    around: Callable[[int], AbstractContextManager[object]] = lambda i: UNWATCHED,
) -> tuple[Tensor, Tensor, Tensor]:
    """New tokens of some sequences -> the residual stream after the last layer. Their keys enter the cache.

    The stream is x [M, D], and x_scaled and sum_sq of `prepare_norm` for the norm that follows. A prompt may be fed at
    once, in chunks or token by token; a token costs O(cache length). around(i) is a context around layer i.
    """
    config, eps, prefill = model.config, model.config.norm_eps, batch.cu_seqlens is not None
    norms = [*(layer.projection["norm_weight"] for layer in model.layers), model.out_norm]
    voices = {"speakers": batch.speakers, "speaker_index": batch.speaker_index}
    x, x_scaled, sum_sq = ops.frame_embedding(
        batch.ids, model.table, config.codebook_vocab, eps, **voices, next_norm_weight=norms[0]
    )
    state = None
    if stages is not None:
        stages.hidden_states.append(x)
    for i, layer in enumerate(model.layers):
        with around(i):
            normed = {"eps": eps, "x_scaled": x_scaled, "sum_sq": sum_sq}
            qkvg = ops.qkv_projection(x, **layer.projection, **normed, prefill=prefill)
            caches = cache.k[i], cache.v[i], batch.block_table, batch.cache_seqlens
            places = layer.qk_temperature, model.cos_sin_cache, *caches
            if batch.cu_seqlens is not None:
                y = ops.prefill_attention(qkvg, *places, batch.cu_seqlens, batch.max_seqlen_q)
            else:
                y = ops.decode_attention(qkvg, *places)
            x, x_scaled, sum_sq = ops.output_projection(y, layer.output, x, prefill, layer.experts["norm_weight"])
            normed = {"eps": eps, "x_scaled": x_scaled, "sum_sq": sum_sq}
            sent: dict[str, Tensor] = {}
            if layer.router is None:
                state = None
            else:
                positions = None if prefill else batch.cache_seqlens
                found = ops.moe_router(x, router_state=state, **layer.router, **normed, positions=positions)
                routing = Routing(*found)
                state = routing.router_state
                sent = {key: getattr(routing, key) for key in ("sorted_slot_ids", "expert_offsets", "expert_weights")}
                if stages is not None:
                    stages.routings.append(routing)
            x, x_scaled, sum_sq = ops.moe_experts(
                x, **layer.experts, **normed, **sent, prefill=prefill, next_norm_weight=norms[i + 1]
            )
            if stages is not None:
                stages.hidden_states.append(x)
    return x, x_scaled, sum_sq


def logits(
    model: Model, x: Tensor, x_scaled: Tensor | None = None, sum_sq: Tensor | None = None, ops: Ops = REFERENCE
) -> Tensor:
    """Any tokens of `forward`, x [M, D] alone or with the others -> fp32 or fp64 [M, C, V]."""
    sizes = model.config.n_codebooks, model.config.norm_eps, model.config.loss_softcap
    return ops.codebook_head(x, model.out_norm, model.head, *sizes, x_scaled=x_scaled, sum_sq=sum_sq)


def trace(model: Model, ids: Tensor, speaker: Tensor | None = None, ops: Ops = REFERENCE) -> dict[str, Tensor]:
    """One full forward of ids [T, C + 1], every stage kept; the keys and shapes are those of `Backbone.trace`.

    speaker: the raw embedding.
    """
    config, stages = model.config, Stages()
    vector = None if speaker is None else project_speaker(speaker, model.speaker)
    page = torch.zeros(1, dtype=torch.int32, device=ids.device)
    x, *_ = forward(model, Batch.single(ids, 0, page, vector), Cache(config, 1, len(ids), model.table), ops, stages)
    _, normed = ops.add_rms_norm(x, None, model.out_norm, config.norm_eps)

    def stacked(name: str, slots: int, fill: float) -> Tensor:
        found = [getattr(routing, name) for routing in stages.routings]
        padded = [F.pad(each, (0, slots - each.shape[1]), value=fill) for each in found]
        return torch.stack(padded) if padded else normed.new_zeros(0, len(ids), slots)

    k, sizes = config.max_experts_per_token, (config.n_codebooks, config.norm_eps, config.loss_softcap)
    return {
        "logits": ops.codebook_head(normed, None, model.head, *sizes, True),
        "hidden_states": torch.stack(stages.hidden_states),
        "final_norm": normed,
        "expert_ids": stacked("expert_ids", k, -1).long(),
        "expert_weights": stacked("expert_weights", k, 0),
        "router_probs": stacked("probs", config.moe_n_experts, 0),
        "router_states": stacked("router_state", config.moe_router_dim, 0),
    }
