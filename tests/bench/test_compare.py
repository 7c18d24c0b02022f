"""Comparison of two runs: what counts as slower, what is only said, what cannot be compared."""

import copy
import itertools
import json
import random
import statistics
import subprocess
from pathlib import Path

import pytest

from zonos2_triton.bench.compiler.gate import SNAPSHOTS
from zonos2_triton.bench.report.compare import Input, compare, holm, read
from zonos2_triton.bench.suite import results

SAMPLE = Path(__file__).parent / "results" / "sample.json"
NAME = "moe_router/decode-B1"
ITEM = f"timings/{NAME}"


@pytest.fixture(scope="module")
def whole():
    content = results.load(SAMPLE)
    timings, kernels = (content["stages"][stage]["items"] for stage in ("timings", "accuracy"))
    content["stages"]["timings"]["items"] = {n: timings[n] for n in timings if n.startswith("moe_")}
    content["stages"]["accuracy"]["items"] = dict(itertools.islice(kernels.items(), 5))
    return content


@pytest.fixture
def again(whole):
    """Another run: new samples of the same distribution, in all items or as the factor of an item says."""

    def run(factors=None, seed=1, **environment):
        made, rng = copy.deepcopy(whole), random.Random(seed)
        made["environment"].update(environment)
        for stage, name in measured(made):
            found = made["stages"][stage]["items"][name]
            unit = "us" if "samples_us" in found else "ms"
            base = found[f"median_{unit}"] * (factors or {}).get(f"{stage}/{name}", 1)
            samples = [base * rng.gauss(1, 0.003) for _ in range(30)]
            found |= {f"samples_{unit}": samples, f"median_{unit}": statistics.median(samples)}
        return made

    return run


def measured(content):
    for stage, held in content["stages"].items():
        for name, found in held["items"].items():
            if found.keys() & {"samples_us", "samples_ms"}:
                yield stage, name


def timing(content):
    return content["stages"]["timings"]["items"][NAME]


def between(before, after, **options):
    return compare(Input("old.json", "results", before), Input("new.json", "results", after), **options)


def row(comparison):
    return next(row for row in comparison.rows if row["name"] == ITEM)


def test_two_runs_of_the_same_code_are_the_same(again):
    found = between(again(seed=1), again(seed=2))
    assert {row["verdict"] for row in found.rows} == {"same"}
    assert not found.worse
    assert not found.warnings
    assert len(found.rows) == len([*measured(again())])


@pytest.mark.parametrize(
    ("name", "unit", "factor", "verdict"),
    [(ITEM, "us", 1.05, "slower"), (ITEM, "us", 0.95, "faster"), ("end_to_end/first-audio/1", "ms", 1.05, "slower")],
)
def test_five_percent_is_a_difference(again, name, unit, factor, verdict):
    found = between(again(seed=1), again({name: factor}, seed=2))
    [moved] = [row for row in found.rows if row["verdict"] != "same"]
    assert (moved["name"], moved["verdict"], moved["unit"]) == (name, verdict, unit)
    assert moved["ratio"] == pytest.approx(factor, abs=0.003)
    assert moved["p"] < 1e-6
    assert found.worse is (verdict == "slower")


def test_one_percent_is_significant_and_below_the_threshold(again):
    before, after = again(seed=1), again({ITEM: 1.01}, seed=2)
    found = between(before, after)
    assert row(found)["p"] < 0.01
    assert (row(found)["verdict"], row(found)["note"]) == ("same", "significant, below the threshold")
    assert not found.worse
    assert row(between(before, after, threshold=0.005))["verdict"] == "slower"


def test_far_apart_with_few_samples_is_not_significant(again):
    before, after = again(seed=1), again({ITEM: 1.1}, seed=2)
    for content in (before, after):
        timing(content)["samples_us"] = timing(content)["samples_us"][:5]
    found = row(between(before, after))
    assert (found["verdict"], found["note"]) == ("same", "not significant, 5 and 5 samples")


def test_a_slower_card_is_no_slower_code(again):
    found = between(again(seed=1), again({"calibration/copy": 1.1}, seed=2))
    [warning] = found.warnings
    assert warning.startswith("the GPU itself is slower: calibration/copy, +")
    assert not found.worse


def test_holm_by_hand():
    """Holm 1979: ranked p, times how many are not below it, never less than the one before."""
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_what_fails_now_is_worse_and_what_failed_before_is_not(again):
    before, after = again(), again()
    kernels = after["stages"]["accuracy"]["items"]
    first, second = list(kernels)[:2]
    before["stages"]["accuracy"]["items"][second] = {"status": "failed", "error": "once"}
    for content in (before, after):
        content["stages"]["cuda_graph"]["items"]["decode step"] = {"status": "failed", "error": "off"}
    found = between(before, after)
    assert (found.recovered, found.failing, found.worse) == ([f"accuracy/{second}"], [], False)
    kernels[first] = {"status": "failed", "error": "Mismatch: off"}
    after["stages"]["timings"]["items"][NAME] = {"status": "withheld", "reason": f"{first} failed"}
    kernels["moe_router/new/bfloat16"] = {"status": "failed", "error": "Mismatch: new and off"}
    found = between(before, after)
    assert found.failing == [
        f"accuracy/{first}: Mismatch: off", "accuracy/moe_router/new/bfloat16: Mismatch: new and off",
        f"{ITEM}: {first} failed",
    ]  # fmt: skip
    assert found.worse


