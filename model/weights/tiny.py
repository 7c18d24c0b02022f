"""A tiny ZONOS2 with random weights in the official formats, for the demo and the tests."""

import json
import math
import secrets
import shutil
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from zonos2_triton._settings import local_path
from zonos2_triton.reference import network, speaker_encoder, vocoder
from zonos2_triton.reference.config import Zonos2Config
from zonos2_triton.reference.numeric import isolated
from zonos2_triton.reference.scalars import as_int
from zonos2_triton.reference.speaker_encoder import SpeakerEncoderConfig
from zonos2_triton.reference.vocoder import VocoderConfig

NOTICE = "random weights: a test model that was never trained; its sound means nothing"

RATES = ["0-8", "8-11", "11-14", "14-17", "17-21", "21-28", "28-40", "40+"]  # bytes of UTF-8 per second


def _ranges(*bounds: float, last: float | None = None) -> list[str]:
    """Ranges between the bounds; behind them up to `last`, or an open one."""
    pairs = [f"{low:g}-{high:g}" for low, high in pairwise(bounds)]
    return [*pairs, f"{bounds[-1]:g}+" if last is None else f"{bounds[-1]:g}-{last:g}"]


# Ranges of the released params.json.
QUALITY = {
    "lufs": _ranges(-1000, *(-50 + 4.5 * i for i in range(11))),
    "estimated_snr": _ranges(-1000, *range(0, 61, 6)),
    "max_pause": _ranges(*(i / 2 for i in range(12)), last=6),
    "estimated_bandlimit_hz": _ranges(495.3, 3433, 6371, 9310, 12248, 15186, 18124, 21062, last=24000),
    "leading_silence_s": _ranges(0, 0.05, 0.1, 0.25, 0.5, 1, 2, 4),
    "trailing_silence_s": _ranges(0, 0.05, 0.1, 0.25, 0.5, 1, 2, 4),
}

# The keys of the released params.json, with the real vocabulary and a small network.
PARAMS: dict[str, Any] = {"model_type": "zonos2", "dtype": "float32", "n_layers": 6, "dim": 64, "head_dim": 16}
PARAMS |= {"n_heads": None, "n_kv_heads": 2, "ffn_dim_multiplier": 1.5, "multiple_of": 32, "norm_eps": 1e-5}
PARAMS |= {"rope_theta": 10000.0, "max_seqlen": 2048, "n_codebooks": 9, "codebook_size": 1024, "eoa_id": 1024}
PARAMS |= {"audio_pad_id": 1025, "text_vocab": 519, "loss_softcap": 15.0}
PARAMS |= {"speaker_enabled": True, "speaker_embedding_dim": 48, "speaker_lda_dim": 32}
PARAMS |= {"speaker_background_token_enabled": True, "accurate_mode_token_enabled": True}
PARAMS |= {"speaking_rate_num_buckets": 8, "speaking_rate_buckets": RATES}
PARAMS |= {"quality_num_buckets": sum(map(len, QUALITY.values())), "quality_features": list(QUALITY)}
PARAMS |= {"quality_buckets": QUALITY}
PARAMS |= {"quality_dropout": dict.fromkeys(QUALITY, 0.25), "moe_impl": "sonic"}
PARAMS |= {"moe_n_experts": 4, "moe_router_topk": 1, "special_topk_layers": {"4": 2}}
PARAMS |= {"moe_router_dim": 16, "moe_start_from_layer": 2, "moe_end_from_layer": 1}

CODEC = VocoderConfig(latent_dim=64, decoder_dim=64)
SIZES: dict[str, Any] = {"enc_attention_channels": 8, "enc_res2net_scale": 4, "enc_se_channels": 8}
SPEAKER = SpeakerEncoderConfig(enc_dim=PARAMS["speaker_embedding_dim"], enc_channels=(16, 16, 16, 16, 48), **SIZES)


