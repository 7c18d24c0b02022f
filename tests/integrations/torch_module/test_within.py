"""Ports whose weights require gradients, as they come, with weights that parts share, and beside other models."""

import copy

import pytest
import torch
from torch import nn

from tests.integrations.standins import held, refused
from tests.integrations.torch_module.port import OPS, ids, made, rows, spoken
from zonos2_triton.model import accelerate
from zonos2_triton.model.integrations.accelerate import difference


@pytest.mark.parametrize("without", [torch.no_grad, torch.inference_mode])
def test_weights_may_require_gradients(backend, without):
    model = made().requires_grad_(True)
    with without():
        expected = spoken(model)
        report = accelerate(model, backend=backend)
        assert [row.op for row in report.swapped] == OPS
        assert all(row.where.endswith(", under torch.no_grad()") for row in report.swapped)
        assert 0 < difference(spoken(model), expected) < 5e-6


def test_with_gradients_the_original_makes_them():
    model = made().requires_grad_(True)
    other = copy.deepcopy(model)
    accelerate(model, backend="reference")
    for each in (model, other):
        x = each.multi_embedder(ids())
        for part in (each.layers[0].feed_forward, each.layers[2].ffn_norm, each.out_norm, each.multi_output):
            y = part(x)
            x = y if y.shape == x.shape else x
            y.square().sum().backward(retain_graph=True)
        sum(part.float().sum() for part in each.layers[1].feed_forward.router(rows())).backward()
    for (name, new), (_, old) in zip(model.named_parameters(), other.named_parameters(), strict=True):
        assert (new.grad is None) == (old.grad is None), name
        assert new.grad is None or torch.equal(new.grad, old.grad), name
    assert model.layers[1].feed_forward.router.down_proj.weight.grad.any()


def test_weights_that_require_none_are_not_asked_for_their_own():
    """As with adapters before it: gradients go through it to its input."""
    model, x = made(), torch.randn(3, 32, requires_grad=True)
    want = torch.autograd.grad(model.out_norm(x).sum(), x)[0]
    accelerate(model, backend="reference")
    assert torch.equal(torch.autograd.grad(model.out_norm(x).sum(), x)[0], want)


def test_tied_weights():
    model = made()
    model.multi_embedder.embedders[1].weight = model.multi_embedder.embedders[0].weight
    model.layers[2].attention = model.layers[1].attention
    expected = spoken(model)
    before = held(model)
    with accelerate(model, backend="reference") as report:
        assert [row.op for row in report.swapped] == OPS
        assert difference(spoken(model), expected) < 5e-6
    assert held(model) == before


def test_two_ports_side_by_side():
    both = nn.ModuleDict({"small": made(), "large": nn.Sequential(made())}).eval()
    before, expected = held(both), spoken(both["large"][0])
    refused(both.train(), r"small: port: \w+ is in training mode: call \.eval\(\)")
    report = accelerate(both.eval(), backend="reference")
    assert report.host == "small: port, large.0: port"
    assert difference(spoken(both["large"][0]), expected) < 5e-6
    report.restore()
    assert held(both) == before