def test_what_vanished_is_named_with_its_reason(again):
    before, after = again(), again()
    del after["stages"]["timings"]["items"][NAME]
    after["stages"]["timings"]["not_run"][NAME] = "no time left"
    del after["stages"]["cuda_graph"]
    found = between(before, after)
    assert found.vanished == [
        "cuda_graph/decode step: no longer there", "cuda_graph/vocoder/step: no longer there", f"{ITEM}: no time left",
    ]  # fmt: skip
    assert not found.worse
    after["stages"].clear()
    assert "0 measured in both" in between(before, after).as_text()


def test_conditions_that_differ_are_warnings(again):
    found = between(again(), again(torch="2.12", driver="560.1", clock_mhz=1200.0, commit="ffffffffffff"))
    assert found.warnings == [
        "driver: 550.0.1 before, 560.1 after", "torch: 2.11.0+cu128 before, 2.12 after",
        "clock_mhz: 1980.0 before, 1200.0 after",
    ]  # fmt: skip
    after = again(seed=2)
    timing(after)["launch"] = "eager"
    assert row(between(again(seed=1), after))["note"] == "launch graph -> eager"


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"gpu": "Another GPU"}, "different GPUs: Example GPU, Another GPU"),
        ({"smoke": True}, "new.json is a smoke run on a CPU"),
    ],
)
def test_cards_and_rehearsals_are_not_compared_unless_forced(again, environment, said):
    before, after = again(), again(**environment)
    with pytest.raises(ValueError, match=rf"{said}.* --allow-different-gpus"):
        between(before, after)
    assert between(before, after, allow_different_gpus=True).warnings[0].startswith(said)


def test_text_and_json_say_the_same(again):
    found = between(again(seed=1), again({ITEM: 1.05}, seed=2))
    text = found.as_text().splitlines()
    assert text[0] == "before: old.json"
    assert text[3].split()[:2] == [ITEM, "slower"]  # the largest change comes first
    assert f"{len(found.rows)} measured in both: 1 slower, 0 faster" in text[-2]
    assert text[-1] == "worse"
    written = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert written["worse"] is True
    assert written["rows"] == found.rows


# Files.


@pytest.fixture
def snapshot():
    path = max(SNAPSHOTS.glob("triton-*.json"))
    return dict(itertools.islice(json.loads(path.read_text(encoding="utf-8")).items(), 40))


def test_a_file_of_a_commit(snapshot, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (file := Path("r.json")).write_text(json.dumps(snapshot), encoding="utf-8")
    author = "-c", "user.name=a", "-c", "user.email=a@example.org"
    for command in (["init", "-q"], ["add", "r.json"], [*author, "commit", "-qm", "first"]):
        subprocess.run(["git", *command], check=True)
    file.write_text(json.dumps(dict([*snapshot.items()][1:])), encoding="utf-8")
    found = compare(read("HEAD:r.json"), read("r.json"))
    assert f"changed: {next(iter(snapshot))}: gone\n1 differences, 0 worse\nnot worse" in found.as_text()
    with pytest.raises(ValueError, match=r"HEAD:gone\.json is neither a file nor a file of a commit: .*gone\.json"):
        read("HEAD:gone.json")
    with pytest.raises(FileNotFoundError, match=r"gone\.json"):
        read("gone.json")


NEITHER = "b.json is neither a result file nor a snapshot"
ROW = "b.json: at stages/timings/items/moe_router/decode-B1: 'samples_us'"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[" * 10**5, "b.json is no JSON"),
        ("{", "b.json is no JSON"), ("{}", NEITHER), ("[1]", NEITHER), ('{"a/b/c/d": {"registers": 3}}', NEITHER),
        ('{"schema": 1}', "b.json has schema 1; this version reads 4"),
        ("snapshot", "b.json of snapshots"), ("broken", ROW),
    ],
)  # fmt: skip
def test_what_cannot_be_compared(again, snapshot, tmp_path, content, said):
    broken = again()
    del timing(broken)["samples_us"]
    text = {"snapshot": json.dumps(snapshot), "broken": json.dumps(broken)}.get(content, content)
    (file := tmp_path / "b.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"b\.json") as error:
        compare(Input("a.json", "results", again()), read(str(file)))
    assert said in str(error.value)


def test_a_threshold_is_a_fraction(snapshot):
    for threshold in (-0.1, 1, float("nan")):
        with pytest.raises(ValueError, match="threshold must be a fraction from 0 to below 1, got"):
            compare(Input("a", "snapshots", snapshot), Input("b", "snapshots", snapshot), threshold)
