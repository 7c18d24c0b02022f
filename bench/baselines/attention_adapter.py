"""This model's steps around an attention, for libraries that compute the attention alone, and in their layouts.

Head norms, temperature, rotary embedding and cache write come before it, the head gate after it. An engine has fused
kernels for those. So on a GPU torch.compile fuses them into one or two launches per side. On a CPU they run eagerly,
and nothing is timed.

The cache slot of each token is computed beforehand and not timed: engines do so once a step, for all layers.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from zonos2_triton.bench.baselines import torch_ops
from zonos2_triton.reference.attention import query_heads

Inputs = dict[str, Any]
Call = Callable[[], Any]  # the timed call: on the inputs that it was prepared for
Prepare = Callable[[Inputs], Call]
Index = tuple[Any, ...]  # of a cache, as indexing takes it


class Rows(NamedTuple):
    """Where the new rows of a step belong."""

    sequence: Tensor  # [T]
    positions: Tensor  # [T]
    slots: Index  # of the paged cache
    lengths: list[int]  # of each sequence with its new rows
    heads: int  # of the queries


class Twin(NamedTuple):
    """A cache in a library's own layout, which gets the new rows as well."""

    keys: Tensor
    values: Tensor
    at: Index


@cache
def fused(function: Callable[..., Any], device: str) -> Callable[..., Any]:
    """In as few launches as torch.compile makes of it."""
    return torch.compile(function, dynamic=False, fullgraph=True) if device == "cuda" else function


def decode_rows(inputs: Inputs) -> Rows:
    """One of each sequence; none is idle: an engine leaves those out of the batch."""
    positions = inputs["positions"].long()
    return _rows(inputs, torch.arange(len(positions), device=positions.device), positions, positions + 1)


def prefill_inputs(inputs: Inputs) -> Rows:
    cache_seqlens, counts = inputs["cache_seqlens"].long(), inputs["cu_seqlens"].diff().long()
    sequence = torch.repeat_interleave(counts)
    first = inputs["cu_seqlens"][:-1].long()
    positions = torch.arange(len(sequence), device=cache_seqlens.device) - first[sequence] + cache_seqlens[sequence]
    return _rows(inputs, sequence, positions, cache_seqlens + counts)


def _rows(inputs: Inputs, sequence: Tensor, positions: Tensor, lengths: Tensor) -> Rows:
    page_size = inputs["k_cache"].shape[1]
    slots = inputs["block_table"].long()[sequence, positions // page_size], positions % page_size
    heads = query_heads(inputs["qkvg"], inputs["qk_temperature"], inputs["k_cache"])
    return Rows(sequence, positions, slots, lengths.tolist(), heads)


def unpaged(cache: Tensor, block_table: Tensor, positions: int) -> Tensor:
    """A copy of each sequence's first positions side by side, [B, positions, HKV, DH]; zeros where pages end."""
    pages = block_table[:, : -(-positions // cache.shape[1])].long()
    contiguous = cache[pages].flatten(1, 2)[:, :positions]
    missing = contiguous.new_zeros(len(contiguous), positions - contiguous.shape[1], *contiguous.shape[2:])
    return torch.cat([contiguous, missing], 1)


def begin(inputs: Inputs, rows: Rows, twin: Twin | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """q [T, HQ, DH], k and v [T, HKV, DH], gate [T, HQ] or None; k and v are in the cache, and in the twin."""
    run = fused(_begin, inputs["qkvg"].device.type)
    caches = inputs["k_cache"], inputs["v_cache"], rows.slots
    first = (inputs[name] for name in ("qkvg", "qk_temperature", "cos_sin_cache"))
    return run(*first, rows.positions, *caches, *(twin or (None, None, None)))


def _begin(
    qkvg: Tensor,
    qk_temperature: Tensor | None,
    cos_sin_cache: Tensor | None,
    positions: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slots: Index,
    keys: Tensor | None,
    values: Tensor | None,
    at: Index | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    q, k, v, gate = torch_ops.entering(qkvg, qk_temperature, cos_sin_cache, positions, k_cache)
    k_cache[slots], v_cache[slots] = k, v
    if keys is not None and values is not None:
        keys[at], values[at] = k, v
    return q, k, v, gate


def end(y: Tensor, gate: Tensor | None) -> Tensor:
    """`torch_ops.gated`, in one launch."""
    return fused(torch_ops.gated, y.device.type)(y, gate)
