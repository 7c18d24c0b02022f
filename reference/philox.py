"""Counter-based random numbers: each is a function of a key and a counter alone.

Philox 4x32-10: J. Salmon, M. Moraes, R. Dror, D. Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
Triton's tl.philox computes the same function.
"""

import torch
from torch import Tensor

WORD = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)


def philox(key: Tensor | int, counter: tuple[Tensor | int, Tensor | int, Tensor | int, Tensor | int]) -> Tensor:
    """Four words of 32 bits, int64 [..., 4].

    key 0 .. 2^64 - 1, or an int64 tensor of their bits; counter: four 32-bit words; all are broadcast.
    """
    device = next((word.device for word in (key, *counter) if isinstance(word, Tensor)), None)
    given = (*counter, key, key >> 32)
    words = torch.broadcast_tensors(*(torch.as_tensor(word & WORD, dtype=torch.int64, device=device) for word in given))
    c0, c1, c2, c3, k0, k1 = words
    for _ in range(10):
        # int64 products wrap, which leaves the low 64 bits right; the mask undoes the sign of the shift.
        a, b = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1, c2, c3 = (b >> 32 & WORD) ^ c1 ^ k0, b & WORD, (a >> 32 & WORD) ^ c3 ^ k1, a & WORD
        k0, k1 = k0 + WEYL[0] & WORD, k1 + WEYL[1] & WORD
    return torch.stack([c0, c1, c2, c3], -1)
