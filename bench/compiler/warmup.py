"""Every kernel compiled beforehand, on all cores: checks and timings then find what they launch in the cache.

The host code runs on tensors without storage, as in the compile gate, for the architecture of the GPU; what Triton
compiles then is what it would compile at the first launch.
"""

import os
import signal
from collections.abc import Collection, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any
from unittest.mock import patch

import torch

from zonos2_triton.bench.catalogue import KERNELS
from zonos2_triton.bench.compiler.cubin_stats import TARGETS
from zonos2_triton.bench.compiler.offline_compile import compile_only, dependent_launch, fake_tensors
from zonos2_triton.bench.suite.presets import DTYPES, FULL, TIMED
from zonos2_triton.bench.suite.recorder import Budget, NotRun
from zonos2_triton.reference.ops import VOCODER_OPERATORS


def warmup(
    arch: str, seconds: float, kernels: Collection[str] = KERNELS, jobs: int | None = None, first: bool = False
) -> dict[str, Any]:
    """How many binaries there are, and which workloads have none; first: of frames and of the vocoder alone.

    NotRun: an unknown architecture, or no time.
    """
    if arch not in TARGETS:
        raise NotRun(f"the compile gate does not know {arch}; kernels are compiled when they are first launched")
    tasks = tasks_of(arch, kernels, first)
    with without_gpu(), ProcessPoolExecutor(jobs or os.cpu_count() or 1, get_context("spawn"), _obedient) as pool:
        futures = [pool.submit(compile_one, *task) for task in tasks]
        budget = Budget(seconds)
        try:
            found = [future.result(timeout=max(budget.left(), 0)) for future in futures]
        except TimeoutError as error:
            pool.shutdown(wait=False, cancel_futures=True)
            raise NotRun(f"not done after {seconds:.0f} s; what was compiled is kept") from error
    failed = [f"{'/'.join(task[:3])}: {why}" for task, (_, why) in zip(tasks, found, strict=True) if why]
    return {"binaries": sum(count for count, _ in found), "workloads": len(tasks), "not_precompiled": failed}


Task = tuple[str, str, str, str, bool | None]  # of `compile_one`


def tasks_of(arch: str, kernels: Collection[str], first: bool = False) -> list[Task]:
    """Every workload; those of frames that are timed both ways once more, without dependent launch."""
    pairs = [(name, workload) for name in kernels for workload in KERNELS[name].workloads]
    without: list[Task] = [
        (name, workload.name, TIMED, arch, False)
        for name, workload in pairs
        if f"{name}/{workload.name}" in FULL.launches
    ]
    if first:
        vocoder = [(name, w.name, TIMED, arch, None) for name, w in pairs if name in VOCODER_OPERATORS and w.real]
        return [*((*task[:4], None) for task in without), *without, *vocoder]
    tasks: list[Task] = [
        (name, workload.name, dtype, arch, None)
        for dtype in DTYPES
        for name, workload in pairs
        if not (workload.real and dtype == "float32")
    ]
    return tasks + without


def compile_one(kernel: str, workload: str, dtype: str, arch: str, pdl: bool | None = None) -> tuple[int, str]:
    """How many binaries a workload needs, and what hindered one. pdl: whether launches are dependent ones."""
    spec = KERNELS[kernel]
    sizes = next(w.sizes for w in spec.workloads if w.name == workload)
    with compile_only(arch) as launches, fake_tensors(), dependent_launch(pdl):
        try:
            spec.op._init_fn(**spec.make_inputs("cuda", DTYPES[dtype], **sizes))
        except Exception as error:
            return 0, f"{type(error).__name__}: {error}".splitlines()[0]
    return len(launches), next((launch.error for launch in launches if launch.error), "")


@contextmanager
def without_gpu() -> Iterator[None]:
    """Processes that start inside find no GPU, so that their tensors have no storage, and compile kernels."""
    with patch.dict(os.environ, CUDA_VISIBLE_DEVICES=""):
        os.environ.pop("TRITON_INTERPRET", None)
        yield


def _obedient() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent alone is interrupted
    torch.set_num_threads(1)
