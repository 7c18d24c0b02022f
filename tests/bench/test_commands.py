"""`zonos2-triton verify` and `bench`, as far as they go without a GPU; what all commands of the bench refuse."""

import csv
import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from zonos2_triton.bench import commands
from zonos2_triton.bench.baselines import providers
from zonos2_triton.bench.catalogue import KERNELS
from zonos2_triton.bench.compiler import gate
from zonos2_triton.bench.compiler.cubin_stats import TARGETS
from zonos2_triton.bench.proof import bounds
from zonos2_triton.bench.report.timings_csv import FIGURES, as_csv
from zonos2_triton.bench.suite import results, stages
from zonos2_triton.bench.suite.recorder import NotRun
from zonos2_triton.bench.timing import profile
from zonos2_triton.model.cli import main


def test_verify_says_what_every_row_is_held_to(capsys):
    rows = ["verify", "--kernel", "moe_router", "sample_codes", "--workload", "tiny", "--dtype", "float16"]
    assert main(rows) == 0
    head, router, advance, total = capsys.readouterr().out.splitlines()
    assert (head, total) == (commands.NO_GPU, "2 passed, 0 failed")
    assert router.split()[:4] == ["moe_router", "tiny", "float16", "error"]
    words = re.search(r"error ([\d.]+) of plain PyTorch's, at most ([\d.]+), by the floor$", router)
    ratio, bound = map(float, words.groups())
    assert bounds.RATIO < ratio <= bound
    assert advance.endswith(" float16   equal")
    assert main([*rows, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["results"]
    assert [(round(row["ratio"], 2), round(row["bound"], 2)) for row in found] == [(ratio, bound), (0, 0)]


@pytest.mark.slow
def test_verify_in_a_process_that_compiles_begins_again():
    """A process that imported Triton as a compiler cannot interpret; the output is that of one run."""
    clean = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    options = ["verify", "--kernel", "sample_codes", "--workload", "tiny", "--dtype", "float32", "--json"]
    command = [sys.executable, "-m", "zonos2_triton", *options]
    run = subprocess.run(command, capture_output=True, text=True, env=clean)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert found["device"] == "interpreter"
    assert found["results"] == [
        {"kernel": "sample_codes", "workload": "tiny", "dtype": "float32", "passed": True, "ratio": 0.0, "bound": 0.0}
    ]


def test_a_wrong_kernel_fails_and_is_not_timed(capsys, monkeypatch):
    broken = dataclasses.replace(KERNELS["rotary"], op=lambda x, **_: x.clone())
    for module in (commands, stages):
        monkeypatch.setattr(module, "KERNELS", {"rotary": broken})
    assert main(["verify", "--kernel", "rotary", "--workload", "tiny", "--dtype", "float32"]) == 1
    said = capsys.readouterr().out
    assert "FAILED: rotary tiny float32: result: " in said
    assert "0 passed, 1 failed" in said
    assert main(["bench"]) == 1
    said = capsys.readouterr().out
    assert "withheld rotary/tiny: rotary/tiny/bfloat16 failed" in said
    assert said.splitlines()[-1].split() == ["rotary", "tiny", "withheld"]


def crashing(**inputs):
    raise AttributeError("'Ops' object has no attribute 'scale_add'")


def test_a_kernel_that_crashes_fails_and_the_others_are_checked(capsys, monkeypatch):
    kernels = {"rotary": dataclasses.replace(KERNELS["rotary"], op=crashing), "sample_codes": KERNELS["sample_codes"]}
    monkeypatch.setattr(commands, "KERNELS", kernels)
    assert main(["verify", "--workload", "tiny", "--dtype", "float32"]) == 1
    rotary, advance, total = capsys.readouterr().out.splitlines()[1:]
    assert rotary.endswith("FAILED: AttributeError: 'Ops' object has no attribute 'scale_add'")
    assert (advance.split()[-1], total) == ("equal", "1 passed, 1 failed")


def test_another_implementation_that_crashes_fails(capsys, monkeypatch):
    """A package that this machine lacks is skipped, which is no failure."""
    one = providers.Provider("broken", {"rotary": lambda inputs: crashing})
    other = providers.Provider("absent", {"rotary": crashing}, package="no_such_package", install="it")
    monkeypatch.setattr(providers, "ALL", (other,))
    assert main(["bench", "--kernel", "rotary"]) == 0
    assert "not run, it is not installed (1): rotary/tiny/absent" in capsys.readouterr().out
    monkeypatch.setattr(providers, "ALL", (one, other))
    assert main(["bench", "--kernel", "rotary"]) == 1
    assert "FAILED rotary/tiny/broken: AttributeError: 'Ops' object" in capsys.readouterr().out


def test_bench_without_a_gpu_is_a_smoke_test(capsys, tmp_path):
    assert main(["bench", "--kernel", "sample_codes", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[0] == commands.NO_GPU
    assert "calibration: 2 passed" in said
    kept = json.loads(next(tmp_path.glob("cpu-smoke-*.json")).read_text(encoding="utf-8"))
    assert kept["environment"]["smoke"]
    assert [*kept["stages"]["timings"]["items"]] == ["sample_codes/tiny"]
    assert [*kept["stages"]["baselines"]["items"]] == ["sample_codes/tiny/reference", "sample_codes/tiny/compiled"]


def test_other_sizes_are_verified_and_timed(capsys, tmp_path):
    """--set takes a named workload to other sizes; what it costs follows."""
    sizes = ["--kernel", "moe_experts", "--set", "M=7", "k=2", "prefill=true"]
    assert main(["verify", *sizes, "--dtype", "float32", "--json"]) == 0
    [row] = json.loads(capsys.readouterr().out)["results"]
    assert (row["workload"], row["passed"]) == ("tiny,M=7,k=2,prefill=true", True)
    assert main(["bench", *sizes, "--csv", str(tmp_path / "a.csv"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    results.check(result)
    [(name, timing)] = result["stages"]["timings"]["items"].items()
    assert name == "moe_experts/tiny,M=7,k=2,prefill=true"
    kernel = KERNELS["moe_experts"]
    tiny = next(workload for workload in kernel.workloads if workload.name == "tiny")
    resized = kernel.resized(tiny, ["M=7", "k=2", "prefill=true"])
    assert resized.sizes == tiny.sizes | {"M": 7, "k": 2, "prefill": True, "active": 4 * (1 - 0.5**7)}
    assert timing["bytes"] == kernel.cost_of(resized, 2).bytes > kernel.cost_of(tiny, 2).bytes
    rows = [*csv.DictReader((tmp_path / "a.csv").read_text(encoding="utf-8").splitlines())]
    assert [row["provider"] for row in rows] == ["triton", "reference", "compiled", "liger"]
    assert {row["workload"] for row in rows} == {"tiny,M=7,k=2,prefill=true"}


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=lambda kernel: kernel.name)
def test_lists_of_values_per_row_are_left_out_of_other_sizes(kernel):
    for workload in kernel.workloads:
        assert not [x for x in kernel.resized(workload, []).sizes.values() if isinstance(x, tuple)]


def test_a_file_that_cannot_be_written_is_refused_before_anything_is_timed(capsys, tmp_path):
    assert main(["bench", "--kernel", "rotary", "--csv", str(tmp_path / "none" / "a.csv")]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "cannot write" in said.err


def test_csv_has_a_row_for_each_timing():
    result = results.load(Path(__file__).parent / "results" / "sample.json")
    rows = [*csv.DictReader(as_csv(result).splitlines())]
    stages = result["stages"]
    both = [stages["timings"], stages["baselines"]]
    assert len(rows) == sum(len(stage["items"]) + len(stage["not_run"]) for stage in both)
    named = {(row["kernel"], row["workload"], row["provider"]): row for row in rows}
    ours, theirs = (named["moe_router", "decode-B1", provider] for provider in ("triton", "reference"))
    timed = stages["timings"]["items"]["moe_router/decode-B1"]
    assert [float(ours[name]) for name in FIGURES] == [timed[name] for name in FIGURES]
    assert float(ours["error_ratio"]) == stages["accuracy"]["items"]["moe_router/decode-B1/bfloat16"]["ratio"]
    assert float(theirs["gb_per_s"]) == pytest.approx(timed["bytes"] / float(theirs["median_us"]) / 1e3, rel=1e-2)
    assert ours | {"gpu": "Example GPU", "torch": "2.11.0+cu128", "dtype": "bfloat16", "status": "passed"} == ours
    assert named["decode_attention", "decode-B1", "flashinfer"]["reason"] == "flashinfer is not installed"


ROW = {"launches": 1, "registers": 32, "spills": 0, "shared": 0, "instructions": 200, "matrix": 0, "wide": 4,
       "narrow": 0}  # fmt: skip
BAD = {
    "verify --kernel rotery": "got 'rotery'; did you mean 'rotary' or 'moe_router'?",
    "verify --dtype bf16": "dtype must be one of bfloat16, float16, float32, got 'bf16'",
    "verify --compiled sm90": f"one of {', '.join(TARGETS)}, got 'sm90'; did you mean 'sm_90' or 'sm_89'?",
    "verify --compiled=": "target must be one of sm_80",
    "verify --compiled gfx942": "gfx942 has no PTX for the machine to read",
    "bench --kernel rotary --workload decode-B1": "workload (without a GPU) must be one of tiny, got 'decode-B1'",
    "bench --compare no.json no.json": "no.json is not a file; the results of `make gpu` and",
    "bench --kernel moe_experts --set M": "--set must be NAME=VALUE, such as D=7, got 'M'",
    "verify --kernel rotary --set Q=7": "a size of rotary must be one of DH, H, M, P, got 'Q'",
    "bench --kernel rotary --set M=x": "M of rotary must be an integer in 1..2147483647, got 'x'",
    "verify --kernel rotary --set M=0": "M of rotary must be an integer in 1..2147483647, got '0'",
    "verify --kernel rotary --set M=2147483648": "M of rotary must be an integer in 1..2147483647, got '2147483648'",
    "verify --kernel moe_experts --set E=0": "E of moe_experts must be an integer in 1..2147483647, got '0'",
    "verify --kernel decode_attention --set context=-1": "must be an integer in 0..2147483647, got '-1'",
    "compile --kernel moe_experts --set k=17": "k of moe_experts must be at most E=16, got 17",
    "bench --kernel rotary --set M=7 M=8": "--set must name M of rotary once, got also 'M=8'",
    "bench --kernel rotary --set Q=7 --set M=8": "a size of rotary must be one of DH, H, M, P, got 'Q'",
    "bench --csv a.csv --compare a b": "--compare reads two files; --csv and --set are for a run",
    "bench --kernel rotary --set M=-1": "M of rotary must be an integer in 1..2147483647, got '-1'",
    "bench --kernel codebook_head --set softcap=nan": "softcap of codebook_head must be a finite number of at least 0",
    "verify --kernel codebook_head --set prefill=1": "prefill of codebook_head must be one of true, false, got '1'",
    "compile --kernel rotary --set Q=7": "a size of rotary must be one of DH, H, M, P, got 'Q'",
    "compile --kernel rotary --set M=7 --update-snapshot": "--update-snapshot takes the named workloads, not --set",
    "report no.json": "no.json is not a file; `make gpu` and `bench --out DIR` write results",
    "compile --kernel rotate": f"kernel must be one of {', '.join(KERNELS)}, got 'rotate'; did you mean 'rotary'?",
    "compile --target sm90": f"one of {', '.join(TARGETS)}, got 'sm90'; did you mean 'sm_90' or 'sm_89'?",
    "compile --jobs 0": "jobs must be at least 1, got 0",
    "gpu --stage accuracy,timing": f"must be one of {', '.join(stages.STAGES)}, got 'timing'; did you mean 'timings'?",
    "gpu --budget nan": "--budget must be a number of seconds above 0, got nan",
    "profile --backend tritn": "--backend must be one of reference, triton, auto, got 'tritn'; did you mean 'triton'?",
    "profile --cuda-graphs load": "--cuda-graphs must be one of off, lazy, got 'load'",
    "profile --frames 0": "--frames must be in 1..100000, got 0",
    "profile --batch-size 257": "--batch-size must be in 1..256, got 257",
    "profile --device tpu9": "device must be a torch device",
    "profile --model no": "--model must be a folder with params.json and weights, its weights, or '8b', got 'no'",
    "profile --model 8b --device cpu": "--model 8b makes 15 GB of random weights on a GPU",
    "profile --out trace.txt": "--out must end in .json or .json.gz, or be a folder, got trace.txt",
    "profile --out no/trace.json": "cannot write no/trace.json: No such file or directory",
}


@pytest.mark.parametrize(("command", "said"), BAD.items())
def test_bad_input_is_refused_before_any_work(command, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gate, "check_compiler", lambda: None)
    monkeypatch.setattr(profile, "loaded", lambda _: pytest.fail("a model was loaded"))
    assert main(command.split()) == 2
    assert said in capsys.readouterr().err
    assert [*tmp_path.iterdir()] == []


def nothing_listed(monkeypatch):
    small = [w for w in KERNELS["rotary"].workloads if w.real]
    for module in (commands, stages):
        monkeypatch.setattr(module, "KERNELS", {"rotary": dataclasses.replace(KERNELS["rotary"], workloads=small)})


def nothing_timed(monkeypatch):
    def refuse(*_, **__):
        raise NotRun("no room")

    monkeypatch.setattr(stages, "timed", refuse)


def nothing_compiled(monkeypatch):
    monkeypatch.setattr(gate, "run", lambda *_, **__: [])


@pytest.mark.parametrize(
    ("command", "status", "without", "said"),
    [
        ("verify", 2, nothing_listed, "there is no workload"),
        ("bench", 1, nothing_timed, "nothing was timed"),
        ("bench --json", 1, nothing_timed, "nothing was timed"),
        ("compile --target sm_90", 2, nothing_compiled, "nothing was compiled"),
        ("compile --update-snapshot", 2, nothing_compiled, "nothing was compiled"),
    ],
)
def test_to_have_done_nothing_is_no_success(command, status, without, said, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(gate, "SNAPSHOTS", tmp_path)
    without(monkeypatch)
    name, *options = command.split()
    assert main([name, *(["--kernel", "rotary"] if name == "bench" else []), *options]) == status
    [line] = capsys.readouterr().err.splitlines()
    assert said in line
    assert [*tmp_path.iterdir()] == []


def test_a_changed_snapshot_is_worse(capsys, tmp_path):
    before, after = tmp_path / "a.json", tmp_path / "b.json"
    before.write_text(json.dumps({"k/_k/decode-B1-bfloat16/sm_90": ROW}), encoding="utf-8")
    after.write_text(json.dumps({"k/_k/decode-B1-bfloat16/sm_90": ROW | {"registers": 64}}), encoding="utf-8")
    assert main(["bench", "--compare", str(before), str(before)]) == 0
    assert main(["bench", "--compare", str(before), str(after)]) == 1
    assert "registers 32 -> 64" in capsys.readouterr().out


def test_snapshots_with_nothing_in_common_are_not_compared(capsys, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_text(json.dumps({f"{name}/_k/decode-B1-bfloat16/sm_90": ROW}), encoding="utf-8")
    assert main(["bench", "--compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "nothing was compared: they have no item in common"
