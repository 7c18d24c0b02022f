"""What changed from one result file to another, or from one baseline of the compile gate to another.

A measured item is slower, or faster, where its samples say so and its median moved by more than a threshold:

    two-sided Mann-Whitney U test on the raw samples, p adjusted by Holm over all items of the comparison, p < 0.01
    |median after / median before - 1| > threshold

What this can tell: that the two runs differ beyond the scatter inside of each. What it cannot: why. Samples of one run
share its clocks, its temperature, its addresses, so they are not independent, and two runs of the same code may differ
significantly by a percent or so; that is what the threshold is for. Where it matters, run both again, in turns. With
five samples a side no p survives the adjustment for a hundred items; a row that moved and is not significant says so.
"""

import json
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from zonos2_triton.bench.compiler.gate import Change, differences
from zonos2_triton.bench.figures import number, percent, text_table
from zonos2_triton.bench.suite import results
from zonos2_triton.bench.suite.results import Result

SIGNIFICANT = 0.01
THRESHOLD = 0.02
# What else may have made the difference; clocks that were read before the run may be those of a card at rest.
CONDITIONS = ("driver", "torch", "cuda", "triton", "clock_mhz", "memory_clock_mhz", "most_mhz", "most_memory_mhz",
              "power_limit_w", "seed")  # fmt: skip
BASELINE_FIELDS = {"launches", "registers", "spills", "shared", "instructions", "matrix", "wide", "narrow"}
UNITS = {"samples_us": "us", "samples_ms": "ms"}
HEADS = ("item", "verdict", "before", "after", "change", "p", "note")


@dataclass(frozen=True)
class Row:
    """One measured item."""

    name: str  # part/item
    before: float  # medians, in `unit`
    after: float
    unit: str  # us, ms
    ratio: float  # after / before
    p: float  # adjusted
    verdict: str  # faster, slower, same
    note: str = ""

    @property
    def judged(self) -> bool:
        """The calibration is no work of ours."""
        return not self.name.startswith("calibration/")

    @property
    def cells(self) -> tuple[str, ...]:
        """Under HEADS."""
        medians = (f"{number(median)} {self.unit}" for median in (self.before, self.after))
        return (self.name, self.verdict, *medians, percent(self.ratio), f"{self.p:.2g}", self.note)


@dataclass(frozen=True)
class Comparison:
    """Before and after. worse: something is slower, fails that did not, or is worse in what the compiler made."""

    kind: str  # results, baselines
    before: str
    after: str
    threshold: float
    warnings: Sequence[str] = ()
    rows: Sequence[Row] = ()  # what moved most first
    failing: Sequence[str] = ()  # or withheld, and were not
    recovered: Sequence[str] = ()
    vanished: Sequence[str] = ()  # had a result, have none
    changes: Sequence[Change] = ()  # between baselines

    @property
    def worse(self) -> bool:
        slower = any(row.verdict == "slower" and row.judged for row in self.rows)
        return slower or bool(self.failing) or any(change.worse for change in self.changes)

    @property
    def counts(self) -> str:
        """How many rows are slower, faster, the same."""
        verdicts = [row.verdict for row in self.rows]
        counts = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in ("slower", "faster", "same"))
        apart = f"apart: more than {100 * self.threshold:g} %, p < {SIGNIFICANT} by Mann-Whitney, adjusted by Holm"
        return f"{len(self.rows)} measured in both: {counts} ({apart})"

    @property
    def remarks(self) -> list[str]:
        """What is no row."""
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
        if self.kind == "baselines":
            lines.append(f"{len(self.changes)} differences, {sum(change.worse for change in self.changes)} worse")
        else:
            lines += [text_table([HEADS, *(row.cells for row in self.rows)])] if self.rows else []
            lines.append(f"{self.counts}; {len(self.failing)} newly failing")
        return "\n".join([*lines, "worse" if self.worse else "not worse"])


class Input(NamedTuple):
    """One of the two that are compared."""

    name: str
    kind: str  # results, baselines
    content: dict[str, Any]


def read(name: str | Path) -> Input:
    """A file, or REV:path of a commit, as git show takes it. ValueError: it is neither result file nor baseline."""
    text = _text(str(name))
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{name} is no JSON: {error}") from error
    if isinstance(content, dict) and "schema" in content:
        results.check(results.parse(text, str(name)), str(name))
        return Input(str(name), "results", content)
    if isinstance(content, dict) and content and all(_is_row(key, row) for key, row in content.items()):
        return Input(str(name), "baselines", content)
    raise ValueError(f"{name} is neither a result file nor a baseline of the compile gate")


