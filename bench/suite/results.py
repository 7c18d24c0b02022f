"""Result files of `make gpu`: reading them, judging their form, finding the newest.

{"schema": 4, "environment": {...}, "stages": {stage: {"items": {name: result}, "not_run": {name: why}}}}.
`result.schema.json` holds the whole form. A smoke run writes a file like any other; it says nothing of speed.
"""

import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from zonos2_triton._settings import local_path
from zonos2_triton.bench.specs.roofline import Roofline

RESULTS = Path(__file__).resolve().parents[1] / "results"
SCHEMA_FILE = Path(__file__).parent / "result.schema.json"
SCHEMA = 4
# Without these a result cannot be told from another.
KNOWN_BY = ("gpu", "commit", "date", "torch", "triton", "smoke")

Result = dict[str, Any]
"""The content of a file."""


def load(path: str | Path) -> Result:
    """ValueError: no result file of this schema, and what it is instead. OSError: it cannot be read."""
    try:
        return parse(local_path(path).read_bytes(), str(path))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path} is not a file; `make gpu` and `bench --out DIR` write results") from error


def parse(text: str | bytes, name: str) -> Result:
    """As `load`, of a file's text; name: how errors call it."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:  # also of bytes that are no UTF-8
        raise ValueError(f"{name} is no JSON: {error}") from error
    if not isinstance(content, dict) or "schema" not in content:
        raise ValueError(f"{name} is no result file: it has no key 'schema'")
    if content["schema"] != SCHEMA:
        raise ValueError(f"{name} has schema {content['schema']!r}; this version reads {SCHEMA}")
    lacking = [key for key in ("environment", "stages") if not isinstance(content.get(key), dict)]
    if not lacking:
        stages = content["stages"].items()
        lacking = [f"environment/{key}" for key in KNOWN_BY if key not in content["environment"]] or [
            f"stages/{stage}/{key}"
            for stage, found in stages
            for key in ("items", "not_run")
            if not (isinstance(found, dict) and isinstance(found.get(key), dict))
        ]
    if lacking:
        raise ValueError(f"{name} lacks {', '.join(lacking)}")
    return content


def check(content: Mapping[str, Any], name: str = "the result") -> None:
    """Hold it to `result.schema.json`. ValueError: a place that differs, and how. ImportError: no jsonschema."""
    try:
        from jsonschema import Draft202012Validator
        from jsonschema.exceptions import relevance
    except ImportError as error:
        raise ImportError("checking a result file needs jsonschema: pip install jsonschema") from error
    validator = Draft202012Validator(json.loads(SCHEMA_FILE.read_text(encoding="utf-8")))
    errors = list(validator.iter_errors(content))
    if errors:
        # What is unevaluated is often so because of another error, which says more.
        first = max(errors, key=lambda e: (e.validator != "unevaluatedProperties", relevance(e)))
        place = "/".join(map(str, first.absolute_path)) or "the top"
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        raise ValueError(f"{name}: at {place}: {first.message[:300]}{more}")


def committed(folder: Path = RESULTS) -> list[Result]:
    """Every result in `folder` but smoke runs, newest first. ValueError: one of the files is broken."""
    found = [load(path) for path in sorted(folder.glob("*.json")) if path.name[0] != "."]
    return sorted((result for result in found if not result["environment"]["smoke"]), key=moment, reverse=True)


def newest(gpu: str | None = None, folder: Path = RESULTS) -> Result | None:
    """The newest result of the GPU of this name, as torch has it (None: of any GPU). None: there is no such result."""
    return next((r for r in committed(folder) if gpu in (None, r["environment"]["gpu"])), None)


def moment(result: Result) -> datetime:
    """When its run began."""
    return datetime.fromisoformat(result["environment"]["date"])


def items(result: Result, stage: str) -> dict[str, dict[str, Any]]:
    """The result of each item of a stage; empty if the stage was not run."""
    return result["stages"].get(stage, {}).get("items", {})


def left_out(result: Result, stage: str) -> dict[str, str]:
    """Why items of a stage have no result."""
    return result["stages"].get(stage, {}).get("not_run", {})


def passed(result: Result, stage: str, name: str) -> dict[str, Any] | None:
    """The measurement of an item; None: it was not run, failed, or was withheld."""
    found = items(result, stage).get(name, {})
    return found if found.get("status") == "passed" else None


def all_passed(result: Result, stage: str) -> dict[str, dict[str, Any]]:
    """The measurements of a stage, by item."""
    return {name: found for name in items(result, stage) if (found := passed(result, stage, name)) is not None}


def baselines(result: Result, name: str) -> dict[str, dict[str, Any]]:
    """Times of other implementations for a timing's kernel and workload, or {"not_timed": why}, by implementation."""
    found = {key: {"not_timed": why} for key, why in left_out(result, "baselines").items()}
    found |= all_passed(result, "baselines")
    return {key.removeprefix(f"{name}/"): each for key, each in found.items() if key.startswith(f"{name}/")}


def roofline(result: Result) -> Roofline:
    """As measured on the GPU in that run."""
    copy, product = (passed(result, "calibration", name) or {} for name in ("copy", "matmul"))
    return Roofline(copy.get("gb_per_s"), product.get("tflop_per_s"))
