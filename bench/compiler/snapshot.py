"""Snapshots of the compile gate, how rows differ from them, and rows as a table. Rows are those of `expected.Row`."""

import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from zonos2_triton.bench.compiler.estimate import SLACK
from zonos2_triton.model.files import write_whole
from zonos2_triton.model.tables import text_table


@dataclass(frozen=True)
class Change:
    """How a row differs from the snapshot."""

    key: str
    text: str
    worse: bool


def measured(rows: Iterable[Any]) -> dict[str, dict[str, float]]:
    """The content of a snapshot: the rows that compiled, by key."""
    found = {}
    for row in rows:
        if stats := row.stats:
            kept = {name: getattr(stats, name) for name in ("registers", "spills", "shared", "instructions")}
            more = {"matrix": sum(stats.matrix.values()), "wide": stats.wide, "narrow": stats.narrow}
            counted = asdict(row.counted) if row.counted else {}
            found[row.key] = {"launches": row.launches, **kept, **more, **counted}
    return found


def compare(rows: Iterable[Any], snapshot: Mapping[str, Mapping[str, float]]) -> list[Change]:
    """How rows differ from their snapshot. Kernels, dtypes and targets that the rows leave out are not missed."""
    now = measured(rows)
    covered = {_subject(key) for key in now}
    return differences(now, {key: values for key, values in snapshot.items() if _subject(key) in covered})


def differences(now: Mapping[str, Mapping[str, float]], snapshot: Mapping[str, Mapping[str, float]]) -> list[Change]:
    """How one snapshot differs from another, all of it."""
    changes = [Change(key, "new", False) for key in now if key not in snapshot]
    changes += [Change(key, "gone", False) for key in snapshot if key not in now]
    for key, values in now.items():
        for name, new in values.items():
            old = snapshot[key].get(name, new) if key in snapshot else new
            if new != old and name != "launches":
                changes.append(Change(key, f"{name} {old} -> {new}", _is_worse(name, old, new)))
    before, after = _launches(snapshot), _launches(now)
    for place in sorted(before.keys() & after.keys()):
        if before[place] != after[place]:
            changes.append(Change(place, f"launches {before[place]} -> {after[place]}", after[place] > before[place]))
    return changes


def _is_worse(name: str, old: float, new: float) -> bool:
    if name == "registers":
        return new > old * 1.1 and new > old + 8
    if name == "instructions":
        return new > old * 1.15
    if name in ("matrix", "wide"):
        return new < old
    if name in ("under_way", "early_loaded"):
        return new < old * 0.9
    if name in SLACK:
        factor, slack = SLACK[name]
        return new > old * factor + slack
    return name == "spills" and new > old


def _subject(key: str) -> tuple[str, str, str]:
    """Kernel, dtype and target: what a run covers whole or not at all."""
    kernel, _, config, target = key.split("/")
    return kernel, config.split("#")[0].rsplit("-", 1)[-1], target


def _launches(rows: Mapping[str, Mapping[str, float]]) -> Counter[str]:
    """The launches of all functions of a workload."""
    total = Counter[str]()
    for key, values in rows.items():
        kernel, _, config, target = key.split("/")
        total[f"{kernel}/{config.split('#')[0]}/{target}"] += int(values["launches"])
    return total


def read_snapshot(path: Path) -> dict[str, dict[str, float]] | None:
    """None: there is none for this version of Triton."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def write_snapshot(path: Path, rows: Sequence[Any], known: Collection[str]) -> None:
    """Rows replace those of the same kernel, dtype and target; rows of kernels that are no longer known go."""
    done = {_subject(row.key) for row in rows}
    kept = read_snapshot(path) or {}
    kept = {key: kept[key] for key in kept if _subject(key)[0] in known and _subject(key) not in done}
    kept |= measured(rows)
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(kept[key])}" for key in sorted(kept))
    path.parent.mkdir(exist_ok=True)
    write_whole(path, f"{{\n{lines}\n}}\n")


def table(rows: Iterable[Any]) -> str:
    """One line per binary; workloads that share it share the line."""
    groups: dict[str, list[Any]] = {}
    for row in rows:
        groups.setdefault(repr((row.kernel, row.function, row.target, row.stats, row.failures, row.step)), []).append(
            row
        )
    heads = "kernel,function,workload,target,regs,shared,occ,instr,matrix,16 B,us,limit,conflict,KB,exposed,verdict"
    lines = [tuple(heads.split(","))]
    for group in groups.values():
        row, stats = group[0], group[0].stats
        more = f" +{len(group) - 1}" if len(group) > 1 else ""
        numbers, counts = ("",) * 6, ("",) * 5
        if stats:
            loads = f"{stats.wide}/{stats.wide + stats.narrow}"
            numbers = (str(stats.registers), str(stats.shared), f"{stats.occupancy:.2f}", str(stats.instructions),
                       " ".join(f"{family} {n}" for family, n in stats.matrix.items()), loads)  # fmt: skip
        if (counted := row.counted) and row.step:
            us, ways = f"{row.step.estimate.us:.1f}", f"{counted.conflict:g}"
            counts = us, row.step.estimate.limit, ways, f"{counted.under_way / 1e3:.0f}", str(counted.exposed)
        verdict = "FAIL: " + "; ".join(row.failures) if row.failures else "pass"
        if row.over:
            verdict += "; over the bound: " + "; ".join(row.over)
        lines.append((row.kernel, row.function, row.config + more, row.target, *numbers, *counts, verdict))
    return text_table(lines, keys=4)
