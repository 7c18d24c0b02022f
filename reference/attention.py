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
        """Room for `capacity` positions, of the dtype and on the device of `like`."""
        return cls(*(like.new_zeros(capacity, kv_heads, head_dim) for _ in range(2)))


def project(x: Tensor, wq: Tensor, wkv: Tensor, gater: Tensor, head_dim: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x [T, D], normed -> q [T, HQ, DH], k and v [T, HKV, DH], gate [T, HQ].

    wq [HQ * DH, D], wkv [2, HKV * DH, D] (keys, values), gater [HQ, D].
    """
    q, k, v = (rearrange(x @ w.T, "t (h d) -> t h d", d=head_dim) for w in (wq, *wkv))
    return q, k, v, x @ gater.T


def attention(
    q: Tensor, k: Tensor, v: Tensor, gate: Tensor, temp: Tensor, cache: AttentionCache, start: int, theta: float
) -> Tensor:
    """What `project` made of positions start .. start + T - 1 -> [T, HQ * DH]; writes those rows of the cache.

    q and k are normed per head without a weight, q is scaled by |temp| (temp [1, HQ, 1]), both are turned by position;
    query head h reads key/value head h // (HQ / HKV) at its own and earlier positions; sigmoid(gate) scales each head.
    """
    end = start + len(q)
    positions = torch.arange(start, end, device=q.device)
    cache.k[start:end] = rotary(rms_norm(wide(k), None, QK_EPS), positions, theta)
    cache.v[start:end] = v
    q = rotary(rms_norm(wide(q), None, QK_EPS) * wide(temp).abs(), positions, theta).to(q.dtype)
    y = causal_attention(q, cache.k[:end], cache.v[:end]) * torch.sigmoid(wide(gate))[..., None]
    return rearrange(y, "t h d -> t (h d)").to(q.dtype)


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
