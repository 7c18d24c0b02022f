"""Both attentions by torch.nn.functional.scaled_dot_product_attention: the fused attention that PyTorch brings along.

It reads no pages. An engine around it has a contiguous cache of fixed size, laid out as it reads: [B, HKV, S, DH]. S is
the number of positions in a sequence's pages. Not timed: the copy into that layout, and the mask, which an engine makes
once a step for all layers. Timed: the writes of new tokens into that cache and, as the kernel does, into the pages.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right

from zonos2_triton.bench.baselines import attention_adapter as adapter
from zonos2_triton.bench.baselines.attention_adapter import Call, Inputs, Rows, Twin


def decode_attention(inputs: Inputs) -> Call:
    """One launch of the attention for the batch, masked by position.

    The query heads that share a key/value head are taken as rows of one problem: nothing is repeated for them, and the
    kernels that take a mask but no grouped heads can be chosen.
    """
    rows = adapter.decode_rows(inputs)
    twin = _contiguous(inputs, rows, inputs["block_table"].shape[1] * inputs["k_cache"].shape[1])
    kv_heads, positions = twin.keys.shape[1], inputs["positions"]
    seen = torch.arange(twin.keys.shape[2], device=positions.device) <= positions[:, None]
    # As the fused kernels take a mask: a boolean one would be converted in every call.
    mask = torch.zeros_like(seen, dtype=inputs["qkvg"].dtype).masked_fill(~seen, float("-inf"))[:, None, None]

    def run() -> Tensor:
        q, _, _, gate = adapter.begin(inputs, rows, twin)
        y = F.scaled_dot_product_attention(q.unflatten(1, (kv_heads, -1)), twin.keys, twin.values, attn_mask=mask)
        return adapter.end(y.flatten(1, 2), gate)

    return run


def prefill_attention(inputs: Inputs) -> Call:
    """Prompt by prompt. Where all begin, nothing is read from a cache."""
    rows = adapter.prefill_inputs(inputs)
    twin = _contiguous(inputs, rows, max(rows.lengths)) if bool(inputs["cache_seqlens"].any()) else None
    prompts = list(zip(pairwise(inputs["cu_seqlens"].tolist()), rows.lengths, strict=True))

    def run() -> Tensor:
        q, k, v, gate = adapter.begin(inputs, rows, twin)
        parts = []
        for n, ((first, end), length) in enumerate(prompts):
            new = (part[first:end].transpose(0, 1) for part in (k, v))
            known = new if twin is None else (twin.keys[n, :, :length], twin.values[n, :, :length])
            asked, keys, values = (part[None] for part in (q[first:end].transpose(0, 1), *known))
            causal = causal_lower_right(end - first, length)
            y = F.scaled_dot_product_attention(asked, keys, values, attn_mask=causal, enable_gqa=True)
            parts.append(y[0].transpose(0, 1))
        return adapter.end(torch.cat(parts), gate)

    return run


def _contiguous(inputs: Inputs, rows: Rows, positions: int) -> Twin:
    caches = (adapter.unpaged(inputs[name], inputs["block_table"], positions) for name in ("k_cache", "v_cache"))
    keys, values = (cache.transpose(1, 2).contiguous() for cache in caches)
    return Twin(keys, values, (rows.sequence, slice(None), rows.positions))
