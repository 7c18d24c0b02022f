"""The items of a run and their results, in a JSON file that grows item by item. An interrupted run loses one item."""

import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from itertools import chain, count
from pathlib import Path
from typing import Any

import torch

from zonos2_triton.bench.suite import results
from zonos2_triton.model.files import write_whole
from zonos2_triton.model.tables import fitted

# What PyTorch, a compiler or a library says of something that this machine lacks.
LACKED = re.compile(
    "no kernel image|no available kernel|only supports .*GPU|not supported .*(GPU|device)|C compiler", re.IGNORECASE
)
# What must be the same for a result to count as this run's.
IDENTITY = ("gpu", "commit", "sources", "torch", "triton")


class Withheld(Exception):
    """An item that must not be run, because of what came of another."""


class NotRun(Exception):
    """An item that could not be run, which says nothing of the code."""


def lacking(error: Exception) -> bool:
    """Whether an implementation failed because of what this machine lacks; any other error is a failure of it."""
    return isinstance(error, RuntimeError) and LACKED.search(str(error)) is not None


@dataclass(frozen=True)
class Item:
    """The least that has a result of its own."""

    stage: str
    name: str
    seconds: float  # not begun with less left
    run: Callable[[float], dict[str, Any]]  # takes the seconds left; returns what is to be kept
    essential: bool = False  # in the first minutes


class Budget:
    """Seconds from now on."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._end, self._clock = clock() + seconds, clock

    def left(self) -> float:
        return self._end - self._clock()


class Recorder:
    """{"schema", "environment", "stages": {stage: {"items": {name: {"status", ...}}, "not_run": {name: why}}}}

    Status of an item: passed, failed (with the error's text), withheld (with the reason).
    """

    SCHEMA = results.SCHEMA

    def __init__(self, path: Path, content: dict[str, Any]) -> None:
        self.path, self.content = path, content

    @classmethod
    def open(cls, folder: Path, environment: dict[str, Any], today: date | None = None) -> "Recorder":
        """The newest file of the same GPU, commit, sources and versions, to go on with; else a new one."""
        gpu, commit = (_word(str(environment[name])) for name in ("gpu", "commit"))
        same = [environment.get(name) for name in IDENTITY]
        for path in sorted(folder.glob(f"{gpu}-*-{commit}*.json"), reverse=True):
            try:
                content = json.loads(path.read_text(encoding="utf-8"))
                if content["schema"] == cls.SCHEMA and [content["environment"].get(n) for n in IDENTITY] == same:
                    return cls(path, content)
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                continue  # no result file; it keeps its name
        stem = f"{gpu}-{(today or date.today()).isoformat()}-{commit}"
        names = chain([stem], (f"{stem}-{number}" for number in count(2)))
        path = next(path for name in names if not (path := folder / f"{name}.json").exists())
        recorder = cls(path, {"schema": cls.SCHEMA, "environment": environment, "stages": {}})
        recorder.write()
        return recorder

    def items(self, stage: str) -> dict[str, dict[str, Any]]:
        """The results of a stage, by item."""
        return results.items(self.content, stage)

    def keep(self, stage: str, name: str, result: dict[str, Any]) -> None:
        mine = self._stage(stage)
        mine["items"][name] = result
        mine["not_run"].pop(name, None)
        self.write()

    def leave_out(self, stage: str, name: str, why: str) -> None:
        """An earlier result stays."""
        self._stage(stage)["not_run"][name] = why
        self.write()

    def _stage(self, stage: str) -> dict[str, Any]:
        return self.content["stages"].setdefault(stage, {"items": {}, "not_run": {}})

    def lose(self, stage: str, name: str) -> None:
        """The device failed during this item, if only after it had seemed to pass."""
        if self.items(stage).get(name, {}).get("status") == "passed":
            self.keep(stage, name, {"status": "failed", "error": "the device failed after it"})

    def write(self) -> None:
        """The whole file or the one before it, whenever the machine stops."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.path, json.dumps(self.content, indent=1, allow_nan=False) + "\n")

    def summary(self, stage: str) -> str:
        """For a person: counts, then what went wrong and what was left out."""
        found, left_out = self.items(stage), results.left_out(self.content, stage)
        counts = {status: [n for n, r in found.items() if r["status"] == status]
                  for status in ("passed", "failed", "withheld")}  # fmt: skip
        total = ", ".join(f"{len(names)} {status}" for status, names in counts.items() if names)
        lines = [f"{stage}: {total or 'nothing run'}"]
        lines += [f"  FAILED {name}: {found[name]['error']}" for name in counts["failed"]]
        lines += [f"  withheld {name}: {found[name]['reason']}" for name in counts["withheld"]]
        for why in dict.fromkeys(left_out.values()):
            names = [name for name, reason in left_out.items() if reason == why]
            lines.append(f"  not run, {why} ({len(names)}): {', '.join(names)}")
        return fitted("\n".join(lines))


def perform(item: Item, recorder: Recorder, left: float) -> str:
    """Run it and keep its result. Its status, or "not run", which is not kept: a later run tries again."""
    started = time.monotonic()
    try:
        result = {"status": "passed"} | item.run(left)
    except Withheld as reason:
        result = {"status": "withheld", "reason": str(reason)}
    except (NotRun, torch.OutOfMemoryError) as reason:
        recorder.leave_out(item.stage, item.name, str(reason).splitlines()[0])
        return "not run"
    except Exception as error:
        result = {"status": "failed", "error": f"{type(error).__name__}: {error}"}
    recorder.keep(item.stage, item.name, result | {"seconds": round(time.monotonic() - started, 2)})
    return str(result["status"])


def _word(text: str) -> str:
    """As a file's name has it."""
    return "-".join("".join(c if c.isalnum() else " " for c in text).split()).lower()
