"""Interleaved rotary position embedding."""

import torch
from einops import rearrange
from torch import Tensor

from zonos2_triton.reference.numeric import wide


def rotary(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    """x [T, H, DH], positions [T] -> x with each pair (2i, 2i+1) turned by position * theta^(-2i / DH)."""
    head_dim = x.shape[-1]
    # Angles in fp64: a position of 6,143 times a frequency costs fp32 four digits before the cosine is taken.
    exponents = torch.arange(0, head_dim, 2, device=x.device, dtype=torch.float64) / head_dim
    angles = positions.double()[:, None, None] * theta**-exponents  # [T, 1, DH / 2]
    even, odd = rearrange(wide(x), "t h (i two) -> two t h i", two=2)
    cos, sin = angles.cos().to(even.dtype), angles.sin().to(even.dtype)
    turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos])
    return rearrange(turned, "two t h i -> t h (i two)").to(x.dtype)
