"""The generated tables of the READMEs: from the catalogue, the compile gate's snapshot and committed results.

python -m zonos2_triton.bench.report.tables    # writes them between their marks
"""

import ast
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from zonos2_triton.bench.catalogue import KERNELS
from zonos2_triton.bench.compiler.estimate import REFERENCE, Step
from zonos2_triton.bench.compiler.frame_estimate import Operation, Snapshot, estimated_snapshot, estimates
from zonos2_triton.bench.compiler.gate import SNAPSHOTS
from zonos2_triton.bench.figures import engineering
from zonos2_triton.bench.proof import bounds
from zonos2_triton.bench.proof.mutants import MUTANTS, distinct
from zonos2_triton.bench.specs.performance_targets import GOALS, UNMEASURED
from zonos2_triton.bench.specs.spec import Kernel
from zonos2_triton.bench.suite.results import Result, newest, passed
from zonos2_triton.model.files import write_whole

ROOT = Path(__file__).resolve().parents[2]
LOCKED = ("torch", "triton", "numpy", "einops", "safetensors", "transformers")
TARGET = "sm_90"
CONDITIONS = ("gpu", "driver", "power_limit_w", "torch", "triton", "commit", "date")
HEADS = (
    "kernel", "replaces", "workload", "bytes", "FLOPs", f"{TARGET}: registers, shared memory", "floor, H200",
    "estimate, H200", "time",
)  # fmt: skip


def kernel_table(result: Result | None) -> str:
    """Markdown: a line per kernel, for its smallest workload at the 8B model's shapes, in bf16."""
    newest_triton = max(SNAPSHOTS.glob("triton-*.json"), key=lambda path: [*map(int, path.stem[7:].split("."))])
    snapshot: Snapshot = json.loads(newest_triton.read_text(encoding="utf-8"))
    launches = estimates(estimated_snapshot())
    rows = [_kernel(kernel, snapshot, launches, result) for kernel in KERNELS.values()]
    return _markdown([HEADS, *rows]) + _conditions(result)


def goal_table(result: Result | None) -> str:
    """Markdown: the targets, and the measured figures."""
    heads = ("figure", "goal, on an H200", "measured", "verdict")
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
        f"`bench/proof/mutation.py` makes {len(distinct())} mutants of the kernels, copies with one mistake each.\n"
        "A mutant of shared code is tried in each kernel whose checks can find it. "
        f"That makes {sum(map(len, MUTANTS.values()))} pairs,\neach of which must fail a check of its kernel.\n"
    )


def operator_table(_: Result | None) -> str:
    """Markdown: the arguments of each operator with their shapes, and those that it changes."""
    rows = []
    for name in KERNELS:
        tree = ast.parse((ROOT / "kernels" / f"{name}.py").read_text(encoding="utf-8"))
        [declared] = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name]
        schema = getattr(torch.ops.zonos2_triton, name).default._schema
        changed = [each.name for each in schema.arguments if each.alias_info and each.alias_info.is_write]
        rows.append((f"[`{name}`]({name}.py)", ", ".join(map(_argument, declared.args.args)), ", ".join(changed)))
    return _markdown([("operator", "arguments", "changed in place"), *rows])


def _argument(argument: ast.arg) -> str:
    """Name, a question mark where it may be None, and its shape."""
    name = argument.arg
    match argument.annotation:
        case ast.Subscript(slice=ast.Tuple(elts=[kind, ast.Constant(value=str(axes)), *_])):
            return f"{name}{'?' * ('None' in ast.unparse(kind))} `[{', '.join(axes.split())}]`"
        case ast.BinOp():
            return f"{name}?"
    return name


TABLES: dict[str, dict[str, Callable[[Result | None], str]]] = {
    "README.md": {"kernels": kernel_table, "versions": version_table},
    "kernels/README.md": {"operators": operator_table, "accuracy": accuracy},
    "bench/README.md": {"mutants": mutants, "goals": goal_table},
}


def _kernel(
    kernel: Kernel, snapshot: Snapshot, launches: Mapping[Operation, list[Step]], result: Result | None
) -> tuple[str, ...]:
    real = [workload for workload in kernel.workloads if workload.real]
    workload = next((each for each in real if each.name == "decode-B1"), real[0])
    cost = kernel.cost_of(workload, itemsize=2)
    compiled = [
        f"{values['registers']}, {values['shared'] / 1024:.0f} KiB"
        for key, values in snapshot.items()
        if key.split("/")[0] == kernel.name and key.split("/")[2:] == [f"{workload.name}-bfloat16", TARGET]
    ]
    timed = passed(result, "timings", f"{kernel.name}/{workload.name}") if result else None
    link, time = f"[`{kernel.name}`](kernels/{kernel.name}.py)", f"{timed['median_us']:.1f} us" if timed else UNMEASURED
    least = engineering(cost.bytes, "B"), engineering(cost.flops, "FLOP")
    floor, estimate = f"{REFERENCE.roofline.floor_us(*cost):.1f} us", UNMEASURED
    if steps := launches.get((kernel.name, workload.name)):
        limits = ", ".join(dict.fromkeys(step.estimate.limit for step in steps))
        estimate = f"{sum(step.estimate.us for step in steps):.1f} us: {limits}"
    return (link, kernel.replaces, workload.name, *least, "; ".join(compiled), floor, estimate, time)


def _conditions(result: Result | None) -> str:
    """The conditions of the times; nothing where there are none."""
    if result is None:
        return ""
    known = [f"{name} {result['environment'][name]}" for name in CONDITIONS if result["environment"].get(name)]
    return f"\nTimes: medians; {', '.join(known)}.\n"


def _markdown(rows: list[tuple[str, ...]]) -> str:
    """A table without the columns that hold no figure, and a dash where another is not known."""
    kept = [column for column in zip(*rows, strict=True) if {*column[1:]} - {"", UNMEASURED}]
    heads, *lines = zip(*kept, strict=True)
    text = "".join(f"| {' | '.join(row)} |\n" for row in (heads, ("---",) * len(kept), *lines))
    return text.replace(UNMEASURED, "–")


def with_tables(page: str, text: str, result: Result | None) -> str:
    """The text of a page with its tables made anew. ValueError: the marks of one are not there."""
    for name, table in TABLES[page].items():
        begin, end = f"<!-- {name}: made by bench/report/tables.py -->\n", f"<!-- end of {name} -->\n"
        if not 0 <= text.find(begin) < text.find(end):
            raise ValueError(f"{page} must hold {begin.strip()} and, after it, {end.strip()}")
        text = text[: text.index(begin)] + begin + table(result) + text[text.index(end) :]
    return text


if __name__ == "__main__":
    for page in TABLES:
        if not (ROOT / page).is_file():
            raise SystemExit(f"there is no {ROOT / page}: run this in a checkout")
        write_whole(ROOT / page, with_tables(page, (ROOT / page).read_text(encoding="utf-8"), newest()))
