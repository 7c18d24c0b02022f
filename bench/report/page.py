"""What a page of the report is made of: sections, tables, plots; how numbers look, and what has none."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from zonos2_triton.bench.suite.results import Result, items, left_out

NONE = "–"


@dataclass(frozen=True)
class Table:
    """The first column heads its rows."""

    caption: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]

    @classmethod
    def of(cls, caption: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> "Table":
        """Without columns in which nothing stands."""
        kept = [n for n in range(len(heads)) if n == 0 or any(row[n] not in (NONE, "") for row in rows)]
        return cls(caption, [heads[n] for n in kept], [[row[n] for n in kept] for row in rows])

    @property
    def numeric(self) -> list[bool]:
        """By column: numbers, which are set flush right."""
        columns = list(zip(*self.rows, strict=True))
        return [all(re.match(r"[-+−×]?\d|–|$", cell) for cell in column) for column in columns]


class Plot(NamedTuple):
    """A drawing, and what it shows in figures."""

    svg: str
    caption: str
    table: Table


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    name: str
    title: str
    text: Sequence[str] = ()
    tables: Sequence[Table] = ()
    plots: Sequence[Plot] = ()
    problems: Sequence[str] = ()  # what has no figure, and why
    measured: bool = True
    folded: Sequence[Table] = ()  # for whoever looks for them
    verdict: str = ""


def number(value: float | None) -> str:
    """Three digits or more."""
    if value is None:
        return NONE
    size = abs(value)
    return f"{value:,.{0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3}f}"


def share(value: float | None) -> str:
    return NONE if value is None else f"{value:.0f} %"


def spread(found: Mapping[str, Any], unit: str = "us", per: float = 1.0) -> str:
    """20 to 80 %."""
    return f"{number(found[f'low_{unit}'] / per)} to {number(found[f'high_{unit}'] / per)}"


def factor(found: Mapping[str, Any] | None, per: float = 1.0) -> str:
    """Time and speed-up of another implementation."""
    if not found or "median_us" not in found:
        return NONE
    times = "" if found["speed_up"] is None else f" (×{found['speed_up']:.2f})"  # ours was not timed
    return f"{number(found['median_us'] / per)}{times}"


def milliseconds(microseconds: float | None) -> str:
    return number(None if microseconds is None else microseconds / 1e3)


def streams_of(count: int) -> str:
    return "1 stream" if count == 1 else f"{count} streams"


def problems(result: Result, part: str) -> Iterator[str]:
    """What has no figure, by reason."""
    for name, each in items(result, part).items():
        if each["status"] != "passed":
            yield f"{name}: {each['status']}: {each.get('error') or each.get('reason')}"
    yield from grouped((f"not run: {why}", name) for name, why in left_out(result, part).items())


def not_timed(found: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> Iterator[str]:
    """Implementations beside ours that have no time."""
    beside = ((name, other, each.get(other, {})) for name, each in found.items() for other in names)
    yield from grouped((each["not_timed"], f"{name}, {other}") for name, other, each in beside if "not_timed" in each)


def grouped(pairs: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Things by what is said of them."""
    groups: dict[str, list[str]] = {}
    for said, thing in pairs:
        groups.setdefault(said, []).append(thing)
    for said, things in groups.items():
        yield f"{said} ({len(things)}): {'; '.join(things)}"
