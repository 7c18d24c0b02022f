"""Other ways to compute a kernel's function: they agree with the reference, and nothing is timed that does not."""

import sys
from dataclasses import replace
from functools import partial
from importlib.machinery import ModuleSpec
from types import SimpleNamespace

import pytest
import torch

from zonos2_triton.bench.baselines import attention_adapter, sdpa
from zonos2_triton.bench.baselines.providers import ALL, providers_of, time_provider
from zonos2_triton.bench.catalogue import KERNELS
from zonos2_triton.bench.proof.verify import Case, Mismatch
from zonos2_triton.bench.suite.recorder import NotRun
from zonos2_triton.bench.timing.timer import Device
from zonos2_triton.reference.ops import VOCODER_OPERATORS

BY_NAME = {one.name: one for one in ALL}
ATTENTIONS = ("decode_attention", "prefill_attention")
PLAIN_KERNELS = [name for name in KERNELS if name not in VOCODER_OPERATORS]
NORM = KERNELS["add_rms_norm"]
TINY = next(workload for workload in NORM.workloads if workload.name == "tiny")
SMALL = [
    pytest.param(KERNELS[name], workload, id=f"{name}-{workload.name}")
    for name in ATTENTIONS
    for workload in KERNELS[name].workloads
    if not workload.real and -1 not in workload.sizes.get("contexts", ())  # no idle rows
]


def at(kernel, name):
    return next(workload for workload in KERNELS[kernel].workloads if workload.name == name)


@pytest.fixture
def device():
    """A CPU, and what was timed on it: a constant time for every sample."""
    timed = []

    def elapsed(run):
        timed.append(run)
        run()
        return 0.4

    return Device("cpu", 0, lambda: None, elapsed, None), timed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("kernel", "workload"), SMALL)
def test_sdpa_agrees(kernel, workload, dtype):
    """Prompts packed and begun before, caches of one page and of many, and what becomes of them."""
    BY_NAME["sdpa"].verify(Case(kernel, workload, "cpu", dtype))


@pytest.mark.parametrize("name", PLAIN_KERNELS)
def test_compiled_agrees(name):
    """Traced in one graph, without a read on the host. tests/bench/test_torch_ops.py has the other workloads."""
    kernel = KERNELS[name]
    workload = next(w for w in reversed(kernel.workloads) if BY_NAME["compiled"].fits(kernel, w) is None)
    BY_NAME["compiled"].verify(Case(kernel, workload, "cpu"))
    torch.compiler.reset()


def test_what_surrounds_an_attention_can_be_compiled(monkeypatch):
    """In one graph each: on a GPU it is."""
    traced = partial(torch.compile, dynamic=False, fullgraph=True, backend="eager")
    monkeypatch.setattr(attention_adapter, "fused", lambda function, device: traced(function))
    BY_NAME["sdpa"].verify(Case(KERNELS["prefill_attention"], at("prefill_attention", "packed")))
    torch.compiler.reset()


def test_a_wrong_implementation_is_found():
    kernel = KERNELS["decode_attention"]
    case = Case(kernel, at(kernel.name, "tiny"))

    def late(inputs):
        return sdpa.decode_attention(inputs | {"positions": inputs["positions"] - 1})

    def forgetful(inputs):
        return sdpa.decode_attention(inputs | {name: inputs[name].clone() for name in kernel.mutates})

    for wrong, said in ((late, "result: "), (forgetful, "k_cache: ")):
        with pytest.raises(Mismatch, match=said):
            replace(BY_NAME["sdpa"], prepares={kernel.name: wrong}).verify(case)


def test_who_stands_beside_whom():
    names = {name: [one.name for one in providers_of(kernel)] for name, kernel in KERNELS.items()}
    assert names["decode_attention"] == ["reference", "compiled", "sdpa", "flash-attn", "flashinfer"]
    assert names["prefill_attention"] == names["decode_attention"]
    assert names["add_rms_norm"] == names["rotary"] == ["reference", "compiled", "flashinfer", "liger"]
    assert names["moe_experts"] == ["reference", "compiled", "liger"]
    assert names["sample_codes"] == ["reference", "compiled"]
    assert {tuple(names[name]) for name in VOCODER_OPERATORS} == {("reference",)}


