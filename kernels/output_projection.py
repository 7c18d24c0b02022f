"""Out of attention, back onto the residual stream: x = residual + weight y.

Shapes     y [M, K]; weight [D, K]; residual, x [M, D]. K = query heads times head dimension. A residual of None adds
           nothing.
Dtypes     one of fp32, fp16, bf16; fp32 accumulation; the sum rounded once.
Raises     ValueError, TypeError naming operation, argument, what came and what is accepted; more than 256 rows but in
           prefill.
Reference  zonos2_triton.reference.projection.output_projection
Source     Zyphra/ZONOS2, models/zonos2.py, Attention.

prefill=True multiplies in tiles that suit many rows. A row's result depends on itself and on `prefill` alone.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from zonos2_triton.kernels._args import Arg, check, check_batch, check_rows
from zonos2_triton.kernels._gemm import gemm_tile
from zonos2_triton.kernels._launch_config import gemm_config
from zonos2_triton.kernels._math import round_to
from zonos2_triton.kernels._operator import Cost, cpu_fallback, fake, runs_kernel


@triton.jit(do_not_specialize=["M"])  # one binary for every batch
def _output_projection_kernel(
    y_ptr, w_ptr, residual_ptr, x_ptr, M, D, K,
    RESIDUAL: tl.constexpr, EVEN_K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Grid (tiles of M, tiles of D): a program owns a tile of x."""
    offs_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_m, mask_n = offs_m < M, offs_n < D
    w_rows = w_ptr + offs_n.to(tl.int64) * K
    acc, _, _ = gemm_tile(
        w_rows, w_rows, mask_n, y_ptr + offs_m.to(tl.int64) * K, mask_m, y_ptr, K,
        False, False, EVEN_K, BLOCK_N, BLOCK_M, BLOCK_K,
    )  # fmt: skip
    at = offs_m.to(tl.int64)[None, :] * D + offs_n[:, None]
    mask = mask_n[:, None] & mask_m[None, :]
    if RESIDUAL:
        acc += tl.load(residual_ptr + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(x_ptr + at, round_to(acc, x_ptr.dtype.element_ty), mask=mask)


@torch.library.custom_op("zonos2_triton::output_projection", mutates_args=())
def output_projection(y: Tensor, weight: Tensor, residual: Tensor | None, prefill: bool = False) -> Tensor:
    sizes = check(
        "output_projection", y=Arg(y, "M K"), weight=Arg(weight, "D K"), residual=Arg(residual, "M D")
    )  # fmt: skip
    M, K, D = sizes["M"], sizes["K"], sizes["D"]
    check_rows("output_projection", y.dtype, K=K, D=D)
    if not prefill:
        check_batch("output_projection", M)
    if not runs_kernel(y):
        return cpu_fallback("output_projection", y, weight, residual, prefill)
    x = y.new_empty(M, D)
    launch = gemm_config("output_projection", prefill, y.dtype, M, K)
    grid = triton.cdiv(M, launch["BLOCK_M"]), triton.cdiv(D, launch["BLOCK_N"])
    added = y if residual is None else residual
    _output_projection_kernel[grid](y, weight, added, x, M, D, K, RESIDUAL=residual is not None, **launch)
    return x


@fake(output_projection)
def _(y: Tensor, weight: Tensor, residual: Tensor | None, prefill: bool = False) -> Tensor:
    return y.new_empty(y.shape[0], weight.shape[0])


def cost(M: int, K: int, D: int, itemsize: int, residual: bool = True) -> Cost:
    return Cost(bytes=(D * K + M * (K + (1 + residual) * D)) * itemsize, flops=2 * M * D * K)
