"""Triton kernels, one operation per file: `zonos2_triton.kernels.<op>.<op>` is `torch.ops.zonos2_triton.<op>`.

Importing this package registers all of them, and so imports Triton.
"""

from zonos2_triton.kernels import (
    add_rms_norm,
    advance_frame,
    codebook_head,
    conv1d_snake,
    conv1d_tanh,
    conv_transpose1d_snake,
    decode_attention,
    frame_embedding,
    moe_experts,
    moe_router,
    output_projection,
    prefill_attention,
    qkv_projection,
    residual_unit,
    rotary,
    rvq_decode,
    sample_codes,
)

__all__ = [
    "add_rms_norm",
    "advance_frame",
    "codebook_head",
    "conv1d_snake",
    "conv1d_tanh",
    "conv_transpose1d_snake",
    "decode_attention",
    "frame_embedding",
    "moe_experts",
    "moe_router",
    "output_projection",
    "prefill_attention",
    "qkv_projection",
    "residual_unit",
    "rotary",
    "rvq_decode",
    "sample_codes",
]
