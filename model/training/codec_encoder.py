"""The encoder of a codec, from its checkpoint."""

import math
import re
from pathlib import Path

import torch
from torch import Tensor

from zonos2_triton.model.weights.checkpoint import check_layout, check_values
from zonos2_triton.model.weights.codec_checkpoint import fold_weight_norms, is_encode_side, open_codec
from zonos2_triton.reference import vocoder_encoder as reference
from zonos2_triton.reference.mel import resample
from zonos2_triton.reference.numeric import isolated
from zonos2_triton.reference.vocoder import VocoderConfig


class CodecEncoder:
    """Samples to codes, in fp32. The sizes of the encode side are those of its tensors."""

    def __init__(self, config: VocoderConfig, state: dict[str, Tensor], rates: tuple[int, ...]) -> None:
        self.config, self.state, self.rates = config, state, rates
        self.hop = math.prod(rates)

    @classmethod
    @isolated()
    def load(cls, path: str | Path, device: torch.device) -> "CodecEncoder":
        """path: as `Vocoder.load` takes it. ValueError: it has no encoder, or tensors do not fit or are not finite."""
        checkpoint, config, tensors = open_codec(path)
        books = {name: t for name, t in tensors.items() if name.endswith("codebook.weight")}
        folded = fold_weight_norms({n: t for n, t in tensors.items() if is_encode_side(n)} | books, torch.float32)
        if "encoder.block.0.weight" not in folded:
            raise ValueError(f"{checkpoint.path} holds no encoder: it can decode codes, not make them")
        blocks = (re.fullmatch(r"encoder\.block\.(\d+)\.block\.4\.weight", name) for name in folded)
        order = sorted(int(found[1]) for found in blocks if found)
        rates = tuple(folded[f"encoder.block.{i}.block.4.weight"].shape[2] // 2 for i in order)
        layout = reference.layout(config, len(folded["encoder.block.0.weight"]), rates)
        layout |= {name: [config.codebook_size, config.codebook_dim] for name in books}
        check_layout(checkpoint.path, {name: list(t.shape) for name, t in folded.items()}, layout)
        check_values(checkpoint.path, folded)
        if math.prod(rates) != config.hop:
            raise ValueError(
                f"{checkpoint.path}: a frame is {math.prod(rates)} samples to encode, {config.hop} to decode"
            )
        out = {name: t for name, t in tensors.items() if ".out_proj." in name}
        state = folded | fold_weight_norms(out, torch.float32)
        return cls(config, {name: t.to(device, torch.float32) for name, t in state.items()}, rates)

    @isolated()
    def encode(self, waveform: Tensor, sample_rate: int) -> Tensor:
        """waveform [channels, N] or [N] -> codes int16 [F, C], on the CPU. ValueError: it is empty or not finite."""
        mono = waveform.mean(0) if waveform.ndim == 2 else waveform
        if not len(mono) or not mono.isfinite().all():
            raise ValueError(f"a recording must have samples that are finite, got {len(mono)} samples")
        device = next(iter(self.state.values())).device
        samples = resample(mono.to(device, torch.float32), sample_rate, self.config.sample_rate)
        codes = reference.encode(self.config, self.state, self.rates, samples[None])[0]
        return codes.T.to("cpu", torch.int16).contiguous()
