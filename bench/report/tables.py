"""The tables of the README, made from the catalogue, from what the compile gate recorded and from committed results.

python -m zonos2_triton.bench.report.tables    # writes them into README.md
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path

from zonos2_triton.bench.catalogue import KERNELS
from zonos2_triton.bench.compiler.gate import SNAPSHOTS
from zonos2_triton.bench.figures import engineering
from zonos2_triton.bench.proof import bounds
from zonos2_triton.bench.proof.mutants import MUTANTS, distinct
from zonos2_triton.bench.specs.performance_targets import GOALS, UNMEASURED
from zonos2_triton.bench.specs.spec import Kernel
from zonos2_triton.bench.suite.results import Result, newest, passed
from zonos2_triton.model.files import write_whole

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
LOCKED = ("torch", "triton", "numpy", "einops", "safetensors", "transformers")
TARGET = "sm_90"
CONDITIONS = ("gpu", "driver", "power_limit_w", "torch", "triton", "commit", "date")
HEADS = ("kernel", "replaces", "workload", "moves", "computes", f"{TARGET}: registers, shared memory", "time on a GPU")


def kernel_table(result: Result | None) -> str:
    """Markdown: a line per kernel, for its smallest workload at the 8B model's shapes, in bf16."""
    newest_triton = max(SNAPSHOTS.glob("triton-*.json"), key=lambda path: [*map(int, path.stem[7:].split("."))])
    snapshot = json.loads(newest_triton.read_text(encoding="utf-8"))
    rows = [_kernel(kernel, snapshot, result) for kernel in KERNELS.values()]
    return _markdown([HEADS, *rows]) + _conditions(result)


def goal_table(result: Result | None) -> str:
    """Markdown: what is to be reached, and what was."""
    heads = ("figure", "goal, on an H200", "measured", "")
    return _markdown([heads, *(goal.row(result) for goal in GOALS)]) + _conditions(result)


def version_table(_: Result | None) -> str:
    """Markdown: a line per lock file, the one of `make test` first; the lowest version where Python's decides."""
    default = re.findall(r"^LOCK \?= (\S+)", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    locks = sorted((ROOT / ".ci").glob("torch-*.txt"), key=lambda path: (path.name != Path(default[0]).name, path.name))
    rows = []
    for lock in locks:
        pins = dict(reversed(re.findall(r"^([\w-]+)==([\w.]+)", lock.read_text(encoding="utf-8"), flags=re.MULTILINE)))
        rows.append((f"[`{lock.name}`](.ci/{lock.name})", *(pins[name] for name in LOCKED)))
    return _markdown([("lock file", *LOCKED), *rows])


def accuracy(_: Result | None) -> str:
    """Markdown: how far from fp64 the kernels may be."""
    return bounds.statement(KERNELS)


def mutants(_: Result | None) -> str:
    """Markdown: how many mutants there are, those of shared code counted once."""
    return (
        f"`bench/proof/mutation.py` makes {len(distinct())} mutants of the kernels, copies with one mistake each. "
        "Mutants of shared code\nare tried in each kernel whose checks find them: "
        f"{sum(map(len, MUTANTS.values()))} pairs, each of which must fail a check of its kernel.\n"
    )


TABLES = {
    "kernels": kernel_table, "goals": goal_table, "versions": version_table, "accuracy": accuracy, "mutants": mutants,
}  # fmt: skip


def _kernel(kernel: Kernel, snapshot: Mapping[str, Mapping[str, int]], result: Result | None) -> tuple[str, ...]:
    real = [workload for workload in kernel.workloads if workload.real]
    workload = next((each for each in real if each.name == "decode-B1"), real[0])
    cost = kernel.cost_of(workload, itemsize=2)
    compiled = [
        f"{values['registers']}, {values['shared'] / 1024:.0f} KiB"
        for key, values in snapshot.items()
        if key.split("/")[0] == kernel.name and key.split("/")[2:] == [f"{workload.name}-bfloat16", TARGET]
    ]
    timed = passed(result, "timings", f"{kernel.name}/{workload.name}") if result else None
    time = f"{timed['median_us']:.1f} us" if timed else UNMEASURED
    moved, computed = engineering(cost.bytes, "B"), engineering(cost.flops, "FLOP")
    return f"`{kernel.name}`", kernel.replaces, workload.name, moved, computed, "; ".join(compiled), time


def _conditions(result: Result | None) -> str:
    """What the times were measured on."""
    if result is None:
        return f"\nTimes: {UNMEASURED}; `make gpu` writes them to `bench/results/`.\n"
    known = [f"{name} {result['environment'][name]}" for name in CONDITIONS if result["environment"].get(name)]
    return f"\nTimes: medians; {', '.join(known)}.\n"


def _markdown(rows: list[tuple[str, ...]]) -> str:
    rows = [rows[0], ("---",) * len(rows[0]), *rows[1:]]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def with_tables(text: str, result: Result | None) -> str:
    """The README's text with its tables made anew. ValueError: the marks of one are not there."""
    for name, table in TABLES.items():
        begin, end = f"<!-- {name}: made by bench/report/tables.py -->\n", f"<!-- end of {name} -->\n"
        if not 0 <= text.find(begin) < text.find(end):
            raise ValueError(f"README.md must hold {begin.strip()} and, after it, {end.strip()}")
        text = text[: text.index(begin)] + begin + table(result) + text[text.index(end) :]
    return text


if __name__ == "__main__":
    if not README.is_file():
        raise SystemExit(f"there is no {README}: run this in a checkout")
    write_whole(README, with_tables(README.read_text(encoding="utf-8"), newest()))
