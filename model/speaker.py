"""The speaker encoder on its files: a recording to a speaker embedding."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from zonos2_triton._settings import local_path
from zonos2_triton.model.backend import resolve_device
from zonos2_triton.model.weights.checkpoint import Checkpoint, check_layout, check_values, one_file
from zonos2_triton.reference import speaker_encoder as reference
from zonos2_triton.reference.mel import HOP, MELS, N_FFT, SAMPLE_RATE, log_mel, resample
from zonos2_triton.reference.numeric import isolated
from zonos2_triton.reference.scalars import as_int
from zonos2_triton.reference.speaker_encoder import SpeakerEncoderConfig

SILENCE = 2**-15  # a peak below one step of a 16-bit recording
LOUDEST = 8.0  # a larger peak means samples in other units
LOG_RANGE = (-20.0, 15.0)  # of a log-mel spectrogram; its floor is -11.5
LOWEST_RATE = 1000  # Hz; a smaller number is in kHz
HIGHEST_RATE = 384_000  # Hz; the resampler's weights grow with it
PREFIX = "speaker_encoder."  # of tensor names in a checkpoint with other parts


class SpeakerEncoder:
    """ECAPA-TDNN in fp32."""

    def __init__(self, config: SpeakerEncoderConfig, state: dict[str, Tensor]) -> None:
        """state: the tensors of the reference's `layout(config)`, fp32, on one device."""
        self.config, self.state = config, state
        self.device = next(iter(state.values())).device
        self.metadata: dict[str, str] = {}

    @classmethod
    @isolated()
    def from_state(
        cls, config: SpeakerEncoderConfig, state: Mapping[str, Tensor], device: str | int | torch.device = "cpu"
    ) -> "SpeakerEncoder":
        """Tensors by official name. ValueError: some are missing, surplus, misshapen or not finite."""
        device = resolve_device(device)
        own = {name.removeprefix(PREFIX): t for name, t in state.items() if name.startswith(PREFIX)}
        tensors = own or dict(state)
        check_layout("the speaker encoder", {n: list(t.shape) for n, t in tensors.items()}, reference.layout(config))
        check_values("the speaker encoder", tensors)
        return cls(config, {name: t.to(device, torch.float32) for name, t in tensors.items()})

    @classmethod
    def load(cls, folder: str | Path, device: str | int | torch.device = "cpu") -> "SpeakerEncoder":
        """folder: holds config.json and model.safetensors; or the file of weights in it."""
        folder = local_path(folder)
        remedy = "instead of the folder, beside a model by speaker_encoder= or --speaker-encoder"
        patterns = ["model.safetensors", "*.safetensors"]
        checkpoint = Checkpoint(one_file(folder, "speaker encoder weights", patterns, remedy))
        settings = checkpoint.path.with_name("config.json")
        try:
            params = json.loads(settings.read_text(encoding="utf-8"))
            config = SpeakerEncoderConfig(**{name: params[name] for name in SpeakerEncoderConfig.__dataclass_fields__})
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"{settings} is not the configuration of a speaker encoder: {error!r}") from error
        try:
            encoder = cls.from_state(config, checkpoint.tensors(checkpoint.shapes), device)
        except ValueError as error:
            raise ValueError(f"{checkpoint.path}: {error}") from error
        encoder.metadata = checkpoint.metadata
        return encoder

    from_pretrained = load  # the name in transformers

    @isolated()
    def embed(self, waveform: Tensor, sample_rate: int) -> Tensor:
        """waveform [N] or [channels, N], floats in -1..1, at a whole rate of 1 to 384 kHz -> [enc_dim].

        Channels are averaged. Peaks up to 8 are accepted; samples of 16 bits must be divided by 32768. ValueError:
        silent, nearly constant, not finite, or shorter than one analysis window (43 ms) or the encoder's reach (53 ms).
        """
        return self.embed_mel(self.log_mel(resample(*self._checked(waveform, sample_rate))))

    @isolated()
    def log_mel(self, waveform_24k: Tensor) -> Tensor:
        """[N] at 24 kHz -> [frames, 128]."""
        waveform = self._checked_waveform("waveform_24k", waveform_24k)
        if waveform.ndim != 1 or len(waveform) < N_FFT:
            raise ValueError(
                f"waveform_24k must be [N] with at least one analysis window of {N_FFT} samples at 24 kHz, got "
                f"{list(waveform.shape)}"
            )
        return log_mel(waveform)

    @isolated()
    def embed_mel(self, log_mel: Tensor) -> Tensor:
        """[frames, 128], as `log_mel` makes it -> [enc_dim]. ValueError: other units, or too few frames."""
        mel = self._checked_samples("log_mel", log_mel)
        if mel.ndim != 2 or mel.shape[1] != MELS or len(mel) < self.config.least_frames:
            raise ValueError(f"log_mel must be [frames >= {self.config.least_frames}, {MELS}], got {list(mel.shape)}")
        low, high = (float(bound) for bound in mel.aminmax())
        if low >= 0 or low < LOG_RANGE[0] or high > LOG_RANGE[1]:
            raise ValueError(
                f"log_mel must be natural logarithms of magnitudes, from -11.5 to 3, got {low:.3g} to {high:.3g}: "
                "magnitudes themselves, or dB"
            )
        return reference.embed(self.config, self.state, mel)

    def _checked(self, waveform: Tensor, sample_rate: int) -> tuple[Tensor, int]:
        """(fp32 [N], the mean of the channels; Hz)."""
        rate = as_int(sample_rate)
        if rate is None or rate < LOWEST_RATE:
            raise ValueError(f"sample_rate must be a whole number of Hz, at least {LOWEST_RATE}, got {sample_rate!r}")
        if rate > HIGHEST_RATE:
            raise ValueError(f"sample_rate must be a whole number of Hz, at most {HIGHEST_RATE}, got {sample_rate!r}")
        waveform = self._checked_waveform("waveform", waveform)
        if waveform.ndim not in (1, 2) or waveform.numel() == 0:
            empty = "" if waveform.numel() else ", which holds no samples"
            raise ValueError(f"waveform must be [N] or [channels, N], got {list(waveform.shape)}{empty}")
        if waveform.ndim == 2 and waveform.shape[0] > waveform.shape[1]:
            raise ValueError(f"waveform must be [channels, N], got {list(waveform.shape)}, which looks transposed")
        mono = waveform if waveform.ndim == 1 else waveform.mean(0)
        least = max(N_FFT, self.config.least_frames * HOP)  # samples at 24 kHz, a frame per HOP of them
        if len(mono) * SAMPLE_RATE <= (least - 1) * rate:
            raise ValueError(
                f"waveform lasts {len(mono) / rate * 1000:.1f} ms, shorter than one analysis window and the "
                f"{least / SAMPLE_RATE * 1000:.1f} ms that the encoder needs"
            )
        if mono.abs().max() < SILENCE:
            raise ValueError(f"waveform is silent: its largest sample is {mono.abs().max():.2g}")
        if (centre := mono.mean()).abs() > 2 * mono.std():
            raise ValueError(
                f"waveform is centred about {centre:.3g} instead of 0: unsigned samples, or an offset to be subtracted"
            )
        return mono, rate

    def _checked_waveform(self, name: str, waveform: Tensor) -> Tensor:
        waveform = self._checked_samples(name, waveform)
        if waveform.numel() and (peak := waveform.abs().max()) > LOUDEST:
            raise ValueError(
                f"{name} must be in -1..1, got a peak of {peak:.6g}: samples of 16 bits are divided by 32768 first"
            )
        return waveform

    def _checked_samples(self, name: str, samples: Tensor) -> Tensor:
        if not isinstance(samples, Tensor) or not samples.is_floating_point():
            got = samples.dtype if isinstance(samples, Tensor) else type(samples).__name__
            hint = ""
            if not isinstance(samples, Tensor):
                hint = ", of which torch.as_tensor may make one"
            elif name != "log_mel":
                hint = ", of 16 bits divide by 32768: floats are in -1..1"
            raise TypeError(f"{name} must be a floating-point tensor, got {got}{hint}")
        if not bool(samples.isfinite().all()):
            raise ValueError(f"{name} must be finite, got NaN or Inf")
        return samples.to(self.device, torch.float32)
