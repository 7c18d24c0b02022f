"""The vocoder on its checkpoints: whole clips, and streams that equal them bit for bit."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import overload

import torch
from torch import Tensor

from zonos2_triton.model.backend import current, resolve_backend, resolve_device, resolve_dtype
from zonos2_triton.model.ops import vocoder_ops
from zonos2_triton.model.runtime.batch_state import upload
from zonos2_triton.model.vocoder_decoder import VocoderDecoder, checked_codes
from zonos2_triton.model.vocoder_schedule import clip_steps, same_clips
from zonos2_triton.model.vocoder_streams import ExactStream, OverlapStream, Streams, WindowStream, check_counts
from zonos2_triton.model.vocoder_windows import Windows
from zonos2_triton.model.weights import codec_checkpoint
from zonos2_triton.model.weights.checkpoint import check_layout, check_values
from zonos2_triton.reference import vocoder as reference
from zonos2_triton.reference.numeric import isolated
from zonos2_triton.reference.ops import VOCODER_REFERENCE
from zonos2_triton.reference.vocoder import VocoderConfig

MAX_CLIPS = 64  # decoded together
MAX_ACTIVATION_BYTES = 768 << 20  # of a step


class Vocoder:
    """Codes to samples.

    The kernels decode a clip in steps. Each position of a layer is computed once, in the same order for any steps, so
    streams, batches and whole clips are equal bit for bit. The reference leaves sums to libraries, whose order depends
    on the length. So it decodes windows of 32 frames at fixed places, with 10 frames of context per side at the
    44.1 kHz rates. Either way memory is bounded by a step, not by the clip.
    """

    def __init__(
        self, config: VocoderConfig, state: dict[str, Tensor], backend: str = "auto", tf32: bool = False
    ) -> None:
        """state: the tensors of the reference's `layout(config)`, of one dtype, on one device. Layers pack them, so a
        later write may be missed: make another Vocoder. tf32: fp32 products of the kernels may use TF32. ValueError: a
        backend that cannot run there.
        """
        self.config, self.state = config, state
        first = next(iter(state.values()))
        self.device, self.dtype = first.device, first.dtype
        self.backend = resolve_backend(backend, self.device, self.dtype)
        if tf32 and (self.backend, self.dtype) != ("triton", torch.float32):
            raise ValueError(
                f"tf32 is a way of the kernels to multiply float32, got backend {self.backend!r} in {self.dtype}"
            )
        self.tf32 = tf32
        self.metadata: dict[str, str] = {}

    @cached_property
    @isolated()
    def decoder(self) -> VocoderDecoder:
        """The layers by steps, on this vocoder's backend."""
        ops = vocoder_ops(self.dtype) if self.backend == "triton" else VOCODER_REFERENCE
        return VocoderDecoder(self.config, self.state, ops, self.tf32)

    @cached_property
    def windows(self) -> Windows:
        """The windows of the reference."""
        return Windows(self.config, self.state, self.device)

    @classmethod
    @isolated()
    def from_state(
        cls,
        config: VocoderConfig,
        state: Mapping[str, Tensor],
        device: str | int | torch.device = "cpu",
        dtype: str | torch.dtype = torch.float32,
        backend: str = "auto",
        tf32: bool = False,
    ) -> "Vocoder":
        """Tensors by official name, weight norm as g and v or folded. Those of the encode side are ignored.

        ValueError: tensors are missing, surplus, misshapen or not finite; counted, the first of them named.
        """
        device, dtype = resolve_device(device), resolve_dtype(dtype)
        tensors = {name: t for name, t in state.items() if not codec_checkpoint.is_encode_side(name)}
        check_values("the vocoder", tensors)
        folded = {name: t.to(dtype) for name, t in codec_checkpoint.fold_weight_norms(tensors, dtype).items()}
        check_layout("the vocoder", {name: list(t.shape) for name, t in folded.items()}, reference.layout(config))
        check_values(f"the vocoder, folded to {dtype},", folded)  # 0 / |0| is NaN, and fp16 may overflow
        return cls(config, {name: t.to(device) for name, t in folded.items()}, backend, tf32)

    @classmethod
    @isolated()
    def load(
        cls,
        path: str | Path,
        device: str | int | torch.device = "cpu",
        dtype: str | torch.dtype = torch.float32,
        backend: str = "auto",
        tf32: bool = False,
    ) -> "Vocoder":
        """path: the official DAC file (.pth), a folder in the transformers layout (config.json, model.safetensors), or
        its file of weights.
        """
        checkpoint, config, tensors = codec_checkpoint.open_codec(path)
        try:
            vocoder = cls.from_state(config, tensors, device, dtype, backend, tf32)
        except ValueError as error:
            raise ValueError(f"{checkpoint.path}: {error}") from error
        vocoder.metadata = checkpoint.metadata
        return vocoder

    from_pretrained = load  # the name in transformers

    @overload
    def decode(self, codes: Tensor) -> Tensor: ...
    @overload
    def decode(self, codes: Sequence[Tensor]) -> list[Tensor]: ...
    @isolated()
    def decode(self, codes: Tensor | Sequence[Tensor]) -> Tensor | list[Tensor]:
        """Aligned codes [B, 9, T] -> fp32 [B, samples]. Several clips [9, T_i] -> as many fp32 [samples_i].

        Ids above 1023 decode as 1023. No frames make no samples. A clip's samples do not depend on the others.

        ValueError, TypeError: not [B, 9, T] of integers in 0..1025.
        """
        if isinstance(codes, Tensor):
            return torch.stack(self._decode([*self._checked_clips(codes)]))
        clips = [self._checked_clip(f"codes[{i}]", clip) for i, clip in enumerate(codes)]
        for i, clip in enumerate(clips):
            if len(clip) != len(clips[0]):
                raise ValueError(f"codes[{i}] must have the {len(clips[0])} codebooks of codes[0], got {len(clip)}")
        return self._decode(clips)

    def _decode(self, clips: list[Tensor]) -> list[Tensor]:
        """clips [C, T], checked."""
        if self.backend == "reference":
            return [self.windows.clip(clip) for clip in clips]
        samples = []
        for together in (clips[i : i + MAX_CLIPS] for i in range(0, len(clips), MAX_CLIPS)):
            lengths = [clip.shape[1] for clip in together]
            with current(self.device):
                size = (len(together), max(lengths), len(together[0]))
                codes = torch.zeros(size, dtype=torch.int32, device=self.device)
                for slot, clip in zip(codes, together, strict=True):
                    slot[: clip.shape[1]] = clip.T
                samples += self._stepped(codes, lengths)
        return samples

    @isolated()
    def latents(self, codes: Tensor) -> Tensor:
        """Codes [B, C, T] of the first C codebooks -> latents [B, latent_dim, T] of the vocoder's dtype.

        The codes must be on its device and within 0..1023, which is not checked.
        """
        with current(self.device):
            return self.decoder.latents(_by_frame(codes)).mT

    @isolated()
    def decode_latents(self, z: Tensor) -> Tensor:
        """Latents [B, latent_dim, T] of the vocoder's dtype -> fp32 [B, samples], fp64 of fp64.

        No frames make no samples. On the kernels a clip has the same bits in any batch, and those of decode().

        ValueError: another shape or device; TypeError: another dtype.
        """
        D = self.config.latent_dim
        if not isinstance(z, Tensor) or z.ndim != 3 or z.shape[1] != D or len(z) == 0:
            raise ValueError(f"z must be a tensor [B, {D}, T] with B >= 1, got {_shape(z)}")
        if z.device != self.device:
            raise ValueError(f"z must be on {self.device} like the weights, got {z.device}")
        if z.dtype != self.dtype:
            raise TypeError(f"z must be {self.dtype} like the weights, got {z.dtype}")
        samples = []
        with current(self.device):
            for latents in z.mT.split(MAX_CLIPS):
                samples += self._stepped(latents, [z.shape[2]] * len(latents))
        return torch.stack(samples)

    def _stepped(self, codes: Tensor, lengths: list[int]) -> list[Tensor]:
        """codes [B, longest, C], or latents [B, longest, D]."""
        decoder, (B, longest, _) = self.decoder, codes.shape
        dtype = torch.float64 if codes.dtype == torch.float64 else torch.float32
        samples = [torch.empty(self.config.samples(n), dtype=dtype, device=self.device) for n in lengths]
        if longest == 0:
            return samples
        frames = min(self._frames_per_step(B), longest + decoder.right_context)
        rings = decoder.rings(B, frames)
        if len(set(lengths)) == 1:
            plan = same_clips(B, longest, frames, decoder.right_context, self.device)
        else:
            on_device = upload(torch.tensor(lengths, dtype=torch.int32, device="cpu"), self.device)
            plan = clip_steps(on_device, longest, frames, decoder.right_context)
        for i, step_meta in enumerate(plan):
            step = decoder.step(rings, codes, step_meta, frames)
            for b, n in enumerate(lengths):
                where, columns = decoder.finished(i * frames, frames, n)
                samples[b][where] = step[b, columns]
        return samples

    def _frames_per_step(self, clips: int) -> int:
        """Frames of each clip in a step, by the memory of its activations."""
        one, two = (self.decoder.ring_bytes(clips, frames) for frames in (1, 2))
        return max((MAX_ACTIVATION_BYTES - one) // (two - one) + 1, 1)

    @isolated()
    def trace(self, codes: Tensor) -> dict[str, Tensor]:
        """Every stage of one pass over whole clips [B, C, T], C up to 9.

        z, conv_in, block_i [B, channels, length]; pre_tanh [B, 1, samples]; audio [B, samples].
        """
        codes = self._checked_clips(codes)
        if self.config.samples(codes.shape[2]) == 0:
            raise ValueError(f"codes must hold at least one frame to be traced, and a sample, got {codes.shape[2]}")
        if self.backend == "reference":
            return reference.decode(self.config, self.state, codes)
        decoder, (B, _, T) = self.decoder, codes.shape
        frames = T + decoder.right_context
        with current(self.device):
            rings = decoder.rings(B, frames, keep_stages=True)  # so long that no position is overwritten
            (step_meta,) = same_clips(B, T, frames, decoder.right_context, self.device)
            audio = decoder.step(rings, _by_frame(codes), step_meta, frames)
        stages, length = {"z": rings.z[:, :T].mT, "conv_in": rings.first.y[:, :T].mT}, T  # type: ignore[index]
        for i, (block, rate) in enumerate(zip(rings.blocks, self.config.decoder_rates, strict=True)):
            length = rate * length - rate % 2
            stages[f"block_{i}"] = block[-1].y[:, :length].mT  # type: ignore[index]
        stages["pre_tanh"] = rings.pre_tanh[:, :length].mT  # type: ignore[index]
        return {**stages, "audio": audio[:, decoder.finished(0, frames, T)[1]]}

    @isolated()
    def stream(
        self, mode: str = "exact", overlap: int = 4, chunk: int = 16, lookahead: int | None = None, first_chunk: int = 1
    ) -> ExactStream | WindowStream | OverlapStream:
        """A stream for the delayed frames of one clip, as they are generated.

        exact    Joined, its samples are decode() of the aligned frames, bit for bit. It decodes every `chunk` frames,
                 the first time after `first_chunk`. The reference decodes in windows instead.
                 lookahead: frames that a frame's samples wait for, by default all that they depend on (10 at the
                 44.1 kHz rates). With fewer, samples are emitted as if no more codes followed. That is an
                 approximation, whose error in dB is the stream's `signal_to_error`. If lookahead is given, the
                 reference decodes in steps too: equal to decode() up to rounding.
        overlap  The official cross-fade, an approximation. It decodes every `chunk` frames, and fades `overlap` frames
                 that are decoded again.
        """
        if mode == "exact":
            if self.backend == "reference" and lookahead is None:
                check_counts(chunk=(chunk, 1), first_chunk=(first_chunk, 1))
                return WindowStream(self.windows)
            return ExactStream(self.streams(1, chunk, lookahead, first_chunk))
        if mode == "overlap":
            return OverlapStream(self.config, self.device, lambda codes: self.decode(codes[None])[0], overlap, chunk)
        raise ValueError(f"mode must be 'exact' or 'overlap', got {mode!r}")

    @isolated()
    def streams(self, batch_size: int, chunk: int = 16, lookahead: int | None = None, first_chunk: int = 1) -> Streams:
        """Exact streams of `batch_size` clips that advance together; options as of `stream`."""
        return Streams(self.decoder, batch_size, lookahead, chunk, first_chunk)

    def _checked_clips(self, codes: Tensor) -> Tensor:
        C = self.config.n_codebooks
        if not isinstance(codes, Tensor) or codes.ndim != 3 or not 1 <= codes.shape[1] <= C or len(codes) == 0:
            raise ValueError(f"codes must be a tensor [B, {C}, T] with B >= 1, got {_shape(codes)}")
        return checked_codes(self.config, "codes", codes).to(self.device)

    def _checked_clip(self, name: str, codes: Tensor) -> Tensor:
        C = self.config.n_codebooks
        if not isinstance(codes, Tensor) or codes.ndim != 2 or not 1 <= len(codes) <= C:
            raise ValueError(f"{name} must be a tensor [{C}, T], got {_shape(codes)}")
        return checked_codes(self.config, name, codes).to(self.device)


def _by_frame(codes: Tensor) -> Tensor:
    """[B, C, T] -> int32 [B, T, C]. A copy: for one codebook, contiguous() would keep the strides."""
    return torch.empty(codes.mT.shape, dtype=torch.int32, device=codes.device).copy_(codes.mT)


def _shape(value: object) -> list[int] | str:
    """For error messages."""
    return list(value.shape) if isinstance(value, Tensor) else type(value).__name__
