"""The checks of each operation pass on it, and fail on every copy of it with a fault."""

import sys

import pytest
import torch

from zonos2_triton.bench.catalogue import KERNELS
from zonos2_triton.bench.proof.invariants import INVARIANTS, exact
from zonos2_triton.bench.proof.mutants import FAULTS
from zonos2_triton.bench.proof.mutation import Fault, checks, killed, mutant, small
from zonos2_triton.bench.proof.verify import Case, Mismatch

pytestmark = pytest.mark.interpreter


def cases():
    """Every fault; one that several kernels share by default on the first of them only."""
    seen = set()
    for kernel, faults in FAULTS.items():
        for fault in faults:
            again = fault.file.startswith("_") and fault in seen
            seen.add(fault)
            yield pytest.param(
                KERNELS[kernel], fault, id=f"{kernel}-{fault.name}", marks=[pytest.mark.slow] if again else []
            )


CASES = list(cases())
FIRST_POSITION = next(fault for fault in FAULTS["rotary"] if fault.name == "position-of-the-first-row")


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=list(KERNELS))
def test_the_operation_passes(kernel):
    for _, check in checks(kernel):
        check(None)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kernel", KERNELS.values(), ids=list(KERNELS))
def test_the_operation_passes_everything_everywhere(kernel, dtype):
    for workload in small(kernel):
        case = Case(kernel, workload, dtype=dtype)
        for check in (exact, *INVARIANTS.values()):
            check(case, None)


@pytest.mark.parametrize(("kernel", "fault"), CASES)
def test_a_fault_is_found(kernel, fault):
    assert killed(kernel, fault)


@pytest.mark.parametrize(
    ("check", "kernel", "fault"),
    [
        ("outside_is_unread", "transposed_convolution", "zeros-by-a-product"),
        ("steps", "waveform", "short-steps-in-other-blocks"),
        ("again", "transposed_convolution", "old-values-counted-as-none"),
        ("parts_alone", "waveform", "single-rows-in-other-blocks"),
        ("nan_stays", "waveform", "nan-hidden"),
        ("rounded_once", "convolution", "act-of-what-was-rounded"),
    ],
)
def test_what_quicker_checks_do_not_find(check, kernel, fault):
    found = next(entry for entry in FAULTS[kernel] if entry.name == fault)
    assert killed(KERNELS[kernel], found).startswith(f"{check} ")


@pytest.mark.parametrize(
    ("kernel", "fault", "workload"),
    [
        ("frame_embedding", "normed-anyway", "no-norm"),
        ("qkv_projection", "normed-rows-normed", "normed"),
        ("qkv_projection", "normed-rows-normed-in-prefill", "prefill-normed"),
        ("decode_attention", "plain-scores-not-scaled", "plain"),
        ("decode_attention", "plain-queries-normed", "plain"),
        ("decode_attention", "plain-new-score-not-scaled", "plain"),
        ("decode_attention", "plain-new-key-normed", "plain"),
        ("decode_attention", "plain-rows-of-the-gated-width", "plain"),
        ("prefill_attention", "plain-scores-not-scaled", "plain"),
        ("prefill_attention", "plain-queries-normed", "plain"),
        ("prefill_attention", "plain-last-scores-not-scaled", "plain"),
        ("prefill_attention", "plain-keys-normed", "plain"),
        ("prefill_attention", "plain-keys-of-the-gated-width", "plain"),
        ("prefill_attention", "plain-queries-of-the-gated-width", "plain"),
        ("output_projection", "added-anyway", "no-residual"),
        ("router", "normed-rows-normed", "normed"),
        ("experts", "normed-rows-normed", "normed"),
        ("experts", "normed-rows-normed-in-prefill", "prefill-sum"),
        ("experts", "added-anyway", "sum-top2"),
        ("experts", "added-anyway-for-one", "sum"),
        ("experts", "idle-rows-left-unwritten", "sum"),
    ],
)
def test_a_fault_of_one_variant_is_found_on_it(kernel, fault, workload):
    found = next(entry for entry in FAULTS[kernel] if entry.name == fault)
    assert killed(KERNELS[kernel], found).startswith(f"exact {workload} float32: ")


def test_every_operation_has_faults():
    assert FAULTS.keys() == KERNELS.keys()
    assert all(len({fault.name for fault in faults}) == len(faults) >= 4 for faults in FAULTS.values())


@pytest.mark.parametrize(
    ("file", "old", "times"),
    [("rotary", "offs_hh", "0"), ("rotary", "offs_h", "[2-9]"), ("router", "offs_n", "0")],
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
    case = Case(kernel, small(kernel)[0])
    with pytest.raises(Mismatch):
        exact(case, first)
    exact(case)


def test_checks_can_be_limited_to_some_workloads():
    kernel = KERNELS["rotary"]
    tiny, one_row = small(kernel)[:2]
    assert killed(kernel, FIRST_POSITION, [one_row]) is None
    assert killed(kernel, FIRST_POSITION, [tiny]).startswith("exact tiny float32: Mismatch: ")
