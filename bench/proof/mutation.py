"""Mutation testing: mistakes put into copies of the kernels, and whether the operators' checks find them.

A check that no mistake can break proves nothing. So each operator has realistic mutants, in `mutants`, and `killed`
tells which of the operator's own checks fails on a copy that has one.
"""

import functools
import importlib
import itertools
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from zonos2_triton import kernels
from zonos2_triton.bench.proof.interpreter import DataRace, NoWait, OutOfBounds
from zonos2_triton.bench.proof.invariants import INVARIANTS, Op, exact, prepares_norm, rounded_once, variants
from zonos2_triton.bench.proof.patterns import apply
from zonos2_triton.bench.proof.poison import GuardBandTouched
from zonos2_triton.bench.proof.verify import Case
from zonos2_triton.bench.specs.spec import Kernel, Workload

SOURCES = Path(kernels.__file__).parent


@dataclass(frozen=True)
class Mutant:
    """A mistake in a module of kernels/: a pattern that fits there once, as in `bench.proof.patterns`."""

    name: str
    file: str  # without .py
    pattern: str


_numbers = itertools.count()


@functools.cache
def _folder() -> "tempfile.TemporaryDirectory[str]":
    """Triton reads the source of a kernel when it is launched: the files live as long as the process."""
    return tempfile.TemporaryDirectory(prefix="mutants-")


def mutated(kernel: Kernel, mutant: Mutant) -> Callable[..., Any]:
    """The operator of a copy of its module, and of every module between it and the mutant's, with the mistake.

    ValueError: the pattern does not fit once.
    """
    package = f"zonos2_triton_mutant_{next(_numbers)}"
    texts = {file: (SOURCES / f"{file}.py").read_text(encoding="utf-8") for file in _between(kernel.name, mutant.file)}
    try:
        if mutant.file not in texts:
            raise ValueError(f"{kernel.name} does not import it")
        copies = {**texts, mutant.file: apply(mutant.pattern, texts[mutant.file])}
    except ValueError as error:
        raise ValueError(f"{kernel.name}, {mutant.name}: {mutant.file}.py: {error}") from None
    path = Path(_folder().name, package)
    path.mkdir()
    (path / "__init__.py").touch()
    copied = re.compile(rf"from zonos2_triton ?\. ?kernels ?\. ?({'|'.join(texts)}) import")
    for file, text in copies.items():
        text = copied.sub(rf"from {package}.\1 import", text).replace('"zonos2_triton::', f'"{package}::')
        (path / f"{file}.py").write_text(text, encoding="utf-8")
    sys.path.insert(0, _folder().name)
    try:
        importlib.invalidate_caches()
        module = importlib.import_module(f"{package}.{kernel.name}")
    finally:
        sys.path.remove(_folder().name)
        for name in [name for name in sys.modules if name.split(".")[0] == package]:
            del sys.modules[name]
    return getattr(module, kernel.name)


@functools.cache
def _imports(file: str) -> frozenset[str]:
    text = (SOURCES / f"{file}.py").read_text(encoding="utf-8")
    return frozenset(re.findall(r"from zonos2_triton\.kernels\.(\w+) import", text))


def _between(op: str, file: str) -> set[str]:
    """The modules by which the operator's imports the mutant's, both included; empty if it does not import it."""
    if op == file:
        return {op}
    below = {part for name in _imports(op) for part in _between(name, file)}
    return below | {op} if below else below


def small(kernel: Kernel) -> tuple[Workload, ...]:
    """The workloads that the checks run on."""
    return tuple(workload for workload in kernel.workloads if not workload.real)


FAILURES = (AssertionError, OutOfBounds, DataRace, NoWait, GuardBandTouched)  # what a check raises
# Workloads of several rows, tiles or sequences, on which the invariants say most. The first of each kernel is one too.
TILED = {"two-tiles", "prefill", "packed", "skewed", "speakers", "split-edges", "idle", "rows", "odd-rows", "delayed"}
TILED |= {"normed", "prefill-normed", "unprepared", "ragged-groups", "no-residual", "no-norm", "no-preamble"}
TILED |= {"sum", "sum-top2", "dense-sum", "prefill-sum", "early"}


def checks(kernel: Kernel) -> Iterator[tuple[str, Callable[[Op], None]]]:
    """The name of each of an operator's checks, and the check: a function of the operator. Quick ones come first."""
    given = small(kernel)
    tiled = [workload for workload in given if workload.name in TILED]
    rest = [workload for workload in given[1:] if workload not in tiled]
    single, half = torch.float32, torch.bfloat16

    def check(what: Callable[[Case, Op], None], workload: Workload, dtype: torch.dtype, variant: str = "") -> Any:
        name = f"{what.__name__} {workload.name} {str(dtype).removeprefix('torch.')} {variant}".rstrip()
        return name, lambda op: what(case_of(kernel, workload, dtype, variant), op)

    for first in given[:1]:
        yield check(exact, first, single)
        for variant, _ in variants(kernel):
            yield check(exact, first, single, variant)
        yield check(exact, first, half)
        yield check(rounded_once, first, half)
        yield check(prepares_norm, first, half)
    for workload in (*tiled, *rest):
        yield check(exact, workload, single)
    for workload in (*given[:1], *tiled):
        for invariant in INVARIANTS.values():
            yield check(invariant, workload, single)
    for workload in tiled:
        yield check(exact, workload, half)
        yield check(rounded_once, workload, half)


def killed(kernel: Kernel, mutant: Mutant) -> str | None:
    """The first of the operator's checks that fails on the mutant, and how. None: the mutant survives.

    Other errors than a check's are raised: a copy that cannot run says nothing about the checks.
    """
    op = mutated(kernel, mutant)
    for name, check in checks(kernel):
        try:
            check(op)
        except FAILURES as failure:
            return f"{name}: {type(failure).__name__}: {failure}".splitlines()[0]
    return None


_cases: dict[tuple[str, str, torch.dtype, str], Case] = {}


def case_of(kernel: Kernel, workload: Workload, dtype: torch.dtype = torch.float32, variant: str = "") -> Case:
    """A case that is made once in a process: many operations are tried on each. variant: of `variants`; "": none."""
    key = kernel.name, repr(workload), dtype, variant
    if key not in _cases:
        _cases[key] = Case(dict(variants(kernel)).get(variant, kernel), workload, dtype=dtype)
    return _cases[key]