WHY_MISSING = [
    ("flash-attn", "prefill_attention", None, torch.bfloat16, "cuda", "flash-attn is not installed"),
    ("liger", "moe_experts", None, torch.bfloat16, "cuda", "liger-kernel is not installed"),
    ("compiled", "prefill_attention", "packed", torch.float32, "cpu", "compiled takes one prompt from its begin"),
    ("sdpa", "rotary", None, torch.bfloat16, "cpu", "sdpa has nothing for rotary"),
    ("sdpa", "decode_attention", "tiny", torch.bfloat16, "cpu", None),
]
WHY_MISSING_THOUGH_INSTALLED = [
    ("liger", "rotary", "tiny", torch.bfloat16, "cpu", "liger-kernel needs a CUDA device"),
    ("flashinfer", "rotary", "tiny", torch.float32, "cuda", "flashinfer does not take float32"),
    ("flashinfer", "rotary", "tiny", torch.float16, "cuda", "flashinfer has heads of 64, 128, 256, not of 16"),
    ("flashinfer", "rotary", "one-head", torch.float16, "cuda", "flashinfer turns queries and keys together: two"),
    ("flashinfer", "rotary", "decode-B1", torch.float16, "cuda", None),
    ("liger", "moe_experts", "dense-B1", torch.bfloat16, "cuda", None),
    ("liger", "moe_experts", "decode-B1", torch.bfloat16, "cuda", "liger's mixture of experts is made for training: "),
]


@pytest.mark.parametrize("installed", [False, True])
def test_why_it_is_missing(installed, monkeypatch):
    for package in ("flash_attn", "flashinfer", "liger_kernel"):
        module = SimpleNamespace(__spec__=ModuleSpec(package, None)) if installed else None
        monkeypatch.setitem(sys.modules, package, module)
    for name, kernel, workload, dtype, device, why in WHY_MISSING_THOUGH_INSTALLED if installed else WHY_MISSING:
        found = BY_NAME[name].missing(KERNELS[kernel], workload and at(kernel, workload), dtype, device)
        assert str(found).startswith(str(why))


def time(one, device, dtype=torch.float32, ours=1.0):
    return time_provider(one, NORM, TINY, device, dtype, ours, seconds=0.0)


def test_a_time_and_how_many_times_ours_it_is(device):
    cpu, timed = device
    for name in ("reference", "compiled"):
        found = time(BY_NAME[name], cpu, torch.bfloat16, 100.0)
        assert found["speed_up"] == round(found["median_us"] / 100, 3)
        assert {"p20_us", "p80_us", "samples_us", "calls_per_sample", "launch", "cache"} <= found.keys()
    assert time(BY_NAME["reference"], cpu, ours=None)["speed_up"] is None
    assert timed


def test_what_disagrees_is_never_timed(device):
    cpu, timed = device

    def wrong(inputs):
        total, normed = NORM.reference(**inputs)
        return lambda: (total, normed * 1.5)

    with pytest.raises(Mismatch, match=r"^add_rms_norm tiny float32: normed: .*$"):
        time(replace(BY_NAME["reference"], prepares={NORM.name: wrong}), cpu)
    with pytest.raises(NotRun, match=r"flashinfer(-python)? (is not installed|needs a CUDA device)"):
        time(BY_NAME["flashinfer"], cpu)
    assert not timed


@pytest.mark.parametrize(
    ("error", "raised", "said"),
    [
        (RuntimeError("no kernel image\nfor this device"), NotRun, r"^RuntimeError: no kernel image$"),
        (torch.OutOfMemoryError("no room"), torch.OutOfMemoryError, "no room"),  # which is not its fault
        (RuntimeError("a size is wrong"), RuntimeError, "a size is wrong"),
        (AttributeError("'Ops' object has no attribute"), AttributeError, "has no attribute"),
        (ImportError("no such name"), ImportError, "no such name"),  # the reference needs no package
    ],
    ids=repr,
)
def test_what_raises_is_not_timed(error, raised, said, device):
    cpu, timed = device

    def broken(inputs):
        raise error

    with pytest.raises(raised, match=said):
        time(replace(BY_NAME["reference"], prepares={NORM.name: broken}), cpu)
    assert not timed


def test_it_is_compared_on_the_inputs_that_are_timed(device):
    """First the comparison's, then the same again, then, where several sets take turns, the others."""
    seen = []

    def watching(inputs):
        seen.append(inputs["x"])
        return partial(NORM.reference, **inputs)

    touched = NORM.cost_of(TINY, 4).bytes
    time(replace(BY_NAME["reference"], prepares={NORM.name: watching}), replace(device[0], l2=touched))
    assert len(seen) == 3
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])
