"""A launch of a prompt or a clip that is far from its roof has a reason in the catalogue, or fails the gate."""

import dataclasses

import pytest

from zonos2_triton.bench.compiler.estimate import Counted, steps
from zonos2_triton.bench.compiler.expected import Expected, Row, is_of_a_frame, variant_of, with_reason
from zonos2_triton.kernels._operator import Cost

COUNTED = Counted(launch=0, live=264, wavefronts=3800, issued=15200, chain=9500, round_trips=2, conflict=1.0, exposed=0,
                  under_way=28_000, moved=10**6, through_l2=10**6, loaded=10_000, early_loaded=10**6, loaded_after=0,
                  wavefronts_after=3800, issued_after=15200, chain_before=900, chain_after=9500, registers=64,
                  shared=32768, warps=2, resident=4)  # fmt: skip


@pytest.mark.parametrize(
    ("workload", "of_a_frame"),
    [("decode-B1-top2", True), ("sum-B16", True), ("prefill-128", False), ("dense-prefill-128", False),
     ("first-streams-64", False), ("chunk-16", False), ("first-layer", False)],
)  # fmt: skip
def test_launches_of_prompts_and_clips(workload, of_a_frame):
    assert is_of_a_frame(workload) is of_a_frame


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({}, None),
        ({"wavefronts": 190_000}, "0.10 of the better roof"),
        ({"conflict": 4.0}, "4 wavefronts for one, at most 2"),
        ({"exposed": 3}, "3 loads in loops that wait where they are issued, at most 0"),
    ],
)
def test_a_prompt_far_from_its_roof_needs_a_reason(change, text):
    """A new kernel, or one that became slower, cannot pass without words."""
    counted = dataclasses.replace(COUNTED, **change)
    [step] = steps(Cost(bytes=43_000_000, flops=0), [("_op_kernel", counted)], certain=True)  # a floor of 10 us
    judged = Row("op", "_op_kernel", "prefill-128-bfloat16", "sm_90", (), counted=counted, step=step)
    without, named = ({"_op_*": Expected(99, reasons=each)} for each in ({"clip-*": "a"}, {"prefill-*": "b", "*": "c"}))
    failed = [] if text is None else [f"{text}: the catalogue has no reason"]
    assert [*with_reason(judged, "prefill-128", without).failures] == failed
    explained = with_reason(judged, "prefill-128", named)
    assert (explained.failures, [*explained.over]) == ((), [] if text is None else [f"{text}: b"])


def test_role_of_a_workload():
    same = {"decode": ["B1-bfloat16", "B64-top2-bfloat16", "B64-bfloat16#2"], "decode-top2": ["bfloat16"]}
    same |= {"prefill": ["2048-float16"], "dense-prefill": ["2048-bfloat16"]}
    assert all(variant_of(f"{expected}-{rest}") == expected for expected, all_of in same.items() for rest in all_of)
