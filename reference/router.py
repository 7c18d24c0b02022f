"""The router: a small network with a state that is handed from one mixture layer to the next."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from zonos2_triton.reference.norm import rms_norm
from zonos2_triton.reference.numeric import wide


class Routing(NamedTuple):
    """Of T tokens: the K chosen experts by descending score, their weights, all probabilities, the next state."""

    expert_ids: Tensor  # [T, K] int64
    expert_weights: Tensor  # [T, K]
    probs: Tensor  # [T, E]
    state: Tensor  # [T, R]


def route(
    x: Tensor, state: Tensor | None, scale: Tensor | None, down: tuple[Tensor, Tensor], norm: Tensor,
    mlp: list[tuple[Tensor, Tensor | None]], biases: Tensor, k: int, eps: float,
) -> Routing:  # fmt: skip
    """x [T, D], state [T, R] or None -> Routing.

    scale [R]; down ([R, D], [R]); norm [R]; mlp three of (weight, bias or None), [R, R] twice and [E, R]; biases [E].
    s = down(x) (+ state * scale) is the next state as it stands; the probabilities are
    softmax(mlp(rms_norm(s))) with an exact (erf) GELU between the layers. The choice is the top k of
    probabilities + biases, the lower expert first where they tie; the weights are the probabilities themselves.
    """
    s = F.linear(x, *down)
    if state is not None and scale is not None:
        s = s + state * scale
    h = rms_norm(s, norm, eps)
    for i, (weight, bias) in enumerate(mlp):
        h = F.linear(h if i == 0 else F.gelu(h), weight, bias)
    probs = wide(h).softmax(-1)
    ids = torch.sort(probs + wide(biases), descending=True, stable=True).indices[:, :k]
    return Routing(ids, probs.gather(1, ids), probs, s)
