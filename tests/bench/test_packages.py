"""flash-attn, FlashInfer and Liger beside the kernels: plans, pages, layouts and roundings around each package."""

import dataclasses
import itertools
import sys

import pytest
import torch

from tests.bench.package_stand_ins import install
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


@pytest.fixture
def installed(monkeypatch):
    return install(monkeypatch)


def cases(stood_in):
    """What each package can express; FlashInfer's stand-in has heads of any size."""
    for one, dtype in itertools.product(PACKAGES.values(), HALF):
        for kernel in (KERNELS[name] for name in one.prepares):
            for w in [*kernel.workloads, *([MORE[kernel.name]] if one.name == "flash-attn" else [])]:
                hindered = one.fits(kernel, w)
                if (hindered and not (stood_in and "has heads of" in hindered)) or -1 in w.sizes.get("contexts", ()):
                    continue
                if not (stood_in and w.real):
                    marks = [] if stood_in else [pytest.mark.needs(one.package)]
                    name = f"{one.name}-{kernel.name}-{w.name}-{dtype}"
                    yield pytest.param(one, kernel, w, dtype, marks=marks, id=name)


@pytest.mark.parametrize(("one", "kernel", "workload", "dtype"), list(cases(stood_in=True)))
def test_matches_the_reference(one, kernel, workload, dtype, installed):
    """Results and caches; in flash-attn a decode step goes through its own cache, prompts through its packed form."""
    one.verify(Case(kernel, workload, "cpu", dtype))
    if one.name == "flash-attn":
        wanted = "with_kvcache" if kernel.name == "decode_attention" else "varlen_func"
        assert installed == [f"flash_attn_{wanted}"]


@pytest.mark.gpu
@pytest.mark.parametrize(("one", "kernel", "workload", "dtype"), list(cases(stood_in=False)))
def test_the_package_itself(one, kernel, workload, dtype):
    one.verify(Case(kernel, workload, "cuda", dtype))


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("which", ["flashinfer add_rms_norm", "flashinfer rotary", "liger rotary"])
def test_what_works_in_place_leaves_the_inputs_alone(which):
    package, name = which.split()
    kernel = KERNELS[name]
    inputs = kernel.make("cpu", torch.bfloat16, **kernel.workloads[0].sizes)
    before = {key: value.clone() for key, value in inputs.items() if isinstance(value, torch.Tensor)}
    call = PACKAGES[package].prepare(kernel, inputs)
    call(), call()
    assert all(torch.equal(inputs[key], value) for key, value in before.items())


def test_what_they_cannot_express():
    rotary, decode, experts = (KERNELS[name] for name in ("rotary", "decode_attention", "experts"))
    flash_infer, liger = PACKAGES["flashinfer"], PACKAGES["liger"]
    one_head = next(w for w in rotary.workloads if w.name == "one-head")
    assert flash_infer.fits(rotary, one_head) == "flashinfer turns queries and keys together: two heads at least"
    assert {flash_infer.fits(kernel, w) for kernel in (rotary, decode) for w in kernel.workloads if w.real} == {None}
    unfit = [w for w in experts.workloads if "made for training" in (liger.fits(experts, w) or "")]
    assert unfit == [w for w in experts.workloads if w.sizes.get("routed", True)]


def test_a_model_generates_with_flash_attention(tts, installed):
    """In a table of operations beside others: prompts of different lengths at once."""
    of = tts.backbone
    backbone = type(of)(of.config, {name: t.half() for name, t in of.weights.items()}, "reference")
    prompts = [build_prompt(backbone.config, text) for text in ("a", "hello")]
    sampling = Sampling(temperature=0, repetition_window=0, max_frames=3, ignore_eos=True)
    want = [generation.frames for generation in backbone.generate(prompts, sampling)]
    backbone.ops = dataclasses.replace(backbone.ops, prefill_attention=flash_attention.prefill_attention)
    got = [generation.frames for generation in backbone.generate(prompts, sampling)]
    assert installed == ["flash_attn_varlen_func"] * len(prompts) * backbone.config.n_layers
    same = (torch.stack(got) == torch.stack(want)).float().mean()
    assert same > 0.9  # fp16: a tie may fall otherwise


@pytest.mark.parametrize(
    ("package", "dtype", "error", "said"),
    [
        (None, torch.float16, ImportError, r"pip install 'zonos2-triton\[flash-attn\]'"),
        ("stand-in", torch.float32, TypeError, r"qkvg must be torch.float16 or torch.bfloat16, got torch.float32"),
    ],
)
def test_what_flash_attention_refuses(package, dtype, error, said, monkeypatch):
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    kernel = KERNELS["prefill_attention"]
    inputs = kernel.make("cpu", dtype, **next(w for w in kernel.workloads if not w.real).sizes)
    with pytest.raises(error, match=said):
        flash_attention.prefill_attention(**inputs)
