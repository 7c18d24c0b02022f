"""Replacements for the methods of the official engine's layers.

Each function takes the shared state and one layer, and returns a replacement that reads the layer's weights at every
call. The result of a token depends on the phase of its batch, prefill or decode, and on no other token. So the phase
selects the kernels, and the number of tokens does not.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zonos2_triton.model.integrations.patching import Call, Replacement, sum_embeddings
from zonos2_triton.model.integrations.zonos2_engine.attention import Metadata
from zonos2_triton.model.ops import MAX_BATCH_SIZE, MAX_PREFILL_TOKENS
from zonos2_triton.reference.config import BALANCING_SIGN, Zonos2Config
from zonos2_triton.reference.moe_router import Routing, by_expert
from zonos2_triton.reference.ops import Ops

Route = Callable[[Tensor, Tensor | None], Routing]  # tokens and the previous router's state -> routing
EPS = 0.0  # unused: the inputs are normed


@dataclass(frozen=True)
class Shared:
    """State that the replacements of one model share."""

    ops: Ops
    rotary: Callable[[Tensor, Tensor, Tensor], Tensor]
    config: Zonos2Config  # of this rank
    core: Any  # the module zonos2.core, which holds the current batch

    def batch(self) -> Any | None:
        """The current batch; None: a layer is called by itself."""
        context = self.core._GLOBAL_CTX
        return None if context is None else context._batch

    def metadata(self) -> Metadata | None:
        """The metadata of the current batch, if the attention backend is zonos2_triton."""
        found = getattr(self.batch(), "attn_metadata", None)
        return found if isinstance(found, Metadata) else None

    def prefill(self, n_tokens: int) -> bool:
        """Whether products of these tokens use the prefill kernels."""
        batch = self.batch()
        return n_tokens > MAX_BATCH_SIZE or (batch is not None and batch.is_prefill)

    def positions(self, n_tokens: int) -> Tensor | None:
        """Positions of the tokens, negative: idle; None: no token is idle."""
        metadata = self.metadata()
        if metadata is None or not metadata.decoding or len(metadata.cache_seqlens) != n_tokens:
            return None
        return metadata.cache_seqlens


def summed(layer: Any, ranks: int, y: Tensor) -> Tensor:
    """All-reduce a partial sum with the layer's own communicator."""
    return layer._comm.all_reduce(y) if ranks > 1 else y


