"""The offline compile gate: what every kernel of the catalogue becomes on every architecture, without a GPU.

The host code of each op runs unchanged on tensors without storage, at the shapes of the 8B model. Each launch compiles
for the target instead of running, with the argument specialisation that the real launch would have. What the compiler
made is then judged by what the catalogue expects, and compared with a snapshot per Triton version. In bf16 for sm_90
the PTX machine also counts what each launch executes: estimated times and bounds come from these counts.
"""

import argparse
import importlib
import json
import os
import signal
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, replace
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch

from zonos2_triton._settings import local_path
from zonos2_triton.bench.cli_choices import chosen
from zonos2_triton.bench.compiler import arrival, dependent_launch, offline_compile
from zonos2_triton.bench.compiler.cubin_stats import TARGETS, Stats, statistics
from zonos2_triton.bench.compiler.estimate import steps, summary
from zonos2_triton.bench.compiler.expected import (
    Expectations,
    Row,
    bounded,
    bounds_of,
    expected_of,
    has_bounds,
    is_of_a_frame,
    judge,
    tokens_of,
    variant_of,
    with_reason,
)
from zonos2_triton.bench.compiler.offline_compile import Launch, check_compiler, compile_only, fake_tensors, in_short
from zonos2_triton.bench.compiler.ptx.counts import Counts
from zonos2_triton.bench.compiler.ptx.launch import SAMPLE, count
from zonos2_triton.bench.compiler.snapshot import compare, read_snapshot, table, write_snapshot
from zonos2_triton.model.tables import fitted

CATALOGUE = "zonos2_triton.bench.catalogue"
DTYPES = "bfloat16", "float16"  # of weights that models come in; fp32 is for tests, and spills
SNAPSHOTS = Path(__file__).parent / "snapshots"
COUNTED_TARGET, COUNTED_DTYPE = "sm_90", "bfloat16"  # counts are of these launches
A_FEW = 1 << 10  # threads of a launch for other targets: conflicts and loads are those of the code


class Task(NamedTuple):
    """Work for one process: some workloads of one kernel for one target."""

    catalogue: str
    kernel: str
    target: str
    dtypes: tuple[str, ...]
    workloads: tuple[Any, ...]
    config: tuple[dict[str, Any], ...] | None = None  # entries of a launch configuration file


def run(
    targets: Collection[str] | None = None,
    kernels: Collection[str] | None = None,
    jobs: int | None = None,
    catalogue: str = CATALOGUE,
    dtypes: Collection[str] | None = None,
    settings: Sequence[str] = (),
) -> list[Row]:
    """Compile and judge; None means all. settings: NAME=VALUE texts that resize the first real workload of each kernel.

    ValueError: an unknown name, a bad value, jobs below 1, an interpreter process.
    """
    dtypes = chosen("dtype", dtypes, DTYPES)
    if jobs is not None and jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}")
    targets = chosen("target", targets, TARGETS)
    check_compiler()
    specs = importlib.import_module(catalogue).KERNELS
    tasks = []
    for name in chosen("kernel", kernels, specs):
        spec = specs[name]
        real = tuple(workload for workload in spec.workloads if workload.real)
        real = (spec.resized(real[0], settings),) if settings else real
        tasks += [Task(catalogue, name, each, tuple(dtypes), real) for each in targets if each in spec.targets]
    return [row for rows in compile_all(tasks, jobs) for row in rows]


def compile_all(tasks: Sequence[Task], jobs: int | None = None) -> list[list[Row]]:
    """The rows of each task, compiled in as many processes as there are cores."""
    found: list[list[Row]] = []
    with worker_pool(max(1, min(jobs or os.cpu_count() or 1, len(tasks)))) as pool:
        futures = [pool.submit(_compiled, task) for task in tasks]
        try:
            for task, future in zip(tasks, futures, strict=True):
                try:
                    found.append(future.result())
                except BrokenProcessPool:  # by this task or by one that ran beside it
                    found.append(_alone(task))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return found


def worker_pool(workers: int) -> ProcessPoolExecutor:
    """Processes that compile. Interrupts go to this process alone. They are spawned, as torch has threads."""
    return ProcessPoolExecutor(workers, get_context("spawn"), signal.signal, (signal.SIGINT, signal.SIG_IGN))


def _alone(task: Task) -> list[Row]:
    with worker_pool(1) as pool:
        try:
            return pool.submit(_compiled, task).result()
        except BrokenProcessPool:  # LLVM ends its process on what it cannot select
            return [Row(task.kernel, "", "all workloads", task.target, ("the compiler ended its process",))]


