"""Launches on a CPU: unchanged host code, whose kernels are compiled for a GPU that need not be there, then run or
counted by the machine.
"""

import ctypes
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from zonos2_triton.bench.cli_choices import chosen
from zonos2_triton.bench.compiler.cubin_stats import TARGETS
from zonos2_triton.bench.compiler.offline_compile import compile_only
from zonos2_triton.bench.compiler.ptx.counts import Counts
from zonos2_triton.bench.compiler.ptx.machine import Machine
from zonos2_triton.bench.compiler.ptx.memory import GlobalMemory, Segment
from zonos2_triton.bench.compiler.ptx.parse import Function, PtxError, parse

LAZY_BYTES = 1 << 16  # float tensors above this have no values where launches are only counted
SAMPLE = 1 << 16  # threads of a launch that are counted, by default


@dataclass(frozen=True)
class Launch:
    """A compiled kernel and the arguments of one launch, by name; None and constants are folded away."""

    kernel: Any  # triton.compiler.CompiledKernel
    arguments: dict[str, Any]
    grid: tuple[int, ...]


def run_launch(
    launch: Launch, values: bool = True, programs: Sequence[int] | None = None, lazy: bool = False
) -> Counts:
    """Runs a launch on its tensors, which must lie in the CPU's memory, or counts it.

    values    floats are computed and tensors written; otherwise floats count as zero
    programs  numbers in the grid, x fastest, of those that run
    lazy      large tensors of floats have no values

    PtxError: the kernel has no PTX that the machine can read, or does what a GPU would not do.
    """
    function, shared = read_kernel(launch.kernel)
    params, segments, real = _bound(function, launch, lazy)
    chosen_programs = None if programs is None else np.asarray(programs, np.int64)

    def run(memory: list[Segment], arrives: bool) -> Counts:
        machine = Machine(function, params, GlobalMemory(memory), shared, values, real.__contains__, arrives)
        return machine.run(launch.grid, chosen_programs)

    copies = [replace(each, data=None if values or each.data is None else each.data.copy()) for each in segments]
    counts = run(segments, arrives=False)
    if values or not any(counts.early("loaded_sectors")):
        return counts
    return replace(counts, after_wait=run(copies, arrives=True).after_wait)  # other clocks, all else is the same


def read_kernel(kernel: Any) -> tuple[Function, int]:
    """The function of a compiled kernel, and its bytes of shared memory. PtxError: it has no PTX."""
    name = kernel.metadata.name
    if "ptx" not in kernel.asm:
        target = kernel.metadata.target
        raise PtxError(f"{name} is compiled for {target.backend} {target.arch}: the machine reads PTX, and it has none")
    return _parsed(kernel.asm["ptx"], name), kernel.metadata.shared


_parsed = lru_cache(64)(parse)  # many workloads share their code


def _bound(function: Function, launch: Launch, lazy: bool) -> tuple[dict[str, int], list[Segment], set[str]]:
    """The bits of each parameter, the tensors, and the pointer parameters whose tensors hold integers."""
    signature = launch.kernel.src.signature
    named = [(name, kind) for name, kind in signature.items() if kind != "constexpr"]
    extra = len(function.params) - len(named)  # Triton's scratch pointers
    if extra < 0:
        raise PtxError(f"{function.name} has {len(function.params)} parameters, its signature {len(named)}")
    params: dict[str, int] = {}
    segments: list[Segment] = []
    real: set[str] = set()
    for param, (name, kind) in zip(function.params, named, strict=False):
        value = launch.arguments[name]
        if isinstance(value, Tensor):
            segment = _segment(name, value, lazy)
            segments.append(segment)
            params[param.name] = segment.base
            if segment.whole:
                real.add(param.name)
        else:
            params[param.name] = _scalar(value, kind)
    for param in function.params[len(named) :]:
        params[param.name] = 0
    return params, segments, real


