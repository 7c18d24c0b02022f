"""What the official engine takes from packages that need a GPU, in plain PyTorch."""

import torch
import torch.nn.functional as F
from torch import Tensor


def rmsnorm(input: Tensor, weight: Tensor, eps: float = 1e-6, out: Tensor | None = None) -> Tensor:
    x = input.float()
    y = (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight.float()).to(input.dtype)
    return y if out is None else out.copy_(y)


def fused_add_rmsnorm(input: Tensor, residual: Tensor, weight: Tensor, eps: float = 1e-6) -> None:
    residual += input
    rmsnorm(residual, weight, eps, out=input)


def apply_rope_with_cos_sin_cache_inplace(
    positions: Tensor, query: Tensor, key: Tensor, head_size: int, cos_sin_cache: Tensor, is_neox: bool
) -> None:
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


def indexing(
    weights: Tensor, indices: Tensor, *, output: Tensor | None = None, vocab_range: tuple[int, int] | None = None
) -> Tensor:
    first, length = vocab_range or (0, len(weights))
    own = (indices >= first) & (indices < first + length)
    return torch.where(own[:, None], weights[(indices - first).clamp(0, length - 1).long()], 0)


def store_cache(k_cache: Tensor, v_cache: Tensor, indices: Tensor, k: Tensor, v: Tensor) -> None:
    for places, rows in ((k_cache, k), (v_cache, v)):
        places.view(len(places), -1)[indices.long()] = rows


def fused_experts(
    hidden_states: Tensor, w1: Tensor, w2: Tensor, topk_weights: Tensor, topk_ids: Tensor, inplace: bool = False,
    **_: object,
) -> Tensor:  # fmt: skip
    total = torch.zeros_like(hidden_states, dtype=torch.float32)
    for x, weights, ids, y in zip(hidden_states, topk_weights, topk_ids, total, strict=True):
        for weight, expert in zip(weights, ids.tolist(), strict=True):
            gate, up = (w1[expert] @ x).float().chunk(2)
            y += weight * (w2[expert] @ (F.silu(gate) * up).to(x.dtype)).float()
    y = total.to(hidden_states.dtype)
    return hidden_states.copy_(y) if inplace else y


def cos_sin_cache(head_dim: int, max_position: int, base: float) -> Tensor:
    angles = torch.arange(max_position)[:, None] * base ** -(torch.arange(0, head_dim, 2) / head_dim)
    return torch.cat([angles.cos(), angles.sin()], 1)
