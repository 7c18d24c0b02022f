"""Which code runs where."""

import torch

BACKENDS = ("reference", "triton", "auto")


def resolve_backend(backend: str, device: torch.device) -> str:
    """The backend that will run on `device`. ValueError: an unknown one, or one that has no kernels yet."""
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    if backend == "triton":
        raise ValueError("backend 'triton' has no kernels in this version; use 'reference', or 'auto'")
    return "reference"  # also what "auto" means as long as there are no kernels


def resolve_device(device: str | torch.device) -> torch.device:
    """ValueError: neither a CPU nor a CUDA or ROCm device that this machine has."""
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device must be a torch device such as 'cpu' or 'cuda', got {device!r}") from error
    if resolved.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be a CPU or a CUDA or ROCm device, got {str(device)!r}")
    if resolved.type == "cuda" and (resolved.index or 0) >= (found := torch.cuda.device_count()):
        raise ValueError(f"device is {str(device)!r}, but torch {torch.__version__} finds {found} GPUs; use 'cpu'")
    return resolved


DTYPES = {name: getattr(torch, name) for name in ("float64", "float32", "bfloat16", "float16")}


def resolve_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """ValueError: anything but the four floating types, as torch.dtype or by name."""
    resolved = DTYPES.get(dtype, dtype) if isinstance(dtype, str) else dtype
    if resolved not in DTYPES.values():
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    return resolved
