"""Attention of the official engine: a backend for its registry, on its own cache of one position a page.

The engine asks its backend for the metadata of a batch once, and every layer for its attention. With this backend's
metadata at hand, a layer whose attention was replaced as a whole needs no more: `Metadata.attend`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from zonos2_triton.model.backend import resolve_backend
from zonos2_triton.model.ops import MAX_BATCH_SIZE
from zonos2_triton.model.runtime.batch_state import int32
from zonos2_triton.reference.ops import REFERENCE, Ops

BACKEND = "zonos2_triton"  # its name in the registry
IDLE = -1  # where a row stands that only fills up a graph's batch


@dataclass(frozen=True)
class Metadata:
    """Where the rows of a batch stand, and where the cache holds what came before them."""

    kvcache: Any  # k_cache(layer), v_cache(layer): [pages, 1, HKV, DH]
    positions: Tensor  # [T] int32, of every row: what the engine's own rotary embedding reads
    block_table: Tensor  # [B, W] int32: the page of each position
    cache_seqlens: Tensor  # [B] int32: positions of each sequence that the cache holds already, or IDLE
    cu_seqlens: Tensor  # [B + 1] int32: where each sequence's rows begin
    max_seqlen_q: int = 1  # rows of the sequence with most
    decoding: bool = False  # one row each, of no more sequences than decode together

    def attend(
        self, ops: Ops, rows: Tensor, qk_temperature: Tensor | None, cos_sin_cache: Tensor | None, layer: int
    ) -> Tensor:
        """The attention of one layer, [T, HQ * DH]; arguments as `reference.attention` takes them."""
        places = self.kvcache.k_cache(layer), self.kvcache.v_cache(layer), self.block_table, self.cache_seqlens
        if self.decoding:
            return ops.decode_attention(rows, qk_temperature, cos_sin_cache, *places)
        return ops.prefill_attention(rows, qk_temperature, cos_sin_cache, *places, self.cu_seqlens, self.max_seqlen_q)

    def get_last_indices(self, bs: int) -> Tensor:
        """The last row of each of the first sequences."""
        return self.cu_seqlens[1 : 1 + bs] - 1


@dataclass(frozen=True)
class Captured:
    """What a CUDA graph reads of a batch: always the same memory."""

    metadata: Metadata
    input_ids: Tensor  # [most, C + 1] int32
    out_loc: Tensor  # [most] int32

    def first(self, batch: Any, size: int) -> None:
        """The first rows, as the batch's own."""
        whole = self.metadata
        batch.attn_metadata = replace(
            whole,
            positions=whole.positions[:size],
            block_table=whole.block_table[:size],
            cache_seqlens=whole.cache_seqlens[:size],
            cu_seqlens=whole.cu_seqlens[: size + 1],
        )
        batch.input_ids, batch.out_loc = self.input_ids[:size], self.out_loc[:size]


