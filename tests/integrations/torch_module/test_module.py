"""accelerate() on plain nn.Module ports: one that is written here, its variants, and ComfyUI's where it is at hand."""

import copy
import dataclasses
import gc
import importlib.util
import json
import os
import pickle
import sys
import weakref
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.integrations.port_model import Attention, Experts, Norm, Port, Router, Stacked
from zonos2_triton.bench.proof.interpreter import checked
from zonos2_triton.model import accelerate
from zonos2_triton.model.integrations.patching import Replacement
from zonos2_triton.model.integrations.torch_module import attention, module, moe, structure
from zonos2_triton.model.weights.tiny import PARAMS, backbone_weights
from zonos2_triton.reference import network as reference
from zonos2_triton.reference.config import Zonos2Config
from zonos2_triton.reference.numeric import SWITCHES
from zonos2_triton.reference.ops import REFERENCE

OPS = ["embedding", "norm", "attention", "dense", "router", "experts", "head"]
PLACES = [1, 9, 3, 1, 2, 2, 1]
# A dense layer, a mixture of two experts a row, one of one that is handed the router's state.
CONFIG = dataclasses.replace(
    Zonos2Config.from_params(PARAMS), n_layers=3, dim=32, head_dim=16, n_heads=4, n_kv_heads=2, multiple_of=16,
    rope_theta=5000.0, n_codebooks=3, codebook_size=30, eoa_id=30, audio_pad_id=31, speaker_enabled=False,
    moe_start_from_layer=1, moe_end_from_layer=0, special_topk_layers=((1, 2),),
)  # fmt: skip
COMPILED = pytest.mark.interpreter
TRITON = pytest.param("triton", marks=COMPILED)
BACKENDS = ("reference", TRITON)
FASTER = {"bounds": False, "undefined": False, "races": False}  # the kernels' own tests check each launch


@pytest.fixture(autouse=True)
def interpreter():
    with checked(**FASTER) if not torch.cuda.is_available() else nullcontext():
        yield


def weights(config=CONFIG):
    return backbone_weights(config, torch.Generator().manual_seed(3))


def made(dtype=torch.float32, config=CONFIG):
    model = Port(config)
    model.load_state_dict(weights(config))
    return model.to(dtype).eval().requires_grad_(False)


def each(model, path):
    """The parts of the layers that have it."""
    return [layer.get_submodule(path) for layer in model.layers if hasattr(layer.feed_forward, "router")]


def variant(model, path, forward):
    """Another way in which somebody may have written a part."""
    for part in each(model, path):
        part.__class__ = type("Variant", (type(part),), {"forward": forward})
    return model


def parts(model):
    """Every attribute of every part, and every parameter, by identity."""
    found = {(path, name): id(value) for path, part in model.named_modules() for name, value in vars(part).items()}
    return found | {name: id(value) for name, value in model.named_parameters()}


def ids(rows=2, length=9):
    most = torch.tensor([CONFIG.codebook_vocab] * CONFIG.n_codebooks + [CONFIG.text_vocab + 1])
    return (torch.rand(rows, length, len(most), generator=torch.Generator().manual_seed(4)) * most).long()


def spoken(model, pieces=(7, 1, 1), tokens=None, room=12):
    """Logits [B, T, C, V] of a prompt and the rows behind it."""
    tokens = ids(length=sum(pieces)) if tokens is None else tokens
    caches = model.caches(len(tokens), room)
    return torch.cat([model(piece, caches) for piece in tokens.split(pieces, 1)], 1)


def error(new, old):
    return ((new - old).abs().max() / old.abs().max()).item()


def refused(model, message, kind=ValueError, **options):
    """The error comes, and the model is untouched."""
    before = parts(model)
    with pytest.raises(kind, match=message):
        accelerate(model, **options)
    assert parts(model) == before


def test_the_port_of_these_tests_is_the_model():
    model = reference.bind(CONFIG, weights())
    for row in ids():
        assert error(spoken(made(), tokens=row[None])[0], reference.trace(model, row)["logits"]) < 1e-5


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_whole_is_the_same(backend):
    model = made()
    before, expected = parts(model), spoken(model)
    report = accelerate(model, backend=backend)
    assert [(swap.op, swap.places) for swap in report.swapped] == [*zip(OPS, PLACES, strict=True)]
    assert report.left == ()
    assert report.max_error < 5e-6
    assert error(spoken(model), expected) < 5e-6
    report.restore()
    assert parts(model) == before
    assert torch.equal(spoken(model), expected)


