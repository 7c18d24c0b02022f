"""The backbone on a checkpoint: traced, or generating frame after frame."""

import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from zonos2_triton.model.backend import current, resolve_backend, resolve_device, resolve_dtype
from zonos2_triton.model.checkpoint import Checkpoint, load_weights
from zonos2_triton.model.ops import PAGE_SIZE, ROWS_AT_ONCE, SEQUENCES_AT_ONCE, ops_of
from zonos2_triton.reference import backbone as reference
from zonos2_triton.reference.config import Zonos2Config
from zonos2_triton.reference.embedding import speaker_row
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
    """The 28-layer decoder. What becomes of a sequence does not depend on a batch: the reference computes each alone,
    the kernels all together, and their results for one do not depend on the others by a bit."""

    def __init__(self, config: Zonos2Config, weights: dict[str, Tensor], backend: str = "auto") -> None:
        """weights: the tensors of `layout(config)`, of one dtype, on one device."""
        first = next(iter(weights.values()))
        self.device, self.dtype = first.device, first.dtype
        self.backend = resolve_backend(backend, self.device, self.dtype)
        if self.backend == "triton":  # a mapped file aligns tensors as it likes, kernels load 16 bytes at a time
            weights = {name: t.clone() if t.data_ptr() % 16 else t for name, t in weights.items()}
        self.config, self.weights = config, weights
        self.model = reference.bind(config, weights)
        self.ops = ops_of(self.backend, config, self.device, self.dtype)
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
        if config is None:
            config = Zonos2Config.from_json(Path(path).parent / "params.json")
        dtype = resolve_dtype(dtype or config.dtype)
        resolve_backend(backend, device, dtype)
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
        with exact_numerics(), current(self.device):
            return reference.trace(self.model, ids, speaker, self.ops)

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
        requests = [_Request(*one, fresh_seed(one[1]), self) for one in zip(prompts, samplings, voices, strict=True)]
        together = SEQUENCES_AT_ONCE if self.backend == "triton" else 1
        for first in range(0, n, together):
            for i, frame in self._run(requests[first : first + together]):
                requests[first + i].frames.append(frame)
                if progress is not None:
                    progress(first + i, frame)
        return [Generation(torch.stack([f.codes for f in r.frames]), r.frames[-1].eos_frame, r.seed) for r in requests]

    def frames(
        self, prompt: Tensor, sampling: Sampling, speaker: Tensor | None = None, seed: int | None = None
    ) -> Iterator[Frame]:
        """The frames of one prompt as they come: up to sampling.max_frames, or max_seqlen less the rows of the prompt.

        Raises as `generate` does, when the first frame is asked for.
        """
        prompt = self._checked_prompt("prompt", prompt)
        self.checked_speaker("speaker", speaker)
        seed = fresh_seed(sampling) if seed is None else seed
        for _, frame in self._run([_Request(prompt, sampling, speaker, seed, self)]):
            yield frame

    def _run(self, requests: list["_Request"]) -> Iterator[tuple[int, Frame]]:
        """(number of the request, its next frame), frame after frame, until all have ended."""
        size = PAGE_SIZE if self.backend == "triton" else max(request.room for request in requests)
        counts = [-(-request.room // size) for request in requests]
        first = list(accumulate(counts, initial=0))
        pages = [range(a, a + max(counts)) for a in first[:-1]]  # those beyond a sequence's own are never read
        block_table = torch.tensor([list(row) for row in pages], dtype=torch.int32).clamp(max=first[-1] - 1)
        block_table = block_table.to(self.device)
        cache = reference.Cache(self.config, first[-1], size, self.model.table)
        rows = self._prefill(requests, block_table, cache)
        live = list(enumerate(requests))
        for step in range(max(request.limit for request in requests)):
            for n, (i, request) in enumerate(live):
                yield i, request.next_frame(step, rows[n])
            live = [(i, request) for i, request in live if not request.frame.last]
            if not live:
                return
            rows = self._decode(live, block_table, cache)

    @torch.inference_mode()
    def _prefill(self, requests: list["_Request"], block_table: Tensor, cache: reference.Cache) -> Tensor:
        """The prompts, in pieces of so many rows at once -> logits after each, fp32 [B, C, V] on the CPU."""
        last: list[Tensor] = []
        ids = torch.cat([request.prompt for request in requests])
        voiced = [request.speaker for request in requests if request.speaker is not None]
        with exact_numerics():
            speakers = torch.stack([speaker_row(voice, self.model.speaker) for voice in voiced]) if voiced else None
        ends = list(accumulate((len(request.prompt) for request in requests), initial=0))
        numbers = iter(range(len(voiced)))
        index = torch.full((len(ids),), -1, dtype=torch.int32, device=self.device)
        for request, row in zip(requests, ends, strict=False):
            if request.speaker is not None:
                index[row] = next(numbers)
        for a in range(0, len(ids), ROWS_AT_ONCE):
            b = min(a + ROWS_AT_ONCE, len(ids))
            here = [i for i, (first, end) in enumerate(pairwise(ends)) if first < b and end > a]
            starts = [max(a - ends[i], 0) for i in here]
            cuts = [max(ends[i], a) - a for i in here] + [b - a]
            batch = reference.Batch(
                ids[a:b], block_table[here], self._int32(starts), self._int32(cuts),
                max(end - first for first, end in pairwise(cuts)), speakers, None if speakers is None else index[a:b],
            )  # fmt: skip
            with exact_numerics(), current(self.device):
                x = reference.forward(self.model, batch, cache, self.ops)
            last += [x[ends[i + 1] - 1 - a] for i in here if ends[i + 1] <= b]
        with exact_numerics(), current(self.device):
            return reference.logits(self.model, torch.stack(last), self.ops).float().cpu()

    @torch.inference_mode()
    def _decode(self, live: list[tuple[int, "_Request"]], block_table: Tensor, cache: reference.Cache) -> Tensor:
        """The frames that were just made -> logits after each, fp32 [len(live), C, V] on the CPU."""
        text = torch.full((len(live), 1), self.config.text_vocab)
        ids = torch.cat([torch.stack([request.frame.codes for _, request in live]), text], 1).to(self.device)
        starts = self._int32([len(request.prompt) + request.step for _, request in live])
        batch = reference.Batch(ids, block_table[[i for i, _ in live]], starts)
        with exact_numerics(), current(self.device):
            x = reference.forward(self.model, batch, cache, self.ops)
            return reference.logits(self.model, x, self.ops).float().cpu()

    def _int32(self, numbers: list[int]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.int32, device=self.device)

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


class _Request:
    """One prompt on its way: what was asked for, what has come of it."""

    def __init__(
        self, prompt: Tensor, sampling: Sampling, speaker: Tensor | None, seed: int, backbone: Backbone
    ) -> None:  # fmt: skip
        config = backbone.config
        self.prompt = prompt.to(backbone.device)
        self.speaker = None if speaker is None else speaker.to(backbone.device, backbone.dtype)
        self.settings, self.seed = sampling.clamped(), seed
        self.limit = min(self.settings.max_frames, config.max_seqlen - len(prompt))
        self.room = len(prompt) + self.limit - 1  # rows of the cache: the last frame is not fed back
        self.end = EndDetector(config.eoa_id, self.limit, self.settings.ignore_eos)
        self.history = torch.zeros(self.limit, config.n_codebooks, dtype=torch.int64)
        self.frames: list[Frame] = []
        self.step = -1  # of the newest frame
        self.frame: Frame

    def next_frame(self, step: int, logits: Tensor) -> Frame:
        """Draw it from logits [C, V]. FloatingPointError: they are not finite."""
        if not bool(logits.isfinite().all()):
            raise FloatingPointError(f"the logits of frame {step} are not finite; another dtype may help")
        codes = draw(probabilities(logits, self.settings, self.history[:step]), self.seed, step)
        self.history[step], self.step = codes, step
        last = self.end.push(codes.tolist())
        self.frame = Frame(codes, self.end.eos_frame, last)
        return self.frame


def fresh_seed(sampling: Sampling) -> int:
    """The request's own seed, or one that no other request has. TypeError: no Sampling."""
    if not isinstance(sampling, Sampling):
        raise TypeError(f"sampling must be a Sampling object, got {sampling!r}")
    return secrets.randbits(63) if sampling.seed is None else int(sampling.seed)
