"""Gated attention with normed queries and keys over a key/value cache."""

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from zonos2_triton.reference.norm import rms_norm
from zonos2_triton.reference.numeric import wide
from zonos2_triton.reference.rotary import rotary

QK_EPS = 1e-6  # of the head norms; not norm_eps


@dataclass
class AttentionCache:
    """Keys and values of one layer and one sequence, [capacity, HKV, DH] each, filled from row 0."""

    k: Tensor
    v: Tensor

    @classmethod
    def empty(cls, capacity: int, kv_heads: int, head_dim: int, like: Tensor) -> "AttentionCache":
        return cls(*(like.new_zeros(capacity, kv_heads, head_dim) for _ in range(2)))


def attention(
    x: Tensor, wq: Tensor, wkv: Tensor, gater: Tensor, temp: Tensor, wo: Tensor,
    cache: AttentionCache, start: int, theta: float,
) -> Tensor:  # fmt: skip
    """x [T, D], the normed input at positions start .. start + T - 1 -> [T, D]; writes those rows of the cache.

    wq [HQ * DH, D], wkv [2, HKV * DH, D] (keys, values), gater [HQ, D], temp [1, HQ, 1], wo [D, HQ * DH].
    q and k are normed per head without a weight, q is scaled by |temp|, both are turned by position; query head h
    reads key/value head h // (HQ / HKV); sigmoid(gater x) scales each head before wo.
    """
    end = start + len(x)
    positions = torch.arange(start, end, device=x.device)
    q, k, v = (rearrange(x @ w.T, "t (h d) -> t h d", d=cache.k.shape[-1]) for w in (wq, *wkv))
    q = rotary(rms_norm(wide(q), None, QK_EPS) * wide(temp).abs(), positions, theta).to(x.dtype)
    k = rotary(rms_norm(wide(k), None, QK_EPS), positions, theta).to(x.dtype)
    cache.k[start:end], cache.v[start:end] = k, v
    y = causal_attention(q, cache.k[:end], cache.v[:end])
    gate = torch.sigmoid(wide(x @ gater.T))  # [T, HQ]
    return rearrange(y * gate[..., None], "t h d -> t (h d)").to(x.dtype) @ wo.T


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q [T, HQ, DH], the last T of S positions; k, v [S, HKV, DH] -> wide [T, HQ, DH]."""
    T, S, group = len(q), len(k), q.shape[1] // k.shape[1]
    future = torch.ones(T, S, dtype=torch.bool, device=q.device).triu(S - T + 1)
    heads = []
    for h in range(k.shape[1]):  # head by head: the scores of all heads at 6,144 positions would take 2.4 GB
        scores = torch.einsum("tgd,sd->gts", wide(q[:, h * group : (h + 1) * group]), wide(k[:, h]))
        scores = (scores * q.shape[-1] ** -0.5).masked_fill(future, float("-inf"))
        heads.append(torch.einsum("gts,sd->tgd", scores.softmax(-1), wide(v[:, h])))
    return torch.cat(heads, 1)
