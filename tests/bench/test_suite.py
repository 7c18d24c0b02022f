"""The command for a GPU, as far as it goes without one: what it would run, its budget, its file, what it withholds."""

import dataclasses
import json
from datetime import date
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from zonos2_triton.bench.catalogue import KERNELS
from zonos2_triton.bench.compiler.estimate import (
    CLOCK_SHARE,
    FILL_US,
    GAP_US,
    REFERENCE,
    START_US,
    Estimate,
    Held,
    Step,
    dependent_us,
)
from zonos2_triton.bench.compiler.frame_estimate import frame_places, frame_us
from zonos2_triton.bench.proof.verify import Mismatch
from zonos2_triton.bench.suite import constants, gpu, results, stages
from zonos2_triton.bench.suite.presets import FULL, SMOKE
from zonos2_triton.bench.suite.recorder import Budget, Item, NotRun, Recorder, Withheld
from zonos2_triton.bench.timing import timer
from zonos2_triton.bench.timing.timer import Device

HERE = {"gpu": "NVIDIA H100 80GB HBM3", "commit": "0123456789ab", "sources": "s", "torch": "2.11", "triton": "3.6",
        "arch": "sm_90", "driver": "1"}  # fmt: skip
SAMPLE = Path(__file__).parent / "results" / "sample.json"
CPU = Device("cpu", 0, lambda: None, lambda run: 0.4, None)


@pytest.fixture
def clock():
    return SimpleNamespace(now=100.0)


@pytest.fixture
def recorder(tmp_path):
    return Recorder.open(tmp_path, HERE, date(2026, 1, 2))


def items(stage, clock, *names, spend=2.0, done=None):
    """They take `spend` seconds each, and are not begun with less than one left."""

    def run(name, left):
        clock.now += spend
        if done is not None:
            done.append(name)
        return {"left": left}

    return [Item(stage, name, 1.0, partial(run, name)) for name in names]


def broken(stage, name, error):
    def run(left):
        raise error

    return Item(stage, name, 0, run)


def on_disk(recorder):
    return json.loads(recorder.path.read_text(encoding="utf-8"))


def go(recorder, stages, todo, clock, budget=1000.0, **more):
    said = []
    status = gpu.run(recorder, stages, todo, Budget(budget, lambda: clock.now), say=said.append, **more)
    return status, "\n".join(said)


def test_what_would_run_covers_the_catalogue():
    listed = stages.plan(None, stages.STAGES, FULL)
    names = {stage: [item.name for item in listed if item.stage == stage] for stage in stages.STAGES}
    assert all(len(set(mine)) == len(mine) for mine in names.values())
    real = {f"{kernel.name}/{w.name}" for kernel in KERNELS.values() for w in kernel.workloads if w.real}
    small = {f"{kernel.name}/{w.name}" for kernel in KERNELS.values() for w in kernel.workloads if not w.real}
    assert set(names["timings"]) == real
    assert set(names["accuracy"]) == {f"{name}/bfloat16" for name in real | small} | {
        f"{name}/{dtype}" for name in small for dtype in ("float16", "float32")
    }
    # What is timed is checked before the budget can end.
    assert {name.removesuffix("/bfloat16") for name in names["accuracy"][: len(real)]} == real
    timed = dict.fromkeys(name.split("/")[1] for name in names["timings"])
    assert [name for name in timed if name in ("decode-B4", *stages.FIRST)] == [*stages.FIRST, "decode-B4"]


