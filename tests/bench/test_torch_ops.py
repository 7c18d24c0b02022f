"""The plain PyTorch that the kernels are timed beside: it computes what the reference does, without the host."""

import dataclasses
from functools import partial

import pytest
import torch
from torch.utils import _pytree as pytree

from zonos2_triton.bench.baselines import torch_frame, torch_ops
from zonos2_triton.bench.baselines.providers import ALL
from zonos2_triton.bench.baselines.torch_frame import State, TorchFrame
from zonos2_triton.bench.baselines.torch_ops import TORCH_OPS
from zonos2_triton.bench.catalogue import KERNELS
from zonos2_triton.bench.proof.verify import verify
from zonos2_triton.bench.suite.device_checks import layer_chain, random_weights
from zonos2_triton.bench.suite.recorder import NotRun, Withheld
from zonos2_triton.bench.timing import timer
from zonos2_triton.reference import network

COMPILED = next(one for one in ALL if one.name == "compiled")
OPS = [field.name for field in dataclasses.fields(TORCH_OPS)]
CASES = [
    pytest.param(KERNELS[name], workload, id=f"{name}-{workload.name}")
    for name in OPS
    for workload in KERNELS[name].workloads
    if not workload.real and COMPILED.fits(KERNELS[name], workload) is None
]


@pytest.mark.parametrize(("kernel", "workload"), CASES)
def test_computes_what_the_reference_does(kernel, workload):
    """In fp32 as exactly as the reference, judged as a kernel is; in fp64 to rounding, also in what it writes."""
    verify(kernel, workload, "cpu", torch.float32, getattr(TORCH_OPS, kernel.name))
    inputs = made(kernel.name, workload.name)
    changed = [name for name in kernel.mutates if inputs[name] is not None]

    def called(op):
        mine = inputs | {name: inputs[name].clone() for name in changed}
        return [*pytree.tree_leaves(op(**mine)), *(mine[name] for name in changed)]

    for a, b in zip(*map(called, (getattr(TORCH_OPS, kernel.name), kernel.reference)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11, equal_nan=False)


def workload_of(op, name):
    return next(workload for workload in KERNELS[op].workloads if workload.name == name)


def made(op, name, dtype=torch.float64):
    return KERNELS[op].make_inputs("cpu", dtype, **workload_of(op, name).sizes)


@pytest.mark.parametrize("way", ["_gathered", "grouped", "joined", "_through_all"])
@pytest.mark.parametrize("name", ["skewed", "idle-top2", "empty-experts"])
def test_every_way_through_the_experts(name, way, monkeypatch):
    """Whichever a device takes; in bf16, which grouped products want, judged as a kernel is."""
    monkeypatch.setattr(torch_ops, "FEW", 1000 if way == "_gathered" else 0)
    monkeypatch.setattr(torch_ops, "has_grouped", lambda device, dtype: way != "_through_all")
    if way == "joined":

        def mixture(h, gate, *rest):
            E, I, D = gate.shape
            return whole(h, gate, *rest, both=gate.as_strided((E, 2 * I, D), (2 * I * D, D, 1)))

        whole = torch_ops.mixture
        monkeypatch.setattr(torch_ops, "mixture", mixture)
    traced = torch.compile(TORCH_OPS.moe_experts, fullgraph=True, dynamic=False, backend="eager")
    verify(KERNELS["moe_experts"], workload_of("moe_experts", name), "cpu", torch.bfloat16, traced)
    torch.compiler.reset()


@pytest.mark.parametrize("name", ["one-row", "two-tiles", "all-experts", "first-layer-tiny", "many-experts"])
def test_choice_without_sorting(name):
    inputs = made("moe_router", name)
    want = KERNELS["moe_router"].reference(**inputs)
    for unknown in ("positions", "x_scaled", "sum_sq"):
        del inputs[unknown]
    ids, weights, state = torch_ops.choose(**inputs)
    assert torch.equal(ids.int(), want.expert_ids)
    torch.testing.assert_close((weights, state), (want.expert_weights, want.router_state), rtol=1e-12, atol=1e-12)


def test_of_choices_that_tie_the_lower_comes_first():
    inputs = made("moe_router", "all-experts")
    inputs |= {name: torch.zeros_like(inputs[name]) for name in ("w3", "balancing_biases")}
    for unknown in ("positions", "x_scaled", "sum_sq"):
        del inputs[unknown]
    assert torch_ops.choose(**inputs)[0].tolist() == [[0, 1, 2, 3]] * 2


def test_pages_that_others_left_are_not_read():
    """Each sequence has one page that no position reaches, full of NaN."""
    op = "decode_attention"
    inputs = made(op, "tiny")
    spare = torch.full_like(inputs["k_cache"][:1], float("nan"))
    inputs |= {name: torch.cat([inputs[name], spare]) for name in ("k_cache", "v_cache")}
    unused = torch.full_like(inputs["block_table"][:, :1], len(inputs["k_cache"]) - 1)
    inputs["block_table"] = torch.cat([inputs["block_table"], unused], 1)
    results = (way(**inputs) for way in (getattr(TORCH_OPS, op), KERNELS[op].reference))
    torch.testing.assert_close(*results, rtol=1e-11, atol=1e-11)


@pytest.fixture(scope="module")
def model():
    """Two dense layers and two mixtures, of which one takes two experts a row."""
    config = layer_chain(small=True)
    return network.bind(config, random_weights(config, "cpu", torch.float32))


CPU = dataclasses.replace(timer.cpu_device(), l2=1 << 20)


@pytest.fixture
def traced(monkeypatch):
    """A backend that runs what the tracer saw: nothing in a piece of a frame breaks its graph."""
    monkeypatch.setattr(torch_frame, "COMPILER", {"backend": "eager"})


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=pytest.mark.slow, id="traced-whole")])
def test_frames_and_a_prompt_are_checked_and_timed(model, compile):
    frame = TorchFrame(model, compile)
    for found in (*(frame.time(n, 30, CPU, 0.01, least=2) for n in (1, 3)), frame.time_prefill(20, CPU, 0.01, least=2)):
        assert found["median_us"] > 0
        assert found["launch"] == "eager"
        assert found["method"].startswith("attention ")


