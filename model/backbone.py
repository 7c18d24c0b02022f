"""The backbone on a checkpoint: one traced forward, or generation."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, overload

import torch
from torch import Tensor

from zonos2_triton.model.backend import current, resolve_backend, resolve_device, resolve_dtype
from zonos2_triton.model.ops import PAGE_SIZE, ops_of
from zonos2_triton.model.runtime.request import Generation, Request, for_each
from zonos2_triton.model.runtime.scheduler import BatchingOptions, Scheduler
from zonos2_triton.model.runtime.stream import Progress, Stream, read_all
from zonos2_triton.model.vocoder_decoder import VocoderDecoder
from zonos2_triton.model.weights.checkpoint import Checkpoint, load_weights
from zonos2_triton.model.weights.lora import add_lora
from zonos2_triton.reference import network as reference
from zonos2_triton.reference.config import Zonos2Config
from zonos2_triton.reference.numeric import isolated
from zonos2_triton.reference.ops import Ops
from zonos2_triton.reference.sampling import Sampling


class Backbone:
    """The 28-layer transformer: prompts to frames of codes.

    A sequence's result does not depend on its batch, bit for bit. The reference computes each sequence alone. The
    kernels compute all together and are batch invariant.
    """

    @isolated()
    def __init__(
        self,
        config: Zonos2Config,
        weights: dict[str, Tensor],
        backend: str = "auto",
        options: BatchingOptions = BatchingOptions(),  # noqa: B008  frozen
    ) -> None:
        """weights: the tensors of `layout(config)`, of one dtype, on one device. Some are packed, so a later write to
        them may be missed: make another Backbone. options: of the scheduler."""
        _check(options)
        first = next(iter(weights.values()))
        self.device, self.dtype = first.device, first.dtype
        self.backend = resolve_backend(backend, self.device, self.dtype)
        if self.backend == "triton":  # a mapped file aligns tensors as it likes, kernels load 16 bytes at a time
            weights = {name: t.clone() if t.data_ptr() % 16 else t for name, t in weights.items()}
        self.config, self.weights = config, weights
        self.model = reference.bind(config, weights)
        self.options, self.metadata = options, dict[str, str]()
        self._ops = ops_of(self.backend, config, self.device, self.dtype)
        self._scheduler: Scheduler | None = None
        self._decoder: VocoderDecoder | None = None
        self._scheduler_lock = threading.Lock()
        if options.cuda_graphs == "at_load":
            self.scheduler  # noqa: B018  captures

    @property
    def ops(self) -> Ops:
        """The table of operations; assign another to replace it.

        A replacement whose kernels use programmatic dependent launch must wait before it lets the next launch start. It
        must not write positions, block table or routing lists: operations read those ahead of their own wait.
        """
        return self._ops

    @ops.setter
    def ops(self, ops: Ops) -> None:
        self._ops = ops
        if self._scheduler is not None:
            self._scheduler.replace_ops(ops)

    @property
    def scheduler(self) -> Scheduler:
        """The scheduler. Its cache and state are allocated at the first use."""
        with self._scheduler_lock:
            if self._scheduler is None:
                per_sequence = self.backend == "reference"
                self._scheduler = Scheduler(self.model, self._ops, self.options, per_sequence)
                if self._decoder is not None:
                    self._scheduler.attach_vocoder(self._decoder)
            return self._scheduler

    def attach_vocoder(self, decoder: VocoderDecoder) -> None:
        """From now on frames come with their samples, which `decoder` makes on the device.

        RuntimeError: requests are running.
        """
        with self._scheduler_lock:
            if self._scheduler is not None:
                self._scheduler.attach_vocoder(decoder)
            self._decoder = decoder

    def has_vocoder(self, decoder: VocoderDecoder) -> bool:
        return self._decoder is decoder

    @staticmethod
    def layout(config: Zonos2Config) -> dict[str, list[int]]:
        """{official tensor name: shape} of the checkpoint that `config` expects; allocates nothing."""
        return reference.layout(config)

    @classmethod
    @isolated()
    def load(
        cls,
        path: str | Path,
        config: Zonos2Config | None = None,
        device: str | int | torch.device = "cpu",
        dtype: str | torch.dtype | None = None,
        backend: str = "auto",
        options: BatchingOptions = BatchingOptions(),  # noqa: B008  frozen
        lora: str | Path | None = None,
    ) -> "Backbone":
        """Read .safetensors (also sharded, by its index) or .pth/.pt with the official names.

        config None reads params.json beside the file; dtype None is the one it states. On a CPU, weights that are
        stored in `dtype` stay in the mapped file. options: of the scheduler. lora: an adapter of this model.

        FileNotFoundError; ValueError: the file is corrupt or holds code, or tensors are missing, surplus,
        misshapen or not finite, which are counted and the first of them named.
        """
        _check(options)
        device = resolve_device(device)
        checkpoint = Checkpoint(path)
        if config is None:
            config = Zonos2Config.from_json(checkpoint.path.parent / "params.json")
        dtype = resolve_dtype(config.dtype if dtype is None else dtype)
        resolve_backend(backend, device, dtype)
        weights = load_weights(checkpoint, cls.layout(config), device, dtype)
        if lora is not None:
            weights = add_lora(lora, checkpoint, cls.layout(config), weights)
        for name, tensor in weights.items():
            if name.endswith(".attention.temp"):  # the official class keeps it in bfloat16 whatever the others are
                weights[name] = tensor.bfloat16().to(dtype)
        backbone = cls(config, weights, backend, options)
        backbone.metadata = checkpoint.metadata
        return backbone

    from_pretrained = load  # the name in transformers

    def trace(self, ids: Tensor, speaker: Tensor | None = None) -> dict[str, Tensor]:
        """One full forward of ids [T, 10], every stage kept.

        logits [T, 9, 1026]; hidden_states [n_layers + 1, T, dim]; final_norm [T, dim]; expert_ids and expert_weights
        [n_moe_layers, T, k_max], by descending score, unused slots -1 and 0; router_probs [n_moe_layers, T, n_experts];
        router_states [n_moe_layers, T, moe_router_dim]. ValueError, TypeError: an argument is wrong.
        """
        ids, speaker = self._checked_ids("ids", ids), self.checked_speaker("speaker", speaker)
        if len(ids) > self.config.max_seqlen:
            raise ValueError(f"ids has {len(ids)} tokens, but max_seqlen is {self.config.max_seqlen}")
        with self._exclusive(), isolated():
            trace = reference.trace(self.model, ids.to(self.device), speaker, self.ops)
            if self.device.type == "cuda":
                torch.cuda.current_stream().synchronize()
        return trace

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Inside, the scheduler launches no frame: the operations share counters, so one launches at a time."""
        with self._scheduler_lock:  # nor is a scheduler made
            if self._scheduler is None:
                with current(self.device):
                    yield
                return
        with self._scheduler.exclusive():
            yield

    @overload
    def generate(
        self,
        prompts: Sequence[Tensor],
        sampling: Sampling | Sequence[Sampling] = ...,
        speakers: Sequence[Tensor | None] | None = None,
        progress: Progress | None = None,
        return_exceptions: Literal[False] = False,
    ) -> list[Generation]: ...
    @overload
    def generate(
        self,
        prompts: Sequence[Tensor],
        sampling: Sampling | Sequence[Sampling] = ...,
        speakers: Sequence[Tensor | None] | None = None,
        progress: Progress | None = None,
        *,
        return_exceptions: Literal[True],
    ) -> list[Generation | BaseException]: ...
    def generate(
        self,
        prompts: Sequence[Tensor],
        sampling: Sampling | Sequence[Sampling] = Sampling(),  # noqa: B008  frozen
        speakers: Sequence[Tensor | None] | None = None,
        progress: Progress | None = None,
        return_exceptions: bool = False,
    ) -> Sequence[Generation | BaseException]:
        """Continue each prompt [T, 10] to its end. The result of one does not depend on the others.

        sampling           one for all or one each
        speakers           per prompt an embedding [speaker_embedding_dim] or None
        progress           progress(i, frame) is called for each frame of prompt i, some frames at a time
        return_exceptions  a prompt that fails, by itself or in `progress`, has its exception in the result, and the
                           others go on; by default the first exception is raised, and all requests end

        ValueError, TypeError: an argument is wrong, found before any work; it names the prompt. FloatingPointError:
        logits are NaN or Inf. torch.OutOfMemoryError: there is no memory for a prompt.
        """
        return read_all(self.streams(prompts, sampling, speakers), progress, return_exceptions)

    def stream(self, prompt: Tensor, sampling: Sampling = Sampling(), speaker: Tensor | None = None) -> Stream:  # noqa: B008  frozen
        """The frames of one prompt as they come: an iterator, to be closed. Other requests run on.

        Raises as `generate` does: for a wrong argument at once, otherwise from the iterator.
        """
        return self.streams([prompt], sampling, [speaker])[0]

    def max_frames_after(self, prompt_len: int) -> int:
        """Frames that fit behind a prompt, by the context and by the whole cache; at least 1."""
        return max(min(self.config.max_seqlen, self.scheduler.pages * PAGE_SIZE + 1) - prompt_len, 1)

    def streams(
        self,
        prompts: Sequence[Tensor],
        sampling: Sampling | Sequence[Sampling],
        speakers: Sequence[Tensor | None] | None,
        names: Sequence[str] | None = None,
    ) -> list[Stream]:
        """`stream` of each, all or none; other arguments as of `generate`. names: of the prompts, in errors."""
        n = len(prompts)
        names = [f"prompts[{i}]" for i in range(n)] if names is None else names
        samplings, voices = for_each("sampling", sampling, n), for_each("speakers", speakers, n)
        requests = []
        for i, (name, prompt, own, voice) in enumerate(zip(names, prompts, samplings, voices, strict=True)):
            if not isinstance(own, Sampling):
                raise TypeError(f"sampling[{i}] must be a Sampling object, got {own!r}")
            ids, top = self._checked_ids(name, prompt), self.config.max_seqlen
            if len(ids) >= top:
                raise ValueError(f"{name} has {len(ids)} tokens, which leaves no room for a frame: max_seqlen is {top}")
            requests.append(Request(name, ids, own, self.checked_speaker(f"speakers[{i}]", voice), self.config))
        self.scheduler.submit(requests)
        return [Stream(self.scheduler, request) for request in requests]

    def _checked_ids(self, name: str, ids: Tensor) -> Tensor:
        config, width = self.config, self.config.n_codebooks + 1
        if not isinstance(ids, Tensor) or ids.ndim != 2 or ids.shape[1] != width or len(ids) == 0:
            got = list(ids.shape) if isinstance(ids, Tensor) else type(ids).__name__
            raise ValueError(f"{name} must be a tensor [T, {width}] with T >= 1, got {got}")
        if ids.dtype not in (torch.int32, torch.int64):
            raise TypeError(f"{name} must be torch.int32 or torch.int64, got {ids.dtype}")
        largest = [config.audio_pad_id] * config.n_codebooks + [config.text_vocab]
        most = torch.tensor(largest, dtype=torch.int64, device=ids.device)
        if wrong := ((ids < 0) | (ids > most)).nonzero()[:1].tolist():
            token, column = wrong[0]
            raise ValueError(
                f"{name}[{token}, {column}] must be in 0..{largest[column]}, got {ids[token, column]}: the last column "
                "is text, the others are codes"
            )
        return ids.cpu()

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


def _check(options: BatchingOptions) -> None:
    if not isinstance(options, BatchingOptions):
        raise TypeError(f"options must be a BatchingOptions, got {options!r}")
