"""Queries, keys, values and head gates of the normed tokens, in one pass: y = [wq; wk; wv; gater] rms_norm(x).

Shapes     x [M, D]; norm_weight [D], or None: x is normed already; wq [NQ, D]; wkv [2, NKV, D] (keys, values);
           gater [G, D]; y [M, NQ + 2 * NKV + G]. M tokens. NQ and NKV are heads times head dimension, G is query heads.
           x_scaled [M, D] and sum_sq [M, cdiv(D, 16)] are those of x (`_norm`), which is not read then; or None, both.
Dtypes     one of fp32, fp16, bf16, but sum_sq fp32; fp32 accumulation; norm_weight * x rounded, then y. In fp16,
           |norm_weight * x| must stay below 65,504.
Raises     ValueError, TypeError naming operation, argument, what came and what is accepted; more than 256 tokens but in
           prefill.
Reference  zonos2_triton.reference.qkv_projection.qkv_projection
Source     Zyphra/ZONOS2, models/zonos2.py, Attention.

prefill=True takes tiles that suit many tokens. A token's result depends on itself and on `prefill` alone. Without
x_scaled and sum_sq one more launch makes them; that changes no bit.
"""

from collections.abc import Iterator
from typing import Annotated

import torch
import triton
import triton.language as tl
from torch import Tensor

from zonos2_triton.kernels._args import check_batch, check_rows
from zonos2_triton.kernels._dependent_launch import begin_early_loads, end_early_loads, prefetch_rows
from zonos2_triton.kernels._gemm import early_gemm_tile, gemm_tile, load_early, row_ptrs
from zonos2_triton.kernels._launch_config import gemm_config
from zonos2_triton.kernels._math import round_to
from zonos2_triton.kernels._norm import (
    FEW_TOKENS,
    check_norm,
    input_bytes,
    load_sum_sq,
    n_norm_groups,
    prepare_norm,
    rms_scale,
)
from zonos2_triton.kernels._operator import Cost, operator


@triton.jit(do_not_specialize=["M"])  # one binary for every batch
def _qkv_projection_kernel(
    x_ptr,  # [M, D]: x_scaled; or x, normed already
    sum_sq_ptr,  # [M, N_GROUPS] fp32, or None
    wq_ptr,  # [NQ, D]
    wkv_ptr,  # [2, NKV, D]
    gater_ptr,  # [G, D]
    y_ptr,  # [M, NQ + 2 * NKV + G]
    M,
    D,
    NQ,
    NKV,
    G,
    eps,
    N_GROUPS: tl.constexpr,
    EVEN_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    K_SLICES: tl.constexpr,
    K_PARTS: tl.constexpr,  # of weights that are loaded early; 0: none are
    PDL: tl.constexpr,
):
    """Grid (tiles of M, tiles of NQ + tiles of 2 NKV + tiles of G): a program owns a tile of one matrix's outputs."""
    offs_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    mask_m = offs_m < M
    tile = tl.program_id(1)
    tiles_q, tiles_kv = tl.cdiv(NQ, BLOCK_N), tl.cdiv(2 * NKV, BLOCK_N)
    is_q = tile < tiles_q
    is_gate = tile >= tiles_q + tiles_kv
    w_ptr = tl.where(is_q, wq_ptr, tl.where(is_gate, gater_ptr, wkv_ptr))
    tile -= tl.where(is_q, 0, tl.where(is_gate, tiles_q + tiles_kv, tiles_q))
    n_rows = tl.where(is_q, NQ, tl.where(is_gate, G, 2 * NKV))
    before = tl.where(is_q, 0, tl.where(is_gate, NQ + 2 * NKV, NQ))  # outputs of the matrices before this one
    offs_n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_n = offs_n < n_rows
    w_rows = row_ptrs(w_ptr, offs_n, n_rows, D)
    prefetch_rows(w_ptr, tile * BLOCK_N, n_rows, D, D, BLOCK_N, PDL)
    begin_early_loads(PDL, "wq_ptr wkv_ptr gater_ptr")
    if K_PARTS > 0:
        w = load_early(w_rows, M > 0, D, K_PARTS, BLOCK_N, BLOCK_K, K_SLICES)
    end_early_loads(PDL)
    x_rows = row_ptrs(x_ptr, offs_m, M, D)
    if sum_sq_ptr is not None and BLOCK_M <= FEW_TOKENS:
        sum_sq = load_sum_sq(sum_sq_ptr, offs_m, mask_m, N_GROUPS)
    if K_PARTS > 0:
        acc = early_gemm_tile(w, x_rows, mask_m, D, K_PARTS, BLOCK_N, BLOCK_M, BLOCK_K, K_SLICES)
    else:
        acc, _ = gemm_tile(w_rows, None, x_rows, mask_m, D, EVEN_K, BLOCK_N, BLOCK_M, BLOCK_K, K_SLICES)
    if sum_sq_ptr is not None:
        if BLOCK_M > FEW_TOKENS:
            sum_sq = load_sum_sq(sum_sq_ptr, offs_m, mask_m, N_GROUPS)
        acc *= rms_scale(sum_sq, D, eps, BLOCK_M)
    offs = offs_m.to(tl.int64)[None, :] * (NQ + 2 * NKV + G) + (before + offs_n)[:, None]
    tl.store(y_ptr + offs, round_to(acc, y_ptr.dtype.element_ty), mask=mask_n[:, None] & mask_m[None, :])


@operator()
def qkv_projection(
    x: Annotated[Tensor, "M D"],
    norm_weight: Annotated[Tensor | None, "D"],
    wq: Annotated[Tensor, "NQ D"],
    wkv: Annotated[Tensor, "2 NKV D"],
    gater: Annotated[Tensor, "G D"],
    eps: float,
    prefill: bool = False,
    x_scaled: Annotated[Tensor | None, "M D"] = None,
    sum_sq: Annotated[Tensor | None, "M D/16", torch.float32] = None,
) -> Iterator[Tensor]:
    (M, D), NQ, NKV, G = x.shape, wq.shape[0], wkv.shape[1], gater.shape[0]
    check_rows("qkv_projection", x.dtype, D=D)
    check_norm("qkv_projection", norm_weight, x_scaled, sum_sq)
    if not prefill:
        check_batch("qkv_projection", M)
    y = x.new_empty(M, NQ + 2 * NKV + G)
    yield y
    x, sum_sq = prepare_norm(x, norm_weight, x_scaled, sum_sq)
    launch = gemm_config("qkv_projection", prefill, x.dtype, M, D)
    tiles_n = sum(triton.cdiv(n, launch["BLOCK_N"]) for n in (NQ, 2 * NKV, G))
    _qkv_projection_kernel[(triton.cdiv(M, launch["BLOCK_M"]), tiles_n)](
        x,
        sum_sq,
        wq,
        wkv,
        gater,
        y,
        M=M,
        D=D,
        NQ=NQ,
        NKV=NKV,
        G=G,
        eps=eps,
        N_GROUPS=n_norm_groups(D),
        **launch,
    )


def cost(M: int, D: int, NQ: int, NKV: int, G: int, itemsize: int, normed: bool = False, prepared: bool = True) -> Cost:
    N = NQ + 2 * NKV + G
    tokens = input_bytes(M, D, itemsize, normed, prepared)
    return Cost(bytes=(N * D + M * N) * itemsize + tokens, flops=2 * M * N * D)
