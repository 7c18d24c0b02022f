"""Functions that the official engine imports from GPU packages, in plain PyTorch."""

import torch
import torch.nn.functional as F


def rmsnorm(input, weight, eps=1e-6, out=None):
    x = input.float()
    y = (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight.float()).to(input.dtype)
    return y if out is None else out.copy_(y)


def fused_add_rmsnorm(input, residual, weight, eps=1e-6):
    residual += input
    rmsnorm(residual, weight, eps, out=input)


def apply_rope_with_cos_sin_cache_inplace(positions, query, key, head_size, cos_sin_cache, is_neox):
    cos, sin = (part[:, None] for part in cos_sin_cache[positions.long()].chunk(2, -1))
    for x in (query, key):
        heads = x.view(len(x), -1, head_size).float()
        if is_neox:
            a, b = heads.chunk(2, -1)
            turned = torch.cat([a * cos - b * sin, a * sin + b * cos], -1)
        else:
            a, b = heads[..., 0::2], heads[..., 1::2]
            turned = torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)
        x.copy_(turned.flatten(1))


def indexing(weights, indices, *, output=None, vocab_range=None):
    first, length = vocab_range or (0, len(weights))
    own = (indices >= first) & (indices < first + length)
    return torch.where(own[:, None], weights[(indices - first).clamp(0, length - 1).long()], 0)


def store_cache(k_cache, v_cache, indices, k, v):
    for sites, rows in ((k_cache, k), (v_cache, v)):
        sites.view(len(sites), -1)[indices.long()] = rows


def fused_experts(hidden_states, w1, w2, topk_weights, topk_ids, inplace=False, **_):
    total = torch.zeros_like(hidden_states, dtype=torch.float32)
    for x, weights, ids, y in zip(hidden_states, topk_weights, topk_ids, total, strict=True):
        for weight, expert in zip(weights, ids.tolist(), strict=True):
            gate, up = (w1[expert] @ x).float().chunk(2)
            y += weight * (w2[expert] @ (F.silu(gate) * up).to(x.dtype)).float()
    y = total.to(hidden_states.dtype)
    return hidden_states.copy_(y) if inplace else y


def cos_sin_cache(head_dim, max_position, base):
    angles = torch.arange(max_position)[:, None] * base ** -(torch.arange(0, head_dim, 2) / head_dim)
    return torch.cat([angles.cos(), angles.sin()], 1)
