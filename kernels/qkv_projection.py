"""Queries, keys, values and head gates of the normed rows, in one pass: y = [wq; wk; wv; gater] rms_norm(x).

Shapes     x [M, D]; norm_weight [D], or None: x is normed already; wq [NQ, D]; wkv [2, NKV, D] (keys, values);
           gater [G, D]; y [M, NQ + 2 * NKV + G]. NQ and NKV are heads times head dimension, G is query heads.
Dtypes     one of fp32, fp16, bf16; fp32 accumulation; y rounded once. Decoding multiplies norm_weight * x, rounded, and
           scales the product by 1 / rms(x): in fp16, |norm_weight * x| must stay below 65,504.
Raises     ValueError, TypeError naming operation, argument, what came and what is accepted; more than 256 rows but in
           prefill.
Reference  zonos2_triton.reference.projection.qkv_projection
Source     Zyphra/ZONOS2, models/zonos2.py, Attention.

prefill=True norms by a launch of its own and multiplies in tiles that suit many rows. A row's result depends on itself
and on `prefill` alone.
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
from zonos2_triton.kernels.add_rms_norm import normed


@triton.jit(do_not_specialize=["M"])  # one binary for every batch
def _qkv_projection_kernel(
    x_ptr, norm_ptr, wq_ptr, wkv_ptr, gater_ptr, y_ptr, M, D, NQ, NKV, G, eps,
    NORM: tl.constexpr, EVEN_K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Grid (tiles of M, tiles of NQ + tiles of 2 NKV + tiles of G): a program owns a tile of one matrix's outputs."""
    offs_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    mask_m = offs_m < M
    tile = tl.program_id(1)
    tiles_q, tiles_kv = tl.cdiv(NQ, BLOCK_N), tl.cdiv(2 * NKV, BLOCK_N)
    is_q = tile < tiles_q
    is_gate = tile >= tiles_q + tiles_kv
    w_ptr = tl.where(is_q, wq_ptr, tl.where(is_gate, gater_ptr, wkv_ptr))
    tile -= tl.where(is_q, 0, tl.where(is_gate, tiles_q + tiles_kv, tiles_q))
    rows = tl.where(is_q, NQ, tl.where(is_gate, G, 2 * NKV))
    before = tl.where(is_q, 0, tl.where(is_gate, NQ + 2 * NKV, NQ))
    offs_n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_n = offs_n < rows
    w_rows = w_ptr + offs_n.to(tl.int64) * D
    acc, _, sum_sq = gemm_tile(
        w_rows, w_rows, mask_n, x_ptr + offs_m.to(tl.int64) * D, mask_m, norm_ptr, D,
        False, NORM, EVEN_K, BLOCK_N, BLOCK_M, BLOCK_K,
    )  # fmt: skip
    if NORM:
        acc = acc * tl.rsqrt(sum_sq / D + eps)[None, :]
    at = offs_m.to(tl.int64)[None, :] * (NQ + 2 * NKV + G) + (before + offs_n)[:, None]
    tl.store(y_ptr + at, round_to(acc, y_ptr.dtype.element_ty), mask=mask_n[:, None] & mask_m[None, :])


@torch.library.custom_op("zonos2_triton::qkv_projection", mutates_args=())
def qkv_projection(
    x: Tensor, norm_weight: Tensor | None, wq: Tensor, wkv: Tensor, gater: Tensor, eps: float, prefill: bool = False
) -> Tensor:
    sizes = check(
        "qkv_projection",
        x=Arg(x, "M D"),
        norm_weight=Arg(norm_weight, "D"),
        wq=Arg(wq, "NQ D"),
        wkv=Arg(wkv, "2 NKV D"),
        gater=Arg(gater, "G D"),
    )
    M, D, NQ, NKV, G = (sizes[axis] for axis in ("M", "D", "NQ", "NKV", "G"))
    check_rows("qkv_projection", x.dtype, D=D)
    if not prefill:
        check_batch("qkv_projection", M)
    if not runs_kernel(x):
        return cpu_fallback("qkv_projection", x, norm_weight, wq, wkv, gater, eps, prefill)
    if prefill and norm_weight is not None:
        x, norm_weight = normed(x, norm_weight, eps), None
    y = x.new_empty(M, NQ + 2 * NKV + G)
    launch = gemm_config("qkv_projection", prefill, x.dtype, M, D)
    tiles_n = sum(triton.cdiv(rows, launch["BLOCK_N"]) for rows in (NQ, 2 * NKV, G))
    _qkv_projection_kernel[(triton.cdiv(M, launch["BLOCK_M"]), tiles_n)](
        x, x if norm_weight is None else norm_weight, wq, wkv, gater, y, M, D, NQ, NKV, G, eps,
        NORM=norm_weight is not None, **launch,
    )  # fmt: skip
    return y


@fake(qkv_projection)
def _(
    x: Tensor, norm_weight: Tensor | None, wq: Tensor, wkv: Tensor, gater: Tensor, eps: float, prefill: bool = False
) -> Tensor:
    return x.new_empty(x.shape[0], wq.shape[0] + 2 * wkv.shape[1] + gater.shape[0])


def cost(M: int, D: int, NQ: int, NKV: int, G: int, itemsize: int, normed: bool = False) -> Cost:
    N = NQ + 2 * NKV + G
    return Cost(bytes=(N * D + (not normed) * D + M * (D + N)) * itemsize, flops=2 * M * N * D)
