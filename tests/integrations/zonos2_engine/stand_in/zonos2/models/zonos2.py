"""A model with the attributes, shapes and methods of the official one, computed by plain PyTorch in few lines."""

import torch
import torch.nn.functional as F
from zonos2 import core
from zonos2.distributed import info
from zonos2.distributed.impl import DistributedCommunicator

from tests.integrations.zonos2_engine import torch_ops


class Op:
    """Tensors and submodules by name; names with a leading underscore are not in the state_dict."""

    def state_dict(self, prefix="", found=None):
        found = {} if found is None else found
        for name, value in vars(self).items():
            name = name.removeprefix("_") if type(self) is RouterMLP else name
            if isinstance(value, torch.Tensor) and not name.startswith("_"):
                found[prefix + name] = value
            elif isinstance(value, OpList):
                for i, op in enumerate(value.op_list):
                    op.state_dict(f"{prefix}{name}.{i}.", found)
            elif isinstance(value, Op) and not name.startswith("_"):
                value.state_dict(f"{prefix}{name}.", found)
        return found


class OpList(Op):
    def __init__(self, ops):
        self.op_list = ops


class Linear(Op):
    def __init__(self, rows, columns, bias=False):
        self.weight, self.bias = torch.empty(rows, columns), torch.empty(rows) if bias else None

    def forward(self, x):
        return F.linear(x, self.weight, self.bias)


class Chunked(Op):
    def __init__(self, rows, columns):
        self.weight = torch.empty(2, rows, columns)

    def forward(self, x):
        return F.linear(x, self.weight.flatten(0, 1))


class RowParallel(Linear):
    def __init__(self, rows, columns):
        super().__init__(rows, columns)
        self._comm, self._tp_size = DistributedCommunicator(), info._TP_INFO.size

    def forward(self, x):
        y = super().forward(x)
        return self._comm.all_reduce(y) if self._tp_size > 1 else y


class RMSNorm(Op):
    def __init__(self, size, eps):
        self.weight, self.eps, self.rmsnorm = torch.empty(size), eps, torch_ops.rmsnorm

    def forward(self, x):
        return self.rmsnorm(x, self.weight, self.eps)


class RMSNormFused(Op):
    def __init__(self, size, eps, elementwise_affine=True):
        self.eps, self.elementwise_affine, self._size = eps, elementwise_affine, size
        self.rmsnorm, self.fused_add_rmsnorm = torch_ops.rmsnorm, torch_ops.fused_add_rmsnorm
        if elementwise_affine:
            self.weight = torch.empty(size)

    def forward(self, x, residual=None):
        weight = self.weight if self.elementwise_affine else torch.ones_like(x[0])
        if residual is None:
            return self.rmsnorm(x, weight, self.eps), x
        self.fused_add_rmsnorm(x, residual, weight, self.eps)
        return x, residual


