"""Root mean square normalisation."""

import torch
from torch import Tensor

from zonos2_triton.reference.numeric import wide


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """x [..., D], weight [D] or None -> weight * x / sqrt(mean(x^2) + eps) in x's dtype, rounded once."""
    y = wide(x)
    y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps)
    return (y if weight is None else y * wide(weight)).to(x.dtype)
