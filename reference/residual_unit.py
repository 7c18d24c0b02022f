"""A residual unit of a vocoder step: two convolutions."""

import torch
from torch import Tensor

from zonos2_triton.reference.conv1d_snake import conv1d_snake


def residual_unit(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    inner_alpha: Tensor,
    inner_weight: Tensor,
    inner_bias: Tensor,
    step_meta: Tensor,
    frames: int,
    samples_per_frame: int,
    delay: int,
    tail_trim: int,
    dilation: int = 1,
    alpha: Tensor | None = None,
    y: Tensor | None = None,
    activated: Tensor | None = None,
    tf32: bool = False,
) -> None:
    """y = residual + inner(snake(conv1d(x))), activated = snake(y): weight [C, taps * C], then inner_weight [C, C]."""
    between = torch.zeros_like(x)  # a ring that holds at least as much
    timing = samples_per_frame, delay, tail_trim
    conv1d_snake(x, weight, bias, step_meta, frames, *timing, dilation, alpha=inner_alpha, activated=between, tf32=tf32)
    timing = samples_per_frame, delay + weight.shape[1] // x.shape[2] // 2 * dilation, tail_trim
    conv1d_snake(between, inner_weight, inner_bias, step_meta, frames, *timing, 1, residual, alpha, y, activated, tf32)
