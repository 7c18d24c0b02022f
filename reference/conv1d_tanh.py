"""The last convolution of a vocoder step, and tanh."""

import torch
from torch import Tensor

from zonos2_triton.reference.conv1d_snake import conv1d_snake
from zonos2_triton.reference.numeric import wide
from zonos2_triton.reference.vocoder_layers import read_ring


def conv1d_tanh(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    step_meta: Tensor,
    frames: int,
    samples_per_frame: int,
    delay: int,
    tail_trim: int,
    y: Tensor | None = None,
    tf32: bool = False,
) -> Tensor:
    """tanh(conv1d(x)) by weight [1, taps * C] -> samples, fp32 [B, frames * samples_per_frame].

    Column j is position samples_per_frame * done - delay - taps // 2 + j of a slot. It is zero outside of the clip and
    after the slot's own frames. y [B, R, 1], a ring: the result before tanh.
    """
    B, reach, positions = len(x), weight.shape[1] // x.shape[2] // 2, frames * samples_per_frame
    ring = wide(x).new_zeros(B, max(x.shape[1], positions), 1) if y is None else y
    conv1d_snake(x, weight, bias, step_meta, frames, samples_per_frame, delay, tail_trim, y=ring, tf32=tf32)
    samples = wide(x).new_zeros(B, positions)
    for slot, (done, count, length, _) in enumerate(step_meta.tolist()):
        first, clip_len = samples_per_frame * done - delay - reach, samples_per_frame * length - tail_trim
        columns = samples_per_frame * count
        samples[slot, :columns] = torch.tanh(wide(read_ring(ring[slot], first, first + columns, clip_len))[:, 0])
    return samples
