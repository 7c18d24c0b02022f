"""The machine of a result, and the tests that need a device, in a process of their own."""

import hashlib
import importlib.util
import os
import platform
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import triton

from zonos2_triton.bench.suite.recorder import NotRun

ROOT = Path(__file__).resolve().parents[2]  # rooms are imported through links
NO_TESTS = 5  # pytest's exit status
SMI = {
    "driver": "driver_version", "clock_mhz": "clocks.sm", "memory_clock_mhz": "clocks.mem",
    "max_clock_mhz": "clocks.max.sm", "max_memory_clock_mhz": "clocks.max.mem", "power_limit_w": "power.limit",
    "power_w": "power.draw", "temperature_c": "temperature.gpu",
}  # fmt: skip
# In place of a GPU: every step, at small sizes, on a CPU in Triton's interpreter.
SMOKE = {"gpu": "CPU smoke run", "arch": "interpreter", "memory_gib": 0.0, "multiprocessors": 0, "l2_bytes": None}


def environment(seed: int, smoke: bool = False) -> dict[str, Any]:
    """The current GPU and versions, or those of a smoke run on a CPU. Unknown values are None or left out."""
    return {
        **(SMOKE if smoke else _gpu()),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": triton.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "commit": commit(),
        "sources": sources(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": seed,
        "smoke": smoke,
    }


def _gpu() -> dict[str, Any]:
    gpu: Any = torch.cuda.get_device_properties(torch.cuda.current_device())
    hip = torch.version.hip
    return {
        "gpu": gpu.name,
        "arch": gpu.gcnArchName.split(":")[0] if hip else f"sm_{gpu.major}{gpu.minor}",
        "memory_gib": round(gpu.total_memory / 2**30, 1),
        "multiprocessors": gpu.multi_processor_count,
        "l2_bytes": getattr(gpu, "L2_cache_size", None),
        **(smi(str(getattr(gpu, "uuid", ""))) or {"driver": f"HIP {hip}" if hip else None}),
    }


def smi(uuid: str) -> dict[str, Any]:
    """The figures of nvidia-smi; empty if there is none."""
    which = ["-i", f"GPU-{uuid}"] if uuid else []
    said = _said("nvidia-smi", f"--query-gpu={','.join(SMI.values())}", "--format=csv,noheader,nounits", *which)
    values = [value.strip() for value in said.partition("\n")[0].split(",")] if said else []
    return {name: _number(value) for name, value in zip(SMI, values, strict=True)} if len(values) == len(SMI) else {}


def _said(*command: str) -> str | None:
    """The output of a program; None: it is missing, fails or takes too long."""
    try:
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if run.returncode else run.stdout.strip()


def _number(text: str) -> float | str | None:
    """None of [N/A] and [Not Supported]."""
    return None if text.startswith("[") else float(text) if re.fullmatch(r"\d+(\.\d+)?", text) else text


def commit() -> str:
    """Twelve digits, with -dirty where tracked files have changed; "unknown" outside of a checkout."""
    head = _said("git", "rev-parse", "--short=12", "HEAD")
    changed = _said("git", "status", "--porcelain", "--untracked-files=no")
    return "unknown" if head is None or changed is None else head + ("-dirty" if changed else "")


def _files(folder: Path, pattern: str) -> list[Path]:
    """In the folder and those in it; hidden ones are of other programs."""
    found = sorted(folder.rglob(pattern))
    return [path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts)]


def sources() -> str:
    """A hash of the code, for where no commit tells."""
    total = hashlib.sha256()
    for room in (".src", "bench", "kernels", "model", "reference"):  # the first holds what is above the others
        for path in _files(ROOT / room, "*.py"):
            total.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return total.hexdigest()[:12]


def run_tests(seconds: float, folder: Path = ROOT / "tests") -> dict[str, Any]:
    """The tests marked gpu. AssertionError: some failed. NotRun: there are none here, or they took too long."""
    # Only files that have such tests: the others may import what this machine lacks.
    files = [str(path) for path in _files(folder, "test_*.py") if "mark.gpu" in path.read_text(encoding="utf-8")]
    if not files:
        raise NotRun(f"no tests marked gpu in {folder}")
    if importlib.util.find_spec("pytest") is None:
        raise NotRun("pytest is not installed")
    compiled = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "junit.xml"
        command = [sys.executable, "-m", "pytest", f"--junitxml={report}"]
        options = ["-q", "--tb=line", "-m", "gpu", "-p", "no:cacheprovider"]
        try:
            run = subprocess.run(
                [*command, *options, *files], cwd=folder.parent, env=compiled, capture_output=True, text=True,
                timeout=seconds,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise NotRun(f"not done after {seconds:.0f} s; what was compiled is kept for the next run") from error
        if not report.exists():
            raise AssertionError(f"pytest ended with status {run.returncode}: {(run.stdout + run.stderr)[-2000:]}")
        if run.returncode == NO_TESTS:
            raise NotRun("none of the tests marked gpu runs on this machine")
        suite = next(ET.parse(report).iter("testsuite"))
    counts = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    if run.returncode:
        raise AssertionError(f"{counts}, status {run.returncode}: {run.stdout[-4000:]}")
    return counts
