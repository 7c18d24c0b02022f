"""The matrix product that every linear map here is: rows of weights times rows of activations.

The weights are the left operand in decoding and in prefill alike. A row of activations is then a column of the tile,
and a column's sum runs over K in one order, whatever the tile is wide: that is what makes results independent of the
batch. Tiles of fewer than 64 weights keep sm_90 on the same instruction at every width.
"""

import triton
import triton.language as tl

from zonos2_triton.kernels._math import dot_fp32, round_to


@triton.jit
def gemm_tile(
    w_rows, u_rows, mask_n, x_rows, mask_m, norm_ptr, K, GATED: tl.constexpr, NORM: tl.constexpr, EVEN_K: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """w x and, if PAIR, u x [BLOCK_N, BLOCK_M], and each x's sum of squares [BLOCK_M].

    w_rows, u_rows, x_rows point at rows of K elements. With NORM, x is multiplied by the norm's weight and rounded; the
    sum of squares is for the caller to scale the result with, so that one pass over x is enough.
    """
    offs_k = tl.arange(0, BLOCK_K)
    acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    acc_up = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    sum_sq = tl.zeros((BLOCK_K, BLOCK_M), tl.float32)
    for start in range(0, K, BLOCK_K):
        k = start + offs_k
        mask_w = mask_n[:, None]
        mask_x = mask_m[None, :]
        if not EVEN_K:
            mask_w = mask_w & (k < K)[None, :]
            mask_x = mask_x & (k < K)[:, None]
        w = tl.load(w_rows[:, None] + k[None, :], mask=mask_w, other=0.0)  # [BLOCK_N, BLOCK_K]
        x = tl.load(x_rows[None, :] + k[:, None], mask=mask_x, other=0.0)  # [BLOCK_K, BLOCK_M]
        if NORM:
            wide = x.to(tl.float32)
            sum_sq += wide * wide  # element by element: summed over K once, after the loop
            if EVEN_K:
                norm_w = tl.load(norm_ptr + k).to(tl.float32)
            else:
                norm_w = tl.load(norm_ptr + k, mask=k < K, other=0.0).to(tl.float32)
            x = round_to(wide * norm_w[:, None], w.dtype)
        acc = dot_fp32(w, x, acc)
        if GATED:
            u = tl.load(u_rows[:, None] + k[None, :], mask=mask_w, other=0.0)
            acc_up = dot_fp32(u, x, acc_up)
    return acc, acc_up, tl.sum(sum_sq, axis=0)
