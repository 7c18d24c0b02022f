"""The checks of each operation fail on every copy of it with a fault; tests/kernels shows that they pass on itself."""

import sys

import pytest
import torch

from zonos2_triton.bench.catalogue import KERNELS
from zonos2_triton.bench.proof.invariants import exact
from zonos2_triton.bench.proof.mutants import FAULTS
from zonos2_triton.bench.proof.mutation import Fault, case_of, killed, mutant, small
from zonos2_triton.bench.proof.verify import Mismatch

pytestmark = pytest.mark.interpreter

# How a finding begins: by the check that finds what quicker ones do not.
FOUND = {
    ("conv_transpose1d_snake", "zeros-by-a-product"): "reads_only_window ",
    ("conv1d_tanh", "short-steps-in-other-blocks"): "steps ",
    ("conv_transpose1d_snake", "old-values-counted-as-none"): "idempotent ",
    ("conv1d_tanh", "single-rows-in-other-blocks"): "batch_invariant ",
    ("conv1d_tanh", "nan-hidden"): "nan_isolated ",
    ("conv1d_snake", "act-of-what-was-rounded"): "rounded_once ",
}
FIRST_POSITION = next(fault for fault in FAULTS["rotary"] if fault.name == "position-of-the-first-row")


def fault_cases():
    """Fast is one of each operation, the last of its own module."""
    for kernel, faults in FAULTS.items():
        fast = [fault for fault in faults if fault.file == kernel][-1]
        for fault in faults:
            marks = [pytest.mark.slow] if fault != fast else []
            yield pytest.param(kernel, fault, id=f"{kernel}-{fault.name}", marks=marks)


@pytest.mark.parametrize(("kernel", "fault"), list(fault_cases()))
def test_a_fault_is_found(kernel, fault):
    found = killed(KERNELS[kernel], fault)
    assert found, "survived"
    expected = "exact no-preamble float32: " if fault.name.startswith("plain-") else FOUND.get((kernel, fault.name), "")
    assert found.startswith(expected)


def test_every_operation_has_faults():
    assert FAULTS.keys() == KERNELS.keys()
    assert all(len({fault.name for fault in faults}) == len(faults) >= 4 for faults in FAULTS.values())
    assert {(kernel, fault.name) for kernel, faults in FAULTS.items() for fault in faults} >= FOUND.keys()


@pytest.mark.parametrize(
    ("file", "old", "times"),
    [("rotary", "offs_hh", "0"), ("rotary", "offs_h", "[2-9]"), ("moe_router", "offs_n", "0")],
    ids=["not there", "more than once", "in a module that is not imported"],
)
def test_a_fault_that_does_not_fit_is_refused(file, old, times):
    with pytest.raises(ValueError, match=f"rotary, misfit: '{old}' is {times} times in {file}.py, not once"):
        mutant(KERNELS["rotary"], Fault("misfit", file, old, ""))


def test_a_copy_without_a_fault_passes():
    """Its own errors are not what kills a copy."""
    for kernel, file in [("rotary", "rotary"), ("rotary", "_math"), ("output_projection", "_gemm")]:
        assert killed(KERNELS[kernel], Fault("none", file, "import triton\n", "import triton\n")) is None


def test_an_error_of_the_copy_is_no_finding():
    with pytest.raises(Exception, match="no_such_name"):
        killed(KERNELS["rotary"], Fault("broken", "rotary", "offs_h < H", "offs_h < no_such_name"))


def test_copies_leave_no_trace():
    kernel = KERNELS["rotary"]
    modules, path, registered = set(sys.modules), list(sys.path), set(dir(torch.ops.zonos2_triton))
    first, second = mutant(kernel, FIRST_POSITION), mutant(kernel, FIRST_POSITION)
    assert (set(sys.modules), list(sys.path), set(dir(torch.ops.zonos2_triton))) == (modules, path, registered)
    assert len({first._qualname, second._qualname, kernel.op._qualname}) == 3
    case = case_of(kernel, small(kernel)[0])
    with pytest.raises(Mismatch):
        exact(case, first)
    exact(case)
