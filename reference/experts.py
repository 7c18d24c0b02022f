"""SwiGLU feed-forward: dense, and as a mixture of experts."""

import torch
import torch.nn.functional as F
from torch import Tensor

from zonos2_triton.reference.numeric import wide


def swiglu(x: Tensor, gate: Tensor, up: Tensor, out: Tensor) -> Tensor:
    """x [T, D]; gate, up [I, D]; out [D, I] -> out(silu(gate x) * up x), [T, D]; the product is rounded once."""
    return (F.silu(wide(x @ gate.T)) * wide(x @ up.T)).to(x.dtype) @ out.T


def experts(x: Tensor, expert_ids: Tensor, expert_weights: Tensor, w13: Tensor, w2: Tensor) -> Tensor:
    """x [T, D], expert_ids and expert_weights [T, K] -> sum over k of weight * swiglu by that expert, [T, D].

    The sum is wide and rounded once. w13 [E, 2 * I, D] interleaves its rows: the even ones gate, the odd ones are
    multiplied; w2 [E, D, I].
    """
    y = wide(torch.zeros_like(x))
    for k in range(expert_ids.shape[1]):  # in the order of choice, whatever the other tokens chose
        for e in expert_ids[:, k].unique().tolist():
            rows = (expert_ids[:, k] == e).nonzero()[:, 0]
            chosen = swiglu(x[rows], w13[e, 0::2], w13[e, 1::2], w2[e])
            y[rows] += expert_weights[rows, k, None] * chosen
    return y.to(x.dtype)
