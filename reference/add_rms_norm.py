"""Root mean square normalisation."""

import torch
import torch.nn.functional as F
from torch import Tensor

from zonos2_triton.reference.numeric import wide


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """x [..., D], weight [D] or None -> weight * x / sqrt(mean(x^2) + eps) in x's dtype, rounded once."""
    y = wide(x)
    y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps)
    return (y if weight is None else y * wide(weight)).to(x.dtype)


def prepare_norm(x: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """The first half of a norm, which the producer of x does: x_scaled and sum_sq, both empty without a weight.

    x [M, D], weight [D] -> weight * x [M, D], rounded once; sums of x^2 over groups of 16 columns, wide
    [M, cdiv(D, 16)]. A group is summed in pairs: the same bits as a kernel's.
    """
    if weight is None:
        return x.new_empty(0), wide(x.new_empty(0))
    squares = F.pad(wide(x).square(), (0, -x.shape[1] % 16)).unflatten(1, (-1, 16))
    while squares.shape[-1] > 1:
        squares = squares[..., 0::2] + squares[..., 1::2]
    return (wide(x) * wide(weight)).to(x.dtype), squares[..., 0]


def add_rms_norm(x: Tensor, residual: Tensor | None, weight: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    """x, residual [M, D], weight [D] -> (x + residual, its rms_norm), each rounded once; None adds nothing."""
    total = wide(x) if residual is None else wide(x) + wide(residual)
    return total.to(x.dtype), rms_norm(total, weight, eps).to(x.dtype)
