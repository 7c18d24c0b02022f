"""The RMS norm of the residual stream, in two halves: the producer of x prepares it, the product after it applies it.

    x_scaled = norm_weight * x                            [M, D], rounded
    sum_sq   = sums of x^2 over groups of 16 columns      [M, cdiv(D, 16)] fp32
    w rms_norm(x) = (w x_scaled) / sqrt(sum(sum_sq) / D + eps)

So a product reads x_scaled alone, and scales its accumulator once. Both are made of x as it is stored. Sums are taken
in pairs: neighbours are added, then neighbouring sums, until one is left. Each addition has two operands, so neither
the layout of a tile nor its size changes a bit, and a producer, `prepare_norm` and the reference agree in all of them.

In fp16, |norm_weight * x| must stay below 65,504: beyond it the result is not finite. Below 6.1e-5 it loses digits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from zonos2_triton.kernels._dependent_launch import wait_for_previous_launch
from zonos2_triton.kernels._launch_config import launch_config
from zonos2_triton.kernels._math import round_to

NORM_GROUP = 16  # columns of an element of sum_sq: the rows of a matrix instruction
GROUP = tl.constexpr(NORM_GROUP)
FEW_TOKENS = tl.constexpr(32)  # of a tile whose sum_sq fits into registers while a product is made


@triton.constexpr_function
def log2(n):
    return n.bit_length() - 1


@triton.jit
def sum_in_pairs(x, A: tl.constexpr, N: tl.constexpr, B: tl.constexpr):
    """x [A, N, B] -> its sums over N, [A, B]; N is a power of two."""
    for i in tl.static_range(log2(N)):
        x = tl.sum(x.reshape(A, N >> (i + 1), 2, B), axis=2)
    return x.reshape(A, B)


@triton.jit
def store_norm(
    x,  # [BLOCK_N, BLOCK_M], rounded
    norm_w,  # [BLOCK_N], of the norm that follows
    x_scaled_ptr,  # [M, D]
    sum_sq_ptr,  # [M, cdiv(D, GROUP)] fp32
    first_n,  # the tile's first column, a multiple of GROUP
    offs_m,  # [BLOCK_M]
    mask_m,  # [BLOCK_M]
    D,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Stores x_scaled and sum_sq of a tile of the residual stream, tokens as columns."""
    offs_n = first_n + tl.arange(0, BLOCK_N)
    mask_n = offs_n < D
    wide = x.to(tl.float32)
    x_scaled = round_to(wide * norm_w.to(tl.float32)[:, None], x_scaled_ptr.dtype.element_ty)
    offs = offs_m.to(tl.int64)[None, :] * D + offs_n[:, None]
    tl.store(x_scaled_ptr + offs, x_scaled, mask=mask_n[:, None] & mask_m[None, :])
    x_sq = tl.where(mask_n[:, None], wide * wide, 0.0)
    sum_sq = sum_in_pairs(x_sq.reshape(BLOCK_N // GROUP, GROUP, BLOCK_M), BLOCK_N // GROUP, GROUP, BLOCK_M)
    offs_g = first_n // GROUP + tl.arange(0, BLOCK_N // GROUP)
    n_groups = tl.cdiv(D, GROUP)
    offs = offs_m.to(tl.int64)[None, :] * n_groups + offs_g[:, None]
    tl.store(sum_sq_ptr + offs, sum_sq, mask=(offs_g < n_groups)[:, None] & mask_m[None, :])


@triton.jit
def load_sum_sq(
    sum_sq_ptr,  # [M, N_GROUPS] fp32
    tokens,  # [BLOCK_M]
    mask_m,  # [BLOCK_M]
    N_GROUPS: tl.constexpr,
):
    """[BLOCK_M, N_GROUPS as a power of two]. Loaded before a product of FEW_TOKENS, so that it is under way in it."""
    offs_g = tl.arange(0, triton.next_power_of_2(N_GROUPS))
    offs = tokens.to(tl.int64)[:, None] * N_GROUPS + offs_g[None, :]
    return tl.load(sum_sq_ptr + offs, mask=mask_m[:, None] & (offs_g < N_GROUPS)[None, :], other=0.0)


@triton.jit
def rms_scale(
    sum_sq,  # of `load_sum_sq`
    D,
    eps,
    BLOCK_M: tl.constexpr,
):
    """1 / rms(x), [1, BLOCK_M]: what a product with x_scaled is multiplied by."""
    BLOCK_GROUPS: tl.constexpr = sum_sq.shape[1]
    total = sum_in_pairs(sum_sq.reshape(BLOCK_M, BLOCK_GROUPS, 1), BLOCK_M, BLOCK_GROUPS, 1)
    # A wide tile repeats the last token, whose sums it does not load: 1 / sqrt(eps) would make that product overflow.
    return tl.where(total == 0.0, 1.0, tl.rsqrt(total / D + eps)).reshape(1, BLOCK_M)


@triton.jit
def _prepare_norm_kernel(
    x_ptr,  # [M, D]
    norm_ptr,  # [D]
    x_scaled_ptr,  # [M, D]
    sum_sq_ptr,  # [M, cdiv(D, GROUP)] fp32
    D,
    BLOCK_D: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid (M,): a program owns a token."""
    wait_for_previous_launch(PDL)
    offs_m = tl.program_id(0) + tl.arange(0, 1)
    offs = tl.arange(0, BLOCK_D)
    x = tl.load(x_ptr + offs_m.to(tl.int64)[None, :] * D + offs[:, None], mask=(offs < D)[:, None], other=0.0)
    norm_w = tl.load(norm_ptr + offs, mask=offs < D, other=0.0)
    store_norm(x, norm_w, x_scaled_ptr, sum_sq_ptr, 0, offs_m, offs_m >= 0, D, BLOCK_D, 1)


def n_norm_groups(D: int) -> int:
    """Columns of sum_sq."""
    return -(-D // NORM_GROUP)


def norm_bytes(M: int, D: int, itemsize: int) -> int:
    """x_scaled and sum_sq, each moved once."""
    return M * (D * itemsize + 4 * n_norm_groups(D))


def input_bytes(M: int, D: int, itemsize: int, normed: bool, prepared: bool) -> int:
    """M tokens, as a product reads them. If they are not prepared, x is read, and x_scaled and sum_sq are written."""
    if normed:
        return M * D * itemsize
    return norm_bytes(M, D, itemsize) * (1 if prepared else 2) + (0 if prepared else (M + 1) * D * itemsize)


def norm_results(like: Tensor, M: int, D: int, norm_weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """x_scaled and sum_sq, not yet written; both are empty where no norm follows."""
    if norm_weight is None:
        return like.new_empty(0), like.new_empty(0, dtype=torch.float32)
    return like.new_empty(M, D), like.new_empty((M, n_norm_groups(D)), dtype=torch.float32)


def check_norm(op: str, norm_weight: Tensor | None, x_scaled: Tensor | None, sum_sq: Tensor | None) -> None:
    """ValueError: x_scaled without sum_sq, or either without the weight of its norm."""
    if (x_scaled is None) != (sum_sq is None):
        raise ValueError(f"{op}: x_scaled and sum_sq must be given together")
    if norm_weight is None and x_scaled is not None:
        raise ValueError(f"{op}: x_scaled and sum_sq must come with norm_weight, got None")


def prepare_norm(
    x: Tensor, norm_weight: Tensor | None, x_scaled: Tensor | None = None, sum_sq: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """x_scaled and sum_sq: those given, else made by one launch; without a norm x itself, and None."""
    if norm_weight is None or x_scaled is not None:
        return x if x_scaled is None else x_scaled, sum_sq
    M, D = x.shape
    x_scaled, sum_sq = norm_results(x, M, D, norm_weight)
    launch = launch_config("add_rms_norm", "row", x.dtype)
    block = max(NORM_GROUP, triton.next_power_of_2(D))
    _prepare_norm_kernel[(M,)](x, norm_weight, x_scaled, sum_sq, D=D, BLOCK_D=block, **launch)
    return x_scaled, sum_sq
