"""Compiled kernels on the PTX machine: their results, invariants that need the compiled code, and planted faults.

The compiler runs in processes of its own: where there is no GPU, this one has Triton's interpreter.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from zonos2_triton.bench.catalogue import KERNELS

# Few programs, and every kind of instruction that decode kernels have.
FEW = [
    ("frame_embedding", "speakers", "float16"),
    ("qkv_projection", "tiny", "bfloat16"),
    ("decode_attention", "tiny", "float16"),
    ("moe_experts", "idle", "bfloat16"),
    ("sample_codes", "half", "float16"),
    ("sample_codes", "ends", "bfloat16"),
    ("output_projection", "prefill", "bfloat16"),  # wgmma
]
# Kernel, workload, check, fault, and the error that must come.
MISTAKES = [
    (
        "decode_attention",
        "tiny",
        "exact",
        "a stage less is waited for",
        "Hazard: .*ld.* reads what .*cp.async.* arrived",
    ),
    ("decode_attention", "tiny", "exact", "no wait", "Hazard: .*ld.* reads what .*cp.async.* arrived"),
    ("qkv_projection", "tiny", "exact", "no barrier", "Hazard: .*another warp, with no barrier between"),
    ("add_rms_norm", "wide-D", "exact", "another lane", "Hazard: .*different values of two threads"),
    ("qkv_projection", "tiny", "exact", "swapped registers", "Mismatch: .*result: "),
    ("output_projection", "tiny", "rounded_once", "cut off", "halves of a last place, not 1"),
]
BATCHED = [
    ("qkv_projection", "two-tiles", {}),  # of 33 tokens
    ("moe_experts", "skewed", {}),  # 35
    ("codebook_head", "two-tiles", {}),  # 33
    ("moe_router", "sorted-in-parts", {}),  # 70, of which one alone has its weights held
    # On Triton 3.6 for sm_90, weights are loaded early for one token, in 3 parts; for all 17 there is a loop.
    ("qkv_projection", "early", {"D": 1536}),
    ("output_projection", "early", {"K": 1536}),
    ("moe_experts", "early", {"I": 1536}),
]


def compiling(module, *arguments):
    """The output of a module in a process that compiles."""
    path = f"{Path(__file__).parent}:{os.environ.get('PYTHONPATH', '')}"
    environment = os.environ | {"TRITON_INTERPRET": "0", "PYTHONPATH": path}
    run = subprocess.run([sys.executable, "-m", module, *arguments], env=environment, capture_output=True, text=True)
    assert run.stdout, run.stderr
    return run.stdout


def errors(*tasks):
    """The answer of `compiled_runs` to each task."""
    return [json.loads(line) for line in compiling("compiled_runs", *map(json.dumps, tasks)).splitlines()]


def test_results_and_planted_faults():
    tasks = [(*case[:2], {}, case[2], ("sm_80", "sm_90")[i % 2], "exact", None) for i, case in enumerate(FEW)]
    faults = [(*fault[:2], {}, "bfloat16", "sm_80", *fault[2:4]) for fault in MISTAKES]
    found = errors(*tasks, *faults)
    assert found[: len(tasks)] == [None] * len(tasks)
    for (*what, expected), said in zip(MISTAKES, found[len(tasks) :], strict=True):
        assert re.search(expected, said or ""), (what, said)


@pytest.mark.slow
@pytest.mark.parametrize(("kernel", "workload", "sizes"), BATCHED)
@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
def test_compiled_kernels_are_batch_invariant(kernel, workload, sizes, target):
    """A token's bits do not depend on the number of tokens: other tiles, and other code, for one token and for many."""
    names = ("batch_invariant", "prepared_or_not", "nan_isolated")
    assert errors(*((kernel, workload, sizes, "bfloat16", target, name, None) for name in names)) == [None] * len(names)


@pytest.mark.slow
@pytest.mark.parametrize(("target", "dtype"), [("sm_80", "float16"), ("sm_90", "bfloat16")])
@pytest.mark.parametrize("kernel", KERNELS)
def test_every_small_workload(kernel, target, dtype):
    workloads = [w.name for w in KERNELS[kernel].workloads if not w.real]
    options = ["verify", "--compiled", target, "--dtype", dtype, "--kernel", kernel, "--workload", *workloads, "--json"]
    found = json.loads(compiling("zonos2_triton", *options))
    assert found["device"] == target
    assert len(found["results"]) == len(workloads)
    assert [row for row in found["results"] if not row["passed"]] == []
