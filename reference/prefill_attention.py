"""Attention of the new tokens of a prompt over a paged cache."""

import torch
from torch import Tensor

from zonos2_triton.reference.attention import attend


def prefill_attention(
    qkvg: Tensor,
    qk_temperature: Tensor | None,
    cos_sin_cache: Tensor | None,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    cache_seqlens: Tensor,
    cu_seqlens: Tensor,
    max_seqlen_q: int,
) -> Tensor:
    """qkvg [T, ...] of `qkv_projection`, the new tokens of B sequences one after the other -> [T, HQ * DH].

    Tokens cu_seqlens[b] to cu_seqlens[b + 1] - 1 belong to sequence b, at positions from cache_seqlens[b] on.
    max_seqlen_q is the largest number of them (a bound for kernels).

    q and k are normed per head without a weight. q is scaled by |qk_temperature| [HQ]. Both are rotated by position.
    The new keys and values are written to the cache. Query head h reads key/value head h // (HQ / HKV) at its own and
    earlier positions. sigmoid(gate) scales each head.

    Pass qk_temperature and cos_sin_cache together, or neither. With neither, qkvg [T, (HQ + 2 * HKV) * DH] holds
    queries, keys and values as they enter the products: no norm, no rotary, no gate.
    """
    cuts = cu_seqlens.tolist()
    sequences = zip(block_table, cache_seqlens.tolist(), cuts[:-1], cuts[1:], strict=True)
    rest = qk_temperature, cos_sin_cache, k_cache, v_cache
    return torch.cat([attend(qkvg[a:b], *rest, pages, start) for pages, start, a, b in sequences])
