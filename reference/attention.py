"""Attention of one sequence over a paged key/value cache, with head norms, rotary embedding and gate.

The cache of a layer is k_cache and v_cache [pages, page_size, HKV, DH]; position p of sequence b lies in page
block_table[b, p // page_size], at p % page_size. One page per sequence is the contiguous cache.
"""

import torch
from einops import rearrange
from torch import Tensor

from zonos2_triton.reference.add_rms_norm import rms_norm
from zonos2_triton.reference.numeric import wide
from zonos2_triton.reference.rotary import rotary

QK_EPS = 1e-6  # of the head norms; not norm_eps


def query_heads(qkvg: Tensor, qk_temperature: Tensor | None, k_cache: Tensor) -> int:
    """The number of query heads HQ."""
    return qkvg.shape[1] // k_cache.shape[3] - 2 * k_cache.shape[2] if qk_temperature is None else len(qk_temperature)


def attend(
    qkvg: Tensor,
    qk_temperature: Tensor | None,
    cos_sin_cache: Tensor | None,
    k_cache: Tensor,
    v_cache: Tensor,
    pages: Tensor,
    start: int,
) -> Tensor:
    """Attention of the new tokens of one sequence, at positions from `start` on.

    Gradients flow through the new tokens, not into those that are in the cache already.
    """
    page_size, end = k_cache.shape[1], start + len(qkvg)
    positions = torch.arange(start, end, device=qkvg.device)
    q, k, v = rotated_heads(qkvg, qk_temperature, cos_sin_cache, k_cache, positions)
    k, v = k.to(k_cache.dtype), v.to(v_cache.dtype)
    at = pages.long()[positions // page_size], positions % page_size
    k_cache[at], v_cache[at] = k.detach(), v.detach()
    if k.requires_grad:  # the next sequence writes to the cache before this one's gradients are taken
        k, v = (torch.cat([_cached(cache, pages, start), new]) for cache, new in ((k_cache, k), (v_cache, v)))
    else:
        k, v = _cached(k_cache, pages, end), _cached(v_cache, pages, end)
    y = causal_attention(q, k, v)
    if qk_temperature is not None:
        y = y * torch.sigmoid(wide(qkvg[:, -q.shape[1] :]))[..., None]
    return rearrange(y, "t h d -> t (h d)").to(qkvg.dtype)


def rotated_heads(
    qkvg: Tensor,
    qk_temperature: Tensor | None,
    cos_sin_cache: Tensor | None,
    k_cache: Tensor,
    positions: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """The heads as they enter the products: q [T, HQ, DH], k and v [T, HKV, DH], at positions [T]; k is wide."""
    (kv_heads, head_dim), heads = k_cache.shape[2:], query_heads(qkvg, qk_temperature, k_cache)
    qkv = rearrange(qkvg[:, : (heads + 2 * kv_heads) * head_dim], "t (h d) -> t h d", d=head_dim)
    q, k, v = qkv.split([heads, kv_heads, kv_heads], 1)
    if qk_temperature is not None and cos_sin_cache is not None:
        k = rotary(rms_norm(wide(k), None, QK_EPS), positions, cos_sin_cache)
        q = rms_norm(wide(q), None, QK_EPS) * wide(qk_temperature)[:, None].abs()
        q = rotary(q, positions, cos_sin_cache).to(qkvg.dtype)
    return q, k, v


def _cached(cache: Tensor, pages: Tensor, end: int) -> Tensor:
    """Positions 0 .. end - 1 of one sequence, [end, HKV, DH]; a view where they lie in one page."""
    parts = [cache[page] for page in pages[: max(-(-end // cache.shape[1]), 1)].tolist()]
    return (parts[0] if len(parts) == 1 else torch.cat(parts))[:end]


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
