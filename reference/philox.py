"""Counter-based random numbers: each is a function of a key and a counter alone.

Philox 4x32-10: J. Salmon, M. Moraes, R. Dror, D. Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
Triton's tl.philox computes the same function.
"""

import torch
from torch import Tensor

WORD = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)


def philox(key: int, counter: tuple[Tensor | int, Tensor | int, Tensor | int, Tensor | int]) -> Tensor:
    """key 0 .. 2^64 - 1, counter four 32-bit words (broadcast int64) -> [..., 4] words, int64 in 0 .. 2^32 - 1."""
    words = torch.broadcast_tensors(*(torch.as_tensor(word) & WORD for word in counter))
    c0, c1, c2, c3 = (word.to(torch.int64) for word in words)
    k0, k1 = key & WORD, key >> 32 & WORD
    for _ in range(10):
        # int64 products wrap, which leaves the low 64 bits right; the mask undoes the sign of the shift.
        a, b = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1, c2, c3 = (b >> 32 & WORD) ^ c1 ^ k0, b & WORD, (a >> 32 & WORD) ^ c3 ^ k1, a & WORD
        k0, k1 = k0 + WEYL[0] & WORD, k1 + WEYL[1] & WORD
    return torch.stack([c0, c1, c2, c3], -1)