def _compiled(task: Task) -> list[Row]:
    spec = importlib.import_module(task.catalogue).KERNELS[task.kernel]
    pairs = product(task.workloads, task.dtypes)
    with offline_compile.launch_configs(task.config):
        rows = [row for pair in pairs for row in _rows(task.kernel, spec, *pair, task.target)]
    return _same_sums(rows, spec.expects)


def _same_sums(rows: list[Row], expects: Expectations) -> list[Row]:
    """The rows; those of an invariant function that adds in another order than its variant's first have failed."""
    first: dict[tuple[str, str], Row] = {}
    for i, row in enumerate(rows):
        expected = expected_of(row.function, expects)
        if expected and expected.invariant and row.stats:
            like = first.setdefault((row.function, variant_of(row.config)), row)
            if like.stats and like.stats.sums != row.stats.sums:
                here = ", ".join(sorted(set(row.stats.sums) ^ set(like.stats.sums)))
                failure = f"adds in another order than {like.config} ({here})"
                rows[i] = replace(row, failures=(*row.failures, failure))
    return rows


def _rows(name: str, spec: Any, workload: Any, dtype: str, target: str) -> Iterator[Row]:
    config = f"{workload.name}-{dtype}"
    failure = ""
    with compile_only(target) as launches, fake_tensors():
        try:
            spec.op._init_fn(**spec.make_inputs(torch.device("cuda"), getattr(torch, dtype), **workload.sizes))
        except Exception as problem:
            failure = f"the host code failed: {in_short(problem)}"
    if not launches and not failure:
        failure = "the op launches no kernel"
    seen = Counter[str]()
    rows = []
    for launch in launches:
        seen[launch.function] += 1
        number = f"#{seen[launch.function]}" if seen[launch.function] > 1 else ""
        stats, failures = _judged(launch, target, spec.expects)
        row = Row(name, launch.function, config + number, target, tuple(failures), stats, launch.grid, launch.count)
        rows.append(row)
    is_counted = dtype == COUNTED_DTYPE and TARGETS[target].backend == "cuda" and hasattr(spec, "cost_of")
    if is_counted and not failure and all(row.stats for row in rows):
        if target == COUNTED_TARGET:
            rows = _with_counts(rows, launches, spec, workload)
        elif has_bounds(f"{workload.name}-{dtype}", workload):
            rows = _with_conflicts(rows, launches, spec, workload)
    yield from rows
    if failure:
        yield Row(name, "", config, target, (failure,))


def _with_counts(rows: Sequence[Row], launches: Sequence[Launch], spec: Any, workload: Any) -> list[Row]:
    """The rows of a workload with counts, estimates, and the bounds that they do not keep."""
    found = _counts(launches, spec, workload, COUNTED_TARGET, SAMPLE)
    if isinstance(found, str):
        return [replace(row, failures=(*row.failures, found)) for row in rows]
    kept = [
        (row.function, summary(counts, i, row.stats))
        for i, (row, counts) in enumerate(zip(rows, found, strict=True))
        if row.stats
    ]
    estimated, made = steps(spec.cost_of(workload, itemsize=2), kept, certain=True), []
    for row, counts, (_, counted), step in zip(rows, found, kept, estimated, strict=True):
        row = replace(row, counted=counted, step=step, counts=as_json(counts))
        bounds = bounds_of(row.function, spec.expects) if has_bounds(row.config, workload) else None
        sizes = tokens_of(workload), variant_of(row.config) == "dense"
        row = bounded(row, bounds, bounds.over(counted, step.estimate, *sizes) if bounds else {}, sizes[0])
        made.append(row if is_of_a_frame(workload.name) else with_reason(row, workload.name, spec.expects))
    return made


def _with_conflicts(rows: Sequence[Row], launches: Sequence[Launch], spec: Any, workload: Any) -> list[Row]:
    """The rows of a workload with the conflicts and exposed loads that their bounds do not allow: on any target."""
    found = _counts(launches, spec, workload, rows[0].target, A_FEW)
    if isinstance(found, str):
        return [replace(row, failures=(*row.failures, found)) for row in rows]
    made = []
    for row, counts in zip(rows, found, strict=True):
        bounds = bounds_of(row.function, spec.expects)
        over = bounds.over_on_any_target(counts.ways, len(counts.exposed_loads)) if bounds else {}
        made.append(bounded(row, bounds, over, tokens_of(workload)))
    return made


def _counts(launches: Sequence[Launch], spec: Any, workload: Any, target: str, threads: int) -> list[Counts] | str:
    """The counts of each launch, or why there are none."""
    try:
        made = count(spec, workload, getattr(torch, COUNTED_DTYPE), target, threads)
        by_binary = {launch.kernel.hash: counts for launch, counts in reversed(made)}
        return [by_binary[launch.kernel.hash] for launch in launches]
    except Exception as problem:
        return f"cannot be counted: {in_short(problem)}"


