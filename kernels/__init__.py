"""Triton kernels, one operation per file: `zonos2_triton.kernels.<op>.<op>` is `torch.ops.zonos2_triton.<op>`.

Importing this package registers all of them, and so imports Triton.
"""

from zonos2_triton.kernels import add_rms_norm as add_rms_norm
from zonos2_triton.kernels import codebook_head as codebook_head
from zonos2_triton.kernels import conv1d_snake as conv1d_snake
from zonos2_triton.kernels import conv1d_tanh as conv1d_tanh
from zonos2_triton.kernels import conv_transpose1d_snake as conv_transpose1d_snake
from zonos2_triton.kernels import decode_attention as decode_attention
from zonos2_triton.kernels import frame_embedding as frame_embedding
from zonos2_triton.kernels import moe_experts as moe_experts
from zonos2_triton.kernels import moe_router as moe_router
from zonos2_triton.kernels import output_projection as output_projection
from zonos2_triton.kernels import prefill_attention as prefill_attention
from zonos2_triton.kernels import qkv_projection as qkv_projection
from zonos2_triton.kernels import residual_unit as residual_unit
from zonos2_triton.kernels import rotary as rotary
from zonos2_triton.kernels import rvq_decode as rvq_decode
from zonos2_triton.kernels import sample_codes as sample_codes