@pytest.mark.filterwarnings("ignore:.*flex_attention:UserWarning")  # that it is slow unless compiled
def test_one_stream_as_a_gpu_takes_it(model):
    frame, state = TorchFrame(model, compile=False), State(model, 1, 30)
    frame.attention = torch_frame.flexible
    with torch.inference_mode():
        frame.check(state, frame.pieces(state))


def test_weights_are_shared_but_for_one(model):
    """Gate and up of a mixture are read as the one tensor that they are views of."""
    for layer, own in zip(TorchFrame(model).layers, model.layers, strict=True):
        assert layer["ffn"][2] is own.experts["down"]
        assert (layer["both"] is None) == (own.router is None)
        if layer["both"] is not None:
            assert layer["both"].data_ptr() == own.experts["gate"].data_ptr()
            assert torch.equal(layer["both"][:, 1::2], own.experts["up"])


@pytest.mark.parametrize(
    ("part", "wrong"),
    [
        ("gated", lambda right, y, gate: y.flatten(1)),
        ("choose", lambda right, *args, router_state, **more: right(*args, router_state=None, **more)),
        ("codebook_head", lambda right, *args: 1.01 * right(*args)),
        ("sample_codes", lambda right, *args: (right(*args)[0] ^ 1, right(*args)[1])),
        ("by_products", lambda right, *args: right(*args) * float("nan")),
    ],
)
def test_what_is_wrong_is_not_timed(model, part, wrong, monkeypatch):
    monkeypatch.setattr(torch_ops, part, partial(wrong, getattr(torch_ops, part)))
    with pytest.raises(Withheld):
        TorchFrame(model, compile=False).time(2, 30, CPU, seconds=0.01, least=2)


@pytest.mark.usefixtures("traced")
def test_what_does_not_compile_has_failed_and_without_a_compiler_it_is_not_run(model, monkeypatch):
    def graph_break(*args):
        torch._dynamo.graph_break()

    def no_compiler(self, *args):
        raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable")

    monkeypatch.setattr(torch_ops, "by_products", graph_break)
    with pytest.raises(torch._dynamo.exc.Unsupported):
        TorchFrame(model).time(2, 30, CPU, seconds=0.01, least=2)
    monkeypatch.setattr(TorchFrame, "check", no_compiler)
    with pytest.raises(NotRun, match="C compiler"):
        TorchFrame(model).time(2, 30, CPU, seconds=0.01, least=2)
