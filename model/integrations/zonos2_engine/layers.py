"""What stands in for the methods of the official engine's layers.

Each function takes what all of them share and one layer, whose weights are read anew at every call, and makes what is
called instead. A row's result depends on the phase of its batch, prompt or generated frame, and on nothing else of it:
so the phase decides how products are made, not the number of rows.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zonos2_triton.model.integrations.patching import Replacement, sum_embeddings
from zonos2_triton.model.integrations.zonos2_engine.attention import Metadata
from zonos2_triton.model.ops import MAX_BATCH_SIZE, MAX_PREFILL_TOKENS
from zonos2_triton.reference.config import BALANCING_SIGN, Zonos2Config
from zonos2_triton.reference.moe_router import Routing, by_expert
from zonos2_triton.reference.ops import Ops

Call = Callable[..., Any]
Route = Callable[[Tensor, Tensor | None], Routing]  # rows and the state of the router before -> what is found
EPS = 0.0  # of operations that are given normed rows, and do not use it


@dataclass(frozen=True)
class Shared:
    """What the replacements of one model have in common."""

    ops: Ops
    rotary: Callable[[Tensor, Tensor, Tensor], Tensor]
    config: Zonos2Config  # of this rank
    core: Any  # the module zonos2.core, which holds the batch that runs

    def batch(self) -> Any | None:
        """The batch that runs; None: a layer is called by itself."""
        context = self.core._GLOBAL_CTX
        return None if context is None else context._batch

    def metadata(self) -> Metadata | None:
        """Of the batch that runs, where the attention backend is ours."""
        found = getattr(self.batch(), "attn_metadata", None)
        return found if isinstance(found, Metadata) else None

    def prefill(self, rows: int) -> bool:
        """How products of so many rows are made."""
        batch = self.batch()
        return rows > MAX_BATCH_SIZE or (batch is not None and batch.is_prefill)

    def idle(self, rows: int) -> Tensor | None:
        """Where the rows stand, negative: nowhere; None: all of them count."""
        mine = self.metadata()
        return mine.cache_seqlens if mine is not None and mine.decoding and len(mine.cache_seqlens) == rows else None


def summed(layer: Any, ranks: int, y: Tensor) -> Tensor:
    """A partial sum, added up over the ranks by the layer's own communicator."""
    return layer._comm.all_reduce(y) if ranks > 1 else y


