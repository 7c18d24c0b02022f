"""The encoder of the Descript Audio Codec (DAC): samples to codes."""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from zonos2_triton.reference.vocoder import DILATIONS, KERNEL, VocoderConfig, snake


def layout(config: VocoderConfig, width: int, rates: tuple[int, ...]) -> dict[str, list[int]]:
    """{official tensor name: shape} of the encode side, weight norm folded. width: channels of the first layer."""
    names: dict[str, list[int]] = {}

    def conv(name: str, *shape: int) -> None:
        names[f"{name}.weight"], names[f"{name}.bias"] = list(shape), [shape[0]]

    conv("encoder.block.0", width, 1, KERNEL)
    for i, rate in enumerate(rates, 1):
        block = f"encoder.block.{i}.block"
        for unit in range(len(DILATIONS)):
            for j, kernel in ((0, KERNEL), (2, 1)):
                names[f"{block}.{unit}.block.{j}.alpha"] = [1, width, 1]
                conv(f"{block}.{unit}.block.{j + 1}", width, width, kernel)
        names[f"{block}.{len(DILATIONS)}.alpha"] = [1, width, 1]
        conv(f"{block}.{len(DILATIONS) + 1}", 2 * width, width, 2 * rate)
        width *= 2
    last = len(rates) + 1
    names[f"encoder.block.{last}.alpha"] = [1, width, 1]
    conv(f"encoder.block.{last + 1}", config.latent_dim, width, 3)
    for i in range(config.n_codebooks):
        conv(f"quantizer.quantizers.{i}.in_proj", config.codebook_dim, config.latent_dim, 1)
    return names


def latents(state: Mapping[str, Tensor], rates: tuple[int, ...], samples: Tensor) -> Tensor:
    """samples [B, N], N a multiple of the product of the rates -> [B, latent_dim, N / product]."""

    def conv(name: str, x: Tensor, dilation: int = 1, stride: int = 1) -> Tensor:
        weight = state[f"{name}.weight"]
        padding = math.ceil(stride / 2) if stride > 1 else weight.shape[2] // 2 * dilation
        return F.conv1d(x, weight, state[f"{name}.bias"], stride, padding, dilation)

    x = conv("encoder.block.0", samples[:, None])
    for i, rate in enumerate(rates, 1):
        block = f"encoder.block.{i}.block"
        for unit, dilation in enumerate(DILATIONS):
            name = f"{block}.{unit}.block"
            y = conv(f"{name}.1", snake(x, state[f"{name}.0.alpha"]), dilation)
            x = x + conv(f"{name}.3", snake(y, state[f"{name}.2.alpha"]))
        x = conv(f"{block}.{len(DILATIONS) + 1}", snake(x, state[f"{block}.{len(DILATIONS)}.alpha"]), stride=rate)
    last = len(rates) + 1
    return conv(f"encoder.block.{last + 1}", snake(x, state[f"encoder.block.{last}.alpha"]))


def rvq_encode(config: VocoderConfig, state: Mapping[str, Tensor], z: Tensor) -> Tensor:
    """z [B, latent_dim, T] -> codes [B, C, T]: each codebook takes the vector of least angle to what is left of z."""
    codes = []
    for i in range(config.n_codebooks):
        part = f"quantizer.quantizers.{i}"
        table = state[f"{part}.codebook.weight"]
        x = F.conv1d(z, state[f"{part}.in_proj.weight"], state[f"{part}.in_proj.bias"])
        found = (F.normalize(table) @ F.normalize(x, dim=1)).argmax(1)  # [B, T]
        z = z - F.conv1d(table[found].mT, state[f"{part}.out_proj.weight"], state[f"{part}.out_proj.bias"])
        codes.append(found)
    return torch.stack(codes, 1)


def encode(config: VocoderConfig, state: Mapping[str, Tensor], rates: tuple[int, ...], samples: Tensor) -> Tensor:
    """samples [B, N] -> codes [B, C, ceil(N / hop)]; silence fills the last frame. state: of both sides."""
    padded = F.pad(samples, (0, -samples.shape[1] % math.prod(rates)))
    return rvq_encode(config, state, latents(state, rates, padded))
