"""What a result says of the machine, and the tests that run in a process of their own."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from zonos2_triton.bench.suite import environment
from zonos2_triton.bench.suite.recorder import NotRun


def test_the_environment_of_a_card(monkeypatch, tmp_path):
    card = SimpleNamespace(name="Card", major=9, minor=0, total_memory=80 << 30, multi_processor_count=132, uuid="u-1")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)
    script = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    script.write_text('#!/bin/sh\n[ "$4" = GPU-u-1 ] && echo 580.1.2, 1980, 2619, 1980, 2619, 700.00, 71.5, [N/A]\n')
    script.chmod(0o755)
    found = environment.environment(3)
    assert found | {"driver": "580.1.2", "clock_mhz": 1980, "power_limit_w": 700, "temperature_c": None} == found
    assert found | {"card": "Card", "arch": "sm_90", "seed": 3, "memory_gib": 80.0, "l2_bytes": None} == found
    assert len(found["sources"]) == 12
    assert not found["rehearsal"]
    script.write_text("#!/bin/sh\nexit 9\n")
    assert environment.environment(3)["driver"] is None
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert environment.commit() == "unknown"
    assert environment.smi("u-1") == {}


def test_through_links_the_tests_are_found(tmp_path):
    """As `make gpu` runs it."""
    (tmp_path / "zonos2_triton").mkdir()
    for room in ("kernels", "model", "reference", "bench"):
        (tmp_path / "zonos2_triton" / room).symlink_to(environment.ROOT / room)
    said = subprocess.run(
        [sys.executable, "-c", "from zonos2_triton.bench.suite.environment import ROOT; print(ROOT)"],
        env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True,
    )  # fmt: skip
    assert said.stdout.strip() == str(environment.ROOT), said.stderr
    assert (environment.ROOT / "tests" / "bench" / "test_environment.py").samefile(__file__)


def test_the_tests_of_a_device_run_in_a_process_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    (tmp_path / "test_other.py").write_text("import what_this_machine_lacks\n", encoding="utf-8")
    with pytest.raises(NotRun, match="no tests marked gpu"):
        environment.run_tests(60, tmp_path)
    body = """
import os, time, pytest
pytestmark = pytest.mark.gpu
def test_compiled():
    assert "TRITON_INTERPRET" not in os.environ
"""
    (tmp_path / "test_one.py").write_text(body, encoding="utf-8")
    assert environment.run_tests(60, tmp_path) == {"tests": 1, "failures": 0, "errors": 0, "skipped": 0}
    (tmp_path / "test_two.py").write_text(body + "def test_wrong():\n    assert 1 == 2\n", encoding="utf-8")
    with pytest.raises(AssertionError, match=r"'tests': 3, 'failures': 1.*test_two::test_wrong: .*assert 1 == 2"):
        environment.run_tests(60, tmp_path)
    with pytest.raises(NotRun, match="not done after 0 s"):
        environment.run_tests(0.01, tmp_path)


def test_a_rehearsal_names_no_card():
    found = environment.environment(3, rehearsal=True)
    assert found | {"card": "CPU rehearsal", "rehearsal": True, "seed": 3, "torch": torch.__version__} == found
