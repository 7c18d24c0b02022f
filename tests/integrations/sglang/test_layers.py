"""The plugin on sglang-omni's layers: the engine's results, and layers that stay with the engine."""

import logging
import re
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode

from tests.integrations.sglang.standins import Backend, Fp8MoEMethod, FusedMoE, FusedMoEWithLoRA
from tests.integrations.standins import off_by_one_percent
from zonos2_triton._settings import BACKEND
from zonos2_triton.model.integrations.accelerate import difference
from zonos2_triton.model.integrations.sglang import components, plugin

# Relative to the largest: several times the measured difference, a tenth of a wrong weight's.
BOUNDS = {torch.float32: 2e-6, torch.bfloat16: 1.5e-2, torch.float16: 2e-3}


def forward(layers, x, lengths):
    """The layers in sequence, as in the model."""
    positions = torch.cat([torch.arange(length) for length in lengths])
    residual = states = None
    for layer in layers:
        x, residual, states = layer(x, residual, states, positions, SimpleNamespace(lengths=lengths))
    return x + residual


OTHERS = {"moe_balancing_strategy": "quantile"}, {"moe_router_topk": 3, "special_topk_layers": {}}, {"n_kv_heads": 1}
KERNELS = (pytest.mark.interpreter, pytest.mark.slow)
CASES = [*((dtype, {}) for dtype in BOUNDS), *((torch.float32, changes) for changes in OTHERS)]
RUNS = [*(("reference", *case) for case in CASES), pytest.param("triton", *CASES[0], marks=pytest.mark.interpreter)]
RUNS += [pytest.param("triton", *case, marks=KERNELS) for case in CASES[1:]]


@pytest.mark.parametrize(("backend", "dtype", "changes"), RUNS, indirect=["backend"], ids=str)
def test_layers_are_what_they_were(stack, backend, seeded, dtype, changes):
    layers, x = stack(dtype, **changes), seeded(7, 64, dtype=dtype)
    before = forward(layers, x, [4, 3])
    plugin.hook_components(["attention", "experts"])
    assert difference(forward(layers, x.clone(), [4, 3]), before) < BOUNDS[dtype]


@pytest.mark.parametrize("backend", ["reference", pytest.param("triton", marks=KERNELS)], indirect=True)
@pytest.mark.parametrize("rows", [1, pytest.param(257, marks=pytest.mark.slow)])  # one more than a decode step has
def test_a_mixture_takes_any_number_of_rows_and_either_order_of_gate_and_up(stack, backend, seeded, rows):
    block, x, states = stack()[3].feed_forward, seeded(rows, 64), seeded(rows, 32)
    before = block(x, states)
    plugin.hook_components(["experts"])
    for _ in range(2):
        assert difference(block(x, states), before) < BOUNDS[torch.float32]
        block.experts.interleave()


@pytest.mark.parametrize("name", ["qkv_projection", "output_projection", "moe_router", "moe_experts"])
def test_an_operation_that_is_wrong_by_a_hundredth_shows(stack, monkeypatch, seeded, name):
    """The bounds above detect it, and the hooked operations make the results."""
    right = components._operation

    def operation(asked, *of):
        return off_by_one_percent(right(asked, *of)) if asked == name else right(asked, *of)

    layers, x = stack(), seeded(4, 64)
    before = forward(layers, x, [4])
    plugin.hook_components(["attention", "experts"])
    monkeypatch.setattr(components, "_operation", operation)
    assert difference(forward(layers, x, [4]), before) > 10 * BOUNDS[torch.float32]


def test_weights_are_read_where_they_are(engine, stack, seeded):
    """A server that loads new weights needs nothing else."""
    layers, x = stack(), seeded(4, 64)
    plugin.hook_components(["attention", "experts"])
    before = forward(layers, x, [4])
    for tensor in (tensor for layer in layers for tensor in (*layer.parameters(), *layer.buffers())):
        tensor.data = tensor.data.roll(1, -1)
    after = forward(layers, x, [4])
    for cls in engine.model.Zonos2Attention, engine.model.Zonos2MoEBlock:
        cls.forward = cls.forward.__wrapped__
    assert difference(after, forward(layers, x, [4])) < BOUNDS[torch.float32] < difference(after, before)


def put(path, value):
    """A function that sets an attribute of a block."""

    def change(block):
        *owners, name = path.split(".")
        for owner in owners:
            block = getattr(block, owner)
        setattr(block, name, value)

    change.__name__ = path
    return change


