"""Codec checkpoints: tensor names and sizes of the official file and of transformers' folder."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, dtype

from zonos2_triton._settings import local_path
from zonos2_triton.model.weights.checkpoint import Checkpoint, one_file
from zonos2_triton.reference.vocoder import VocoderConfig, fold

CODEC_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "*.safetensors", "*.pth")  # in a folder


def open_codec(path: str | Path) -> tuple[Checkpoint, VocoderConfig, dict[str, Tensor]]:
    """The official DAC file (.pth), a folder in the transformers layout (config.json, model.safetensors), or its file
    of weights -> the checkpoint, its configuration, and its tensors by official name."""
    path = local_path(path)
    remedy = "instead of the folder, beside a model by vocoder= or --vocoder"
    checkpoint = Checkpoint(one_file(path, "vocoder weights", CODEC_WEIGHTS, remedy) if path.is_dir() else path)
    tensors = checkpoint.tensors(checkpoint.shapes)
    if (settings := checkpoint.path.with_name("config.json")).is_file() and "kwargs" not in checkpoint.metadata:
        config = transformers_config(settings)
        return checkpoint, config, {official_name(name, config): t for name, t in tensors.items()}
    return checkpoint, official_config(checkpoint), tensors


def is_encode_side(name: str) -> bool:
    """Whether the tensor is not needed to decode."""
    return ".encoder." in f".{name}" or ".in_proj." in name


def fold_weight_norms(state: Mapping[str, Tensor], to: dtype) -> dict[str, Tensor]:
    """Replace each pair g and v, in either naming of torch, by its weight. Half a pair stays."""
    folded = {name.replace(".parametrizations.", "."): tensor for name, tensor in state.items()}
    for g_end, v_end in ((".weight_g", ".weight_v"), (".weight.original0", ".weight.original1")):
        for base in [name.removesuffix(g_end) for name in folded if name.endswith(g_end)]:
            g, v = folded[base + g_end], folded.get(base + v_end)
            if v is None or v.ndim != 3 or g.shape != (len(v), 1, 1) or f"{base}.weight" in folded:
                continue  # stays, and check_layout reports it
            folded[f"{base}.weight"] = fold(g, v, to)
            del folded[base + g_end], folded[base + v_end]
    return folded


def official_config(checkpoint: Checkpoint) -> VocoderConfig:
    """The configuration in metadata.kwargs of the official file."""
    try:
        kwargs = json.loads(checkpoint.metadata.get("kwargs", "{}"))
        own = {name: kwargs[name] for name in VocoderConfig.__dataclass_fields__ if kwargs.get(name) is not None}
        if kwargs and "latent_dim" not in own and {"encoder_dim", "encoder_rates"} <= kwargs.keys():
            own["latent_dim"] = kwargs["encoder_dim"] * 2 ** len(kwargs["encoder_rates"])
        return VocoderConfig(**own)
    except (AttributeError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{checkpoint.path}: metadata.kwargs is no configuration of a codec: {error}") from error


def transformers_config(path: Path) -> VocoderConfig:
    """The configuration in the folder's config.json."""
    try:
        c = json.loads(path.read_text(encoding="utf-8"))
        rates = c.get("upsampling_ratios") or c["downsampling_ratios"][::-1]
        own = {name: c[name] for name in ("n_codebooks", "codebook_size", "codebook_dim")}
        own |= {"latent_dim": c["hidden_size"], "decoder_dim": c["decoder_hidden_size"]}
        return VocoderConfig(decoder_rates=tuple(rates), sample_rate=c["sampling_rate"], **own)
    except (AttributeError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is not the configuration of a transformers DAC model: {error!r}") from error


# Index in the official nn.Sequential of each module of transformers' blocks and residual units.
RESIDUAL_UNITS = ("res_unit1", "res_unit2", "res_unit3")
BLOCK_PARTS = {
    "decoder": {name: str(i) for i, name in enumerate(("snake1", "conv_t1", *RESIDUAL_UNITS))},
    "encoder": {name: str(i) for i, name in enumerate((*RESIDUAL_UNITS, "snake1", "conv1"))},
}
UNIT_PARTS = {name: str(i) for i, name in enumerate(("snake1", "conv1", "snake2", "conv2"))}
MODULES = {"decoder": "decoder.model", "encoder": "encoder.block"}


def official_name(name: str, config: VocoderConfig) -> str:
    """The official name of a tensor of transformers' DacModel. An unknown name stays."""
    side, last = name.partition(".")[0], len(config.decoder_rates) + 1
    if block := re.fullmatch(r"(?:encoder|decoder)\.block\.(\d+)\.([^.]+)\.(.+)", name):
        i, module, rest = block.groups()
        if module in RESIDUAL_UNITS:
            part, _, leaf = rest.partition(".")
            rest = f"block.{UNIT_PARTS.get(part, part)}.{leaf}"
        return f"{MODULES[side]}.{int(i) + 1}.block.{BLOCK_PARTS[side].get(module, module)}.{rest}"
    for part, index in (("conv1", 0), ("snake1", last), ("conv2", last + 1)):
        if side in MODULES and name.startswith(f"{side}.{part}."):
            return f"{MODULES[side]}.{index}.{name.removeprefix(f'{side}.{part}.')}"
    return name
