"""SwiGLU feed-forward: a mixture of experts, of which the dense layer is the one-expert case."""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor

from zonos2_triton.reference.norm import rms_norm
from zonos2_triton.reference.numeric import wide


def swiglu(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """x [T, D]; gate, up [I, D]; down [D, I] -> down(silu(gate x) * up x), [T, D]; the product is rounded once."""
    return (F.silu(wide(x @ gate.T)) * wide(x @ up.T)).to(x.dtype) @ down.T


def moe_experts(
    x: Tensor, norm_weight: Tensor | None, gate: Tensor, up: Tensor, down: Tensor, eps: float,
    order: Tensor | None = None, offsets: Tensor | None = None, expert_weights: Tensor | None = None,
    prefill: bool = False, residual: bool = True,
) -> Tensor:  # fmt: skip
    """x [M, D] -> x + the weighted sum of `swiglu` of rms_norm(x) by each row's experts, [M, D], rounded once.

    gate, up [E, I, D] and down [E, D, I]; order [M * K] and offsets [E + 1] as `moe_router` makes them: expert e has
    the slots order[offsets[e] : offsets[e + 1]], slot m * K + k being choice k of row m, with expert_weights [M, K].
    Slots behind offsets[E] go to no expert: y = x. Without those three every row goes through the one expert,
    unweighted. norm_weight None: x is normed already. residual False: the weighted sum alone, without x. `prefill` is
    for kernels.
    """
    h = x if norm_weight is None else rms_norm(x, norm_weight, eps)
    if order is None or offsets is None or expert_weights is None:
        y = swiglu(h, gate[0], up[0], down[0])
        return (wide(x) + wide(y)).to(x.dtype) if residual else y
    cuts, k = offsets.tolist(), expert_weights.shape[1]
    y = wide(x.new_zeros(len(order), x.shape[1]))
    for e, (first, end) in enumerate(pairwise(cuts)):
        if end > first:
            slots = order[first:end].long()
            y[slots] = wide(swiglu(h[slots // k], gate[e], up[e], down[e]))
    weights = expert_weights.flatten().index_fill(0, order[cuts[-1] :].long(), 0)
    y = (y * weights[:, None]).unflatten(0, (len(x), k)).sum(1)
    return (wide(x) + y if residual else y).to(x.dtype)
