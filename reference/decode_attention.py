"""Attention of one new token per sequence over a paged cache."""

import torch
from torch import Tensor

from zonos2_triton.reference.attention import attend, query_heads


def decode_attention(
    qkvg: Tensor,
    qk_temperature: Tensor | None,
    cos_sin_cache: Tensor | None,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    positions: Tensor,
) -> Tensor:
    """`prefill_attention` for one new token of each sequence, at positions [B].

    A slot with a negative position is idle: its result is zeros, and its pages are not touched.
    """
    slots = zip(qkvg[:, None], block_table, positions.tolist(), strict=True)
    idle = qkvg.new_zeros(1, query_heads(qkvg, qk_temperature, k_cache) * k_cache.shape[3])
    rest = qk_temperature, cos_sin_cache, k_cache, v_cache
    return torch.cat([attend(token, *rest, pages, at) if at >= 0 else idle for token, pages, at in slots])
