"""Comparison of two runs: what counts as slower, what is only said, what cannot be compared."""

import copy
import itertools
import json
import random
import statistics
import subprocess
from math import comb
from pathlib import Path

import pytest

from zonos2_triton.bench.compiler.gate import SNAPSHOTS
from zonos2_triton.bench.report.compare import Comparison, Input, compare, holm, median_interval, read
from zonos2_triton.bench.suite import results

SAMPLE = Path(__file__).parent / "results" / "sample.json"
ITEM = "router/decode-B1"


@pytest.fixture
def sample():
    """With the timings of a few kernels, and some of the checks."""
    content = results.load(SAMPLE)
    timings, kernels = (content["parts"][part]["items"] for part in ("timings", "kernels"))
    content["parts"]["timings"]["items"] = {n: timings[n] for n in timings if n.startswith(("router/", "experts/"))}
    content["parts"]["kernels"]["items"] = dict(itertools.islice(kernels.items(), 5))
    return content


@pytest.fixture
def again(sample):
    """Another run: new samples of the same distribution, in all items or as the factor of an item says."""

    def run(factors=None, seed=1, **environment):
        made, rng = copy.deepcopy(sample), random.Random(seed)
        made["environment"].update(environment)
        for part, name in measured(made):
            found = made["parts"][part]["items"][name]
            unit = "us" if "samples_us" in found else "ms"
            factor = (factors or {}).get(name, 1)
            base = found[f"median_{unit}"] * factor
            samples = [base * rng.gauss(1, 0.003) for _ in range(30)]
            found |= {f"samples_{unit}": samples, f"median_{unit}": statistics.median(samples)}
        return made

    return run


def measured(content):
    for part, held in content["parts"].items():
        for name, found in held["items"].items():
            if found.keys() & {"samples_us", "samples_ms"}:
                yield part, name


def between(before, after, **options):
    return compare(Input("old.json", "results", before), Input("new.json", "results", after), **options)


def of_files(before, after, **options):
    return compare(read(before), read(after), **options)


def row(comparison, name=f"timings/{ITEM}"):
    return next(row for row in comparison.rows if row.name == name)


def test_two_runs_of_the_same_code_are_the_same(again):
    found = between(again(seed=1), again(seed=2))
    assert {row.verdict for row in found.rows} == {"same"}
    assert not found.worse
    assert not found.warnings
    assert len(found.rows) == len([*measured(again())])


@pytest.mark.parametrize(("factor", "verdict", "worse"), [(1.05, "slower", True), (0.95, "faster", False)])
def test_five_percent_is_a_difference(again, factor, verdict, worse):
    found = between(again(seed=1), again({ITEM: factor}, seed=2))
    assert row(found).verdict == verdict
    assert row(found).ratio == pytest.approx(factor, abs=0.003)
    assert row(found).low < factor < row(found).high
    assert row(found).p < 1e-6
    assert [r.name for r in found.rows if r.verdict != "same"] == [f"timings/{ITEM}"]
    assert found.worse is worse


def test_one_percent_is_significant_and_below_the_threshold(again):
    before, after = again(seed=1), again({ITEM: 1.01}, seed=2)
    found = between(before, after)
    assert row(found).p < 0.01
    assert row(found).verdict == "same"
    assert row(found).note == "significant, below the threshold"
    assert not found.worse
    assert row(between(before, after, threshold=0.005)).verdict == "slower"


def test_far_apart_with_few_samples_is_not_significant(again):
    before, after = again(seed=1), again({ITEM: 1.1}, seed=2)
    for content in (before, after):
        found = content["parts"]["timings"]["items"][ITEM]
        found["samples_us"] = found["samples_us"][:5]
    found = row(between(before, after))
    assert found.verdict == "same"
    assert found.note == "not significant, 5 and 5 samples"


def test_scattered_samples_make_no_difference(again):
    """Five percent between the medians, but within what each run scatters by."""
    before, after = again(seed=1), again({ITEM: 1.05}, seed=2)
    for content, seed in ((before, 3), (after, 4)):
        found, rng = content["parts"]["timings"]["items"][ITEM], random.Random(seed)
        found["samples_us"] = [found["median_us"] * rng.uniform(0.7, 1.3) for _ in range(30)]
    assert row(between(before, after)).verdict == "same"


def test_samples_that_are_all_one_value(again):
    before, after = again(seed=1), again(seed=2)
    for content in (before, after):
        content["parts"]["timings"]["items"][ITEM] |= {"samples_us": [3.0] * 20, "median_us": 3.0}
    assert row(between(before, after)).p == 1
    after["parts"]["timings"]["items"][ITEM] |= {"samples_us": [4.0] * 20, "median_us": 4.0}
    assert row(between(before, after)).verdict == "slower"


