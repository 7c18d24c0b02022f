"""Patches of a model of the official engine, and refused models."""

import copy
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from tests.integrations.standins import off_by_one_percent
from tests.integrations.zonos2_engine.official import build
from zonos2_triton.model.integrations.accelerate import MARK, accelerate, difference
from zonos2_triton.model.integrations.zonos2_engine import engine
from zonos2_triton.reference.ops import REFERENCE

READ = ["multi_embedder.embedders.4.weight", "1.feed_forward.router.balancing_biases"]
READ += ["2.feed_forward.router.router_mlp._2.weight", "out_norm.weight"]


def held(model):
    """Every attribute of every object in the model, by identity."""
    found, ahead = {}, [("", model)]
    while ahead:
        path, owner = ahead.pop()
        if isinstance(owner, list | tuple):
            ahead += [(f"{path}.{i}", value) for i, value in enumerate(owner)]
        elif hasattr(owner, "__dict__") and not isinstance(owner, Tensor | type) and not callable(owner):
            found[path] = {name: id(value) for name, value in vars(owner).items()}
            ahead += [(f"{path}.{name}", value) for name, value in vars(owner).items() if name != MARK]
    return found


def layer(model, i):
    return model.layers.op_list[i]


def test_the_model_is_restored_and_nothing_else_is_changed(official, params, weights, model):
    """Another model shares its rotary embedding."""
    other, state = build(official, params, weights), torch.get_rng_state()
    rotary, before = layer(other, 0).attention.attn.rotary, (held(model), held(other))
    assert rotary is layer(model, 0).attention.attn.rotary
    with accelerate(model, backend="reference"):
        assert held(model) != before[0]
        assert held(other) == before[1]
        assert layer(model, 0).attention.attn.rotary is not rotary
        assert official("core")._GLOBAL_CTX is None
        assert torch.equal(torch.get_rng_state(), state)
    assert (held(model), held(other)) == before


def test_rotary_of_the_other_kind_is_the_original(model):
    shared = layer(model, 0).attention.attn.rotary
    accelerate(model, backend="reference")
    rotary = layer(model, 0).attention.attn.rotary
    positions, q, k = torch.tensor([3, 5], dtype=torch.int32), torch.randn(2, 64), torch.randn(2, 32)
    new, old = (each.forward(positions, q.clone(), k.clone(), True) for each in (rotary, shared))
    assert all(torch.equal(a, b) for a, b in zip(new, old, strict=True))


@pytest.mark.parametrize("neox", [False, True])
def test_another_table_of_angles_counts(model, neox):
    shared = layer(model, 0).attention.attn.rotary
    accelerate(model, backend="reference")
    positions, rows, found = torch.tensor([3, 5], dtype=torch.int32), torch.randn(2, 64), []
    for rotary in (layer(model, 0).attention.attn.rotary, shared):
        rotary._cos_sin_cache = rotary._cos_sin_cache.flip(0)
        found.append(rotary.forward(positions, rows.clone(), torch.ones(2, 32), neox))  # in place
    assert difference(*found) < 1e-5


def test_a_norm_in_place(model):
    """As in flashinfer's function."""
    norm = layer(model, 1).feed_forward.router.rmsnorm_eda
    x = torch.randn(3, 16)
    expected, y = norm.rmsnorm(x, norm.weight, norm.eps), x.clone()
    accelerate(model, backend="reference")
    assert norm.rmsnorm(y, norm.weight, norm.eps, out=y) is y
    torch.testing.assert_close(y, expected)


@pytest.mark.parametrize(
    "write",
    [
        lambda owner, name: setattr(owner, name, getattr(owner, name).flip(0)),
        lambda owner, name: getattr(owner, name).data.mul_(-2),
        lambda owner, name: getattr(owner, name).untyped_storage().fill_(1),
    ],
    ids=["replaced", "data", "storage"],
)
@pytest.mark.parametrize("path", READ)
def test_weights_that_change_afterwards(official, params, weights, model, path, write):
    """Each call reads them."""
    other, (*owners, name) = build(official, params, weights), path.split(".")
    accelerate(model, backend="reference")
    for changed in (model, other):
        write(at(changed, owners), name)
    new, old = (outcomes(each) for each in (model, other))
    assert difference(new, old) < 1e-5


def at(model, path):
    """The object at a path; numbers are layers or items of a list."""
    for step in path:
        if step.isdigit():
            model = layer(model, int(step)) if hasattr(model, "layers") else model.op_list[int(step)]
        else:
            model = getattr(model, step)
    return model


def outcomes(model):
    """Outputs of some layers for the same tokens."""
    generator = torch.Generator().manual_seed(5)
    ids, x = torch.randint(30, (4, 10), generator=generator), torch.randn(4, 32, generator=generator)
    found = [model.multi_embedder.forward(ids.int()), model.out_norm.forward(x)[0]]
    for i in (1, 2):
        state = torch.randn(4, 16, generator=generator)
        found += [each.float() for each in layer(model, i).feed_forward.router.forward(x, state)]
    return found


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda patch, core: patch.delattr(core, "_GLOBAL_CTX"), "zonos2.core has no '_GLOBAL_CTX'"),
        (lambda patch, core: patch.setitem(sys.modules, "zonos2.core", None), "zonos2.core, .* cannot be imported"),
    ],
    ids=["context", "module"],
)
def test_a_package_of_another_structure_is_refused(official, model, monkeypatch, spoil, message):
    spoil(monkeypatch, official("core"))
    with pytest.raises(ValueError, match=message):
        accelerate(model, backend="reference")


