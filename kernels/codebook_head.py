"""The output head: logits[m, n] = softcap * tanh(weight[n] . h[m] / softcap), h = rms_norm(x); softcap 0: no cap.

Shapes     x [M, D]; norm_weight [D], or None: x is normed already; weight [C * V, D]; logits [M, C, V]. C codebooks,
           V codes. x_scaled [M, D] and sum_sq [M, cdiv(D, 16)] are those of x (`_norm`), which is not read then; or
           None, both.
Dtypes     x, x_scaled and weights one of fp32, fp16, bf16; sum_sq, accumulation, cap and logits fp32; norm_weight * x
           alone is rounded on the way. In fp16, |norm_weight * x| must stay below 65,504.
Raises     ValueError, TypeError naming operation, argument, what came and what is accepted; more than 256 tokens but in
           prefill.
Reference  zonos2_triton.reference.codebook_head.codebook_head
Source     Zyphra/ZONOS2, models/zonos2.py; the soft-cap as in Gemma 2, arXiv:2408.00118.

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
from zonos2_triton.kernels._dependent_launch import prefetch_rows, wait_for_previous_launch
from zonos2_triton.kernels._gemm import gemm_tile, row_ptrs
from zonos2_triton.kernels._launch_config import gemm_config
from zonos2_triton.kernels._math import tanh
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
def _codebook_head_kernel(
    x_ptr,  # [M, D]: x_scaled; or x, normed already
    sum_sq_ptr,  # [M, N_GROUPS] fp32, or None
    w_ptr,  # [N, D]
    logits_ptr,  # [M, N] fp32
    M,
    D,
    N,
    eps,
    softcap,
    CAP: tl.constexpr,
    N_GROUPS: tl.constexpr,
    EVEN_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    K_SLICES: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid (tiles of M, tiles of N): a program owns a tile of logits."""
    offs_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_m, mask_n = offs_m < M, offs_n < N
    w_rows = row_ptrs(w_ptr, offs_n, N, D)
    prefetch_rows(w_ptr, tl.program_id(1) * BLOCK_N, N, D, D, BLOCK_N, PDL)
    wait_for_previous_launch(PDL)
    x_rows = row_ptrs(x_ptr, offs_m, M, D)
    if sum_sq_ptr is not None and BLOCK_M <= FEW_TOKENS:
        sum_sq = load_sum_sq(sum_sq_ptr, offs_m, mask_m, N_GROUPS)
    acc, _ = gemm_tile(w_rows, None, x_rows, mask_m, D, EVEN_K, BLOCK_N, BLOCK_M, BLOCK_K, K_SLICES)
    if sum_sq_ptr is not None:
        if BLOCK_M > FEW_TOKENS:
            sum_sq = load_sum_sq(sum_sq_ptr, offs_m, mask_m, N_GROUPS)
        acc *= rms_scale(sum_sq, D, eps, BLOCK_M)
    if CAP:
        acc = softcap * tanh(acc / softcap)
    offs = offs_m.to(tl.int64)[None, :] * N + offs_n[:, None]
    tl.store(logits_ptr + offs, acc, mask=mask_n[:, None] & mask_m[None, :])


@operator()
def codebook_head(
    x: Annotated[Tensor, "M D"],
    norm_weight: Annotated[Tensor | None, "D"],
    weight: Annotated[Tensor, "N D"],
    n_codebooks: int,
    eps: float,
    softcap: float,
    prefill: bool = False,
    x_scaled: Annotated[Tensor | None, "M D"] = None,
    sum_sq: Annotated[Tensor | None, "M D/16", torch.float32] = None,
) -> Iterator[Tensor]:
    (M, D), N = x.shape, weight.shape[0]
    check_rows("codebook_head", x.dtype, D=D)
    check_norm("codebook_head", norm_weight, x_scaled, sum_sq)
    if n_codebooks < 1 or N % n_codebooks:
        raise ValueError(f"codebook_head: weight must have a multiple of n_codebooks={n_codebooks} rows, got {N}")
    if not prefill:
        check_batch("codebook_head", M)
    logits = x.new_empty((M, n_codebooks, N // n_codebooks), dtype=torch.float32)
    yield logits
    x, sum_sq = prepare_norm(x, norm_weight, x_scaled, sum_sq)
    launch = gemm_config("codebook_head", prefill, x.dtype, M, D)
    _codebook_head_kernel[(triton.cdiv(M, launch["BLOCK_M"]), triton.cdiv(N, launch["BLOCK_N"]))](
        x,
        sum_sq,
        weight,
        logits,
        M=M,
        D=D,
        N=N,
        eps=eps,
        N_GROUPS=n_norm_groups(D),
        softcap=softcap,
        CAP=softcap != 0,
        **launch,
    )


def cost(M: int, D: int, N: int, itemsize: int, normed: bool = False, prepared: bool = True) -> Cost:
    tokens = input_bytes(M, D, itemsize, normed, prepared)
    return Cost(bytes=N * D * itemsize + tokens + 4 * M * N, flops=2 * M * N * D)
