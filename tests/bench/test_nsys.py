"""Nsight Systems by a stand-in: what it is asked for, and what is read out of what it prints."""

import json
import os
import re
import sys

import pytest

from zonos2_triton.bench.timing import nsys, profile
from zonos2_triton.model import cli

STAND_IN = """\
#!{python}
import json, os, pathlib, subprocess, sys
log = pathlib.Path({log!r})
with log.open("a") as file:
    print(json.dumps([sys.argv[1:], os.environ.get("ZONOS2_TRITON_NVTX")]), file=file)
if sys.argv[1] == "profile":
    out = next(a for a in sys.argv if a.startswith("--output=")).removeprefix("--output=")
    program = sys.argv[sys.argv.index(next(a for a in sys.argv if a.startswith("--output="))) + 1:]
    run = subprocess.run(program)
    if run.returncode == 0:
        pathlib.Path(out + ".nsys-rep").write_bytes(b"report")
    sys.exit(run.returncode)
print("sums of", sys.argv[3])
"""


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """A stand-in on the PATH; its calls, read when asked for."""
    log, tool = tmp_path / "calls.jsonl", tmp_path / "bin" / "nsys"
    tool.parent.mkdir()
    tool.write_text(STAND_IN.format(python=sys.executable, log=str(log)), encoding="utf-8")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}{os.pathsep}{os.environ['PATH']}")
    return lambda: [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("on_device", [True, False])
def test_it_is_asked_for_nodes_of_graphs_and_the_ranges_are_on(calls, tmp_path, on_device):
    nsys.record(nsys.executable(), [sys.executable, "-c", ""], tmp_path / "profile.nsys-rep", on_device)
    [(arguments, switch)] = calls()
    assert switch == "1"
    assert arguments[:3] == ["profile", "--trace=cuda,nvtx,osrt", "--cuda-graph-trace=node"]
    assert f"--output={tmp_path / 'profile'}" in arguments
    assert ("--capture-range=cudaProfilerApi" in arguments) == ("--capture-range-end=stop" in arguments) == on_device
    assert arguments[-3:] == [sys.executable, "-c", ""]


def test_a_program_that_fails_is_an_error_with_its_last_words(calls, tmp_path):
    program = [sys.executable, "-c", "import sys; sys.exit('model went away')"]
    with pytest.raises(OSError, match=r"nsys profile failed with status 1: model went away"):
        nsys.record(nsys.executable(), program, tmp_path / "profile.nsys-rep", False)


def test_the_command_runs_under_it_and_shows_what_it_found(calls, tmp_path, tiny_folder, capsys, monkeypatch):
    """The program itself is the real one, in this process."""

    def record(_, program, report, on_device):
        assert program[:3] == [sys.executable, "-m", "zonos2_triton.model.cli"]
        assert cli.main(program[3:]) == 0
        report.write_bytes(b"report")

    monkeypatch.setattr(nsys, "record", record)
    out = tmp_path / "deep.nsys-rep"
    argv = ["--tool", "nsys", "--model", str(tiny_folder), "--frames", "2", "--device", "cpu", "--out", str(out)]
    assert cli.main(["profile", *argv, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["sums"] == "sums of nvtx_sum,nvtx_gpu_proj_sum,cuda_gpu_kern_sum\n"
    assert (report["backend"], report["copy_gb_per_s"]) == ("reference", None)
    assert report["sums"] in profile.shown(report)
    assert out.read_bytes() == b"report"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bin", "calls.jsonl", "deep.nsys-rep"]


def test_the_command_says_what_is_missing(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cli.main(["profile", "--tool", "nsys", "--device", "cpu", "--out", str(tmp_path)]) == 2
    assert re.search(r"nsight-systems-cli.*--tool torch works without", capsys.readouterr().err)
    monkeypatch.setattr(profile, "find_spec", lambda _: None)
    assert cli.main(["profile", "--tool", "nsys", "--device", "cpu", "--out", str(tmp_path)]) == 2
    assert "pip install nvtx" in capsys.readouterr().err