def fused_norm(shared: Shared, norm: Any) -> Call:
    """RMSNormFused.forward. The sum is new memory: written in place, it would take two launches more."""

    def forward(x: Tensor, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
        weight = norm.weight if norm.elementwise_affine else None
        total, normed = shared.ops.add_rms_norm(x, residual, weight, norm.eps)
        return normed, x if residual is None else total

    return forward


def plain_norm(shared: Shared) -> Call:
    """RMSNorm.rmsnorm, with the arguments of flashinfer's function."""

    def rmsnorm(
        input: Tensor, weight: Tensor, eps: float = 1e-6, out: Tensor | None = None, enable_pdl: bool | None = None
    ) -> Tensor:
        _, normed = shared.ops.add_rms_norm(input, None, weight, eps)
        return normed if out is None else out.copy_(normed)

    return rmsnorm


def turned_rotary(shared: Shared, rotary: Any) -> Any:
    """A copy of a RotaryEmbedding, which layers and models share, that turns pairs of neighbours by a kernel."""
    own = copy.copy(rotary)
    original = own.forward

    def forward(positions: Tensor, query: Tensor, key: Tensor, is_neox: bool = True) -> tuple[Tensor, Tensor]:
        if is_neox:
            return original(positions, query, key, is_neox)
        at, cos_sin_cache = positions.int(), angles(own)
        heads = (x.unflatten(1, (-1, own.head_size)) for x in (query, key))
        q, k = (shared.rotary(x, at, cos_sin_cache).flatten(1) for x in heads)
        return q, k

    own.forward = Replacement(forward, original)
    return own


def angles(rotary: Any) -> Tensor:
    """The engine's table [P, DH] as [P, 2, DH / 2]: cosines and sines."""
    return rotary._cos_sin_cache.unflatten(1, (2, -1))


def embedding(shared: Shared, embedder: Any) -> Call:
    """MultiEmbedding.forward: a row of each table where it lies, and one sum of them.

    Each rank has some rows of every table; zeros stand for all others, so that one sum over the ranks does for all
    columns.
    """
    original, tables = embedder.forward, embedder.embedders.op_list
    ranks = tables[0].tp_size
    ranges = [(start, start + length) for start, length in (table.vocab_range for table in tables)]
    first, end = torch.tensor(ranges, dtype=torch.int64, device=tables[0].weight.device).T

    def forward(codes: Tensor) -> Tensor:
        tables = embedder.embedders.op_list
        if codes.ndim != 2 or codes.shape[1] != len(tables):
            return original(codes)
        ids, elsewhere = codes, None
        if ranks > 1:
            elsewhere = (codes < first) | (codes >= end)
            ids = (codes - first).masked_fill(elsewhere, 0)
        columns = zip(ids.unbind(1), tables, strict=True)
        rows = torch.stack([F.embedding(column, table.weight) for column, table in columns])
        if elsewhere is not None:
            rows = rows.masked_fill(elsewhere.T[..., None], 0)
        return summed(tables[0], ranks, sum_embeddings(shared.ops.frame_embedding, rows))

    return forward


def attention(shared: Shared, layer: Any) -> Call:
    """Attention.forward, whole, where the batch has our metadata; otherwise the original."""
    original = layer.forward

    def forward(x: Tensor) -> Tensor:
        mine = shared.metadata()
        if mine is None:
            return original(x)
        ops, prefill = shared.ops, shared.prefill(len(x))
        rows = ops.qkv_projection(x, None, layer.wq.weight, layer.wkv.weight, layer.gater.weight, EPS, prefill)
        qk_temperature = layer.temp.flatten().to(x.dtype)  # bf16 in models of every dtype
        y = mine.attend(ops, rows, qk_temperature, angles(layer.attn.rotary), layer.attn.layer_id)
        return summed(layer.wo, layer.wo._tp_size, ops.output_projection(y, layer.wo.weight, None, prefill))

    return forward


def signed_biases(shared: Shared, router: Any) -> Tensor:
    """The balancing biases of a router as they are added, in their own dtype."""
    biases: Tensor = router.balancing_biases
    return biases if BALANCING_SIGN[shared.config.moe_balancing_strategy] > 0 else -biases


def routing(shared: Shared, router: Any) -> Route:
    """All that a router finds, of up to MAX_PREFILL_TOKENS rows."""

    def route(x: Tensor, state: Tensor | None) -> Routing:
        network, biases = router.router_mlp, signed_biases(shared, router).to(x.dtype)
        carried = state is not None and router.use_eda
        return Routing(
            *shared.ops.moe_router(
                x, None, state if carried else None, router.router_states_scale if carried else None,
                router.down_proj.weight, router.down_proj.bias, router.rmsnorm_eda.weight, network._0.weight,
                network._0.bias, network._2.weight, network._2.bias, network._4.weight, biases, router.top_k,
                router.rmsnorm_eda.eps, shared.idle(len(x)),
            )
        )  # fmt: skip

    return route


def routed(route: Route) -> Call:
    """Router.forward: weights [T, K], ids [T, K] and the next state [T, R]."""

    def forward(hidden_states: Tensor, router_states: Tensor | None = None) -> tuple[Tensor, ...]:
        found = [route(*piece) for piece in pieces(hidden_states, router_states)]
        columns = zip(*((each.expert_weights, each.expert_ids, each.router_state) for each in found), strict=True)
        return tuple(joined(column) for column in columns)

    return forward


def experts(shared: Shared, fused: Any) -> Call:
    """FusedMoE.forward for choices that somebody else made; sorts them without waiting for the device."""
    original = fused.forward

    def forward(
        hidden_states: Tensor,
        router_logits: Tensor | None = None,
        *,
        topk_weights: Tensor | None = None,
        topk_ids: Tensor | None = None,
    ) -> Tensor:
        if topk_weights is None or topk_ids is None:
            return original(hidden_states, router_logits, topk_weights=topk_weights, topk_ids=topk_ids)
        sorted_slot_ids, expert_offsets = by_expert(topk_ids, fused.num_experts)
        y = mixture(shared, fused, hidden_states, sorted_slot_ids, expert_offsets, topk_weights.float().contiguous())
        return summed(fused, fused.tp_size, y)

    return forward


def feed_forward(shared: Shared, layer: Any, router_forward: object, route: Route) -> Call:
    """MoEFeedForward.forward by the order that the router makes, where the router is ours; otherwise the original."""
    original = layer.forward

    def forward(x: Tensor, router_states: Tensor | None = None) -> tuple[Tensor, Tensor]:
        fused = layer.experts._fused_moe
        if vars(layer.router).get("forward") is not router_forward:
            return original(x, router_states)
        rows, states = [], []
        for piece, state in pieces(x, router_states):
            found = route(piece, state)
            rows.append(
                mixture(shared, fused, piece, found.sorted_slot_ids, found.expert_offsets, found.expert_weights)
            )
            states.append(found.router_state)
        return summed(fused, fused.tp_size, joined(rows)), joined(states)

    return forward


def mixture(
    shared: Shared, fused: Any, x: Tensor, sorted_slot_ids: Tensor, expert_offsets: Tensor, weights: Tensor
) -> Tensor:
    """The weighted sum of each row's experts, this rank's part of it."""
    gate, up = fused.gate_up_proj.chunk(2, 1)
    prefill = shared.prefill(len(x))
    return shared.ops.moe_experts(
        x, None, gate, up, fused.down_proj, EPS, sorted_slot_ids, expert_offsets, weights, prefill, residual=False
    )  # fmt: skip


def dense(shared: Shared, layer: Any) -> Call:
    """FeedForward.forward: the mixture of one expert."""

    def forward(x: Tensor) -> Tensor:
        up, gate = layer.w_in.weight.unsqueeze(1)
        prefill = shared.prefill(len(x))
        y = shared.ops.moe_experts(x, None, gate, up, layer.w_out.weight[None], EPS, prefill=prefill, residual=False)
        return summed(layer.w_out, layer.w_out._tp_size, y)

    return forward


def logits(shared: Shared, model: Any) -> Call:
    """Zonos2ForCausalLM.compute_logits. They are fp32, as the graphs' memory and the sampler want them, not rounded."""
    config = shared.config

    def compute_logits(hidden_states: Tensor) -> Tensor:
        rows = hidden_states.reshape(-1, config.dim)
        weight, prefill = model.multi_output.weight, shared.prefill(len(rows))
        found = shared.ops.codebook_head(rows, None, weight, config.n_codebooks, EPS, config.loss_softcap, prefill)
        return found.unflatten(0, hidden_states.shape[:-1])

    return compute_logits


def pieces(x: Tensor, state: Tensor | None) -> list[tuple[Tensor, Tensor | None]]:
    """Rows and their states, no more of them at once than the counters of the operations are for."""
    parts = x.split(MAX_PREFILL_TOKENS)
    states: tuple[Tensor | None, ...] = (None,) * len(parts) if state is None else state.split(MAX_PREFILL_TOKENS)
    return list(zip(parts, states, strict=True))


def joined(parts: "list[Tensor] | tuple[Tensor, ...]") -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
