"""ZONOS2 in plain PyTorch with the official tensor names, as another project might write it."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zonos2_triton.reference.rotary import compute_cos_sin_cache, rotary


@dataclass
class Cache:
    """Keys and values of one layer [B, L, HKV, DH], with `length` filled positions."""

    key: Tensor
    value: Tensor
    length: int = 0


class Stacked(nn.Module):
    """Parallel linear layers, with weights [n, out, in]."""

    def __init__(self, n, out, dim):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n, out, dim))

    def forward(self, x):
        return tuple(F.linear(x, weight) for weight in self.weight)


class Norm(nn.Module):
    def __init__(self, dim, eps):
        super().__init__()
        self.weight, self.variance_epsilon = nn.Parameter(torch.empty(dim)), eps

    def forward(self, x):
        return F.rms_norm(x, self.weight.shape, self.weight, self.variance_epsilon)


class Embedding(nn.Module):
    def __init__(self, config):
        super().__init__()
        rows = [config.codebook_vocab] * config.n_codebooks + [config.text_vocab + 1]
        self.embedders = nn.ModuleList(nn.Embedding(n, config.dim) for n in rows)

    def forward(self, codes):
        return sum(table(codes[..., i]) for i, table in enumerate(self.embedders))


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = config.heads, config.kv_heads, config.head_dim
        self.rope_theta = config.rope_theta
        self.wq = nn.Linear(config.dim, self.heads * self.head_dim, bias=False)
        self.wkv = Stacked(2, self.kv_heads * self.head_dim, config.dim)
        self.wo = nn.Linear(self.heads * self.head_dim, config.dim, bias=False)
        self.gater = nn.Linear(config.dim, self.heads, bias=False)
        self.temp = nn.Parameter(torch.empty(1, self.heads, 1))

    def forward(self, x, cache):
        start, end = cache.length, cache.length + x.shape[1]
        q, (k, v) = self.wq(x), self.wkv(x)
        q, k, v = (t.unflatten(-1, (-1, self.head_dim)) for t in (q, k, v))  # [B, T, H, DH]
        q, k = (F.rms_norm(t, (self.head_dim,), eps=1e-6) for t in (q, k))
        positions = torch.arange(start, end, device=x.device)
        table = compute_cos_sin_cache(end, self.head_dim, self.rope_theta, x)
        q = q * self.temp.abs().to(q)
        q, k = (torch.stack([rotary(row, positions, table) for row in t]) for t in (q, k))
        cache.key[:, start:end] = k
        cache.value[:, start:end] = v
        cache.length = end
        k, v = (t[:, :end].repeat_interleave(self.heads // self.kv_heads, 2) for t in (cache.key, cache.value))
        seen = torch.arange(end, device=x.device) <= positions[:, None]
        y = F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)), attn_mask=seen).transpose(1, 2)
        return self.wo((y * self.gater(x).sigmoid()[..., None]).flatten(2))


class FeedForward(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.w_in = Stacked(2, config.ffn_dim, config.dim)
        self.w_out = nn.Linear(config.ffn_dim, config.dim, bias=False)

    def forward(self, x):
        up, gate = self.w_in(x)
        return self.w_out(F.silu(gate) * up)


class Router(nn.Module):
    sign = 1.0  # of the biases

    def __init__(self, config, layer):
        super().__init__()
        R, E = config.moe_router_dim, config.moe_n_experts
        self.down_proj = nn.Linear(config.dim, R)
        self.rmsnorm_eda = Norm(R, config.norm_eps)
        wide = nn.Linear(R, R), nn.GELU(), nn.Linear(R, R), nn.GELU()
        self.router_mlp = nn.Sequential(*wide, nn.Linear(R, E, bias=False))
        self.balancing_biases = nn.Parameter(torch.empty(E))
        self.router_states_scale = nn.Parameter(torch.empty(R)) if layer != config.moe_start_from_layer else None
        self.top_k = config.experts_per_token(layer)

    def forward(self, x, state=None):
        """[.., D] -> weights and ids [.., k], the state of the next router [.., R]."""
        s = self.down_proj(x)
        if self.router_states_scale is not None and state is not None:
            s = s + state * self.router_states_scale
        probs = self.router_mlp(self.rmsnorm_eda(s)).float().softmax(-1)
        ids = (probs + self.sign * self.balancing_biases.float()).topk(self.top_k, -1).indices
        return probs.gather(-1, ids), ids, s


class Experts(nn.Module):
    def __init__(self, config):
        super().__init__()
        E, I = config.moe_n_experts, config.ffn_dim
        self.w13, self.w2 = nn.Parameter(torch.empty(E, 2 * I, config.dim)), nn.Parameter(torch.empty(E, config.dim, I))

    def forward(self, x, weights, ids):
        """[.., D], weights and ids [.., k] -> the weighted sum of the experts, [.., D]."""
        y = torch.zeros_like(x)
        for e, (w13, w2) in enumerate(zip(self.w13, self.w2, strict=True)):
            both = F.linear(x, w13)
            mine = (weights * (ids == e)).sum(-1, keepdim=True).to(x)
            y = y + mine * F.linear(F.silu(both[..., 0::2]) * both[..., 1::2], w2)
        return y


class Mixture(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.router, self.experts = Router(config, layer), Experts(config)

    def forward(self, x, state):
        weights, ids, state = self.router(x, state=state)
        return self.experts(x, weights=weights, ids=ids), state


class Layer(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.attention, self.attention_norm = Attention(config), Norm(config.dim, config.norm_eps)
        self.ffn_norm, self.mixed = Norm(config.dim, config.norm_eps), layer in config.moe_layers
        self.feed_forward = Mixture(config, layer) if self.mixed else FeedForward(config)

    def forward(self, x, cache, state):
        x = x + self.attention(self.attention_norm(x), cache)
        h = self.ffn_norm(x)
        y, state = self.feed_forward(h, state) if self.mixed else (self.feed_forward(h), None)
        return x + y, state


class TorchModel(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.n_codebooks, self.eps, self.cap = config.n_codebooks, config.norm_eps, config.loss_softcap
        self.multi_embedder = Embedding(config)
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.n_layers))
        self.out_norm = Norm(config.dim, config.norm_eps)
        self.multi_output = nn.Linear(config.dim, config.n_codebooks * config.codebook_vocab, bias=False)

    def caches(self, batch, length):
        attention = self.layers[0].attention
        shape = batch, length, attention.kv_heads, attention.head_dim
        return [Cache(*self.out_norm.weight.new_zeros(2, *shape)) for _ in self.layers]

    def forward(self, ids, caches):
        """ids [B, T, C + 1], which follow the cached tokens -> logits [B, T, C, V]."""
        x, state = self.multi_embedder(ids), None
        x = F.rms_norm(x, x.shape[-1:], eps=self.eps)
        for layer, cache in zip(self.layers, caches, strict=True):
            x, state = layer(x, cache, state)
        logits = self.multi_output(self.out_norm(x)).unflatten(-1, (self.n_codebooks, -1))
        return self.cap * torch.tanh(logits / self.cap)
