"""The operations that a backbone is made of, as a table: the model is written once, a backend is one such table."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from zonos2_triton.reference.add_rms_norm import add_rms_norm
from zonos2_triton.reference.codebook_head import codebook_head
from zonos2_triton.reference.conv1d_snake import conv1d_snake
from zonos2_triton.reference.conv1d_tanh import conv1d_tanh
from zonos2_triton.reference.conv_transpose1d_snake import conv_transpose1d_snake
from zonos2_triton.reference.decode_attention import decode_attention
from zonos2_triton.reference.frame_embedding import frame_embedding
from zonos2_triton.reference.moe_experts import moe_experts
from zonos2_triton.reference.moe_router import moe_router
from zonos2_triton.reference.output_projection import output_projection
from zonos2_triton.reference.prefill_attention import prefill_attention
from zonos2_triton.reference.qkv_projection import qkv_projection
from zonos2_triton.reference.residual_unit import residual_unit
from zonos2_triton.reference.rvq_decode import rvq_decode
from zonos2_triton.reference.sample_codes import sample_codes


@dataclass(frozen=True)
class Ops:
    """Arguments and results are those of the functions in `REFERENCE`.

    `dataclasses.replace(ops, moe_router=REFERENCE.moe_router)` swaps one: a wrong operation is found by bisection.
    """

    frame_embedding: Callable[..., tuple[Tensor, Tensor, Tensor]]
    add_rms_norm: Callable[..., tuple[Tensor, Tensor]]
    qkv_projection: Callable[..., Tensor]
    decode_attention: Callable[..., Tensor]
    prefill_attention: Callable[..., Tensor]
    output_projection: Callable[..., tuple[Tensor, Tensor, Tensor]]
    moe_router: Callable[..., tuple[Tensor, ...]]
    moe_experts: Callable[..., tuple[Tensor, Tensor, Tensor]]
    codebook_head: Callable[..., Tensor]
    sample_codes: Callable[..., tuple[Tensor, Tensor]]


REFERENCE = Ops(
    *(frame_embedding, add_rms_norm, qkv_projection, decode_attention, prefill_attention, output_projection),
    *(moe_router, moe_experts, codebook_head, sample_codes),
)


class VocoderOps(NamedTuple):
    """The operators of a vocoder step. Arguments and results are those of the functions in `VOCODER_REFERENCE`."""

    rvq_decode: Callable[..., None]
    conv1d_snake: Callable[..., None]
    conv_transpose1d_snake: Callable[..., None]
    residual_unit: Callable[..., None]
    conv1d_tanh: Callable[..., Tensor]
    widest_unit: int = 0  # channels up to which a residual unit is one operator; a wider one is two convolutions


VOCODER_REFERENCE = VocoderOps(rvq_decode, conv1d_snake, conv_transpose1d_snake, residual_unit, conv1d_tanh)
VOCODER_OPERATORS = tuple(name for name in VocoderOps._fields if name != "widest_unit")
