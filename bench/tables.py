"""The tables of the README, made from the catalogue and from what the compile gate recorded.

python -m zonos2_triton.bench.tables    # writes them into README.md
"""

import json
from collections.abc import Mapping
from pathlib import Path

from zonos2_triton.bench.catalogue import KERNELS, Kernel, Workload
from zonos2_triton.bench.compile_gate import BASELINES

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- kernels: made by bench/tables.py -->\n", "<!-- end of kernels -->\n"
CARD = "sm_90"
HEADS = ("kernel", "replaces", "workload", "moves", "computes", f"{CARD}: registers, shared memory", "time on a GPU")


def kernel_table() -> str:
    """Markdown: a line per kernel, for its smallest workload at the 8B model's shapes, in bf16."""
    baseline = json.loads(newest_baseline().read_text(encoding="utf-8"))
    rows = [HEADS, ("---",) * len(HEADS), *(_row(kernel, baseline) for kernel in KERNELS.values())]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def newest_baseline() -> Path:
    """Of the newest version of Triton that has one."""
    return max(BASELINES.glob("triton-*.json"), key=lambda path: [*map(int, path.stem[7:].split("."))])


def _row(kernel: Kernel, baseline: Mapping[str, Mapping[str, int]]) -> tuple[str, ...]:
    workload = _one_row(kernel)
    cost = kernel.cost_of(workload, itemsize=2)
    compiled = []
    for key, values in baseline.items():
        name, _, config, card = key.split("/")
        if (name, config, card) == (kernel.name, f"{workload.name}-bfloat16", CARD):
            compiled.append(f"{values['registers']}, {values['shared'] / 1024:.0f} KiB")
    return (
        f"`{kernel.name}`",
        kernel.replaces,
        workload.name,
        _engineering(cost.bytes, "B"),
        _engineering(cost.flops, "FLOP"),
        "; ".join(compiled),
        "not yet measured",
    )


def _one_row(kernel: Kernel) -> Workload:
    named = {workload.name: workload for workload in kernel.workloads}
    return named.get("decode-B1") or next(workload for workload in kernel.workloads if workload.real)


def _engineering(value: float, unit: str) -> str:
    for factor, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"


def with_tables(text: str) -> str:
    """The README's text with its tables made anew. ValueError: the marks are not there."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"README.md must hold {BEGIN.strip()} and, after it, {END.strip()}")
    return before + BEGIN + kernel_table() + END + after


if __name__ == "__main__":
    README.write_text(with_tables(README.read_text(encoding="utf-8")), encoding="utf-8")
