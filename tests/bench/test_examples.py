"""The examples run, and print what their docstrings say."""

import pkgutil
import re
import runpy

import pytest
import torch

from zonos2_triton.bench import examples

PRINTED = {
    "call_kernel": r"sum: largest difference 0\.0e\+00\nnorm: largest difference [1-9]\.\de-0[78]\n",
    "torch_compile": r"nodes: add_rms_norm_default, total, normed, sigmoid, mul\nsame bits: True\n",
    "swap_operator": r"(.* [1-9].*\n)+moe_experts +replaced: 0\.0e\+00  <- wrong\n(.* [1-9].*\n)+",
    "drop_in": r"(.*\n)+from_codes .*\ndecoder .*\naudio of 400 .*e-0[789]\nrestored, same bits: True\n",
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.needs("transformers") if name == "drop_in" else ()) for name in PRINTED],
)
def test_an_example(name, capsys):
    runpy.run_module(f"{examples.__name__}.{name}", run_name="__main__")
    torch.compiler.reset()
    assert re.fullmatch(PRINTED[name], capsys.readouterr().out)


def test_every_example_is_tested():
    assert {module.name for module in pkgutil.iter_modules(examples.__path__)} == PRINTED.keys()
