"""The residual vector quantiser of the vocoder, decoded."""

import torch
import torch.nn.functional as F
from torch import Tensor

from zonos2_triton.reference.vocoder_layers import operand, write_ring


def rvq_decode(
    codes: Tensor,
    tables: Tensor,
    weight: Tensor,
    step_meta: Tensor,
    frames: int,
    delayed: bool,
    z: Tensor,
    tf32: bool = False,
) -> None:
    """Each frame's code vectors times weight [D, P], which `packed_codebooks` makes, into the ring z [B, R, D].

    codes [B, N, W] int32 is a ring of frames whose first C columns are codes of tables [C, V, K]; delayed: code c of a
    frame comes c frames later. A code that has not come yet adds nothing. One that will not come is the last of its
    codebook, as are those above.
    """
    (C, V, K), N = tables.shape, codes.shape[1]
    codebooks = torch.arange(C, device=codes.device)
    for slot, (done, count, length, known) in enumerate(step_meta.tolist()):
        arrival = torch.arange(done, done + count, device=codes.device)[:, None] + codebooks * delayed
        closed, known = known < 0, ~known if known < 0 else known
        ids = codes[slot, arrival % N, codebooks].clamp(0, V - 1)
        ids, used = ids.where(arrival < known, V - 1).long(), (arrival < known) | closed  # [count, C]
        vectors = tables[codebooks, ids] * used[..., None]
        left = operand(torch.cat([vectors.flatten(1), used.to(vectors.dtype)], 1), tf32)
        write_ring(z[slot], done, F.linear(left, operand(weight, tf32)[:, : C * (K + 1)]), length)
