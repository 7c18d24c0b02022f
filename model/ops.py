"""The tables of operations by backend."""

from functools import partial
from typing import TYPE_CHECKING

import torch

from zonos2_triton.reference.ops import REFERENCE, Ops, VocoderOps

if TYPE_CHECKING:
    from zonos2_triton.reference.config import Zonos2Config

MAX_BATCH_SIZE = 256  # sequences that decode together
MAX_PREFILL_TOKENS = 4096  # of one launch; longer prompts come in chunks
PAGE_SIZE = 64  # positions in a page of the KV cache


def ops_of(backend: str, config: "Zonos2Config", device: torch.device, dtype: torch.dtype) -> Ops:
    """The table of "reference" or "triton". The latter holds the counters of one stream of launches: one at a time.

    ValueError: sizes that the kernels do not take.
    """
    if backend == "reference":
        return REFERENCE
    # Imported here: Triton is heavy, and the reference does without it.
    from zonos2_triton.kernels import (
        add_rms_norm,
        advance_frame,
        codebook_head,
        decode_attention,
        frame_embedding,
        moe_experts,
        moe_router,
        output_projection,
        prefill_attention,
        qkv_projection,
        sample_codes,
    )
    from zonos2_triton.kernels._args import check_rows
    from zonos2_triton.kernels.rotary import check_head_dim

    check_head_dim("backend 'triton'", config.head_dim)
    check_rows("backend 'triton'", dtype, dim=config.dim, ffn_dim=config.ffn_dim, moe_router_dim=config.moe_router_dim)
    most = max(MAX_BATCH_SIZE * config.kv_heads, MAX_PREFILL_TOKENS // 16 + 1, config.dim)
    counters = torch.zeros(most, dtype=torch.int32, device=device)
    return Ops(
        frame_embedding=frame_embedding.frame_embedding,
        add_rms_norm=add_rms_norm.add_rms_norm,
        qkv_projection=qkv_projection.qkv_projection,
        decode_attention=partial(decode_attention.decode_attention, counters=counters),
        prefill_attention=prefill_attention.prefill_attention,
        output_projection=output_projection.output_projection,
        moe_router=partial(moe_router.moe_router, counters=counters),
        moe_experts=partial(moe_experts.moe_experts, counters=counters),
        codebook_head=codebook_head.codebook_head,
        sample_codes=sample_codes.sample_codes,
        advance_frame=advance_frame.advance_frame,
    )


def vocoder_ops(dtype: torch.dtype) -> VocoderOps:
    """The kernels of the vocoder. In fp32 no residual unit is one launch: its sums do not fit the registers."""
    from zonos2_triton.kernels import conv1d_snake, conv1d_tanh, conv_transpose1d_snake, residual_unit, rvq_decode

    return VocoderOps(
        rvq_decode=rvq_decode.rvq_decode,
        conv1d_snake=conv1d_snake.conv1d_snake,
        conv_transpose1d_snake=conv_transpose1d_snake.conv_transpose1d_snake,
        residual_unit=residual_unit.residual_unit,
        conv1d_tanh=conv1d_tanh.conv1d_tanh,
        widest_unit=0 if dtype == torch.float32 else residual_unit.MAX_CHANNELS,
    )
