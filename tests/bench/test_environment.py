"""The machine in a result, and runs in processes of their own, as far as a CPU shows them."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from zonos2_triton.bench.suite import environment, stages
from zonos2_triton.bench.suite.presets import FULL
from zonos2_triton.bench.suite.recorder import NotRun

# What a GPU machine need not have.
LACKING = ("hypothesis", "jedi", "nvtx", "pytest_benchmark", "xdist")


@pytest.fixture
def bare(tmp_path, monkeypatch):
    """Processes import no package that is LACKING, and zonos2_triton through the links of the repository."""
    lines = [f"import sys; sys.modules.update(dict.fromkeys({LACKING}))"]
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{environment.ROOT / '.src'}")
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)

    def install(*more):
        (tmp_path / "sitecustomize.py").write_text("\n".join([*lines, *more]), encoding="utf-8")

    return install


def test_the_environment_of_a_card(monkeypatch, tmp_path):
    gpu = SimpleNamespace(name="GPU", major=9, minor=0, total_memory=80 << 30, multi_processor_count=132, uuid="u-1")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: gpu)
    script = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    script.write_text('#!/bin/sh\n[ "$4" = GPU-u-1 ] && echo 580.1.2, 1980, 2619, 1980, 2619, 700.00, 71.5, [N/A]\n')
    script.chmod(0o755)
    found = environment.environment(3)
    assert found | {"driver": "580.1.2", "clock_mhz": 1980, "power_limit_w": 700, "temperature_c": None} == found
    assert found | {"gpu": "GPU", "arch": "sm_90", "seed": 3, "memory_gib": 80.0, "l2_bytes": None} == found
    assert len(found["sources"]) == 12
    assert not found["smoke"]
    script.write_text("#!/bin/sh\nexit 9\n")
    assert environment.environment(3)["driver"] is None
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert environment.commit() == "unknown"
    assert environment.smi("u-1") == {}
    smoke = environment.environment(3, smoke=True)
    assert smoke | {"gpu": "CPU smoke run", "smoke": True, "torch": torch.__version__} == smoke


def test_the_sources_are_those_of_the_project(monkeypatch, tmp_path):
    (tmp_path / ".src").mkdir()
    (tmp_path / ".src" / "a.py").touch()
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    before = environment.sources()
    (tmp_path / ".src" / "._a.py").write_bytes(b"\xff")
    assert environment.sources() == before
    (tmp_path / ".src" / "b.py").touch()
    assert environment.sources() != before


def test_the_tests_of_a_device_run_in_a_process_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    (tmp_path / "test_other.py").write_text("import what_this_machine_lacks\n", encoding="utf-8")
    (tmp_path / ".ipynb_checkpoints").mkdir()  # no folder of ours
    (tmp_path / ".ipynb_checkpoints" / "test_copy.py").write_text("mark.gpu\n", encoding="utf-8")
    with pytest.raises(NotRun, match="no tests marked gpu"):
        environment.run_tests(60, tmp_path)
    (tmp_path / "room").mkdir()
    body = """
import os, pytest
@pytest.mark.gpu
def test_compiled():
    assert "TRITON_INTERPRET" not in os.environ
@pytest.mark.gpu
def test_wrong():
    assert 1 == 2
def test_elsewhere():
    assert False
"""
    (tmp_path / "room" / "test_one.py").write_text(body, encoding="utf-8")
    said = r"(?s)'tests': 2, 'failures': 1.*test_one.py:8: assert 1 == 2.*test_wrong"
    with pytest.raises(AssertionError, match=said):
        environment.run_tests(60, tmp_path)
    with pytest.raises(NotRun, match="not done after 0 s"):
        environment.run_tests(0.01, tmp_path)


def test_the_tests_of_a_device_import_what_a_gpu_machine_has(bare, monkeypatch):
    """They are all collected, as `make gpu` does it: an import that fails would be an error of it."""
    bare("import torch", "torch.cuda.is_available = lambda: True")
    monkeypatch.setenv("PYTEST_ADDOPTS", "--collect-only")
    assert environment.run_tests(300) == {"tests": 0, "failures": 0, "errors": 0, "skipped": 0}


@pytest.mark.slow
def test_without_a_gpu_it_says_what_would_run_and_fails(bare, monkeypatch, tmp_path):
    """Nor is the package installed there: it is found through links."""
    bare()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    command = [sys.executable, "-W", "error", "-m", "zonos2_triton.bench.suite.gpu", "--json"]
    run = subprocess.run([*command, "--stage", "accuracy"], capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 1, run.stderr
    report = json.loads(run.stdout)
    assert "no CUDA or ROCm device" in report["reason"]
    assert len(report["would_run"]["accuracy"]) == len(stages.plan(None, ["accuracy"], FULL))
