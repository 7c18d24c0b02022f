"""The projection out of attention, added to the residual stream: x = residual + weight y; and the norm that follows.

Shapes     y [M, K]; weight [D, K]; residual, x [M, D]. M tokens; K = query heads times head dimension. A residual of
           None adds nothing. next_norm_weight [D]: of the norm that follows; x_scaled [M, D] and
           sum_sq [M, cdiv(D, 16)] of x (`_norm`) are results, else empty.
Dtypes     one of fp32, fp16, bf16, but sum_sq fp32; fp32 accumulation; x rounded once, then x_scaled. In fp16,
           |next_norm_weight * x| must stay below 65,504.
Raises     ValueError, TypeError naming operation, argument, what came and what is accepted; more than 256 tokens but in
           prefill.
Reference  zonos2_triton.reference.output_projection.output_projection
Source     Zyphra/ZONOS2, models/zonos2.py, Attention.

prefill=True takes tiles that suit many tokens. A token's result depends on itself and on `prefill` alone.
"""

from collections.abc import Iterator
from typing import Annotated

import triton
import triton.language as tl
from torch import Tensor

from zonos2_triton.kernels._args import check_batch, check_rows
from zonos2_triton.kernels._dependent_launch import begin_early_loads, end_early_loads, prefetch_rows
from zonos2_triton.kernels._gemm import early_gemm_tile, gemm_tile, load_early, row_ptrs
from zonos2_triton.kernels._launch_config import gemm_config
from zonos2_triton.kernels._math import round_to
from zonos2_triton.kernels._norm import norm_bytes, norm_results, store_norm
from zonos2_triton.kernels._operator import Cost, operator


@triton.jit(do_not_specialize=["M"])  # one binary for every batch
def _output_projection_kernel(
    y_ptr,  # [M, K]
    w_ptr,  # [D, K]
    residual_ptr,  # [M, D], or None
    norm_ptr,  # [D], of the norm that follows, or None
    x_ptr,  # [M, D]
    x_scaled_ptr,  # [M, D]
    sum_sq_ptr,  # [M, cdiv(D, 16)] fp32
    M,
    D,
    K,
    EVEN_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    K_SLICES: tl.constexpr,
    K_PARTS: tl.constexpr,  # of weights that are loaded early; 0: none are
    PDL: tl.constexpr,
):
    """Grid (tiles of M, tiles of D): a program owns a tile of x."""
    offs_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_m, mask_n = offs_m < M, offs_n < D
    w_rows = row_ptrs(w_ptr, offs_n, D, K)
    first = tl.program_id(1) * BLOCK_N
    prefetch_rows(w_ptr, first, D, K, K, BLOCK_N, PDL)
    begin_early_loads(PDL, "w_ptr")
    if K_PARTS > 0:
        w = load_early(w_rows, M > 0, K, K_PARTS, BLOCK_N, BLOCK_K, K_SLICES)
    end_early_loads(PDL)
    y_rows = row_ptrs(y_ptr, offs_m, M, K)
    offs = offs_m.to(tl.int64)[None, :] * D + offs_n[:, None]
    mask = mask_n[:, None] & mask_m[None, :]
    if residual_ptr is not None:
        residual = tl.load(residual_ptr + offs, mask=mask, other=0.0)  # under way in the product
    if norm_ptr is not None:
        norm_w = tl.load(norm_ptr + offs_n, mask=mask_n, other=0.0)
    if K_PARTS > 0:
        acc = early_gemm_tile(w, y_rows, mask_m, K, K_PARTS, BLOCK_N, BLOCK_M, BLOCK_K, K_SLICES)
    else:
        acc, _ = gemm_tile(w_rows, None, y_rows, mask_m, K, EVEN_K, BLOCK_N, BLOCK_M, BLOCK_K, K_SLICES)
    if residual_ptr is not None:
        acc += residual.to(tl.float32)
    x = round_to(acc, x_ptr.dtype.element_ty)
    tl.store(x_ptr + offs, x, mask=mask)
    if norm_ptr is not None:
        store_norm(x, norm_w, x_scaled_ptr, sum_sq_ptr, first, offs_m, mask_m, D, BLOCK_N, BLOCK_M)


@operator()
def output_projection(
    y: Annotated[Tensor, "M K"],
    weight: Annotated[Tensor, "D K"],
    residual: Annotated[Tensor | None, "M D"],
    prefill: bool = False,
    next_norm_weight: Annotated[Tensor | None, "D"] = None,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    (M, K), D = y.shape, weight.shape[0]
    check_rows("output_projection", y.dtype, K=K, D=D)
    if not prefill:
        check_batch("output_projection", M)
    x = y.new_empty(M, D)
    x_scaled, sum_sq = norm_results(x, M, D, next_norm_weight)
    yield x, x_scaled, sum_sq
    launch = gemm_config("output_projection", prefill, y.dtype, M, K)
    grid = triton.cdiv(M, launch["BLOCK_M"]), triton.cdiv(D, launch["BLOCK_N"])
    _output_projection_kernel[grid](y, weight, residual, next_norm_weight, x, x_scaled, sum_sq, M=M, D=D, K=K, **launch)


def cost(M: int, K: int, D: int, itemsize: int, residual: bool = True, next_norm: bool = True) -> Cost:
    prepared = norm_bytes(M, D, itemsize) + D * itemsize if next_norm else 0
    return Cost(bytes=(D * K + M * (K + (1 + residual) * D)) * itemsize + prepared, flops=2 * M * D * K)
