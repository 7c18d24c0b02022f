"""Variants of a router and of experts: those that are patched, and those that are refused."""

from collections import namedtuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.integrations.standins import refused
from tests.integrations.torch_model import Experts, Router
from tests.integrations.torch_module.tiny import CONFIG, OPS, each, logits, made, rows, variant
from zonos2_triton.model import accelerate
from zonos2_triton.model.integrations.accelerate import difference
from zonos2_triton.model.integrations.torch_module import structure

ROUTER, EXPERTS = "feed_forward.router", "feed_forward.experts"
CHOICES = torch.tensor([[[0, 3], [3, 1], [2, 0], [0, 1], [3, 2]]])
Chosen = namedtuple("Chosen", "ids weights state")


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
    return tuple(result.view(B, T, -1) for result in Router.forward(self, x, state))


@pytest.mark.parametrize("forward", [reordered, named, with_probabilities, for_batches])
def test_routers_differ_in_what_they_return(forward):
    model = variant(made(), ROUTER, forward)
    expected = [router(rows()) for router in each(model, ROUTER)]
    with accelerate(model, only="router", backend="reference"):
        found = [router(rows()) for router in each(model, ROUTER)]
    for new, old in zip(found, expected, strict=True):
        assert type(new) is type(old)
        assert difference(new, old) < 1e-5


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("said", [False, True])
def test_whether_biases_are_added_or_subtracted_is_found(sign, said):
    model = made()
    for router in each(model, ROUTER):
        router.sign = sign
        if said:
            router.moe_balancing_strategy = "Legacy" if sign == 1 else "quantile"
    expected = logits(model)
    accelerate(model, backend="reference")
    assert difference(logits(model), expected) < 5e-6


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        ("quantile", "chooses other experts than the official router with its balancing_biases subtracted"),
        ("random", "moe_balancing_strategy must be one of legacy, old, .*, got 'random'"),
    ],
)
def test_a_configured_sign_of_the_biases_must_hold(strategy, message):
    model = made()
    model.config = {"moe_balancing_strategy": strategy}
    message = rf"torch_module: router cannot be patched: layers\.1\.feed_forward\.router:? {message}"
    refused(model, message, only="router")


def test_biases_too_small_to_tell_how_they_enter():
    """Zero biases need no sign."""
    model = made()
    for router in each(model, ROUTER):
        router.balancing_biases.mul_(1e-9)
    refused(model, "makes no difference whether balancing_biases are added or subtracted: name moe_balancing_strategy")
    model.config = {"moe_balancing_strategy": "legacy"}
    accelerate(model, backend="reference").restore()
    del model.config
    for router in each(model, ROUTER):
        router.balancing_biases.zero_()
    assert len(accelerate(model, backend="reference").patched) == len(OPS)


def returning(change):
    """A router whose results pass through change(weights, ids, state)."""
    return lambda self, x, state=None: change(*Router.forward(self, x, state))


def failing(self, x, state=None):
    raise KeyError("no mesh")


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (returning(lambda w, ids, s: (0.9 * w, ids, s)), "router cannot be patched: differs from the original by"),
        (returning(lambda w, ids, s: (w, (ids + 1) % 4, s)), r"router chooses other experts .* added or subtracted"),
        (returning(lambda w, ids, s: (w, s)), r"router\.forward returns no ids: 2 tensors, none of them of integers"),
        (returning(lambda w, ids, s: (w, ids, s, w.new_zeros(len(w), 7))), r"returns \[8, 7\] of torch\.float32, "),
        (returning(lambda w, ids, s: (w, ids, s, ids)), "expert_ids, router_state, expert_ids: one of them twice"),
        (returning(lambda w, ids, s: {"ids": ids}), r"router\.forward returns dict, accepted is a tuple of tensors"),
        (failing, r"feed_forward\.router\.forward fails on samples: 'no mesh'"),
        (lambda self, x: x, r"feed_forward\.router\.forward takes \(self, x\)|takes \(x\), accepted is \(x, state\)"),
    ],
)
def test_routers_that_are_refused(forward, message):
    refused(variant(made(), ROUTER, forward), message, only="router")


