"""Nsight Systems: a program under `nsys profile`, and what `nsys stats` says of it.

Option and report names are those of Nsight Systems 2024 and later (docs.nvidia.com/nsight-systems: UserGuide,
AnalysisGuide). Ranges come as sums by name: of the host's clock, and, where there is a GPU, of the span from the first
to the last kernel that was launched in each.
"""

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from zonos2_triton.model.nvtx import SWITCH

REPORTS = ("nvtx_sum", "nvtx_gpu_proj_sum", "cuda_gpu_kern_sum")


def executable() -> str:
    """ValueError: it is not installed."""
    found = shutil.which("nsys")
    if found is None:
        raise ValueError(
            "--tool nsys needs Nsight Systems: install NVIDIA's package nsight-systems-cli, and put nsys on the PATH; "
            "--tool torch works without"
        )
    return found


def record(nsys: str, program: Sequence[str], report: Path, on_device: bool) -> None:
    """Run `program` with its NVTX ranges on; report: a new .nsys-rep. On a GPU only what the program says to profile.

    OSError: either of them failed.
    """
    captured = ["--capture-range=cudaProfilerApi", "--capture-range-end=stop"] if on_device else []
    command = [nsys, "profile", "--trace=cuda,nvtx,osrt", "--cuda-graph-trace=node", "--sample=none"]
    command += ["--cpuctxsw=none", *captured, "--force-overwrite=true", f"--output={report.with_suffix('')}"]
    _run([*command, *program], {SWITCH: "1"})
    if not report.is_file():
        raise OSError(f"nsys profile wrote no {report.name}")


def sums(nsys: str, report: Path) -> str:
    """Time by range and by kernel, as nsys itself prints it."""
    return _run([nsys, "stats", "--report", ",".join(REPORTS), "--force-export=true", str(report)])


def _run(command: Sequence[str], more: dict[str, str] | None = None) -> str:
    run = subprocess.run(command, capture_output=True, text=True, env=os.environ | (more or {}))
    if run.returncode:
        said = (run.stderr.strip() or run.stdout.strip()).splitlines()[-3:]
        raise OSError(f"{' '.join(command[:2])} failed with status {run.returncode}: {' / '.join(said)}")
    return run.stdout
