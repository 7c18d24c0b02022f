"""The spec of a kernel: its operation, reference, cost, workloads, and what a compiler must make of it."""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch.library import CustomOpDef  # type: ignore[attr-defined]

from zonos2_triton.bench.cli_choices import chosen
from zonos2_triton.bench.compiler.cubin_stats import TARGETS
from zonos2_triton.bench.compiler.expected import Expectations, Expected
from zonos2_triton.bench.specs import inputs
from zonos2_triton.bench.specs.inputs import Sizes
from zonos2_triton.kernels import _operator
from zonos2_triton.kernels._launch_config import MAX_ROWS
from zonos2_triton.kernels._operator import Cost


@dataclass(frozen=True)
class Workload:
    """Arguments of `Kernel.make_inputs` and, by the same names, of `cost`."""

    name: str
    sizes: Sizes
    real: bool = True  # at the 8B model's shapes; the others are small and say in their name which edge they meet


@dataclass(frozen=True)
class Kernel:
    """One operation."""

    name: str
    op: CustomOpDef
    reference: Callable[..., Any]
    cost: Callable[..., Cost]
    # make_inputs(device, dtype, seed=0, **sizes) -> keyword arguments of op and reference
    make_inputs: Callable[..., dict[str, Any]]
    workloads: tuple[Workload, ...]
    expects: Expectations
    replaces: str  # in words, for the README
    mutates: tuple[str, ...] = ()  # arguments that a call changes
    branches_on_values: bool = False  # what a program does depends on floats: they are real where it is counted
    targets: tuple[str, ...] = tuple(TARGETS)  # architectures that it is compiled for

    def cost_of(self, workload: Workload, itemsize: int) -> Cost:
        """`cost` at the workload's sizes."""
        names = inspect.signature(self.cost).parameters.keys() & workload.sizes.keys()
        return self.cost(**{name: workload.sizes[name] for name in names}, itemsize=itemsize)

    def resized(self, workload: Workload, settings: Iterable[str]) -> Workload:
        """The workload with other sizes, each a text NAME=VALUE. Lists of values per row are left out.

        ValueError: an unknown name or a bad value; the message says what is accepted.
        """
        values = [item for w in self.workloads for item in w.sizes.items()]
        kinds = {name: type(value) for name, value in values if isinstance(value, int | float)}
        least = {name: 0 if kind is float or (name, 0) in values else 1 for name, kind in kinds.items()}
        changes: dict[str, float] = {}
        for setting in settings:
            name, value = _size(self.name, setting, kinds, least)
            if name in changes:
                raise ValueError(f"--set must name {name} of {self.name} once, got also {setting!r}")
            changes[name] = value
        sizes = {name: value for name, value in workload.sizes.items() if not isinstance(value, tuple)} | changes
        if sizes.get("k", 1) > sizes.get("E", math.inf):
            raise ValueError(f"k of {self.name} must be at most E={sizes['E']}, got {sizes['k']}")
        if sizes.get("active") and "active" not in changes and sizes.get("routed", True):
            sizes["active"] = active_experts(sizes["M"], sizes["E"], sizes["k"])
        return Workload(",".join([workload.name, *settings]), sizes, workload.real)


def _size(kernel: str, setting: str, kinds: Mapping[str, type], least: Mapping[str, int]) -> tuple[str, float]:
    name, equals, text = setting.partition("=")
    if not equals:
        raise ValueError(f"--set must be NAME=VALUE, such as {next(iter(kinds))}=7, got {setting!r}")
    chosen(f"a size of {kernel}", [name], sorted(kinds))
    if kinds[name] is bool:
        chosen(f"{name} of {kernel}", [text], ("true", "false"))
        return name, text == "true"
    try:
        value = kinds[name](text)
    except ValueError:
        value = -1
    low, high = least[name], MAX_ROWS if kinds[name] is int else math.inf
    if not low <= value <= high or value == math.inf:
        accepted = f"an integer in {low}..{high}" if kinds[name] is int else "a finite number of at least 0"
        raise ValueError(f"{name} of {kernel} must be {accepted}, got {text!r}")
    return name, value


def active_experts(rows: int, experts: int, k: int) -> float:
    """How many experts so many rows touch, on average, when all are equally likely."""
    return experts * (1 - (1 - k / experts) ** rows)


def spec(
    name: str, replaces: str, expects: Mapping[str, Expected], real: Sizes, at: Mapping[str, Sizes], small: Sizes,
    edges: Mapping[str, Sizes], mutates: tuple[str, ...] = (), branches_on_values: bool = False
) -> Kernel:  # fmt: skip
    """The spec of the operation of that name, with the reference that it falls back to on a CPU.

    real and small are sizes that its workloads share; at and edges say by workload which ones it adds or replaces.
    """
    module = import_module(f"zonos2_triton.kernels.{name}")

    def make(device: str | torch.device, dtype: torch.dtype, seed: int = 0, **sizes: Any) -> Sizes:
        return getattr(inputs, name)(inputs.Inputs(device, dtype, seed), **sizes)

    listed = [Workload(key, {**real, **more}) for key, more in at.items()]
    listed += [Workload(key, {**small, **more}, real=False) for key, more in edges.items()]
    op, reference = getattr(module, name), _operator._reference(name)
    return Kernel(name, op, reference, module.cost, make, tuple(listed), expects, replaces, mutates, branches_on_values)
