"""The output head."""

import torch
from einops import rearrange
from torch import Tensor

from zonos2_triton.reference.numeric import wide


def head(x: Tensor, weight: Tensor, n_codebooks: int, softcap: float) -> Tensor:
    """x [T, D], weight [C * V, D] -> wide logits [T, C, V] = softcap * tanh(weight x / softcap); softcap 0: no cap.

    The product is rounded to x's dtype before the cap, as the official head does.
    """
    logits = wide(x @ weight.T)
    capped = softcap * torch.tanh(logits / softcap) if softcap else logits
    return rearrange(capped, "t (c v) -> t c v", c=n_codebooks)
