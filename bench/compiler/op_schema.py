"""The public schemas of torch.ops.zonos2_triton, their listing, and the version that a change of them needs.

kernels/schemas.json holds {"version", "ops": {name: schema}}; the version is that of the schemas, not of the package.
Semantic versioning, from the caller's side:

major   an operator is gone, or PyTorch says that its schema is not backward compatible;
        an argument or a result is gone, has another name, place or type, or is newly changed in place;
        an argument without a default is new; a default is another one or gone
minor   a new operator; new arguments at the end that have defaults; a type that becomes optional; a new default
"""

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from zonos2_triton import kernels
from zonos2_triton.bench.catalogue import KERNELS
from zonos2_triton.model.files import write_whole

LISTING = Path(kernels.__path__[0]) / "schemas.json"
COMMAND = "python -m zonos2_triton.bench.compiler.op_schema --update VERSION"

Schemas = Mapping[str, str]  # by operation


class Change(NamedTuple):
    """One difference between two sets of schemas."""

    level: str  # major or minor
    text: str


def registered() -> dict[str, str]:
    """The schemas as PyTorch has them."""
    return {name: str(getattr(torch.ops.zonos2_triton, name).default._schema) for name in sorted(KERNELS)}


def changes(old: Schemas, new: Schemas) -> list[Change]:
    """The differences from `old`, operator by operator."""
    found = [Change("major", f"{name} is gone") for name in old if name not in new]
    for name, schema in new.items():
        if name not in old:
            found.append(Change("minor", f"{name} is new"))
        elif schema != old[name]:
            before, after = (torch._C.parse_schema(text) for text in (old[name], schema))
            compatible = after.is_backward_compatible_with(before)  # type: ignore[attr-defined]
            found.append(Change("minor" if compatible else "major", f"{name} is {schema}, it was {old[name]}"))
    return found


def needed(version: str, found: Sequence[Change]) -> str:
    """The least version after `version` that may hold these changes."""
    major, minor, _ = _numbers(version)
    if any(change.level == "major" for change in found):
        return f"{major + 1}.0.0"
    return f"{major}.{minor + 1}.0" if found else version


def write(path: Path, version: str, new: Schemas) -> None:
    """The listing anew. ValueError: the version is too low for what changed."""
    old: dict[str, Any] = read(path) if path.exists() else {"version": "0.0.0", "ops": {}}
    found = changes(old["ops"], new)
    least = needed(old["version"], found)
    if _numbers(version) < _numbers(least):
        raise ValueError(f"version {version} is too low, at least {least} is needed:\n{as_text(found)}")
    write_whole(path, json.dumps({"version": version, "ops": dict(new)}, indent=1) + "\n")


def read(path: Path) -> dict[str, Any]:
    """A listing: its version, and its schemas by operation."""
    return json.loads(path.read_text(encoding="utf-8"))


def as_text(found: Sequence[Change]) -> str:
    """A line for each."""
    return "\n".join(f"{change.level}: {change.text}" for change in found)


def _numbers(version: str) -> tuple[int, int, int]:
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        raise ValueError(f"a version is three numbers, such as 1.2.0, got {version!r}")
    major, minor, patch = map(int, version.split("."))
    return major, minor, patch


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 1: the registered schemas are not those of the listing; 2: a version that is too low."""
    prog = "python -m zonos2_triton.bench.compiler.op_schema"
    parser = argparse.ArgumentParser(prog=prog, description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--update", metavar="VERSION", help="make the listing anew, at this version")
    options = parser.parse_args(argv)
    new = registered()
    if options.update:
        try:
            write(LISTING, options.update, new)
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