class Backend:
    """Calls of the engine's `BaseAttnBackend`."""

    def __init__(self, ops: Ops, kvcache: Any, page_table: Tensor) -> None:
        """page_table [requests, positions] int32: where the cache holds each position of each request."""
        self.ops, self.kvcache, self.page_table = ops, kvcache, page_table
        self.captured: Captured | None = None
        self.sizes: list[int] = []  # of batches that were captured

    def forward(self, q: Tensor, k: Tensor, v: Tensor, layer_id: int, batch: Any) -> Tensor:
        """q [T, HQ, DH], k and v [T, HKV * DH], normed and turned already -> [T, HQ, DH]; the cache grows."""
        rows = torch.cat([q.flatten(1), k.flatten(1), v.flatten(1)], 1)
        return batch.attn_metadata.attend(self.ops, rows, None, None, layer_id).view(q.shape)

    def prepare_metadata(self, batch: Any) -> None:
        """batch.attn_metadata, of what the host knows; nothing waits for the device."""
        reqs, padding = batch.padded_reqs, batch.padded_size - batch.size
        cache_seqlens, lengths = [req.cached_len for req in reqs], [req.extend_len for req in reqs]
        cuts = [0]
        for length in lengths:
            cuts.append(cuts[-1] + length)
        positions = [
            at for start, length in zip(cache_seqlens, lengths, strict=True) for at in range(start, start + length)
        ]
        decoding = batch.is_decode and len(reqs) <= MAX_BATCH_SIZE
        if decoding:
            cache_seqlens[batch.size :] = [IDLE] * padding
        parts = cache_seqlens, cuts, positions, [req.table_idx for req in reqs]
        numbers = int32([n for part in parts for n in part], self.page_table.device)  # in one copy
        first, cu_seqlens, stands, rows = numbers.split([len(part) for part in parts])
        width = max(req.device_len for req in reqs)
        batch.attn_metadata = Metadata(
            self.kvcache,
            positions=stands,
            block_table=self.page_table[:, :width][rows.long()],
            cache_seqlens=first,
            cu_seqlens=cu_seqlens,
            max_seqlen_q=max(lengths),
            decoding=decoding,
        )

    def init_capture_graph(self, max_seq_len: int, bs_list: Sequence[int], frame_width: int = 1) -> None:
        """Memory for graphs of up to so many rows. RuntimeError: there is some already."""
        if self.captured is not None:
            raise RuntimeError(f"attention backend {BACKEND}: init_capture_graph was called before")
        most, device = max(bs_list), self.page_table.device
        if most > MAX_BATCH_SIZE:
            raise ValueError(
                f"attention backend {BACKEND}: graphs hold at most {MAX_BATCH_SIZE} requests, got {most}: "
                f"--cuda-graph-max-bs {MAX_BATCH_SIZE}"
            )

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.int32, device=device)

        cuts = torch.arange(most + 1, dtype=torch.int32, device=device)
        metadata = Metadata(
            self.kvcache, zeros(most), zeros(most, max_seq_len), zeros(most), cuts, max_seqlen_q=1, decoding=True
        )
        ids = zeros(most, frame_width) if frame_width > 1 else zeros(most)
        self.captured, self.sizes = Captured(metadata, ids, zeros(most)), sorted(bs_list)

    def prepare_for_capture(self, batch: Any) -> None:
        """The batch becomes the first rows of the graphs' memory."""
        self._of_size(batch.size).first(batch, batch.size)

    def prepare_for_replay(self, batch: Any) -> None:
        """What the batch holds is copied to the graphs' memory, and the batch becomes its first rows."""
        size, mine = batch.padded_size, batch.attn_metadata
        captured = self._of_size(size)
        target = captured.metadata
        captured.input_ids[:size].copy_(batch.input_ids)
        captured.out_loc[:size].copy_(batch.out_loc)
        target.positions[:size].copy_(mine.positions)
        target.cache_seqlens[:size].copy_(mine.cache_seqlens)
        target.block_table[:size, : mine.block_table.shape[1]].copy_(mine.block_table)
        captured.first(batch, size)

    def _of_size(self, size: int) -> Captured:
        if self.captured is None or size not in self.sizes:
            raise RuntimeError(f"attention backend {BACKEND}: no graph of {size} requests, only of {self.sizes}")
        return self.captured


def creator(backend: str) -> Callable[[Any, Any, Tensor], Backend]:
    """What the engine's registry holds: (config, kvcache, page_table) -> its backend.

    backend: "triton", "reference" or "auto". ValueError: a cache that the kernels cannot read, or sizes that they do
    not take.
    """

    def create(config: Any, kvcache: Any, page_table: Tensor) -> Backend:
        k_cache = kvcache.k_cache(0)
        if k_cache.ndim != 4 or not k_cache.is_contiguous():
            raise ValueError(
                f"attention backend {BACKEND}: the cache of a layer must be [pages, page_size, heads, head_dim] and "
                f"contiguous, got {list(k_cache.shape)} with strides {k_cache.stride()}"
            )
        ops = attention_ops(resolve_backend(backend, k_cache.device, k_cache.dtype), k_cache)
        base = import_module("zonos2.attention").BaseAttnBackend
        return type("Zonos2TritonBackend", (Backend, base), {})(ops, kvcache, page_table)

    return create


def attention_ops(backend: str, k_cache: Tensor) -> Ops:
    """A table whose attention is of "triton" or "reference", for caches like this one [pages, page_size, HKV, DH]."""
    if backend == "reference":
        return REFERENCE
    from zonos2_triton.kernels.decode_attention import decode_attention
    from zonos2_triton.kernels.prefill_attention import prefill_attention
    from zonos2_triton.kernels.rotary import check_head_dim

    check_head_dim(f"attention backend {BACKEND}", k_cache.shape[3])
    counters = torch.zeros(MAX_BATCH_SIZE * k_cache.shape[2], dtype=torch.int32, device=k_cache.device)
    decode = partial(decode_attention, counters=counters)
    return replace(REFERENCE, decode_attention=decode, prefill_attention=prefill_attention)