def test_audio_counts_in_milliseconds(again):
    found = row(between(again(seed=1), again({"first-audio/1": 1.2}, seed=2)), "whole/first-audio/1")
    assert (found.verdict, found.unit) == ("slower", "ms")


def test_a_slower_card_is_no_slower_code(again):
    found = between(again(seed=1), again({"copy": 1.1}, seed=2))
    assert found.warnings == ("the card itself is slower: calibration/copy, "
                              f"{100 * (row(found, 'calibration/copy').ratio - 1):+.1f} %",)  # fmt: skip
    assert not found.worse


def test_holm_by_hand():
    """Holm 1979: ranked p, times how many are not below it, never less than the one before."""
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize("n", [9, 12, 20, 101])
def test_the_interval_of_a_median_holds_its_level_and_no_more(n):
    """The chance that fewer than k of n lie below the median, from Pascal's triangle."""
    low, high = median_interval(range(n))
    outside = 2 * sum(comb(n, i) for i in range(low + 1)) / 2**n
    assert high == n - 1 - low
    assert outside <= 0.025
    assert outside + 2 * comb(n, low + 1) / 2**n > 0.025


def test_too_few_for_an_interval_give_all():
    assert median_interval([3.0, 1.0, 2.0]) == (1.0, 3.0)


def test_what_fails_now_is_worse(again):
    before, after = again(), again()
    kernels = after["parts"]["kernels"]["items"]
    first, second = list(kernels)[:2]
    kernels[first] = {"status": "failed", "error": "Mismatch: off"}
    after["parts"]["timings"]["items"][ITEM] = {"status": "withheld", "reason": f"{first} failed"}
    before["parts"]["kernels"]["items"][second] = {"status": "failed", "error": "once"}
    kernels["router/new/bfloat16"] = {"status": "failed", "error": "Mismatch: new and off"}
    found = between(before, after)
    assert found.failing == (f"kernels/{first}: Mismatch: off", "kernels/router/new/bfloat16: Mismatch: new and off",
                             f"timings/{ITEM}: {first} failed")  # fmt: skip
    assert found.recovered == (f"kernels/{second}",)
    assert found.worse


def test_what_failed_before_too_is_not_newly_failing(again):
    before, after = again(), again()
    for content in (before, after):
        content["parts"]["graph"]["items"]["decode step"] = {"status": "failed", "error": "off"}
    found = between(before, after)
    assert not found.failing
    assert not found.worse


def test_what_vanished_is_named_with_its_reason(again):
    before, after = again(), again()
    del after["parts"]["timings"]["items"][ITEM]
    after["parts"]["timings"]["not_run"][ITEM] = "no time left"
    del after["parts"]["graph"]
    found = between(before, after)
    assert found.vanished == ("graph/decode step: no longer there", "graph/vocoder/step: no longer there",
                              f"timings/{ITEM}: no time left")  # fmt: skip
    assert not found.worse


def test_conditions_that_differ_are_warnings(again):
    found = between(again(), again(torch="2.12", driver="560.1", clock_mhz=1200.0, commit="ffffffffffff"))
    assert found.warnings == ("driver: 550.0.1 before, 560.1 after", "torch: 2.11.0+cu128 before, 2.12 after",
                              "clock_mhz: 1980.0 before, 1200.0 after")  # fmt: skip


def test_other_launches_are_noted(again):
    before, after = again(seed=1), again(seed=2)
    after["parts"]["timings"]["items"][ITEM]["launch"] = "eager"
    assert row(between(before, after)).note == "launch graph -> eager"


def test_cards_are_not_compared_unless_forced(again):
    before, after = again(), again(card="Another card")
    with pytest.raises(ValueError, match=r"different cards: Example card, Another card\. .* --force"):
        between(before, after)
    assert "different cards: Example card, Another card" in between(before, after, force=True).warnings


def test_rehearsals_are_not_compared_unless_forced(again):
    before, after = again(), again(rehearsal=True)
    with pytest.raises(ValueError, match=r"new\.json is a rehearsal on a CPU"):
        between(before, after)
    assert between(before, after, force=True).warnings


def test_text_and_json_say_the_same(again):
    found = between(again(seed=1), again({ITEM: 1.05}, seed=2))
    text = found.as_text().splitlines()
    assert text[0] == "before: old.json"
    assert text[3].startswith(f"slower   timings/{ITEM}")  # the largest change comes first
    assert f"{len(found.rows)} measured in both: 1 slower, 0 faster" in text[-2]
    assert text[-1] == "worse"
    read = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert read["worse"] is True
    assert [r["verdict"] for r in read["rows"]].count("slower") == 1


