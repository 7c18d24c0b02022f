"""The changes from one result file to another, or from one snapshot of the compile gate to another.

A measured item is slower, or faster, where its samples say so and its median moved by more than a threshold:

    two-sided Mann-Whitney U test on the raw samples, p adjusted by Holm over all items of the comparison, p < 0.01
    |median after / median before - 1| > threshold

Samples of one run share its clocks, so that two runs of the same code may differ significantly by a percent or so; that
is what the threshold is for. A row that moved and is not significant says so: it has too few samples.
"""

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from zonos2_triton._settings import local_path
from zonos2_triton.bench.compiler.snapshot import Change, differences
from zonos2_triton.bench.figures import number, percent
from zonos2_triton.bench.suite import results
from zonos2_triton.bench.suite.results import Result
from zonos2_triton.model.tables import fitted, text_table

SIGNIFICANT = 0.01
# What else may have made the difference; clocks that were read before the run may be those of a GPU at rest.
CONDITIONS = ("driver", "torch", "cuda", "triton", "clock_mhz", "memory_clock_mhz", "max_clock_mhz",
              "max_memory_clock_mhz", "power_limit_w", "seed")  # fmt: skip
CALIBRATION = "calibration/"  # rows of the GPU, and no work of ours
FIELDS = {"launches", "registers", "spills", "shared", "instructions", "matrix", "wide", "narrow"}
HEADS = ("item", "verdict", "before", "after", "change", "p", "note")

Row = dict[str, Any]
"""One measured item: name (stage/item); before, after (medians, in `unit`), ratio; p (adjusted), verdict, note."""


@dataclass(frozen=True)
class Comparison:
    """Before and after. worse: something is slower, fails that did not, or is worse in what the compiler made."""

    kind: str  # results, snapshots
    before: str
    after: str
    threshold: float
    warnings: Sequence[str] = ()
    rows: Sequence[Row] = ()  # what moved most first
    failing: Sequence[str] = ()  # or withheld, and were not
    recovered: Sequence[str] = ()
    vanished: Sequence[str] = ()  # had a result, have none
    changes: Sequence[Change] = ()  # between snapshots
    common: int = 0  # items in both

    @property
    def worse(self) -> bool:
        slower = any(row["verdict"] == "slower" and not row["name"].startswith(CALIBRATION) for row in self.rows)
        return slower or bool(self.failing) or any(change.worse for change in self.changes)

    @property
    def counts(self) -> str:
        """How many rows are slower, faster, the same."""
        verdicts = [row["verdict"] for row in self.rows]
        counts = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in ("slower", "faster", "same"))
        apart = f"apart: more than {100 * self.threshold:g} %, p < {SIGNIFICANT} by Mann-Whitney, adjusted by Holm"
        return f"{len(self.rows)} measured in both: {counts} ({apart})"

    @property
    def remarks(self) -> list[str]:
        """The notes that are no row."""
        said = {"warning": self.warnings, "FAILING": self.failing, "recovered": self.recovered,
                "vanished": self.vanished}  # fmt: skip
        return [f"{what}: {each}" for what, listed in said.items() for each in listed]

    def as_json(self) -> dict[str, Any]:
        """For json.dumps."""
        return asdict(self) | {"worse": self.worse}

    def as_text(self) -> str:
        """For a terminal."""
        lines = [f"before: {self.before}", f"after:  {self.after}", *self.remarks]
        lines += [f"{'worse' if change.worse else 'changed'}: {change.key}: {change.text}" for change in self.changes]
        if self.kind == "snapshots":
            lines.append(f"{len(self.changes)} differences, {sum(change.worse for change in self.changes)} worse")
        else:
            lines += [text_table([HEADS, *map(cells, self.rows)])]
            lines.append(f"{self.counts}; {len(self.failing)} newly failing")
        verdict = "worse" if self.worse else "not worse"
        lines.append(verdict if self.common else "nothing was compared: they have no item in common")
        return fitted("\n".join(lines))


class Input(NamedTuple):
    """One of the two that are compared."""

    name: str
    kind: str  # results, snapshots
    content: dict[str, Any]


def read(name: str) -> Input:
    """A file, or REV:path of a commit, as git show takes it. ValueError: it is neither result file nor snapshot."""
    if ":" not in name or local_path(name).exists():
        if not local_path(name).exists():
            raise FileNotFoundError(f"{name} is not a file; the results of `make gpu` and `bench --out DIR` are")
        text = local_path(name).read_text(encoding="utf-8", errors="replace")
    else:
        shown = subprocess.run(["git", "show", "--end-of-options", name], capture_output=True, text=True, timeout=60)
        if shown.returncode:
            raise ValueError(f"{name} is neither a file nor a file of a commit: {shown.stderr.strip()}")
        text = shown.stdout
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is no JSON: {error}") from error
    if isinstance(content, dict) and "schema" in content:
        results.check(results.parse(text, name), name)
        return Input(name, "results", content)
    found = content.items() if isinstance(content, dict) else ()
    if found and all(key.count("/") == 3 and isinstance(row, dict) and row.keys() >= FIELDS for key, row in found):
        return Input(name, "snapshots", content)
    raise ValueError(f"{name} is neither a result file nor a snapshot of the compile gate")


