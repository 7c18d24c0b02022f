"""The rules of precision: what needs more than bf16 is computed wide and rounded once, and fp32 means IEEE fp32."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """x in fp64 if it is fp64, else in fp32."""
    return x if x.dtype == torch.float64 else x.float()


@contextmanager
def ieee_fp32() -> Iterator[None]:
    """No TF32 inside, whatever the process has allowed: cuDNN convolutions use it by default. Process-wide state."""
    switches: tuple[Any, ...] = (getattr(torch.backends.cudnn, "conv"), torch.backends.cuda.matmul)  # noqa: B009  untyped
    before = [switch.fp32_precision for switch in switches]
    try:
        for switch in switches:
            switch.fp32_precision = "ieee"
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.fp32_precision = value
