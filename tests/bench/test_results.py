"""Result files: the form that all have, and the errors of those that have it not."""

import json
from pathlib import Path

import pytest

from zonos2_triton.bench.specs.roofline import Roofline
from zonos2_triton.bench.suite import results
from zonos2_triton.bench.suite.recorder import Recorder

SAMPLE = Path(__file__).parent / "results" / "sample.json"
STEP = "cuda_graph", "decode step"
NAME = "moe_router/decode-B1"


@pytest.fixture
def sample():
    return results.load(SAMPLE)


@pytest.fixture
def folder(tmp_path, sample):
    """Writes results of these environments as files; their folder."""

    def written(*environments):
        for index, environment in enumerate(environments):
            content = sample | {"environment": sample["environment"] | environment}
            (tmp_path / f"{index}.json").write_text(json.dumps(content), encoding="utf-8")
        return tmp_path

    return written


@pytest.mark.parametrize("path", [SAMPLE, *sorted(results.RESULTS.glob("*.json"))], ids=lambda path: path.name)
def test_every_file_here_has_the_form_that_is_written(path):
    found = results.load(path)
    results.check(found, path.name)
    assert found["schema"] == results.SCHEMA == Recorder.SCHEMA
    assert (found["environment"]["gpu"] == "Example GPU") == (path == SAMPLE)


def item(sample, stage, name):
    return sample["stages"][stage]["items"][name]


def timing(sample):
    return item(sample, "timings", NAME)


def put(sample, stage, name, **content):
    sample["stages"][stage]["items"][name] = content or {"status": "withheld", "reason": "x"}


# By what is wrong: how the sample is broken, and the place that the error names.
BROKEN = {
    "no seed": (lambda s: s["environment"].pop("seed"), "environment: 'seed' is a required property"),
    "a date in words": (lambda s: s["environment"].update(date="today"), "environment/date"),
    "a word about the GPU": (lambda s: s["environment"].update(colour="red"), "'colour' was unexpected"),
    "an unknown stage": (lambda s: s["stages"].update(timing={"items": {}, "not_run": {}}), "'timing' was unexpected"),
    "a stage without reasons": (lambda s: s["stages"]["cuda_graph"].pop("not_run"), "stages/cuda_graph: 'not_run'"),
    "empty samples": (lambda s: timing(s).update(samples_us=[]), f"{NAME}/samples_us"),
    "a time in words": (lambda s: timing(s).update(median_us="3"), f"{NAME}/median_us: '3' is not of type"),
    "a time below zero": (lambda s: timing(s).update(p20_us=-1), f"{NAME}/p20_us: -1 is less"),
    "another launch": (lambda s: timing(s).update(launch="warp"), f"{NAME}/launch: 'warp'"),
    "an unknown field": (lambda s: timing(s).update(megahertz=1), "'megahertz' was unexpected"),
    "no reason to skip": (lambda s: s["stages"]["baselines"]["not_run"].update(liger=""), "baselines/not_run/liger"),
    "a failure with a time": (lambda s: timing(s).update(status="failed", error="off"), "properties are not allowed"),
    "an unknown status": (lambda s: put(s, *STEP, status="fine"), "cuda_graph/items/decode step/status"),
    "a failure without its text": (lambda s: put(s, *STEP, status="failed"), "'error' is a required"),
    "no reason to withhold": (lambda s: put(s, *STEP, status="withheld"), "'reason' is a"),
    "a check without dtype": (lambda s: put(s, "accuracy", "moe_router/tiny"), "'moe_router/tiny' does not match"),
    "frames by another name": (lambda s: put(s, "frames", "one"), "'one' does not"),
    "an unknown sanitizer": (lambda s: put(s, "sanitizer", "synccheck"), "'synccheck' is not one of"),
    "an unknown implementation": (lambda s: put(s, "baselines", f"{NAME}/cublas"), f"'{NAME}/cublas'"),
    "an unknown end-to-end item": (lambda s: put(s, "end_to_end", "latency"), "'latency'"),
    "no factor": (lambda s: item(s, "baselines", f"{NAME}/reference").pop("speed_up"), "'speed_up' is a required"),
    "a check that measures": (lambda s: item(s, "cuda_graph", "decode step").update(ratio=1), "'ratio' was unexpected"),
    "no floor of a frame": (lambda s: item(s, "frames", "B1").pop("floor_us"), "'floor_us' is a"),
    "half a test": (lambda s: item(s, "tests", "pytest -m gpu").update(tests=1.5), "pytest -m gpu/tests"),
    "no rate of a copy": (lambda s: item(s, "calibration", "copy").pop("gb_per_s"), "copy: 'gb_per_s' is a required"),
    "agreement in words": (lambda s: item(s, "vocoder", "clips-1/bfloat16").update(agreement_db=""), "agreement_db"),
}