@pytest.mark.parametrize(
    ("backend", "dtype", "bound"),
    [
        ("reference", torch.float64, 1e-6),  # its probabilities are of fp32
        ("reference", torch.bfloat16, 2e-2),
        ("reference", torch.float16, 3e-3),
        pytest.param("triton", torch.bfloat16, 2e-2, marks=COMPILED),
        pytest.param("triton", torch.float16, 3e-3, marks=COMPILED),
    ],
)
def test_every_operation_is_the_same_in_other_types(backend, dtype, bound):
    report = accelerate(made(dtype), backend=backend)
    assert len(report.swapped) == len(OPS)
    assert report.max_error < bound < structure.BOUNDS[dtype]


def test_temperatures_and_biases_may_have_a_type_of_their_own():
    model = made(torch.bfloat16)
    for layer in model.layers:
        layer.attention.temp.data = layer.attention.temp.float()
    for router in each(model, "feed_forward.router"):
        biases = router.balancing_biases.float()
        del router.balancing_biases
        router.register_buffer("balancing_biases", biases)
    assert len(accelerate(model).swapped) == len(OPS)


def test_calls_by_the_names_of_the_original():
    model = made()
    x = torch.randn(2, 3, CONFIG.dim, generator=torch.Generator().manual_seed(0))
    calls = [(model.layers[0].attention_norm, {"x": x}), (model.layers[1].feed_forward.router, {"x": x, "state": None})]
    expected = [part(**named) for part, named in calls]
    with accelerate(model):
        found = [part(**named) for part, named in calls]
        with pytest.raises(TypeError, match="unexpected keyword argument 'residual'"):
            model.out_norm(x, residual=x)
    assert error(found[0], expected[0]) < 1e-6
    assert torch.equal(found[1][1], expected[1][1])


def test_a_prefix():
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.model, self.other = made(), nn.Linear(2, 2, dtype=torch.float16)  # whose gradients matter to nobody

    wrapped = Wrapped().eval()
    before, expected = parts(wrapped), spoken(wrapped.model)
    with accelerate(wrapped) as report:
        assert [swap.places for swap in report.swapped] == PLACES
        assert error(spoken(wrapped.model), expected) < 5e-6
        refused(wrapped.model, r"port: .* is accelerated by itself: call restore\(\) of that report first")
    assert parts(wrapped) == before


def test_twice_is_once():
    model = made()
    report = accelerate(model)
    after = parts(model)
    assert accelerate(model) is report
    assert parts(model) == after


@pytest.mark.parametrize("op", OPS)
def test_one_operation_alone(op):
    model = made()
    expected = spoken(model)
    report = accelerate(model, only=[op])
    assert [swap.op for swap in report.swapped] == [op]
    replaced = [path for path, part in model.named_modules() if isinstance(vars(part).get("forward"), Replacement)]
    assert len(replaced) == report.swapped[0].places == dict(zip(OPS, PLACES, strict=True))[op]
    assert error(spoken(model), expected) < 5e-6


def test_nothing_else_changes():
    def switches():
        return [getattr(owner, name) for owner, name, _ in SWITCHES]

    model, random, before = made(), torch.get_rng_state(), switches()
    accelerate(model)
    assert torch.equal(torch.get_rng_state(), random)
    assert switches() == before
    assert torch.is_grad_enabled()


def test_weights_that_are_replaced_are_not_kept():
    model = made()
    accelerate(model)
    gone = weakref.ref(model.layers[1].feed_forward.experts.w13)
    model.layers[1].feed_forward.experts.w13 = nn.Parameter(gone().clone(), requires_grad=False)
    gc.collect()
    assert gone() is None


# Wrong replacements are found.

FIELDS = {
    "embedding": ["frame_embedding"],
    "norm": ["add_rms_norm"],
    "attention": ["qkv_projection", "prefill_attention", "decode_attention", "output_projection"],
    "dense": ["experts"],
    "router": ["router"],
    "experts": ["experts"],
    "head": ["head"],
}


