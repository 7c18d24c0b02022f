"""What changed from one result file to another, or from one baseline of the compile gate to another.

A measured item is slower, or faster, where its samples say so and its median moved by more than a threshold:

    two-sided Mann-Whitney U test on the raw samples, p adjusted by Holm over all items of the comparison, p < 0.01
    |median after / median before - 1| > threshold

What this can tell: that the two runs differ beyond the scatter inside of each. What it cannot: why. Samples of one run
share its clocks, its temperature, its addresses, so they are not independent, and two runs of the same code may differ
significantly by a percent or so; that is what the threshold is for. Where it matters, run both again, in turns. With
five samples a side no p survives the adjustment for a hundred items; a row that moved and is not significant says so.

The interval of the ratio is made of order statistics: each median lies in its own at 97.5 %, so their quotient in this
one at 95 % or more, under the same assumption.
"""

import json
import subprocess
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from zonos2_triton.bench.compiler.gate import Change, differences
from zonos2_triton.bench.suite import results
from zonos2_triton.bench.suite.results import Result

SIGNIFICANT = 0.01
THRESHOLD = 0.02
CONFIDENCE = 0.975  # of each median's interval
# What else may have made the difference; clocks that were read before the run may be those of a card at rest.
CONDITIONS = ("driver", "torch", "cuda", "triton", "clock_mhz", "memory_clock_mhz", "most_mhz", "most_memory_mhz",
              "power_limit_w", "seed")  # fmt: skip
BASELINE_FIELDS = {"launches", "registers", "spills", "shared", "instructions", "matrix", "wide", "narrow"}


@dataclass(frozen=True)
class Row:
    """One measured item."""

    name: str  # part/item
    before: float  # medians, in `unit`
    after: float
    unit: str  # us, ms
    ratio: float  # after / before
    low: float  # of the ratio
    high: float
    p: float  # adjusted
    verdict: str  # faster, slower, same
    note: str = ""


@dataclass(frozen=True)
class Comparison:
    """Before and after. worse: something is slower, fails that did not, or is worse in what the compiler made."""

    kind: str  # results, baselines
    before: str
    after: str
    threshold: float
    warnings: tuple[str, ...] = ()
    rows: tuple[Row, ...] = ()
    failing: tuple[str, ...] = ()  # or withheld, and were not
    recovered: tuple[str, ...] = ()
    vanished: tuple[str, ...] = ()  # had a result, have none
    changes: tuple[Change, ...] = ()  # between baselines

    @property
    def worse(self) -> bool:
        slower = any(row.verdict == "slower" and _judged(row.name) for row in self.rows)
        return slower or bool(self.failing) or any(change.worse for change in self.changes)

    def count(self, verdict: str) -> int:
        return sum(row.verdict == verdict for row in self.rows)

    def as_json(self) -> dict[str, Any]:
        """For json.dumps."""
        return asdict(self) | {"worse": self.worse}

    def as_text(self) -> str:
        """For a terminal: what moved first, then the counts."""
        lines = [f"before: {self.before}", f"after:  {self.after}"]
        lines += [f"warning: {warning}" for warning in self.warnings]
        for what, names in (("FAILING", self.failing), ("recovered", self.recovered), ("vanished", self.vanished)):
            lines += [f"{what} {name}" for name in names]
        lines += [f"{'worse' if change.worse else 'changed'}: {change.key}: {change.text}" for change in self.changes]
        if self.kind == "baselines":
            lines.append(f"{len(self.changes)} differences, {sum(change.worse for change in self.changes)} worse")
        else:
            lines += _aligned(sorted(self.rows, key=lambda row: -abs(row.ratio - 1))) if self.rows else []
            counts = ", ".join(f"{self.count(verdict)} {verdict}" for verdict in ("slower", "faster", "same"))
            apart = f"apart: more than {100 * self.threshold:g} %, p < {SIGNIFICANT}"
            lines.append(f"{len(self.rows)} measured in both: {counts} ({apart}); {len(self.failing)} newly failing")
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
    if before.kind == "baselines":
        changes = differences(after.content, before.content)
        return Comparison(before.kind, before.name, after.name, threshold, changes=tuple(changes))
    warnings = [*_obstacles((before, after), force), *_conditions(before.content, after.content)]
    rows = tuple(_rows(before.content, after.content, threshold))
    for row in rows:
        if row.verdict != "same" and not _judged(row.name):
            warnings.append(f"the card itself is {row.verdict}: {row.name}, {_percent(row.ratio)}")
    old, new = _statuses(before.content), _statuses(after.content)
    passes = [name for name, status in new.items() if status == "passed"]
    was_bad = {name for name, status in old.items() if status != "passed"}
    failing = [name for name in new if name not in passes and name not in was_bad]
    vanished = [name for name in old if name not in new]
    return Comparison(
        before.kind, before.name, after.name, threshold, tuple(warnings), rows,
        failing=tuple(f"{name}: {_why(after.content, name)}" for name in failing),
        recovered=tuple(name for name in passes if name in was_bad),
        vanished=tuple(f"{name}: {_why(after.content, name)}" for name in vanished),
    )  # fmt: skip


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


