"""FlashInfer's place beside the kernels: plans, pages and layouts, with a stand-in of its documented signatures."""

import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from zonos2_triton.bench.baselines.providers import ALL
from zonos2_triton.bench.catalogue import KERNELS
from zonos2_triton.bench.proof.verify import Case

MINE = next(one for one in ALL if one.name == "flashinfer")
DTYPES = [torch.bfloat16, torch.float16]


def cases(real):
    return [
        pytest.param(KERNELS[name], workload, id=f"{name}-{workload.name}")
        for name in MINE.prepares
        for workload in KERNELS[name].workloads
        if workload.real == real and workload.name != "one-head"
    ]


class Wrapper:
    """What both wrappers of version 0.7 share: pages as indptr, indices and last_page_len, planned on the host."""

    def __init__(self, workspace, kv_layout):
        assert kv_layout == "NHD"
        assert workspace.dtype == torch.uint8
        assert workspace.numel() == 128 << 20
        self.workspace = workspace

    def keep(self, qo_indptr, indptr, indices, last_page_len, heads, kv_heads, head_dim, page_size, dtypes, sm_scale):
        assert {t.dtype for t in (qo_indptr, indptr, indices, last_page_len)} == {torch.int32}
        assert len(indices) == indptr[-1]
        assert 1 <= int(last_page_len.min()) <= int(last_page_len.max()) <= page_size
        self.queries, self.indptr, self.last = qo_indptr.tolist(), indptr.tolist(), last_page_len.tolist()
        self.indices, self.scale, self.dtypes = indices.clone(), sm_scale, dtypes
        self.kind = (heads, kv_heads, head_dim, page_size)

    def run(self, q, paged_kv_cache):
        k_cache, v_cache = paged_kv_cache
        heads, kv_heads, head_dim, page_size = self.kind
        assert q.shape == (self.queries[-1], heads, head_dim)
        assert k_cache.shape[1:] == (page_size, kv_heads, head_dim)
        assert self.dtypes == (q.dtype, k_cache.dtype)
        out = []
        for b, last in enumerate(self.last):
            pages = self.indices[self.indptr[b] : self.indptr[b + 1]].long()
            length = (len(pages) - 1) * page_size + last
            k, v = (cache[pages].flatten(0, 1)[:length].repeat_interleave(heads // kv_heads, 1).transpose(0, 1)
                    for cache in (k_cache, v_cache))  # fmt: skip
            rows = q[self.queries[b] : self.queries[b + 1]].transpose(0, 1)
            seen = torch.ones(rows.shape[1], length, dtype=torch.bool).tril(length - rows.shape[1])
            y = F.scaled_dot_product_attention(rows, k, v, attn_mask=seen, scale=self.scale)
            out.append(y.transpose(0, 1))
        return torch.cat(out)


class Decode(Wrapper):
    """flashinfer.BatchDecodeWithPagedKVCacheWrapper."""

    def __init__(
        self, float_workspace_buffer, kv_layout="NHD", use_cuda_graph=False, use_tensor_cores=False,
        paged_kv_indptr_buffer=None, paged_kv_indices_buffer=None, paged_kv_last_page_len_buffer=None, backend="auto",
        jit_args=None,
    ):  # fmt: skip
        super().__init__(float_workspace_buffer, kv_layout)
        assert use_cuda_graph
        self.buffers = paged_kv_indptr_buffer, paged_kv_indices_buffer, paged_kv_last_page_len_buffer
        self.tensor_cores = use_tensor_cores

    def plan(
        self, indptr, indices, last_page_len, num_qo_heads, num_kv_heads, head_dim, page_size, *,
        pos_encoding_mode="NONE", window_left=-1, logits_soft_cap=None, q_data_type="float16", kv_data_type=None,
        o_data_type=None, data_type=None, sm_scale=None, rope_scale=None, rope_theta=None, non_blocking=True,
        block_tables=None, seq_lens=None,
    ):  # fmt: skip
        for buffer, value in zip(self.buffers, (indptr, indices, last_page_len), strict=True):
            assert len(buffer) >= len(value)
            buffer[: len(value)].copy_(value)
        assert self.tensor_cores == (num_qo_heads // num_kv_heads >= 4)
        each = torch.arange(len(indptr), dtype=torch.int32)
        kinds = q_data_type, kv_data_type
        self.keep(
            each, *self.buffers, num_qo_heads, num_kv_heads, head_dim, page_size, kinds, sm_scale
        )  # fmt: skip


class Prefill(Wrapper):
    """flashinfer.BatchPrefillWithPagedKVCacheWrapper."""

    def __init__(self, float_workspace_buffer, kv_layout="NHD", use_cuda_graph=False, qo_indptr_buf=None):
        super().__init__(float_workspace_buffer, kv_layout)

    def plan(
        self, qo_indptr, paged_kv_indptr, paged_kv_indices, paged_kv_last_page_len, num_qo_heads, num_kv_heads,
        head_dim_qk, page_size, head_dim_vo=None, custom_mask=None, packed_custom_mask=None, causal=False,
        pos_encoding_mode="NONE", use_fp16_qk_reduction=False, sm_scale=None, window_left=-1, logits_soft_cap=None,
        rope_scale=None, rope_theta=None, q_data_type="float16", kv_data_type=None,
    ):  # fmt: skip
        assert causal
        pages = paged_kv_indptr, paged_kv_indices, paged_kv_last_page_len
        kinds = q_data_type, kv_data_type
        self.keep(qo_indptr, *pages, num_qo_heads, num_kv_heads, head_dim_qk, page_size, kinds, sm_scale)


def rmsnorm(input, weight, eps=1e-6, out=None, enable_pdl=None):
    wide = input.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight.float()).to(input.dtype)


def fused_add_rmsnorm(input, residual, weight, eps=1e-6, enable_pdl=None):
    total = input.float() + residual.float()
    residual.copy_(total)
    input.copy_(rmsnorm(total, weight, eps))


def apply_rope_with_cos_sin_cache_inplace(positions, query, key, head_size, cos_sin_cache, is_neox=True):
    assert cos_sin_cache.dtype == torch.float32
    assert cos_sin_cache.shape[1] == head_size
    assert not is_neox
    for rows in (query, key):
        rows = rows.view(len(rows), -1, head_size)
        cos, sin = cos_sin_cache[positions.long()].chunk(2, 1)
        even, odd = rows[..., 0::2].float(), rows[..., 1::2].float()
        rows[..., 0::2] = even * cos[:, None] - odd * sin[:, None]
        rows[..., 1::2] = even * sin[:, None] + odd * cos[:, None]


@pytest.fixture
def package(monkeypatch):
    stand_in = SimpleNamespace(
        BatchDecodeWithPagedKVCacheWrapper=Decode, BatchPrefillWithPagedKVCacheWrapper=Prefill, rmsnorm=rmsnorm,
        fused_add_rmsnorm=fused_add_rmsnorm,
        apply_rope_with_cos_sin_cache_inplace=apply_rope_with_cos_sin_cache_inplace,
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "flashinfer", stand_in)


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("kernel", "workload"), cases(real=False))
def test_matches_the_reference(kernel, workload, dtype):
    MINE.verify(Case(kernel, workload, "cpu", dtype))


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize("name", ["add_rms_norm", "rotary"])
def test_what_works_in_place_leaves_the_inputs_alone(name):
    kernel = KERNELS[name]
    inputs = kernel.make("cpu", torch.bfloat16, **kernel.workloads[0].sizes)
    before = {key: value.clone() for key, value in inputs.items() if isinstance(value, torch.Tensor)}
    call = MINE.prepare(kernel, inputs)
    call(), call()
    assert all(torch.equal(inputs[key], value) for key, value in before.items())


def test_a_workload_that_it_cannot_express():
    rotary, decode = KERNELS["rotary"], KERNELS["decode_attention"]
    why = {w.name: MINE.fits(rotary, w) for w in rotary.workloads if w.real or w.name == "one-head"}
    assert why.pop("one-head") == "flashinfer turns queries and keys together: two heads at least"
    assert set(why.values()) == {None}
    assert {MINE.fits(decode, w) for w in decode.workloads if w.real} == {None}
    assert MINE.fits(decode, decode.workloads[-1]) == "flashinfer has heads of 64, 128, 256, not of 16"


@pytest.mark.gpu
@pytest.mark.needs("flashinfer")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("kernel", "workload"), cases(real=True))
def test_the_package_itself(kernel, workload, dtype):
    MINE.verify(Case(kernel, workload, "cuda", dtype))
