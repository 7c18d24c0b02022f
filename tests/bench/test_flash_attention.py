"""The flash-attn baseline: everything around the package against the reference, with a stand-in for the package."""

import dataclasses
import sys
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from zonos2_triton.bench.baselines import flash_attention
from zonos2_triton.bench.baselines.providers import ALL
from zonos2_triton.bench.catalogue import KERNELS
from zonos2_triton.bench.proof.verify import Case
from zonos2_triton.bench.specs.spec import Workload
from zonos2_triton.model import Sampling, build_prompt

MINE = next(one for one in ALL if one.name == "flash-attn")
PREFILL = KERNELS["prefill_attention"]
TINY = next(workload for workload in PREFILL.workloads if not workload.real)
SHAPE = {"HQ": 4, "HKV": 2, "DH": 16, "page_size": 8, "B": 3}
MORE = {  # where the package's pages end, too
    "decode_attention": Workload("pages-of-256", SHAPE | {"context": 300, "contexts": (300, 255, 256)}, real=False),
    "prefill_attention": Workload(
        "pages-of-256", SHAPE | {"T": 40, "context": 300, "rows": (17, 1, 22), "contexts": (300, 255, 240)}, real=False
    ),
}
SMALL = [
    pytest.param(KERNELS[name], workload, id=f"{name}-{workload.name}")
    for name in MINE.prepares
    for workload in (*KERNELS[name].workloads, MORE[name])
    if not workload.real
]
REAL = [
    pytest.param(KERNELS[name], workload, id=f"{name}-{workload.name}")
    for name in MINE.prepares
    for workload in KERNELS[name].workloads
    if workload.real
]
DTYPES = [torch.bfloat16, torch.float16]


def attend(q, k, v, scale):
    """[T, HQ, DH] and [S, HKV, DH]: of S keys, T queries are the last."""
    T, S, group = len(q), len(k), q.shape[1] // k.shape[1]
    seen = torch.ones(T, S, dtype=torch.bool).tril(S - T)
    k, v = (part.repeat_interleave(group, 1).transpose(0, 1) for part in (k, v))
    return F.scaled_dot_product_attention(q.transpose(0, 1), k, v, attn_mask=seen, scale=scale).transpose(0, 1)


def read(cache, pages, length):
    return cache[pages.long()].flatten(0, 1)[:length]


def varlen(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None, causal=False,
    window_size=(-1, -1), softcap=0.0, alibi_slopes=None, deterministic=False, return_attn_probs=False,
    block_table=None,
):  # fmt: skip
    """flash_attn.flash_attn_varlen_func of version 2.8, sequence by sequence."""
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
            k_of, v_of = (read(cache, block_table[b], keys[b + 1] - keys[b]) for cache in (k, v))
        out.append(attend(q[first:end], k_of, v_of, softmax_scale))
    return torch.cat(out)


def with_kvcache(
    q, k_cache, v_cache, k=None, v=None, rotary_cos=None, rotary_sin=None, cache_seqlens=None, cache_batch_idx=None,
    cache_leftpad=None, block_table=None, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0,
    rotary_interleaved=True, alibi_slopes=None, num_splits=0, return_softmax_lse=False,
):  # fmt: skip
    """flash_attn.flash_attn_with_kvcache of version 2.8: new rows go behind cache_seqlens, then all are read."""
    assert causal
    assert k_cache.shape[1] % 256 == 0
    assert cache_seqlens.dtype == block_table.dtype == torch.int32
    out = []
    for b, length in enumerate(cache_seqlens.tolist()):
        page, slot = block_table[b, length // k_cache.shape[1]], length % k_cache.shape[1]
        k_cache[page, slot], v_cache[page, slot] = k[b, 0], v[b, 0]
        keys, values = (read(cache, block_table[b], length + 1) for cache in (k_cache, v_cache))
        out.append(attend(q[b], keys, values, softmax_scale))
    return torch.stack(out)


@pytest.fixture
def package(monkeypatch):
    """What was called."""
    calls = []

    def counted(function):
        def call(*args, **kwargs):
            calls.append(function.__name__)
            return function(*args, **kwargs)

        return call

    stand_in = SimpleNamespace(flash_attn_varlen_func=counted(varlen), flash_attn_with_kvcache=counted(with_kvcache))
    monkeypatch.setitem(sys.modules, "flash_attn", stand_in)
    return calls


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("kernel", "workload"), SMALL)
def test_matches_the_reference(kernel, workload, dtype, package):
    """Results and caches; a decode step goes through the package's own cache, prompts through its packed form."""
    MINE.verify(Case(kernel, workload, "cpu", dtype))

    wanted = "with_kvcache" if kernel.name == "decode_attention" else "varlen"
    assert package == [wanted]


def test_a_model_generates_with_it(tts, package):
    """In a table of operations beside others: prompts of different lengths at once."""
    backbone = type(tts.backbone)(
        tts.backbone.config, {name: t.half() for name, t in tts.backbone.weights.items()}, "reference"
    )
    prompts = [build_prompt(backbone.config, text) for text in ("a", "hello")]
    sampling = Sampling(temperature=0, repetition_window=0, max_frames=3, ignore_eos=True)
    want = [generation.frames for generation in backbone.generate(prompts, sampling)]
    backbone.ops = dataclasses.replace(backbone.ops, prefill_attention=flash_attention.prefill_attention)
    got = [generation.frames for generation in backbone.generate(prompts, sampling)]
    assert len(package) == len(prompts) * backbone.config.n_layers
    same = (torch.stack(got) == torch.stack(want)).float().mean()
    assert same > 0.9  # fp16: a tie may fall otherwise


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    inputs = PREFILL.make("cpu", torch.float16, **TINY.sizes)
    with pytest.raises(ImportError, match=r"pip install 'zonos2-triton\[flash-attn\]'"):
        flash_attention.prefill_attention(**inputs)


@pytest.mark.usefixtures("package")
def test_fp32_is_refused():
    inputs = PREFILL.make("cpu", torch.float32, **TINY.sizes)
    with pytest.raises(TypeError, match=r"qkvg must be torch.float16 or torch.bfloat16, got torch.float32"):
        flash_attention.prefill_attention(**inputs)


@pytest.mark.gpu
@pytest.mark.needs("flash_attn")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("kernel", "workload"), [*SMALL, *REAL])
def test_the_package_itself(kernel, workload, dtype):
    MINE.verify(Case(kernel, workload, "cuda", dtype))