def off(op):
    """An operation whose results are 1 % too large."""

    def larger(result):
        return 1.01 * result if result.is_floating_point() else result

    def wrong(*args, **kwargs):
        result = op(*args, **kwargs)
        return larger(result) if isinstance(result, Tensor) else tuple(map(larger, result))

    return wrong


@pytest.mark.parametrize(("op", "name"), [(op, name) for op, names in FIELDS.items() for name in names])
def test_a_wrong_operation_is_refused(op, name, monkeypatch):
    wrong = dataclasses.replace(REFERENCE, **{name: off(getattr(REFERENCE, name))})
    monkeypatch.setattr(module, "ops_of", lambda *_: wrong)
    model = made()
    refused(
        model, rf"port: {op} cannot be swapped: differs from the original by .*, more than the bound of 1e-04", only=op
    )
    report = accelerate(model, only=op, strict=False)
    assert [left.op for left in report.left] == [op]
    report.restore()
    assert accelerate(model, only=op, verify=False).max_error is None


def test_a_port_that_means_something_else_by_the_same_name_is_refused():
    model = variant(made(), "ffn_norm", lambda self, x: F.rms_norm(x, self.weight.shape, 1 + self.weight, 1e-5))
    refused(model, "port: norm cannot be swapped: differs from the original", only="norm")
    model = variant(made(), "attention", Attention.forward)
    for part in each(model, "attention"):
        part.rope_theta = 10000.0
    model.layers[0].attention.rope_theta = 5000.0
    refused(model, "port: attention cannot be swapped: differs from the original", only="attention")


# Ways to write a router.


class Chosen(NamedTuple):
    ids: Tensor
    weights: Tensor
    state: Tensor


def reordered(self, x, state=None):
    weights, ids, state = Router.forward(self, x, state)
    return [state, ids.int(), weights.to(x.dtype)]


def named(self, x, state=None):
    weights, ids, state = Router.forward(self, x, state)
    return Chosen(ids, weights, state)


def with_probabilities(self, x, state=None):
    weights, ids, s = Router.forward(self, x, state)
    return weights, ids, s, self.router_mlp(self.rmsnorm_eda(s)).softmax(-1)


def for_batches(self, x, state=None):
    B, T, _ = x.shape
    return tuple(part.view(B, T, -1) for part in Router.forward(self, x, state))


@pytest.mark.parametrize("forward", [reordered, named, with_probabilities, for_batches])
def test_routers_differ_in_what_they_return(forward):
    model = variant(made(), "feed_forward.router", forward)
    x = torch.randn(1, 5, CONFIG.dim, generator=torch.Generator().manual_seed(1))
    expected = [router(x) for router in each(model, "feed_forward.router")]
    with accelerate(model, only="router"):
        found = [router(x) for router in each(model, "feed_forward.router")]
    for new, old in zip(found, expected, strict=True):
        assert type(new) is type(old)
        assert [(t.shape, t.dtype) for t in new] == [(t.shape, t.dtype) for t in old]
        assert max(error(a.double(), b.double()) for a, b in zip(new, old, strict=True)) < 1e-5


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("said", [False, True])
def test_whether_biases_are_added_or_subtracted_is_found(sign, said):
    model = made()
    for router in each(model, "feed_forward.router"):
        router.sign = sign
        if said:
            router.moe_balancing_strategy = "Legacy" if sign == 1 else "quantile"
    expected = spoken(model)
    accelerate(model)
    assert error(spoken(model), expected) < 5e-6


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        ("quantile", "chooses other experts than the official router with its balancing_biases subtracted"),
        ("random", "moe_balancing_strategy must be one of legacy, old, .*, got 'random'"),
    ],
)
def test_what_a_port_says_of_its_biases_must_hold(strategy, message):
    model = made()
    model.config = {"moe_balancing_strategy": strategy}
    refused(model, rf"port: router cannot be swapped: layers\.1\.feed_forward\.router:? {message}", only="router")


