"""Stand-ins of flash-attn 2.8, FlashInfer 0.7 and Liger, in plain PyTorch: of their signatures what is used here.

Each asserts what the package asks of its arguments.
"""

import sys
from itertools import pairwise
from types import SimpleNamespace

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
    """Of both phases: pages as indptr, indices and last_page_len, planned on the host."""

    def __init__(self, workspace, layout, **for_graphs):
        assert (workspace.dtype, workspace.numel(), layout) == (torch.uint8, 128 << 20, "NHD")
        assert not for_graphs or for_graphs.pop("use_cuda_graph")
        self.tensor_cores = for_graphs.pop("use_tensor_cores", None)
        self.room = [len(buffer) for buffer in for_graphs.values()]

    def plan(self, *tables_and_sizes, q_data_type, kv_data_type, sm_scale, causal=True):
        *tables, heads, kv_heads, head_dim, page_size = tables_and_sizes
        assert causal
        assert {table.dtype for table in tables} == {torch.int32}
        if len(tables) == 3:  # one row each
            assert self.room == list(map(len, tables))
            assert self.tensor_cores == (heads // kv_heads >= 4)
            tables = torch.arange(len(tables[0])), *tables
        self.queries, self.pages, self.indices, self.last = (table.tolist() for table in tables)
        assert len(self.indices) == self.pages[-1]
        assert 1 <= min(self.last) <= max(self.last) <= page_size
        self.kind, self.dtypes = (heads, kv_heads, head_dim, page_size), (q_data_type, kv_data_type)
        self.scale = sm_scale

    def run(self, q, caches):
        page_size, kv_heads = caches[0].shape[1:3]
        assert self.kind == (q.shape[1], kv_heads, q.shape[2], page_size)
        assert self.dtypes == (q.dtype, caches[0].dtype)
        out = []
        for (first, end), (page, until), last in zip(
            pairwise(self.queries), pairwise(self.pages), self.last, strict=True
        ):
            keys, values = read(caches, torch.tensor(self.indices[page:until]), (until - page - 1) * page_size + last)
            out.append(attend(q[first:end], keys, values, self.scale))
        return torch.cat(out)


def rmsnorm(input, weight, eps):
    wide = input.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight.float()).to(input.dtype)


def fused_add_rmsnorm(input, residual, weight, eps):
    total = input.float() + residual.float()
    residual.copy_(total)
    input.copy_(rmsnorm(total, weight, eps))


def apply_rope_with_cos_sin_cache_inplace(positions, query, key, head_size, cos_sin_cache, is_neox):
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


def liger_rms_norm(X, W, eps, offset, casting_mode, in_place):
    assert (offset, casting_mode, in_place) == (0.0, "gemma", False)  # all in fp32, rounded once
    return rmsnorm(X, W, eps)


def liger_fused_add_rms_norm(X, R, W, eps, *more):
    return liger_rms_norm(X + R, W, eps, *more), X + R  # rounded before the norm


def liger_rope(q, k, freqs_cis):
    """In place where q and k are contiguous: q [B, T, H, DH], freqs_cis [T, DH / 2, 2], of neighbouring pairs."""
    assert q.is_contiguous()
    assert k.is_contiguous()
    assert k.shape[2] >= 1
    assert freqs_cis.shape == (q.shape[1], q.shape[3] // 2, 2)
    for rows in (q, k):
        turn(rows, torch.view_as_complex(freqs_cis))
    return q, k


LIGER = {
    "rms_norm.LigerRMSNormFunction": liger_rms_norm,
    "fused_add_rms_norm.LigerFusedAddRMSNormFunction": liger_fused_add_rms_norm,
    "swiglu.LigerSiLUMulFunction": lambda a, b: F.silu(a.float()).to(b.dtype) * b,
    "llama4_rope.LigerLlama4RopeFunction": liger_rope,
}
FLASH_INFER = {
    "BatchDecodeWithPagedKVCacheWrapper": Wrapper, "BatchPrefillWithPagedKVCacheWrapper": Wrapper, "rmsnorm": rmsnorm,
    "fused_add_rmsnorm": fused_add_rmsnorm,
    "apply_rope_with_cos_sin_cache_inplace": apply_rope_with_cos_sin_cache_inplace,
}  # fmt: skip


def install(monkeypatch):
    """All three in their packages' places. Returned are the names of flash-attn's functions, as they are called."""
    calls = []

    def logged(function):
        return lambda *args, **kwargs: calls.append(function.__name__) or function(*args, **kwargs)

    functions = (flash_attn_varlen_func, flash_attn_with_kvcache)
    modules = {
        "flash_attn": {function.__name__: logged(function) for function in functions},
        "flashinfer": FLASH_INFER, "liger_kernel": {}, "liger_kernel.ops": {},
    }  # fmt: skip
    for name, function in LIGER.items():
        stem, function_name = name.split(".")
        modules[f"liger_kernel.ops.{stem}"] = {function_name: SimpleNamespace(apply=function)}
    for name, content in modules.items():
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(**content))
    return calls
