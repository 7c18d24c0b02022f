"""Shared by the references of the vocoder's operators: ring buffers, the timing of a layer, packed weights.

Each of B batch slots holds a clip, of which a step computes a few frames. Between two layers lies a ring buffer [B, R,
channels]: position p of a clip lies at index p mod R. Positions outside of the clip are never read: they count as zero,
whatever the ring holds. So a slot starts a new clip by its `step_meta` alone, and a step may be repeated.

`step_meta` [B, 4] int32 says where each slot is; `kernels/_ring_conv.py` lists its numbers and shows an example. With
tf32, products read fp32 operands as tf32.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from zonos2_triton.reference.vocoder import KERNEL, snake

LENGTH_UNKNOWN = 2**31 - 1


class LayerTiming(NamedTuple):
    """The positions of a layer: after n frames it has been computed up to samples_per_frame * n - delay.

    Its clip has samples_per_frame * length - tail_trim positions.
    """

    samples_per_frame: int = 1
    delay: int = 0
    tail_trim: int = 0

    def convolved(self, dilation: int = 1, taps: int = KERNEL) -> "LayerTiming":
        return self._replace(delay=self.delay + taps // 2 * dilation)

    def upsampled(self, stride: int) -> "LayerTiming":
        """The timing behind a transposed convolution of 2 * stride taps."""
        delay = stride * self.delay + (stride + 1) // 2
        return LayerTiming(stride * self.samples_per_frame, delay, stride * self.tail_trim + stride % 2)


def packed(weight: Tensor) -> Tensor:
    """The weight of a convolution [Co, Ci, taps] -> [Co, taps * Ci], channels last."""
    return weight.mT.flatten(1).contiguous()


def packed_transposed(weight: Tensor) -> Tensor:
    """The weight of a transposed convolution [Ci, Co, 2 * stride] -> [stride * Co, 2 * Ci].

    Output stride * q - padding + r is made of inputs q - 1 and q: row r * Co + o holds their taps for channel o.
    """
    late, early = weight.permute(2, 1, 0).chunk(2)  # each [stride, Co, Ci]: of input q, of input q - 1
    return torch.cat([early, late], 2).flatten(0, 1).contiguous()


def packed_codebooks(weights: list[Tensor], biases: list[Tensor]) -> Tensor:
    """C projections [D, K, 1] and biases [D] -> [D, P]: K columns each, then a column for each bias, then zeros."""
    return padded(torch.cat([*(w[..., 0] for w in weights), torch.stack(biases, 1)], 1))


def padded(columns: Tensor) -> Tensor:
    """The columns, and columns of zeros behind them up to a power of two, at least 16."""
    wanted = max(16, 1 << (columns.shape[1] - 1).bit_length())
    return F.pad(columns, (0, wanted - columns.shape[1]))


def operand(x: Tensor, tf32: bool) -> Tensor:
    """x as a product reads it: with tf32, fp32 has ten bits of its fraction."""
    if not tf32 or x.dtype != torch.float32:
        return x
    bits = (x.view(torch.int32) + 0x1000) & ~0x1FFF  # to nearest, ties away from zero
    return torch.where(x.isfinite(), bits.view(torch.float32), x)


def read_ring(ring: Tensor, first: int, last: int, clip_len: int) -> Tensor:
    """Positions first .. last - 1 of a clip of clip_len positions, zero outside of it. ring [R, channels]."""
    at = torch.arange(first, last, device=ring.device)
    return torch.where(((at >= 0) & (at < clip_len))[:, None], ring[at % len(ring)], 0)


def write_ring(ring: Tensor, first: int, values: Tensor, clip_len: int) -> None:
    """Stores those of the values, positions from `first` on, that lie in the clip."""
    at = torch.arange(first, first + len(values), device=ring.device)
    inside = (at >= 0) & (at < clip_len)
    ring[at[inside] % len(ring)] = values[inside].to(ring.dtype)


def write_outputs(
    out: Tensor, slot: int, first: int, clip_len: int, alpha: Tensor | None, y: Tensor | None, activated: Tensor | None
) -> None:
    """Stores out [positions, Co] into the slot's ring of y, and snake(out) into that of activated."""
    if y is not None:
        write_ring(y[slot], first, out, clip_len)
    if activated is not None:
        if alpha is None:
            raise ValueError("activated and alpha must be given together, got activated without alpha")
        write_ring(activated[slot], first, snake(out.mT[None], alpha[:, None])[0].mT, clip_len)
