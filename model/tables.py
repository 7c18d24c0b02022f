"""Tables for a terminal, no wider than it is. Nothing is cut."""

import os
import re
import shutil
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from itertools import accumulate, zip_longest
from textwrap import wrap

BETWEEN = "  "  # columns
NARROW, NAME = 12, 24  # least width of a text column; longest name that is not wrapped
LEAST = 5  # least width of a column without room for others


def text_table(
    rows: Sequence[Sequence[str]], heads: bool = True, keys: int = 1, indent: int = 0, least: Sequence[int] = ()
) -> str:
    """A table as text. Under heads, columns of numbers are flush right, except the first.

    heads: the first of rows holds the heads. keys: number of first columns that name a row. indent: spaces before each
    line. least: least widths of the first columns. On a narrow terminal cells are wrapped; columns that still do not
    fit follow below, with the keys again.
    """
    columns = [*zip(*rows, strict=True)]
    right = [heads and i > 0 and numeric(column[1:]) for i, column in enumerate(columns)]
    widths = [max(map(_width, column)) for column in columns]
    widths = [max(pair) for pair in zip_longest(widths, least[: len(widths)], fillvalue=0)]
    if limit := terminal_width():
        more = len(columns) > keys + 1
        floors = [_narrowest(column, r, more) for column, r in zip(columns, right, strict=True)]
        widths = _fitted(widths, floors, limit - indent)
        ends = accumulate(widths, lambda end, width: end + len(BETWEEN) + width)
        if more and (count := max(sum(end <= limit - indent for end in ends), keys + 1)) < len(columns):
            parts = [row[:count] for row in rows], [(*row[:keys], *row[count:]) for row in rows]
            return "\n\n".join(text_table(part, heads, keys, indent, least[:keys]) for part in parts)
        floors = [width if r else LEAST for width, r in zip(widths, right, strict=True)]
        widths = _fitted(widths, floors, limit - indent)
    return "\n".join(_line(row, widths, right, indent) for row in rows)


def text_row(cells: Sequence[str], widths: Sequence[int]) -> str:
    """One row of a table that is printed row by row: columns of these widths, and a last one of any width."""
    limit = terminal_width()
    last = [limit or _width(cells[-1])]
    if limit:
        *widths, last[0] = _fitted([*widths, *last], [min(width, NARROW) for width in [*widths, *last]], limit)
    return _line(cells, [*widths, *last], [False] * len(cells), 0)


def fitted(text: str) -> str:
    """Text with long lines wrapped, two spaces further in."""
    limit = terminal_width()
    lines = []
    for line in text.split("\n"):
        indent = " " * (len(line) - len(line.lstrip()) + 2)
        fits = not limit or _width(line) <= limit
        lines += [line] if fits else wrap(line, limit, subsequent_indent=indent, break_on_hyphens=False)
    return "\n".join(lines)


def terminal_width() -> int:
    """Characters of a line; 0: any number, because the output is no terminal and COLUMNS is not set."""
    try:
        seen = "COLUMNS" in os.environ or sys.stdout.isatty()
    except (AttributeError, ValueError):  # none, or closed
        return 0
    return shutil.get_terminal_size((0, 0)).columns if seen else 0


def numeric(column: Iterable[str]) -> bool:
    """Whether all cells are numbers or empty."""
    return all(re.match(r"[-+−×]?\d|–|$", cell) for cell in column)


def _narrowest(column: Sequence[str], rigid: bool, whole_words: bool) -> int:
    """The least width of a column: of its numbers and head words, or of its longest name."""
    longest = max((_width(word) for cell in column for word in cell.split()), default=0)
    if rigid:
        return max(map(_width, [*column[0].split(), *column[1:]]), default=0)
    return longest if whole_words and longest <= NAME else NARROW


def _fitted(widths: Sequence[int], least: Sequence[int], limit: int) -> list[int]:
    """Narrow the widest columns until all fit or have their least width."""
    fitted = [*widths]
    while sum(fitted) + len(BETWEEN) * (len(fitted) - 1) > limit:
        able = [i for i, width in enumerate(fitted) if width > least[i]]
        if not able:
            break
        fitted[max(able, key=fitted.__getitem__)] -= 1
    return fitted


def _line(cells: Sequence[str], widths: Sequence[int], right: Sequence[bool], indent: int) -> str:
    """A row in as many lines as its longest cell."""
    parts = [_wrapped(cell, width) for cell, width in zip(cells, widths, strict=True)]
    lines = []
    for beside in zip_longest(*parts, fillvalue=""):
        padded = [
            " " * (width - _width(part)) + part if r else part + " " * (width - _width(part))
            for part, width, r in zip(beside, widths, right, strict=True)
        ]
        lines.append((" " * indent + BETWEEN.join(padded)).rstrip())
    return "\n".join(lines)


def _wrapped(cell: str, width: int) -> list[str]:
    if _width(cell) <= width and "\n" not in cell:
        return [cell]
    return [part for line in cell.splitlines() for part in wrap(line, max(width, 1), break_on_hyphens=False) or [""]]


def _width(text: str) -> int:
    """Width on a terminal."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)
