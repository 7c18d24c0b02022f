"""torch.ops.zonos2_triton as others call it: on a CPU without Triton's interpreter, an operation is its reference.

Whether Triton interprets is settled for a whole process, so one child without it tries every operation; it runs this
file, and tells what it found as JSON.
"""

import importlib
import json
import os
import subprocess
import sys
import traceback

import pytest
import torch
import triton

from zonos2_triton.bench.catalogue import KERNELS
from zonos2_triton.kernels import _operator
from zonos2_triton.kernels._operator import by_reference, on_chip
from zonos2_triton.model import Backbone
from zonos2_triton.reference.numeric import SWITCHES

CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
SMALL = [
    (name, workload.name) for name, kernel in KERNELS.items() for workload in kernel.workloads if not workload.real
]
# A number that each operation refuses, of those that have any: {argument: value}, or a change of a whole tensor.
REFUSED = {
    "rotary": {"positions": torch.tensor([0, 1, 40, 3, 4], dtype=torch.int32)},
    "sample": {"settings": torch.zeros(2, 8)},
    "advance": {"codes": torch.full((2, 5), 11, dtype=torch.int32)},
    "head": {"n_codebooks": 4},
    "codebook_sum": {"frames": 0},
    "convolution": {"dilation": 0},
    "transposed_convolution": {"stride": 0},
    "residual_unit": {"lag": -1},
    "waveform": {"tf32": True, "dtype": torch.float16},
}


def inputs_of(name, workload="tiny", dtype=torch.float32):
    found = next(entry for entry in KERNELS[name].workloads if entry.name == workload)
    return KERNELS[name].make("cpu", dtype, **found.sizes)


def copied(inputs):
    return {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in inputs.items()}


def op_of(name):
    return getattr(torch.ops.zonos2_triton, name)


def as_tuple(results):
    return () if results is None else (results,) if isinstance(results, torch.Tensor) else tuple(results)


def difference(name, op, workload="tiny", dtype=torch.float32):
    """Where results or changed arguments of `op` are not, bit for bit, those of the reference; "": nowhere."""
    kernel, inputs = KERNELS[name], inputs_of(name, workload, dtype)
    ours, theirs = copied(inputs), copied(inputs)
    got, want = as_tuple(op(**ours)), as_tuple(kernel.reference(**theirs))
    if len(got) != len(want):
        return f"{len(got)} results, not {len(want)}"
    pairs = [(f"result {i}", *pair) for i, pair in enumerate(zip(got, want, strict=True))]
    pairs += [(key, ours[key], theirs[key]) for key in inputs if isinstance(inputs[key], torch.Tensor)]
    wrong = [
        what for what, a, b in pairs
        if (a.dtype, a.shape) != (b.dtype, b.shape) or not torch.equal(a.nan_to_num(7), b.nan_to_num(7))
    ]  # fmt: skip
    return ", ".join(wrong + ["a result that is not contiguous" for result in got if not result.is_contiguous()])