def _obstacles(inputs: Sequence[Input], force: bool) -> Iterator[str]:
    """What has to be forced."""
    found = []
    cards = [result.content["environment"]["card"] for result in inputs]
    if cards[0] != cards[1]:
        found.append(f"different cards: {cards[0]}, {cards[1]}")
    for result in inputs:
        if result.content["environment"]["rehearsal"]:
            found.append(f"{result.name} is a rehearsal on a CPU, which says nothing of speed")
    if found and not force:
        raise ValueError(f"{'; '.join(found)}. Compare them all the same with --force")
    yield from found


def _conditions(before: Result, after: Result) -> Iterator[str]:
    for name in CONDITIONS:
        old, new = (content["environment"].get(name) for content in (before, after))
        if old != new:
            yield f"{name}: {old} before, {new} after"


def _judged(name: str) -> bool:
    """The calibration is no work of ours."""
    return not name.startswith("calibration/")


def _rows(before: Result, after: Result, threshold: float) -> Iterator[Row]:
    old, new = _measured(before), _measured(after)
    names = [name for name in new if name in old]
    values = [_p_value(old[name], new[name]) for name in names]
    for name, p in zip(names, holm(values), strict=True):
        yield _row(name, old[name], new[name], p, threshold)


def _measured(content: Result) -> dict[str, dict[str, Any]]:
    """What passed and has samples, by part/item."""
    return {
        f"{part}/{name}": found
        for part in content["parts"]
        for name, found in results.items(content, part).items()
        if found["status"] == "passed" and ("samples_us" in found or "samples_ms" in found)
    }


def _unit(found: Mapping[str, Any]) -> str:
    return "us" if "samples_us" in found else "ms"


def _row(name: str, old: Mapping[str, Any], new: Mapping[str, Any], p: float, threshold: float) -> Row:
    unit = _unit(new)
    was, now = old[f"median_{unit}"], new[f"median_{unit}"]
    ratio = now / was
    (low_before, high_before), (low_after, high_after) = (median_interval(f[f"samples_{unit}"]) for f in (old, new))
    far, sure = abs(ratio - 1) > threshold, p < SIGNIFICANT
    notes = [f"{key} {old[key]} -> {new[key]}" for key in ("launch", "cache") if old.get(key) != new.get(key)]
    if far and not sure:
        counts = " and ".join(str(len(found[f"samples_{unit}"])) for found in (old, new))
        notes.append(f"not significant, {counts} samples")
    if sure and not far:
        notes.append("significant, below the threshold")
    verdict = ("slower" if ratio > 1 else "faster") if far and sure else "same"
    low, high = low_after / high_before, high_after / low_before
    return Row(name, was, now, unit, ratio, low, high, p, verdict, "; ".join(notes))


def _p_value(old: Mapping[str, Any], new: Mapping[str, Any]) -> float:
    """Of the samples being of one distribution."""
    samples = [found[f"samples_{_unit(found)}"] for found in (old, new)]
    if len({*samples[0], *samples[1]}) == 1:
        return 1.0
    return float(_scipy().mannwhitneyu(*samples, alternative="two-sided").pvalue)


def holm(values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number: the chance that any of those below a level is a false alarm is that level."""
    adjusted, largest = [0.0] * len(values), 0.0
    for rank, index in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        largest = max(largest, min((len(values) - rank) * values[index], 1.0))
        adjusted[index] = largest
    return adjusted


def median_interval(samples: Collection[float]) -> tuple[float, float]:
    """Order statistics that enclose the median at CONFIDENCE or more; all of the samples where there are too few."""
    ordered, n = sorted(samples), len(samples)
    outside = _outside(n)
    return ordered[max(outside - 1, 0)], ordered[min(n - outside, n - 1)]


@cache
def _outside(n: int) -> int:
    """So many of n at either end lie beyond the interval, less one."""
    return int(_scipy().binom.ppf((1 - CONFIDENCE) / 2, n, 0.5))


def _scipy() -> Any:
    try:
        import scipy.stats
    except ImportError as error:
        raise ImportError("comparing results needs scipy: pip install 'zonos2-triton[report]'") from error
    return scipy.stats


def _statuses(content: Result) -> dict[str, str]:
    return {
        f"{part}/{name}": found["status"]
        for part in content["parts"]
        for name, found in results.items(content, part).items()
    }


def _why(content: Result, name: str) -> str:
    """Nothing is known of an item that the run does not mention."""
    part, item = name.split("/", 1)
    found = results.items(content, part).get(item, {})
    return found.get("error") or found.get("reason") or results.left_out(content, part).get(item, "no longer there")


def _aligned(rows: Sequence[Row]) -> list[str]:
    lines = [("verdict", "item", "before", "after", "change", "95 %", "p", "")]
    for row in rows:
        interval = f"{_percent(row.low)} to {_percent(row.high)}"
        lines.append((row.verdict, row.name, f"{row.before:.4g} {row.unit}", f"{row.after:.4g} {row.unit}",
                      _percent(row.ratio), interval, f"{row.p:.2g}", row.note))  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]


def _percent(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.1f} %"
