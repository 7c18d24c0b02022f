"""An attention backend for the official engine's registry, on the engine's own cache of one position per page.

The engine calls its backend once per batch for the metadata, and once per layer for attention. A layer that is patched
as a whole calls `Metadata.attend` instead.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from itertools import accumulate, chain
from typing import Any

import torch
from torch import Tensor

from zonos2_triton.model.backend import resolve_backend
from zonos2_triton.model.ops import MAX_BATCH_SIZE, kernel
from zonos2_triton.model.runtime.batch_state import int32
from zonos2_triton.reference.ops import REFERENCE, Ops

BACKEND = "zonos2_triton"  # its name in the registry
IDLE = -1  # cache length of a request that only pads a graph's batch


@dataclass(frozen=True)
class Metadata:
    """Positions of the tokens of a batch, and the cache pages of its requests."""

    kvcache: Any  # k_cache(layer), v_cache(layer): [pages, 1, HKV, DH]
    positions: Tensor  # [T] int32: position of each token, which the engine's rotary embedding reads
    block_table: Tensor  # [B, W] int32: the page of each position
    cache_seqlens: Tensor  # [B] int32: cached positions of each request, or IDLE
    cu_seqlens: Tensor  # [B + 1] int32: first token of each request
    max_seqlen_q: int = 1  # most tokens of a request
    decoding: bool = False  # one token per request, at most MAX_BATCH_SIZE requests

    def attend(
        self, ops: Ops, qkvg: Tensor, qk_temperature: Tensor | None, cos_sin_cache: Tensor | None, layer: int
    ) -> Tensor:
        """The attention of one layer [T, HQ * DH]; arguments as in `reference.attention`."""
        pages = self.kvcache.k_cache(layer), self.kvcache.v_cache(layer), self.block_table, self.cache_seqlens
        if self.decoding:
            return ops.decode_attention(qkvg, qk_temperature, cos_sin_cache, *pages)
        return ops.prefill_attention(qkvg, qk_temperature, cos_sin_cache, *pages, self.cu_seqlens, self.max_seqlen_q)

    def get_last_indices(self, bs: int) -> Tensor:
        """The last token of each of the first `bs` requests."""
        return self.cu_seqlens[1 : 1 + bs] - 1


@dataclass(frozen=True)
class Captured:
    """The tensors of a batch that CUDA graphs read, in fixed memory."""

    metadata: Metadata
    input_ids: Tensor  # [largest, C + 1] int32
    out_loc: Tensor  # [largest] int32

    def assign(self, batch: Any, size: int) -> None:
        """Give a batch the first `size` requests of this memory."""
        whole = self.metadata
        first = {name: getattr(whole, name)[:size] for name in ("positions", "block_table", "cache_seqlens")}
        batch.attn_metadata = replace(whole, **first, cu_seqlens=whole.cu_seqlens[: size + 1])
        batch.input_ids, batch.out_loc = self.input_ids[:size], self.out_loc[:size]


class Backend:
    """The methods of the engine's `BaseAttnBackend`."""

    def __init__(self, ops: Ops, kvcache: Any, page_table: Tensor) -> None:
        """page_table [requests, positions] int32: the cache page of each position of each request."""
        self.ops, self.kvcache, self.page_table = ops, kvcache, page_table
        self.captured: Captured | None = None
        self.sizes: list[int] = []  # of the captured batches

    def forward(self, q: Tensor, k: Tensor, v: Tensor, layer_id: int, batch: Any) -> Tensor:
        """q [T, HQ, DH], k and v [T, HKV * DH], after norm and rotary -> [T, HQ, DH]; appends k and v to the cache."""
        qkv = torch.cat([q.flatten(1), k.flatten(1), v.flatten(1)], 1)
        return batch.attn_metadata.attend(self.ops, qkv, None, None, layer_id).view(q.shape)

    def prepare_metadata(self, batch: Any) -> None:
        """Set batch.attn_metadata from CPU data, without a wait for the device."""
        reqs, padding = batch.padded_reqs, batch.padded_size - batch.size
        cache_seqlens, lengths = [req.cached_len for req in reqs], [req.extend_len for req in reqs]
        cu_lengths = [0, *accumulate(lengths)]
        ranges = [range(start, start + length) for start, length in zip(cache_seqlens, lengths, strict=True)]
        positions = [*chain(*ranges)]
        decoding = batch.is_decode and len(reqs) <= MAX_BATCH_SIZE
        if decoding:
            cache_seqlens[batch.size :] = [IDLE] * padding
        columns = cache_seqlens, cu_lengths, positions, [req.table_idx for req in reqs]
        packed = int32([*chain(*columns)], self.page_table.device)  # one copy
        seqlens, cu_seqlens, token_positions, slots = packed.split([len(column) for column in columns])
        pages = self.page_table[:, : max(req.device_len for req in reqs)][slots.long()]
        ragged = seqlens, cu_seqlens, max(lengths)
        batch.attn_metadata = Metadata(self.kvcache, token_positions, pages, *ragged, decoding)

    def init_capture_graph(self, max_seq_len: int, bs_list: Sequence[int], frame_width: int = 1) -> None:
        """Allocate memory for graphs of up to max(bs_list) requests. RuntimeError: it was called before."""
        if self.captured is not None:
            raise RuntimeError(f"attention backend {BACKEND}: init_capture_graph was called before")
        largest, device = max(bs_list), self.page_table.device
        if largest > MAX_BATCH_SIZE:
            raise ValueError(
                f"attention backend {BACKEND}: graphs hold at most {MAX_BATCH_SIZE} requests, got {largest}: "
                f"--cuda-graph-max-bs {MAX_BATCH_SIZE}"
            )

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.int32, device=device)

        cu_seqlens = torch.arange(largest + 1, dtype=torch.int32, device=device)
        positions, pages, seqlens = zeros(largest), zeros(largest, max_seq_len), zeros(largest)
        metadata = Metadata(self.kvcache, positions, pages, seqlens, cu_seqlens, decoding=True)
        ids = zeros(largest, frame_width) if frame_width > 1 else zeros(largest)
        self.captured, self.sizes = Captured(metadata, ids, zeros(largest)), sorted(bs_list)

    def prepare_for_capture(self, batch: Any) -> None:
        """The batch gets the first requests of the graphs' memory."""
        self._of_size(batch.size).assign(batch, batch.size)

    def prepare_for_replay(self, batch: Any) -> None:
        """Copy the batch to the graphs' memory, and give it the first requests of that."""
        size, metadata = batch.padded_size, batch.attn_metadata
        captured = self._of_size(size)
        target = captured.metadata
        captured.input_ids[:size].copy_(batch.input_ids)
        captured.out_loc[:size].copy_(batch.out_loc)
        target.positions[:size].copy_(metadata.positions)
        target.cache_seqlens[:size].copy_(metadata.cache_seqlens)
        target.block_table[:size, : metadata.block_table.shape[1]].copy_(metadata.block_table)
        captured.assign(batch, size)

    def _of_size(self, size: int) -> Captured:
        if self.captured is None or size not in self.sizes:
            raise RuntimeError(f"attention backend {BACKEND}: no graph of {size} requests, only of {self.sizes}")
        return self.captured


def creator(backend: str) -> Callable[[Any, Any, Tensor], Backend]:
    """An entry of the engine's registry: (config, kvcache, page_table) -> attention backend.

    backend: "triton", "reference" or "auto". ValueError: the kernels do not take this cache or its sizes.
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
    """A table with the attention of "triton" or "reference", for caches like k_cache [pages, page_size, HKV, DH]."""
    if backend == "reference":
        return REFERENCE
    from zonos2_triton.kernels.rotary import check_head_dim

    check_head_dim(f"attention backend {BACKEND}", k_cache.shape[3])
    counters = torch.zeros(MAX_BATCH_SIZE * k_cache.shape[2], dtype=torch.int32, device=k_cache.device)
    decode = partial(kernel("decode_attention"), counters=counters)
    return replace(REFERENCE, decode_attention=decode, prefill_attention=kernel("prefill_attention"))
