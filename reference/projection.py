"""The linear maps into attention and out of it."""

import torch
from torch import Tensor

from zonos2_triton.reference.norm import rms_norm
from zonos2_triton.reference.numeric import wide


def qkv_projection(
    x: Tensor, norm_weight: Tensor | None, wq: Tensor, wkv: Tensor, gater: Tensor, eps: float, prefill: bool = False
) -> Tensor:
    """x [M, D] -> [M, HQ * DH + 2 * HKV * DH + HQ]: queries, keys, values and head gates of rms_norm(x), side by side.

    wq [HQ * DH, D], wkv [2, HKV * DH, D] (keys, values), gater [HQ, D]. norm_weight None: x is normed already.
    `prefill` is for kernels: it changes no result here.
    """
    h = x if norm_weight is None else rms_norm(x, norm_weight, eps)
    return torch.cat([h @ w.T for w in (wq, *wkv, gater)], 1)


def output_projection(y: Tensor, weight: Tensor, residual: Tensor | None, prefill: bool = False) -> Tensor:
    """y [M, HQ * DH], weight [D, HQ * DH], residual [M, D] -> residual + weight y, [M, D], the sum rounded once.

    A residual of None adds nothing.
    """
    x = y @ weight.T
    return x if residual is None else (wide(residual) + wide(x)).to(residual.dtype)
