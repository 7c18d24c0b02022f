"""The projection out of attention, added to the residual stream: x = residual + weight y.

Shapes     y [M, K]; weight [D, K]; residual, x [M, D]. M tokens; K = query heads times head dimension. A residual of
           None adds nothing.
Dtypes     one of fp32, fp16, bf16; fp32 accumulation; the sum rounded once.
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
from zonos2_triton.kernels._dependent_launch import prefetch_l2, wait_for_previous_launch
from zonos2_triton.kernels._gemm import gemm_tile
from zonos2_triton.kernels._launch_config import gemm_config
from zonos2_triton.kernels._math import round_to
from zonos2_triton.kernels._operator import Cost, operator


@triton.jit(do_not_specialize=["M"])  # one binary for every batch
def _output_projection_kernel(
    y_ptr,  # [M, K]
    w_ptr,  # [D, K]
    residual_ptr,  # [M, D], or None
    x_ptr,  # [M, D]
    M,
    D,
    K,
    EVEN_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid (tiles of M, tiles of D): a program owns a tile of x."""
    offs_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_m, mask_n = offs_m < M, offs_n < D
    w_rows = w_ptr + offs_n.to(tl.int64) * K
    first = tl.program_id(1) * BLOCK_N
    prefetch_l2(w_ptr + first.to(tl.int64) * K, tl.minimum(D - first, BLOCK_N) * K * (tl.program_id(0) == 0), PDL)
    wait_for_previous_launch(PDL)
    y_rows = y_ptr + offs_m.to(tl.int64) * K
    acc, _ = gemm_tile(w_rows, None, mask_n, y_rows, mask_m, None, K, 0.0, EVEN_K, BLOCK_N, BLOCK_M, BLOCK_K)
    offs = offs_m.to(tl.int64)[None, :] * D + offs_n[:, None]
    mask = mask_n[:, None] & mask_m[None, :]
    if residual_ptr is not None:
        acc += tl.load(residual_ptr + offs, mask=mask, other=0.0).to(tl.float32)
    tl.store(x_ptr + offs, round_to(acc, x_ptr.dtype.element_ty), mask=mask)


@operator()
def output_projection(
    y: Annotated[Tensor, "M K"],
    weight: Annotated[Tensor, "D K"],
    residual: Annotated[Tensor | None, "M D"],
    prefill: bool = False,
) -> Iterator[Tensor]:
    (M, K), D = y.shape, weight.shape[0]
    check_rows("output_projection", y.dtype, K=K, D=D)
    if not prefill:
        check_batch("output_projection", M)
    x = y.new_empty(M, D)
    yield x
    launch = gemm_config("output_projection", prefill, y.dtype, M, K)
    grid = triton.cdiv(M, launch["BLOCK_M"]), triton.cdiv(D, launch["BLOCK_N"])
    _output_projection_kernel[grid](y, weight, residual, x, M=M, D=D, K=K, **launch)


def cost(M: int, K: int, D: int, itemsize: int, residual: bool = True) -> Cost:
    return Cost(bytes=(D * K + M * (K + (1 + residual) * D)) * itemsize, flops=2 * M * D * K)