def test_biases_too_small_to_tell_how_they_enter():
    model = made()
    for router in each(model, "feed_forward.router"):
        router.balancing_biases.mul_(1e-9)
    refused(model, "makes no difference whether balancing_biases are added or subtracted: name moe_balancing_strategy")
    model.config = {"moe_balancing_strategy": "legacy"}
    assert len(accelerate(model).swapped) == len(OPS)


def test_biases_of_zero_have_no_sign():
    model = made()
    for router in each(model, "feed_forward.router"):
        router.balancing_biases.zero_()
    assert len(accelerate(model).swapped) == len(OPS)


def renormalised(self, x, state=None):
    weights, ids, state = Router.forward(self, x, state)
    return 0.9 * weights, ids, state


def unequal(self, x, state=None):
    weights, ids, state = Router.forward(self, x, state)
    return weights, (ids + 1) % CONFIG.moe_n_experts, state


def twice(self, x, state=None):
    weights, ids, state = Router.forward(self, x, state)
    return weights, ids, state, ids


def without_ids(self, x, state=None):
    weights, _, state = Router.forward(self, x, state)
    return weights, state


def with_a_loss(self, x, state=None):
    return *Router.forward(self, x, state), x.new_zeros(len(x), 7)


def in_a_dict(self, x, state=None):
    return {"ids": x}


def failing(self, x, state=None):
    raise KeyError("no mesh")


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (renormalised, "router cannot be swapped: differs from the original by"),
        (unequal, r"feed_forward\.router chooses other experts than the official router .* added or subtracted"),
        (without_ids, r"feed_forward\.router\.forward returns no ids: 2 tensors, none of them of integers"),
        (
            with_a_loss,
            r"feed_forward\.router\.forward returns \[8, 7\] of torch\.float32, which is no part of a routing",
        ),
        (
            twice,
            r"feed_forward\.router\.forward returns expert_weights, expert_ids, state, expert_ids: one of them twice",
        ),
        (in_a_dict, r"feed_forward\.router\.forward returns dict, accepted is a tuple of tensors"),
        (failing, r"feed_forward\.router\.forward fails on samples: 'no mesh'"),
        (lambda self, x: x, r"feed_forward\.router\.forward takes \(self, x\)|takes \(x\), accepted is \(x, state\)"),
    ],
)
def test_routers_that_are_refused(forward, message):
    refused(variant(made(), "feed_forward.router", forward), message, only="router")


# Ways to write experts.


def ids_first(self, x, ids, weights):
    return Experts.forward(self, x, weights, ids)


def rows_only(self, x, weights, ids):
    _rows, _width = x.shape
    return Experts.forward(self, x, weights, ids)


@pytest.mark.parametrize("forward", [ids_first, rows_only])
@pytest.mark.parametrize("backend", BACKENDS)
def test_experts_differ_in_what_they_take(forward, backend):
    model = variant(made(), "feed_forward.experts", forward)
    x = torch.randn(5, CONFIG.dim, generator=torch.Generator().manual_seed(1))
    given = {"x": x, "weights": torch.rand(5, 2), "ids": torch.tensor([[0, 3], [3, 1], [2, 0], [0, 1], [3, 2]])}
    expected = model.layers[1].feed_forward.experts(**given)
    accelerate(model, only="experts", backend=backend)
    assert error(model.layers[1].feed_forward.experts(**given), expected) < 1e-6


def test_experts_take_the_routers_order_only_of_the_routers_ids(monkeypatch):
    model = made()
    mixture = model.layers[1].feed_forward
    x = torch.randn(1, 5, CONFIG.dim, generator=torch.Generator().manual_seed(1))
    others = torch.tensor([[[0, 3], [3, 1], [2, 0], [0, 1], [3, 2]]])
    weights, routed, _ = mixture.router(x)
    expected = mixture.experts(x, weights, routed), mixture.experts(x, weights, others)
    accelerate(model)
    weights, ids, _ = mixture.router(x)
    assert error(mixture.experts(x, weights, others), expected[1]) < 1e-6
    ids.copy_(others)  # as somebody may who drops experts
    assert error(mixture.experts(x, weights, ids), expected[1]) < 1e-6
    weights, ids, _ = mixture.router(x)
    monkeypatch.setattr(structure, "by_expert", None)  # not needed
    assert error(mixture.experts(x, weights, ids), expected[0]) < 1e-6


