"""A strided transposed convolution of a vocoder step, with snake."""

import torch
import torch.nn.functional as F
from torch import Tensor

from zonos2_triton.reference.vocoder_layers import operand, read_ring, write_outputs


def conv_transpose1d_snake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    step_meta: Tensor,
    frames: int,
    samples_per_frame: int,
    delay: int,
    tail_trim: int,
    stride: int,
    alpha: Tensor | None = None,
    y: Tensor | None = None,
    activated: Tensor | None = None,
    tf32: bool = False,
) -> None:
    """y = the transposed convolution of x by 2 * stride taps, and activated = snake(y), into rings.

    weight [stride * Co, 2 * Ci] as `packed_transposed` makes it. samples_per_frame, delay and tail_trim are those of x;
    `LayerTiming.upsampled` gives those of the outputs.
    """
    Ci, Co, padding = x.shape[2], len(weight) // stride, (stride + 1) // 2
    phases = operand(weight, tf32).view(stride, Co, 2, Ci)
    kernel = torch.cat([phases[:, :, 1], phases[:, :, 0]]).permute(2, 1, 0)  # [Ci, Co, 2 * stride]
    for slot, (done, count, length, _) in enumerate(step_meta.tolist()):
        if count == 0:
            continue
        first, clip_len = samples_per_frame * done - delay, samples_per_frame * length - tail_trim
        last = first + samples_per_frame * count
        source = operand(read_ring(x[slot], first - 1, last, clip_len), tf32)
        out = F.conv_transpose1d(source.mT[None], kernel, bias, stride=stride)[0].mT
        out = out[stride : stride * (last - first + 1)]
        write_outputs(out, slot, stride * first - padding, stride * clip_len - stride % 2, alpha, y, activated)
