"""ECAPA-TDNN: a log-mel spectrogram to a speaker embedding.

Source: B. Desplanques, J. Thienpondt, K. Demuynck, "ECAPA-TDNN", Interspeech 2020.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from zonos2_triton.reference.config import check_sizes
from zonos2_triton.reference.mel import MELS


@dataclass(frozen=True)
class SpeakerEncoderConfig:
    """Sizes; the defaults are those of the released encoder.

    enc_channels, enc_kernel_sizes and enc_dilations list the first block, the squeeze-excitation blocks and the
    aggregation of the latter.
    """

    mel_dim: int = MELS
    enc_dim: int = 2048
    enc_channels: tuple[int, ...] = (512, 512, 512, 512, 1536)
    enc_kernel_sizes: tuple[int, ...] = (5, 3, 3, 3, 1)
    enc_dilations: tuple[int, ...] = (1, 2, 3, 4, 1)
    enc_attention_channels: int = 128
    enc_res2net_scale: int = 8
    enc_se_channels: int = 128

    def __post_init__(self) -> None:
        check_sizes(self)
        if even := [n for n in self.enc_kernel_sizes if n % 2 == 0]:
            raise ValueError(f"SpeakerEncoderConfig: enc_kernel_sizes must be odd, got {even[0]}")
        n = len(self.enc_channels)
        if n < 3 or not n == len(self.enc_kernel_sizes) == len(self.enc_dilations):
            raise ValueError(
                f"SpeakerEncoderConfig: enc_channels, enc_kernel_sizes and enc_dilations must be of one length, 3 or "
                f"more, got {self.enc_channels}, {self.enc_kernel_sizes}, {self.enc_dilations}"
            )
        if self.mel_dim != MELS:
            raise ValueError(f"SpeakerEncoderConfig: mel_dim must be {MELS}, got {self.mel_dim}")
        inner = self.enc_channels[:-1]
        if len(set(inner)) > 1 or inner[0] % self.enc_res2net_scale:
            raise ValueError(
                f"SpeakerEncoderConfig: enc_channels before the last must be equal and a multiple of enc_res2net_scale "
                f"{self.enc_res2net_scale}, got {self.enc_channels}"
            )
        if self.enc_channels[-1] != sum(inner[1:]):
            raise ValueError(
                f"SpeakerEncoderConfig: the last of enc_channels must be the sum of the blocks it joins, "
                f"{sum(inner[1:])}, got {self.enc_channels[-1]}"
            )

    @property
    def least_frames(self) -> int:
        """Fewest spectrogram frames: reflection needs more than it adds on either side."""
        sizes = zip(self.enc_dilations, self.enc_kernel_sizes, strict=True)
        return 1 + max(dilation * (kernel - 1) // 2 for dilation, kernel in sizes)


def layout(config: SpeakerEncoderConfig) -> dict[str, list[int]]:
    """{official tensor name: shape}."""
    names: dict[str, list[int]] = {}

    def conv(name: str, outputs: int, inputs: int, kernel: int = 1) -> None:
        names[f"{name}.weight"], names[f"{name}.bias"] = [outputs, inputs, kernel], [outputs]

    *channels, joined = config.enc_channels
    kernels, width = config.enc_kernel_sizes, channels[0] // config.enc_res2net_scale
    conv("blocks.0.conv", channels[0], config.mel_dim, kernels[0])
    for i, n in enumerate(channels[1:], 1):
        conv(f"blocks.{i}.tdnn1.conv", n, channels[i - 1])
        for j in range(config.enc_res2net_scale - 1):
            conv(f"blocks.{i}.res2net_block.blocks.{j}.conv", width, width, kernels[i])
        conv(f"blocks.{i}.tdnn2.conv", n, n)
        conv(f"blocks.{i}.se_block.conv1", config.enc_se_channels, n)
        conv(f"blocks.{i}.se_block.conv2", n, config.enc_se_channels)
    conv("mfa.conv", joined, sum(channels[1:]), kernels[-1])
    conv("asp.tdnn.conv", config.enc_attention_channels, 3 * joined)
    conv("asp.conv", joined, config.enc_attention_channels)
    conv("fc", config.enc_dim, 2 * joined)
    return names


def embed(config: SpeakerEncoderConfig, state: Mapping[str, Tensor], log_mel: Tensor) -> Tensor:
    """log_mel [frames, mel_dim] -> [enc_dim], not normalised."""

    def conv(name: str, x: Tensor, dilation: int = 1) -> Tensor:
        """'same' convolution, the borders reflected."""
        weight = state[f"{name}.weight"]
        pad = dilation * (weight.shape[2] - 1) // 2
        return F.conv1d(F.pad(x, (pad, pad), mode="reflect"), weight, state[f"{name}.bias"], dilation=dilation)

    def res2net(name: str, x: Tensor, dilation: int) -> Tensor:
        """The first chunk passes; each other chunk is convolved after adding the result before it."""
        first, *rest = x.chunk(config.enc_res2net_scale, 1)
        parts, y = [first], None
        for j, part in enumerate(rest):
            y = conv(f"{name}.blocks.{j}.conv", part if y is None else part + y, dilation).relu()
            parts.append(y)
        return torch.cat(parts, 1)

    x = log_mel.T[None]  # [1, channels, frames]
    x = conv("blocks.0.conv", x, config.enc_dilations[0]).relu()
    blocks = []
    for i, dilation in enumerate(config.enc_dilations[1:-1], 1):
        block = f"blocks.{i}"
        y = conv(f"{block}.tdnn1.conv", x).relu()
        y = conv(f"{block}.tdnn2.conv", res2net(f"{block}.res2net_block", y, dilation)).relu()
        squeezed = conv(f"{block}.se_block.conv1", y.mean(2, keepdim=True)).relu()
        x = x + y * conv(f"{block}.se_block.conv2", squeezed).sigmoid()
        blocks.append(x)
    x = conv("mfa.conv", torch.cat(blocks, 1), config.enc_dilations[-1]).relu()

    def statistics(weights: Tensor) -> list[Tensor]:
        """Weighted mean and standard deviation over time, [1, channels, 1] each."""
        mean = (weights * x).sum(2, keepdim=True)
        return [mean, (weights * (x - mean).square()).sum(2, keepdim=True).clamp(min=1e-12).sqrt()]

    context = [s.expand_as(x) for s in statistics(torch.full_like(x[:, :1], 1 / x.shape[2]))]
    attention = conv("asp.conv", conv("asp.tdnn.conv", torch.cat([x, *context], 1)).relu().tanh())
    pooled = torch.cat(statistics(attention.softmax(2)), 1)
    return conv("fc", pooled)[0, :, 0]