def test_experts_that_are_refused():
    model = variant(made(), "feed_forward.experts", lambda self, x, weights, ids: Experts.forward(self, x, ids, ids))
    refused(model, "port: experts cannot be swapped: differs from the original", only="experts")
    model = variant(made(), "feed_forward.experts", lambda self, x, routing: x)
    refused(model, r"experts\.forward takes \(x, routing\), accepted is \(x, weights, ids\)", only="experts")
    model = made()
    for experts in each(model, "feed_forward.experts"):
        experts.gate_up_proj = experts.w13
        del experts.w13
    refused(model, r"layers\.1\.feed_forward\.experts holds neither w13 and w2 nor a weight and a bias", only="experts")


class OneExpert(nn.Module):
    """Its weights may be patched at use."""

    weight_function = ()

    def __init__(self, w13, w2):
        super().__init__()
        self.weight, self.bias = (nn.Parameter(w.clone(), requires_grad=False) for w in (w13, w2))

    def forward(self, x):
        weight = self.weight
        for patch in self.weight_function:
            weight = patch(weight)
        both = F.linear(x, weight)
        return F.linear(F.silu(both[:, 0::2]) * both[:, 1::2], self.bias)


class Apart(nn.Module):
    """Experts that are modules of their own."""

    def __init__(self, experts):
        super().__init__()
        self.experts = nn.ModuleList(map(OneExpert, experts.w13, experts.w2))

    def forward(self, x, weights, ids):
        y = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            mine = (ids == e).any(-1)
            y[mine] += (weights * (ids == e)).sum(-1, keepdim=True)[mine] * expert(x[mine]) if mine.any() else 0
        return y


def apart():
    model = made()
    for layer in model.layers[1:]:
        layer.feed_forward.experts = Apart(layer.feed_forward.experts)
    return model.eval()


@pytest.mark.parametrize("backend", BACKENDS)
def test_experts_may_be_modules_of_their_own(backend):
    model = apart()
    expected = spoken(model)
    assert error(expected, spoken(made())) < 1e-6
    assert accelerate(model, only="experts", backend=backend).swapped[0].places == 2 * CONFIG.moe_n_experts
    assert error(spoken(model), expected) < 1e-6


def test_what_is_patched_at_use_is_the_ports_own_affair():
    model, x = apart(), torch.randn(2, CONFIG.dim, generator=torch.Generator().manual_seed(1))
    expert = model.layers[1].feed_forward.experts.experts[0]
    accelerate(model, only="experts")
    plain = expert(x)
    expert.weight_function = [torch.neg]
    assert error(expert(x), plain) > 0.1
    expert.weight_function = ()
    assert torch.equal(expert(x), plain)


def test_an_expert_of_another_shape():
    model = apart()
    model.layers[2].feed_forward.experts.experts[1].bias = nn.Parameter(torch.zeros(3), requires_grad=False)
    refused(model, r"experts\.experts\.1\.bias must have shape \[32, 48\], got \[3\]", only="experts")


# Ways to keep a cache.


def test_a_cache_that_is_not_known_is_left():
    model = variant(made(), "attention", lambda self, x, handle: self.wo(handle.run(self.wq(x))))
    report = accelerate(model)
    assert [left.op for left in report.left] == ["attention"]
    assert "does not take a cache with key, value [B, L, HKV, DH] and length: AttributeError" in report.left[0].reason
    model = variant(made(), "attention", lambda self, x, cache, mask: x)
    assert "takes (x, cache, mask)" in accelerate(model).left[0].reason


