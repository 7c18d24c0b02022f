"""Kernels compiled before they are needed; `test_gate` has what hindered one."""

import os

import pytest

from zonos2_triton.bench.compiler.warmup import tasks_of, warmup
from zonos2_triton.bench.suite.recorder import NotRun


def test_an_architecture_that_the_gate_does_not_know():
    with pytest.raises(NotRun, match="the compile gate does not know sm_70"):
        warmup("sm_70", 60)


def test_no_time():
    with pytest.raises(NotRun, match="not done after 0 s; what was compiled is kept"):
        warmup("sm_90", 0.0, ["rotary"], jobs=1)


@pytest.mark.slow
def test_one_kernel_in_a_process_of_its_own(monkeypatch, tmp_path):
    """This process, which interprets, does not change; the child's binaries are in the cache."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    before = dict(os.environ)
    found = warmup("sm_90", 300, ["rotary"], jobs=1)
    assert dict(os.environ) == before
    assert found["not_precompiled"] == []
    assert found["binaries"] == found["workloads"] > 8
    assert len([*tmp_path.rglob("*.cubin")]) > 1


def test_frames_that_are_timed_both_ways_are_compiled_both_ways():
    tasks = tasks_of("sm_90", ["output_projection", "moe_experts", "conv1d_tanh"])
    without = [task[:3] for task in tasks if task[4] is False]
    assert without == [
        *(("output_projection", f"decode-B{n}", "bfloat16") for n in (1, 16, 64)),
        *(task[:3] for task in tasks if task[4] is False and task[0] == "moe_experts"),
    ]
    experts = {name for kernel, name, _ in without if kernel == "moe_experts"}
    assert experts == {f"{name}{top}" for n in (1, 16, 64) for name, top in (
        (f"decode-B{n}", ""), (f"decode-B{n}", "-top2"), (f"dense-B{n}", ""))}  # fmt: skip
    first = tasks_of("sm_90", ["output_projection", "conv1d_tanh", "rotary"], first=True)
    assert len({*first}) == len(first)
    assert {(task[0], task[4]) for task in first} == {
        ("output_projection", None), ("output_projection", False), ("conv1d_tanh", None)}  # fmt: skip
    assert {(*task, "sm_90", None) for task in without} <= set(tasks)
