"""Launches that compile instead of running: unchanged host code, for a GPU that need not be there."""

import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import IO, Any
from unittest.mock import patch

import torch
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode

from zonos2_triton.bench.compiler.cubin_stats import TARGETS, Target


@dataclass
class Launch:
    """One compiled kernel, however often it was launched."""

    function: str
    kernel: Any  # triton.compiler.CompiledKernel, or None where the compiler failed
    grid: tuple[int, ...]  # of the first launch
    error: str | None = None
    count: int = 1


Launched = Callable[[Any, dict[str, Any], tuple[int, ...]], None]
"""Called with a compiled kernel, the arguments of one launch by name, and its grid."""


class _Driver:
    """As much of a driver as a launch asks for."""

    def __init__(self, name: str, target: Target) -> None:
        self._name, self._target = name, target

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget(self._target.backend, self._target.arch, self._target.warp_size)

    def get_current_device(self) -> str:
        return f"offline compile for {self._name}"  # a key of Triton's caches that no real device has

    def get_current_stream(self, device: str) -> int:
        return 0


class _Pointer:
    """A tensor as the compiler sees it: its offset in an aligned storage, and the size of that."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.dtype = tensor.dtype
        self._offset = int(tensor.storage_offset()) * tensor.element_size()
        self._range = int(tensor.untyped_storage().nbytes())

    def data_ptr(self) -> int:
        return self._offset

    def ptr_range(self) -> int:
        return self._range


@contextmanager
def fake_tensors() -> Iterator[None]:
    """Inside, tensors have no storage and may be on a GPU that is not there."""
    with _Indexing(), FakeTensorMode(allow_non_fake_inputs=True):
        yield


class _Indexing(TorchFunctionMode):
    """Indexing for fake tensors: a CPU build of torch has no device guard for it. Offsets count as addresses."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if args and isinstance(args[0], FakeTensor):
            if func is torch.Tensor.__getitem__:
                return _indexed(*args)
            if func is torch.Tensor.__setitem__:
                return None
            if func is torch.Tensor.data_ptr:
                return _Pointer(args[0]).data_ptr()
            if func is torch.Tensor.__invert__:  # the operator has a device guard, the function has none
                return torch.bitwise_not(*args)
        return func(*args, **(kwargs or {}))


def _indexed(x: torch.Tensor, index: Any) -> torch.Tensor:
    entries = index if isinstance(index, tuple) else (index,)
    meta = tuple(torch.empty_like(i, device="meta") if isinstance(i, torch.Tensor) else i for i in entries)
    found = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")[meta]
    if found._is_view():
        return x.as_strided(found.shape, found.stride(), x.storage_offset() + found.storage_offset())
    return torch.empty_like(found, device=x.device)


@contextmanager
def compile_only(target: str, launched: Launched | None = None) -> Iterator[list[Launch]]:
    """Inside, every launch of a Triton kernel compiles for `target` instead of running, and is listed.

    Launches are those of the model's frames and prompts, which load early (`kernels/_dependent_launch.py`).
    A failure of the compiler is listed too, and does not stop the host code. `launched` is called for each launch that
    compiles.
    """
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    from zonos2_triton.kernels._launch_config import early_loads

    check_compiler()
    launches: list[Launch] = []
    functions = set()
    fake, run, active = _Driver(target, TARGETS[target]), JITFunction.run, driver._active

    def pointer(value: Any) -> Any:
        return _Pointer(value) if isinstance(value, torch.Tensor) else value

    def compiled(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        functions.add(self)
        bound = {param.name: param.default for param in self.params if param.has_default}
        bound |= dict(zip(self.arg_names, args, strict=False)) | kwargs
        pointers = {name: pointer(value) for name, value in kwargs.items()}
        with _captured() as log:
            try:
                kernel, error = run(self, *map(pointer, args), grid=grid, warmup=True, **pointers), None
            except Exception as problem:
                kernel, error = None, in_short(problem, log)
        name, size = self.fn.__name__, tuple(grid(bound) if callable(grid) else grid)
        for launch in launches:
            if (launch.function, launch.error) == (name, error) and launch.kernel is kernel:
                launch.count += 1
                break
        else:
            launches.append(Launch(name, kernel, size, error))
        if launched and kernel is not None:
            launched(kernel, bound, size)
        return kernel

    driver.set_active(fake)
    JITFunction.run = compiled
    try:
        with early_loads():
            yield launches
    finally:
        JITFunction.run, driver._active = run, active
        for function in functions:
            function.device_caches.pop(fake.get_current_device(), None)


@contextmanager
def launch_configs(entries: Iterable[dict[str, Any]] | None) -> Iterator[None]:
    """Inside, these entries count, in place of a launch configuration file; None: the file does.

    ValueError: an entry is wrong.
    """
    from zonos2_triton.kernels import _launch_config

    found: dict[tuple[str, str], list[Any]] = {}
    for i, entry in enumerate(entries or ()):
        key, override = _launch_config._override(f"[{i}]", entry)
        found.setdefault(key, []).append(override)
    with nullcontext() if entries is None else patch.object(_launch_config, "overrides", lambda: found):
        yield


@contextmanager
def dependent_launch(wanted: bool | None) -> Iterator[None]:
    """Inside, this counts in place of ZONOS2_TRITON_PDL; None: dependent launch is on where the GPU has it."""
    from zonos2_triton.kernels import _launch_config

    with patch.object(_launch_config, "wanted_pdl", lambda: wanted):
        yield


def check_compiler() -> None:
    """ValueError: this process, and those it starts, have Triton's interpreter in place of the compiler."""
    import triton
    from triton.runtime.jit import JITFunction

    if triton.knobs.runtime.interpret or not isinstance(triton.language.cdiv, JITFunction):
        why = "TRITON_INTERPRET is set or was set when triton was imported"
        raise ValueError(f"this command needs Triton's compiler, but {why}; unset it and start again")


@contextmanager
def _captured() -> Iterator[IO[str]]:
    """Prints go into a file: on an error of ptxas Triton prints the whole PTX, and MLIR writes to descriptor 2."""
    sys.stderr.flush()
    with tempfile.TemporaryFile("w+") as log, redirect_stdout(log), redirect_stderr(log):
        kept = os.dup(2)
        os.dup2(log.fileno(), 2)
        try:
            yield log
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def in_short(problem: BaseException, log: IO[str] | None = None) -> str:
    """One line: the innermost error with its place, and of the compiler's output the line that names it."""
    place = ""
    while True:
        if line := getattr(getattr(problem, "node", None), "lineno", None):  # an error of Triton's front end
            place = f"line {line} of the function: "
        if problem.__cause__ is None:
            break
        problem = problem.__cause__
    text = [line.strip() for line in str(problem).splitlines() if line.strip()]
    printed = []
    if log is not None:
        log.seek(0)
        printed = [line.strip() for line in log if " error" in line]
    named = [line for line in text if "error" in line.lower() and "codegen error" not in line]
    words = next(iter([*named, *printed, *text[-1:]]), "")
    return f"{type(problem).__name__}: {place}{re.sub(r'^ptxas.*[.]ptx, ', 'ptxas, ', words)}"[:300]
