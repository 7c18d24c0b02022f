"""Tries launch configurations of a kernel and writes the best ones as a file for ZONOS2_TRITON_LAUNCH_CONFIG.

    zonos2-triton tune --kernel codebook_head [--workload NAME] [--set M=7] [--target ARCH] --out launch.json

Every launch of the kernel has its own grid, around its entry in `kernels/_launch_table.py`: half, the same and twice
BLOCK_N and num_warps; num_stages from one less to two more. All other numbers stay, BLOCK_M and BLOCK_K among them.

A candidate is refused where its binary fails the compile gate: it spills, needs more shared memory than there is, or
adds in another order than the table's, which would change bits. On a GPU the others are timed, and must return the
bits of the table. A candidate has to beat the table by 2 %. Without a GPU nothing can be timed: candidates are ranked
by their binaries alone. First comes the higher occupancy, then fewer instructions, then fewer registers.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from zonos2_triton._settings import local_path
from zonos2_triton.bench.catalogue import KERNELS
from zonos2_triton.bench.cli_choices import chosen
from zonos2_triton.bench.compiler.cubin_stats import TARGETS
from zonos2_triton.bench.compiler.expected import Row
from zonos2_triton.bench.compiler.gate import CATALOGUE, DTYPES, Task, compile_all, worker_pool
from zonos2_triton.bench.compiler.offline_compile import (
    check_compiler,
    compile_only,
    fake_tensors,
    in_short,
    launch_configs,
)
from zonos2_triton.bench.compiler.warmup import without_gpu
from zonos2_triton.bench.proof.invariants import same_bits
from zonos2_triton.bench.specs.spec import Kernel, Workload
from zonos2_triton.bench.suite.environment import environment
from zonos2_triton.bench.timing import timer
from zonos2_triton.kernels import _launch_config
from zonos2_triton.kernels._launch_config import BLOCKS, LIMITS, MAX_ROWS
from zonos2_triton.kernels._launch_table import LAUNCH_CONFIGS
from zonos2_triton.model.files import check_writable, write_whole
from zonos2_triton.model.tables import fitted, text_table

Entry = dict[str, Any]  # of a launch configuration file
TUNED = ("BLOCK_N", "num_warps", "num_stages")
GAIN = 0.98  # of the table's time: what a candidate must stay below
CODE = ("occupancy", "registers", "shared", "instructions")
HEADS = ("op", "variant", *TUNED, "verdict", "us", *CODE)


@dataclass
class Candidate:
    """One entry, the binaries that it makes, and why it is refused."""

    entry: Entry
    table: bool  # the numbers of the launch table
    rows: Sequence[Row] = ()
    refused: str = ""
    us: float | None = None

    @property
    def rank(self) -> tuple[float, ...]:
        """The order of candidates, best first: times where there are any, else the compiled code."""
        stats = [row.stats for row in self.rows if row.stats]
        code = -min(s.occupancy for s in stats), sum(s.instructions for s in stats), sum(s.registers for s in stats)
        return (self.us, *code) if self.us else code


def launches(name: str, workload: Workload, dtype: str, target: str) -> list[Entry]:
    """The table's entry of each launch of a kernel at this workload, for the rows that this entry serves."""
    kernel = KERNELS[name]
    found: dict[tuple[str, str], Entry] = {}
    original = _launch_config.launch_config

    def recorded(op: str, variant: str, dtype: torch.dtype, rows: int = 1, tf32: bool = False) -> dict[str, Any]:
        config = original(op, variant, dtype, rows, tf32)
        numbers = {name: config[name] for name in TUNED if name in config}
        found[op, variant] = {"op": op, "variant": variant, **_range(op, variant, config), **numbers}
        return config

    users = [module for path, module in sys.modules.items() if path.startswith("zonos2_triton.kernels.")]
    with launch_configs(()), compile_only(target), fake_tensors(), ExitStack() as stack:
        for module in users:
            if getattr(module, "launch_config", None) is original:
                stack.enter_context(patch.object(module, "launch_config", recorded))
        try:
            kernel.op._init_fn(**kernel.make_inputs(torch.device("cuda"), getattr(torch, dtype), **workload.sizes))
        except Exception as error:  # of sizes that contradict each other
            raise ValueError(f"{name} cannot run at {workload.name}: {in_short(error)}") from None
    return [entry | {"dtype": dtype} for entry in found.values()]