FP8 = "its weights are those of Fp8MoEMethod; --tts_engine.factory.fp8 false keeps them in bf16"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (put("experts.quant_method", Fp8MoEMethod()), FP8),
        (put("experts.__class__", FusedMoEWithLoRA), "its layer is a FusedMoEWithLoRA, not a FusedMoE"),
        (put("experts.moe_tp_size", 2), "it is spread over 2 devices"),
        (put("experts.moe_ep_size", 4), "it is spread over 4 devices"),
        (put("experts.quant_method.runner.runner_backend", Backend("deep_gemm")), "its runner is deep_gemm, which"),
        (put("experts.quant_method._aiter_runner", object()), "its runner is triton, which may keep"),
        (put("experts.quant_method.with_bias", True), "its experts have biases"),
        (put("experts.moe_runner_config.activation", "gelu"), "its activation is 'gelu', not 'silu'"),
        (put("experts.moe_runner_config.is_gated", False), "its is_gated is False, not True"),
        (put("experts.moe_runner_config.swiglu_limit", 7.0), "its swiglu_limit is 7.0, not None"),
        (put("experts.w13_weight", nn.Parameter(torch.zeros(4, 64, 192), False)), r"its w13_weight is \[4, 64, 192\]"),
        (put("experts.w2_weight", nn.Parameter(torch.zeros(4, 64, 96).half(), False)), "its w2_weight is .*float16"),
        (put("router.balancing_biases", torch.zeros(4).double()), "its balancing_biases are torch.float64, not"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_mixture_of_another_kind_stays_with_the_engine(stack, monkeypatch, caplog, seeded, change, reason):
    block = stack()[1].feed_forward
    change(block)
    called = []
    monkeypatch.setattr(FusedMoE, "forward", lambda self, x, topk: called.append(x) or x)
    plugin.hook_components(["experts"])
    x = seeded(2, 64)
    with caplog.at_level(logging.WARNING, "zonos2_triton"):
        for _ in range(2):
            y, _ = block(x, None)
            assert y is x
    assert len(called) == 2
    assert len(caplog.messages) == 1
    assert re.match(f"SGLang: experts stays with the engine: {reason}", caplog.messages[0])


def test_no_rows_stay_with_the_engine(stack):
    layer = stack()[1]
    plugin.hook_components(["attention", "experts"])
    y, state = layer.feed_forward(torch.zeros(0, 64), None)
    assert (y.shape, state.shape) == ((0, 64), (0, 32))
    assert layer.attention(torch.zeros(0, 64), torch.arange(0), SimpleNamespace(lengths=[0])).shape == (0, 64)


def sampler_arguments(rows, device="cpu"):
    numbers = {name: torch.ones(rows, device=device) for name in plugin.SAMPLING[:5]}
    return numbers | {"top_k_max": 5, "rep_token_ids": torch.zeros(rows, 9, 50, dtype=torch.long, device=device)}


def without_cache(layer):
    """A layer whose rotary embedding and attention do nothing."""
    layer.attention.rotary = lambda positions, q, k: (q, k)
    layer.attention.attn.forward = lambda q, k, v, forward_batch: torch.empty_like(q)
    return layer


def test_where_there_are_no_kernels_everything_stays_with_the_engine(engine, stack, monkeypatch, caplog):
    """The reference would wait for the device."""
    layer = without_cache(stack()[1].to("meta"))
    plugin.hook_components(["attention", "experts", "sampler"])
    called = [engine.model.Zonos2MoEBlock.forward, engine.model.Zonos2Attention.forward, engine.sampler.sample_tts]
    assert not [function for function in called if not hasattr(function, "__wrapped__")]
    monkeypatch.setattr(components, "_operation", None)  # a call would fail
    monkeypatch.setattr(FusedMoE, "forward", lambda self, x, topk: x)
    x = torch.zeros(2, 64, device="meta")
    assert layer.attention(x, torch.arange(2, device="meta"), None).shape == (2, 64)
    assert layer.feed_forward(x, None)[0] is x
    codes = engine.sampler.sample_tts(torch.zeros(8, 9, 40, device="meta"), **sampler_arguments(8, "meta"))
    assert codes.shape == (8, 9)
    assert [message.split(":")[1] for message in caplog.messages] == [
        f" {part} stays with the engine" for part in ("attention", "experts", "sampler")
    ]


def test_on_a_cpu_everything_stays_with_the_engine_unless_a_backend_is_named(stack, seeded, monkeypatch, caplog):
    monkeypatch.setenv(BACKEND, "auto")
    layers, x = stack(), seeded(4, 64)
    before = forward(layers, x, [4])
    plugin.hook_components(["attention", "experts"])
    assert torch.equal(forward(layers, x, [4]), before)
    assert len(caplog.messages) == 2
    assert all("on a CPU it names one" in message for message in caplog.messages)


@pytest.mark.interpreter
@pytest.mark.parametrize("rows", [1, 8, 300])
def test_nothing_waits_for_a_device(engine, stack, monkeypatch, rows):
    """As in a captured graph: a read of a fake tensor's value is an error."""
    monkeypatch.setenv(BACKEND, "triton")
    plugin.hook_components(["attention", "experts", "sampler"])
    settings = engine.config.Zonos2Config(**stack.sizes)
    with FakeTensorMode():
        layer = without_cache(engine.model.Zonos2DecoderLayer(settings, 3).requires_grad_(False))
        h, residual, states = layer(torch.empty(rows, 64), None, torch.empty(rows, 32), torch.arange(rows), None)
        assert (h.shape, residual.shape, states.shape) == ((rows, 64), (rows, 64), (rows, 32))
        codes = engine.sampler.sample_tts(torch.empty(rows, 9, 40), **sampler_arguments(rows))
        assert (codes.shape, codes.dtype) == ((rows, 9), torch.int64)
