"""The vocoder's way in, a step at a time: z = the sum over codebooks of projection c of code vector c, and its bias.

Shapes     codes [B, N, W], a ring of frames whose first C columns are codes; tables [C, V, K]; weight [D, P]: K columns
           for each codebook, then one for each bias, then zeros up to P, a power of two; spans [B, 4]: frames before
           the step, of the step, of the clip (OPEN: not known), of codes that came, as ~n where no more will come; z
           [B, R, D], a ring that holds what the step writes, changed in place. delayed: code c of a frame lies c
           frames later in the ring.
Dtypes     tables, weight, z one of fp32, fp16, bf16; codes, spans int32; fp32 accumulation; z rounded once.
Raises     ValueError, TypeError naming operation, argument, what came and what is accepted; spans or a negative code
           where looking costs nothing (CPU tensors, TRITON_DEBUG=1).
Reference  zonos2_triton.reference.vocoder_layers.rvq_decode
Source     descript-audio-codec, dac/nn/quantize.py, from_codes; codes above the last as the official engine decodes
           them.

Codes from V on, which end or pad a clip, read the last row. A code that will not come is such a one; one that has not
come yet adds nothing, not even its bias, so that what lies ahead sounds by the codebooks that are there.
One product over the vectors of all codebooks side by side: a codebook alone has too few columns for the matrix units.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from zonos2_triton.kernels._args import Arg, check, check_range, may_sync
from zonos2_triton.kernels._launch_config import launch_config
from zonos2_triton.kernels._math import dot_fp32, round_to
from zonos2_triton.kernels._operator import Cost, cpu_fallback, fake, runs_kernel
from zonos2_triton.kernels._ring_conv import (
    OPEN,
    check_ring,
    check_step,
    lanes,
    layer_cost,
    long,
    offset,
    place,
    weights,
)


@triton.jit(do_not_specialize=["B", "frames", "N", "W", "V", "ring"])
def _rvq_decode_kernel(
    codes_ptr, tables_ptr, w_ptr, spans_ptr, z_ptr, B, frames, N, W, V, D, ring, C: tl.constexpr, K: tl.constexpr,
    P: tl.constexpr, DELAYED: tl.constexpr, OPEN: tl.constexpr, TF32: tl.constexpr, LONG: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Grid (tiles of frames, tiles of D): a program owns a tile of z."""
    row, _, frame, length, live = lanes(spans_ptr, B, frames, 1, 0, 0, BLOCK_M)
    live = live & (frame < length)
    known = tl.load(spans_ptr + row * 4 + 3, mask=live, other=0)[:, None]
    closed = known < 0
    known = tl.where(closed, ~known, known)
    p = tl.arange(0, P)
    c = tl.where(p < C * K, p // K, p - C * K)[None, :]  # codebook of a column
    came = frame.to(tl.int32)[:, None] + c * DELAYED
    mask = live[:, None] & (p < C * K + C)[None, :]
    at = (row[:, None] * N + came % N) * W + c
    code = tl.load(codes_ptr + at, mask=mask & (came < known), other=OPEN)
    code = tl.minimum(tl.maximum(code, 0), V - 1)  # one that has not come is the last
    used = mask & ((came < known) | closed)
    vector = tables_ptr + (c * V + code) * K + (p % K)[None, :]
    x = tl.load(vector, mask=used & (p < C * K)[None, :], other=0.0)
    x = tl.where((p < C * K)[None, :], x, used.to(tl.float32).to(x.dtype))
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    w = weights(w_ptr, n, p, n < D, p < P, P, True)
    acc = dot_fp32(x, w, tl.zeros((BLOCK_M, BLOCK_N), tl.float32), TF32)
    rows = offset(row, place(frame, ring), ring, D, LONG)
    tl.store(
        z_ptr + rows[:, None] + n[None, :], round_to(acc, z_ptr.dtype.element_ty), mask=live[:, None] & (n < D)[None, :]
    )


def _needed(spans: Tensor, delay: int) -> int:
    """How many frames of codes a step reads of a row at most, from its first one on."""
    done, count, length, known = spans.long().unbind(1)
    last = torch.minimum(done + count, length)
    came = torch.minimum(torch.maximum(known, ~known), last + delay) - done
    return int(torch.where((count > 0) & (done < last), came, 0).max())


@torch.library.custom_op("zonos2_triton::rvq_decode", mutates_args=("z",))
def rvq_decode(
    codes: Tensor, tables: Tensor, weight: Tensor, spans: Tensor, frames: int, delayed: bool, z: Tensor,
    tf32: bool = False,
) -> None:  # fmt: skip
    sizes = check(
        "rvq_decode",
        codes=Arg(codes, "B N W", torch.int32),
        tables=Arg(tables, "C V K"),
        weight=Arg(weight, "D P"),
        spans=Arg(spans, "B 4", torch.int32),
        z=Arg(z, "B R D"),
    )
    B, N, W, C, V, K, D, P = (sizes[axis] for axis in ("B", "N", "W", "C", "V", "K", "D", "P"))
    if W < C:
        raise ValueError(f"rvq_decode: codes must have at least C={C} columns, got {W}")
    if max(16, triton.next_power_of_2(C * (K + 1))) != P:
        raise ValueError(
            f"rvq_decode: weight must have P={max(16, triton.next_power_of_2(C * (K + 1)))} columns, got {P}"
        )
    check_step("rvq_decode", z, spans, frames, 1, 0, 0, tf32)
    check_ring("rvq_decode", "z", z, frames, "those of a step")
    if may_sync(spans):
        check_ring("rvq_decode", "codes", codes, _needed(spans, delayed * (C - 1)), "those that came of a step")
    check_range("rvq_decode", "codes", codes[..., :C], 0, OPEN, "codes")
    if not runs_kernel(z):
        return cpu_fallback("rvq_decode", codes, tables, weight, spans, frames, delayed, z, tf32)
    launch = launch_config("rvq_decode", "frames", z.dtype, tf32=tf32)
    grid = triton.cdiv(B * frames, launch["BLOCK_M"]), triton.cdiv(D, launch["BLOCK_N"])
    _rvq_decode_kernel[grid](
        codes, tables, weight, spans, z, B, frames, N, W, V, D, z.shape[1], C=C, K=K, P=P, DELAYED=delayed, OPEN=OPEN,
        TF32=tf32, LONG=long(z), **launch,
    )  # fmt: skip


@fake(rvq_decode)
def _(
    codes: Tensor, tables: Tensor, weight: Tensor, spans: Tensor, frames: int, delayed: bool, z: Tensor,
    tf32: bool = False,
) -> None:  # fmt: skip
    return None


def cost(B: int, frames: int, C: int, K: int, D: int, itemsize: int) -> Cost:
    """The weights without their padding; a vector for each code."""
    width = C * (K + 1)
    return layer_cost(B * frames, width * D, width * D, C * K + D, C, itemsize)
