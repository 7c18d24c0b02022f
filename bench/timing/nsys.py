"""Nsight Systems: a program under `nsys profile`, and what `nsys stats` says of it.

Option and report names are those of Nsight Systems 2024 and later (docs.nvidia.com/nsight-systems: UserGuide,
AnalysisGuide). Ranges come as sums by name: of the host's clock, and, where there is a GPU, of the span from the first
to the last kernel that was launched in each.
"""

import csv
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zonos2_triton.bench.timing.range_times import bare
from zonos2_triton.model.nvtx import DOMAIN, SWITCH

HOST, DEVICE, KERNELS = "nvtx_sum", "nvtx_gpu_proj_sum", "cuda_gpu_kern_sum"  # reports
# Of each report that is read: what is timed, how often, how long.
COLUMNS = {
    HOST: ("Range", "Instances", "Total Time (ns)"),
    DEVICE: ("Range", "Range Instances", "Total Proj Time (ns)"),
    KERNELS: ("Name", "Instances", "Total Time (ns)"),
}


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


def ranges(nsys: str, report: Path) -> list[dict[str, Any]]:
    """Sums of our ranges; of the device where it did anything in them."""
    found = []
    for text, sums in (_sums(nsys, report, DEVICE) or _sums(nsys, report, HOST)).items():
        domain, _, label = text.partition(":")
        if domain == DOMAIN and (name := bare(label)):
            found.append({"range": name, **sums})
    return found


def kernels(nsys: str, report: Path) -> list[dict[str, Any]]:
    """Sums of what ran on the device, the longest first."""
    found = [{"kernel": name, **sums} for name, sums in _sums(nsys, report, KERNELS).items()]
    return sorted(found, key=lambda row: -row["total_us"])


def _sums(nsys: str, report: Path, name: str) -> dict[str, dict[str, Any]]:
    """Of one of COLUMNS, by what is timed; empty where the report has nothing of the kind."""
    command = [nsys, "stats", "--report", name, "--format", "csv", "--output", "-", "--force-export=true", str(report)]
    what, count, total = COLUMNS[name]
    return {
        row[what]: {"count": int(row[count]), "total_us": float(row[total].replace(",", "")) / 1e3}
        for row in _parsed(_run(command), COLUMNS[name])
    }


def _parsed(text: str, columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows of the CSV in what `nsys stats` prints: it begins where a line has these columns."""
    lines = text.splitlines()
    for i, line in enumerate(lines):
        if {*columns} <= {*next(csv.reader([line]), [])}:
            end = next((j for j in range(i, len(lines)) if not lines[j].strip()), len(lines))
            return list(csv.DictReader(lines[i:end]))
    return []


def _run(command: Sequence[str], more: dict[str, str] | None = None) -> str:
    run = subprocess.run(command, capture_output=True, text=True, env=os.environ | (more or {}))
    if run.returncode:
        said = (run.stderr.strip() or run.stdout.strip()).splitlines()[-3:]
        raise OSError(f"{' '.join(command[:2])} failed with status {run.returncode}: {' / '.join(said)}")
    return run.stdout