@isolated()
def write_tiny(folder: str | Path, seed: int = 0) -> Path:
    """Fill `folder` with params.json, model.safetensors, the codec in the official format and a speaker encoder.

    The same seed gives the same bytes. FileExistsError: the folder holds files already.
    """
    final, number = local_path(folder), as_int(seed)
    if number is None or not 0 <= number < 2**63:
        raise ValueError(f"seed must be an integer in 0..2**63 - 1, got {seed!r}")
    # Hidden files belong to other programs and stay.
    if final.exists() and (not final.is_dir() or any(not path.name.startswith(".") for path in final.iterdir())):
        raise FileExistsError(f"{final} is no empty folder; name a new folder for the tiny model")
    empty = final.exists()  # it may be a link or a mounted folder, so it stays
    folder = (final if empty else final.parent) / f".tiny-{secrets.token_hex(4)}"  # renamed once complete
    try:
        folder.mkdir(parents=True)
        _fill(folder, number)
        if empty:
            for made in folder.iterdir():
                made.replace(final / made.name)
        else:
            folder.replace(final)
    except OSError as error:
        raise type(error)(f"cannot write {final}: {error.strerror or error}") from error
    except RuntimeError as error:  # torch reports a full disk so
        raise OSError(f"cannot write {final}: {error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return final


def _fill(folder: Path, seed: int) -> None:
    (folder / "dac").mkdir()
    (folder / "speaker_encoder").mkdir()
    generator = torch.Generator().manual_seed(seed)
    metadata = {"notice": NOTICE}  # one entry: safetensors writes several in random order

    _write_json(folder / "params.json", PARAMS)
    weights = backbone_weights(Zonos2Config.from_params(PARAMS), generator)
    (folder / "model.safetensors").write_bytes(save(weights, metadata))
    save_official_codec(folder / "dac" / "weights.pth", CODEC, codec_weights(CODEC, generator))
    sizes = {name: getattr(SPEAKER, name) for name in SPEAKER.__dataclass_fields__}
    _write_json(folder / "speaker_encoder" / "config.json", sizes)
    voices = random_weights(speaker_encoder.layout(SPEAKER), generator, convolutions=True, gain=math.sqrt(2))
    (folder / "speaker_encoder" / "model.safetensors").write_bytes(save(voices, metadata))
    (folder / "README.txt").write_text(f"{NOTICE}.\nWritten by zonos2-triton, seed {seed}.\n", encoding="utf-8")


def random_weights(
    layout: Mapping[str, list[int]], generator: torch.Generator, convolutions: bool = False, gain: float = 1.0
) -> dict[str, Tensor]:
    """Normal weights that scale the standard deviation by `gain`; small biases, norm weights around 1."""
    weights = {}
    for name, shape in layout.items():
        x = torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")
        if name.endswith((".bias", "biases")):
            x = 0.02 * x
        elif len(shape) == 1 or name.endswith("temp"):
            x = 1 + 0.1 * x
        elif ".embedders." not in name and ".codebook." not in name:
            x = gain * x / math.sqrt(math.prod(shape[1:]) if convolutions else shape[-1])
        weights[name] = x
    return weights


def backbone_weights(config: Zonos2Config, generator: torch.Generator) -> dict[str, Tensor]:
    """Weights of a model that samples varied codes. Its temperatures are exact in bf16."""
    weights = random_weights(network.layout(config), generator)
    weights["multi_output.weight"] *= 3
    return {name: t.bfloat16().float() if name.endswith("temp") else t for name, t in weights.items()}


def codec_weights(config: VocoderConfig, generator: torch.Generator) -> dict[str, Tensor]:
    """Weights of a decoder that is neither silent nor clipped, and does not amplify rounding errors."""
    weights = random_weights(vocoder.layout(config), generator, convolutions=True, gain=0.65)
    for name, tensor in weights.items():
        if name.endswith("alpha"):
            tensor.uniform_(0.5, 1.5, generator=generator)
    return weights


def save_official_codec(path: str | Path, config: VocoderConfig, folded: Mapping[str, Tensor]) -> None:
    """The file of descript-audio-codec: a state_dict with weight norm as g and v, and its constructor arguments."""
    state = {}
    for name, tensor in folded.items():
        if name.endswith(".weight") and "codebook" not in name:
            state[f"{name}_g"], state[f"{name}_v"] = tensor.norm(dim=(1, 2), keepdim=True), tensor
        else:
            state[name] = tensor
    kwargs = {name: getattr(config, name) for name in config.__dataclass_fields__}
    metadata = {"kwargs": {**kwargs, "decoder_rates": list(config.decoder_rates)}, "notice": NOTICE}
    torch.save({"state_dict": state, "metadata": metadata}, path)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
