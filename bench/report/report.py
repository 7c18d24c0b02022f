"""One page of what was measured: `zonos2-triton report RESULTS... -o report.html`.

The page stands alone: no script, no font, no picture from elsewhere. Of several results of one GPU the newest is
shown, and the others compared with it; GPUs have a chapter each. The same files make the same bytes.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from zonos2_triton._settings import local_path
from zonos2_triton.bench.report.compare import Input, compare
from zonos2_triton.bench.report.sections import comparison, sections
from zonos2_triton.bench.suite import results
from zonos2_triton.bench.suite.results import Result
from zonos2_triton.model.files import write_whole

TEMPLATE = Path(__file__).parent / "report.html.j2"


def html(found: Sequence[tuple[str, Result]]) -> str:
    """HTML of results, each with its file's name. ImportError: jinja2, matplotlib or scipy is not installed."""
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as error:
        raise ImportError("a report needs jinja2: pip install jinja2") from error
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    gpus = dict.fromkeys(result["environment"]["gpu"] for _, result in found)
    runs = [_run([named for named in found if named[1]["environment"]["gpu"] == gpu]) for gpu in gpus]
    return template.render(runs=runs, names=[name for name, _ in found]) + "\n"


def _run(mine: Sequence[tuple[str, Result]]) -> dict[str, Any]:
    """A chapter of the page: the results of one GPU."""
    *older, (name, newest) = sorted(mine, key=lambda named: (results.moment(named[1]), named[0]))
    told, made = newest["environment"], sections(newest)
    for old, before in reversed(older) if not told["smoke"] else ():
        made.append(comparison(compare(Input(old, "results", before), Input(name, "results", newest))))
    title = f"{told['gpu']}, commit {told['commit']}, {told['date'][:10]}"
    return {"title": title, "smoke": told["smoke"], "sections": made}


def command(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    """Add the options of the command to `parser`; what comes back runs it and returns its exit status."""
    parser.description = "One self-contained HTML page of result files of `make gpu`."
    files = "JSON files, as in bench/results/"
    parser.add_argument("results", nargs="+", type=local_path, metavar="RESULTS", help=files)
    out = "default: %(default)s; replaced once the page is whole"
    parser.add_argument("-o", "--out", type=local_path, default=Path("report.html"), metavar="FILE", help=out)
    parser.add_argument("--json", action="store_true", help="print the page's path as JSON")
    return _command


def _command(options: argparse.Namespace) -> int:
    found = []
    for path in options.results:
        if path.resolve() == options.out.resolve():
            raise ValueError(f"--out must not be one of the result files, got {options.out}")
        results.check(result := results.load(path), str(path))
        if not any(results.items(result, stage) for stage in result["stages"]):
            raise ValueError(f"{path} holds no result to report: nothing was run")
        found.append((path.name, result))
    write_whole(options.out, html(found))
    shown = {"page": str(options.out), "results": [name for name, _ in found]}
    print(json.dumps(shown, indent=1) if options.json else options.out)
    return 0
