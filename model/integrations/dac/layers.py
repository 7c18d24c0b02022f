"""The layers of a codec in transformers' DacModel and dac.DAC: the same layers under different names.

They are read from the modules. Their attributes must be those of the decoder that this package computes.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from zonos2_triton.model.integrations.accelerate import difference
from zonos2_triton.model.weights.codec_checkpoint import official_name
from zonos2_triton.reference.vocoder import DILATIONS, KERNEL, VocoderConfig, snake

PARAMETRIZED = "parametrizations"  # torch's child module that computes a weight
SNAKE_BOUNDS = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 5e-2, torch.float16: 5e-3}
ExpectedLayer = tuple[type[nn.Module], Mapping[str, Any]]  # class and attributes


class CodecLayer(NamedTuple):
    """A module of a codec and its path."""

    path: str
    module: Any


def read_layers(owner: str, obj: Any) -> tuple[VocoderConfig, dict[str, CodecLayer]]:
    """The sizes of a codec, and its modules by official name.

    ValueError: a layer is unexpected, missing, or has other attributes than in the decoder of this package.
    """
    config = _config(owner, obj)
    found = {}
    for root in ("quantizer", "decoder"):
        for path, module in getattr(obj, root).named_modules(prefix=root, remove_duplicate=False):
            if own := {"forward", "from_codes"} & vars(module).keys():
                raise ValueError(f"{owner}: {path}.{min(own)} was replaced on the module itself: put it back first")
            inside = {name for name, _ in module.named_children()} - {PARAMETRIZED}
            if not inside and PARAMETRIZED not in path:
                found[_official_module(path, config)] = CodecLayer(path, module)
    expected = _expected_layers(config)
    for name, layer in found.items():
        if name in expected:
            _check_layer(owner, layer, *expected[name])
        elif name.startswith("decoder."):
            raise ValueError(f"{owner}: {layer.path} is a layer that the codec does not have: {layer.module}")
    if missing := [name for name in expected if name not in found]:
        raise ValueError(f"{owner}: has no layer {missing[0]} (by its name in the official file)")
    return config, {name: found[name] for name in expected}


def _config(owner: str, obj: Any) -> VocoderConfig:
    def layers(part: str, kind: type[nn.Module]) -> list[Any]:
        modules = [module for module in getattr(obj, part).modules() if isinstance(module, kind)]
        if not modules:
            raise ValueError(f"{owner}: {part} holds no {kind.__name__}")
        return modules

    first, codebook = layers("decoder", nn.Conv1d)[0], layers("quantizer", nn.Embedding)[0]
    rates = tuple(layer.stride[0] for layer in layers("decoder", nn.ConvTranspose1d))
    sizes = first.in_channels, first.out_channels, rates, len(obj.quantizer.quantizers)
    try:
        return VocoderConfig(*sizes, codebook.num_embeddings, codebook.embedding_dim)
    except ValueError as error:
        raise ValueError(f"{owner}: {error}") from error


def _official_module(path: str, config: VocoderConfig) -> str:
    if path == "decoder.tanh":
        return f"decoder.model.{len(config.decoder_rates) + 3}"
    return official_name(f"{path}.weight", config).removesuffix(".weight")


def _expected_layers(config: VocoderConfig) -> dict[str, ExpectedLayer]:
    """Class and attributes of each module of the decode side, by official name."""

    def sizes(inputs: int, outputs: int, kernel: int, stride: int) -> dict[str, Any]:
        fixed = {"groups": 1, "padding_mode": "zeros"}
        return {"in_channels": inputs, "out_channels": outputs, "kernel_size": (kernel,), "stride": (stride,)} | fixed

    def conv(inputs: int, outputs: int, kernel: int, dilation: int = 1) -> ExpectedLayer:
        padding = {"padding": (kernel // 2 * dilation,), "dilation": (dilation,)}
        return nn.Conv1d, sizes(inputs, outputs, kernel, 1) | padding

    def transposed(inputs: int, outputs: int, stride: int) -> ExpectedLayer:
        padding = {"padding": (math.ceil(stride / 2),), "output_padding": (0,), "dilation": (1,)}
        return nn.ConvTranspose1d, sizes(inputs, outputs, 2 * stride, stride) | padding

    def snakes(channels: int) -> ExpectedLayer:
        return nn.Module, {"channels": channels}  # each package has a class of its own

    width, layers = config.decoder_dim, dict[str, ExpectedLayer]()
    vectors = {"num_embeddings": config.codebook_size, "embedding_dim": config.codebook_dim, "max_norm": None}
    for i in range(config.n_codebooks):
        layers[f"quantizer.quantizers.{i}.codebook"] = nn.Embedding, vectors
        layers[f"quantizer.quantizers.{i}.out_proj"] = conv(config.codebook_dim, config.latent_dim, 1)
    layers["decoder.model.0"] = conv(config.latent_dim, width, KERNEL)
    for i, rate in enumerate(config.decoder_rates, 1):
        block = f"decoder.model.{i}.block"
        layers[f"{block}.0"], layers[f"{block}.1"] = snakes(width), transposed(width, width // 2, rate)
        width //= 2
        for unit, dilation in enumerate(DILATIONS, 2):
            inner = snakes(width), conv(width, width, KERNEL, dilation), snakes(width), conv(width, width, 1)
            layers |= {f"{block}.{unit}.block.{j}": layer for j, layer in enumerate(inner)}
    last = len(config.decoder_rates) + 1
    outer: tuple[ExpectedLayer, ...] = snakes(width), conv(width, 1, KERNEL), (nn.Tanh, {})
    return layers | {f"decoder.model.{last + j}": layer for j, layer in enumerate(outer)}


def _check_layer(owner: str, layer: CodecLayer, kind: type[nn.Module], attributes: Mapping[str, Any]) -> None:
    if kind is nn.Module:
        return _check_snake(owner, layer, attributes["channels"])
    path, module = layer
    if not isinstance(module, kind) or type(module).forward is not kind.forward:
        raise ValueError(f"{owner}: {path} must be a {kind.__name__} of torch, got {type(module).__name__}")
    for name, wanted in attributes.items():
        if (got := getattr(module, name)) != wanted:
            raise ValueError(f"{owner}: {path}.{name} must be {wanted}, got {got}")
    if "groups" in attributes and module.bias is None:
        raise ValueError(f"{owner}: {path} must have a bias, got none")
    for tensor, parametrizations in getattr(module, PARAMETRIZED, {}).items():
        if names := {type(each).__name__ for each in parametrizations} - {"_WeightNorm"}:
            raise ValueError(f"{owner}: {path}.{tensor} may be parametrized by weight norm alone, got {min(names)}")


def _check_snake(owner: str, layer: CodecLayer, channels: int) -> None:
    path, module = layer
    shapes = {name: list(tensor.shape) for name, tensor in module.named_parameters()}
    if shapes != {"alpha": [1, channels, 1]}:
        raise ValueError(f"{owner}: {path} must be a snake of alpha {[1, channels, 1]}, got parameters {shapes}")
    alpha = module.alpha
    x = torch.linspace(-3, 3, 7, dtype=alpha.dtype, device=alpha.device).expand(1, channels, 7)
    with torch.no_grad(), torch.autocast(alpha.device.type, enabled=False):
        error = difference(module(x), snake(x, alpha))
    if not error <= SNAKE_BOUNDS[alpha.dtype]:
        raise ValueError(
            f"{owner}: {path} must be x + sin(alpha x)^2 / (alpha + 1e-9); {type(module).__name__} differs from it by "
            f"{error:.1e}"
        )
