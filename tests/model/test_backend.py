"""Backend names, with and without the environment variables."""

import logging
import re

import pytest
import torch
import triton

from zonos2_triton._settings import BACKEND, DISABLE, LAUNCH_CONFIG
from zonos2_triton.kernels._launch_config import overrides
from zonos2_triton.model import backend
from zonos2_triton.model.backend import resolve_backend

CPU, GPU = torch.device("cpu"), torch.device("cuda")
on_a_cpu = pytest.mark.interpreter


@pytest.fixture(autouse=True)
def fresh(unset):
    backend._warn_disabled.cache_clear()
    overrides.cache_clear()
    yield
    overrides.cache_clear()


@pytest.mark.parametrize(
    ("said", "asked", "device", "dtype", "resolved"),
    [
        (None, "auto", CPU, torch.float32, "reference"),
        (None, "auto", GPU, torch.bfloat16, "triton"),
        (None, "auto", GPU, torch.float64, "reference"),
        pytest.param(None, "triton", CPU, torch.float32, "triton", marks=on_a_cpu),
        ("", "auto", GPU, torch.float32, "triton"),
        ("auto", "auto", GPU, torch.float32, "triton"),
        ("triton", "auto", GPU, torch.float32, "triton"),
        pytest.param("triton", "auto", CPU, torch.float32, "triton", marks=on_a_cpu),
        ("triton", "reference", GPU, torch.float32, "reference"),
        ("reference", "triton", GPU, torch.float32, "triton"),
        ("wrong", "triton", GPU, torch.float32, "triton"),
    ],
)
def test_names_and_what_the_environment_says(monkeypatch, said, asked, device, dtype, resolved):
    """An explicit name overrides the environment; "auto" follows it."""
    if said is not None:
        monkeypatch.setenv(BACKEND, said)
    assert resolve_backend(asked, device, dtype) == resolved


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        ("cuda", torch.float32, f"{BACKEND} is 'cuda'; accepted: reference, triton, auto"),
        ("Triton", torch.float32, f"{BACKEND} is 'Triton'; accepted: reference, triton, auto"),
        ("triton", torch.float64, f"{BACKEND}: backend 'triton' runs in float32, bfloat16 and float16"),
    ],
)
def test_what_the_environment_may_not_say(monkeypatch, value, dtype, message):
    monkeypatch.setenv(BACKEND, value)
    with pytest.raises(ValueError, match=f"^{message}"):
        resolve_backend("auto", CPU, dtype)


def test_a_backend_that_the_environment_asks_for_and_that_cannot_run(monkeypatch):
    monkeypatch.setenv(BACKEND, "triton")
    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    with pytest.raises(ValueError, match=f"^{BACKEND}: backend 'triton' on a CPU needs Triton's interpreter"):
        resolve_backend("auto", CPU)
    with pytest.raises(ValueError, match=r"^backend 'triton' on a CPU needs Triton's interpreter"):
        resolve_backend("triton", CPU)


@pytest.mark.parametrize("said", ["auto", "triton"])
def test_disabled_is_the_reference_everywhere(monkeypatch, caplog, said):
    monkeypatch.setenv(DISABLE, "1")
    monkeypatch.setenv(BACKEND, said)
    with caplog.at_level(logging.WARNING, "zonos2_triton"):
        assert [resolve_backend(name, GPU, torch.float16) for name in ("auto", "reference")] == ["reference"] * 2
        assert caplog.messages == []
        assert [resolve_backend("triton", device) for device in (GPU, CPU)] == ["reference"] * 2
    assert caplog.messages == [f"{DISABLE}=1: backend 'triton' was asked for, the reference runs"]


def test_a_model_is_loaded_as_the_environment_says(monkeypatch, golden):
    monkeypatch.setenv(DISABLE, "1")
    assert golden.vocoder("even", backend="triton").backend == "reference"


def test_a_wrong_switch_is_named_whatever_is_asked_for(monkeypatch):
    monkeypatch.setenv(DISABLE, "0")
    assert resolve_backend("triton", GPU) == "triton"
    monkeypatch.setenv(DISABLE, "yes")
    with pytest.raises(ValueError, match=f"^{DISABLE} is 'yes'; accepted: 0, 1"):
        resolve_backend("reference", CPU)


def test_a_wrong_file_of_launch_parameters_is_named_before_anything_is_loaded(monkeypatch, tmp_path):
    path = tmp_path / "launch.json"
    monkeypatch.setenv(LAUNCH_CONFIG, str(path))
    with pytest.raises(ValueError, match=f"^{LAUNCH_CONFIG} names {re.escape(repr(str(path)))}, which cannot be read"):
        resolve_backend("triton", GPU)
    assert resolve_backend("reference", GPU) == "reference"
