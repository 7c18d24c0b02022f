"""Checks on kernels while Triton's CPU interpreter runs them: bounds, undefined lanes, data races, waits, order.

The interpreter runs one program after another, reads and writes whatever address it is given, and fills lanes that a
load masks off with zeros. A GPU does none of that, so a kernel may pass here and fail there. `checked()` closes the
gap for every launch inside it; `poison.poisoned()` for every allocation. What orders two programs is in `races`.

What is not seen. An address that strays from one argument into another, or into a gap of a strided one. NaN in `tl.max`
and `tl.min` of Triton 3.9, which skip it. Races between accesses of different width through one buffer: elements count
by their first address. A program that stores over what it loaded: whether one thread does both depends on the layout.
An order that never ran: a kernel whose last program of the grid takes itself for the last to arrive is found out by
other values of `order`.
"""

import math
import os
import sys
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, Literal
from unittest.mock import patch

import numpy as np
import triton
from numpy.typing import NDArray
from torch import Tensor
from triton.runtime import interpreter

from zonos2_triton.bench.proof import races
from zonos2_triton.bench.proof.poison import extent_bytes
from zonos2_triton.kernels._dependent_launch import begin_early_loads, end_early_loads, wait_for_previous_launch
from zonos2_triton.kernels._launch_config import early_loads_are_on

DataRace = races.DataRace


class OutOfBounds(IndexError):
    """A lane that is not masked off addresses memory outside every tensor argument of the launch."""


class NoWait(RuntimeError):
    """A program of a dependent launch accesses memory, or ends, without a wait for the previous launch.

    Between `begin_early_loads` and `end_early_loads` it may load the arguments that the first of them names. Inside of
    `_launch_config.early_loads`, nothing of that is from the previous launch.
    """


WAITS = tuple(each.fn.__name__ for each in (wait_for_previous_launch, end_early_loads))


