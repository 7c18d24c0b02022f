"""`gpu --dry-run`: every step of a run on a device, at small sizes, in Triton's interpreter."""

import json

import pytest

from zonos2_triton.bench.suite import gpu
from zonos2_triton.bench.suite.presets import REHEARSAL
from zonos2_triton.bench.suite.results import check
from zonos2_triton.bench.suite.stages import PARTS, plan


def rehearse(folder, *only):
    """The record, and whether all passed."""
    arguments = ["--dry-run", "--out", str(folder), "--budget", "3000", *(["--only", ",".join(only)] if only else [])]
    status = gpu.main(arguments)
    return json.loads(next(folder.glob("*.json")).read_text(encoding="utf-8")), status


def complete(found, *names):
    """Each item of these parts has a result, which fits the schema and says that it is a rehearsal."""
    check(found)
    assert found["environment"]["rehearsal"]
    for part in names:
        listed = {item.name for item in plan(None, [part], REHEARSAL)}
        part = found["parts"][part]
        assert part["items"].keys() | part["not_run"].keys() == listed
        assert all(result["status"] == "passed" for result in part["items"].values())


QUICK = ("calibration", "vocoder", "whole")


def test_a_part_of_it(tmp_path, capsys):
    found, status = rehearse(tmp_path, *QUICK)
    assert status == 0
    assert "no figure is of speed" in capsys.readouterr().out
    complete(found, *QUICK)
    assert not any(found["parts"][part]["not_run"] for part in QUICK)


@pytest.mark.slow
def test_the_whole_of_it(tmp_path):
    found, status = rehearse(tmp_path)
    assert status == 0
    complete(found, *[part for part in PARTS if part != "environment"])
    left = {part: mine["not_run"] for part, mine in found["parts"].items() if mine["not_run"]}
    assert left.keys() <= {"sanitizer", "beside"}
    timed, others = (found["parts"][part]["items"] for part in ("timings", "beside"))
    assert {f"{name}/reference" for name in timed} <= others.keys()