@pytest.mark.parametrize(
    ("operation", "op"),
    [
        ("frame_embedding", "embedding"), ("add_rms_norm", "norm"), ("qkv_projection", "attention"),
        ("decode_attention", "attention"), ("prefill_attention", "attention"), ("output_projection", "attention"),
        ("moe_router", "router"), ("moe_experts", "experts"), ("codebook_head", "head"),
    ],
)  # fmt: skip
def test_a_wrong_operation_is_refused(model, monkeypatch, operation, op):
    wrong = replace(REFERENCE, **{operation: off_by_one_percent(getattr(REFERENCE, operation))})
    monkeypatch.setattr(engine, "ops_of", lambda *_: wrong)
    before, apart = held(model), rf"{op} cannot be patched: differs from the original by \S+, more than the bound"
    with pytest.raises(ValueError, match=apart):
        accelerate(model, backend="reference")
    assert held(model) == before
    report = accelerate(model, strict=False, backend="reference")
    assert op in [row.op for row in report.skipped]


def put(path, value):
    """Set the attribute at a path, with numbers for layers, to a function of its old value."""

    def spoil(model):
        *owners, name = path.split(".")
        owner = at(model, owners)
        setattr(owner, name, value(getattr(owner, name)))

    return spoil


def strange(module):
    """A layer whose forward takes one more argument."""
    module.__class__ = type("Strange", (type(module),), {"forward": lambda self, x, scale: x * scale})
    return module


def leaf(weight):
    with torch.inference_mode(False):
        return torch.ones(weight.shape, requires_grad=True)


def changed(config, **values):
    made = copy.copy(config)
    vars(made).update(values)
    return made


EXPERTS = "1.feed_forward.experts"
BAD = {
    "attribute": (lambda m: delattr(layer(m, 1).attention, "gater"), "gater.weight is missing, one of 1 tensors"),
    "part": (lambda m: delattr(layer(m, 2).feed_forward, "router"), "layers.2.feed_forward has no 'router'"),
    "config": (put("config", lambda _: SimpleNamespace()), r"config has no 'moe_n_experts'"),
    "shape": (put("0.attention.wq.weight", lambda _: torch.zeros(3, 32)), r"wq.weight must have shape \[64, 32\], got"),
    "bias": (put("0.attention.wo.bias", lambda _: torch.zeros(32)), "layers.0.attention.wo.bias is unexpected"),
    "strides": (put("multi_output.weight", lambda w: w.T.contiguous().T), r"be contiguous, got strides \(1, 288\)"),
    "replaced": (put("3.feed_forward.forward", lambda _: print), "layers.3.feed_forward.forward is not its class's"),
    "signature": (put("3.feed_forward", strange), r"layers.3.feed_forward.forward must take \(x\), got \(x, scale\)"),
    "setting": (put(f"{EXPERTS}._fused_moe.renormalize", lambda _: True), f"{EXPERTS}.* must be False, got True"),
    "two tensors": (put(f"{EXPERTS}.down_proj", torch.clone), f"must be the tensor of layers.{EXPERTS}.down_proj"),
    "layers": (lambda m: m.layers.op_list.pop(), "layers.3 |config.num_layers=4, got 3"),
    "heads": (put("0.attention.wo._tp_size", lambda _: 3), "config.* must be a multiple of the 3 ranks"),
    "ids": (put("config", lambda config: changed(config, eoa_id=7)), "config: eoa_id must be codebook_size 30"),
}


def test_weights_may_require_gradients(official, params, weights, model):
    """Calls that need gradients run the original, though no engine needs them."""
    put("out_norm.weight", leaf)(model)
    x = torch.ones(2, 32)
    accelerate(model, backend="reference")
    model.out_norm.rmsnorm = model.out_norm.fused_add_rmsnorm = None  # only the original uses them
    for call in (torch.no_grad(), torch.inference_mode()):
        with call:
            assert model.out_norm.forward(x)[0].isfinite().all()
    with torch.inference_mode(False), torch.enable_grad(), pytest.raises(TypeError, match="NoneType"):
        model.out_norm.forward(torch.ones(2, 32))


@pytest.mark.parametrize(("spoil", "message"), BAD.values(), ids=BAD)
def test_a_model_of_another_structure_is_refused(model, spoil, message):
    spoil(model)
    before = held(model)
    with pytest.raises(ValueError, match=f"zonos2 engine model: .*{message}"):
        accelerate(model, backend="reference")
    assert held(model) == before


def test_an_engine_that_is_built_already():
    built = SimpleNamespace(graph_runner=None)
    for given in (built, SimpleNamespace(engine=built)):
        with pytest.raises(TypeError, match=r"SimpleNamespace has captured its CUDA graphs already.*accelerate\(zonos"):
            accelerate(given)
