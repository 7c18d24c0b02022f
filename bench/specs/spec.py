"""The spec of a kernel: its operation, reference, cost, workloads, and what a compiler must make of it."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch.library import CustomOpDef  # type: ignore[attr-defined]

from zonos2_triton.bench.compiler.cubin_stats import TARGETS
from zonos2_triton.bench.compiler.gate import Expectations, Expected
from zonos2_triton.bench.specs import inputs
from zonos2_triton.bench.specs.inputs import Sizes
from zonos2_triton.kernels import _operator
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
    targets: tuple[str, ...] = tuple(TARGETS)  # architectures that it is compiled for

    def cost_of(self, workload: Workload, itemsize: int) -> Cost:
        """`cost` at the workload's sizes."""
        names = inspect.signature(self.cost).parameters.keys() & workload.sizes.keys()
        return self.cost(**{name: workload.sizes[name] for name in names}, itemsize=itemsize)


def spec(
    name: str, replaces: str, expects: Mapping[str, Expected], real: Sizes, at: Mapping[str, Sizes], small: Sizes,
    edges: Mapping[str, Sizes], mutates: tuple[str, ...] = ()
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
    return Kernel(name, op, reference, module.cost, make, tuple(listed), expects, replaces, mutates)
