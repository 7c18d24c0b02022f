"""A convolution of a vocoder step, with a residual and snake."""

import torch.nn.functional as F
from torch import Tensor

from zonos2_triton.reference.vocoder_layers import operand, read_ring, write_outputs


def conv1d_snake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    step_meta: Tensor,
    frames: int,
    samples_per_frame: int,
    delay: int,
    tail_trim: int,
    dilation: int = 1,
    residual: Tensor | None = None,
    alpha: Tensor | None = None,
    y: Tensor | None = None,
    activated: Tensor | None = None,
    tf32: bool = False,
) -> None:
    """y = conv1d(x) + residual, and activated = snake(y), into rings. samples_per_frame, delay, tail_trim are x's.

    weight [Co, taps * Ci] as `packed` makes it, taps odd. The outputs' delay is delay + taps // 2 * dilation. y and
    residual are fp32 in half precision too.
    """
    Ci, Co = x.shape[2], len(weight)
    kernel = operand(weight, tf32).view(Co, -1, Ci).mT
    reach = kernel.shape[2] // 2 * dilation
    for slot, (done, count, length, _) in enumerate(step_meta.tolist()):
        if count == 0:
            continue
        first, clip_len = samples_per_frame * done - delay - reach, samples_per_frame * length - tail_trim
        last = first + samples_per_frame * count
        source = operand(read_ring(x[slot], first - reach, last + reach, clip_len), tf32)
        out = F.conv1d(source.mT[None], kernel, bias, dilation=dilation)[0].mT
        if residual is not None:
            out = out + read_ring(residual[slot], first, last, clip_len)
        write_outputs(out, slot, first, clip_len, alpha, y, activated)