def as_json(counts: Counts) -> dict[str, Any]:
    """The counts of a launch: totals of its programs, and the accesses that cost most, with their lines."""
    return {
        "programs": counts.programs,
        "live": counts.live_programs,
        "ran": len(counts.ran),
        "instructions": {name: round(counts.total(name)) for name in counts.instructions},
        "traffic": {name: round(counts.total(name)) for name in counts.traffic},
        "round_trips": max(counts.round_trips),
        "cycles": max(counts.cycles),
        "bytes_under_way": counts.bytes_under_way,
        "conflicts": [asdict(access) | {"ways": access.ways} for access in counts.conflicts],
        "exposed_loads": [asdict(access) for access in counts.exposed_loads],
    }


def _judged(launch: Launch, target: str, expects: Expectations) -> tuple[Stats | None, list[str]]:
    if launch.error:
        return None, [f"does not compile: {launch.error}"]
    try:
        stats = statistics(launch.kernel, TARGETS[target])
    except Exception as problem:
        return None, [f"its binary cannot be read: {in_short(problem)}"]
    expected = expected_of(launch.function, expects)
    if expected is None:
        return stats, [f"the catalogue states no expectation for {launch.function}"]
    return stats, [
        *judge(stats, target, expected),
        *dependent_launch.violations(launch.kernel, stats),
        *arrival.violations(launch.kernel),
    ]


def command(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    """Add the options of the command to `parser`; what comes back runs it and returns its exit status."""
    parser.description = "Compile every kernel for GPUs that are not installed, and check the binaries."
    parser.add_argument(
        "--target", nargs="+", action="extend", metavar="ARCH", help=f"of {', '.join(TARGETS)}; default: all"
    )
    parser.add_argument("--kernel", nargs="+", action="extend", metavar="NAME", help="default: all of the catalogue")
    parser.add_argument(
        "--dtype", nargs="+", action="extend", metavar="NAME", help=f"of {', '.join(DTYPES)}; default: all"
    )
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="NAME=VALUE", help="other sizes, M=7; no comparison"
    )
    parser.add_argument("--jobs", type=int, metavar="N", help="processes; default: one per core")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    others = "a folder of checkouts: count other people's kernels beside ours, and nothing else"
    parser.add_argument("--compare", type=local_path, metavar="FOLDER", help=others)
    parser.add_argument(
        "--update-snapshot", action="store_true", help="write the compiled statistics as the new snapshot"
    )
    return _command


def _command(options: argparse.Namespace) -> int:
    """Exit status: 0 all as meant, 1 failures, changes for the worse, or no snapshot of this version of Triton."""
    if options.compare:
        check_compiler()
        others = importlib.import_module("zonos2_triton.bench.compiler.others")  # it knows the catalogue's sizes
        print(others.compare(options.compare, importlib.import_module(CATALOGUE).KERNELS))
        return 0
    if options.set and options.update_snapshot:
        raise ValueError("--update-snapshot takes the named workloads, not --set")
    rows = run(options.target, options.kernel, options.jobs, dtypes=options.dtype, settings=options.set)
    if not rows:
        raise ValueError("nothing was compiled: these kernels are meant for none of these targets")
    import triton

    path = SNAPSHOTS / f"triton-{'.'.join(triton.__version__.split('.')[:2])}.json"
    snapshot = None if options.set else read_snapshot(path)
    changes = [] if snapshot is None else compare(rows, snapshot)
    failed, worse = sum(bool(row.failures) for row in rows), sum(change.worse for change in changes)
    against = f"{worse} worse than {path.name}"
    if options.set:
        against = "compared with no snapshot"
    elif snapshot is None:
        against = f"there is no {path.name} to compare with; --update-snapshot makes it"
    if options.update_snapshot:
        write_snapshot(path, rows, importlib.import_module(CATALOGUE).KERNELS.keys())
        worse, against = 0, f"{path} is updated"
    if options.json:
        report = {"triton": triton.__version__, "snapshot": None if snapshot is None else path.name}
        report |= {"rows": [asdict(row) for row in rows], "changes": [asdict(change) for change in changes]}
        print(json.dumps(report | {"failed": failed, "worse": worse}, indent=1))
    else:
        print(table(rows))
        for change in changes:
            print(fitted(f"{'worse' if change.worse else 'changed'}: {change.key}: {change.text}"))
        print(fitted(f"triton {triton.__version__}: {len(rows)} rows, {failed} failed, {against}"))
    return 1 if failed or worse or not (options.set or path.exists()) else 0
