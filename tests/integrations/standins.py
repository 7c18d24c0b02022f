"""Imports of other projects' packages on a CPU, with stand-ins for unneeded modules; and snapshots of attributes."""

import sys
import warnings
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType

import pytest
import torch
from torch import nn

from tests.integrations.wheels import unpacked
from zonos2_triton.model import accelerate


@contextmanager
def importable(folder, *standins):
    """Make the packages of a folder and the stand-ins importable; afterwards sys.modules is as before."""
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


def module(name, **members):
    made = ModuleType(name)
    vars(made).update(members)
    return made


def audiotools():
    """Stand-ins for the imports of `dac`: a base class of audiotools and argbind's decorator."""

    class BaseModel(nn.Module):
        INTERN, EXTERN = [], []
        device = property(lambda model: next(model.parameters()).device)

    def bind(*_, **__):
        return lambda function: function

    ml = module("audiotools.ml", BaseModel=BaseModel, Accelerator=object)
    core = module("audiotools.core", util=module("audiotools.core.util"))
    top = module("audiotools", ml=ml, core=core, AudioSignal=object, STFTParams=object)
    return top, ml, core, core.util, module("argbind", bind=bind)


@contextmanager
def dac_package():
    """Make `dac` of descript-audio-codec importable, without its deprecation warnings."""
    with importable(unpacked("descript-audio-codec", "1.0.0"), *audiotools()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield import_module("dac")


def held(model):
    """Every attribute of every module, by identity, except the weight that weight norm computes at each call."""
    found = {}
    for path, module in model.named_modules():
        for name, value in {**vars(module), **module._parameters}.items():
            if name != "weight" or name in module._parameters:
                found[path, name] = id(value)
    return found


def off_by_one_percent(operation):
    """The operation, with results that are 1 % too large."""

    def larger(x):
        return x * 1.01 if x.is_floating_point() else x

    def wrong(*args, **kwargs):
        result = operation(*args, **kwargs)
        return larger(result) if isinstance(result, torch.Tensor) else tuple(map(larger, result))

    return wrong


def refused(model, message, kind=ValueError, **options):
    """Check that the error is raised and that the model is unchanged."""
    before = held(model)
    with pytest.raises(kind, match=message):
        accelerate(model, **{"backend": "reference"} | options)
    assert held(model) == before
