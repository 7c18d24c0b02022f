"""Every kernel on its small workloads, once, under NVIDIA's compute-sanitizer: addresses, races, undefined reads.

    python -m zonos2_triton.bench.suite.sanitizer [KERNEL ...]    # what the sanitizer runs; by itself it checks nothing

memcheck    addresses out of bounds and misaligned ones
racecheck   hazards between threads of a block in shared memory
initcheck   reads of device memory that nothing has written
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import torch

from zonos2_triton.bench.catalogue import KERNELS
from zonos2_triton.bench.suite.recorder import NotRun

TOOLS = ("memcheck", "racecheck", "initcheck")
FOUND = 86  # the exit status by which the sanitizer says that it found something
SUMMARY = re.compile(r"(?:ERROR|RACECHECK) SUMMARY: (\d+) (?:errors?|hazards?)")


def run(tool: str, seconds: float) -> dict[str, Any]:
    """Runs one tool. AssertionError: errors, the first of them. NotRun: it is not installed, or took too long."""
    program = shutil.which("compute-sanitizer")
    if program is None:
        raise NotRun("compute-sanitizer is not installed; it comes with the CUDA toolkit")
    command = [program, "--tool", tool, "--error-exitcode", str(FOUND), "--print-limit", "10"]
    # Every tensor an allocation of its own: a neighbour's memory is out of bounds, and fresh memory is undefined.
    alone = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    alone.pop("TRITON_INTERPRET", None)
    try:
        found = subprocess.run(
            [*command, sys.executable, "-m", "zonos2_triton.bench.suite.sanitizer"],
            env=alone, capture_output=True, text=True, timeout=seconds,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise NotRun(f"not done after {seconds:.0f} s") from error
    said = found.stdout + found.stderr
    counts = [int(count) for count in SUMMARY.findall(said)]
    if not counts:
        raise NotRun(f"it ended with status {found.returncode} and no summary: {said.strip()[-300:]}")
    if sum(counts) or found.returncode:
        errors = [line for line in said.splitlines() if line.startswith("=========")]
        raise AssertionError(f"{sum(counts)} found, status {found.returncode}: " + "\n".join(errors[:20]))
    return {"errors": 0, "workloads": sum(len(small(name)) for name in KERNELS)}


def small(kernel: str) -> list[Any]:
    return [workload for workload in KERNELS[kernel].workloads if not workload.real]


def main(names: Sequence[str], device: str = "cuda") -> None:
    """Launch every kernel, or those of these names, on each of its small workloads."""
    for name in names or KERNELS:
        kernel = KERNELS[name]
        for workload in small(name):
            kernel.op(**kernel.make_inputs(device, torch.bfloat16, **workload.sizes))
    if device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main(sys.argv[1:])
