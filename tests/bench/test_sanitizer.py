"""compute-sanitizer over the small workloads: a stand-in of the program, and what it would run."""

import sys

import pytest

from zonos2_triton.bench.catalogue import KERNELS
from zonos2_triton.bench.proof.interpreter import checked
from zonos2_triton.bench.suite import sanitizer
from zonos2_triton.bench.suite.recorder import NotRun


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Installs a compute-sanitizer that does as the script says."""

    def install(script):
        path = tmp_path / "compute-sanitizer"
        path.write_text("#!/bin/sh\n" + script, encoding="utf-8")
        path.chmod(0o755)

    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return install


def test_how_it_is_called(program, monkeypatch, tmp_path):
    with pytest.raises(NotRun, match="compute-sanitizer is not installed; it comes with the CUDA toolkit"):
        sanitizer.run("memcheck", 60)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    program(
        f'echo "$@" $PYTORCH_NO_CUDA_MEMORY_CACHING [$TRITON_INTERPRET] > {tmp_path}/said; echo ERROR SUMMARY: 0 errors'
    )
    found = sanitizer.run("initcheck", 60)
    assert found == {"errors": 0, "workloads": sum(not w.real for k in KERNELS.values() for w in k.workloads)}
    said = (tmp_path / "said").read_text(encoding="utf-8")
    options = "--tool initcheck --error-exitcode 86 --print-limit 10"
    assert said == f"{options} {sys.executable} -m zonos2_triton.bench.suite.sanitizer 1 []\n"


@pytest.mark.parametrize(
    ("script", "error", "said"),
    [
        ('echo "========= Invalid read"; echo "========= ERROR SUMMARY: 3 errors"; exit 86',
         AssertionError, r"3 found, status 86: ========= Invalid read"),
        ('echo "========= RACECHECK SUMMARY: 2 hazards displayed (2 errors, 0 warnings)"; exit 86',
         AssertionError, "2 found, status 86"),
        ('echo "========= ERROR SUMMARY: 0 errors"; exit 1', AssertionError, "0 found, status 1"),
        ('echo "no device"; exit 1', NotRun, "it ended with status 1 and no summary: no device"),
        ("exec sleep 9", NotRun, "not done after 0 s"),
    ],
    ids=["memcheck", "racecheck", "the program failed", "no summary", "too slow"],
)  # fmt: skip
def test_what_it_says(program, script, error, said):
    program(script)
    with pytest.raises(error, match=said):
        sanitizer.run("memcheck", 0.2 if "sleep" in script else 60)


def test_what_it_runs_launches_every_small_workload(monkeypatch):
    monkeypatch.setattr(sanitizer, "KERNELS", {name: KERNELS[name] for name in ("rotary", "frame_embedding")})
    with checked(bounds=False, undefined=False, races=False) as launches:
        sanitizer.main([], "cpu")
    assert launches.launches == len(sanitizer.small("rotary")) + len(sanitizer.small("frame_embedding"))