def test_without_a_gpu_nothing_is_run_which_is_no_success(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--out", str(tmp_path / "none")]) == 1
    said = capsys.readouterr().out
    assert said.startswith("nothing was run: torch ")
    assert ["calibration", "2"] in [line.split() for line in said.splitlines()]
    assert len(said.splitlines()) == len(stages.STAGES) + 3
    assert len(said) < 1200
    assert "--names" in said.splitlines()[-1]
    assert "--smoke" in said.splitlines()[-1]
    assert gpu.main(["--stage", "accuracy", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert not report["ran"]
    assert len(report["would_run"]["accuracy"]) == len(stages.plan(None, ["accuracy"], FULL))
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("on_gpu", [True, False])
def test_names_are_told_when_asked_for(on_gpu, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: on_gpu)
    assert gpu.main(["--names", "--stage", "calibration,timings", "--out", str(tmp_path / "none")]) == 0
    said = capsys.readouterr().out
    assert said.startswith("calibration: 2 items\n")
    assert "  rotary decode-B1, " in said
    assert gpu.main(["--names", "--stage", "calibration", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["would_run"] == {"calibration": ["copy", "matmul"]}
    assert not (tmp_path / "none").exists()


def test_a_budget_in_which_nothing_runs_is_no_success(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(gpu, "environment", lambda *_: HERE | {"smoke": True})
    run = ["--smoke", "--stage", "calibration", "--out", str(tmp_path), "--budget", "1e-9"]
    assert gpu.main(run) == 1
    assert "nothing was run: every item was left out" in capsys.readouterr().err


def test_an_interpreting_process_measures_nothing(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu, "interpreted", lambda: True)
    assert gpu.main([]) == 2
    assert "unset TRITON_INTERPRET" in capsys.readouterr().err


def test_the_command_writes_reports_and_goes_on(monkeypatch, capsys, tmp_path, clock):
    done = []
    todo = [*items("accuracy", clock, "a/x/bfloat16", done=done), broken("timings", "a/x", Withheld("a/y failed"))]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(timer, "cuda_device", lambda: CPU)
    monkeypatch.setattr(gpu, "interpreted", lambda: False)
    monkeypatch.setattr(gpu, "environment", lambda *_: HERE)
    monkeypatch.setattr(gpu, "_alive", lambda: True)
    monkeypatch.setattr(gpu, "plan", lambda run, stages, preset: todo)
    assert gpu.main(["--out", str(tmp_path), "--json"]) == 1
    out, err = capsys.readouterr()
    assert "withheld a/x: a/y failed" in err
    assert json.loads(out)["stages"]["timings"]["items"]["a/x"]["reason"] == "a/y failed"
    assert gpu.main(["--out", str(tmp_path)]) == 1
    assert "a       x         withheld" in capsys.readouterr().out
    assert done == ["a/x/bfloat16"]


def test_a_failure_leaves_what_came_before_on_disk(recorder, clock):
    def look(left):
        assert on_disk(recorder)["stages"]["accuracy"]["items"]["one"]["status"] == "passed"
        raise KeyboardInterrupt

    todo = [*items("accuracy", clock, "one"), broken("accuracy", "two", Mismatch("off"))]
    todo.append(Item("cuda_graph", "three", 0, look))
    with pytest.raises(KeyboardInterrupt):
        go(recorder, ["accuracy", "cuda_graph"], todo, clock)
    with pytest.raises(ValueError, match="JSON"):
        recorder.keep("cuda_graph", "three", {"status": "passed", "value": float("nan")})
    found = on_disk(recorder)
    assert found["schema"] == 4
    assert found["environment"] == HERE
    assert found["stages"]["accuracy"]["items"]["two"] | {"seconds": 0} == {
        "status": "failed", "error": "Mismatch: off", "seconds": 0}  # fmt: skip
    assert not [path for path in recorder.path.parent.iterdir() if path != recorder.path]


def test_the_budget_ends_and_says_what_it_left_out(recorder, clock):
    status, said = go(recorder, ["accuracy"], items("accuracy", clock, "a", "b", "c", "d"), clock, budget=4.5)
    assert status == 0
    assert [*recorder.items("accuracy")] == ["a", "b"]
    assert on_disk(recorder)["stages"]["accuracy"]["not_run"] == {"c": "no time left", "d": "no time left"}
    assert "accuracy: 2 passed" in said
    assert "not run, no time left (2): c, d" in said


def test_early_parts_leave_time_for_later_ones(recorder, clock):
    todo = [*items("accuracy", clock, "a", "b", spend=30), *items("timings", clock, "t")]
    go(recorder, ["accuracy", "timings"], todo, clock, budget=stages.STAGES["timings"][0] + 20)
    assert [*recorder.items("accuracy")] == ["a"]
    assert [*recorder.items("timings")] == ["t"]


def test_what_is_essential_fits_five_minutes_and_the_rest_the_budget():
    listed = stages.plan(None, stages.STAGES, FULL)
    first = [item for item in listed if item.essential]
    assert listed[: len(first)] == first
    assert sum(item.seconds for item in first) <= stages.ESSENTIAL
    assert sum(seconds for seconds, _ in stages.STAGES.values()) <= gpu.BUDGET - stages.ESSENTIAL
    names = {stage: [item.name for item in first if item.stage == stage] for stage in stages.STAGES}
    assert names["frames"] == [f"B{n}{how}" for how in ("", "/no-pdl") for n in (1, 16, 64)]
    assert names["accuracy"]
    assert {f"{name}/bfloat16" for name in names["launches"]} == {*names["accuracy"]}
    assert all(names[stage] for stage in ("calibration", "invariance", "cuda_graph", "constants", "vocoder"))
    assert not names["tests"] + names["sanitizer"] + names["baselines"]


def test_what_is_essential_is_begun_whatever_is_reserved_and_leaves_the_late_seconds(recorder, clock):
    [item] = items("accuracy", clock, "a")
    go(recorder, stages.STAGES, [dataclasses.replace(item, essential=True)], clock, budget=20)
    assert recorder.items("accuracy")["a"]["left"] == 20
    go(recorder, stages.STAGES, [dataclasses.replace(item, essential=True)], clock, budget=530, rerun=True)
    assert recorder.items("accuracy")["a"]["left"] == stages.ESSENTIAL
    go(recorder, stages.STAGES, [dataclasses.replace(item, name="b")], clock, budget=20)
    assert "b" not in recorder.items("accuracy")


def launch(*parts):
    """A launch with these parts of its estimate, all after its wait."""
    found = Estimate(*map(float, parts))
    return Step("a", found, 4e3, 4e3, 0.0, found._replace(floor=0.0), Held(), Held())


def test_launches_and_frames_stand_beside_their_estimates(recorder, monkeypatch):
    recorder.content["environment"] = HERE | {"gpu": "NVIDIA H200"}
    found = {"decode-B1": [launch(3, 0, 1, 1, 1)] * 2}
    found = dict.fromkeys(frame_places(FULL.config, 1), found["decode-B1"])
    monkeypatch.setattr(stages, "estimates", lambda snapshot, rates: found)
    monkeypatch.setattr(stages, "timed", lambda *_: {"median_us": 8.0})
    monkeypatch.setattr(stages.Run, "frames", SimpleNamespace(time=lambda *_: {"median_us": 900.0}))
    run = stages.Run(recorder, CPU, FULL)
    todo = {item.name: item for item in stages.plan(run, ["frames", "launches"], FULL)}
    beside = {"median_us": 8.0, "estimate_us": round(2 * (START_US + FILL_US + 3 + GAP_US), 2), "limit": "floor"}
    assert todo["moe_router/decode-B1"].run(9) == beside
    assert todo["moe_router/decode-B16"].run(9) == {"median_us": 8.0, "estimate_us": None, "limit": None}
    serial, dependent = frame_us(FULL.config, 1, found, run.rates)
    assert serial > dependent
    for on, us in ((False, serial), (True, dependent)):
        monkeypatch.setattr(stages, "pdl_arguments", lambda on=on: {"PDL": on})
        assert todo["B1"].run(9) == {"median_us": 900.0, "estimate_us": round(us, 1)}
    assert todo["B1/context-100"].run(9)["estimate_us"] is None
    recorder.content["environment"]["arch"] = "sm_80"  # others than that whose code was counted
    assert stages.Run(recorder, CPU, FULL).estimates == {}


def test_constants_are_found_again_in_times_made_of_them(recorder):
    """Launches of which each part limits some, and frames of them: the fit gives back what made the times."""
    start, fill, gap, slower = 1.4, 0.9, 0.8, 1.25
    limits = [
        (4, 1, 1, 1, 1),
        (2, 12, 1, 1, 1),
        (2, 1, 6, 1, 1),
        (2, 1, 9, 1, 1),
        (1, 1, 2, 7, 1),
        (1, 1, 1, 1, 5),
        (1, 1, 1, 1, 9),
    ]
    launches = {f"a/{n}": [launch(*each)] for n, each in enumerate(limits)}

    def us(step):
        e = step.estimate
        part = getattr(e, e.limit) * (1 if e.limit in ("floor", "l2") else slower)
        return start + gap + part + (fill if e.limit != "chain" else 0)

    for name, [step] in launches.items():
        recorder.keep("launches", name, {"status": "passed", "median_us": us(step), "calls_per_sample": 20})
    frames = {1: [step for steps in launches.values() for step in steps] * 5}
    with pytest.raises(NotRun, match="too little was measured: 7 launches and frames with estimates, at least 8"):
        constants.fitted(recorder.content, launches, frames, REFERENCE)
    recorder.keep("frames", "B1/no-pdl", {"status": "passed", "median_us": sum(map(us, frames[1]))})
    alone = constants.fitted(recorder.content, launches, frames, REFERENCE)
    assert alone["fitted"]["GAP_US"] == GAP_US
    assert "GAP_US" in alone["not_fitted"]
    recorder.keep("frames", "B1", {"status": "passed", "median_us": dependent_us(frames[1], REFERENCE, gap=gap)})
    found = constants.fitted(recorder.content, launches, frames, REFERENCE)
    wanted = {"START_US": start, "FILL_US": fill, "GAP_US": gap, "CLOCK_SHARE": CLOCK_SHARE / slower}
    assert found["fitted"] == pytest.approx(wanted, abs=0.02)
    assert found["rms_pct"] < 1 < found["assumed_rms_pct"]
    assert found["residuals_pct"].keys() == {
        *(f"launches/{name}" for name in launches),
        "frames/B1/no-pdl",
        "frames/B1",
    }
    recorder.keep("constants", "all", {"status": "passed", "seconds": 0.0} | found)
    for stage in ("launches", "frames"):
        recorder.content["stages"].pop(stage)
    results.check(recorder.content | {"environment": results.load(SAMPLE)["environment"]})
    only_chains = {name: [launch(1, 0, 1, 1, 9)] for name in map(str, range(9))}
    for name in only_chains:
        recorder.keep("launches", name, {"status": "passed", "median_us": 12.0, "calls_per_sample": 20})
    with pytest.raises(NotRun, match="does not tell the constants apart"):
        constants.fitted(recorder.content, only_chains, {}, REFERENCE)


def test_measured_beside_estimate_is_told():
    said = constants.against_estimates(results.load(SAMPLE))
    assert "launches/moe_router/decode-B1" in said
    assert "START_US 1.05 (0.9)" in said
    assert "off by 6.3 % RMS (14.2 %)" in said
    assert "residuals: frames/B1 +8.4 %" in said


def test_it_goes_on_where_it_stopped(recorder, clock):
    done = []
    todo = items("accuracy", clock, "a", "b", "c", done=done)
    go(recorder, ["accuracy"], todo, clock, budget=3)
    again = Recorder.open(recorder.path.parent, HERE, date(2026, 1, 5))
    assert again.path == recorder.path
    go(again, ["accuracy"], todo, clock)
    assert done == ["a", "b", "c"]
    assert on_disk(recorder)["stages"]["accuracy"]["not_run"] == {}
    go(again, ["accuracy"], todo, clock, rerun=True)
    assert done == ["a", "b", "c"] * 2


def test_another_commit_card_or_version_begins_anew(recorder, tmp_path):
    assert recorder.path.name == "nvidia-h100-80gb-hbm3-2026-01-02-0123456789ab.json"
    for name, number in (("torch", 2), ("sources", 3)):
        other = Recorder.open(tmp_path, HERE | {name: "other"}, date(2026, 1, 2))
        assert other.path.name == f"nvidia-h100-80gb-hbm3-2026-01-02-0123456789ab-{number}.json"
    assert Recorder.open(tmp_path, HERE | {"commit": "f"}, date(2026, 1, 2)).path.name.endswith("-2026-01-02-f.json")
    assert Recorder.open(tmp_path, HERE | {"gpu": "RTX"}).path.name.startswith("rtx-")
    recorder.path.write_text("[1]", encoding="utf-8")  # no result file: kept, not gone on with
    assert Recorder.open(tmp_path, HERE, date(2026, 1, 2)).path != recorder.path


def test_a_lost_device_ends_the_run(recorder, clock):
    todo = items("accuracy", clock, "a", "b")
    answers = iter([True, False])
    status, said = go(recorder, ["accuracy"], [*todo[:1], *todo], clock, alive=lambda: next(answers), rerun=True)
    assert status == 1
    assert "no longer answers" in said
    assert recorder.items("accuracy")["a"]["error"] == "the device failed after it"


@pytest.mark.parametrize("error", [NotRun("no pytest"), torch.OutOfMemoryError("no room\nand more")], ids=repr)
def test_what_could_not_run_is_tried_again(recorder, clock, error):
    status, said = go(recorder, ["tests"], [broken("tests", "a", error)], clock)
    assert status == 0
    assert recorder.items("tests") == {}
    assert f"tests: nothing run\n  not run, {str(error).splitlines()[0]} (1): a" in said


NORM = KERNELS["add_rms_norm"]
TINY = next(workload for workload in NORM.workloads if workload.name == "tiny")


def test_times_are_withheld_where_any_check_of_the_kernel_failed(recorder):
    recorder.keep("accuracy", "codebook_head/tiny/bfloat16", {"status": "failed", "error": "not this one"})
    stages.prove(NORM, TINY, stages.Run(recorder, CPU, FULL), 9)
    assert recorder.items("accuracy")["add_rms_norm/tiny/bfloat16"]["status"] == "passed"
    recorder.keep("invariance", "add_rms_norm/batch_invariant", {"status": "failed", "error": ""})
    with pytest.raises(Withheld, match=r"^add_rms_norm/batch_invariant failed$"):
        stages.prove(NORM, TINY, stages.Run(recorder, CPU, FULL), 9)


def test_a_time_with_its_rates_and_what_stands_beside(recorder):
    recorder.keep("calibration", "copy", {"status": "passed", "gb_per_s": 2.0})
    found = stages.timed(NORM, dataclasses.replace(TINY, name="decode-B1"), stages.Run(recorder, CPU, FULL), 9)
    assert found["gb_per_s"] == pytest.approx((4 * 3 * 48 + 48) * 2 / 133.3e-6 / 1e9, abs=0.01)
    assert found["pct_measured_bandwidth"] == pytest.approx(50 * found["gb_per_s"], abs=1)
    recorder.keep("baselines", "add_rms_norm/decode-B1/reference", {"status": "passed", "median_us": 400.0})
    recorder.keep("timings", "add_rms_norm/decode-B1", {"status": "passed"} | found)
    heads, line = gpu.table(recorder).splitlines()
    assert heads.endswith("reference us")
    assert line.split()[:4] == ["add_rms_norm", "decode-B1", "133.3", "133.3"]
    assert line.endswith("400.0")


def test_times_of_frames_and_of_the_vocoder_are_withheld_where_a_check_of_their_own_failed(recorder):
    recorder.keep("accuracy", "moe_router/tiny/bfloat16", {"status": "failed"})
    run = stages.Run(recorder, CPU, FULL)
    items = stages.plan(run, ["vocoder", "frames"], FULL)
    run.prove(lambda kernel: kernel in stages.VOCODER)
    recorder.keep("cuda_graph", "vocoder/step", {"status": "failed"})
    recorder.keep("accuracy", "conv1d_tanh/tiny/float16", {"status": "failed"})
    with pytest.raises(Withheld, match=r"^conv1d_tanh/tiny/float16, vocoder/step failed$"):
        items[0].run(10.0)
    frames = next(item for item in items if item.stage == "frames")
    with pytest.raises(Withheld, match=r"^moe_router/tiny/bfloat16 failed$"):
        frames.run(10.0)


@pytest.mark.parametrize(
    "chosen",
    [("calibration", "accuracy", "launches", "constants"), pytest.param(tuple(stages.STAGES), marks=pytest.mark.slow)],
    ids=["quick", "all"],
)
def test_a_smoke_run(chosen, tmp_path, capsys):
    """`gpu --smoke`: every step, at small sizes, in Triton's interpreter; each item has a result or a reason."""
    assert gpu.main(["--smoke", "--out", str(tmp_path), "--budget", "3000", "--stage", ",".join(chosen)]) == 0
    assert "no figure is of speed" in capsys.readouterr().out
    found = results.load(next(tmp_path.glob("*.json")))
    results.check(found)
    assert found["environment"]["smoke"]
    left = {stage: results.left_out(found, stage) for stage in chosen}
    for stage in chosen:
        listed = {item.name for item in stages.plan(None, [stage], SMOKE)}
        assert results.all_passed(found, stage).keys() | left[stage].keys() == listed
    assert {stage for stage in chosen if left[stage]} <= {"tests", "sanitizer", "baselines", "constants"}
    if "baselines" in chosen:
        others = results.items(found, "baselines")
        assert {f"{name}/reference" for name in results.items(found, "timings")} <= others.keys()