def refusal(name, inputs):
    try:
        op_of(name)(**inputs)
    except (TypeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return "accepted"


def refusals():
    """What wrong tensors and numbers get, by operation and fault."""
    told = {}
    for name in KERNELS:
        inputs = inputs_of(name)
        for key, value in inputs.items():
            if isinstance(value, torch.Tensor):
                wrong = {
                    "an axis more": value[None], "an axis less": value.flatten()[0], "empty": value[:0],
                    "dtype": value.to(torch.complex64),
                    "stride": torch.stack([value, value], -1)[..., 0],
                    "address": value.flatten().repeat(2)[1 : value.numel() + 1].view(value.shape),
                }  # fmt: skip
                if not value.is_floating_point():
                    del wrong["address"]
                for fault, tensor in wrong.items():
                    told[f"{name} {key} {fault}"] = refusal(name, {**inputs, key: tensor})
        if name in REFUSED:
            change = {**REFUSED[name]}
            inputs = inputs_of(name, dtype=change.pop("dtype", torch.float32))
            told[f"{name} number"] = refusal(name, {**inputs, **change})
    return told


def checked(name):
    return torch.library.opcheck(KERNELS[name].op, (), inputs_of(name), test_utils=CHECKS, raise_exception=False)


def compiled():
    """What a compiler that takes no break in the graph makes of two operations, and of one that changes an argument."""
    x, norm, ring = inputs_of("rotary"), inputs_of("add_rms_norm"), inputs_of("convolution")

    def run(x, residual, positions, table, act):
        total, _ = op_of("add_rms_norm")(x.flatten(1), residual.flatten(1), None, 1e-5)
        op_of("convolution")(**{**ring, "act": act})
        return op_of("rotary")(total.view(x.shape) * 2, positions, table)

    outcomes = []
    for function in (run, torch.compile(run, fullgraph=True, backend="aot_eager")):
        act = ring["act"].clone()
        outcomes.append((function(x["x"], x["x"] + norm["eps"], x["positions"], x["table"], act), act))
    (eager, changed), (result, changed_too) = outcomes
    return bool(torch.equal(eager, result) and torch.equal(changed, changed_too) and changed.any())


def child():
    torch.set_num_threads(1)
    told = {"interprets": bool(triton.knobs.runtime.interpret), "equal": {}, "opcheck": {}}
    for name, workload in SMALL:
        told["equal"][f"{name} {workload} float32"] = attempt(difference, name, op_of(name), workload)
    for name in KERNELS:
        for dtype in (torch.float16, torch.bfloat16):
            told["equal"][f"{name} tiny {str(dtype)[6:]}"] = attempt(difference, name, op_of(name), "tiny", dtype)
        told["opcheck"][name] = attempt(checked, name)
    told["refusals"] = refusals()
    told["compiled"] = attempt(compiled)
    print(json.dumps(told, default=str))


def attempt(function, *args):
    """Its result, or what it raised."""
    try:
        return function(*args)
    except Exception:
        return traceback.format_exc()


@pytest.fixture(scope="module")
def on_a_cpu():
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": ""}
    run = subprocess.run([sys.executable, __file__], capture_output=True, text=True, env=environment, check=False)
    assert run.returncode == 0, run.stderr
    told = json.loads(run.stdout.splitlines()[-1])
    assert told["interprets"] is False
    return told


@pytest.mark.parametrize("name", KERNELS)
def test_an_operation_is_its_reference(on_a_cpu, name):
    found = {case: wrong for case, wrong in on_a_cpu["equal"].items() if case.split()[0] == name}
    assert len(found) >= 3
    assert found == dict.fromkeys(found, "")


@pytest.mark.parametrize("name", KERNELS)
def test_pytorch_finds_nothing_wrong_with_an_operator(on_a_cpu, name):
    """Its schema says what it changes, its fake what it returns, and it may be traced with sizes that are not known."""
    assert on_a_cpu["opcheck"][name] == dict.fromkeys(CHECKS, "SUCCESS")


@pytest.mark.interpreter
def test_what_is_wrong_gets_the_errors_of_the_interpreter(on_a_cpu):
    here = refusals()
    assert on_a_cpu["refusals"] == here
    assert [case for case, text in here.items() if text == "accepted"] == []
    assert sum(case.endswith(" number") for case in here) == len(REFUSED)


def test_operations_may_be_compiled_without_a_break(on_a_cpu):
    assert on_a_cpu["compiled"] is True


@pytest.mark.parametrize("name", KERNELS)
def test_importing_a_module_registers_its_operation(name):
    module = importlib.import_module(f"zonos2_triton.kernels.{name}")
    assert op_of(name).default._schema.name == f"zonos2_triton::{getattr(module, name)._name}"


def test_the_kernel_runs_where_it_can(monkeypatch):
    x = torch.zeros(1)
    monkeypatch.setattr(_operator, "interpreted", lambda: True)
    assert on_chip(x)
    monkeypatch.setattr(_operator, "interpreted", lambda: False)
    assert not on_chip(x)
    with torch._subclasses.fake_tensor.FakeTensorMode():
        assert on_chip(torch.zeros(1))


def test_results_are_nobody_elses_memory(monkeypatch):
    """As an operator must return them, whatever the reference returns."""
    x = torch.arange(6.0).view(2, 3)
    monkeypatch.setattr(_operator, "_reference", lambda op: lambda x, y: (x, x.T, y, y, x + 1))
    y = torch.ones(2)
    results = by_reference("any", x, y=y)
    assert [*map(torch.equal, results, (x, x.T, y, y, x + 1))] == [True] * 5
    assert len({tensor.untyped_storage().data_ptr() for tensor in (*results, x, y)}) == 7
    assert all(result.is_contiguous() for result in results)
    monkeypatch.setattr(_operator, "_reference", lambda op: lambda x: x[0])
    assert by_reference("any", x).data_ptr() != x.data_ptr()
    monkeypatch.setattr(_operator, "_reference", lambda op: lambda x: None)
    assert by_reference("any", x) is None


def test_the_reference_runs_in_ieee_fp32_and_without_gradients(monkeypatch):
    seen = []

    def spying(x):
        seen.append(([getattr(owner, name) for owner, name, _ in SWITCHES], torch.is_grad_enabled()))
        return x * 1

    monkeypatch.setattr(_operator, "_reference", lambda op: spying)
    by_reference("any", torch.ones(2, requires_grad=True))
    assert seen == [([value for _, _, value in SWITCHES], False)]


def test_the_kernels_backend_still_asks_for_the_interpreter(golden, monkeypatch):
    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    with pytest.raises(ValueError, match="backend 'triton' on a CPU needs Triton's interpreter"):
        golden.backbone(backend="triton")
    assert isinstance(golden.backbone(backend="auto"), Backbone)


if __name__ == "__main__":
    child()
