"""Frame embedding: the sum of ten table rows."""

import torch
import torch.nn.functional as F
from torch import Tensor

from zonos2_triton.reference.norm import rms_norm


def frame_embedding(ids: Tensor, tables: list[Tensor], eps: float, speaker: Tensor | None = None) -> Tensor:
    """ids [T, 10], tables ten of [ids, D], speaker [D] or None -> [T, D], normed without a weight.

    Row t is the sum of tables[c][ids[t, c]], rounded once; padding ids have rows of their own and are not masked. A
    speaker replaces row 0 of that sum.
    """
    x = torch.stack([table[ids[:, c].long()] for c, table in enumerate(tables)]).sum(0)  # [T, D]
    if speaker is not None:
        x = torch.cat([speaker[None], x[1:]])
    return rms_norm(x, None, eps)


def speaker_row(embedding: Tensor, steps: list[tuple[Tensor, Tensor]]) -> Tensor:
    """embedding [S] -> [D]: one or two affine maps (weight, bias), nothing between them."""
    for weight, bias in steps:
        embedding = F.linear(embedding, weight, bias)
    return embedding
