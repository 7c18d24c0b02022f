"""The matrix product that every linear map here is: rows of weights times rows of activations.

The weights are the left operand in decoding and in prefill alike. A row of activations is then a column of the tile,
and a column's sum runs over K in one order, however wide the tile is: this makes results independent of the batch.
Tiles of fewer than 64 weights keep sm_90 on the same instruction at every width.

Decoding slices K, as CUTLASS does inside a thread block: K has K_SLICES parts, one for each warp, whose sums
are added after the loop. So no two warps read one operand, and chains of dependent products are short. How many
slices there are decides the order of sums, hence bits; how many warps make them, and in what steps, does not.

For a few tokens a program can load all its weights before it waits for the previous launch (`_dependent_launch`). After
the wait it loads its activations, in one round trip, and multiplies.
"""

import triton
import triton.language as tl

from zonos2_triton.kernels._math import INTERPRETED, dot_fp32

WIDE = tl.constexpr(64)  # tokens of a tile whose masks would be a fifth of a loop's instructions


@triton.jit
def row_ptrs(ptr, offs, n, stride):
    """Pointers to the rows `offs` of n, each so many elements after the last; beyond the end, to the last row."""
    return ptr + tl.minimum(offs, n - 1).to(tl.int64) * stride


@triton.jit
def gemm_tile(
    w_rows,  # [BLOCK_N] pointers to rows of K weights
    up_rows,  # [BLOCK_N] pointers to rows of a second matrix, or None
    x_rows,  # [BLOCK_M] pointers to rows of K activations
    mask_m,  # [BLOCK_M]
    K,
    EVEN_K: tl.constexpr,  # K is a multiple of BLOCK_K
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,  # a step's part of K, of all slices together
    K_SLICES: tl.constexpr = 1,
):
    """w x and up x, [BLOCK_N, BLOCK_M] fp32.

    All rows must exist: beyond the last, callers repeat it. A narrow tile does not load tokens outside of mask_m.
    """
    DEPTH: tl.constexpr = BLOCK_K // K_SLICES
    if K_SLICES == 1:
        k_w = tl.arange(0, BLOCK_K)[None, :]
        k_x = tl.arange(0, BLOCK_K)[:, None]
        w_ptrs = w_rows[:, None] + k_w  # [BLOCK_N, BLOCK_K]
        up_ptrs = up_rows[:, None] + k_w if up_rows is not None else None
        x_ptrs, mask_m = x_rows[None, :] + k_x, mask_m[None, :]  # [BLOCK_K, BLOCK_M]
        acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
        slice_k = K
        end_k = K
    else:
        slice_k = tl.cdiv(K, 16 * K_SLICES) * 16  # whole matrix instructions, and 16-byte loads
        first_k = tl.arange(0, K_SLICES)[:, None, None] * slice_k
        end_k = tl.minimum(first_k + slice_k, K)
        k_w = first_k + tl.arange(0, DEPTH)[None, None, :]
        k_x = first_k + tl.arange(0, DEPTH)[None, :, None]
        w_ptrs = w_rows[None, :, None] + k_w  # [K_SLICES, BLOCK_N, DEPTH]
        up_ptrs = up_rows[None, :, None] + k_w if up_rows is not None else None
        x_ptrs, mask_m = x_rows[None, None, :] + k_x, mask_m[None, None, :]  # [K_SLICES, DEPTH, BLOCK_M]
        acc = tl.zeros((K_SLICES, BLOCK_N, BLOCK_M), tl.float32)
    acc_up = acc
    for start in range(0, slice_k, DEPTH):
        mask_w = start + k_w < end_k if not EVEN_K else None
        mask_x = start + k_x < end_k if not EVEN_K else None
        if BLOCK_M < WIDE:
            mask_x = mask_m if EVEN_K else mask_m & mask_x
        w = _load(w_ptrs + start, mask_w)
        x = _load(x_ptrs + start, mask_x)
        acc = dot_fp32(w, x, acc)
        if up_ptrs is not None:
            acc_up = dot_fp32(_load(up_ptrs + start, mask_w), x, acc_up)
    return _sum_slices(acc, K_SLICES, BLOCK_N, BLOCK_M), _sum_slices(acc_up, K_SLICES, BLOCK_N, BLOCK_M)


