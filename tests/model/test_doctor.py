import json
import os
from importlib.metadata import version

import pytest
import torch

from zonos2_triton._settings import BACKEND, DISABLE, PREFIX, SGLANG
from zonos2_triton.model import doctor
from zonos2_triton.model.cli import main


@pytest.fixture(autouse=True)
def _unset(monkeypatch):
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        monkeypatch.delenv(name)


def test_says_what_will_run_where(capsys):
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["packages"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert report["devices"][0]["device"] == "cpu"
    assert report["devices"][0]["runs"] == "reference"
    assert report["backends"] == {"reference": "ready", "triton": "ready", "auto": "means reference"}
    assert report["missing"] == []
    assert report["variables"] == {}
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
    wrong = f"{BACKEND} is 'cuda'; accepted: auto, triton, reference"
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


def test_a_missing_package_is_named_and_fails(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "REQUIRED", (*doctor.REQUIRED, "no-such-package"))
    assert main(["doctor"]) == 1
    assert "no-such-package    MISSING" in capsys.readouterr().out