def fused_norm(shared: Shared, norm: Any) -> Call:
    """RMSNormFused.forward. The sum gets new memory: an in-place write would take two more launches."""

    def forward(x: Tensor, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
        weight = norm.weight if norm.elementwise_affine else None
        total, normed = shared.ops.add_rms_norm(x, residual, weight, norm.eps)
        return normed, x if residual is None else total

    return forward


def plain_norm(shared: Shared) -> Call:
    """RMSNorm.rmsnorm, with the parameters of flashinfer's function."""

    def rmsnorm(
        input: Tensor, weight: Tensor, eps: float = 1e-6, out: Tensor | None = None, enable_pdl: bool | None = None
    ) -> Tensor:
        _, normed = shared.ops.add_rms_norm(input, None, weight, eps)
        return normed if out is None else out.copy_(normed)

    return rmsnorm


def patched_rotary(shared: Shared, rotary: Any) -> Any:
    """A copy of a RotaryEmbedding, which layers and models share, with a kernel for interleaved pairs."""
    own = copy.copy(rotary)
    original = own.forward

    def forward(positions: Tensor, query: Tensor, key: Tensor, is_neox: bool = True) -> tuple[Tensor, Tensor]:
        if is_neox:
            return original(positions, query, key, is_neox)
        cos_sin = cos_sin_cache(own)
        heads = (x.unflatten(1, (-1, own.head_size)) for x in (query, key))
        q, k = (shared.rotary(x, positions.int(), cos_sin).flatten(1) for x in heads)
        return q, k

    own.forward = Replacement(forward, original)
    return own


def cos_sin_cache(rotary: Any) -> Tensor:
    """The engine's table [P, DH] of cosines and sines as [P, 2, DH / 2]."""
    return rotary._cos_sin_cache.unflatten(1, (2, -1))


def embedding(shared: Shared, embedder: Any) -> Call:
    """MultiEmbedding.forward: a look-up in each table, then one sum.

    Each rank holds a slice of every table and takes zeros for other ids. One all-reduce then sums all columns.
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
        found = torch.stack([F.embedding(column, table.weight) for column, table in columns])
        if elsewhere is not None:
            found = found.masked_fill(elsewhere.T[..., None], 0)
        return summed(tables[0], ranks, sum_embeddings(shared.ops.frame_embedding, found))

    return forward


def attention(shared: Shared, layer: Any) -> Call:
    """Attention.forward as a whole, if the attention backend is zonos2_triton; otherwise the original."""
    original = layer.forward

    def forward(x: Tensor) -> Tensor:
        metadata = shared.metadata()
        if metadata is None:
            return original(x)
        ops, prefill = shared.ops, shared.prefill(len(x))
        qkvg = ops.qkv_projection(x, None, layer.wq.weight, layer.wkv.weight, layer.gater.weight, EPS, prefill)
        qk_temperature = layer.temp.flatten().to(x.dtype)  # bf16 in models of every dtype
        y = metadata.attend(ops, qkvg, qk_temperature, cos_sin_cache(layer.attn.rotary), layer.attn.layer_id)
        return summed(layer.wo, layer.wo._tp_size, ops.output_projection(y, layer.wo.weight, None, prefill)[0])

    return forward


def signed_biases(shared: Shared, router: Any) -> Tensor:
    """The balancing biases of a router with their sign, in their own dtype."""
    biases: Tensor = router.balancing_biases
    return biases if BALANCING_SIGN[shared.config.moe_balancing_strategy] > 0 else -biases


def routing(shared: Shared, router: Any) -> Route:
    """The routing of up to MAX_PREFILL_TOKENS tokens."""

    def route(x: Tensor, state: Tensor | None) -> Routing:
        carried = state is not None and router.use_eda
        scaled = (state, router.router_states_scale) if carried else (None, None)
        down, norm, mlp = router.down_proj, router.rmsnorm_eda, router.router_mlp
        network = down.weight, down.bias, norm.weight, mlp._0.weight, mlp._0.bias, mlp._2.weight, mlp._2.bias
        biases = signed_biases(shared, router).to(x.dtype)
        selection = mlp._4.weight, biases, router.top_k, norm.eps, shared.positions(len(x))
        return Routing(*shared.ops.moe_router(x, None, *scaled, *network, *selection))

    return route


def routed(route: Route) -> Call:
    """Router.forward: weights [T, K], ids [T, K] and the next state [T, R]."""

    def forward(hidden_states: Tensor, router_states: Tensor | None = None) -> tuple[Tensor, ...]:
        found = [route(*chunk) for chunk in chunks(hidden_states, router_states)]
        columns = zip(*((each.expert_weights, each.expert_ids, each.router_state) for each in found), strict=True)
        return tuple(concat(column) for column in columns)

    return forward


def experts(shared: Shared, fused: Any) -> Call:
    """FusedMoE.forward for given ids, which are sorted without a wait for the device."""
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
        weights = topk_weights.float().contiguous()
        y = mixture(shared, fused, hidden_states, weights, *by_expert(topk_ids, fused.num_experts))
        return summed(fused, fused.tp_size, y)

    return forward


def feed_forward(shared: Shared, layer: Any, router_forward: object, route: Route) -> Call:
    """MoEFeedForward.forward with the sort of the router, if that is patched; otherwise the original."""
    original = layer.forward

    def forward(x: Tensor, router_states: Tensor | None = None) -> tuple[Tensor, Tensor]:
        fused = layer.experts._fused_moe
        if vars(layer.router).get("forward") is not router_forward:
            return original(x, router_states)
        sums, states = [], []
        for chunk, state in chunks(x, router_states):
            found = route(chunk, state)
            order = found.sorted_slot_ids, found.expert_offsets
            sums.append(mixture(shared, fused, chunk, found.expert_weights, *order))
            states.append(found.router_state)
        return summed(fused, fused.tp_size, concat(sums)), concat(states)

    return forward


def mixture(shared: Shared, fused: Any, x: Tensor, weights: Tensor, *order: Tensor) -> Tensor:
    """This rank's part of the weighted sum of each token's experts; order: sorted_slot_ids and expert_offsets."""
    gate, up = fused.gate_up_proj.chunk(2, 1)
    prefill = shared.prefill(len(x))
    experts = shared.ops.moe_experts
    return experts(x, None, gate, up, fused.down_proj, EPS, *order, weights, prefill, residual=False)[0]


def dense(shared: Shared, layer: Any) -> Call:
    """FeedForward.forward, as a mixture of one expert."""

    def forward(x: Tensor) -> Tensor:
        up, gate = layer.w_in.weight.unsqueeze(1)
        prefill = shared.prefill(len(x))
        y, *_ = shared.ops.moe_experts(
            x, None, gate, up, layer.w_out.weight[None], EPS, prefill=prefill, residual=False
        )
        return summed(layer.w_out, layer.w_out._tp_size, y)

    return forward


def logits(shared: Shared, model: Any) -> Call:
    """Zonos2ForCausalLM.compute_logits, in fp32 as the graphs' memory and the sampler have them, without rounding."""
    config = shared.config

    def compute_logits(hidden_states: Tensor) -> Tensor:
        tokens = hidden_states.reshape(-1, config.dim)
        weight, prefill = model.multi_output.weight, shared.prefill(len(tokens))
        found = shared.ops.codebook_head(tokens, None, weight, config.n_codebooks, EPS, config.loss_softcap, prefill)
        return found.unflatten(0, hidden_states.shape[:-1])

    return compute_logits


def chunks(x: Tensor, state: Tensor | None) -> list[tuple[Tensor, Tensor | None]]:
    """Chunks of tokens and their router states, as large as the operators' counters allow."""
    tokens = x.split(MAX_PREFILL_TOKENS)
    states: tuple[Tensor | None, ...] = (None,) * len(tokens) if state is None else state.split(MAX_PREFILL_TOKENS)
    return list(zip(tokens, states, strict=True))


def concat(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat([*tensors])