@triton.jit
def load_early(
    w_rows,  # [BLOCK_N] pointers to rows of K weights
    wanted,  # else they are zeros
    K,
    K_PARTS: tl.constexpr,  # K is so many BLOCK_K
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    K_SLICES: tl.constexpr,
):
    """A program's weights, K_PARTS tiles [K_SLICES, BLOCK_N, BLOCK_K / K_SLICES], in two round trips."""
    DEPTH: tl.constexpr = BLOCK_K // K_SLICES
    HALF: tl.constexpr = (K_PARTS + 1) // 2
    slice_k = tl.cdiv(K, 16 * K_SLICES) * 16
    k = tl.arange(0, K_SLICES)[:, None, None] * slice_k + tl.arange(0, DEPTH)[None, None, :]
    ptrs = w_rows[None, :, None] + k
    first, second = (), ()
    for i in tl.static_range(K_PARTS):
        zero = (tl.zeros((K_SLICES, BLOCK_N, DEPTH), w_rows.dtype.element_ty),)
        if i < HALF:
            first += zero
        else:
            second += zero
    # Triton copies a tile to shared memory right after its load, and the next load waits for that. What an `if` returns
    # is copied after it. The compiler does not know that K is above 0.
    if wanted:
        loaded = ()
        for i in tl.static_range(HALF):
            loaded += (tl.load(ptrs + i * DEPTH),)
        first = loaded
    if wanted & (K > 0):
        loaded = ()
        for i in tl.static_range(HALF, K_PARTS):
            loaded += (tl.load(ptrs + i * DEPTH),)
        second = loaded
    return first + second


@triton.jit
def early_gemm_tile(
    w,  # of `load_early`
    x_rows,  # [BLOCK_M] pointers to rows of K activations
    mask_m,  # [BLOCK_M]
    K,
    K_PARTS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    K_SLICES: tl.constexpr,
):
    """w x, [BLOCK_N, BLOCK_M] fp32, bit for bit that of `gemm_tile`. Tokens outside of mask_m count as zeros."""
    DEPTH: tl.constexpr = BLOCK_K // K_SLICES
    slice_k = tl.cdiv(K, 16 * K_SLICES) * 16
    k = tl.arange(0, K_SLICES)[:, None, None] * slice_k + tl.arange(0, DEPTH)[None, :, None]
    ptrs, mask = x_rows[None, None, :] + k, mask_m[None, None, :]  # [K_SLICES, DEPTH, BLOCK_M]
    x = ()
    for _ in tl.static_range(K_PARTS):
        x += (tl.zeros((K_SLICES, DEPTH, BLOCK_M), x_rows.dtype.element_ty),)
    if K > 0:  # one round trip, as in `load_early`
        loaded = ()
        for i in tl.static_range(K_PARTS):
            loaded += (tl.load(ptrs + i * DEPTH, mask=mask, other=0.0),)
        x = loaded
    acc = tl.zeros((K_SLICES, BLOCK_N, BLOCK_M), tl.float32)
    for i in tl.static_range(K_PARTS):
        acc = dot_fp32(w[i], _stays(x[i]), acc)
    return _sum_slices(acc, K_SLICES, BLOCK_N, BLOCK_M)


@triton.jit
def _stays(x):
    """x, of 16 or 32 bits, in registers until here. Tiles that are multiplied in turn share shared memory."""
    if INTERPRETED:
        return x
    else:
        PACK: tl.constexpr = 32 // x.dtype.primitive_bitwidth
        return tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], dtype=x.dtype, is_pure=False, pack=PACK)


@triton.jit
def _load(ptrs, mask):
    """Zero outside of the mask, if there is one."""
    return tl.load(ptrs) if mask is None else tl.load(ptrs, mask=mask, other=0.0)


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