@pytest.mark.parametrize(("break_it", "place"), BROKEN.values(), ids=BROKEN)
def test_what_has_not_the_form_is_refused_with_its_place(sample, break_it, place):
    break_it(sample)
    with pytest.raises(ValueError, match=r"^mine\.json: at ") as error:
        results.check(sample, "mine.json")
    assert place in str(error.value)


def test_what_a_run_may_leave_out_is_accepted(sample):
    sample["environment"].update(driver=None, clock_mhz=None, cuda=None, l2_bytes=None)
    results.check(sample)
    del sample["environment"]["driver"]
    item(sample, "end_to_end", "prefill-128").update(graph_us=None)
    timing(sample).update(not_captured="capture is off", pct_measured_bandwidth=None, pct_floor=None)
    put(sample, "cuda_graph", "decode step", status="failed", error="the device failed after it")
    results.check(sample)
    sample["stages"].clear()
    results.check(sample)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is no JSON: Expecting property name"),
        ("[]", "is no result file: it has no key 'schema'"),
        ('{"moe_router/f/c/sm_90": {"registers": 1}}', "no key 'schema'"),
        ('{"schema": "2"}', "has schema '2'; this version reads 4"),
        ('{"schema": 4, "stages": []}', "lacks environment, stages"),
        ('{"schema": 4, "environment": {"gpu": "A"}, "stages": {}}', "lacks environment/commit, environment/date"),
        (b"\xff\xfe", "is no JSON"),
        ("[" * 10**5, "is no JSON"),
    ],
)
def test_a_file_that_is_none_says_what_it_is_instead(tmp_path, text, said):
    (tmp_path / "x.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=r"x\.json") as error:
        results.load(tmp_path / "x.json")
    assert said in str(error.value)


def test_a_part_that_is_no_part(sample):
    del sample["stages"]["cuda_graph"]["items"]
    with pytest.raises(ValueError, match="x lacks stages/cuda_graph/items"):
        results.parse(json.dumps(sample), "x")


def test_committed_results_come_newest_first_without_rehearsals(folder):
    path = folder(
        {"commit": "one", "date": "2026-01-02T00:00:00+00:00"},
        {"commit": "two", "date": "2026-03-02T00:00:00+00:00", "gpu": "Another"},
        {"commit": "three", "date": "2026-03-01T23:30:00-02:00"},  # later than the second
        {"commit": "four", "date": "2026-09-09T00:00:00+00:00", "smoke": True},
    )
    (path / "._three.json").write_bytes(b"\xff")  # of another program
    assert [each["environment"]["commit"] for each in results.committed(path)] == ["three", "two", "one"]
    assert results.newest(folder=path)["environment"]["commit"] == "three"
    assert results.newest("Another", path)["environment"]["commit"] == "two"
    assert results.newest("A third", path) is None
    (path / "b.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"b\.json is no JSON"):
        results.committed(path)


def test_only_what_passed_is_a_measurement(sample):
    assert results.passed(sample, "timings", NAME)["median_us"] > 0
    timing(sample).update(status="withheld")
    assert results.passed(sample, "timings", NAME) is None
    assert results.passed(sample, "timings", "nothing") is None
    assert results.passed(sample, "nothing", "nothing") is None


def test_the_roof_is_the_calibration(sample):
    copy_, product = (sample["stages"]["calibration"]["items"][name] for name in ("copy", "matmul"))
    assert results.roofline(sample) == Roofline(copy_["gb_per_s"], product["tflop_per_s"])
    del sample["stages"]["calibration"]
    assert results.roofline(sample) == Roofline(None, None)
