"""`bench.proof.verify` reports wrong results. The reference with a mistake stands for an operator."""

import pytest
import torch

from zonos2_triton.bench.catalogue import KERNELS
from zonos2_triton.bench.proof import bounds
from zonos2_triton.bench.proof.mutation import small
from zonos2_triton.bench.proof.verify import Case, Error, Mismatch, Report, verify


def spoiled(name, change):
    """The reference with changed arguments: an operation that is a little wrong."""
    return lambda **inputs: KERNELS[name].reference(**{**inputs, **change(inputs)})


def touched(name, output, where, value):
    """The reference with one wrong element in a result, or in an argument that it changes."""

    def op(**inputs):
        results = KERNELS[name].reference(**inputs)
        target = inputs[output] if isinstance(output, str) else results if output is None else results[output]
        target[where] = value(target[where])
        return tuple(results) if isinstance(results, tuple) else results

    return op


def halved(inputs):
    return {key: value.bfloat16() for key, value in inputs.items() if isinstance(value, torch.Tensor)}


every, first = slice(None), (0, 0, 0)
ADDED, ATTENTION, EXPERTS, HEAD = "add_rms_norm", "decode_attention", "moe_experts", "codebook_head"
WRONG = {
    "norm-epsilon": (HEAD, spoiled(HEAD, lambda _: {"eps": 1e-6}), "result: .*ratio to plain PyTorch"),
    "no-cap": (HEAD, spoiled(HEAD, lambda _: {"softcap": 0.0}), "result"),
    "one-element": (EXPERTS, touched(EXPERTS, 0, (2, 7), lambda x: x + 0.01), r"first at \(2, 7\).*oracle"),
    "nan": ("rotary", touched("rotary", None, first, lambda x: x * torch.nan), r"first at \(0, 0, 0\): nan"),
    "not-a-copy": (ADDED, spoiled(ADDED, lambda _: {"residual": None}), "sum"),
    "precision": (ADDED, spoiled(ADDED, halved), "sum has dtype torch.bfloat16"),
    "shape": ("rotary", lambda **inputs: inputs["x"][:1], "result has shape"),
    "cache-of-another": (ATTENTION, touched(ATTENTION, "v_cache", (*first, 0), lambda x: x + 1e-6), "must keep"),
    "cached-key": (ATTENTION, touched(ATTENTION, "k_cache", every, lambda x: x * 1.00001), "k_cache"),
    "missing-key": (ATTENTION, spoiled(ATTENTION, lambda x: {"positions": x["positions"] - 1}), "result"),
    "router-choice": ("moe_router", touched("moe_router", 0, (1, 0), lambda x: (x + 1) % 4), "expert_ids"),
    "router-weight": ("moe_router", touched("moe_router", 1, (1, 0), lambda x: x * 1.000001), "expert_weights"),
    "router-order": ("moe_router", touched("moe_router", 4, every, lambda x: x.flip(0)), "sorted_slot_ids"),
    "router-offsets": ("moe_router", touched("moe_router", 5, 0, lambda x: x + 1), "expert_offsets"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_verification_notices(wrong):
    name, op, message = WRONG[wrong]
    with pytest.raises(Mismatch, match=f"^{name} tiny float32: .*{message}"):
        verify(KERNELS[name], small(KERNELS[name])[0], op=op)


def off_by(times, case):
    """Results with `times` the error of plain PyTorch."""
    return {
        name: (case.oracle[name] + times * (plain.double() - case.oracle[name])).to(plain.dtype)
        for name, plain in case.torch_outputs.items()
    }


@pytest.mark.parametrize(("name", "by_floor"), [("codebook_head", True), ("conv1d_snake", False)])
def test_the_bound_is_a_ratio_or_the_floor(name, by_floor):
    case = Case(KERNELS[name], small(KERNELS[name])[0])
    [error] = case.compare(off_by(1, case)).errors
    assert (error.bound > bounds.RATIO) == by_floor
    if by_floor:
        least = bounds.FLOOR_FP32 * torch.finfo(torch.float32).eps
        assert error.limit == pytest.approx(least * float(case.oracle[error.output].square().mean().sqrt()))
    case.compare(off_by(0.9 * error.bound, case))
    with pytest.raises(Mismatch, match=rf"ratio to plain PyTorch .*, bound {error.bound:.3g}$"):
        case.compare(off_by(1.1 * error.bound, case))


def test_a_bound_is_that_of_the_output_nearest_to_it():
    errors = Error("near", 1.0, 2.0, 1.1), Error("above plain", 3.0, 1.0, 30.0), Error("exact", 0.0, 0.0, 0.0)
    assert Report("moe_router", "tiny", errors).worst.output == "near"
    assert Report("sample_codes", "tiny", ()).worst.bound == 0


@pytest.mark.interpreter
def test_a_choice_between_equals_is_no_error():
    """In these inputs two experts' scores are closer than two roundings: the weight is another expert's."""
    kernel = KERNELS["moe_router"]
    workload = next(each for each in kernel.workloads if each.name == "sorted-in-parts")
    case = Case(kernel, workload, dtype=torch.bfloat16, seed=7)
    outputs = case.run()
    assert not torch.equal(outputs["expert_ids"], case.oracle["expert_ids"])
    case.compare(outputs)


def test_verification_reports():
    kernel = KERNELS["decode_attention"]
    report = verify(kernel, small(kernel)[0], op=kernel.reference)
    assert [error.output for error in report.errors] == ["result", "k_cache", "v_cache"]
    assert [error.ratio for error in report.errors] == [1.0, 1.0, 0.0]  # values are copied
    assert (report.kernel, report.workload, report.ratio) == ("decode_attention", "tiny", 1.0)
