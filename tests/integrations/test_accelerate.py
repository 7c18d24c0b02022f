"""`accelerate` on a host that is made for it: what all hosts have in common."""

import copy
import json
import pickle

import pytest
import torch
from torch import nn

from zonos2_triton.model.integrations import accelerate as module
from zonos2_triton.model.integrations.accelerate import Candidate, accelerate, difference
from zonos2_triton.model.integrations.patching import Replacement, Swaps, Unchanged, check_module, check_weights
from zonos2_triton.model.integrations.report import Report


class Doubler(nn.Module):
    """Somebody's model: two operations on one weight."""

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


class DoublerHost:
    """What a file of `model/integrations` has."""

    name, package, versions, ops = "Doubler", "torch", ("2", "3"), ("double", "shift")
    factor = 1.0  # by which the replacement is wrong
    faults: dict[str, str] = {}  # noqa: RUF012
    left: dict[str, str] = {}  # noqa: RUF012

    def recognises(self, obj):
        return isinstance(obj, Doubler)

    def checked(self, obj):
        check_module(self.name, obj)
        return check_weights(self.name, obj.named_parameters())

    def candidates(self, obj, backend, ops):
        x = torch.arange(1.0, 5.0)
        made = {"double": lambda x: (x + x) * self.factor, "shift": lambda x: x + 1}
        return [
            Candidate(
                op,
                op,
                [(obj, op, Replacement(made[op], getattr(obj, op)))],
                lambda op=op: (made[op](x), getattr(obj, op)(x)),
                1e-6,
                self.faults.get(op),
                self.left.get(op),
            )
            for op in ops
        ]


@pytest.fixture
def host(monkeypatch):
    made = DoublerHost()
    monkeypatch.setattr(module, "known_hosts", lambda: [made])
    return made


def parts(model):
    """Every attribute of every part, by identity."""
    return {(path, name): id(value) for path, part in model.named_modules() for name, value in vars(part).items()}


def test_it_swaps_and_puts_back_the_very_same_attributes(host):
    model = Doubler()
    before, x = parts(model), torch.ones(4)
    report = accelerate(model)
    assert {swap.op: swap.error for swap in report.swapped} == {"double": 0.0, "shift": 0.0}
    assert isinstance(model.double, Replacement)
    assert torch.equal(model(x), torch.full((4,), 4.0))
    report.restore()
    assert parts(model) == before
    report.restore()
    assert parts(model) == before


def test_a_with_block_restores_even_after_an_error(host):
    model = Doubler()
    before = parts(model)

    def fail():
        with accelerate(model):
            assert parts(model) != before
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert parts(model) == before


def test_twice_is_once(host):
    model = Doubler()
    report = accelerate(model)
    after = parts(model)
    assert accelerate(model) is report
    assert parts(model) == after


def test_other_arguments_are_refused_while_it_is_accelerated(host):
    model = Doubler()
    accelerate(model)
    with pytest.raises(ValueError, match=r"Doubler is accelerated already, with other arguments: call report.restore"):
        accelerate(model, only=["double"])


def test_a_report_of_another_version_is_refused(host):
    model = Doubler()
    accelerate(model)
    object.__setattr__(vars(model)[module.MARK], "version", "0.0.1")
    after = parts(model)
    with pytest.raises(ValueError, match=r"Doubler was accelerated by zonos2-triton 0\.0\.1, this is "):
        accelerate(model)
    assert parts(model) == after


@pytest.mark.parametrize("only", [["double"], ("double",), {"double"}, "double"])
def test_only_what_is_named(host, only):
    model = Doubler()
    report = accelerate(model, only=only)
    assert [swap.op for swap in report.swapped] == ["double"]
    assert "shift" not in vars(model)


@pytest.mark.parametrize(
    ("only", "message"),
    [
        (["treble"], r"only: Doubler has no operation 'treble'; it has double, shift"),
        ([], r"only: names no operation; Doubler has double, shift"),
    ],
)
def test_unknown_operations(host, only, message):
    with pytest.raises(ValueError, match=message):
        accelerate(Doubler(), only=only)


def test_a_wrong_replacement_is_found_and_nothing_is_touched(host):
    model, host.factor = Doubler(), 1.01
    before = parts(model)
    with pytest.raises(ValueError, match=r"double cannot be swapped: differs from the original by 1\.0e-02, more than"):
        accelerate(model)
    assert parts(model) == before