def _segment(name: str, tensor: Tensor, lazy: bool) -> Segment:
    """The tensor's memory, from its first to its last element."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    size = (last + 1) * tensor.element_size() if tensor.numel() else 0
    base = tensor.data_ptr()
    floats = tensor.dtype.is_floating_point
    if not size or (lazy and floats and size > LAZY_BYTES):
        return Segment(name, base, size, None, not floats)
    data = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(base))
    return Segment(name, base, size, data, not floats)


def _scalar(value: Any, kind: str) -> int:
    formats = {"fp64": ("<d", "<Q"), "fp32": ("<f", "<I"), "f32": ("<f", "<I"), "fp16": ("<e", "<H")}
    if kind in formats:
        write, read = formats[kind]
        return int(struct.unpack(read, struct.pack(write, value))[0])
    if kind[0] not in "iu":
        raise PtxError(f"an argument of type {kind} is not known")
    return int(value) & ((1 << int(kind[1:])) - 1)


class _LazyFloats(TorchDispatchMode):
    """Large float tensors are zeros that no memory is spent on, and no work."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
        if func.is_view or not self._is_large(func, args, kwargs, tensors):
            return func(*args, **kwargs)
        if tensors and func._schema.is_mutable:
            return args[0]
        meta = tree_map(lambda x: x.to("meta") if isinstance(x, Tensor) else x, args)
        named = {k: x.to("meta") if isinstance(x, Tensor) else x for k, x in kwargs.items()}
        if "device" in named:
            named["device"] = torch.device("meta")
        if "generator" in named:
            named["generator"] = None
        return tree_map(lambda x: _zeros(x) if isinstance(x, Tensor) else x, func(*meta, **named))

    def _is_large(self, func: Any, args: Any, kwargs: Any, tensors: list[Tensor]) -> bool:
        if tensors:
            return any(x.dtype.is_floating_point and x.numel() * x.element_size() > LAZY_BYTES for x in tensors)
        shape = args[0] if args and isinstance(args[0], list | tuple) else ()
        kind = kwargs.get("dtype") or torch.get_default_dtype()
        return kind.is_floating_point and bool(shape) and 2 * int(np.prod(shape)) > LAZY_BYTES


def _zeros(like: Tensor) -> Tensor:
    size = sum((n - 1) * stride for n, stride in zip(like.shape, like.stride(), strict=True)) + 1
    if not like.numel():
        return torch.empty(like.shape, dtype=like.dtype)
    flat = torch.from_numpy(np.zeros(size * like.element_size() + 64, np.uint8))  # pages that are not touched
    start = -flat.data_ptr() % 64
    flat = flat[start : start + size * like.element_size()].view(like.dtype)
    return flat.as_strided(like.shape, like.stride())


@contextmanager
def on_cpu(target: str, values: bool = True) -> Iterator[list[Counts]]:
    """Inside, operators on CPU tensors run the kernels that are compiled for `target`, on the machine.

    The counts of each launch are listed. ValueError: an unknown target. PtxError: one that has no PTX.
    """
    with _launches(target, lambda launch: run_launch(launch, values)) as made:
        yield made


@contextmanager
def _launches(target: str, run: Callable[[Launch], Counts]) -> Iterator[list[Counts]]:
    from zonos2_triton.kernels import _operator

    chosen("target", [target], TARGETS)
    if TARGETS[target].backend != "cuda":
        raise PtxError(f"{target} has no PTX for the machine to read")
    made: list[Counts] = []

    def launched(kernel: Any, arguments: dict[str, Any], grid: tuple[int, ...]) -> None:
        made.append(run(Launch(kernel, arguments, grid)))

    with compile_only(target, launched), patch.object(_operator, "runs_kernel", lambda x: True):
        yield made


@contextmanager
def counting(target: str, threads: int = SAMPLE, lazy: bool = True) -> Iterator[list[tuple[Launch, Counts]]]:
    """Inside, launches on CPU tensors are counted, and listed. Large tensors of floats take no memory, if lazy.

    threads: of a launch that are counted; of a larger launch so many, in some of its programs.
    """
    found: list[tuple[Launch, Counts]] = []

    def run(launch: Launch) -> Counts:
        found.append((launch, _counted(launch, threads, lazy)))
        return found[-1][1]

    with _LazyFloats() if lazy else nullcontext(), _launches(target, run):
        yield found


def count(
    spec: Any, workload: Any, dtype: torch.dtype, target: str, threads: int = SAMPLE
) -> list[tuple[Launch, Counts]]:
    """The launches of a workload of the catalogue with their counts, in order. threads: as in `counting`.

    Errors are those of `on_cpu`, and of the operator.
    """
    with counting(target, threads, lazy=not spec.branches_on_values) as made:
        spec.op._init_fn(**spec.make_inputs("cpu", dtype, **workload.sizes))
    return made


def _counted(launch: Launch, threads: int, lazy: bool) -> Counts:
    sample = _sample(launch.grid, launch.kernel.metadata.num_warps * 32, threads)
    return run_launch(launch, values=False, programs=sample, lazy=lazy)


def _sample(grid: tuple[int, ...], threads: int, total: int = SAMPLE) -> list[int] | None:
    """The programs of so many threads that stand for all, or None: all run. total: threads of those that run.

    Whole rows of the grid, as those that differ in x alone wait for their last one. At random, and the same each time:
    at equal steps they might all have one role.
    """
    programs, most = int(np.prod(grid)), max(1, total // threads)
    if programs <= most:
        return None
    together = grid[0] if grid[0] <= most else 1
    rows = np.random.default_rng(0).permutation(programs // together)[: most // together]
    return [int(row) * together + x for row in sorted(rows.tolist()) for x in range(together)]
