"""Stand-ins of flash-attn 2.8, FlashInfer 0.7 and Liger, in plain PyTorch: of their signatures what is used here.

Each asserts what the package asks of its arguments.
"""

import sys
from collections import Counter
from itertools import pairwise
from types import ModuleType, SimpleNamespace

import torch
import torch.nn.functional as F


def attend(q, k, v, scale):
    """[T, HQ, DH] and [S, HKV, DH]: of S keys, T queries are the last."""
    T, S, group = len(q), len(k), q.shape[1] // k.shape[1]
    seen = torch.ones(T, S, dtype=torch.bool).tril(S - T)
    k, v = (part.repeat_interleave(group, 1).transpose(0, 1) for part in (k, v))
    return F.scaled_dot_product_attention(q.transpose(0, 1), k, v, attn_mask=seen, scale=scale).transpose(0, 1)


def read(caches, pages, length):
    return (cache[pages.long()].flatten(0, 1)[:length] for cache in caches)


# flash-attn.


def flash_attn_varlen_func(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, *, softmax_scale, causal, block_table=None
):  # fmt: skip
    """Sequence by sequence."""
    assert causal
    assert max_seqlen_q >= int(cu_seqlens_q.diff().max())
    assert max_seqlen_k >= int(cu_seqlens_k.diff().max())
    assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
    out, queries, keys = [], cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
    for b, (first, end) in enumerate(pairwise(queries)):
        if block_table is None:
            k_of, v_of = k[keys[b] : keys[b + 1]], v[keys[b] : keys[b + 1]]
        else:
            assert k.shape[1] % 256 == 0
            k_of, v_of = read((k, v), block_table[b], keys[b + 1] - keys[b])
        out.append(attend(q[first:end], k_of, v_of, softmax_scale))
    return torch.cat(out)


