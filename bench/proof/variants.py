"""Inputs that show what ordinary ones hide: changes to the inputs of a workload, by operator and name."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

Inputs = dict[str, Any]
Changes = Mapping[str, Callable[[Inputs], Inputs]]

# An epsilon that counts; at its real size a wrong one could not be seen. That of the head norms is a constant: there
# the rows have to be small.
_EPSILON: Changes = {"epsilon": lambda inputs: {"eps": 0.5}}
_HEADS: Changes = {
    "epsilon": lambda inputs: {"qkvg": inputs["qkvg"] * 1e-3},
    "negative-temperature": lambda inputs: {"qk_temperature": -inputs["qk_temperature"]},
}


def _not_finite(inputs: Inputs) -> Inputs:
    """Logits of `sample_codes`: one such logit among others in every row but the last, which is nothing but -inf."""
    logits = inputs["logits"].clone()
    rows = logits.view(-1, logits.shape[-1])
    for row, value in enumerate((float("nan"), float("inf"), float("-inf"))):
        rows[row::4, 5 + row] = value
    rows[-1] = float("-inf")
    return {"logits": logits}


def _beyond_fp32(inputs: Inputs) -> Inputs:
    """Logits of `sample_codes` that the least temperature takes to infinity, several in a row."""
    settings = inputs["settings"].clone()
    settings[:, 0] = 1e-6
    return {"logits": inputs["logits"] * 1e34, "settings": settings}


# What a sine is taken of, so large that its reduction has nothing left.
_FAR: Changes = {"far": lambda inputs: {"bias": inputs["bias"] * 1e30}}
VARIANTS: Mapping[str, Changes] = {
    **dict.fromkeys(("frame_embedding", "add_rms_norm", "qkv_projection", "moe_experts"), _EPSILON),
    **dict.fromkeys(("decode_attention", "prefill_attention"), _HEADS),
    **dict.fromkeys(("conv1d_snake", "conv_transpose1d_snake", "residual_unit"), _FAR),
    "codebook_head": {**_EPSILON, "loud": lambda inputs: {"weight": 16 * inputs["weight"]}},
    "sample_codes": {
        "not-finite": _not_finite,
        "far": lambda inputs: {"logits": inputs["logits"] * 1e3},
        "beyond-fp32": _beyond_fp32,
    },
    "moe_router": {
        **_EPSILON,
        "ties": lambda inputs: {name: torch.zeros_like(inputs[name]) for name in ("w3", "balancing_biases")},
        "all-masked": lambda inputs: {
            "balancing_biases": torch.full_like(inputs["balancing_biases"], float("-inf")),
            "k": 2,
        },
    },
}
