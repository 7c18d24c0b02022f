"""The public schemas of torch.ops.zonos2_triton, their listing, and the version that a change of them needs.

kernels/schemas.json holds {"version", "ops": {name: schema}}; the version is that of the schemas, not of the package.
Semantic versioning, from the side of whoever calls an operation:

major   an operation, an argument or a result is gone, has another name, place or type, or is changed in place where it
        was not; an argument without a default is new; a default is another one or gone
minor   a new operation; new arguments at the end that have defaults; a type that becomes optional, and a default where
        there was none
patch   whatever else
"""

import argparse
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import torch

from zonos2_triton import kernels
from zonos2_triton.bench.catalogue import KERNELS

LISTING = Path(kernels.__path__[0]) / "schemas.json"
COMMAND = "python -m zonos2_triton.bench.compiler.op_schema --write VERSION"
LEVELS = ("patch", "minor", "major")

Schemas = Mapping[str, str]  # by operation


class Change(NamedTuple):
    """One difference between two sets of schemas."""

    level: str  # of LEVELS
    text: str


def registered() -> dict[str, str]:
    """The schemas as PyTorch has them."""
    return {name: str(getattr(torch.ops.zonos2_triton, name).default._schema) for name in sorted(KERNELS)}


def changes(old: Schemas, new: Schemas) -> list[Change]:
    """What became of `old`, operation by operation."""
    found = [Change("major", f"{name} is gone") for name in old if name not in new]
    for name, schema in new.items():
        if name not in old:
            found.append(Change("minor", f"{name} is new"))
        elif schema != old[name]:
            found += list(_changed(name, _parsed(old[name]), _parsed(schema))) or [
                Change("patch", f"{name} is written {schema}, it was {old[name]}")
            ]
    return found


def needed(version: str, found: Sequence[Change]) -> str:
    """The least version after `version` that may hold these changes."""
    numbers = _numbers(version)
    if not found:
        return version
    place = 2 - max(LEVELS.index(change.level) for change in found)
    return ".".join(str(n) for n in (*numbers[:place], numbers[place] + 1, *(0,) * (2 - place)))


def write(path: Path, version: str, new: Schemas) -> None:
    """The listing anew. ValueError: the version is too low for what changed."""
    old: dict[str, Any] = read(path) if path.exists() else {"version": "0.0.0", "ops": {}}
    found = changes(old["ops"], new)
    least = needed(old["version"], found)
    if _numbers(version) < _numbers(least):
        raise ValueError(f"version {version} is too low, at least {least} is needed:\n{as_text(found)}")
    path.write_text(json.dumps({"version": version, "ops": dict(new)}, indent=1) + "\n", encoding="utf-8")


def read(path: Path) -> dict[str, Any]:
    """A listing: its version, and its schemas by operation."""
    return json.loads(path.read_text(encoding="utf-8"))


def as_text(found: Sequence[Change]) -> str:
    """A line for each."""
    return "\n".join(f"{change.level}: {change.text}" for change in found)


def _changed(op: str, old: Any, new: Any) -> Iterator[Change]:
    pairs = zip_longest(old.arguments, new.arguments)
    for i, (was, now) in enumerate(pairs):
        if now is None:
            yield Change("major", f"{op}: argument {was.name} is gone")
        elif was is None:
            level = "minor" if now.has_default_value() else "major"
            yield Change(level, f"{op}: argument {now.name} is new, {_default(now)}")
        elif was.name != now.name:
            yield Change("major", f"{op}: argument {i} is {now.name}, it was {was.name}")
            break  # those behind it have other places
        else:
            yield from _argument(f"{op}: argument {now.name}", was, now)
    if [_result(result) for result in old.returns] != [_result(result) for result in new.returns]:
        results = [", ".join(map(_result, schema.returns)) or "nothing" for schema in (new, old)]
        yield Change("major", f"{op}: returns {results[0]}, it was {results[1]}")


def _argument(what: str, was: Any, now: Any) -> Iterator[Change]:
    old, new = _type(was), _type(now)
    if old != new:
        yield Change("minor" if new == f"{old}?" else "major", f"{what} is {new}, it was {old}")
    if was.kwarg_only != now.kwarg_only:
        level = "major" if now.kwarg_only else "minor"
        yield Change(level, f"{what} is given {'by name alone' if now.kwarg_only else 'by place or name'}")
    if _default(was) != _default(now):
        level = "major" if was.has_default_value() else "minor"
        yield Change(level, f"{what} is {_default(now)}, it was {_default(was)}")


def _default(argument: Any) -> str:
    return f"by default {argument.default_value}" if argument.has_default_value() else "without a default"


def _type(argument: Any) -> str:
    """ "Tensor", "Tensor?", and with ! where a call changes it."""
    kind = re.sub(r"^Optional\[(.*)\]$", r"\1?", str(argument.type))
    changed = argument.alias_info is not None and argument.alias_info.is_write
    return f"{kind[:-1]}!?" if changed and kind.endswith("?") else f"{kind}!" if changed else kind


def _result(result: Any) -> str:
    return " ".join(filter(None, (_type(result), result.name)))


def _parsed(schema: str) -> Any:
    return torch._C.parse_schema(schema)


def _numbers(version: str) -> tuple[int, int, int]:
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        raise ValueError(f"a version is three numbers, such as 1.2.0, got {version!r}")
    major, minor, patch = map(int, version.split("."))
    return major, minor, patch


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 1: the registered schemas are not those of the listing; 2: a version that is too low."""
    parser = argparse.ArgumentParser(
        prog="python -m zonos2_triton.bench.compiler.op_schema", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--write", metavar="VERSION", help="make the listing anew, at this version")
    options = parser.parse_args(argv)
    new = registered()
    if options.write:
        try:
            write(LISTING, options.write, new)
        except ValueError as error:
            parser.error(str(error))
        return 0
    listed = read(LISTING)
    found = changes(listed["ops"], new)
    print(as_text(found) or f"as listed, version {listed['version']}")
    if found:
        print(f"needs version {needed(listed['version'], found)}: {COMMAND}")
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
