"""The matrix product that every linear map here is: rows of weights times rows of activations.

The weights are the left operand in decoding and in prefill alike. A row of activations is then a column of the tile,
and a column's sum runs over K in one order, however wide the tile is: this makes results independent of the batch.
Tiles of fewer than 64 weights keep sm_90 on the same instruction at every width.

Decoding slices K, as CUTLASS does inside a thread block: each step of BLOCK_K is K_SLICES products, one for each warp,
and the slices are added after the loop. So no two warps read one operand, and a warp's chain of dependent products is
short. How many slices there are decides the order of sums, hence bits; by how many warps they are made does not.
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
    K_SLICES: tl.constexpr = 1,
):
    """w x and up x, [BLOCK_N, BLOCK_M] fp32."""
    if K_SLICES == 1:
        k_w = tl.arange(0, BLOCK_K)[None, :]
        k_x = tl.arange(0, BLOCK_K)[:, None]
        w_ptrs, w_mask = w_rows[:, None] + k_w, mask_n[:, None]  # [BLOCK_N, BLOCK_K]
        x_ptrs, x_mask = x_rows[None, :] + k_x, mask_m[None, :]  # [BLOCK_K, BLOCK_M]
        if up_rows is not None:
            up_ptrs = up_rows[:, None] + k_w
        acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    else:
        DEPTH: tl.constexpr = BLOCK_K // K_SLICES
        first_k = tl.arange(0, K_SLICES)[:, None, None] * DEPTH
        k_w = first_k + tl.arange(0, DEPTH)[None, None, :]
        k_x = first_k + tl.arange(0, DEPTH)[None, :, None]
        w_ptrs, w_mask = w_rows[None, :, None] + k_w, mask_n[None, :, None]  # [K_SLICES, BLOCK_N, DEPTH]
        x_ptrs, x_mask = x_rows[None, None, :] + k_x, mask_m[None, None, :]  # [K_SLICES, DEPTH, BLOCK_M]
        if up_rows is not None:
            up_ptrs = up_rows[None, :, None] + k_w
        acc = tl.zeros((K_SLICES, BLOCK_N, BLOCK_M), tl.float32)
    acc_up = acc
    for start in range(0, K, BLOCK_K):
        mask_w, mask_x = w_mask, x_mask
        if not EVEN_K:
            mask_w = mask_w & (start + k_w < K)
            mask_x = mask_x & (start + k_x < K)
        w = tl.load(w_ptrs + start, mask=mask_w, other=0.0)
        x = tl.load(x_ptrs + start, mask=mask_x, other=0.0)
        acc = dot_fp32(w, x, acc)
        if up_rows is not None:
            up = tl.load(up_ptrs + start, mask=mask_w, other=0.0)
            acc_up = dot_fp32(up, x, acc_up)
    return _sum_slices(acc, K_SLICES, BLOCK_N, BLOCK_M), _sum_slices(acc_up, K_SLICES, BLOCK_N, BLOCK_M)


@triton.jit
def _sum_slices(acc, K_SLICES: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr):
    """[K_SLICES, BLOCK_N, BLOCK_M] -> [BLOCK_N, BLOCK_M]: neighbours are added until one is left."""
    if K_SLICES == 1:
        return acc
    else:
        acc = tl.permute(acc, (1, 2, 0))  # so a thread gets all slices of an element, without bank conflicts
        for i in tl.static_range(K_SLICES.bit_length() - 1):
            left, right = tl.split(acc.reshape(BLOCK_N, BLOCK_M, K_SLICES >> (i + 1), 2))
            acc = left + right
        return acc.reshape(BLOCK_N, BLOCK_M)