def compare(before: Input, after: Input, threshold: float = THRESHOLD, force: bool = False) -> Comparison:
    """Two of one kind, as `read` makes them.

    force: results of different cards too, and rehearsals. ValueError: what cannot be compared, and why. ImportError:
    no scipy, for results.
    """
    if not 0 <= threshold < 1:
        raise ValueError(f"threshold must be a fraction from 0 to below 1, got {threshold:g}")
    if before.kind != after.kind:
        raise ValueError(f"both must be of one kind: {before.name} is of {before.kind}, {after.name} of {after.kind}")
    head = (before.kind, before.name, after.name, threshold)
    if before.kind == "baselines":
        return Comparison(*head, changes=differences(after.content, before.content))
    old, new = _items(before.content), _items(after.content)
    rows = _rows(old, new, threshold)
    warnings = [*_obstacles((before, after), force), *_conditions(before.content, after.content)]
    warnings += [
        f"the card itself is {row.verdict}: {row.name}, {percent(row.ratio)}"
        for row in rows
        if row.verdict != "same" and not row.judged
    ]
    bad = [name for name, found in new.items() if found["status"] != "passed"]
    was_bad = [name for name, found in old.items() if found["status"] != "passed"]
    return Comparison(
        *head,
        warnings,
        rows,
        failing=[f"{name}: {new[name].get('error') or new[name]['reason']}" for name in bad if name not in was_bad],
        recovered=[name for name in was_bad if name in new and name not in bad],
        vanished=[f"{name}: {_left_out(after.content, name)}" for name in old if name not in new],
    )


def _text(name: str) -> str:
    """Of a file, or of one of a commit."""
    if Path(name).exists() or ":" not in name:
        try:
            return Path(name).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{name} is no JSON: {error}") from error
    try:
        shown = subprocess.run(["git", "show", "--end-of-options", name], capture_output=True, timeout=60)
    except FileNotFoundError as error:
        raise ValueError(f"{name} is no file, and there is no git to look for it in a commit") from error
    if shown.returncode:
        said = shown.stderr.decode(errors="replace").strip().splitlines()
        raise ValueError(f"{name} is neither a file nor a file of a commit: {said[0] if said else 'git show failed'}")
    return shown.stdout.decode(errors="replace")


def _is_row(key: str, row: Any) -> bool:
    """Of a baseline: kernel/function/config/target."""
    return key.count("/") == 3 and isinstance(row, dict) and row.keys() >= BASELINE_FIELDS


def _obstacles(inputs: Sequence[Input], force: bool) -> list[str]:
    """What has to be forced."""
    old, new = (result.content["environment"]["card"] for result in inputs)
    found = [f"different cards: {old}, {new}"] if old != new else []
    found += [
        f"{result.name} is a rehearsal on a CPU, which says nothing of speed"
        for result in inputs
        if result.content["environment"]["rehearsal"]
    ]
    if found and not force:
        raise ValueError(f"{'; '.join(found)}. Compare them all the same with --force")
    return found


def _conditions(before: Result, after: Result) -> Iterator[str]:
    for name in CONDITIONS:
        old, new = (content["environment"].get(name) for content in (before, after))
        if old != new:
            yield f"{name}: {old} before, {new} after"


def _items(content: Result) -> dict[str, dict[str, Any]]:
    """By part/item."""
    parts = content["parts"]
    return {f"{part}/{name}": found for part in parts for name, found in results.items(content, part).items()}


def _left_out(content: Result, name: str) -> str:
    """Why an item has no result, where the run mentions it."""
    part, item = name.split("/", 1)
    return results.left_out(content, part).get(item, "no longer there")


def _rows(old: Mapping[str, Mapping[str, Any]], new: Mapping[str, Mapping[str, Any]], threshold: float) -> list[Row]:
    """Of what passed in both and has samples."""
    both = [(name, old[name], new[name]) for name in new if name in old]
    both = [row for row in both if all(f["status"] == "passed" and f.keys() & UNITS.keys() for f in row[1:])]
    adjusted = holm([_p_value(before, after) for _, before, after in both])
    rows = [_row(*row, p, threshold) for row, p in zip(both, adjusted, strict=True)]
    return sorted(rows, key=lambda row: -abs(row.ratio - 1))


def _row(name: str, old: Mapping[str, Any], new: Mapping[str, Any], p: float, threshold: float) -> Row:
    unit = next(unit for key, unit in UNITS.items() if key in new)
    was, now = old[f"median_{unit}"], new[f"median_{unit}"]
    ratio = now / was
    far, sure = abs(ratio - 1) > threshold, p < SIGNIFICANT
    notes = [f"{key} {old[key]} -> {new[key]}" for key in ("launch", "cache") if old.get(key) != new.get(key)]
    if far and not sure:
        notes.append("not significant, {} and {} samples".format(*map(len, _samples(old, new))))
    if sure and not far:
        notes.append("significant, below the threshold")
    verdict = ("slower" if ratio > 1 else "faster") if far and sure else "same"
    return Row(name, was, now, unit, ratio, p, verdict, "; ".join(notes))


def _samples(*found: Mapping[str, Any]) -> list[list[float]]:
    return [each[key] for each in found for key in UNITS if key in each]


def _p_value(old: Mapping[str, Any], new: Mapping[str, Any]) -> float:
    """Of the samples being of one distribution."""
    try:
        from scipy.stats import mannwhitneyu
    except ImportError as error:
        raise ImportError("comparing results needs scipy: pip install 'zonos2-triton[report]'") from error
    before, after = _samples(old, new)
    if {*before, *after} == {before[0]}:
        return 1.0
    return float(mannwhitneyu(before, after, alternative="two-sided").pvalue)


def holm(values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number: the chance that any of those below a level is a false alarm is that level."""
    adjusted, largest = [0.0] * len(values), 0.0
    for rank, index in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        largest = max(largest, min((len(values) - rank) * values[index], 1.0))
        adjusted[index] = largest
    return adjusted
