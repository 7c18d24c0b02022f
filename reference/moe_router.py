"""The MoE router: a small network, with a state that each mixture layer hands to the next."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from zonos2_triton.reference.add_rms_norm import rms_norm
from zonos2_triton.reference.numeric import wide


class Routing(NamedTuple):
    """K experts and weights of each of M tokens, by descending score; and the slots m * K + k sorted by expert."""

    expert_ids: Tensor  # [M, K] int32
    expert_weights: Tensor  # [M, K] wide
    probs: Tensor  # [M, E] wide
    router_state: Tensor  # [M, R], for the router of the next layer
    sorted_slot_ids: Tensor  # [M * K] int32: by expert, then by slot; idle ones last
    expert_offsets: Tensor  # [E + 1] int32: where each expert's slots begin in sorted_slot_ids


def moe_router(
    x: Tensor,
    norm_weight: Tensor | None,
    router_state: Tensor | None,
    state_scale: Tensor | None,
    down_weight: Tensor,
    down_bias: Tensor,
    state_norm: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    w3: Tensor,
    balancing_biases: Tensor,
    k: int,
    eps: float,
    positions: Tensor | None = None,
    x_scaled: Tensor | None = None,
    sum_sq: Tensor | None = None,
) -> Routing:
    """x [M, D], router_state [M, R] or None -> Routing.

    norm_weight [D], state_scale and state_norm [R], down_weight [R, D], w1 and w2 [R, R] with b1 and b2, w3 [E, R],
    balancing_biases [E]. s = down(rms_norm(x)) (+ router_state * state_scale) is the next state. The probabilities are
    softmax(mlp(rms_norm(s))) with an exact (erf) GELU between the three layers. The choice is the top k of
    probabilities + balancing_biases, the lower expert first where they tie; the weights are the probabilities.
    norm_weight None: x is normed already. A token with a negative position (positions [M]) is idle: it goes to no
    expert. x_scaled and sum_sq are for kernels.
    """
    h = x if norm_weight is None else rms_norm(x, norm_weight, eps)
    s = F.linear(h, down_weight, down_bias)
    if router_state is not None and state_scale is not None:
        s = s + router_state * state_scale
    h = F.gelu(F.linear(rms_norm(s, state_norm, eps), w1, b1))
    probs = wide(F.linear(F.gelu(F.linear(h, w2, b2)), w3)).softmax(-1)
    ids = torch.sort(probs + wide(balancing_biases), descending=True, stable=True).indices[:, :k]
    return Routing(ids.int(), probs.gather(1, ids), probs, s, *by_expert(ids, len(w3), positions))


def by_expert(expert_ids: Tensor, n_experts: int, positions: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """expert_ids [M, K] -> sorted_slot_ids [M * K], expert_offsets [E + 1]; negative positions are of idle tokens."""
    ids = expert_ids.long()
    if positions is not None:
        ids = torch.where((positions < 0)[:, None], n_experts, ids)
    slots = ids.flatten()
    counts = torch.zeros(n_experts + 2, dtype=torch.int64, device=slots.device)
    counts.scatter_add_(0, slots + 1, torch.ones_like(slots))
    return slots.argsort(stable=True).int(), counts.cumsum(0)[:-1].int()
