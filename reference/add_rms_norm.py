"""Root mean square normalisation."""

import torch
from torch import Tensor

from zonos2_triton.reference.numeric import wide


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """x [..., D], weight [D] or None -> weight * x / sqrt(mean(x^2) + eps) in x's dtype, rounded once."""
    y = wide(x)
    y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps)
    return (y if weight is None else y * wide(weight)).to(x.dtype)


def add_rms_norm(x: Tensor, residual: Tensor | None, weight: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    """x, residual [M, D], weight [D] -> (x + residual, its rms_norm), each rounded once; None adds nothing."""
    total = wide(x) if residual is None else wide(x) + wide(residual)
    return total.to(x.dtype), rms_norm(total, weight, eps).to(x.dtype)
