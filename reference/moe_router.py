"""The router: a small network with a state that is handed from one mixture layer to the next."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from zonos2_triton.reference.norm import rms_norm
from zonos2_triton.reference.numeric import wide


class Routing(NamedTuple):
    """Of M rows: the K chosen experts by descending score and their weights, and the same sorted by expert."""

    expert_ids: Tensor  # [M, K] int32
    expert_weights: Tensor  # [M, K] wide
    probs: Tensor  # [M, E] wide
    state: Tensor  # [M, R], for the router of the next layer
    order: Tensor  # [M * K] int32: slots m * K + k sorted by expert, then by slot; idle ones last
    offsets: Tensor  # [E + 1] int32: where each expert's slots begin in order


def moe_router(
    x: Tensor, norm_weight: Tensor | None, state: Tensor | None, scale: Tensor | None, down_weight: Tensor,
    down_bias: Tensor, state_norm: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, w3: Tensor, biases: Tensor,
    k: int, eps: float, positions: Tensor | None = None,
) -> Routing:  # fmt: skip
    """x [M, D], state [M, R] or None -> Routing.

    norm_weight [D], scale and state_norm [R], down_weight [R, D], w1 and w2 [R, R] with b1 and b2, w3 [E, R],
    biases [E]. s = down(rms_norm(x)) (+ state * scale) is the next state as it stands; the probabilities are
    softmax(mlp(rms_norm(s))) with an exact (erf) GELU between the three layers. The choice is the top k of
    probabilities + biases, the lower expert first where they tie; the weights are the probabilities themselves.
    norm_weight None: x is normed already. A row with a negative position (positions [M]) is idle: it goes to no expert.
    """
    h = x if norm_weight is None else rms_norm(x, norm_weight, eps)
    s = F.linear(h, down_weight, down_bias)
    if state is not None and scale is not None:
        s = s + state * scale
    h = F.gelu(F.linear(rms_norm(s, state_norm, eps), w1, b1))
    probs = wide(F.linear(F.gelu(F.linear(h, w2, b2)), w3)).softmax(-1)
    ids = torch.sort(probs + wide(biases), descending=True, stable=True).indices[:, :k]
    return Routing(ids.int(), probs.gather(1, ids), probs, s, *by_expert(ids, len(w3), positions))


def by_expert(expert_ids: Tensor, n_experts: int, positions: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """expert_ids [M, K] -> (order [M * K], offsets [E + 1]) of a Routing; rows with a negative position are idle."""
    ids = expert_ids.long()
    if positions is not None:
        ids = torch.where((positions < 0)[:, None], n_experts, ids)
    slots = ids.flatten()
    counts = torch.zeros(n_experts + 2, dtype=torch.int64, device=slots.device)
    counts.scatter_add_(0, slots + 1, torch.ones_like(slots))
    return slots.argsort(stable=True).int(), counts.cumsum(0)[:-1].int()