def test_who_has_no_forward_is_left():
    model = made()
    for layer in model.layers:
        layer.attention.__class__ = type("Held", (nn.Module,), {})
    report = accelerate(model)
    reason = "layers.0.attention has no forward: whoever holds its weights computes with them"
    assert [(left.op, left.reason) for left in report.left] == [("attention", reason)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_pieces_of_a_prompt_are_the_ports_own_affair(backend):
    model = made()
    expected = spoken(model, (3, 4, 1, 1))
    accelerate(model, only="attention", backend=backend)
    assert error(spoken(model, (3, 4, 1, 1)), expected) < 5e-6


def test_a_full_cache_is_the_ports_own_affair():
    model = made()
    accelerate(model, only="attention")
    with pytest.raises(RuntimeError, match=r"size of tensor a \(8\) must match the size of tensor b \(9\)"):
        spoken(model, room=8)


def test_a_backend_that_attention_is_told():
    def told(self, x, cache, attention_backend):
        assert attention_backend == "sdpa"
        return Attention.forward(self, x, cache)

    model = variant(made(), "attention", told)
    assert accelerate(model, only="attention").swapped[0].places == 3


# Ways to hold weights.


def test_keys_and_values_may_lie_in_one_matrix():
    class Flat(nn.Module):
        def __init__(self, stacked):
            super().__init__()
            self.weight = nn.Parameter(stacked.weight.flatten(0, 1), requires_grad=False)

        def forward(self, x):
            return F.linear(x, self.weight).chunk(2, -1)

    model = made()
    expected = spoken(model)
    for layer in model.layers:
        layer.attention.wkv = Flat(layer.attention.wkv)
    model.layers[0].feed_forward.w_in = Flat(model.layers[0].feed_forward.w_in)
    model.eval()
    assert len(accelerate(model).swapped) == len(OPS)
    assert error(spoken(model), expected) < 5e-6


@pytest.mark.parametrize("eps", [None, 1e-5])
def test_norms_of_torch(eps):
    model = made()
    for layer in model.layers:
        norm = nn.RMSNorm(CONFIG.dim, eps)
        norm.weight = layer.ffn_norm.weight
        layer.ffn_norm = norm.eval()
    assert accelerate(model, only="norm").max_error < 5e-6


@pytest.mark.parametrize(
    ("start", "end", "left"),
    [(0, 0, {"dense": "no layer is dense"}), (1, 2, {"router": "no layer is a mixture of experts"})],
)
def test_models_without_dense_layers_or_mixtures(start, end, left):
    experts = 1 if end else CONFIG.moe_n_experts
    config = dataclasses.replace(
        CONFIG, moe_start_from_layer=start, moe_end_from_layer=end, moe_n_experts=experts, special_topk_layers=()
    )
    model = made(config=config)
    expected = spoken(model)
    report = accelerate(model)
    assert {left.op: left.reason for left in report.left}.items() >= left.items()
    assert error(spoken(model), expected) < 5e-6


@pytest.mark.parametrize("backend", BACKENDS)
def test_more_rows_than_decode_together(backend, monkeypatch):
    for part in (structure, attention):
        monkeypatch.setattr(part, "SEQUENCES_AT_ONCE", 4)
    monkeypatch.setattr(moe, "ROWS_AT_ONCE", 8)
    model = made()
    expected = spoken(model, (4, 1), ids(5, 5))
    accelerate(model, backend=backend)
    assert error(spoken(model, (4, 1), ids(5, 5)), expected) < 5e-6


def test_inference_mode():
    model = made()
    expected = spoken(model)
    accelerate(model)
    with torch.inference_mode():
        assert error(spoken(model), expected) < 5e-6
    assert error(spoken(model), expected) < 5e-6


def test_codes_out_of_range():
    model = made()
    accelerate(model, only="embedding")
    for wrong in (-1, CONFIG.codebook_vocab):
        tokens = ids()
        tokens[0, 0, 1] = wrong
        with pytest.raises(IndexError, match=r"multi_embedder: codes must be in 0\.\.31, text in 0\.\.519"):
            model.multi_embedder(tokens)


# Weights that change.


@pytest.mark.parametrize(
    "name",
    ["multi_embedder.embedders.2.weight", "layers.1.attention.temp", "layers.2.feed_forward.router.balancing_biases"],
)
def test_a_change_of_what_was_packed_is_an_error(name):
    model = made()
    report = accelerate(model)
    model.get_parameter(name).mul_(2)
    with pytest.raises(RuntimeError, match=rf"{name} was changed after accelerate\(\).* call report\.restore\(\)"):
        spoken(model)
    report.restore()
    expected = spoken(model)
    accelerate(model)
    assert error(spoken(model), expected) < 5e-6


def test_a_change_of_the_other_weights_is_followed():
    model, other = made(), made()
    accelerate(model)
    for changed in (model, other):
        changed.layers[0].attention.wo.weight.mul_(-2)
        changed.layers[1].feed_forward.experts.w13 = nn.Parameter(
            changed.layers[1].feed_forward.experts.w13.flip(0), requires_grad=False
        )
    assert error(spoken(model), spoken(other)) < 5e-6


# What is refused, with nothing touched.


def trained(model):
    model.layers[1].train()


def gradients(model):
    model.layers[1].attention.wo.weight.requires_grad_(True)


def on_meta(model):
    model.multi_output.weight = nn.Parameter(model.multi_output.weight.to("meta"), requires_grad=False)


def half(model):
    model.layers[2].ffn_norm.half()


def hooked(model):
    model.layers[1].register_forward_pre_hook(lambda *_: None)


def misshapen(model):
    model.layers[0].feed_forward.w_in = Stacked(3, CONFIG.ffn_dim, CONFIG.dim).eval().requires_grad_(False)


def without_gate(model):
    del model.layers[0].attention.gater


def without_norm(model):
    del model.layers[1].ffn_norm.weight


def without_eps(model):
    def forward(self, x):
        return F.rms_norm(x, self.weight.shape, self.weight, 1e-5)

    model.out_norm.__class__ = type("Fixed", (Norm,), {"forward": forward})
    del model.out_norm.variance_epsilon
    del model.eps


def fused_norm(model):
    model.out_norm.__class__ = type("Fused", (Norm,), {"forward": lambda self, x, residual: x})


def failing_norm(model):
    def forward(self, x):
        raise ArithmeticError("no mesh")

    model.out_norm.__class__ = type("Failing", (Norm,), {"forward": forward})


def strange_vocabulary(model):
    embedder = nn.Embedding(100, CONFIG.dim).eval().requires_grad_(False)
    model.multi_embedder.embedders[3] = embedder


def compiled(model):
    model.layers[1].compile()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (trained, r"port: layers\.1 is in training mode: call \.eval\(\)"),
        (gradients, r"port: layers\.1\.attention\.wo\.weight requires gradients"),
        (on_meta, r"port: multi_output\.weight is on the meta device: load the weights first"),
        (
            half,
            r"port: weights must be of one dtype, got torch\.float32 of .* torch\.float16 of layers\.2\.ffn_norm",
        ),
        (hooked, r"port: layers\.1 has a forward hook"),
        (
            misshapen,
            r"dense cannot be swapped: layers\.0\.feed_forward\.w_in\.weight must have shape \[2, 48, 32\], got \[3,",
        ),
        (without_gate, r"port: has no layers\.0\.attention\.gater\.weight, which the official checkpoint has"),
        (without_norm, r"norm cannot be swapped: layers\.1\.ffn_norm\.weight \[32\] is missing"),
        (without_eps, r"norm cannot be swapped: out_norm has no eps, variance_epsilon or norm_eps"),
        (fused_norm, r"norm cannot be swapped: out_norm\.forward takes \(x, residual\), accepted is \(x\)"),
        (failing_norm, r"port: out_norm\.forward fails on samples of shape \[\[3, 32\]\]: no mesh"),
        (strange_vocabulary, r"port: its shapes are those of no ZONOS2: text_vocab 99 leaves"),
        (compiled, r"port: layers\.1 is compiled already: accelerate first, then compile"),
    ],
)
def test_models_that_are_refused(spoil, message):
    model = made()
    spoil(model)
    refused(model, message)


