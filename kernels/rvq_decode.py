"""Residual vector quantisation, decoded: z = sum over codebooks c of projection_c(code vector c) + bias_c.

Shapes     codes [B, N, W], a ring of frames whose first C columns are codes; tables [C, V, K]; weight [D, P]: K columns
           for each codebook, then one for each bias, then zeros up to P, a power of two; step_meta [B, 4], as
           `_ring_conv` shows it; z [B, R, D], a ring that holds the frames of a step, changed in place.
           delayed: code c of a frame lies c frames later in the ring.
Dtypes     tables, weight, z one of fp32, fp16, bf16; codes, step_meta int32; fp32 accumulation; z is rounded once.
           tf32=True multiplies fp32 as tf32.
Raises     ValueError, TypeError naming operation, argument, what came and what is accepted; step_meta out of range or
           a negative code only on CPU tensors or under TRITON_DEBUG=1.
Reference  zonos2_triton.reference.rvq_decode.rvq_decode
Source     descript-audio-codec, dac/nn/quantize.py, from_codes; codes above the last as the official engine decodes
           them.

One GEMM over the code vectors of all codebooks side by side: one codebook has too few columns for the matrix units. A
frame's row of the left operand, here of C = 2 codebooks with K = 4, so P = 16:

    column     0 .. 3       4 .. 7       8       9       10 .. 15
    value      vector of    vector of    used    used    0
               code 0       code 1       of 0    of 1

Column 8 + c is 1 where code c is used, so that it adds its bias.

Codes from V on end or pad a clip. They read the last vector of their codebook, and so do codes that will never come. A
code that has not come yet adds nothing, not even its bias: frames ahead of it are a preview.
"""

from collections.abc import Iterator
from typing import Annotated

import torch
import triton
import triton.language as tl
from torch import Tensor

from zonos2_triton.kernels._args import check_range, may_sync
from zonos2_triton.kernels._dependent_launch import wait_for_previous_launch
from zonos2_triton.kernels._launch_config import launch_config
from zonos2_triton.kernels._math import dot_fp32, round_to
from zonos2_triton.kernels._operator import Cost, operator
from zonos2_triton.kernels._ring_conv import (
    LENGTH_UNKNOWN,
    check_ring,
    check_step,
    layer_cost,
    ring_arguments,
    ring_index,
    ring_offset,
    step_positions,
    weight_tile,
)

NO_CODE = tl.constexpr(2**31 - 1)  # above every table: the last vector


@triton.jit(do_not_specialize=["B", "frames", "N", "W", "V", "z_ring_len"])
def _rvq_decode_kernel(
    codes_ptr,  # [B, N, W] int32
    tables_ptr,  # [C, V, K]
    w_ptr,  # [D, P]
    step_meta_ptr,  # [B, 4] int32
    z_ptr,  # [B, z_ring_len, D]
    B,
    frames,
    N,
    W,
    V,
    D,
    z_ring_len,
    C: tl.constexpr,
    K: tl.constexpr,
    P: tl.constexpr,
    DELAYED: tl.constexpr,
    TF32: tl.constexpr,
    INT64: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid (tiles of frames, tiles of D): a program computes a tile of z."""
    wait_for_previous_launch(PDL)
    slot, _, frame, clip_len, mask_m = step_positions(step_meta_ptr, B, frames, 1, 0, 0, BLOCK_M)
    mask_m = mask_m & (frame < clip_len)
    known_frames = tl.load(step_meta_ptr + slot * 4 + 3, mask=mask_m, other=0)[:, None]
    is_complete = known_frames < 0
    known_frames = tl.where(is_complete, ~known_frames, known_frames)
    p = tl.arange(0, P)
    c = tl.where(p < C * K, p // K, p - C * K)[None, :]  # codebook of a column
    arrival = frame.to(tl.int32)[:, None] + c * DELAYED  # the frame of the ring that holds the code
    mask = mask_m[:, None] & (p < C * K + C)[None, :]
    code_offs = (slot[:, None] * N + arrival % N) * W + c
    code = tl.load(codes_ptr + code_offs, mask=mask & (arrival < known_frames), other=NO_CODE)
    code = tl.minimum(tl.maximum(code, 0), V - 1)
    used = mask & ((arrival < known_frames) | is_complete)
    vector_ptrs = tables_ptr + (c * V + code) * K + (p % K)[None, :]
    x = tl.load(vector_ptrs, mask=used & (p < C * K)[None, :], other=0.0)
    x = tl.where((p < C * K)[None, :], x, used.to(tl.float32).to(x.dtype))
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_n = n < D
    w = weight_tile(w_ptr, n, p, mask_n, p < P, P, True)
    acc = dot_fp32(x, w, tl.zeros((BLOCK_M, BLOCK_N), tl.float32), TF32)
    z_offs = ring_offset(slot, ring_index(frame, z_ring_len), z_ring_len, D, INT64)
    z = round_to(acc, z_ptr.dtype.element_ty)
    tl.store(z_ptr + z_offs[:, None] + n[None, :], z, mask=mask_m[:, None] & mask_n[None, :])


def _code_frames(step_meta: Tensor, delay: int) -> int:
    """The frames of codes that a step reads of a slot at most, from its first frame on."""
    done, count, length, known_frames = step_meta.long().unbind(1)
    last = torch.minimum(done + count, length)
    available = torch.minimum(torch.maximum(known_frames, ~known_frames), last + delay) - done
    return int(torch.where((count > 0) & (done < last), available, 0).max())


@operator(mutates_args=("z",))
def rvq_decode(
    codes: Annotated[Tensor, "B N W", torch.int32],
    tables: Annotated[Tensor, "C V K"],
    weight: Annotated[Tensor, "D P"],
    step_meta: Annotated[Tensor, "B 4", torch.int32],
    frames: int,
    delayed: bool,
    z: Annotated[Tensor, "B R D"],
    tf32: bool = False,
) -> Iterator[None]:
    (B, N, W), (C, V, K), (D, P) = codes.shape, tables.shape, weight.shape
    if W < C:
        raise ValueError(f"rvq_decode: codes must have at least C={C} columns, got {W}")
    if (columns := max(16, triton.next_power_of_2(C * (K + 1)))) != P:
        raise ValueError(f"rvq_decode: weight must have P={columns} columns, got {P}")
    check_step("rvq_decode", z, step_meta, frames, 1, 0, 0, tf32)
    check_ring("rvq_decode", "z", z, frames)
    if may_sync(step_meta):
        least = _code_frames(step_meta, delayed * (C - 1))
        check_ring("rvq_decode", "codes", codes, least, "those that came of a step")
    check_range("rvq_decode", "codes", codes[..., :C], 0, LENGTH_UNKNOWN, "codes")
    yield
    launch = launch_config("rvq_decode", "frames", z.dtype, tf32=tf32)
    _rvq_decode_kernel[(triton.cdiv(B * frames, launch["BLOCK_M"]), triton.cdiv(D, launch["BLOCK_N"]))](
        codes_ptr=codes,
        tables_ptr=tables,
        w_ptr=weight,
        step_meta_ptr=step_meta,
        B=B,
        frames=frames,
        N=N,
        W=W,
        V=V,
        D=D,
        **ring_arguments(z=z),
        C=C,
        K=K,
        P=P,
        DELAYED=delayed,
        TF32=tf32,
        **launch,
    )


def cost(B: int, frames: int, C: int, K: int, D: int, itemsize: int) -> Cost:
    """The cost of the weights without their padding, and of a vector for each code."""
    width = C * (K + 1)
    return layer_cost(B * frames, width * D, width * D, C * K + D, C, itemsize)