def flash_attn_with_kvcache(q, k_cache, v_cache, *, k, v, cache_seqlens, block_table, softmax_scale, causal):
    """New rows go behind cache_seqlens, then all are read."""
    assert causal
    assert k_cache.shape[1] % 256 == 0
    assert cache_seqlens.dtype == block_table.dtype == torch.int32
    out = []
    for b, length in enumerate(cache_seqlens.tolist()):
        page, slot = block_table[b, length // k_cache.shape[1]], length % k_cache.shape[1]
        k_cache[page, slot], v_cache[page, slot] = k[b, 0], v[b, 0]
        out.append(attend(q[b], *read((k_cache, v_cache), block_table[b], length + 1), softmax_scale))
    return torch.stack(out)


# FlashInfer.


class Wrapper:
    """What both wrappers share: pages as indptr, indices and last_page_len, planned on the host."""

    def __init__(self, float_workspace_buffer, kv_layout="NHD"):
        assert kv_layout == "NHD"
        assert float_workspace_buffer.dtype == torch.uint8
        assert float_workspace_buffer.numel() == 128 << 20

    def keep(self, qo_indptr, indptr, indices, last_page_len, heads, kv_heads, head_dim, page_size, dtypes, sm_scale):
        assert {t.dtype for t in (qo_indptr, indptr, indices, last_page_len)} == {torch.int32}
        assert len(indices) == indptr[-1]
        assert 1 <= int(last_page_len.min()) <= int(last_page_len.max()) <= page_size
        self.queries, self.pages, self.last = qo_indptr.tolist(), indptr.tolist(), last_page_len.tolist()
        self.indices, self.scale, self.dtypes = indices.clone(), sm_scale, dtypes
        self.kind = (heads, kv_heads, head_dim, page_size)

    def run(self, q, paged_kv_cache):
        heads, kv_heads, head_dim, page_size = self.kind
        assert q.shape == (self.queries[-1], heads, head_dim)
        assert paged_kv_cache[0].shape[1:] == (page_size, kv_heads, head_dim)
        assert self.dtypes == (q.dtype, paged_kv_cache[0].dtype)
        out = []
        for b, last in enumerate(self.last):
            pages = self.indices[self.pages[b] : self.pages[b + 1]]
            keys, values = read(paged_kv_cache, pages, (len(pages) - 1) * page_size + last)
            out.append(attend(q[self.queries[b] : self.queries[b + 1]], keys, values, self.scale))
        return torch.cat(out)


class BatchDecodeWithPagedKVCacheWrapper(Wrapper):
    def __init__(
        self, float_workspace_buffer, kv_layout, *, use_cuda_graph, use_tensor_cores, paged_kv_indptr_buffer,
        paged_kv_indices_buffer, paged_kv_last_page_len_buffer,
    ):  # fmt: skip
        super().__init__(float_workspace_buffer, kv_layout)
        assert use_cuda_graph
        self.buffers = paged_kv_indptr_buffer, paged_kv_indices_buffer, paged_kv_last_page_len_buffer
        self.tensor_cores = use_tensor_cores

    def plan(
        self, indptr, indices, last_page_len, num_qo_heads, num_kv_heads, head_dim, page_size, *, q_data_type,
        kv_data_type, sm_scale,
    ):  # fmt: skip
        for buffer, value in zip(self.buffers, (indptr, indices, last_page_len), strict=True):
            assert len(buffer) >= len(value)
            buffer[: len(value)].copy_(value)
        assert self.tensor_cores == (num_qo_heads // num_kv_heads >= 4)
        each, sizes = torch.arange(len(indptr), dtype=torch.int32), (num_qo_heads, num_kv_heads, head_dim, page_size)
        self.keep(each, *self.buffers, *sizes, (q_data_type, kv_data_type), sm_scale)


class BatchPrefillWithPagedKVCacheWrapper(Wrapper):
    def plan(
        self, qo_indptr, paged_kv_indptr, paged_kv_indices, paged_kv_last_page_len, num_qo_heads, num_kv_heads,
        head_dim_qk, page_size, *, causal, q_data_type, kv_data_type, sm_scale,
    ):  # fmt: skip
        assert causal
        pages, sizes = (paged_kv_indptr, paged_kv_indices, paged_kv_last_page_len), (head_dim_qk, page_size)
        self.keep(qo_indptr, *pages, num_qo_heads, num_kv_heads, *sizes, (q_data_type, kv_data_type), sm_scale)


def rmsnorm(input, weight, eps=1e-6):
    wide = input.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight.float()).to(input.dtype)


def fused_add_rmsnorm(input, residual, weight, eps=1e-6):
    total = input.float() + residual.float()
    residual.copy_(total)
    input.copy_(rmsnorm(total, weight, eps))


def apply_rope_with_cos_sin_cache_inplace(positions, query, key, head_size, cos_sin_cache, is_neox=True):
    assert cos_sin_cache.dtype == torch.float32
    assert cos_sin_cache.shape[1] == head_size
    assert not is_neox
    angles = torch.complex(*cos_sin_cache[positions.long()].chunk(2, 1))
    for rows in (query, key):
        turn(rows.view(len(rows), -1, head_size), angles)


def turn(rows, angles):
    """In place: rows [..., M, H, DH] of neighbouring pairs by angles [M, DH / 2]."""
    pairs = torch.view_as_complex(rows.float().unflatten(-1, (-1, 2)))
    rows.copy_(torch.view_as_real(pairs * angles[:, None]).flatten(-2))


# Liger.


class LigerRMSNormFunction:
    @staticmethod
    def apply(X, W, eps, offset=0.0, casting_mode="llama", in_place=True):
        assert casting_mode == "gemma"  # all in fp32, rounded once
        assert offset == 0.0
        return rmsnorm(X, W, eps)


class LigerFusedAddRMSNormFunction:
    @staticmethod
    def apply(X, R, W, eps, offset=0.0, casting_mode="llama", in_place=False):
        total = X + R  # rounded before the norm
        return LigerRMSNormFunction.apply(total, W, eps, offset, casting_mode), total


class LigerSiLUMulFunction:
    @staticmethod
    def apply(a, b):
        return F.silu(a.float()).to(b.dtype) * b


class LigerLlama4RopeFunction:
    @staticmethod
    def apply(q, k, freqs_cis):
        """In place where q and k are contiguous: q [B, T, H, DH], freqs_cis [T, DH / 2, 2], of neighbouring pairs."""
        assert q.is_contiguous()
        assert k.is_contiguous()
        assert k.shape[2] >= 1
        assert freqs_cis.shape == (q.shape[1], q.shape[3] // 2, 2)
        for rows in (q, k):
            turn(rows, torch.view_as_complex(freqs_cis))
        return q, k


LIGER = {
    "rms_norm": LigerRMSNormFunction,
    "fused_add_rms_norm": LigerFusedAddRMSNormFunction,
    "swiglu": LigerSiLUMulFunction,
    "llama4_rope": LigerLlama4RopeFunction,
}
FLASH_INFER = (
    BatchDecodeWithPagedKVCacheWrapper, BatchPrefillWithPagedKVCacheWrapper, rmsnorm, fused_add_rmsnorm,
    apply_rope_with_cos_sin_cache_inplace,
)  # fmt: skip


def install(monkeypatch):
    """All three in their packages' places. Returned is how often each function of flash-attn was called."""
    calls = Counter()

    def counted(function):
        return lambda *args, **kwargs: calls.update([function.__name__]) or function(*args, **kwargs)

    functions = (flash_attn_varlen_func, flash_attn_with_kvcache)
    flash_attn = SimpleNamespace(**{function.__name__: counted(function) for function in functions})
    monkeypatch.setitem(sys.modules, "flash_attn", flash_attn)
    monkeypatch.setitem(sys.modules, "flashinfer", SimpleNamespace(**{part.__name__: part for part in FLASH_INFER}))
    for name in ("liger_kernel", "liger_kernel.ops"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    for stem, function in LIGER.items():
        module = SimpleNamespace(**{function.__name__: function})
        monkeypatch.setitem(sys.modules, f"liger_kernel.ops.{stem}", module)
    return calls