def test_a_wrong_replacement_is_left_where_that_is_allowed(host):
    model, host.factor = Doubler(), 1.01
    report = accelerate(model, strict=False)
    assert [swap.op for swap in report.swapped] == ["shift"]
    assert [left.op for left in report.left] == ["double"]
    assert "differs from the original" in report.left[0].reason


def test_without_verification_nothing_is_compared(host):
    model, host.factor = Doubler(), 1.01
    report = accelerate(model, verify=False)
    assert [swap.error for swap in report.swapped] == [None, None]
    assert report.max_error is None
    assert str(report).splitlines()[0].endswith("2 operations by the reference backend, not verified")
    assert [row.split()[-2:] for row in str(report).splitlines()[2:]] == [["verified", "1e-06"]] * 2


def test_a_fault_is_an_error_only_if_strict(host):
    model, host.faults = Doubler(), {"shift": "its bias is of rubber"}
    with pytest.raises(ValueError, match="Doubler: shift cannot be swapped: its bias is of rubber"):
        accelerate(model)
    assert [left.reason for left in accelerate(model, strict=False).left] == ["its bias is of rubber"]


def test_what_is_left_by_design_is_no_error(host):
    host.left = {"shift": "never here"}
    report = accelerate(Doubler())
    assert [(left.op, left.reason) for left in report.left] == [("shift", "never here")]


class Stubborn(Doubler):
    """Fails when its second operation is set."""

    def __setattr__(self, name, value):
        if name == "shift":
            raise RuntimeError("half-way")
        super().__setattr__(name, value)


def test_a_failure_half_way_is_rolled_back(host):
    model = Stubborn()
    before = parts(model)
    with pytest.raises(RuntimeError, match="half-way"):
        accelerate(model)
    assert parts(model) == before


def test_a_version_that_is_not_known(host, monkeypatch):
    monkeypatch.setattr(module, "version", lambda name: "9.1" if name == "torch" else "0.1.0")
    with pytest.raises(ValueError, match=r"Doubler: torch 9\.1 is none of the versions 2 to below 3 .* strict=False"):
        accelerate(Doubler())
    assert accelerate(Doubler(), strict=False).host_version == "9.1"


def test_disabled(host, monkeypatch):
    monkeypatch.setenv("ZONOS2_TRITON_DISABLE", "1")
    model = Doubler()
    before = parts(model)
    report = accelerate(model)
    assert parts(model) == before
    assert [left.reason for left in report.left] == ["ZONOS2_TRITON_DISABLE=1"] * 2


def test_the_report_is_a_table_and_json(host):
    host.left = {"shift": "never here"}
    report = accelerate(Doubler())
    told = json.loads(report.json())
    assert told == report.as_dict()
    assert told["swapped"][0] == {"op": "double", "where": "double", "places": 1, "error": 0.0, "bound": 1e-6}
    title, head, *rows = str(report).splitlines()
    assert title == f"Doubler {torch.__version__}: 1 operation by the reference backend, largest error 0.0e+00"
    assert head.split() == ["operation", "where", "places", "error", "bound"]
    assert [row.split()[0] for row in rows] == ["double", "shift"]
    assert rows[1].endswith("left: never here")


@pytest.mark.parametrize("obj", [None, 3, "DAC", object(), nn.Linear(2, 2), torch, DoublerHost()])
def test_objects_of_no_known_kind(obj):
    with pytest.raises(TypeError, match=r"is of no known kind; known: .*DacModel.*dac\.DAC"):
        accelerate(obj)


def test_an_unknown_backend(host):
    with pytest.raises(ValueError, match="backend must be one of reference, triton, auto, got 'cuda'"):
        accelerate(Doubler(), backend="cuda")


def test_copies_are_refused(host):
    model = Doubler()
    report = accelerate(model)
    for copied in (copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match=r"cannot be copied or saved whole: call report.restore\(\)"):
            copied(model.double)
    report.restore()
    assert torch.equal(copy.deepcopy(model)(torch.ones(4)), model(torch.ones(4)))


# The state of an object.


def trained(model):
    model.inner.train()


def gradients(model):
    model.inner.bias.requires_grad_(True)


def on_meta(model):
    model.inner.bias = nn.Parameter(model.inner.bias.to("meta"), requires_grad=False)


def half(model):
    model.inner.half()


def whole_numbers(model):
    model.weight = nn.Parameter(torch.ones(4, dtype=torch.int8), requires_grad=False)


