"""One page of what was measured: `zonos2-triton report RESULTS... -o report.html`.

The page stands alone: no script, no font, no picture from elsewhere. Of several results of one card the newest is
shown, and the others compared with it; cards have a chapter each. The same files make the same bytes.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from zonos2_triton.bench.report.compare import Input, compare
from zonos2_triton.bench.report.sections import Section, comparison, sections
from zonos2_triton.bench.suite import results
from zonos2_triton.bench.suite.results import Result
from zonos2_triton.model.audio import whole_file

TEMPLATE = Path(__file__).parent / "report.html.j2"


class Run(NamedTuple):
    """A chapter of the page."""

    title: str
    rehearsal: bool
    sections: Sequence[Section]


def html(found: Sequence[tuple[str, Result]]) -> str:
    """HTML of results, each with its file's name. ImportError: jinja2, matplotlib or scipy is not installed."""
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as error:
        raise ImportError("a report needs jinja2: pip install 'zonos2-triton[report]'") from error
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    cards = dict.fromkeys(result["environment"]["card"] for _, result in found)
    runs = [_run([named for named in found if named[1]["environment"]["card"] == card]) for card in cards]
    return template.render(runs=runs, names=[name for name, _ in found]) + "\n"


def _run(mine: Sequence[tuple[str, Result]]) -> Run:
    """mine: of one card."""
    *older, (name, newest) = sorted(mine, key=lambda named: (results.moment(named[1]), named[0]))
    told = newest["environment"]
    made = sections(newest)
    for old, before in reversed(older):
        if not told["rehearsal"]:
            compared = compare(Input(old, "results", before), Input(name, "results", newest))
            made.append(comparison(compared))
    return Run(f"{told['card']}, commit {told['commit']}, {told['date'][:10]}", told["rehearsal"], made)


def command(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    """Add the options of the command to `parser`; what comes back runs it and returns its exit status."""
    parser.description = "One self-contained HTML page of result files of `make gpu`."
    parser.add_argument("results", nargs="+", type=Path, metavar="RESULTS", help="JSON files, as in bench/results/")
    out = "default: %(default)s; replaced once the page is whole"
    parser.add_argument("-o", "--out", type=Path, default=Path("report.html"), metavar="FILE", help=out)
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