@COMPILED
def test_sizes_that_kernels_do_not_take():
    config = dataclasses.replace(CONFIG, head_dim=24)
    refused(made(config=config), "the head dimension must be a power of two from 16, got 24", backend="triton")
    assert len(accelerate(made(config=config), backend="reference").swapped) == len(OPS)


@COMPILED
def test_weights_that_kernels_cannot_read_where_they_lie():
    model = made()
    weight = torch.cat([torch.zeros(1), model.out_norm.weight])[1:]
    model.out_norm.weight = nn.Parameter(weight, requires_grad=False)
    refused(
        model, r"out_norm\.weight must be contiguous and start at a multiple of 16 bytes .* clone it", backend="triton"
    )
    accelerate(model, backend="reference")


def test_a_failure_half_way_is_rolled_back():
    class Stubborn(Norm):
        def __setattr__(self, name, value):
            if name == "forward":
                raise RuntimeError("half-way")
            super().__setattr__(name, value)

    model = made()
    model.out_norm.__class__ = Stubborn
    refused(model, "half-way", RuntimeError)


@pytest.mark.parametrize("other", [nn.Linear(2, 2), nn.ModuleDict({"multi_embedder": nn.Embedding(3, 3)})])
def test_modules_of_another_kind(other):
    with pytest.raises(TypeError, match=r"is of no known kind; known: .*official tensor names"):
        accelerate(other)