def hooked(model):
    model.inner.register_forward_hook(lambda *_: None)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (trained, r"Doubler: inner is in training mode: call \.eval\(\)"),
        (
            gradients,
            r"Doubler: inner\.bias requires gradients, which kernels do not make: call \.requires_grad_\(False\)",
        ),
        (on_meta, r"Doubler: inner\.bias is on the meta device: load the weights first"),
        (half, r"weights must be of one dtype, got torch\.float32 of weight and torch\.float16 of inner\.weight"),
        (whole_numbers, r"Doubler: weight must be of a floating type up to 64 bits, got torch\.int8"),
        (hooked, r"Doubler: inner has a forward hook, which the kernels would pass by: remove <function"),
    ],
)
def test_a_state_that_is_refused(host, spoil, message):
    model = Doubler()
    spoil(model)
    before = parts(model)
    with pytest.raises(ValueError, match=message):
        accelerate(model)
    assert parts(model) == before


def test_mixed_devices():
    """Of which a CPU has but one; meta stands for the others, and is named as itself where it comes first."""

    class Elsewhere(torch.Tensor):
        @property
        def device(self):
            return torch.device("cuda:1")

    there = torch.ones(2).as_subclass(Elsewhere)
    with pytest.raises(ValueError, match=r"X: weights are on mixed devices, a on cpu and b on cuda:1"):
        check_weights("X", [("a", torch.ones(2)), ("b", there)])


def test_no_weights():
    with pytest.raises(ValueError, match="X: holds no weights"):
        check_weights("X", [])


def replaced(layer):
    layer.weight = nn.Parameter(layer.weight.clone(), requires_grad=False)


def written(layer):
    layer.weight.mul_(2)


def converted(layer):
    layer.half()


def trainable(layer):
    layer.weight.requires_grad_(True)


def removed(layer):
    del layer._parameters["weight"]


@pytest.mark.parametrize("change", [replaced, written, converted, trainable, removed])
def test_a_changed_weight_is_noticed(change):
    layer = nn.Linear(2, 2).requires_grad_(False)
    guard = Unchanged.of(nn.Sequential(layer))
    guard.check()
    change(layer)
    with pytest.raises(RuntimeError, match=r"0\.weight was changed after accelerate\(\), which keeps a packed copy"):
        guard.check()


def test_swaps_of_the_attributes_of_a_class():
    class Owner:
        value = 1

        @staticmethod
        def made():
            return 1

    before, swaps = dict(vars(Owner)), Swaps()
    swaps.attribute(Owner, "value", 2)
    swaps.attribute(Owner, "made", lambda: 2)
    swaps.attribute(Owner, "fresh", 3)
    assert (Owner.value, Owner.made(), Owner.fresh) == (2, 2, 3)
    swaps.undo()
    assert {k: v for k, v in vars(Owner).items() if k in before} == before
    assert "fresh" not in vars(Owner)


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("new", "old", "error"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.0, 2.1], [1.0, 2.0], 0.05),
        ([0.0], [0.0], 0.0),
        ([0.1], [0.0], INF),
        ([NAN], [1.0], INF),
        ([1.0], [NAN], INF),
        ([], [], 0.0),
        ([1, 2], [1, 2], 0.0),
        ([1, 2], [1, 3], INF),
        ([1.0], [1.0, 2.0], INF),
    ],
)
def test_difference(new, old, error):
    assert difference(torch.tensor(new), torch.tensor(old)) == pytest.approx(error, rel=1e-6)


def test_difference_of_others():
    one = torch.ones(2)
    assert difference((one, one * 1.5), (one, one)) == 0.5
    assert difference((one,), (one, one)) == INF
    assert difference(one, one.double()) == INF
    assert difference(None, None) == 0
    assert difference(None, one) == INF


def test_the_public_names():
    import zonos2_triton.model as public

    assert public.accelerate is accelerate
    assert public.Report is Report


def test_an_operation_that_fails_on_samples_cannot_be_swapped(host, monkeypatch):
    def refuse(x):
        raise RuntimeError("no memory for that")

    model = Doubler()
    monkeypatch.setattr(model, "shift", refuse, raising=False)
    before = parts(model)
    message = "Doubler: shift cannot be swapped: it fails on sample inputs: no memory for that"
    with pytest.raises(ValueError, match=message):
        accelerate(model)
    assert parts(model) == before
    assert [left.op for left in accelerate(model, strict=False).left] == ["shift"]
