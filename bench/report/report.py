"""One page of what was measured: `zonos2-triton report RESULTS... -o report.html`.

The page stands alone: no script, no font, no picture from elsewhere. Of several results of one card the newest is
shown, and the others compared with it; cards have a chapter each. The same files make the same bytes.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from zonos2_triton.bench.report import plots
from zonos2_triton.bench.report.compare import Input, compare
from zonos2_triton.bench.report.page import Section
from zonos2_triton.bench.report.sections import comparison, sections
from zonos2_triton.bench.suite import results
from zonos2_triton.bench.suite.results import Result
from zonos2_triton.model.audio import whole_file

TEMPLATE = "report.html.j2"
NEEDS = "a report needs {}: pip install 'zonos2-triton[report]'"


class Run(NamedTuple):
    """A chapter of the page."""

    title: str
    rehearsal: bool
    sections: Sequence[Section]


def html(found: Sequence[tuple[str, Result]]) -> str:
    """HTML of results, each with its file's name. ImportError: jinja2, matplotlib or scipy is not installed."""
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ImportError as error:
        raise ImportError(NEEDS.format("jinja2")) from error
    plots.available()
    by_card: dict[str, list[tuple[str, Result]]] = {}
    for name, result in found:
        by_card.setdefault(result["environment"]["card"], []).append((name, result))
    runs = [_run(sorted(mine, key=_when), f"run{n}") for n, mine in enumerate(by_card.values(), 1)]
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        keep_trailing_newline=True,
    )  # fmt: skip
    names, title = [name for name, _ in found], f"zonos2-triton on {' and '.join(by_card)}"
    return environment.get_template(TEMPLATE).render(title=title, runs=runs, names=names)


def _when(named: tuple[str, Result]) -> tuple[object, str]:
    return results.moment(named[1]), named[0]


def _run(mine: Sequence[tuple[str, Result]], prefix: str) -> Run:
    """mine: of one card, newest last."""
    name, newest = mine[-1]
    told = newest["environment"]
    made = sections(newest, prefix)
    if not told["rehearsal"]:
        for n, (older, before) in enumerate(reversed(mine[:-1]), 1):
            compared = compare(Input(older, "results", before), Input(name, "results", newest))
            made.append(comparison(compared, f"{prefix}-comparison-{n}"))
    title = f"{told['card']}, commit {told['commit']}, {told['date'][:10]}"
    return Run(title, told["rehearsal"], made)


def command(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    """Add the options of the command to `parser`; what comes back runs it and returns its exit status."""
    parser.description = "One self-contained HTML page of result files of `make gpu`."
    parser.add_argument("results", nargs="+", type=Path, metavar="RESULTS", help="JSON files, as in bench/results/")
    parser.add_argument("-o", "--out", type=Path, default=Path("report.html"), metavar="FILE",
                        help="default: %(default)s; replaced once the page is whole")  # fmt: skip
    return _command


def _command(options: argparse.Namespace) -> int:
    places = [path.resolve() for path in options.results]
    for path, place in zip(options.results, places, strict=True):
        if places.count(place) > 1:
            raise ValueError(f"each result file is named once, got {path} twice")
        if place == options.out.resolve():
            raise ValueError(f"--out must not be one of the result files, got {options.out}")
    found = [(path.name, results.load(path)) for path in options.results]
    for path, (_, result) in zip(options.results, found, strict=True):
        results.check(result, str(path))
    with whole_file(options.out) as part:
        part.write_text(html(found), encoding="utf-8")
    print(options.out)
    return 0
