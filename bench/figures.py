"""How figures look: numbers, and tables of them for a terminal."""

import re
from collections.abc import Iterable, Sequence

NONE = "–"


def number(value: float | None) -> str:
    """Three digits or more."""
    if value is None:
        return NONE
    size = abs(value)
    return f"{value:,.{0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3}f}"


def engineering(value: float, unit: str) -> str:
    for factor, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"


def percent(ratio: float) -> str:
    """How far a ratio is from 1."""
    return f"{100 * (ratio - 1):+.1f} %"


def numeric(column: Iterable[str]) -> bool:
    """Whether all cells are numbers or empty, which are set flush right."""
    return all(re.match(r"[-+−×]?\d|–|$", cell) for cell in column)


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """rows: the heads first. Columns are as wide as they must be, those of numbers flush right, but for the first."""
    columns = []
    for index, column in enumerate(zip(*rows, strict=True)):
        width = max(map(len, column))
        right = index > 0 and numeric(column[1:])
        columns.append([cell.rjust(width) if right else cell.ljust(width) for cell in column])
    return "\n".join("  ".join(cells).rstrip() for cells in zip(*columns, strict=True))
