"""Frame embedding: x[m] = sum over c of table[c * V + ids[m, c]], or a speaker's row; h[m] = x[m] / rms(x[m]).

Shapes     ids [M, C + 1], the last column text; table [C * V + text ids, D], V = codebook_vocab; speakers [S, D];
           speaker_index [M]; h [M, D]. norm=False: h = x, and eps is not used. next_norm_weight [D]: of the norm that
           follows; x_scaled [M, D] and sum_sq [M, cdiv(D, 16)] of h (`_norm`) are results, else empty.
Dtypes     ids int32 or int64; speaker_index int32; sum_sq fp32; the others one of fp32, fp16, bf16; fp32 inside, h
           rounded once, then x_scaled. In fp16, |next_norm_weight * h| must stay below 65,504.
Raises     ValueError, TypeError naming operation, argument, what came and what is accepted; an id out of range where
           looking costs nothing (CPU tensors, TRITON_DEBUG=1).
Reference  zonos2_triton.reference.frame_embedding.frame_embedding
Source     Zyphra/ZONOS2, models/zonos2.py, MultiEmbedding.

ids            ids[m, c] is a row of codebook c's part of the table. With C = 2 and V = 10, ids[m] = [3, 4, 5] sums rows
               3, 10 + 4 and 20 + 5.
speaker_index  speaker_index[m] is the row of speakers that replaces token m's sum; negative: none does. Pass speakers
               and speaker_index together, or neither.
"""

from collections.abc import Iterator
from typing import Annotated

import torch
import triton
import triton.language as tl
from torch import Tensor

from zonos2_triton.kernels._args import check_range, check_rows
from zonos2_triton.kernels._dependent_launch import wait_for_previous_launch
from zonos2_triton.kernels._launch_config import launch_config
from zonos2_triton.kernels._math import round_to
from zonos2_triton.kernels._norm import NORM_GROUP, norm_bytes, norm_results, store_norm
from zonos2_triton.kernels._operator import Cost, operator


@triton.jit
def _frame_embedding_kernel(
    ids_ptr,  # [M, COLUMNS] int32 or int64
    table_ptr,  # [C * V + text ids, D]
    speakers_ptr,  # [S, D], or None
    speaker_index_ptr,  # [M] int32, or None
    norm_ptr,  # [D], of the norm that follows, or None
    h_ptr,  # [M, D]
    x_scaled_ptr,  # [M, D]
    sum_sq_ptr,  # [M, cdiv(D, 16)] fp32
    D,
    codebook_vocab,
    eps,
    COLUMNS: tl.constexpr,
    NORM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid (M,): a program owns a token."""
    wait_for_previous_launch(PDL)
    m = tl.program_id(0).to(tl.int64)
    offs = tl.arange(0, BLOCK_D)
    mask = offs < D
    x = tl.zeros((BLOCK_D,), tl.float32)
    for c in tl.static_range(COLUMNS):
        table_row = tl.load(ids_ptr + m * COLUMNS + c).to(tl.int64) + c * codebook_vocab
        x += tl.load(table_ptr + table_row * D + offs, mask=mask, other=0.0).to(tl.float32)
    if speakers_ptr is not None:
        speaker = tl.load(speaker_index_ptr + m).to(tl.int64)
        speaker_row = tl.load(speakers_ptr + tl.maximum(speaker, 0) * D + offs, mask=mask, other=0.0)
        x = tl.where(speaker >= 0, speaker_row.to(tl.float32), x)
    if NORM:
        x = x * tl.rsqrt(tl.sum(x * x, axis=0) / D + eps)
    h = round_to(x, h_ptr.dtype.element_ty)
    tl.store(h_ptr + m * D + offs, h, mask=mask)
    if norm_ptr is not None:
        offs_m = m + tl.arange(0, 1)
        norm_w = tl.load(norm_ptr + offs, mask=mask, other=0.0)
        store_norm(h[:, None], norm_w, x_scaled_ptr, sum_sq_ptr, 0, offs_m, offs_m >= 0, D, BLOCK_D, 1)


@operator()
def frame_embedding(
    ids: Annotated[Tensor, "M columns", torch.int32, torch.int64],
    table: Annotated[Tensor, "rows D"],
    codebook_vocab: int,
    eps: float,
    speakers: Annotated[Tensor | None, "S D"] = None,
    speaker_index: Annotated[Tensor | None, "M", torch.int32] = None,
    norm: bool = True,
    next_norm_weight: Annotated[Tensor | None, "D"] = None,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    op, (M, columns), (rows, D) = "frame_embedding", ids.shape, table.shape
    check_rows(op, table.dtype, D=D)
    if (speakers is None) != (speaker_index is None):
        raise ValueError(f"{op}: speakers and speaker_index must be given together")
    text = codebook_vocab * (columns - 1)  # the first row of the text
    if not 0 < text < rows:
        raise ValueError(
            f"{op}: table must hold more than {columns - 1} codebooks of codebook_vocab={codebook_vocab} rows, "
            f"got {rows}"
        )
    check_range(op, "ids of codes", ids[:, :-1], 0, codebook_vocab - 1, "the codebook's rows")
    check_range(op, "ids of text", ids[:, -1], 0, rows - text - 1, "the text's rows")
    if speakers is not None and speaker_index is not None:
        check_range(op, "speaker_index", speaker_index, -(2**31), speakers.shape[0] - 1, "rows of speakers")
    h = table.new_empty(M, D)
    x_scaled, sum_sq = norm_results(h, M, D, next_norm_weight)
    yield h, x_scaled, sum_sq
    _frame_embedding_kernel[(M,)](
        ids,
        table,
        speakers,
        speaker_index,
        next_norm_weight,
        h,
        x_scaled,
        sum_sq,
        D=D,
        codebook_vocab=codebook_vocab,
        eps=eps,
        COLUMNS=columns,
        NORM=norm,
        BLOCK_D=max(NORM_GROUP, triton.next_power_of_2(D)),
        **launch_config(op, "row", table.dtype),
    )


def cost(M: int, D: int, columns: int, itemsize: int, norm: bool = True, next_norm: bool = True) -> Cost:
    """Each token reads its rows of the table once."""
    prepared = norm_bytes(M, D, itemsize) + D * itemsize if next_norm else 0
    return Cost(bytes=(columns + 1) * M * D * itemsize + 4 * M * columns + prepared, flops=(columns + 3 * norm) * M * D)
