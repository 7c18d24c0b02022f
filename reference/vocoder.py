"""The decoder of the Descript Audio Codec (DAC): codes to samples."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor

from zonos2_triton.reference.config import check_sizes
from zonos2_triton.reference.numeric import wide

DILATIONS = (1, 3, 9)  # of the three residual units of a block
KERNEL = 7


@dataclass(frozen=True)
class VocoderConfig:
    """Sizes of the decode side; the defaults are those of the 44.1 kHz model."""

    latent_dim: int = 1024
    decoder_dim: int = 1536
    decoder_rates: tuple[int, ...] = (8, 8, 4, 2)
    n_codebooks: int = 9
    codebook_size: int = 1024
    codebook_dim: int = 8
    sample_rate: int = 44100

    def __post_init__(self) -> None:
        check_sizes(self)
        if self.decoder_dim % 2 ** len(self.decoder_rates):
            raise ValueError(
                f"VocoderConfig: decoder_dim {self.decoder_dim} must halve evenly for each of decoder_rates "
                f"{self.decoder_rates}"
            )

    @property
    def hop(self) -> int:
        """Samples from the start of one frame to the start of the next."""
        return math.prod(self.decoder_rates)

    def samples(self, frames: int) -> int:
        """Samples of a clip. An odd rate s turns a length L into s * L - 1, an even one into s * L."""
        length = frames
        for rate in self.decoder_rates:
            length = rate * length - rate % 2
        return max(length, 0)

    def receptive_field(self, start: int, stop: int) -> tuple[int, int]:
        """(first, last + 1) of the frames that samples start .. stop - 1 depend on. They may lie outside the clip."""
        low, high = start - KERNEL // 2, stop - 1 + KERNEL // 2
        for rate in reversed(self.decoder_rates):
            reach = (KERNEL // 2) * sum(DILATIONS)
            low, high = low - reach, high + reach
            # Output n of a transposed convolution reads inputs j with 0 <= n + padding - rate * j < 2 * rate.
            padding = math.ceil(rate / 2)
            low, high = math.ceil((low + padding - 2 * rate + 1) / rate), (high + padding) // rate
        return low - KERNEL // 2, high + KERNEL // 2 + 1


def layout(config: VocoderConfig) -> dict[str, list[int]]:
    """{official tensor name: shape} of the decode side, weight norm folded."""
    D, width = config.latent_dim, config.decoder_dim
    names: dict[str, list[int]] = {}

    def conv(name: str, *shape: int, outputs: int | None = None) -> None:
        names[f"{name}.weight"], names[f"{name}.bias"] = list(shape), [outputs or shape[0]]

    for i in range(config.n_codebooks):
        names[f"quantizer.quantizers.{i}.codebook.weight"] = [config.codebook_size, config.codebook_dim]
        conv(f"quantizer.quantizers.{i}.out_proj", D, config.codebook_dim, 1)
    conv("decoder.model.0", width, D, KERNEL)
    for i, rate in enumerate(config.decoder_rates, 1):
        block, half = f"decoder.model.{i}.block", width // 2
        names[f"{block}.0.alpha"] = [1, width, 1]
        conv(f"{block}.1", width, half, 2 * rate, outputs=half)
        for unit in range(2, 2 + len(DILATIONS)):
            for j, kernel in ((0, KERNEL), (2, 1)):
                names[f"{block}.{unit}.block.{j}.alpha"] = [1, half, 1]
                conv(f"{block}.{unit}.block.{j + 1}", half, half, kernel)
        width = half
    last = len(config.decoder_rates) + 1
    names[f"decoder.model.{last}.alpha"] = [1, width, 1]
    conv(f"decoder.model.{last + 1}", 1, width, KERNEL)
    return names


def fold(g: Tensor, v: Tensor, dtype: torch.dtype) -> Tensor:
    """Weight norm: g * v / |v|, the norm over every dimension but the first, in fp64, rounded once.

    g [N, 1, 1], v [N, ., .].
    """
    v = v.double()
    return (g * v / v.norm(dim=(1, 2), keepdim=True)).to(dtype)


def snake(x: Tensor, alpha: Tensor) -> Tensor:
    """x [B, C, L], alpha [1, C, 1] -> x + sin(alpha x)^2 / (alpha + 1e-9)."""
    y, a = wide(x), wide(alpha)
    return (y + torch.sin(a * y).square() / (a + 1e-9)).to(x.dtype)


def rvq_decode(config: VocoderConfig, state: Mapping[str, Tensor], codes: Tensor) -> Tensor:
    """codes [B, C, T] -> latents [B, latent_dim, T]: the sum of C projected code vectors, C <= n_codebooks.

    An id above the codebook reads its last vector.
    """
    projected = []
    for i, ids in enumerate(codes.clamp(max=config.codebook_size - 1).unbind(1)):
        part = f"quantizer.quantizers.{i}"
        vectors = state[f"{part}.codebook.weight"][ids].mT  # [B, codebook_dim, T]
        projected.append(F.conv1d(vectors, state[f"{part}.out_proj.weight"], state[f"{part}.out_proj.bias"]))
    return reduce(torch.add, projected)


def decode(config: VocoderConfig, state: Mapping[str, Tensor], codes: Tensor) -> dict[str, Tensor]:
    """codes [B, C, T] -> every stage: z, conv_in, block_i [B, channels, length], pre_tanh [B, 1, samples] and audio
    [B, samples]."""

    def conv(name: str, x: Tensor, dilation: int = 1) -> Tensor:
        weight = state[f"{name}.weight"]
        padding = weight.shape[2] // 2 * dilation
        return F.conv1d(x, weight, state[f"{name}.bias"], padding=padding, dilation=dilation)

    def residual_unit(name: str, x: Tensor, dilation: int) -> Tensor:
        y = conv(f"{name}.1", snake(x, state[f"{name}.0.alpha"]), dilation)
        return x + conv(f"{name}.3", snake(y, state[f"{name}.2.alpha"]))

    stages = {"z": rvq_decode(config, state, codes)}
    x = stages["conv_in"] = conv("decoder.model.0", stages["z"])
    for i, rate in enumerate(config.decoder_rates):
        block = f"decoder.model.{i + 1}.block"
        x = snake(x, state[f"{block}.0.alpha"])
        weight, bias = state[f"{block}.1.weight"], state[f"{block}.1.bias"]
        x = F.conv_transpose1d(x, weight, bias, stride=rate, padding=math.ceil(rate / 2))
        for unit, dilation in enumerate(DILATIONS, 2):
            x = residual_unit(f"{block}.{unit}.block", x, dilation)
        stages[f"block_{i}"] = x
    last = len(config.decoder_rates) + 1
    x = conv(f"decoder.model.{last + 1}", snake(x, state[f"decoder.model.{last}.alpha"]))
    return {**stages, "pre_tanh": x, "audio": torch.tanh(wide(x))[:, 0]}
