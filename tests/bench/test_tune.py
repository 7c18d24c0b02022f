"""The sweep over launch configurations: its grid, what it refuses, what it writes."""

import dataclasses
import json
import os
import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch

from zonos2_triton.bench.catalogue import KERNELS
from zonos2_triton.bench.compiler import tune
from zonos2_triton.bench.compiler.cubin_stats import Stats
from zonos2_triton.bench.compiler.expected import Row
from zonos2_triton.bench.compiler.offline_compile import launch_configs
from zonos2_triton.bench.compiler.tune import Candidate, best, grid, launches, measure, refuse
from zonos2_triton.bench.timing import timer
from zonos2_triton.kernels._launch_config import launch_config
from zonos2_triton.kernels._launch_table import LAUNCH_CONFIGS
from zonos2_triton.model.cli import main

ENTRY = {"op": "codebook_head", "variant": "decode", "rows": [1, 16], "BLOCK_N": 16, "num_warps": 4, "num_stages": 2}
STATS = Stats(registers=64, stack=0, spills=0, shared=32768, warps=4, blocks=4, occupancy=0.25, instructions=500)
ROTARY = KERNELS["rotary"]
TINY = next(workload for workload in ROTARY.workloads if workload.name == "tiny")


def candidate(table=False, us=None, failures=(), **stats):
    row = Row("k", "_k", "decode-B1-bfloat16", "sm_90", failures, dataclasses.replace(STATS, **stats))
    return Candidate(ENTRY, table, [row], us=us)


def test_the_grid_lies_around_the_table_and_keeps_the_rest():
    entries = grid(ENTRY)
    assert entries[0] == ENTRY
    assert {each["BLOCK_N"] for each in entries} == {16, 32}  # half would be less than matrix units take
    assert {each["num_warps"] for each in entries} == {2, 4, 8}
    assert {each["num_stages"] for each in entries} == {1, 2, 3, 4}
    assert len({json.dumps(each) for each in entries}) == len(entries) == 24
    assert all(each | {name: ENTRY[name] for name in tune.TUNED} == ENTRY for each in entries)


@pytest.mark.parametrize("key", LAUNCH_CONFIGS, ids="-".join)
def test_every_entry_of_a_grid_is_one_that_the_kernels_read(key):
    for config in (config for configs in LAUNCH_CONFIGS[key].values() for config in configs):
        numbers = {name: config[name] for name in tune.TUNED if name in config}
        for entry in grid({"op": key[0], "variant": key[1], **numbers}):
            with launch_configs([entry]):
                pass


def test_spills_and_another_order_of_sums_are_refused():
    found = [candidate(table=True, sums=("a",)), candidate(failures=("spills",), sums=("a",)), candidate(sums=("b",))]
    found.append(candidate(sums=("a",), registers=99))
    for each in found:
        refuse(each, found[0])
    assert [each.refused for each in found] == ["", "spills", "adds in another order than the table's", ""]


def test_times_decide_where_there_are_any_and_else_the_code():
    by_code = [candidate(occupancy=0.5, instructions=900), candidate(instructions=400), candidate(table=True)]
    assert by_code[0].rank < by_code[1].rank
    assert best([by_code]) == [ENTRY]
    by_time = [candidate(us=2.0), candidate(us=3.0, occupancy=1.0)]
    assert by_time[0].rank < by_time[1].rank
    assert best([[candidate(us=9.79), candidate(table=True, us=10.0)]]) == [ENTRY]
    assert best([[candidate(us=9.81), candidate(table=True, us=10.0)]]) == []
    assert best([[candidate(table=True), candidate()]]) == []


def test_on_a_device_candidates_are_timed_and_hold_the_bits_of_the_table(monkeypatch):
    """An operation that depends on num_warps stands in for a compiler that adds in another order."""
    monkeypatch.setattr(timer, "cuda_device", timer.cpu_device)
    entries = [{"op": "rotary", "variant": "row", "num_warps": n} for n in (1, 2)]
    candidates = [Candidate(each, each is entries[0]) for each in entries]
    measure(ROTARY, TINY, "bfloat16", candidates)
    assert all(each.us > 0 and not each.refused for each in candidates)

    def op(x, **_):
        return x + (launch_config("rotary", "row", x.dtype)["num_warps"] == 2)

    monkeypatch.setattr(timer, "time_kernel", lambda *_: {"median_us": 1.0})
    for refused in ("", "spills"):  # also then the table's bits count
        candidates = [Candidate(each, each is entries[0]) for each in entries]
        candidates[0].refused = refused
        measure(dataclasses.replace(ROTARY, op=op), TINY, "bfloat16", candidates)
        assert [each.refused for each in candidates] == [refused, "is not bitwise identical to the table's"]
        assert [each.us for each in candidates] == [1.0, None]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--kernel rotery", "kernel must be one of"),
        ("--kernel rotary --workload tiny", "workload must be one of decode-B1, decode-B64, prefill-2048, got 'tiny'"),
        ("--kernel rotary --set Q=1", "a size of rotary must be one of DH, H, M, P, got 'Q'"),
        ("--kernel rotary --dtype float32", "dtype must be one of bfloat16, float16, got 'float32'"),
        ("--kernel rotary --target sm_1", "target must be one of"),
        ("--kernel rotary --jobs 0", "jobs must be at least 1, got 0"),
        ("--kernel rotary --out no/launch.json", "cannot write no/launch.json: No such file or directory"),
    ],
)
def test_bad_options_are_refused(options, said, capsys, tmp_path):
    assert main(["tune", "--out", str(tmp_path / "launch.json"), *options.split()]) == 2
    assert said in capsys.readouterr().err
    assert [*tmp_path.iterdir()] == []


def test_sizes_that_contradict_each_other_are_told(monkeypatch):
    monkeypatch.setattr(tune, "compile_only", lambda _: nullcontext())  # which refuses the interpreter's process
    sizes = ROTARY.resized(TINY, ["DH=7"])
    with pytest.raises(ValueError, match="rotary cannot run at tiny,DH=7: "):
        launches("rotary", sizes, "bfloat16", "sm_90")


@pytest.mark.slow
def test_without_a_gpu_candidates_are_ranked_by_their_code(tmp_path):
    """The file is one that the kernels read. A norm keeps its number of warps, on which its sum depends."""
    clean = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}

    def tuned(kernel):
        path = tmp_path / f"{kernel}.json"
        options = ["--kernel", kernel, "--set", "M=3", "--out", str(path)]
        command = [sys.executable, "-m", "zonos2_triton", "tune", *options]
        run = subprocess.run(command, capture_output=True, text=True, env=clean)
        assert run.returncode == 0, run.stderr
        assert "ranked by the compiled code alone: nothing was timed" in run.stdout
        return json.loads(path.read_text(encoding="utf-8")), run.stdout

    entries, said = tuned("add_rms_norm")
    assert said.count("refused: adds in another order than the table's") == 6
    assert entries == []
    [entry], said = tuned("rotary")
    assert "refused" not in said
    with launch_configs([entry]):
        assert launch_config("rotary", "row", torch.bfloat16)["num_warps"] == entry["num_warps"]