def test_nothing_in_common(again):
    before, after = again(), again()
    after["parts"].clear()
    assert "0 measured in both" in between(before, after).as_text()


# Files.


@pytest.fixture
def write(tmp_path):
    def written(name, content):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return path

    return written


def test_two_files(again, write):
    found = of_files(write("a.json", again(seed=1)), write("b.json", again({ITEM: 1.05}, seed=2)))
    assert found.worse
    assert found.before.endswith("a.json")


@pytest.fixture
def baseline():
    path = max(SNAPSHOTS.glob("triton-*.json"))
    return dict(itertools.islice(json.loads(path.read_text(encoding="utf-8")).items(), 40))


def test_two_baselines(baseline, write):
    after = copy.deepcopy(baseline)
    keys = list(after)
    after[keys[0]]["registers"] *= 2
    after[keys[1]]["instructions"] -= 1
    del after[keys[2]]
    found = of_files(write("a.json", baseline), write("b.json", after))
    assert {(change.key, change.worse) for change in found.changes} == {
        (keys[0], True), (keys[1], False), (keys[2], False)}  # fmt: skip
    assert found.worse
    assert "3 differences, 1 worse" in found.as_text()
    assert not of_files(write("a.json", baseline), write("b.json", baseline)).worse


def test_a_whole_kernel_that_is_gone_is_named(baseline, write):
    kernel = next(iter(baseline)).split("/")[0]
    after = {key: values for key, values in baseline.items() if key.split("/")[0] != kernel} or {
        key.replace(kernel, "other"): values for key, values in baseline.items()
    }
    found = of_files(write("a.json", baseline), write("b.json", after))
    assert any(change.text == "gone" and change.key.startswith(f"{kernel}/") for change in found.changes)


def test_a_file_of_a_commit(again, write, tmp_path, monkeypatch):
    def git(*arguments):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@example.org", *arguments], cwd=tmp_path,
                       check=True, capture_output=True)  # fmt: skip

    git("init")
    write("r.json", again(seed=1))
    git("add", "r.json")
    git("commit", "-m", "first")
    write("r.json", again({ITEM: 1.05}, seed=2))
    monkeypatch.chdir(tmp_path)
    assert row(of_files("HEAD:r.json", "r.json")).verdict == "slower"
    with pytest.raises(ValueError, match=r"HEAD:gone\.json is neither a file nor a file of a commit: .*gone\.json"):
        of_files("HEAD:gone.json", "r.json")
    with pytest.raises(ValueError, match=r"nothing:r\.json is neither"):
        of_files("nothing:r.json", "r.json")


def test_kinds_do_not_mix(sample, baseline, write):
    with pytest.raises(ValueError, match=r"of one kind: .*a\.json is of results, .*b\.json of baselines"):
        of_files(write("a.json", sample), write("b.json", baseline))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is no JSON"),
        ("{}", "neither a result file nor a baseline"),
        ("[1]", "neither a result file nor a baseline"),
        ('{"a/b/c": {}}', "neither a result file nor a baseline"),
        ('{"a/b/c/d": {"registers": 3}}', "neither a result file nor a baseline"),
        ('{"schema": 1}', "has schema 1; this version reads 2"),
    ],
)
def test_what_is_neither(sample, write, content, said):
    with pytest.raises(ValueError, match=r"b\.json") as error:
        of_files(write("a.json", sample), write("b.json", content))
    assert said in str(error.value)


def test_a_result_without_the_form(sample, write):
    broken = copy.deepcopy(sample)
    del broken["parts"]["timings"]["items"][ITEM]["samples_us"]
    with pytest.raises(ValueError, match=r"b\.json: at parts/timings/items/router/decode-B1: 'samples_us'"):
        of_files(write("a.json", sample), write("b.json", broken))


def test_a_file_that_is_not_there(write, sample):
    with pytest.raises(FileNotFoundError, match=r"gone\.json"):
        of_files(write("a.json", sample), "gone.json")


@pytest.mark.parametrize("threshold", [-0.1, 1, float("nan")])
def test_a_threshold_is_a_fraction(write, sample, threshold):
    path = write("a.json", sample)
    with pytest.raises(ValueError, match="threshold must be a fraction from 0 to below 1, got"):
        of_files(path, path, threshold=threshold)


def test_an_empty_comparison_is_not_worse():
    assert not Comparison("results", "a", "b", 0.02).worse
