"""Liger's Triton kernels for this model: the norm, the rotary embedding, a dense feed-forward.

They are made for training; here their forward passes run. Norms multiply by the weight in fp32, as this model does,
which is Liger's casting mode "gemma".
"""

import torch
from torch import Tensor

from zonos2_triton.bench.baselines.attention_adapter import Call, Inputs
from zonos2_triton.reference.add_rms_norm import prepare_norm

CASTING, OFFSET, IN_PLACE = "gemma", 0.0, False


def add_rms_norm(inputs: Inputs) -> Call:
    x, residual, weight, eps = (inputs[name] for name in ("x", "residual", "weight", "eps"))
    if residual is None:
        return lambda: (x, _rms_norm(x, weight, eps))
    from liger_kernel.ops.fused_add_rms_norm import LigerFusedAddRMSNormFunction as Function

    def run() -> tuple[Tensor, Tensor]:
        normed, total = Function.apply(x, residual, weight, eps, OFFSET, CASTING, IN_PLACE)
        return total, normed

    return run


def rotary(inputs: Inputs) -> Call:
    """LigerLlama4RopeFunction, whose pairs are neighbours as they are here; LigerRopeFunction turns halves.

    It works in place, on what is a copy here, made beforehand: the first call gives the kernel's result, later ones
    turn it further. All heads go in as queries, beside one spare head of keys, which it asks for. The angles of the
    rows are gathered beforehand, as an engine does once a step for all layers.
    """
    from liger_kernel.ops.llama4_rope import LigerLlama4RopeFunction as Function

    x = inputs["x"].clone()[None]
    angles = inputs["cos_sin_cache"][inputs["positions"].long()].mT.contiguous()  # [M, DH / 2, 2]: cosine and sine
    spare = torch.zeros_like(x[:, :, :1])
    return lambda: Function.apply(x, spare, angles)[0][0]


def moe_experts(inputs: Inputs) -> Call:
    """The dense layer as LigerSwiGLUMLP has it: products by PyTorch, one kernel between them; the norm before it.

    The residual is added in the last product. Without a norm's weight, or a residual, neither is done. PyTorch makes
    what the norm that follows takes.
    """
    from liger_kernel.ops.swiglu import LigerSiLUMulFunction as Function

    x, norm_weight, eps = inputs["x"], inputs["norm_weight"], inputs["eps"]
    gate, up, down = (inputs[name][0].T for name in ("gate", "up", "down"))

    def run() -> tuple[Tensor, ...]:
        h = x if norm_weight is None else _rms_norm(x, norm_weight, eps)
        inner = Function.apply(h @ gate, h @ up)
        y = torch.addmm(x, inner, down) if inputs["residual"] else inner @ down
        return y, *prepare_norm(y, inputs["next_norm_weight"])

    return run


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction

    return LigerRMSNormFunction.apply(x, weight, eps, OFFSET, CASTING, IN_PLACE)
