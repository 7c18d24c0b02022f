"""ZONOS2_COMFYUI names a checkout of Saganaki22/Zonos2_TTS-ComfyUI, whose model is then tested too."""

import os
from contextlib import nullcontext

import pytest
import torch

from zonos2_triton.bench.proof.interpreter import checked

collect_ignore = [] if os.environ.get("ZONOS2_COMFYUI") else ["test_comfyui.py"]


@pytest.fixture(autouse=True)
def launches():
    """The interpreter without its checks, which the kernels' own tests have."""
    unchecked = {"bounds": False, "undefined": False, "races": False}
    with checked(**unchecked) if not torch.cuda.is_available() else nullcontext():
        yield


@pytest.fixture(params=["reference", pytest.param("triton", marks=pytest.mark.interpreter)])
def backend(request):
    return request.param


@pytest.fixture(params=["reference", pytest.param("triton", marks=[pytest.mark.interpreter, pytest.mark.slow])])
def slower_backend(request):
    """For operations that another test runs with kernels as well."""
    return request.param