@pytest.mark.parametrize("copied", [copy.deepcopy, pickle.dumps])
def test_copies_are_refused(copied):
    model = made()
    with (
        accelerate(model),
        pytest.raises(TypeError, match=r"cannot be copied or saved whole: call report\.restore\(\)"),
    ):
        copied(model)
    assert torch.equal(spoken(copy.deepcopy(model)), spoken(model))


def test_state_dicts_stay_as_they_are():
    model = made()
    before = model.state_dict()
    accelerate(model)
    after = model.state_dict()
    assert [*after] == [*before]
    assert all(after[name].data_ptr() == before[name].data_ptr() for name in before)


def test_the_report():
    report = accelerate(made())
    told = json.loads(report.json())
    assert told["host"] == "port"
    assert [row["op"] for row in told["swapped"]] == OPS
    assert str(report).startswith("port: 7 operations by the reference backend")


# The node of ComfyUI, whose experts are modules of their own.


@pytest.fixture(scope="module")
def comfy(tmp_path_factory):
    """Its model on the weights of CONFIG; ZONOS2_COMFYUI names a checkout of Saganaki22/Zonos2_TTS-ComfyUI."""
    folder = os.environ.get("ZONOS2_COMFYUI")
    if not folder:
        pytest.skip("ZONOS2_COMFYUI names no checkout of Saganaki22/Zonos2_TTS-ComfyUI")
    spec = importlib.util.spec_from_file_location("comfy_native", Path(folder) / "native.py")
    native = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "comfy_native", native)
        spec.loader.exec_module(native)
    params = {**PARAMS, "quality_buckets": {}, "quality_features": []}
    params |= {name: getattr(CONFIG, name) for name in PARAMS if name in CONFIG.__dataclass_fields__}
    config = native.Zonos2Config.from_dict(params | {"quality_features": [], "special_topk_layers": {1: 2}})

    def load(dtype=torch.float32):
        model = native.build_native_model(config)
        for name, tensor in weights().items():
            if name.endswith(("w13", "w2")):
                for expert, own in zip(model.get_submodule(name.rpartition(".")[0]).experts, tensor, strict=True):
                    kept = nn.Parameter(own.to(dtype, copy=True), requires_grad=False)
                    setattr(expert, "weight" if name.endswith("w13") else "bias", kept)
            else:
                native._set_parameter(model, name, tensor, torch.device("cpu"), dtype)
        model.eval().materialize_runtime_buffers(torch.device("cpu"))
        return model

    return load


def comfy_spoken(model, pieces=(7, 1, 1)):
    dtype = model.multi_output.weight.dtype
    caches = model.create_kv_cache(2, 12, torch.device("cpu"), dtype)
    return torch.stack([model(piece, caches, "sdpa") for piece in ids().split(pieces, 1)], 1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_comfy(comfy, backend):
    model = comfy()
    before, expected = parts(model), comfy_spoken(model)
    assert error(expected, spoken(made())[:, 6:]) < 1e-5
    report = accelerate(model, backend=backend)
    assert [(swap.op, swap.places) for swap in report.swapped] == [*zip(OPS, [1, 9, 3, 1, 2, 8, 1], strict=True)]
    assert error(comfy_spoken(model), expected) < 5e-6
    report.restore()
    assert parts(model) == before


def test_comfy_in_half_precision(comfy):
    assert accelerate(comfy(torch.bfloat16)).max_error < 2e-2
