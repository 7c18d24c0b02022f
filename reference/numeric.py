"""The rules of precision: what needs more than bf16 is computed wide and rounded once, and fp32 means IEEE fp32."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """x in fp64 if it is fp64, else in fp32."""
    return x if x.dtype == torch.float64 else x.float()


_backends: Any = torch.backends  # not all of it is annotated
SWITCHES = (
    *((_backends.cudnn.conv, "fp32_precision", "ieee"), (_backends.cuda.matmul, "fp32_precision", "ieee")),
    *((_backends.mkldnn.conv, "fp32_precision", "ieee"), (_backends.mkldnn.matmul, "fp32_precision", "ieee")),
    *((_backends.cudnn, "deterministic", True), (_backends.cudnn, "benchmark", False)),
)
_lock = threading.Lock()
_inside = 0
_before: list[Any] = []


@contextmanager
def exact_numerics() -> Iterator[None]:
    """Inside, fp32 is IEEE fp32 (cuDNN's convolutions use TF32 by default) and the same input gives the same bits.

    The switches belong to the process. They are set by the first thread that enters and set back by the last that
    leaves; one that only inherited its value holds it as its own from then on.
    """
    global _inside
    with _lock:
        if _inside == 0:
            _before[:] = [getattr(owner, name) for owner, name, _ in SWITCHES]
            for owner, name, value in SWITCHES:
                setattr(owner, name, value)
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                for (owner, name, _), value in zip(SWITCHES, _before, strict=True):
                    setattr(owner, name, value)
