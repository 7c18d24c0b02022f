"""The checks of each operator kill every mutant of it; tests/kernels shows that they pass on the operator itself."""

import sys

import pytest
import torch

from zonos2_triton.bench.catalogue import KERNELS
from zonos2_triton.bench.proof.invariants import exact
from zonos2_triton.bench.proof.mutants import MUTANTS
from zonos2_triton.bench.proof.mutation import TILED, Mutant, case_of, killed, mutated, small
from zonos2_triton.bench.proof.verify import Mismatch

pytestmark = pytest.mark.interpreter

# How a finding begins: by the check that finds what quicker ones do not.
FOUND = {
    ("conv_transpose1d_snake", "zeros-by-a-product"): "reads_only_window ",
    ("conv1d_tanh", "short-steps-in-other-blocks"): "steps ",
    ("conv_transpose1d_snake", "old-values-counted-as-none"): "idempotent ",
    ("conv1d_tanh", "single-slots-in-other-blocks"): "batch_invariant ",
    ("conv1d_tanh", "nan-hidden"): "nan_isolated ",
    ("conv1d_snake", "activated-after-rounding"): "rounded_once ",
}
FIRST_POSITION = next(each for each in MUTANTS["rotary"] if each.name == "position-of-the-first-row")


def mutant_cases():
    """One of each operator is fast, the last of its own module."""
    for kernel, mutants in MUTANTS.items():
        fast = [mutant for mutant in mutants if mutant.file == kernel][-1]
        for mutant in mutants:
            marks = [pytest.mark.slow] if mutant != fast else []
            yield pytest.param(kernel, mutant, id=f"{kernel}-{mutant.name}", marks=marks)


@pytest.mark.parametrize(("kernel", "mutant"), list(mutant_cases()))
def test_a_mutant_is_killed(kernel, mutant):
    found = killed(KERNELS[kernel], mutant)
    assert found, "survived"
    no_preamble = mutant.name.startswith("no-preamble-")
    assert found.startswith("exact no-preamble float32: " if no_preamble else FOUND.get((kernel, mutant.name), ""))


def test_every_operator_has_mutants():
    assert MUTANTS.keys() == KERNELS.keys()
    assert all(len({mutant.name for mutant in mutants}) == len(mutants) >= 4 for mutants in MUTANTS.values())
    assert {(kernel, mutant.name) for kernel, mutants in MUTANTS.items() for mutant in mutants} >= FOUND.keys()
    assert {workload.name for kernel in KERNELS.values() for workload in small(kernel)} >= TILED


@pytest.mark.parametrize(
    ("file", "pattern", "message"),
    [
        ("rotary", "offs_h {{< => <=}} HH", "fits 0 times, not once"),
        ("rotary", "BLOCK_H{{ =>  + 1}}", r"fits 4 times, lines \d+, \d+, \d+, \d+, not once"),
        ("rotary", "BLOCK_{{H => N}}", "an edit must cover whole tokens, not a part of BLOCK_H"),
        ("rotary", "(offs < {{H => m}})", "does not bind m"),
        ("moe_router", "offs", "rotary does not import it"),
    ],
)
def test_a_pattern_that_does_not_fit_once_is_refused(file, pattern, message):
    with pytest.raises(ValueError, match=rf"^rotary, misfit: {file}\.py: (.* )?{message}$"):
        mutated(KERNELS["rotary"], Mutant("misfit", file, pattern))


def test_a_copy_without_a_mistake_passes():
    """Its own errors are not what kills a copy."""
    for kernel, file in [("rotary", "rotary"), ("rotary", "_math"), ("output_projection", "_gemm")]:
        assert killed(KERNELS[kernel], Mutant("none", file, "import triton{{ => }}.language as tl")) is None


def test_an_error_of_the_copy_is_no_finding():
    with pytest.raises(Exception, match="NO_SUCH_NAME"):
        killed(KERNELS["rotary"], Mutant("broken", "rotary", "offs < {{H => NO_SUCH_NAME}}"))


def test_copies_leave_no_trace():
    kernel = KERNELS["rotary"]
    modules, path, registered = set(sys.modules), list(sys.path), set(dir(torch.ops.zonos2_triton))
    first, second = mutated(kernel, FIRST_POSITION), mutated(kernel, FIRST_POSITION)
    assert (set(sys.modules), list(sys.path), set(dir(torch.ops.zonos2_triton))) == (modules, path, registered)
    assert len({first._qualname, second._qualname, kernel.op._qualname}) == 3
    case = case_of(kernel, small(kernel)[0])
    with pytest.raises(Mismatch):
        exact(case, first)
    exact(case)
