import json
from pathlib import Path

import pytest

from zonos2_triton.bench.proof.mutants import FAULTS
from zonos2_triton.bench.report.tables import README, goal_table, kernel_table, with_tables
from zonos2_triton.bench.specs.performance_targets import GOALS, UNMEASURED
from zonos2_triton.bench.suite.results import newest


@pytest.fixture
def sample():
    """A result as a run on a card would leave it; of no real one."""
    return json.loads((Path(__file__).parent / "results" / "sample.json").read_text(encoding="utf-8"))


def test_the_readme_holds_what_the_catalogue_the_gate_and_the_results_say():
    """Made by `python -m zonos2_triton.bench.report.tables`."""
    text = README.read_text(encoding="utf-8")
    assert with_tables(text, newest()) == text


def test_every_kernel_has_a_line_with_its_binary():
    lines = kernel_table(None).splitlines()[2:19]
    assert len(lines) == 17
    assert all("KiB" in line and line.endswith(f"{UNMEASURED} |") for line in lines)


def test_times_are_those_of_the_result(sample):
    timed = sample["parts"]["timings"]["items"]["sample/decode-B1"]

    def line():
        return next(line for line in kernel_table(sample).splitlines() if line.startswith("| `sample`"))

    assert line().endswith(f"| {timed['median_us']:.1f} us |")
    assert f"card {sample['environment']['card']}, " in kernel_table(sample).splitlines()[-1]
    timed["status"] = "withheld"
    assert line().endswith(f"{UNMEASURED} |")


def test_goals_are_met_by_measurement_only(sample):
    lines = goal_table(None).splitlines()[2 : 2 + len(GOALS)]
    assert all(line.endswith(f"| {UNMEASURED} |  |") for line in lines)
    one = goal_table(sample).splitlines()[2]
    assert f"{sample['parts']['frames']['items']['B1']['median_us'] / 1e3:.3g} ms" in one


def test_a_readme_without_the_marks_is_refused():
    with pytest.raises(ValueError, match="must hold"):
        with_tables("<!-- kernels: made by bench/report/tables.py -->\n<!-- end of kernels -->\n", None)


def test_the_readme_counts_the_faults():
    count = sum(len(faults) for faults in FAULTS.values())
    assert f"{count} realistic faults" in README.read_text(encoding="utf-8")
