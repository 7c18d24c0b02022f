"""Both attentions by torch.nn.functional.scaled_dot_product_attention: the fused attention that PyTorch brings along.

It reads no pages. An engine around it has a contiguous cache of fixed size, laid out as it reads: [B, HKV, S, DH]. The
copy into that layout is not timed, nor is the mask, which an engine makes once a step for all layers; writing the new
rows is, into that cache and, for the kernel's function, into the pages. S is what a sequence's pages hold.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from zonos2_triton.bench.baselines import attention_adapter as adapter
from zonos2_triton.bench.baselines import torch_ops
from zonos2_triton.bench.baselines.attention_adapter import Call, Inputs, Rows, Twin


@adapter.without_idle
def decode_attention(inputs: Inputs) -> Call:
    """One launch of the attention for the batch, masked by position.

    The query heads that share a key/value head are taken as rows of one problem: nothing is repeated for them, and the
    kernels that take a mask but no grouped heads can be chosen.
    """
    rows = adapter.decode_rows(inputs)
    twin = _contiguous(inputs, rows, inputs["block_table"].shape[1] * inputs["k_cache"].shape[1])
    kv_heads, positions = twin.keys.shape[1], inputs["positions"]
    seen = torch.arange(twin.keys.shape[2], device=positions.device) <= positions[:, None]
    mask = _additive(seen, inputs["qkvg"])[:, None, None]

    def run() -> Tensor:
        q, _, _, gate = adapter.begin(inputs, rows, twin)
        y = F.scaled_dot_product_attention(q.unflatten(1, (kv_heads, -1)), twin.keys, twin.values, attn_mask=mask)
        return adapter.end(y.flatten(1, 2), gate)

    return run


def prefill_attention(inputs: Inputs) -> Call:
    """Prompts of one length that begin, as a batch and causal, from the new rows alone; others padded and masked."""
    cuts, starts = inputs["cu_seqlens"].tolist(), inputs["starts"].tolist()
    counts = {end - first for first, end in pairwise(cuts)}
    return _uniform(inputs) if not any(starts) and len(counts) == 1 else _padded(inputs)


def _uniform(inputs: Inputs) -> Call:
    rows, B = adapter.prefill_rows(inputs), len(inputs["starts"])

    def run() -> Tensor:
        q, k, v, gate = adapter.begin(inputs, rows)
        q, k, v = (part.unflatten(0, (B, -1)).transpose(1, 2) for part in (q, k, v))  # [B, H, T, DH]
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return adapter.end(y.transpose(1, 2).flatten(0, 1), gate)

    return run


def _padded(inputs: Inputs) -> Call:
    rows, device = adapter.prefill_rows(inputs), inputs["qkvg"].device
    twin = _contiguous(inputs, rows, max(rows.lengths))
    first, counts, T = inputs["cu_seqlens"][:-1].long(), inputs["cu_seqlens"].diff(), inputs["longest"]
    number = torch.arange(T, device=device)
    taken = (first[:, None] + number).clamp(max=len(rows.sequence) - 1)  # [B, T]: past a sequence's rows, any
    kept = (number < counts[:, None]).flatten().nonzero()[:, 0]
    kv_heads, S = twin.keys.shape[1:3]
    group = adapter.heads_of(inputs) // kv_heads
    seen = torch.arange(S, device=device) <= (inputs["starts"][:, None] + number)[..., None]  # [B, T, S]
    mask = _additive(seen, inputs["qkvg"])[:, None].repeat(1, 1, group, 1)  # [B, 1, group * T, S]

    def run() -> Tensor:
        q, _, _, gate = adapter.begin(inputs, rows, twin)
        q = adapter.fused(_grouped, device.type)(q, taken, kv_heads)
        y = F.scaled_dot_product_attention(q, twin.keys, twin.values, attn_mask=mask)
        return adapter.fused(_ungrouped, device.type)(y, gate, T, kept)

    return run


def _grouped(q: Tensor, taken: Tensor, kv_heads: int) -> Tensor:
    """[T, HQ, DH] -> [B, HKV, group * T, DH], rows of padding among them."""
    return q[taken].unflatten(2, (kv_heads, -1)).permute(0, 2, 3, 1, 4).flatten(2, 3)


def _ungrouped(y: Tensor, gate: Tensor | None, T: int, kept: Tensor) -> Tensor:
    heads = y.unflatten(2, (-1, T)).permute(0, 3, 1, 2, 4).flatten(2, 3).flatten(0, 1)  # [B * T, HQ, DH]
    return torch_ops.gated(heads[kept], gate)


def _additive(seen: Tensor, like: Tensor) -> Tensor:
    """As the fused kernels take a mask: a boolean one would be converted in every call."""
    return torch.zeros(seen.shape, dtype=like.dtype, device=like.device).masked_fill(~seen, float("-inf"))


def _contiguous(inputs: Inputs, rows: Rows, positions: int) -> Twin:
    caches = (adapter.unpaged(inputs[name], inputs["block_table"], positions) for name in ("k_cache", "v_cache"))
    keys, values = (cache.transpose(1, 2).contiguous() for cache in caches)
    return Twin(keys, values, (rows.sequence, slice(None), rows.positions))
