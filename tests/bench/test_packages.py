"""flash-attn, FlashInfer and Liger beside the kernels; flash-attn, which a model may use, also by a stand-in."""

import dataclasses
import sys
from itertools import pairwise, product
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from zonos2_triton.bench.baselines import flash_attention
from zonos2_triton.bench.baselines.providers import ALL, HALF
from zonos2_triton.bench.catalogue import KERNELS
from zonos2_triton.bench.proof.verify import Case
from zonos2_triton.bench.specs.spec import Workload
from zonos2_triton.model import Sampling, build_prompt

PACKAGES = {one.name: one for one in ALL if one.package}
SHAPE = {"HQ": 4, "HKV": 2, "DH": 16, "page_size": 8, "B": 3}
MORE = {  # where flash-attn's pages end, too
    "decode_attention": Workload("pages-of-256", SHAPE | {"context": 300, "contexts": (300, 255, 256)}, real=False),
    "prefill_attention": Workload(
        "pages-of-256", SHAPE | {"T": 40, "context": 300, "rows": (17, 1, 22), "contexts": (300, 255, 240)}, real=False
    ),
}
CASES = [
    pytest.param(one, op, w, dtype, marks=pytest.mark.needs(one.package), id=f"{one.name}-{op.name}-{w.name}-{dtype}")
    for one, dtype in product(PACKAGES.values(), HALF)
    for op in (KERNELS[name] for name in one.prepares)
    for w in (*op.workloads, *([MORE[op.name]] if one.name == "flash-attn" else []))
    if one.fits(op, w) is None and -1 not in w.sizes.get("contexts", ())  # no idle rows
]


def attend(q, k, v, scale):
    """[T, HQ, DH] and [S, HKV, DH]: of S keys, T queries are the last."""
    T, S, group = len(q), len(k), q.shape[1] // k.shape[1]
    seen = torch.ones(T, S, dtype=torch.bool).tril(S - T)
    k, v = (part.repeat_interleave(group, 1).transpose(0, 1) for part in (k, v))
    return F.scaled_dot_product_attention(q.transpose(0, 1), k, v, attn_mask=seen, scale=scale).transpose(0, 1)


def read(caches, pages, length):
    assert caches[0].shape[1] % 256 == 0
    return (cache[pages.long()].flatten(0, 1)[:length] for cache in caches)


def flash_attn_varlen_func(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, *, softmax_scale, causal, block_table=None
):
    """Stands for flash-attn 2.8, as the next does, and asserts what that asks of its arguments."""
    assert causal
    assert max_seqlen_q >= int(cu_seqlens_q.diff().max())
    assert max_seqlen_k >= int(cu_seqlens_k.diff().max())
    assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
    out = []
    for b, ((first, end), (a, z)) in enumerate(zip(pairwise(cu_seqlens_q), pairwise(cu_seqlens_k), strict=True)):
        known = (k[a:z], v[a:z]) if block_table is None else read((k, v), block_table[b], z - a)
        out.append(attend(q[first:end], *known, softmax_scale))
    return torch.cat(out)


def flash_attn_with_kvcache(q, k_cache, v_cache, *, k, v, cache_seqlens, block_table, softmax_scale, causal):
    """New rows go behind cache_seqlens, then all are read."""
    assert causal
    assert cache_seqlens.dtype == block_table.dtype == torch.int32
    out = []
    for b, length in enumerate(cache_seqlens.tolist()):
        page, slot = block_table[b, length // k_cache.shape[1]], length % k_cache.shape[1]
        k_cache[page, slot], v_cache[page, slot] = k[b, 0], v[b, 0]
        out.append(attend(q[b], *read((k_cache, v_cache), block_table[b], length + 1), softmax_scale))
    return torch.stack(out)


@pytest.fixture
def calls(monkeypatch):
    """The names of the stand-in's functions, as they are called."""
    called = []

    def logged(function):
        return lambda *args, **kwargs: called.append(function.__name__) or function(*args, **kwargs)

    functions = (flash_attn_varlen_func, flash_attn_with_kvcache)
    package = SimpleNamespace(**{function.__name__: logged(function) for function in functions})
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    return called


@pytest.mark.parametrize(
    ("one", "kernel", "workload", "dtype"),
    [
        pytest.param(*case.values, id=case.id)
        for case in CASES
        if case.values[0].name == "flash-attn" and not case.values[2].real
    ],
)
def test_matches_the_reference(one, kernel, workload, dtype, calls):
    """Results and caches; a decode step goes through flash-attn's own cache, prompts through its packed form."""
    one.verify(Case(kernel, workload, "cpu", dtype))
    assert calls == [f"flash_attn_{'with_kvcache' if kernel.name == 'decode_attention' else 'varlen_func'}"]


@pytest.mark.gpu
@pytest.mark.parametrize(("one", "kernel", "workload", "dtype"), CASES)
def test_the_package_itself(one, kernel, workload, dtype):
    one.verify(Case(kernel, workload, "cuda", dtype))


def test_a_model_generates_with_flash_attention(tts, calls):
    """In a table of operations beside others: prompts of different lengths at once."""
    of = tts.backbone
    backbone = type(of)(of.config, {name: t.half() for name, t in of.weights.items()}, "reference")
    prompts = [build_prompt(backbone.config, text) for text in ("a", "hello")]
    sampling = Sampling(temperature=0, repetition_window=0, max_frames=3, ignore_eos=True)
    want = [generation.frames for generation in backbone.generate(prompts, sampling)]
    backbone.ops = dataclasses.replace(backbone.ops, prefill_attention=flash_attention.prefill_attention)
    got = [generation.frames for generation in backbone.generate(prompts, sampling)]
    assert calls == ["flash_attn_varlen_func"] * len(prompts) * backbone.config.n_layers
    assert (torch.stack(got) == torch.stack(want)).float().mean() > 0.9  # fp16: a tie may fall otherwise


def test_what_flash_attention_needs(monkeypatch):
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    kernel = KERNELS["prefill_attention"]
    inputs = kernel.make_inputs("cpu", torch.float16, **next(w for w in kernel.workloads if not w.real).sizes)
    with pytest.raises(ImportError, match="pip install --no-build-isolation flash-attn"):
        flash_attention.prefill_attention(**inputs)