def compare(before: Input, after: Input, threshold: float = 0.02, allow_different_gpus: bool = False) -> Comparison:
    """Two of one kind, as `read` makes them.

    allow_different_gpus: also compare results of different GPUs, and smoke runs. ValueError: what cannot be compared,
    and why. ImportError: scipy is missing, which results need.
    """
    if not 0 <= threshold < 1:
        raise ValueError(f"threshold must be a fraction from 0 to below 1, got {threshold:g}")
    if before.kind != after.kind:
        raise ValueError(f"both must be of one kind: {before.name} is of {before.kind}, {after.name} of {after.kind}")
    head = (before.kind, before.name, after.name, threshold)
    if before.kind == "snapshots":
        common = len(before.content.keys() & after.content.keys())
        return Comparison(*head, changes=differences(after.content, before.content), common=common)
    old, new = _items(before.content), _items(after.content)
    of, to = (each.content["environment"] for each in (before, after))
    warnings = [f"different GPUs: {of['gpu']}, {to['gpu']}"] if of["gpu"] != to["gpu"] else []
    smokes = [each.name for each in (before, after) if each.content["environment"]["smoke"]]
    warnings += [f"{name} is a smoke run on a CPU, which says nothing of speed" for name in smokes]
    if warnings and not allow_different_gpus:
        raise ValueError(f"{'; '.join(warnings)}. Compare them all the same with --allow-different-gpus")
    differ = [name for name in CONDITIONS if of.get(name) != to.get(name)]
    warnings += [f"{name}: {of.get(name)} before, {to.get(name)} after" for name in differ]
    rows = _rows(old, new, threshold)
    moved = [row for row in rows if row["verdict"] != "same" and row["name"].startswith(CALIBRATION)]
    warnings += [f"the GPU itself is {row['verdict']}: {row['name']}, {percent(row['ratio'])}" for row in moved]
    bad, was_bad = ([name for name, found in items.items() if found["status"] != "passed"] for items in (new, old))
    return Comparison(
        *head,
        warnings,
        rows,
        failing=[f"{name}: {new[name].get('error') or new[name]['reason']}" for name in bad if name not in was_bad],
        recovered=[name for name in was_bad if name in new and name not in bad],
        vanished=[f"{name}: {_left_out(after.content, name)}" for name in old if name not in new],
        common=len(old.keys() & new.keys()),
    )


def _items(content: Result) -> dict[str, dict[str, Any]]:
    """By stage/item."""
    stages = content["stages"]
    return {f"{stage}/{name}": found for stage in stages for name, found in results.items(content, stage).items()}


def _left_out(content: Result, name: str) -> str:
    """Why an item has no result, where the run mentions it."""
    stage, item = name.split("/", 1)
    return results.left_out(content, stage).get(item, "no longer there")


def _rows(old: Mapping[str, Mapping[str, Any]], new: Mapping[str, Mapping[str, Any]], threshold: float) -> list[Row]:
    """The rows of items that passed in both and have samples."""
    try:
        from scipy.stats import mannwhitneyu
    except ImportError as error:
        raise ImportError("comparing results needs scipy: pip install scipy") from error
    both, values = [], []
    for name, now in new.items():
        was = old.get(name, {})
        for unit in ("us", "ms"):
            if was.get("status") == now["status"] == "passed" and (samples := f"samples_{unit}") in now:
                both.append((name, unit, was, now))
                values.append(float(mannwhitneyu(was[samples], now[samples], alternative="two-sided").pvalue))
    rows = []
    for (name, unit, was, now), p in zip(both, holm(values), strict=True):
        before, after = was[f"median_{unit}"], now[f"median_{unit}"]
        far, sure = abs(after / before - 1) > threshold, p < SIGNIFICANT
        notes = [f"{key} {was[key]} -> {now[key]}" for key in ("launch", "cache") if was.get(key) != now.get(key)]
        if far and not sure:
            notes.append("not significant, {} and {} samples".format(*(len(f[f"samples_{unit}"]) for f in (was, now))))
        if sure and not far:
            notes.append("significant, below the threshold")
        verdict = "same" if not (far and sure) else "slower" if after > before else "faster"
        figures = {"before": before, "after": after, "unit": unit, "ratio": after / before, "p": p}
        rows.append({"name": name, **figures, "verdict": verdict, "note": "; ".join(notes)})
    return sorted(rows, key=lambda row: -abs(row["ratio"] - 1))


def cells(row: Row) -> tuple[str, ...]:
    """Under HEADS."""
    medians = (f"{number(row[when])} {row['unit']}" for when in ("before", "after"))
    return (row["name"], row["verdict"], *medians, percent(row["ratio"]), f"{row['p']:.2g}", row["note"])


def holm(values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number: the chance that any of those below a level is a false alarm is that level."""
    adjusted, largest = [0.0] * len(values), 0.0
    for rank, index in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        largest = max(largest, min((len(values) - rank) * values[index], 1.0))
        adjusted[index] = largest
    return adjusted
