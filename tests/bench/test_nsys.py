"""Nsight Systems by a stand-in: what it is asked for, and what is read out of what it prints."""

import json
import os
import re
import stat
import sys

import pytest

from zonos2_triton.bench.timing import nsys, profile

HOST = """\
Time (%),Total Time (ns),Instances,Avg (ns),Med (ns),Min (ns),Max (ns),StdDev (ns),Style,Range
60.0,"9,000,000",3,3000000.0,3000000.0,2000000,4000000,1.0,PushPop,zonos2_triton:model/frame
30.0,4500000,18,250000.0,250000.0,200000,300000,1.0,PushPop,zonos2_triton:model/layer
10.0,"1,500,000",1,1500000.0,1500000.0,1500000,1500000,0.0,PushPop,:model/frame
"""
DEVICE = """\
Range,Style,Total Proj Time (ns),Total Range Time (ns),Range Instances,Proj Avg (ns),Proj Med (ns),Proj Min (ns),\
Proj Max (ns),Proj StdDev (ns),Total GPU Ops,Avg GPU Ops,Avg Range Lvl,Avg Num Child
zonos2_triton:model/frame,PushPop,1200000,9000000,3,400000.0,400000.0,390000,410000,1.0,540,180.0,1.0,6.0
"""
KERNELS = """\
Time (%),Total Time (ns),Instances,Avg (ns),Med (ns),Min (ns),Max (ns),StdDev (ns),Name
25.0,300000,84,3571.4,3500.0,3000,4000,1.0,_router_kernel
75.0,900000,84,10714.3,10700.0,10000,11000,1.0,"void experts<int, float>(float*)"
"""
STAND_IN = """\
#!{python}
import json, os, pathlib, subprocess, sys
log = pathlib.Path({log!r})
with log.open("a") as file:
    print(json.dumps([sys.argv[1:], os.environ.get("ZONOS2_TRITON_NVTX")]), file=file)
reports = json.loads({reports!r})
if sys.argv[1] == "profile":
    out = next(a for a in sys.argv if a.startswith("--output=")).removeprefix("--output=")
    program = sys.argv[sys.argv.index(next(a for a in sys.argv if a.startswith("--output="))) + 1:]
    run = subprocess.run(program)
    if run.returncode == 0:
        pathlib.Path(out + ".nsys-rep").write_bytes(b"report")
    sys.exit(run.returncode)
print("Generating SQLite file x.sqlite from x.nsys-rep")
print("Processing [x.sqlite] with [reports/x.py]... ")
print()
name = sys.argv[sys.argv.index("--report") + 1]
print(reports.get(name) or "SKIPPED: x.sqlite does not contain CUDA kernel data.")
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Puts a stand-in on the PATH that prints these reports; what comes back is its calls, read when asked for."""

    def installed(**reports):
        log, tool = tmp_path / "calls.jsonl", tmp_path / "bin" / "nsys"
        tool.parent.mkdir(exist_ok=True)
        text = STAND_IN.format(python=sys.executable, log=str(log), reports=json.dumps(reports))
        tool.write_text(text, encoding="utf-8")
        tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{tool.parent}{os.pathsep}{os.environ['PATH']}")
        return lambda: [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]

    return installed


@pytest.mark.parametrize("on_device", [True, False])
def test_it_is_asked_for_nodes_of_graphs_and_the_ranges_are_on(install, tmp_path, on_device):
    calls = install()
    nsys.record(nsys.executable(), [sys.executable, "-c", ""], tmp_path / "profile.nsys-rep", on_device)
    [(arguments, switch)] = calls()
    assert switch == "1"
    assert arguments[:3] == ["profile", "--trace=cuda,nvtx,osrt", "--cuda-graph-trace=node"]
    assert f"--output={tmp_path / 'profile'}" in arguments
    assert ("--capture-range=cudaProfilerApi" in arguments) == ("--capture-range-end=stop" in arguments) == on_device
    assert arguments[-3:] == [sys.executable, "-c", ""]


def test_a_program_that_fails_is_an_error_with_its_last_words(install, tmp_path):
    install()
    program = [sys.executable, "-c", "import sys; sys.exit('model went away')"]
    with pytest.raises(OSError, match=r"nsys profile failed with status 1: model went away"):
        nsys.record(nsys.executable(), program, tmp_path / "profile.nsys-rep", False)


def test_ranges_are_read_from_the_device_and_else_from_the_host(install, tmp_path):
    calls = install(nvtx_sum=HOST, nvtx_gpu_proj_sum=DEVICE, cuda_gpu_kern_sum=KERNELS)
    report = tmp_path / "x.nsys-rep"
    frame = {"range": "model/frame", "count": 3}
    assert nsys.ranges(nsys.executable(), report) == [{**frame, "total_us": 1200.0}]
    [stats, asked, name, *options] = calls()[0][0]
    assert (stats, asked, name) == ("stats", "--report", "nvtx_gpu_proj_sum")
    assert options == ["--format", "csv", "--output", "-", "--force-export=true", str(report)]
    install(nvtx_sum=HOST)
    layers = {"range": "model/layer", "count": 18, "total_us": 4500.0}
    assert nsys.ranges(nsys.executable(), report) == [{**frame, "total_us": 9000.0}, layers]


def test_kernels_come_longest_first_and_may_be_missing(install, tmp_path):
    install(cuda_gpu_kern_sum=KERNELS)
    assert nsys.kernels(nsys.executable(), tmp_path / "x.nsys-rep") == [
        {"kernel": "void experts<int, float>(float*)", "count": 84, "total_us": 900.0},
        {"kernel": "_router_kernel", "count": 84, "total_us": 300.0},
    ]
    install()
    assert nsys.kernels(nsys.executable(), tmp_path / "x.nsys-rep") == []


def test_the_command_runs_under_it_and_shows_what_it_found(install, tmp_path, tiny_folder, capsys, monkeypatch):
    """The program itself is the real one, in this process."""

    def record(_, program, report, on_device):
        assert program[:3] == [sys.executable, "-m", "zonos2_triton.bench.timing.profile"]
        assert profile.main(program[3:]) == 0
        report.write_bytes(b"report")

    install(nvtx_sum=HOST, cuda_gpu_kern_sum=KERNELS)
    monkeypatch.setattr(nsys, "record", record)
    out = tmp_path / "deep.nsys-rep"
    argv = ["--tool", "nsys", "--model", str(tiny_folder), "--frames", "2", "--device", "cpu", "--out", str(out)]
    assert profile.main([*argv, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ranges"][0] == {"range": "model/frame", "count": 3, "total_us": 9000.0}
    assert report["kernels"][0]["kernel"].startswith("void experts")
    assert (report["backend"], report["copy_gb_per_s"]) == ("reference", None)
    assert ["model/frame", "3", "9.000", "3000.0"] in [line.split() for line in profile.shown(report).splitlines()]
    assert out.read_bytes() == b"report"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bin", "calls.jsonl", "deep.nsys-rep"]


def test_the_command_says_what_is_missing(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert profile.main(["--tool", "nsys", "--device", "cpu", "--out", str(tmp_path)]) == 2
    assert re.search(r"nsight-systems-cli.*--tool torch works without", capsys.readouterr().err)
    monkeypatch.setattr(profile, "find_spec", lambda _: None)
    assert profile.main(["--tool", "nsys", "--device", "cpu", "--out", str(tmp_path)]) == 2
    assert "pip install nvtx" in capsys.readouterr().err
