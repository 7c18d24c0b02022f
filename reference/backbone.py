"""The 28-layer backbone: ids in, logits out, every stage on the way kept if asked."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from zonos2_triton.reference.attention import AttentionCache, attention, project
from zonos2_triton.reference.config import BALANCING_SIGN, Zonos2Config
from zonos2_triton.reference.embedding import frame_embedding, speaker_row
from zonos2_triton.reference.experts import experts, swiglu
from zonos2_triton.reference.head import head
from zonos2_triton.reference.norm import rms_norm
from zonos2_triton.reference.router import Routing, route

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


class Cache:
    """Keys and values of one sequence in every layer, and how many rows they hold."""

    def __init__(self, config: Zonos2Config, capacity: int, like: Tensor) -> None:
        sizes = capacity, config.kv_heads, config.head_dim
        self.capacity, self.length = capacity, 0
        self.layers = [AttentionCache.empty(*sizes, like) for _ in range(config.n_layers)]


@dataclass
class Stages:
    """What `forward` saw on its way, in order."""

    hidden_states: list[Tensor] = field(default_factory=list)  # n_layers + 1 of [T, D]
    routings: list[Routing] = field(default_factory=list)  # one per mixture layer


def forward(
    config: Zonos2Config, weights: Weights, ids: Tensor, cache: Cache, speaker: Tensor | None = None,
    stages: Stages | None = None,
) -> Tensor:  # fmt: skip
    """The next rows of one sequence: ids [T, 10] -> [T, D], the input of the head; the cache grows by T rows.

    speaker: the raw embedding, for the first rows of a sequence only. Feeding a prompt at once, in pieces or row by row
    is the same computation; each row costs O(cache length).
    """
    x = embed(config, weights, ids, speaker)
    if stages is not None:
        stages.hidden_states.append(x)
    state = None
    for i in range(config.n_layers):
        x = x + _attention(config, weights, i, x, cache)
        h = rms_norm(x, weights[f"layers.{i}.ffn_norm.weight"], config.norm_eps)
        if i in config.moe_layers:
            routing = _route(config, weights, i, h, state)
            if stages is not None:
                stages.routings.append(routing)
            state, part = routing.state, f"layers.{i}.feed_forward.experts"
            x = x + experts(h, *routing[:2], weights[f"{part}.w13"], weights[f"{part}.w2"])
        else:
            state, part = None, f"layers.{i}.feed_forward"
            up, gate = weights[f"{part}.w_in.weight"]
            x = x + swiglu(h, gate, up, weights[f"{part}.w_out.weight"])
        if stages is not None:
            stages.hidden_states.append(x)
    cache.length += len(ids)
    return rms_norm(x, weights["out_norm.weight"], config.norm_eps)


def logits(config: Zonos2Config, weights: Weights, normed: Tensor) -> Tensor:
    """[T, D] of `forward` -> [T, C, V]."""
    return head(normed, weights["multi_output.weight"], config.n_codebooks, config.loss_softcap)


def embed(config: Zonos2Config, weights: Weights, ids: Tensor, speaker: Tensor | None) -> Tensor:
    """ids [T, 10], speaker the raw embedding or None -> [T, D], the input of the first layer."""
    tables = [weights[f"multi_embedder.embedders.{i}.weight"] for i in range(config.n_codebooks + 1)]
    row = None
    if speaker is not None:
        steps = (
            ["speaker_projection"]
            if config.speaker_lda_dim is None
            else ["speaker_lda_projection", "speaker_projection"]
        )
        row = speaker_row(speaker, [(weights[f"{step}.weight"], weights[f"{step}.bias"]) for step in steps])
    return frame_embedding(ids, tables, config.norm_eps, row)


def _attention(config: Zonos2Config, weights: Weights, i: int, x: Tensor, cache: Cache) -> Tensor:
    part = f"layers.{i}.attention"
    projected = project(
        rms_norm(x, weights[f"{part}_norm.weight"], config.norm_eps),
        wq=weights[f"{part}.wq.weight"],
        wkv=weights[f"{part}.wkv.weight"],
        gater=weights[f"{part}.gater.weight"],
        head_dim=config.head_dim,
    )
    y = attention(*projected, weights[f"{part}.temp"], cache.layers[i], start=cache.length, theta=config.rope_theta)
    return y @ weights[f"{part}.wo.weight"].T


def _route(config: Zonos2Config, weights: Weights, i: int, h: Tensor, state: Tensor | None) -> Routing:
    part = f"layers.{i}.feed_forward.router"
    mlp = (f"{part}.router_mlp.{j}" for j in (0, 2, 4))
    return route(
        h,
        state,
        scale=weights.get(f"{part}.router_states_scale"),
        down=(weights[f"{part}.down_proj.weight"], weights[f"{part}.down_proj.bias"]),
        norm=weights[f"{part}.rmsnorm_eda.weight"],
        mlp=[(weights[f"{name}.weight"], weights.get(f"{name}.bias")) for name in mlp],
        biases=BALANCING_SIGN[config.moe_balancing_strategy] * weights[f"{part}.balancing_biases"],
        k=config.experts_per_token(i),
        eps=config.norm_eps,
    )


def trace(config: Zonos2Config, weights: Weights, ids: Tensor, speaker: Tensor | None = None) -> dict[str, Tensor]:
    """One full forward of ids [T, 10], every stage kept; the keys and shapes are those of `Backbone.trace`."""
    stages = Stages()
    cache = Cache(config, len(ids), next(iter(weights.values())))
    normed = forward(config, weights, ids, cache, speaker, stages)

    def stacked(name: str, slots: int, fill: float) -> Tensor:
        rows = [getattr(routing, name) for routing in stages.routings]
        padded = [F.pad(row, (0, slots - row.shape[1]), value=fill) for row in rows]
        dtype = torch.int64 if name == "expert_ids" else normed.dtype
        return torch.stack(padded) if padded else normed.new_zeros(0, len(ids), slots, dtype=dtype)

    k = config.max_experts_per_token
    return {
        "logits": logits(config, weights, normed),
        "hidden_states": torch.stack(stages.hidden_states),
        "final_norm": normed,
        "expert_ids": stacked("expert_ids", k, -1),
        "expert_weights": stacked("expert_weights", k, 0),
        "router_probs": stacked("probs", config.moe_n_experts, 0),
        "router_states": stacked("state", config.moe_router_dim, 0),
    }
