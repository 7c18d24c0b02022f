"""`accelerate` with a toy integration: the behaviour that all integrations share."""

import copy
import json
import pickle
from contextlib import nullcontext
from importlib.metadata import version

import pytest
import torch
from torch import nn

from tests.integrations.standins import held, refused
from tests.integrations.writes import fixed
from zonos2_triton.model.integrations import accelerate as module
from zonos2_triton.model.integrations.accelerate import Candidate, accelerate, difference
from zonos2_triton.model.integrations.patching import Replacement, WeightGuard, check_module, check_weights


class Doubler(nn.Module):
    """A model with two operations on one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((4,), 2.0), requires_grad=False)
        self.inner = nn.Linear(4, 4).requires_grad_(False)
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.double(x) + self.shift(x)

    def double(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight

    def shift(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1


class DoublerIntegration:
    name, package, versions, ops = "Doubler", "torch", ("2", "3"), ("double", "shift")
    factor = 1.0  # error of the replacement
    mismatches: dict[str, str] = {}  # noqa: RUF012
    unsupported: dict[str, str] = {}  # noqa: RUF012

    def recognises(self, obj):
        return isinstance(obj, Doubler)

    def check(self, obj):
        check_module(self.name, obj)
        return check_weights(self.name, obj.named_parameters())

    def candidates(self, obj, backend, ops):
        made = {"double": lambda x: (x + x) * self.factor, "shift": lambda x: x + 1}
        for op in ops:
            forward, original, x = made[op], getattr(obj, op), torch.arange(1.0, 5.0)
            sites = [(obj, op, Replacement(forward, original))]
            check = lambda forward=forward, original=original, x=x: (forward(x), original(x))  # noqa: E731
            yield Candidate(op, op, sites, check, 1e-6, self.mismatches.get(op), self.unsupported.get(op))


@pytest.fixture
def toy(monkeypatch):
    made = DoublerIntegration()
    monkeypatch.setattr(module, "known_integrations", lambda: [made])
    return made


@pytest.fixture
def model():
    return Doubler()


def test_patch_and_restore_of_the_same_attributes(toy, model):
    before, x = held(model), torch.ones(4)
    report = accelerate(model, backend="reference")
    assert {patch.op: patch.error for patch in report.patched} == {"double": 0.0, "shift": 0.0}
    assert isinstance(model.double, Replacement)
    assert torch.equal(model(x), torch.full((4,), 4.0))
    after = held(model)
    assert accelerate(model, backend="reference") is report
    assert held(model) == after
    for _ in range(2):
        report.restore()
        assert held(model) == before


def test_a_with_block_restores_even_after_an_error(toy, model):
    before = held(model)

    def fail():
        with accelerate(model, backend="reference"):
            assert held(model) != before
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert held(model) == before


def test_what_is_accelerated_otherwise_is_refused(toy, model):
    report = accelerate(model, backend="reference")
    refused(model, "Doubler is accelerated already, with other arguments: call report.restore", only=["double"])
    object.__setattr__(report, "version", "0.0.1")
    refused(model, r"Doubler was accelerated by zonos2-triton 0\.0\.1, this is ")


@pytest.mark.parametrize("only", [["double"], ("double",), {"double"}, "double"])
def test_only_what_is_named(toy, model, only):
    assert [patch.op for patch in accelerate(model, only=only, backend="reference").patched] == ["double"]
    assert "shift" not in vars(model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"only": ["treble"]}, r"only: Doubler has no operation 'treble'; it has double, shift"),
        ({"only": []}, r"only: names no operation; Doubler has double, shift"),
        ({"backend": "cuda"}, "backend must be one of reference, triton, auto, got 'cuda'"),
    ],
)
def test_unknown_arguments(toy, model, options, message):
    refused(model, message, **options)


def failing(x):
    raise RuntimeError("no memory for that")


@pytest.mark.parametrize(
    ("spoil", "op", "reason"),
    [
        (lambda toy, _: setattr(toy, "factor", 1.01), "double", "differs from the original by 1.0e-02, more than"),
        (lambda toy, _: setattr(toy, "mismatches", {"shift": "its bias is odd"}), "shift", "its bias is odd"),
        (lambda _, model: setattr(model, "shift", failing), "shift", "it fails on sample inputs: no memory for that"),
    ],
    ids=["wrong", "mismatch", "failing"],
)
def test_a_mismatch_is_an_error_only_if_strict(toy, model, spoil, op, reason):
    spoil(toy, model)
    refused(model, f"Doubler: {op} cannot be patched: {reason}")
    report = accelerate(model, strict=False, backend="reference")
    assert [row.op for row in report.skipped] == [op]
    assert report.skipped[0].reason.startswith(reason)
    assert {patch.op for patch in report.patched} == {"double", "shift"} - {op}


def test_without_verification_nothing_is_compared(toy, model):
    toy.factor = 1.01
    report = accelerate(model, verify=False, backend="reference")
    assert [patch.error for patch in report.patched] == [None, None]
    assert report.max_error is None
    assert str(report).splitlines()[0].endswith("2 operations by the reference backend, not verified")
    assert [row.split()[-2:] for row in str(report).splitlines()[2:]] == [["verified", "1e-06"]] * 2


class Stubborn(Doubler):
    """Setting its second operation fails."""

    def __setattr__(self, name, value):
        if name == "shift":
            raise RuntimeError("half-way")
        super().__setattr__(name, value)


def test_a_failure_half_way_is_rolled_back(toy):
    refused(Stubborn(), "half-way", RuntimeError)


def test_a_version_that_is_not_known(toy, model, monkeypatch, caplog):
    monkeypatch.setattr(module, "version", lambda name: "9.1" if name == "torch" else "0.1.0")
    refused(model, r"Doubler: torch 9\.1 is none of the versions 2 to below 3 .* strict=False")
    assert accelerate(model, strict=False, backend="reference").package_version == "9.1"
    assert "going by its structure alone" in caplog.text


def test_auto_replaces_nothing_on_a_cpu(toy, model, monkeypatch):
    """The reference would be slower; it runs if a backend, or the meaning of auto, is named."""
    before = held(model)
    for _ in range(2):
        report = accelerate(model)
        assert (report.backend, report.patched, held(model)) == ("none", (), before)
        assert [row.op for row in report.skipped] == ["double", "shift"]
        assert all("on a cpu, where no kernels run" in row.reason for row in report.skipped)
        assert "nothing is replaced\n" in str(report)
        report.restore()
    accelerate(model, backend="reference").restore()
    monkeypatch.setenv("ZONOS2_TRITON_BACKEND", "reference")
    assert accelerate(model).backend == "reference"


def test_disabled(toy, model, monkeypatch):
    monkeypatch.setenv("ZONOS2_TRITON_DISABLE", "1")
    before = held(model)
    report = accelerate(model, backend="reference")
    assert held(model) == before
    assert [row.reason for row in report.skipped] == ["ZONOS2_TRITON_DISABLE=1"] * 2


def test_the_report_is_a_table_and_json(toy, model):
    """An operation that is skipped by design is no error."""
    toy.unsupported = {"shift": "never here"}
    report = accelerate(model, backend="reference")
    told = json.loads(report.json())
    assert told == report.as_dict()
    assert told["patched"] == [{"op": "double", "where": "double", "sites": 1, "error": 0.0, "bound": 1e-6}]
    assert told["skipped"] == [{"op": "shift", "reason": "never here"}]
    title, head, *rows = str(report).splitlines()
    assert title == f"Doubler {version('torch')}: 1 operation by the reference backend, largest error 0.0e+00"
    assert head.split() == ["operation", "where", "sites", "error", "bound"]
    assert [row.split()[0] for row in rows] == ["double", "shift"]
    assert rows[1].endswith("skipped: never here")


NEARLY = nn.ModuleDict({"multi_embedder": nn.Embedding(3, 3)})


@pytest.mark.parametrize("obj", [None, 3, "DAC", object(), nn.Linear(2, 2), NEARLY, torch, DoublerIntegration()])
def test_objects_of_no_known_kind(obj):
    with pytest.raises(TypeError, match=r"is of no known kind; known: .*DacModel.*dac\.DAC.*official tensor names"):
        accelerate(obj)


@pytest.mark.parametrize("copied", [copy.deepcopy, pickle.dumps])
def test_copies_are_refused(toy, model, copied):
    with accelerate(model, backend="reference"):
        for obj in (model, model.double):
            with pytest.raises(TypeError, match=r"cannot be copied or saved whole: call report.restore\(\)"):
                copied(obj)
    assert torch.equal(copy.deepcopy(model)(torch.ones(4)), model(torch.ones(4)))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda m: m.inner.train(), r"Doubler: inner is in training mode: call \.eval\(\)"),
        (lambda m: m.inner.compile(), "Doubler: inner is compiled already: accelerate first, then compile"),
        (lambda m: setattr(m.inner, "bias", fixed(m.inner.bias.to("meta"))), r"inner\.bias is on the meta device"),
        (lambda m: m.inner.half(), r"one dtype, got torch\.float32 of weight and torch\.float16 of inner\.weight"),
        (lambda m: setattr(m, "weight", fixed(torch.ones(4, dtype=torch.int8))), r"weight must .*, got torch\.int8"),
        (lambda m: m.inner.register_forward_hook(print), r"inner has a forward hook, .*: remove <built-in function"),
    ],
    ids=["training", "compiled", "meta", "dtypes", "integers", "hook"],
)
def test_a_state_that_is_refused(toy, model, spoil, message):
    spoil(model)
    refused(model, message)


class Elsewhere(torch.Tensor):
    @property
    def device(self):
        return torch.device("cuda:1")


def test_auto_replaces_nothing_either_on_a_gpu_in_a_type_that_kernels_do_not_have():
    there = torch.ones(2, dtype=torch.float64).as_subclass(Elsewhere)
    assert "in torch.float64 on a cuda, where no kernels run" in module.auto_skips(there)


def test_weights_on_mixed_devices_or_none():
    """A subclass stands for a tensor on another device, which a CPU does not have."""

    there = torch.ones(2).as_subclass(Elsewhere)
    with pytest.raises(ValueError, match=r"X: weights are on mixed devices, a on cpu and b on cuda:1"):
        check_weights("X", [("a", torch.ones(2)), ("b", there)])
    with pytest.raises(ValueError, match="X: holds no weights"):
        check_weights("X", [])


@pytest.mark.parametrize(
    "change",
    [
        lambda whole: whole.__setitem__(1, nn.Linear(3, 3)),
        lambda whole: whole.append(nn.Tanh()),
        lambda whole: whole[1].register_forward_pre_hook(print),
        lambda whole: whole[0].register_forward_hook(print),
        lambda whole: setattr(whole[1], "forward", print),
        lambda whole: setattr(whole[1], "__class__", nn.Identity),
        lambda whole: whole.pop(0),
    ],
    ids=["replaced", "appended", "hook before", "hook after", "forward", "class", "removed"],
)
def test_a_changed_module_is_noticed(change):
    """Also without a guard of weights: a patch would read those of a module that is no longer called."""
    whole = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    guard = WeightGuard(whole, "whole", weights=False)
    whole[1].weight.data.mul_(2)
    guard.check()
    change(whole)
    with pytest.raises(RuntimeError, match=r"^whole(\.\d)? was changed after accelerate"):
        guard.check()


def test_ignored_modules_may_change():
    whole = nn.ModuleDict({"used": nn.Linear(3, 3), "free": nn.Linear(3, 3)})
    guard = WeightGuard(whole, ignore="free")
    whole["free"].weight.data.mul_(2)
    whole["free"] = nn.Linear(2, 2)
    guard.check()


@pytest.mark.parametrize("capturing", [False, True])
def test_of_weights_elsewhere_a_sample_is_read(capturing, monkeypatch):
    """On a GPU a change of a few values, without a write count, may pass unnoticed."""
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    layer = nn.Linear(50, 50, bias=False)
    layer.weight = nn.Parameter(layer.weight.data.as_subclass(Elsewhere), requires_grad=False)
    guard = WeightGuard(layer)
    numbers = layer.weight.data.view(-1)
    numbers[1] += 1
    guard.check()
    numbers *= 2
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    with nullcontext() if capturing else pytest.raises(RuntimeError, match=r"^weight was changed after accelerate"):
        guard.check()


NAN, INF = float("nan"), float("inf")
ONE = torch.ones(2)


@pytest.mark.parametrize(
    ("new", "old", "error"),
    [
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0]), 0.0),
        (torch.tensor([1.0, 2.1]), torch.tensor([1.0, 2.0]), 0.05),
        (torch.zeros(1), torch.zeros(1), 0.0),
        (torch.tensor([0.1]), torch.zeros(1), INF),
        (torch.tensor([NAN]), torch.ones(1), INF),
        (torch.ones(1), torch.tensor([NAN]), INF),
        (torch.zeros(0), torch.zeros(0), 0.0),
        (torch.tensor([1, 2]), torch.tensor([1, 2]), 0.0),
        (torch.tensor([1, 2]), torch.tensor([1, 3]), INF),
        (torch.ones(1), ONE, INF),
        ((ONE, ONE * 1.5), (ONE, ONE), 0.5),
        ((ONE,), (ONE, ONE), INF),
        (ONE, ONE.double(), INF),
        (None, None, 0.0),
        (None, ONE, INF),
    ],
)
def test_difference(new, old, error):
    assert difference(new, old) == pytest.approx(error, rel=1e-6)
