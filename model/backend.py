"""The choice of backend, device and dtype."""

import logging
import os
import sys
from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch

from zonos2_triton import _settings
from zonos2_triton._settings import BACKENDS as BACKENDS
from zonos2_triton.reference.scalars import as_int

LOG = logging.getLogger("zonos2_triton")
INTERPRET = "TRITON_INTERPRET"


def check_backend(backend: str) -> None:
    """ValueError: not the name of a backend."""
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")


def resolve_backend(backend: str, device: torch.device, dtype: torch.dtype = torch.float32) -> str:
    """The backend that runs on `device` in `dtype`: "reference" or "triton". ValueError: unknown, or cannot run there.

    "auto" follows ZONOS2_TRITON_BACKEND. By default it means the kernels on a GPU, and the reference on a CPU, where
    Triton's interpreter is slow. Under ZONOS2_TRITON_DISABLE=1 the reference always runs.
    """
    check_backend(backend)
    if _settings.disabled():
        if backend == "triton":
            _warn_disabled()
        return "reference"
    asked, by = backend, ""
    if backend == "auto":
        asked, by = _settings.backend(), f"{_settings.BACKEND}: "
    if asked == "auto":
        able = device.type == "cuda" and dtype != torch.float64 and triton_fault(device) is None
        asked = "triton" if able else "reference"
    elif asked == "triton":
        if dtype == torch.float64:
            raise ValueError(f"{by}backend 'triton' runs in float32, bfloat16 and float16; use 'reference' for float64")
        if fault := triton_fault(device):
            raise ValueError(f"{by}{fault}")
    if asked == "triton":
        from zonos2_triton.kernels._launch_config import overrides  # loads Triton, which may be missing

        overrides()  # report a wrong launch configuration now, not at the first launch
    return asked


@cache  # log once
def _warn_disabled() -> None:
    LOG.warning("%s=1: backend 'triton' was asked for, the reference runs", _settings.DISABLE)


def triton_fault(device: torch.device) -> str | None:
    """Why kernels cannot run on `device`, or None.

    Triton decides at import whether it compiles or interprets. A CPU needs the interpreter, so TRITON_INTERPRET=1 is
    set if Triton is not imported yet.
    """
    if device.type == "cpu" and "triton" not in sys.modules:
        os.environ[INTERPRET] = "1"
    try:
        import triton
    except Exception as error:  # a broken one may raise anything
        return f"backend 'triton' needs the package triton, which cannot be imported: {error}"
    if device.type == "cpu" and not triton.knobs.runtime.interpret:
        return (
            f"backend 'triton' on a CPU needs Triton's interpreter, but this process imported Triton as a compiler; "
            f"set {INTERPRET}=1 before it starts, or use 'reference'"
        )
    return None


def resolve_device(device: str | int | torch.device | None) -> torch.device:
    """None: a GPU if there is one, else the CPU. A number: that GPU. ValueError: no CPU, CUDA or ROCm device here."""
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    index = as_int(device)
    try:
        resolved = torch.device(device) if index is None else torch.device("cuda", index)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device must be a torch device such as 'cpu' or 'cuda', got {device!r}") from error
    if resolved.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be a CPU or a CUDA or ROCm device, got {str(device)!r}")
    if resolved.type == "cuda" and (resolved.index or 0) >= (found := torch.cuda.device_count()):
        raise ValueError(f"device is {str(resolved)!r}, but torch {torch.__version__} finds {found} GPUs; use 'cpu'")
    return resolved


def current(device: torch.device) -> AbstractContextManager[object]:
    """Inside, `device` is the current device."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


DTYPES = {name: getattr(torch, name) for name in ("float64", "float32", "bfloat16", "float16")}


def resolve_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """A dtype by name or as torch.dtype. ValueError: not one of DTYPES."""
    resolved = DTYPES.get(dtype, dtype) if isinstance(dtype, str) else dtype
    if resolved not in DTYPES.values():
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    return resolved
