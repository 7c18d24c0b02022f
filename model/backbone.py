"""The backbone on a checkpoint: traced, or generating frame after frame."""

import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from zonos2_triton.model.backend import resolve_backend, resolve_device, resolve_dtype
from zonos2_triton.model.checkpoint import Checkpoint, load_weights
from zonos2_triton.reference import backbone as reference
from zonos2_triton.reference.config import Zonos2Config
from zonos2_triton.reference.numeric import exact_numerics
from zonos2_triton.reference.sampling import Sampling, draw, probabilities
from zonos2_triton.reference.stopping import EndDetector


class Frame(NamedTuple):
    """One generated frame."""

    codes: Tensor  # [9] int64, still delayed
    eos_frame: int | None  # where the audio ends, from the frame on that shows it
    last: bool


Progress = Callable[[int, Frame], None]  # called with the number of the prompt, after each frame


@dataclass(frozen=True)
class Generation:
    """What one prompt became."""

    frames: Tensor  # [F, 9] int64 as sampled, still delayed, without the prompt
    eos_frame: int | None  # audio is made of aligned frames 0 .. eos_frame - 1; None: it did not end by itself
    seed: int  # that makes the same frames again


class Backbone:
    """The 28-layer decoder. Sequences never meet: each is computed alone, so its frames do not depend on a batch."""

    def __init__(self, config: Zonos2Config, weights: dict[str, Tensor], backend: str = "auto") -> None:
        """weights: the tensors of `layout(config)`, of one dtype, on one device."""
        self.config, self.weights = config, weights
        first = next(iter(weights.values()))
        self.device, self.dtype = first.device, first.dtype
        self.backend = resolve_backend(backend, self.device)
        self.metadata: dict[str, str] = {}

    @staticmethod
    def layout(config: Zonos2Config) -> dict[str, list[int]]:
        """{official tensor name: shape} of the checkpoint that `config` expects; allocates nothing."""
        return reference.layout(config)

    @classmethod
    def load(
        cls,
        path: str | Path,
        config: Zonos2Config | None = None,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype | None = None,
        backend: str = "auto",
    ) -> "Backbone":
        """Read .safetensors (also sharded, by its index) or .pth/.pt with the official names.

        config None reads params.json beside the file; dtype None is the one it states. On a CPU, weights that are
        stored in `dtype` stay in the mapped file. FileNotFoundError; ValueError: the file is corrupt or holds code, or
        lists every tensor that is missing, surplus, misshapen or not finite.
        """
        device = resolve_device(device)
        resolve_backend(backend, device)
        if config is None:
            config = Zonos2Config.from_json(Path(path).parent / "params.json")
        dtype = resolve_dtype(dtype or config.dtype)
        checkpoint = Checkpoint(path)
        weights = load_weights(checkpoint, cls.layout(config), device, dtype)
        for name, tensor in weights.items():
            if name.endswith(".attention.temp"):  # the official class keeps it in bfloat16 whatever the others are
                weights[name] = tensor.bfloat16().to(dtype)
        backbone = cls(config, weights, backend)
        backbone.metadata = checkpoint.metadata
        return backbone

    @torch.no_grad()
    def trace(self, ids: Tensor, speaker: Tensor | None = None) -> dict[str, Tensor]:
        """One full forward of ids [T, 10], every stage kept.

        logits [T, 9, 1026]; hidden_states [n_layers + 1, T, dim]; final_norm [T, dim]; expert_ids and expert_weights
        [n_moe_layers, T, k_max], by descending score, unused slots -1 and 0; router_probs [n_moe_layers, T, n_experts];
        router_states [n_moe_layers, T, moe_router_dim]. ValueError, TypeError: an argument is wrong.
        """
        ids, speaker = self._checked_ids("ids", ids), self.checked_speaker("speaker", speaker)
        if len(ids) > self.config.max_seqlen:
            raise ValueError(f"ids has {len(ids)} rows, but max_seqlen is {self.config.max_seqlen}")
        with exact_numerics():
            return reference.trace(self.config, self.weights, ids, speaker)

    def generate(
        self,
        prompts: Sequence[Tensor],
        sampling: Sampling | list[Sampling] | tuple[Sampling, ...] = Sampling(),  # noqa: B008  frozen
        speakers: Sequence[Tensor | None] | None = None,
        progress: Progress | None = None,
    ) -> list[Generation]:
        """Continue each prompt [T, 10] to its end; what becomes of one does not depend on the others.

        sampling: one for all or one each; speakers: per prompt an embedding [speaker_embedding_dim] or None;
        progress(i, frame) is called after each frame of prompt i.

        ValueError, TypeError: an argument is wrong, found before any work. FloatingPointError: logits are NaN or Inf.
        """
        n = len(prompts)
        samplings = list(sampling) if isinstance(sampling, list | tuple) else [sampling] * n
        voices = [None] * n if speakers is None else list(speakers)
        for name, values in (("sampling", samplings), ("speakers", voices)):
            if len(values) != n:
                raise ValueError(f"{name} must be one for all or one for each of {n} prompts, got {len(values)}")
        if wrong := [s for s in samplings if not isinstance(s, Sampling)]:
            raise TypeError(f"sampling must be Sampling objects, got {wrong[0]!r}")
        for i, (prompt, voice) in enumerate(zip(prompts, voices, strict=True)):  # before any work
            self._checked_prompt(f"prompts[{i}]", prompt)
            self.checked_speaker(f"speakers[{i}]", voice)
        results = []
        for i, (prompt, settings, voice) in enumerate(zip(prompts, samplings, voices, strict=True)):
            seed = fresh_seed(settings)
            frames = []
            for frame in self.frames(prompt, settings, voice, seed):
                frames.append(frame)
                if progress is not None:
                    progress(i, frame)
            results.append(Generation(torch.stack([f.codes for f in frames]), frames[-1].eos_frame, seed))
        return results

    def frames(
        self, prompt: Tensor, sampling: Sampling, speaker: Tensor | None = None, seed: int | None = None
    ) -> Iterator[Frame]:
        """The frames of one prompt as they come: up to sampling.max_frames, or max_seqlen less the rows of the prompt.

        Raises as `generate` does, when the first frame is asked for.
        """
        prompt = self._checked_prompt("prompt", prompt)
        speaker = self.checked_speaker("speaker", speaker)
        settings = sampling.clamped()
        seed = fresh_seed(settings) if seed is None else seed
        config, room = self.config, self.config.max_seqlen - len(prompt)
        limit = min(settings.max_frames, room)
        end = EndDetector(config.eoa_id, limit, settings.ignore_eos)
        history = torch.zeros(limit, config.n_codebooks, dtype=torch.int64)
        cache = reference.Cache(config, len(prompt) + limit - 1, next(iter(self.weights.values())))
        rows = prompt
        for step in range(limit):
            logits = self._next_logits(rows, cache, speaker)
            if not bool(logits.isfinite().all()):
                raise FloatingPointError(f"the logits of frame {step} are not finite; another dtype may help")
            codes = draw(probabilities(logits, settings, history[:step]), seed, step)
            history[step] = codes
            last = end.push(codes.tolist())
            yield Frame(codes, end.eos_frame, last)
            if last:
                return
            rows = torch.cat([codes, codes.new_tensor([config.text_vocab])])[None].to(self.device)
            speaker = None

    @torch.inference_mode()
    def _next_logits(self, rows: Tensor, cache: reference.Cache, speaker: Tensor | None) -> Tensor:
        """[9, 1026] fp32 on the CPU."""
        with exact_numerics():
            normed = reference.forward(self.config, self.weights, rows, cache, speaker)
            return reference.logits(self.config, self.weights, normed[-1:])[0].float().cpu()

    def _checked_prompt(self, name: str, ids: Tensor) -> Tensor:
        ids = self._checked_ids(name, ids)
        if len(ids) >= self.config.max_seqlen:
            raise ValueError(
                f"{name} has {len(ids)} rows, which leaves no room for a frame: max_seqlen is {self.config.max_seqlen}"
            )
        return ids

    def _checked_ids(self, name: str, ids: Tensor) -> Tensor:
        config, width = self.config, self.config.n_codebooks + 1
        if not isinstance(ids, Tensor) or ids.ndim != 2 or ids.shape[1] != width or len(ids) == 0:
            got = list(ids.shape) if isinstance(ids, Tensor) else type(ids).__name__
            raise ValueError(f"{name} must be a tensor [T, {width}] with T >= 1, got {got}")
        if ids.dtype not in (torch.int32, torch.int64):
            raise TypeError(f"{name} must be torch.int32 or torch.int64, got {ids.dtype}")
        most = torch.tensor([config.audio_pad_id] * config.n_codebooks + [config.text_vocab], device=ids.device)
        if wrong := ((ids < 0) | (ids > most)).nonzero()[:1].tolist():
            row, column = wrong[0]
            raise ValueError(
                f"{name}[{row}, {column}] must be in 0..{most[column]}, got {ids[row, column]}: the last column "
                "is text, the others are codes"
            )
        return ids.to(self.device)

    def checked_speaker(self, name: str, speaker: Tensor | None) -> Tensor | None:
        """A speaker embedding as the weights need it. ValueError: of another size, not finite, or not known here."""
        if speaker is None:
            return None
        size = self.config.speaker_embedding_dim
        if not self.config.speaker_enabled:
            raise ValueError(f"{name} was given, but this model takes no speaker embedding")
        if not isinstance(speaker, Tensor) or list(speaker.shape) != [size]:
            got = list(speaker.shape) if isinstance(speaker, Tensor) else type(speaker).__name__
            raise ValueError(f"{name} must be a tensor [speaker_embedding_dim={size}], got {got}")
        if not speaker.is_floating_point() or not bool(speaker.isfinite().all()):
            raise ValueError(f"{name} must hold finite floating-point numbers")
        return speaker.to(self.device, self.dtype)


def fresh_seed(sampling: Sampling) -> int:
    """The request's own seed, or one that no other request has. TypeError: no Sampling."""
    if not isinstance(sampling, Sampling):
        raise TypeError(f"sampling must be a Sampling object, got {sampling!r}")
    return secrets.randbits(63) if sampling.seed is None else int(sampling.seed)
