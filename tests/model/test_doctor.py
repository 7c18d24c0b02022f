import json
import os
import subprocess
import sys
from importlib.metadata import version

import pytest
import torch

from zonos2_triton._settings import BACKEND, DISABLE, LAUNCH_CONFIG, LOG, NVTX, PREFIX, SGLANG
from zonos2_triton.model import doctor
from zonos2_triton.model.cli import main

pytestmark = pytest.mark.usefixtures("unset")


def test_says_what_will_run_where(capsys):
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["packages"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert report["devices"][0]["device"] == "cpu"
    assert report["devices"][0]["runs"] == "reference"
    assert report["backends"] == {"reference": "ready", "triton": "ready", "auto": "means reference"}
    assert (report["missing"], report["variables"]) == ([], {})
    assert report["op_schemas"].count(".") == 2
    transformers = report["drop_in"]["transformers"]
    assert transformers == {"version": version("transformers"), "from": "4.57", "below": "6"}
    assert report["drop_in"].keys() == {"transformers", "descript-audio-codec", "zonos2"}
    main(["doctor"])
    text = capsys.readouterr().out
    for name, found in report["packages"].items():
        assert f"{name:18} {found}" in text
    assert f"  transformers           {transformers['version']}; known: 4.57 to below 6" in text
    assert "variables: no ZONOS2_TRITON_* is set" in text
    assert f"schemas of torch.ops.zonos2_triton {report['op_schemas']}" in text


def test_says_which_variables_are_set_and_what_is_wrong_with_them(capsys, monkeypatch):
    monkeypatch.setenv(BACKEND, "cuda")
    monkeypatch.setenv(SGLANG, "all")
    monkeypatch.setenv(PREFIX + "BACKND", "1")
    wrong = f"{BACKEND} is 'cuda'; accepted: reference, triton, auto"
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["variables"][BACKEND] == {"value": "cuda", "fault": wrong}
    assert report["variables"][SGLANG] == {"value": "all", "fault": None}
    assert report["devices"][0]["runs"] == report["backends"]["auto"] == wrong
    assert report["backends"]["reference"] == "ready"
    main(["doctor"])
    lines = capsys.readouterr().out.splitlines()
    assert f"  {BACKEND:22} 'cuda': {wrong}" in lines
    assert f"  {SGLANG:22} 'all'" in lines
    assert any(line.startswith(f"  {PREFIX}BACKND   '1': no variable of this name; there are ") for line in lines)


def test_says_where_everything_runs_when_the_kernels_are_disabled(capsys, monkeypatch):
    monkeypatch.setenv(DISABLE, "1")
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert {device["runs"] for device in report["devices"]} == {"reference"}
    assert report["backends"] == {"reference": "ready", "triton": "means reference", "auto": "means reference"}


def run(*arguments, code="", **environment):
    """The command in a process of its own, after some code."""
    code += f"\nimport sys\nfrom zonos2_triton.model.cli import main\nsys.exit(main({arguments!r}))"
    command, environment = [sys.executable, "-c", code], {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.mark.parametrize("arguments", [["doctor"], ["--help"], ["doctor", "--json"]], ids=" ".join)
def test_a_wrong_variable_stops_no_command_that_explains_it(arguments):
    done = run(*arguments, **{LOG: "verbose", NVTX: "on", DISABLE: "maybe", BACKEND: "cuda"})
    assert done.returncode == 0, done.stderr
    assert [line.partition(";")[0] for line in done.stderr.splitlines()] == [f"{LOG} is 'verbose'", f"{NVTX} is 'on'"]
    if arguments != ["--help"]:
        assert all(f"{name} is " in done.stdout for name in (LOG, NVTX, DISABLE, BACKEND))


def test_a_file_of_launch_parameters_that_cannot_be_used(tmp_path):
    (tmp_path / "launch.json").write_text('{"op": "codebook_head"}')
    done = run("doctor", "--json", **{LAUNCH_CONFIG: str(tmp_path / "launch.json")})
    assert "must be a list of objects" in json.loads(done.stdout)["variables"][LAUNCH_CONFIG]["fault"]


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("torch", "OSError('libfoo.so: no such file')"),
        ("triton", "ImportError('no such file')"),
        ("triton", "RuntimeError('\\n\\nno such file\\n')"),
        ("einops", "ImportError('no such file')"),
        ("soundfile", "OSError('libfoo.so: no such file')"),
        *(pytest.param(name, "ImportError('no such file')", marks=pytest.mark.slow) for name in doctor.REQUIRED),
    ],
)
def test_a_broken_package_is_named_and_the_rest_is_told(tmp_path, name, error):
    """Each package, also those that doctor itself uses."""
    (tmp_path / f"{name}.py").write_text(f"raise {error}")
    done = run("doctor", "--json", PYTHONPATH=os.pathsep.join([str(tmp_path), *sys.path]))
    assert done.returncode == 1, done.stderr
    report = json.loads(done.stdout)
    assert name in report["missing"]  # and what imports it in turn
    assert "no such file" in report["faults"][name]
    assert set(report["backends"]) == {"reference", "triton", "auto"}
    state = report["backends"]["triton"]
    assert state == "ready" or name in state or ("torch" in report["missing"] and "torch" in state)


def test_a_variable_of_torch_that_keeps_it_from_loading_is_told():
    done = run("doctor", TORCH_LOGS="bad")
    assert done.returncode == 1
    assert "MISSING: Invalid log settings: bad" in " ".join(done.stdout.split())


def test_torch_missing_is_told_by_every_command():
    code = "import sys; sys.modules['torch'] = None"
    done = run("doctor", code=code)
    assert (done.returncode, done.stderr) == (1, "")
    lines = done.stdout.splitlines()
    assert any(line.startswith("  torch              MISSING: ") for line in lines)
    assert any(line.startswith("  cpu                runs: nothing, for torch cannot be imported") for line in lines)
    for command in (["bench", "--help"], ["tiny", "x"], ["say", "x", "--model", "m", "--out", "o.wav"]):
        done = run(*command, code=code)
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert line.startswith("zonos2-triton: error: ")
        assert "torch" in line


def test_what_is_advised_can_be_installed(capsys, monkeypatch):
    """By the names of packages: an extra can only be had where this one is published."""
    monkeypatch.setattr(doctor, "EXTRAS", ("no-such-extra",))
    main(["doctor"])
    assert "  no-such-extra      not installed: pip install no-such-extra\n" in capsys.readouterr().out
