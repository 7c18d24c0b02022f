"""Frame embedding: the sum of ten table rows."""

import torch
import torch.nn.functional as F
from torch import Tensor

from zonos2_triton.reference.add_rms_norm import prepare_norm, rms_norm
from zonos2_triton.reference.numeric import wide


def frame_embedding(
    ids: Tensor,
    table: Tensor,
    codebook_vocab: int,
    eps: float,
    speakers: Tensor | None = None,
    speaker_index: Tensor | None = None,
    norm: bool = True,
    next_norm_weight: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """ids [M, C + 1] -> [M, D], normed without a weight.

    table [C * codebook_vocab + text ids, D] holds the tables of the C codebooks, then that of the text. A token is the
    sum of one row of each; padding ids have rows of their own. Where speaker_index [M] is not negative, that row of
    speakers [S, D] replaces the sum. norm False: the input of the norm instead, rounded once. Then come x_scaled and
    sum_sq of the result, as `prepare_norm` makes them for the norm that follows.
    """
    offsets = torch.arange(ids.shape[1], device=ids.device) * codebook_vocab
    x = wide(table[ids.long() + offsets]).sum(1)  # [M, D]
    if speakers is not None and speaker_index is not None:
        voiced = (speaker_index >= 0)[:, None]
        x = torch.where(voiced, wide(speakers[speaker_index.long().clamp(min=0)]), x)
    h = (rms_norm(x, None, eps) if norm else x).to(table.dtype)
    return h, *prepare_norm(h, next_norm_weight)


def project_speaker(embedding: Tensor, steps: list[tuple[Tensor, Tensor]]) -> Tensor:
    """embedding [S] -> [D]: one or two affine maps (weight, bias), nothing between them."""
    for weight, bias in steps:
        embedding = F.linear(embedding, weight, bias)
    return embedding