def _range(op: str, variant: str, config: dict[str, Any]) -> Entry:
    """The rows that the table serves with this configuration, where it has several for different rows."""
    choice = LAUNCH_CONFIGS[op, variant]
    configs = choice.get(_launch_config.architecture(), choice["*"])
    at = next(i for i, each in enumerate(configs) if each.items() <= config.items())  # which has dependent launch, too
    if variant not in ("decode", "prefill") or len(configs) == 1:
        return {}
    least = configs[at - 1]["BLOCK_M"] + 1 if at else 1
    return {"rows": [least, MAX_ROWS if at == len(configs) - 1 else config["BLOCK_M"]]}


def grid(entry: Entry) -> list[Entry]:
    """Entries around this one, which comes first."""
    axes = []
    for name in (name for name in TUNED if name in entry):
        value, (low, high) = entry[name], LIMITS.get(name, BLOCKS)
        near = range(value - 1, value + 3) if name == "num_stages" else (value // 2, value, 2 * value)
        axes.append([(name, each) for each in near if low <= each <= high])
    return sorted([{**entry, **dict(numbers)} for numbers in product(*axes)], key=lambda each: each != entry)


def refuse(candidate: Candidate, table: Candidate) -> None:
    """Note why a compiled candidate may not be used, if it may not."""
    sums, usual = ([row.stats.sums for row in each.rows if row.stats] for each in (candidate, table))
    changed = [] if sums == usual else ["adds in another order than the table's"]
    candidate.refused = next(iter([*(failure for row in candidate.rows for failure in row.failures), *changed]), "")


def tune(kernel: Kernel, workload: Workload, dtype: str, target: str, jobs: int | None = None) -> list[list[Candidate]]:
    """The candidates of each launch, the best first, those that are refused last."""
    groups = []
    with without_gpu(), worker_pool(1) as pool:
        entries = pool.submit(launches, kernel.name, workload, dtype, target).result()
    for entry in entries:
        candidates = [Candidate(each, each == entry) for each in grid(entry)]
        tasks = [Task(CATALOGUE, kernel.name, target, (dtype,), (workload,), (each.entry,)) for each in candidates]
        with without_gpu():
            compiled = compile_all(tasks, jobs)
        for candidate, rows in zip(candidates, compiled, strict=True):
            candidate.rows = rows
            refuse(candidate, candidates[0])
        if torch.cuda.is_available():
            measure(kernel, workload, dtype, candidates)
        order = {id(each): (bool(each.refused), () if each.refused else each.rank) for each in candidates}
        groups.append(sorted(candidates, key=lambda each: order[id(each)]))
    return groups


def measure(kernel: Kernel, workload: Workload, dtype: str, candidates: Sequence[Candidate]) -> None:
    """Time the table's entry and each candidate that is not refused; refuse those whose bits differ."""
    device = timer.cuda_device()
    inputs = kernel.make_inputs(device.name, getattr(torch, dtype), **workload.sizes)
    usual: list[Tensor] = []
    for candidate in (each for each in candidates if each.table or not each.refused):
        with launch_configs([candidate.entry]), torch.inference_mode():
            changed = {name: inputs[name].clone() for name in kernel.mutates if inputs[name] is not None}
            results = kernel.op(**inputs | changed)
            outputs = [*([results] if isinstance(results, Tensor) else results or ()), *changed.values()]
            usual = usual or outputs
            if not all(map(same_bits, outputs, usual)):
                candidate.refused = "is not bitwise identical to the table's"
            else:
                candidate.us = timer.time_kernel(kernel, workload, device, getattr(torch, dtype))["median_us"]


def best(groups: Sequence[Sequence[Candidate]]) -> list[Entry]:
    """The entries to write: of each launch the first candidate, where it is better than the table's."""
    found = []
    for group in groups:
        first, table = group[0], next(each for each in group if each.table)
        faster = first.us is None or table.us is None or first.us < GAIN * table.us
        found += [first.entry] if faster and not first.table and not first.refused else []
    return found


def rows(groups: Sequence[Sequence[Candidate]]) -> list[dict[str, Any]]:
    """A row for each candidate, for a table and for json.dumps."""
    found = []
    for candidate in (each for group in groups for each in group):
        row = candidate.entry | {"table": candidate.table, "refused": candidate.refused or None, "us": candidate.us}
        stats = [row.stats for row in candidate.rows if row.stats]
        found.append(row | {name: [getattr(each, name) for each in stats] for name in CODE})
    return found


def as_text(found: list[dict[str, Any]]) -> str:
    """The rows as a table."""
    lines = [HEADS]
    for row in found:
        verdict = f"refused: {row['refused']}" if row["refused"] else "table" if row["table"] else ""
        us = "" if row["us"] is None else f"{row['us']:.2f}"
        code = (" ".join(f"{n:g}" for n in row[name]) for name in CODE)
        lines.append((row["op"], row["variant"], *(str(row.get(name, "")) for name in TUNED), verdict, us, *code))
    return text_table(lines, keys=2)


def command(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    """Add the options of the command to `parser`; what comes back runs it and returns its exit status."""
    parser.description = "Try launch configurations of a kernel; write those that beat the launch table."
    parser.add_argument("--kernel", required=True, metavar="NAME", help="of the catalogue")
    parser.add_argument("--workload", metavar="NAME", help="default: the first at the 8B model's shapes")
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="NAME=VALUE", help="other sizes of the workload: M=7"
    )
    parser.add_argument(
        "--dtype", default=DTYPES[0], metavar="NAME", help=f"of {', '.join(DTYPES)}; default: the first"
    )
    parser.add_argument("--target", metavar="ARCH", help=f"without a GPU, of {', '.join(TARGETS)}; default: sm_90")
    parser.add_argument("--jobs", type=int, metavar="N", help="processes that compile; default: one per core")
    parser.add_argument("-o", "--out", type=local_path, metavar="FILE", help="the launch configuration file to write")
    parser.add_argument("--json", action="store_true", help="print the candidates as JSON")
    return _command


def _command(options: argparse.Namespace) -> int:
    """Exit status: 0, also where nothing beats the table."""
    on_gpu = torch.cuda.is_available()
    (name,), (dtype,) = chosen("kernel", [options.kernel], KERNELS), chosen("dtype", [options.dtype], DTYPES)
    if on_gpu and options.target:
        raise ValueError("--target is for machines without a GPU; this one has the GPU to tune for")
    target = environment(0)["arch"] if on_gpu else options.target or "sm_90"
    chosen("target", [target], TARGETS)
    if options.jobs is not None and options.jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {options.jobs}")
    kernel = KERNELS[name]
    real = {workload.name: workload for workload in kernel.workloads if workload.real}
    (first, *_) = chosen("workload", options.workload and [options.workload], real)
    workload = kernel.resized(real[first], options.set) if options.set else real[first]
    if options.out:
        check_writable(options.out)
    check_compiler()
    groups = tune(kernel, workload, dtype, target, options.jobs)
    entries, by = best(groups), "time" if on_gpu else "compiled code"
    if options.out:
        write_whole(options.out, json.dumps(entries, indent=1) + "\n")
    if options.json:
        print(json.dumps({"ranked_by": by, "target": target, "entries": entries, "candidates": rows(groups)}, indent=1))
        return 0
    print(as_text(rows(groups)))
    if not on_gpu:
        print(fitted("ranked by the compiled code alone: nothing was timed; run it on a GPU before you rely on it"))
    print(fitted(f"{len(entries)} of {len(groups)} launches have a better configuration, by {by}, on {target}"))
    return 0
