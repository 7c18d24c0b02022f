"""The output head: the logits of every codebook."""

import torch
from einops import rearrange
from torch import Tensor

from zonos2_triton.reference.add_rms_norm import rms_norm
from zonos2_triton.reference.numeric import wide


def codebook_head(
    x: Tensor,
    norm_weight: Tensor | None,
    weight: Tensor,
    n_codebooks: int,
    eps: float,
    softcap: float,
    prefill: bool = False,
    x_scaled: Tensor | None = None,
    sum_sq: Tensor | None = None,
) -> Tensor:
    """x [M, D], weight [C * V, D] -> wide logits [M, C, V] = softcap * tanh(weight h / softcap); softcap 0: no cap.

    h = rms_norm(x), or x itself where norm_weight is None: it is normed already. The product is rounded to x's dtype
    before the cap, as the official head does. `prefill`, x_scaled and sum_sq are for kernels.
    """
    h = x if norm_weight is None else rms_norm(x, norm_weight, eps)
    logits = wide(h @ weight.T)
    capped = softcap * torch.tanh(logits / softcap) if softcap else logits
    return rearrange(capped, "m (c v) -> m c v", c=n_codebooks)
