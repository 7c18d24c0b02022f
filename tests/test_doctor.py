import json

import torch

from zonos2_triton.model import doctor
from zonos2_triton.model.cli import main


def test_says_what_will_run_where(capsys):
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["packages"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert report["devices"][0]["device"] == "cpu"
    assert report["devices"][0]["runs"] == "reference"
    assert report["backends"] == {
        "reference": "ready",
        "triton": "ready",
        "auto": "means reference",
    }
    assert report["missing"] == []
    main(["doctor"])
    text = capsys.readouterr().out
    for name, version in report["packages"].items():
        assert f"{name:18} {version}" in text


def test_a_missing_package_is_named_and_fails(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "REQUIRED", (*doctor.REQUIRED, "no-such-package"))
    assert main(["doctor"]) == 1
    assert "no-such-package    MISSING" in capsys.readouterr().out
