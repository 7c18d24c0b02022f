"""Precision: wide intermediates are rounded once, and fp32 means IEEE fp32."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """x in fp64 if it is fp64, else in fp32."""
    return x if x.dtype == torch.float64 else x.float()


LOG2E, LN2_HIGH, LN2_LOW = 1.4426950408889634, 0.693359375, -2.12194440e-4  # the high part has 9 bits: n * it is exact
# exp(r) = 1 + r + r^2 p(r) for |r| <= ln(2) / 2: coefficients of expf in the Cephes library (S. Moshier).
EXP_TERMS = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)


def exp_nonpositive(x: Tensor) -> Tensor:
    """exp(x) of fp32 x <= 0, within 0.75 of a last place; 0 below -104.

    Sums, products and powers of two alone, each rounded once: any machine that does not fuse them gets the same bits.
    """
    n = torch.floor(x.clamp(min=-104) * LOG2E + 0.5)
    high, low = x.clamp(min=-104) - n * LN2_HIGH, n * -LN2_LOW
    r = high + low
    p = torch.full_like(r, EXP_TERMS[0])
    for term in EXP_TERMS[1:]:
        p = p * r + term
    one = 1 + high
    y = one + ((high - (one - 1)) + (low + r * r * p))  # what 1 + high lost is added back
    half = n.int() >> 1  # in two steps: 2^n alone may be no normal number
    return torch.where(x < -104, 0.0, y * _power_of_two(half) * _power_of_two(n.int() - half))


def _power_of_two(n: Tensor) -> Tensor:
    return ((n + 127) << 23).view(torch.float32)


_backends: Any = torch.backends  # not all of it is annotated
SWITCHES = (
    *((_backends.cudnn.conv, "fp32_precision", "ieee"), (_backends.cuda.matmul, "fp32_precision", "ieee")),
    *((_backends.mkldnn.conv, "fp32_precision", "ieee"), (_backends.mkldnn.matmul, "fp32_precision", "ieee")),
    *((_backends.cudnn, "deterministic", True), (_backends.cudnn, "benchmark", False)),
    # The others have torch's defaults.
    *((_backends.cudnn, "enabled", True), (_backends.mkldnn, "enabled", True)),
    (_backends.cuda.matmul, "allow_fp16_accumulation", False),
    (_backends.cuda.matmul, "allow_fp16_reduced_precision_reduction", True),
    (_backends.cuda.matmul, "allow_bf16_reduced_precision_reduction", True),
)
# Some cuBLAS switches are pairs, of which the attribute shows half.
PAIRS = {name: f"{name}_split_k" for owner, name, _ in SWITCHES if hasattr(owner, f"{name}_split_k")}
_lock = threading.Lock()
_inside = 0
_before: list[Any] = []


def _value(owner: Any, name: str) -> Any:
    """The value of a switch, in the form that sets it."""
    value = getattr(owner, name)
    return (value, getattr(owner, PAIRS[name])) if name in PAIRS else value


@contextmanager
def exact_numerics() -> Iterator[None]:
    """Inside, fp32 is IEEE fp32, results are deterministic, and autocast is off.

    cuDNN's convolutions use TF32 by default. The switches belong to the process: the first thread that enters sets
    them, and the last that leaves restores them. A switch that had inherited its value keeps it as its own. Autocast
    belongs to the thread.
    """
    global _inside
    with _lock:
        if _inside == 0:
            _before[:] = [_value(owner, name) for owner, name, _ in SWITCHES]
            for owner, name, value in SWITCHES:
                setattr(owner, name, value)
        _inside += 1
    try:
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                for (owner, name, _), value in zip(SWITCHES, _before, strict=True):
                    setattr(owner, name, value)


@contextmanager
def isolated() -> Iterator[None]:
    """Inside, the caller's settings of torch change no bit: `exact_numerics` without gradients.

    Tensors made here are ordinary, also under inference mode, so a later call may change them. A default device or
    dtype still applies, so each new tensor names both.
    """
    with torch.inference_mode(False), torch.no_grad(), exact_numerics():  # in this order: the first allows gradients
        yield