def _tensors(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors of one argument: of a tuple, of a tensor descriptor, of a reinterpreted tensor."""
    if isinstance(value, tuple):
        for item in value:
            yield from _tensors(name, item)
    elif isinstance(value, Tensor):
        yield name, value
    elif hasattr(value, "base"):
        yield from _tensors(name, value.base)


class Arguments:
    """The memory of one launch, in order of address."""

    def __init__(self, arguments: Iterable[tuple[str, Any]]) -> None:
        found = sorted(
            (tensor.data_ptr(), tensor.data_ptr() + extent_bytes(tensor), tensor.element_size(), name)
            for argument in arguments
            for name, tensor in _tensors(*argument)
            if tensor.numel()
        )
        self.memories = [races.Memory(0, 0, 1, "")]  # so that an address below all others has a predecessor too
        for start, end, itemsize, name in found:
            last = self.memories[-1]
            if start < last.end:
                last.end, last.itemsize = max(last.end, end), min(last.itemsize, itemsize)
                last.names += f"/{name}"
            else:
                self.memories.append(races.Memory(start, end, itemsize, name))
        self.starts = [memory.start for memory in self.memories]

    def locate(
        self, addresses: races.Addresses, size: int
    ) -> tuple[list[tuple[races.Memory, races.Addresses]], races.Addresses]:
        """The accesses by memory, and those in none. Most often all are in one, and two reductions tell."""
        low, high = int(addresses.min()), int(addresses.max())
        memory = self.memories[bisect_right(self.starts, low) - 1]
        if high + size <= memory.end:
            return [(memory, addresses)], addresses[:0]
        number = np.searchsorted(np.array(self.starts, np.uint64), addresses, side="right") - 1
        ends = np.array([max(memory.end - size, 0) for memory in self.memories], np.uint64)
        inside = (number > 0) & (addresses <= ends[number])
        groups = [(self.memories[k], addresses[inside & (number == k)]) for k in np.unique(number[inside])]
        return groups, addresses[~inside]

    def name(self, address: int) -> str:
        return self.memories[bisect_right(self.starts, address) - 1].names

    def nearest(self, address: int, size: int) -> str:
        at = bisect_right(self.starts, address) - 1
        below, above = self.memories[1:][at - 1 : at], self.memories[at + 1 : at + 2]
        near = [(address + size - memory.end, "past the end", memory.names) for memory in below]
        near += [(memory.start - address, "before the start", memory.names) for memory in above]
        if not near:
            return "the launch has no tensor argument"
        distance, side, names = min(near)
        return f"the first {distance} bytes {side} of {names}"


def _undefined(dtype: Any, shape: tuple[int, ...]) -> Any:
    """NaN or a large integer, in the bits in which the interpreter keeps `dtype`."""
    kept = interpreter._get_np_dtype(dtype)
    nan_bits = {"bf16": 0x7FC1, "fp8e4nv": 0x7F, "fp8e5": 0x7F, "fp8e4b15": 0x7F, "fp8e4b8": 0x80, "fp8e5b16": 0x80}
    value = nan_bits.get(dtype.name, int(np.iinfo(kept).max) // 3) if kept.kind in "iu" else math.nan
    return interpreter.TensorHandle(np.full(shape, value, kept), dtype)


class Checks:
    """The checks as replacements for what Triton's interpreter does at each launch, program and access.

    The names replaced, and how they call each other, were seen in Triton 3.6.0 and 3.9.0. All of them are private.
    """

    history: races.History  # of the launch that runs

    def __init__(
        self, bounds: bool, undefined: bool, races: bool, waits: bool, order: int | Literal["reversed"] | None
    ) -> None:
        self.bounds, self.undefined, self.races, self.waits, self.order = bounds, undefined, races, waits, order
        self.builder = interpreter.interpreter_builder
        self.launches = 0  # how many were checked
        self.kernel = ""  # of the latest launch, as is what it has written
        self.written: list[NDArray[np.uint64]] = []
        self.inside_atomic = False
        self.patched: set[int] = set()

    def builder_members(self) -> dict[str, Any]:
        # The overflow check makes an integer operation five times slower, and is ignored unless debug is on; then it
        # would forbid the wrap-around that random numbers rest on.
        options = replace(self.builder.options, sanitize_overflow=False, debug=True)
        members = {
            "options": options,
            "set_grid_dim": self._set_grid_dim,
            "set_grid_idx": self._set_grid_idx,
            "create_masked_load": self._load,
            "create_masked_store": self._store,
            "create_barrier": lambda: self.history.barrier(),
        }
        # 3.9 alone has the last three. Where an atomic has a mask, it is the argument before `sem` and `scope`.
        for name, masked in {"rmw": True, "cas": False, "load": True, "store": True, "poll": False}.items():
            if hasattr(self.builder, f"create_atomic_{name}"):
                original = getattr(self.builder, f"create_atomic_{name}")
                members[f"create_atomic_{name}"] = self._atomic(original, int(name == "rmw"), masked)
        self.original = {name: getattr(self.builder, name) for name in members}
        return members

    def executor_members(self) -> dict[str, Any]:
        launch, to_host = interpreter.GridExecutor.__call__, interpreter.GridExecutor._init_args_hst

        def checked_launch(executor: Any, *args: Any, **kwargs: Any) -> None:
            self.launches += 1
            self.previous, self.kernel = self.kernel, executor.fn.__name__
            self.settling, self.written = self.written if early_loads_are_on() else [], []
            self.waited = True  # no program has begun
            self.early: frozenset[str] = frozenset()
            self.dependent = self.waits and "PDL" in executor.arg_names
            self.patched = {id(executor.fn.__globals__)}
            try:
                with np.errstate(all="ignore"):  # undefined lanes take part in arithmetic, and a GPU has no signals
                    launch(executor, *args, **kwargs)
                self._end_program()
            except interpreter.InterpreterError as error:
                cause: BaseException = error
                while isinstance(cause, interpreter.InterpreterError) and cause.__cause__ is not None:
                    cause = cause.__cause__
                if isinstance(cause, OutOfBounds | DataRace | NoWait | AssertionError):
                    raise cause from None
                raise

        def seen_arguments(executor: Any, args: Any, kwargs: Any) -> Any:
            args, kwargs = to_host(executor, args, kwargs)
            self.pointers = executor.arg_names
            self.arguments = Arguments([*zip(executor.arg_names, args, strict=False), *kwargs.items()])
            return args, kwargs

        return {"__call__": checked_launch, "_init_args_hst": seen_arguments}

    def function_members(self) -> dict[str, Any]:
        def call(function: Any, *args: Any, **kwargs: Any) -> Any:
            """A device function, without replacing all of triton.language at each call: once a launch is enough."""
            if id(function.fn.__globals__) not in self.patched:
                interpreter._patch_lang(function.fn)
                self.patched.add(id(function.fn.__globals__))
            name = function.fn.__name__  # that of a mutant, too
            if name == begin_early_loads.fn.__name__:
                for checks in ACTIVE:
                    checks.begin_early_loads(*args, **kwargs)
                return None
            if name in WAITS:
                for checks in ACTIVE:
                    checks.waited = True
            try:
                return function.rewrite()(*args, **kwargs)
            except Exception as error:
                raise interpreter.InterpreterError(repr(error)) from error

        return {"__call__": call}

    def _set_grid_dim(self, *grid: int) -> None:
        self.original["set_grid_dim"](*grid)
        self.grid = grid
        programs = np.arange(math.prod(grid))
        if self.order == "reversed":
            programs = programs[::-1]
        elif self.order is not None:
            programs = np.random.default_rng(self.order).permutation(programs)
        self.sequence = programs
        self.history = races.History(self.kernel, grid)

    def _end_program(self) -> None:
        if not self.waited:
            raise NoWait(f"{self.kernel}: program {self.builder.grid_idx} ended without a wait for the previous launch")

    def begin_early_loads(self, PDL: Any, POINTERS: Any) -> None:
        """From here to the wait the program may load these arguments."""
        self.early = frozenset(getattr(POINTERS, "value", POINTERS).split())
        if unknown := self.early.difference(self.pointers):
            raise NoWait(f"{self.kernel}: early loads of {', '.join(sorted(unknown))}, which it has no argument of")

    def _set_grid_idx(self, *index: int) -> None:
        self._end_program()
        self.waited, self.early = not self.dependent, frozenset()
        program = int(self.sequence[np.ravel_multi_index(index, self.grid)])
        self.original["set_grid_idx"](*(int(i) for i in np.unravel_index(program, self.grid)))
        self.history.begin(program)

    def _access(self, kind: int, pointers: Any, mask: NDArray[np.bool_] | None) -> races.Addresses:
        """The addresses that are not masked off, after the checks."""
        addresses = pointers.data.ravel() if mask is None else pointers.data[mask]
        if not addresses.size:
            return addresses
        size = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        groups, outside = self.arguments.locate(addresses, size)
        for memory, some in groups if not self.waited else ():
            if kind != races.LOAD or not self.early.issuperset(memory.names.split("/")):
                does = f"{races.DOES[kind]} {some.size} elements of {memory.names}"
                raise NoWait(f"{self.kernel}: program {self.builder.grid_idx} {does} before its wait")
            if any(np.isin(some, written).any() for written in self.settling):
                raise NoWait(f"{self.kernel}: early loads of {memory.names}, which {self.previous} has just written")
        if kind != races.LOAD and self.waits:
            self.written.append(addresses)
        if self.bounds and outside.size:
            where = self.arguments.nearest(int(outside[0]), size)
            lanes = f"{outside.size} of {addresses.size} lanes outside every tensor argument ({where})"
            raise OutOfBounds(f"{self.kernel}: program {self.builder.grid_idx} {races.DOES[kind]} {lanes}")
        for memory, some in groups if self.races else ():
            self.history.access(kind, memory, memory.elements(some))
        return addresses

    def _load(self, pointers: Any, mask: Any, other: Any, *rest: Any, **named: Any) -> Any:
        if not self.inside_atomic:
            on = _lanes_on(mask, pointers)
            self._access(races.LOAD, pointers, on)
            if self.undefined and on is not None and other is None:
                other = _undefined(pointers.get_element_ty(), pointers.data.shape)
        return self.original["create_masked_load"](pointers, mask, other, *rest, **named)

    def _store(self, pointers: Any, value: Any, mask: Any, *rest: Any, **named: Any) -> Any:
        if not self.inside_atomic:
            self._access(races.STORE, pointers, _lanes_on(mask, pointers))
        return self.original["create_masked_store"](pointers, value, mask, *rest, **named)

    def _atomic(self, original: Callable[..., Any], pointers_at: int, masked: bool) -> Callable[..., Any]:
        def atomic(*args: Any) -> Any:
            pointers, mask, sem, scope = args[pointers_at], *args[-3:]
            scalar = pointers.data.size == 1
            # The conflicts of the atomic itself are looked for before it learns anything: a plain store that is only
            # ordered by this very atomic would not be ordered if this program came first.
            on = _lanes_on(mask, pointers) if masked else None
            addresses = self._access(races.ATOMIC if scalar else races.ATOMIC_BLOCK, pointers, on)
            self.inside_atomic = True
            try:
                result = original(*args)
            finally:
                self.inside_atomic = False
            if sem.name != "RELAXED" and scope.name != "CTA":
                distinct = np.unique(addresses).tolist()
                if sem.name != "RELEASE":
                    self.history.acquire(distinct, scalar)
                if sem.name != "ACQUIRE":
                    self.history.release(distinct)
            return result

        return atomic


def _lanes_on(mask: Any, pointers: Any) -> NDArray[np.bool_] | None:
    """None if no lane is masked off."""
    on = np.asarray(mask.data)
    if on.all():
        return None
    return on if on.shape == pointers.data.shape else np.broadcast_to(on, pointers.data.shape)


ACTIVE: list[Checks] = []  # one inside another: the innermost one sees the calls


@contextmanager
def checked(
    *,
    bounds: bool = True,
    undefined: bool = True,
    races: bool = True,
    waits: bool = True,
    order: int | Literal["reversed"] | None = None,
) -> Iterator[Checks]:
    """Checks each kernel that the interpreter launches inside the block; `launches` of what it yields counts them.

    bounds     each address that is not masked off lies in the strided extent of a tensor argument: OutOfBounds
    undefined  lanes that a load without `other` masks off are NaN or a wild integer, not 0
    races      no two accesses of one launch depend on which program or thread comes first: DataRace
    waits      a kernel with a parameter PDL waits for the previous launch on every path, and before any access but the
               early loads that it declares: NoWait
    order      the programs of a grid run shuffled by this seed, or "reversed"

    tl.device_assert raises AssertionError.
    Raises RuntimeError where kernels are compiled: nothing would be checked there.
    """
    if not triton.knobs.runtime.interpret:
        raise RuntimeError("checked: compiled kernels are not; set TRITON_INTERPRET=1 before triton is imported")
    checks = Checks(bounds, undefined, races, waits, order)
    with ExitStack() as patches:
        ACTIVE.append(checks)
        patches.callback(ACTIVE.remove, checks)
        patches.enter_context(patch.multiple(interpreter.interpreter_builder, **checks.builder_members()))
        patches.enter_context(patch.multiple(interpreter.GridExecutor, **checks.executor_members()))
        patches.enter_context(patch.multiple(interpreter.InterpretedFunction, **checks.function_members()))
        yield checks


def interpreting() -> None:
    """From here on kernels are interpreted: a process that has imported Triton as a compiler begins again."""
    if not triton.knobs.runtime.interpret:
        sys.stdout.flush()
        os.execve(sys.executable, sys.orig_argv, os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""})
