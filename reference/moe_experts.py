"""SwiGLU feed-forward: a mixture of experts; the dense layer is the case of one expert."""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor

from zonos2_triton.reference.add_rms_norm import prepare_norm, rms_norm
from zonos2_triton.reference.numeric import wide


def swiglu(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """x [T, D]; gate, up [I, D]; down [D, I] -> down(silu(gate x) * up x), [T, D]; the product is rounded once."""
    return (F.silu(wide(x @ gate.T)) * wide(x @ up.T)).to(x.dtype) @ down.T


def moe_experts(
    x: Tensor,
    norm_weight: Tensor | None,
    gate: Tensor,
    up: Tensor,
    down: Tensor,
    eps: float,
    sorted_slot_ids: Tensor | None = None,
    expert_offsets: Tensor | None = None,
    expert_weights: Tensor | None = None,
    prefill: bool = False,
    residual: bool = True,
    x_scaled: Tensor | None = None,
    sum_sq: Tensor | None = None,
    next_norm_weight: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """x [M, D] -> x + the weighted sum of `swiglu` of rms_norm(x) by each token's experts, [M, D], rounded once.

    gate, up [E, I, D] and down [E, D, I]. Slot m * K + k is choice k of token m, with weight expert_weights[m, k].
    Expert e has the slots sorted_slot_ids[expert_offsets[e] : expert_offsets[e + 1]], as `moe_router` sorts them.
    Slots at or after expert_offsets[E] are idle: they go to no expert and add nothing.

    Without those three every token goes through the one expert, unweighted. norm_weight None: x is normed already.
    residual False: the weighted sum alone, without x. Then come x_scaled and sum_sq of the result, as `prepare_norm`
    makes them for the norm that follows. The arguments `prefill`, x_scaled and sum_sq are for kernels.
    """
    y = _experts(x, norm_weight, gate, up, down, eps, sorted_slot_ids, expert_offsets, expert_weights, residual)
    return y, *prepare_norm(y, next_norm_weight)


def _experts(
    x: Tensor,
    norm_weight: Tensor | None,
    gate: Tensor,
    up: Tensor,
    down: Tensor,
    eps: float,
    sorted_slot_ids: Tensor | None,
    expert_offsets: Tensor | None,
    expert_weights: Tensor | None,
    residual: bool,
) -> Tensor:
    h = x if norm_weight is None else rms_norm(x, norm_weight, eps)
    if sorted_slot_ids is None or expert_offsets is None or expert_weights is None:
        y = swiglu(h, gate[0], up[0], down[0])
        return (wide(x) + wide(y)).to(x.dtype) if residual else y
    cuts, k = expert_offsets.tolist(), expert_weights.shape[1]
    y = wide(x.new_zeros(len(sorted_slot_ids), x.shape[1]))
    for e, (first, end) in enumerate(pairwise(cuts)):
        if end > first:
            slots = sorted_slot_ids[first:end].long()
            y[slots] = wide(swiglu(h[slots // k], gate[e], up[e], down[e]))
    weights = expert_weights.flatten().index_fill(0, sorted_slot_ids[cuts[-1] :].long(), 0)
    y = (y * weights[:, None]).unflatten(0, (len(x), k)).sum(1)
    return (wide(x) + y if residual else y).to(x.dtype)
