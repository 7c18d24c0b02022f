"""FlashInfer's kernels for this model: both attentions over pages, the norm, the rotary embedding.

Its wrappers plan a step on the host from lengths and pages; that is done beforehand and not timed. The attentions read
this project's pages without a copy. Its fused norm and the rotary embedding work in place, on a copy that is made
beforehand. The first call gives the kernel's results; later ones do the same work on the results before.
"""

from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from zonos2_triton.bench.baselines import attention_adapter as adapter
from zonos2_triton.bench.baselines.attention_adapter import Call, Inputs

WORKSPACE = 128 << 20  # bytes, as its documentation advises
HEAD_DIMS = (64, 128, 256)
TENSOR_CORES_FROM = 4  # query heads for each of the keys and values: below it, its other decode kernel is quicker


def decode_attention(inputs: Inputs) -> Call:
    """Planned for CUDA graphs: the plan must fit every step, because a graph cannot change the launch."""
    rows, (page_size, kv_heads, head_dim) = adapter.decode_rows(inputs), inputs["k_cache"].shape[1:]
    indptr, indices, last = _pages(inputs, rows.lengths)
    heads, dtype, device = rows.heads, inputs["qkvg"].dtype, inputs["qkvg"].device
    wrapper = _package().BatchDecodeWithPagedKVCacheWrapper(
        _workspace(device), "NHD", use_cuda_graph=True, use_tensor_cores=heads // kv_heads >= TENSOR_CORES_FROM,
        paged_kv_indptr_buffer=torch.empty_like(indptr, device=device),
        paged_kv_indices_buffer=torch.empty_like(indices, device=device),
        paged_kv_last_page_len_buffer=torch.empty_like(last, device=device),
    )  # fmt: skip
    wrapper.plan(
        indptr, indices, last, heads, kv_heads, head_dim, page_size, q_data_type=dtype, kv_data_type=dtype,
        sm_scale=head_dim**-0.5,
    )  # fmt: skip

    def run() -> Tensor:
        q, _, _, gate = adapter.begin(inputs, rows)
        return adapter.end(wrapper.run(q, (inputs["k_cache"], inputs["v_cache"])), gate)

    return run


def prefill_attention(inputs: Inputs) -> Call:
    """Planned for this batch alone, as prompts are."""
    rows, (page_size, kv_heads, head_dim) = adapter.prefill_inputs(inputs), inputs["k_cache"].shape[1:]
    dtype = inputs["qkvg"].dtype
    wrapper = _package().BatchPrefillWithPagedKVCacheWrapper(_workspace(inputs["qkvg"].device), "NHD")
    wrapper.plan(
        inputs["cu_seqlens"], *_pages(inputs, rows.lengths), rows.heads, kv_heads, head_dim, page_size,
        causal=True, sm_scale=head_dim**-0.5, q_data_type=dtype, kv_data_type=dtype,
    )  # fmt: skip

    def run() -> Tensor:
        q, _, _, gate = adapter.begin(inputs, rows)
        return adapter.end(wrapper.run(q, (inputs["k_cache"], inputs["v_cache"])), gate)

    return run


def add_rms_norm(inputs: Inputs) -> Call:
    package, weight, eps = _package(), inputs["weight"], inputs["eps"]
    x, total = inputs["x"].clone(), inputs["residual"]
    if total is None:
        return lambda: (x, package.rmsnorm(x, weight, eps))
    total = total.clone()

    def run() -> tuple[Tensor, Tensor]:
        package.fused_add_rmsnorm(x, total, weight, eps)
        return total, x

    return run


def rotary(inputs: Inputs) -> Call:
    """The last head is taken for the keys, those before it for the queries: it turns both in one launch."""
    package, positions = _package(), inputs["positions"]
    x, cos_sin_cache = inputs["x"].clone(), inputs["cos_sin_cache"].flatten(1)  # [P, DH]: cosines, then sines
    M, heads, head_dim = x.shape
    queries, keys = x.view(M, -1).split([(heads - 1) * head_dim, head_dim], 1)

    def run() -> Tensor:
        package.apply_rope_with_cos_sin_cache_inplace(positions, queries, keys, head_dim, cos_sin_cache, is_neox=False)
        return x

    return run


def _pages(inputs: Inputs, lengths: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """indptr [B + 1], indices and last_page_len [B] of the cache with the new rows; the first and last on the host."""
    page_size = inputs["k_cache"].shape[1]
    counts = [-(-length // page_size) for length in lengths]
    indptr = torch.tensor([0, *counts]).cumsum(0).int()
    indices = torch.cat([pages[:count] for pages, count in zip(inputs["block_table"], counts, strict=True)])
    last = [length - (count - 1) * page_size for length, count in zip(lengths, counts, strict=True)]
    return indptr, indices.int(), torch.tensor(last, dtype=torch.int32)


@cache
def _workspace(device: torch.device) -> Tensor:
    """One for all wrappers, whose calls follow one another; zeros, which it asks for at first use."""
    return torch.zeros(WORKSPACE, dtype=torch.uint8, device=device)


def _package() -> ModuleType:
    import flashinfer

    return flashinfer
