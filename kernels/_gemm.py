"""The matrix product that every linear map here is: rows of weights times rows of activations.

The weights are the left operand in decoding and in prefill alike. A row of activations is then a column of the tile,
and a column's sum runs over K in one order, however wide the tile is: this makes results independent of the batch.
Tiles of fewer than 64 weights keep sm_90 on the same instruction at every width.
"""

import triton
import triton.language as tl

from zonos2_triton.kernels._math import dot_fp32


@triton.jit
def gemm_tile(
    w_rows,  # [BLOCK_N] pointers to rows of K weights
    up_rows,  # [BLOCK_N] pointers to rows of a second matrix, or None
    mask_n,  # [BLOCK_N]
    x_rows,  # [BLOCK_M] pointers to rows of K activations
    mask_m,  # [BLOCK_M]
    K,
    EVEN_K: tl.constexpr,  # K is a multiple of BLOCK_K
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """w x and up x, [BLOCK_N, BLOCK_M] fp32."""
    offs_k = tl.arange(0, BLOCK_K)
    acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    acc_up = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for start in range(0, K, BLOCK_K):
        k = start + offs_k
        mask_w = mask_n[:, None]
        mask_x = mask_m[None, :]
        if not EVEN_K:
            mask_w = mask_w & (k < K)[None, :]
            mask_x = mask_x & (k < K)[:, None]
        w = tl.load(w_rows[:, None] + k[None, :], mask=mask_w, other=0.0)  # [BLOCK_N, BLOCK_K]
        x = tl.load(x_rows[None, :] + k[:, None], mask=mask_x, other=0.0)  # [BLOCK_K, BLOCK_M]
        acc = dot_fp32(w, x, acc)
        if up_rows is not None:
            up = tl.load(up_rows[:, None] + k[None, :], mask=mask_w, other=0.0)
            acc_up = dot_fp32(up, x, acc_up)
    return acc, acc_up
