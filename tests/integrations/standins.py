"""Other people's packages, imported on a CPU without a trace, with modules in the place of those that a test does not
need; and what an object holds, before and after."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from zonos2_triton.model import accelerate


@contextmanager
def importable(folder: Path, *standins: ModuleType) -> Iterator[None]:
    """Inside, the packages of a folder can be imported, and the stand-ins; afterwards they are as unknown as before."""
    path, before = [*sys.path], dict(sys.modules)
    sys.path.insert(0, str(folder))
    sys.modules.update({module.__name__: module for module in standins})
    try:
        yield
    finally:
        sys.path[:] = path
        for name, module in [*sys.modules.items()]:
            if module in standins or str(getattr(module, "__file__", None) or "").startswith(f"{folder}/"):
                del sys.modules[name]
                if name in before:
                    sys.modules[name] = before[name]


def module(name: str, **members: object) -> ModuleType:
    """A module with these members."""
    made = ModuleType(name)
    vars(made).update(members)
    return made


def audiotools() -> tuple[ModuleType, ...]:
    """For `dac`, whose models derive from a class of audiotools and whose functions are bound to a command line."""

    class BaseModel(nn.Module):
        INTERN: list[str] = []  # noqa: RUF012 (of the class, as there)
        EXTERN: list[str] = []  # noqa: RUF012

        @property
        def device(self) -> torch.device:
            return next(self.parameters()).device

    class Named:
        """Whatever is only named there: a type of an argument, a base class."""

    def bind(*_: object, **__: object) -> Callable[[Any], Any]:
        return lambda function: function

    ml = module("audiotools.ml", BaseModel=BaseModel, Accelerator=Named)
    core = module("audiotools.core", util=module("audiotools.core.util"))
    top = module("audiotools", ml=ml, core=core, AudioSignal=Named, STFTParams=Named)
    return top, ml, core, core.util, module("argbind", bind=bind)


def held(model: nn.Module) -> dict[tuple[str, str], int]:
    """Every attribute of every part, by identity; but for the weight that weight norm makes anew at each call."""
    found = {}
    for path, part in model.named_modules():
        for name, value in {**vars(part), **part._parameters}.items():
            if name != "weight" or name in part._parameters:
                found[path, name] = id(value)
    return found


def off_by_one_percent(operation: Callable[..., Any]) -> Callable[..., Any]:
    """The operation with results that are 1 % too large."""

    def larger(x: torch.Tensor) -> torch.Tensor:
        return x * 1.01 if x.is_floating_point() else x

    def wrong(*args: Any, **kwargs: Any) -> Any:
        result = operation(*args, **kwargs)
        return larger(result) if isinstance(result, torch.Tensor) else tuple(map(larger, result))

    return wrong


def refused(model: nn.Module, message: str, kind: type[Exception] = ValueError, **options: Any) -> None:
    """The error comes, and nothing is touched."""
    before = held(model)
    with pytest.raises(kind, match=message):
        accelerate(model, **options)
    assert held(model) == before
