"""Frame embedding: x[m] = sum over c of table[c * V + ids[m, c]], or a speaker's row; h[m] = x[m] / rms(x[m]).

Shapes     ids [M, C + 1], the last column text; table [C * V + text ids, D], V = codebook_vocab; speakers [S, D];
           speaker_index [M]: the row of speakers that replaces the sum, negative: none; h [M, D]. norm=False: h = x,
           and eps is not used.
Dtypes     ids int32 or int64; speaker_index int32; the others one of fp32, fp16, bf16; fp32 inside, h rounded once.
Raises     ValueError, TypeError naming operation, argument, what came and what is accepted; an id out of range where
           looking costs nothing (CPU tensors, TRITON_DEBUG=1).
Reference  zonos2_triton.reference.frame_embedding.frame_embedding
Source     Zyphra/ZONOS2, models/zonos2.py, MultiEmbedding.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from zonos2_triton.kernels._args import Arg, check, check_range, check_rows
from zonos2_triton.kernels._launch_config import launch_config
from zonos2_triton.kernels._math import round_to
from zonos2_triton.kernels._operator import Cost, cpu_fallback, fake, runs_kernel


@triton.jit
def _frame_embedding_kernel(
    ids_ptr,
    table_ptr,
    speakers_ptr,
    speaker_index_ptr,
    h_ptr,
    D,
    codebook_vocab,
    eps,
    COLUMNS: tl.constexpr,
    VOICED: tl.constexpr,
    NORM: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Grid (M,): a program owns a row."""
    row = tl.program_id(0).to(tl.int64)
    offs = tl.arange(0, BLOCK_D)
    mask = offs < D
    x = tl.zeros((BLOCK_D,), tl.float32)
    for c in tl.static_range(COLUMNS):
        entry = tl.load(ids_ptr + row * COLUMNS + c).to(tl.int64) + c * codebook_vocab
        x += tl.load(table_ptr + entry * D + offs, mask=mask, other=0.0).to(tl.float32)
    if VOICED:
        speaker = tl.load(speaker_index_ptr + row).to(tl.int64)
        voice = tl.load(speakers_ptr + tl.maximum(speaker, 0) * D + offs, mask=mask, other=0.0)
        x = tl.where(speaker >= 0, voice.to(tl.float32), x)
    if NORM:
        x = x * tl.rsqrt(tl.sum(x * x, axis=0) / D + eps)
    tl.store(h_ptr + row * D + offs, round_to(x, h_ptr.dtype.element_ty), mask=mask)


@torch.library.custom_op("zonos2_triton::frame_embedding", mutates_args=())
def frame_embedding(
    ids: Tensor,
    table: Tensor,
    codebook_vocab: int,
    eps: float,
    speakers: Tensor | None = None,
    speaker_index: Tensor | None = None,
    norm: bool = True,
) -> Tensor:
    sizes = check(
        "frame_embedding",
        table=Arg(table, "rows D"),
        ids=Arg(ids, "M columns", torch.int64 if ids.dtype == torch.int64 else torch.int32),
        speakers=Arg(speakers, "S D"),
        speaker_index=Arg(speaker_index, "M", torch.int32),
    )
    M, D, columns = sizes["M"], sizes["D"], sizes["columns"]
    check_rows("frame_embedding", table.dtype, D=D)
    if (speakers is None) != (speaker_index is None):
        raise ValueError("frame_embedding: speakers and speaker_index must be given together")
    if not 0 < codebook_vocab * (columns - 1) < sizes["rows"]:
        raise ValueError(
            f"frame_embedding: table must hold more than {columns - 1} codebooks of codebook_vocab={codebook_vocab} "
            f"rows, got {sizes['rows']}"
        )
    check_range("frame_embedding", "ids of codes", ids[:, :-1], 0, codebook_vocab - 1, "the codebook's rows")
    check_range(
        "frame_embedding",
        "ids of text",
        ids[:, -1],
        0,
        sizes["rows"] - codebook_vocab * (columns - 1) - 1,
        "the text's rows",
    )
    if speaker_index is not None:
        check_range("frame_embedding", "speaker_index", speaker_index, -(2**31), sizes["S"] - 1, "rows of speakers")
    if not runs_kernel(table):
        return cpu_fallback("frame_embedding", ids, table, codebook_vocab, eps, speakers, speaker_index, norm)
    h = table.new_empty(M, D)
    _frame_embedding_kernel[(M,)](
        ids,
        table,
        table if speakers is None else speakers,
        ids if speaker_index is None else speaker_index,
        h,
        D,
        codebook_vocab,
        eps,
        COLUMNS=columns,
        VOICED=speakers is not None,
        NORM=norm,
        BLOCK_D=triton.next_power_of_2(D),
        **launch_config("frame_embedding", "row", table.dtype),
    )
    return h


@fake(frame_embedding)
def _(
    ids: Tensor,
    table: Tensor,
    codebook_vocab: int,
    eps: float,
    speakers: Tensor | None = None,
    speaker_index: Tensor | None = None,
    norm: bool = True,
) -> Tensor:
    return table.new_empty(ids.shape[0], table.shape[1])


def cost(M: int, D: int, columns: int, itemsize: int, norm: bool = True) -> Cost:
    """The rows of the tables are counted once each: frames differ."""
    return Cost(bytes=(columns + 1) * M * D * itemsize + 4 * M * columns, flops=(columns + 3 * norm) * M * D)
