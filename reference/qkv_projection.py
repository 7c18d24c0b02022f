"""The projections into attention."""

import torch
from torch import Tensor

from zonos2_triton.reference.add_rms_norm import rms_norm


def qkv_projection(
    x: Tensor,
    norm_weight: Tensor | None,
    wq: Tensor,
    wkv: Tensor,
    gater: Tensor,
    eps: float,
    prefill: bool = False,
    x_scaled: Tensor | None = None,
    sum_sq: Tensor | None = None,
) -> Tensor:
    """x [M, D] -> [M, HQ * DH + 2 * HKV * DH + HQ]: queries, keys, values and head gates of rms_norm(x), side by side.

    wq [HQ * DH, D], wkv [2, HKV * DH, D] (keys, values), gater [HQ, D]. norm_weight None: x is normed already.
    `prefill`, x_scaled and sum_sq are for kernels.
    """
    h = x if norm_weight is None else rms_norm(x, norm_weight, eps)
    return torch.cat([h @ w.T for w in (wq, *wkv, gater)], 1)
