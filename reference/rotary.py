"""Interleaved rotary position embedding."""

import torch
from einops import rearrange
from torch import Tensor

from zonos2_triton.reference.numeric import wide


def compute_cos_sin_cache(positions: int, head_dim: int, theta: float, like: Tensor) -> Tensor:
    """Cosines and sines of position * theta^(-2i / DH), [positions, 2, DH / 2], fp32, or fp64 where `like` is fp64."""
    # Angles in fp64: a position of 6,143 times a frequency costs fp32 four digits before the cosine is taken.
    exponents = torch.arange(0, head_dim, 2, device=like.device, dtype=torch.float64) / head_dim
    angles = torch.arange(positions, device=like.device, dtype=torch.float64)[:, None] * theta**-exponents
    return torch.stack([angles.cos(), angles.sin()], 1).to(wide(like[:0]).dtype)


def rotary(x: Tensor, positions: Tensor, cos_sin_cache: Tensor) -> Tensor:
    """x [M, H, DH], positions [M], cos_sin_cache [P, 2, DH / 2] -> x, each pair (2i, 2i + 1) rotated by its angle."""
    cos, sin = cos_sin_cache[positions.long()].unsqueeze(2).unbind(1)  # [M, 1, DH / 2]
    even, odd = rearrange(wide(x), "m h (i two) -> two m h i", two=2)
    rotated = torch.stack([even * cos - odd * sin, even * sin + odd * cos])
    return rearrange(rotated, "two m h i -> m h (i two)").to(x.dtype)