class Embedding(Op):
    def __init__(self, rows, columns):
        rank, self.tp_size = info._TP_INFO.rank, info._TP_INFO.size
        held = -(-rows // self.tp_size)
        self.num_embeddings, self._comm = rows, DistributedCommunicator()
        self.vocab_range = held * rank, min(held, rows - held * rank)
        self.weight = torch.empty(held, columns)

    def forward(self, ids):
        y = torch_ops.indexing(self.weight, ids, vocab_range=self.vocab_range)
        return self._comm.all_reduce(y) if self.tp_size > 1 else y


class MultiEmbedding(Op):
    def __init__(self, c):
        sizes = [c.codebook_size + 2] * c.n_codebooks + [c.text_vocab + 1]
        self.embedders = OpList([Embedding(size, c.hidden_size) for size in sizes])

    def forward(self, codes):
        columns = zip(codes.unbind(-1), self.embedders.op_list, strict=False)
        return sum(table.forward(ids) for ids, table in columns)


class RotaryEmbedding(Op):
    def __init__(self, c):
        self.head_size = c.head_dim
        with torch.device("cpu"):
            rotary = c.rotary_config
            self._cos_sin_cache = torch_ops.cos_sin_cache(c.head_dim, rotary.max_position, rotary.base)

    def forward(self, positions, query, key, is_neox=True):
        rotate = torch_ops.apply_rope_with_cos_sin_cache_inplace
        rotate(positions, query, key, self.head_size, self._cos_sin_cache, is_neox)
        return query, key


_ROTARY = {}


class AttentionLayer(Op):
    def __init__(self, c, i):
        self.layer_id, self.head_dim, self.q_norm, self.k_norm = i, c.head_dim, None, None
        key = c.head_dim, c.rotary_config.max_position, c.rotary_config.base
        self.rotary = _ROTARY.setdefault(key, RotaryEmbedding(c))  # one for all layers of all models


class Attention(Op):
    def __init__(self, c, i):
        ranks, self.head_dim = info._TP_INFO.size, c.head_dim
        self._heads, self._kv_heads = c.num_qo_heads // ranks, c.num_kv_heads // ranks
        self.wq = Linear(self._heads * c.head_dim, c.hidden_size)
        self.wkv = Chunked(self._kv_heads * c.head_dim, c.hidden_size)
        self.wo = RowParallel(c.hidden_size, self._heads * c.head_dim)
        self.temp = torch.ones(1, self._heads, 1, dtype=torch.bfloat16)
        self.attn, self.gater = AttentionLayer(c, i), Linear(self._heads, c.hidden_size)

    def forward(self, x):
        batch = core._GLOBAL_CTX.batch
        k, v = self.wkv.forward(x).chunk(2, -1)
        heads = (y.unflatten(1, (-1, self.head_dim)) for y in (self.wq.forward(x), k))
        q, k = (F.rms_norm(y, (self.head_dim,), eps=1e-6) for y in heads)
        q = q * self.temp.abs().to(q.dtype)
        q, k = self.attn.rotary.forward(batch.attn_metadata.positions, q.flatten(1), k.flatten(1), is_neox=False)
        q = q.unflatten(1, (-1, self.head_dim))
        y = core._GLOBAL_CTX.attn_backend.forward(q, k, v.contiguous(), self.attn.layer_id, batch)
        gated = y.view(q.shape) * torch.sigmoid(self.gater.forward(x))[..., None]
        return self.wo.forward(gated.flatten(1))


class FeedForward(Op):
    def __init__(self, c):
        width = c.intermediate_size // info._TP_INFO.size
        self.w_in, self.w_out = Chunked(width, c.hidden_size), RowParallel(c.hidden_size, width)

    def forward(self, x):
        up, gate = self.w_in.forward(x).chunk(2, -1)
        return self.w_out.forward(up * F.silu(gate))


class RouterMLP(Op):
    def __init__(self, width, experts):
        self._0, self._2 = Linear(width, width, bias=True), Linear(width, width, bias=True)
        self._4 = Linear(experts, width)

    def forward(self, x):
        return self._4.forward(F.gelu(self._2.forward(F.gelu(self._0.forward(x)))))


class Router(Op):
    def __init__(self, c, i):
        self.top_k = c.special_topk_layers.get(i, c.num_experts_per_tok)
        self.use_legacy_balancing = c.moe_balancing_strategy == "legacy"
        self.down_proj = Linear(c.moe_router_dim, c.hidden_size, bias=True)
        self.router_mlp = RouterMLP(c.moe_router_dim, c.moe_n_experts)
        self.rmsnorm_eda = RMSNorm(c.moe_router_dim, c.rms_norm_eps)
        self.use_eda = i != c.moe_start_from_layer
        if self.use_eda:
            self.router_states_scale = torch.ones(c.moe_router_dim)
        self.balancing_biases = torch.zeros(c.moe_n_experts, dtype=torch.float32)

    def forward(self, hidden_states, router_states=None):
        state = self.down_proj.forward(hidden_states)
        if self.use_eda and router_states is not None:
            state = state + router_states * self.router_states_scale
        probs = self.router_mlp.forward(self.rmsnorm_eda.forward(state)).float().softmax(-1)
        sign = 1 if self.use_legacy_balancing else -1
        ids = (probs + sign * self.balancing_biases.float()).topk(self.top_k, -1).indices
        return probs.gather(1, ids), ids.int(), state


class FusedMoE(Op):
    def __init__(self, c, i):
        self.num_experts, self.top_k = c.moe_n_experts, c.special_topk_layers.get(i, c.num_experts_per_tok)
        self.activation, self.renormalize, self.no_combine = "silu", False, False
        self.apply_router_weight_on_input, self.inplace = False, True
        self.tp_size, self._comm = info._TP_INFO.size, DistributedCommunicator()

    def forward(self, hidden_states, router_logits=None, *, topk_weights=None, topk_ids=None):
        y = torch_ops.fused_experts(hidden_states, self.gate_up_proj, self.down_proj, topk_weights, topk_ids, True)
        return self._comm.all_reduce(y) if self.tp_size > 1 else y


class GroupedExperts(Op):
    def __init__(self, c, i):
        width, experts = c.intermediate_size // info._TP_INFO.size, c.moe_n_experts
        self.gate_up_proj = torch.empty(experts, 2 * width, c.hidden_size)
        self.down_proj = torch.empty(experts, c.hidden_size, width)
        self._fused_moe = FusedMoE(c, i)

    def forward(self, x, topk_weights, topk_ids):
        return self._fused_moe.forward(x, topk_weights=topk_weights, topk_ids=topk_ids)


class MoEFeedForward(Op):
    def __init__(self, c, i):
        self.router, self.experts = Router(c, i), GroupedExperts(c, i)

    def forward(self, x, router_states=None):
        weights, ids, state = self.router.forward(x, router_states)
        return self.experts.forward(x, topk_weights=weights, topk_ids=ids), state


class TransformerBlock(Op):
    def __init__(self, c, i):
        self.attention = Attention(c, i)
        self.attention_norm = RMSNormFused(c.hidden_size, c.rms_norm_eps)
        self.ffn_norm = RMSNormFused(c.hidden_size, c.rms_norm_eps)
        self.is_moe = c.moe_start_from_layer <= i < c.num_layers - c.moe_end_from_layer
        self.feed_forward = MoEFeedForward(c, i) if self.is_moe else FeedForward(c)

    def forward(self, x, residual, state):
        x, residual = self.attention_norm.forward(x, residual)
        x, residual = self.ffn_norm.forward(self.attention.forward(x), residual)
        if not self.is_moe:
            return self.feed_forward.forward(x), residual, None
        x, state = self.feed_forward.forward(x, state)
        return x, residual, state


class Zonos2ForCausalLM(Op):
    def __init__(self, config):
        c = self.config = config
        self.multi_embedder = MultiEmbedding(c)
        self.emb_norm = RMSNormFused(c.hidden_size, c.rms_norm_eps, elementwise_affine=False)
        self.speaker_projection = Linear(c.hidden_size, c.speaker_embedding_dim, bias=True)
        self.layers = OpList([TransformerBlock(c, i) for i in range(c.num_layers)])
        self.out_norm = RMSNormFused(c.hidden_size, c.rms_norm_eps)
        self.multi_output = Linear((c.codebook_size + 2) * c.n_codebooks, c.hidden_size)

    def load_state_dict(self, tensors):
        """Names and order of the checkpoint, which interleaves the rows of gate and up."""
        for name, tensor in tensors.items():
            *path, last = name.split(".")
            owner, last = self, {"w13": "gate_up_proj", "w2": "down_proj"}.get(last, last)
            for step in path:
                if type(owner) is OpList:
                    owner = owner.op_list[int(step)]
                else:
                    owner = getattr(owner, f"_{step}" if type(owner) is RouterMLP else step)
            if name.endswith("w13"):
                tensor = torch.cat([tensor[:, 0::2], tensor[:, 1::2]], 1)
            setattr(owner, last, tensor.bfloat16() if last == "temp" else tensor)
            if type(owner) is GroupedExperts:
                setattr(owner._fused_moe, last, getattr(owner, last))

    def forward(self):
        batch = core._GLOBAL_CTX.batch
        x = self.multi_embedder.forward(batch.input_ids)
        if batch.speaker_emb_values is not None:
            rows = self.speaker_projection.forward(batch.speaker_emb_values)
            x = x.index_copy(0, batch.speaker_token_positions, rows)
        (x, _), residual, state = self.emb_norm.forward(x), None, None
        for layer in self.layers.op_list:
            x, residual, state = layer.forward(x, residual, state)
        return self.compute_logits(self.out_norm.forward(x, residual)[0])

    def compute_logits(self, hidden_states):
        logits = self.multi_output.forward(hidden_states).unflatten(-1, (self.config.n_codebooks, -1))
        return self.config.loss_softcap * torch.tanh(logits / self.config.loss_softcap)