def ids_first(self, x, ids, weights):
    return Experts.forward(self, x, weights, ids)


def rows_only(self, x, weights, ids):
    _rows, _width = x.shape
    return Experts.forward(self, x, weights, ids)


@pytest.mark.parametrize("forward", [ids_first, rows_only])
def test_experts_differ_in_what_they_take(forward, slower_backend):
    model = variant(made(), EXPERTS, forward)
    given = {"x": rows()[0], "weights": torch.rand(5, 2), "ids": CHOICES[0]}
    expected = model.layers[1].feed_forward.experts(**given)
    accelerate(model, only="experts", backend=slower_backend)
    assert difference(model.layers[1].feed_forward.experts(**given), expected) < 1e-6


def test_experts_take_the_routers_order_only_of_the_routers_ids(monkeypatch):
    model, x = made(), rows()
    mixture = model.layers[1].feed_forward
    weights, routed, _ = mixture.router(x)
    expected = mixture.experts(x, weights, routed), mixture.experts(x, weights, CHOICES)
    accelerate(model, backend="reference")
    weights, ids, _ = mixture.router(x)
    assert difference(mixture.experts(x, weights, CHOICES), expected[1]) < 1e-6
    ids.copy_(CHOICES)  # as in a model that drops experts
    assert difference(mixture.experts(x, weights, ids), expected[1]) < 1e-6
    weights, ids, _ = mixture.router(x)
    monkeypatch.setattr(structure, "by_expert", None)  # not needed
    assert difference(mixture.experts(x, weights, ids), expected[0]) < 1e-6


def test_experts_that_are_refused():
    model = variant(made(), EXPERTS, lambda self, x, weights, ids: Experts.forward(self, x, ids, ids))
    refused(model, "torch_module: experts cannot be patched: differs from the original", only="experts")
    model = variant(made(), EXPERTS, lambda self, x, routing: x)
    refused(model, r"experts\.forward takes \(x, routing\), accepted is \(x, weights, ids\)", only="experts")
    model = made()
    for experts in each(model, EXPERTS):
        experts.gate_up_proj = experts.w13
        del experts.w13
    refused(model, r"layers\.1\.feed_forward\.experts holds neither w13 and w2 nor a weight and a bias", only="experts")


class OneExpert(nn.Module):
    """An expert whose weights may be patched at use."""

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
    def __init__(self, experts):
        super().__init__()
        self.experts = nn.ModuleList(map(OneExpert, experts.w13, experts.w2))

    def forward(self, x, weights, ids):
        y = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            mine = (ids == e).any(-1)
            y[mine] += (weights * (ids == e)).sum(-1, keepdim=True)[mine] * expert(x[mine]) if mine.any() else 0
        return y


@pytest.fixture
def apart():
    model = made()
    for layer in model.layers[1:]:
        layer.feed_forward.experts = Apart(layer.feed_forward.experts)
    return model.eval()


def test_experts_may_be_modules_of_their_own(apart, slower_backend):
    expected = logits(apart)
    assert difference(expected, logits(made())) < 1e-6
    assert accelerate(apart, only="experts", backend=slower_backend).patched[0].sites == 2 * CONFIG.moe_n_experts
    assert difference(logits(apart), expected) < 1e-6


def test_weights_patched_at_use_run_the_original(apart):
    expert, x = apart.layers[1].feed_forward.experts.experts[0], rows(2)[0]
    accelerate(apart, only="experts", backend="reference")
    plain = expert(x)
    expert.weight_function = [torch.neg]
    assert difference(expert(x), plain) > 0.1
    expert.weight_function = ()
    assert torch.equal(expert(x), plain)


def test_an_expert_of_another_shape(apart):
    apart.layers[2].feed_forward.experts.experts[1].bias = nn.Parameter(torch.zeros(3), requires_grad=False)
    refused(apart, r"experts\.experts\.1\.bias must have shape \[32, 48\], got \[3\]", only="experts")
