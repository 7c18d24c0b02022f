"""Continuous batching: requests join and leave a batch whose frames never wait for the host.

The device runs one CUDA graph a frame: forward, head, sampling, update of the state. The host synchronises every
`sync_interval` frames. It then reads new frames, frees the slots and pages of finished requests, and admits others.
Meanwhile the device runs the frames up to the next synchronisation.

    submit ─▶ waiting ─pages, a slot─▶ prefilling ─prompt in the cache─▶ running ─last frame─▶ finished

A request's result depends neither on other requests nor on when it came.

Data goes one way. A `Request` is plain data. `Scheduler` drives `BatchState`, `ModelRunner` and `VocoderRunner`, which
do not import it. A `Stream`, which the scheduler does not know, hands out the frames of a request.
"""

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from zonos2_triton.model.backend import current
from zonos2_triton.model.nvtx import annotate
from zonos2_triton.model.ops import MAX_BATCH_SIZE, MAX_PREFILL_TOKENS, PAGE_SIZE
from zonos2_triton.model.runtime.batch_state import BatchState, cache_pages, pages_of
from zonos2_triton.model.runtime.cuda_graphs import Capture, CudaCapture, Graphs, buckets
from zonos2_triton.model.runtime.model_runner import ModelRunner
from zonos2_triton.model.runtime.request import Frame, Request
from zonos2_triton.model.runtime.vocoder_runner import VocoderOutput, VocoderRunner
from zonos2_triton.model.vocoder_decoder import VocoderDecoder
from zonos2_triton.reference.advance_frame import SLOT_FREE, SLOT_NONFINITE
from zonos2_triton.reference.network import Model
from zonos2_triton.reference.numeric import isolated
from zonos2_triton.reference.ops import Ops
from zonos2_triton.reference.scalars import as_int

SYNC_INTERVAL = 8  # frames, on a GPU
WARM_UP_TOKENS = (16, 512)  # of prompts that take the narrowest tiles, and the widest
OUT_OF_MEMORY = (torch.OutOfMemoryError, MemoryError)
CUDA_GRAPHS = ("lazy", "at_load", "off")


@dataclass(frozen=True)
class BatchingOptions:
    """How many requests run together, and how.

    max_batch_size      requests that decode together, 1..256; more wait
    kv_cache_tokens     cache positions for the prompts and frames of all requests; None: 4 contexts, or what fewer
                        requests can fill
    sync_interval       frames between two synchronisations of the host; None: 8, and 1 on a CPU
    cuda_graphs         "lazy": captured when a batch size first comes; "at_load": all at once, and the kernels of
                        prompts are compiled too; "off"
    max_prefill_tokens  prompt tokens in one step while others are decoding, which bounds their delay
    """

    max_batch_size: int = 16
    kv_cache_tokens: int | None = None
    sync_interval: int | None = None
    cuda_graphs: str = "lazy"
    max_prefill_tokens: int = 512

    def __post_init__(self) -> None:
        most = {"max_batch_size": MAX_BATCH_SIZE, "kv_cache_tokens": 2**31 - 1, "sync_interval": 1024}
        most |= {"max_prefill_tokens": MAX_PREFILL_TOKENS}
        for name, high in most.items():
            value = getattr(self, name)
            if value is None and name in ("kv_cache_tokens", "sync_interval"):
                continue
            number = as_int(value)
            if number is None or not 1 <= number <= high:
                raise ValueError(f"options: {name} must be an integer in 1..{high}, got {value!r}")
            object.__setattr__(self, name, number)
        if self.cuda_graphs not in CUDA_GRAPHS:
            accepted = ", ".join(CUDA_GRAPHS)
            raise ValueError(f"options: cuda_graphs must be one of {accepted}, got {self.cuda_graphs!r}")


def even_chunk(tokens: int, most: int) -> int:
    """The first of as few chunks as hold so many tokens, all of about one length: each reads every weight again."""
    return -(-tokens // -(-tokens // most))


@dataclass
class PendingSync:
    """Results that the device has been asked for. They are valid once `done` has come."""

    requests: list[Request]  # by slot
    scalars: Tensor  # [6, B] of `BatchState`
    frames: Tensor  # [B, most, C + 1]
    output: VocoderOutput | None
    done: torch.cuda.Event | None


class Scheduler:
    """The requests of one model. Its methods may be called from any thread."""

    def __init__(
        self, model: Model, ops: Ops, options: BatchingOptions, per_sequence: bool, capture: Capture | None = None
    ) -> None:
        """per_sequence: compute each sequence by itself, for operations whose results depend on the batch.

        capture: replaces CUDA graphs.
        """
        config, self.device = model.config, model.table.device
        self.options, self.per_sequence = options, per_sequence
        on_gpu = self.device.type == "cuda"
        self.sync_interval = options.sync_interval or (SYNC_INTERVAL if on_gpu else 1)
        slots = buckets(options.max_batch_size)[-1]
        self.pages = cache_pages(config, options.max_batch_size, options.kv_cache_tokens)
        # The ring holds the frames of a step, of the step before, and those whose last codes were still to come.
        with isolated():
            self.state = BatchState(config, slots, self.pages, self.sync_interval + config.n_codebooks, model.table)
        self.vocoder_runner: VocoderRunner | None = None
        self.waiting: deque[Request] = deque()
        self.prefilling: list[Request] = []
        self.running: list[Request] = []  # by slot
        self._pending: PendingSync | None = None
        self._lock = threading.RLock()
        self._stream = torch.cuda.Stream(self.device) if on_gpu else None
        self._pipelined = on_gpu  # the device runs a step while the host reads the one before
        if capture is None and on_gpu and options.cuda_graphs != "off" and not per_sequence:
            capture = CudaCapture(self._idle)
        self._model_runner = ModelRunner(model, ops, self.state, per_sequence)
        self._capture = capture
        self._graphs = Graphs(self._model_runner.frame, options.max_batch_size, capture)
        self._vocoder_graphs: Graphs | None = None
        if options.cuda_graphs == "at_load":
            with self.exclusive():
                self._graphs.capture_all()
                if on_gpu:
                    self._model_runner.warm_up([min(tokens, config.max_seqlen) for tokens in WARM_UP_TOKENS])

    def attach_vocoder(self, decoder: VocoderDecoder) -> None:
        """From now on frames come with their samples. RuntimeError: requests are running."""
        with self.exclusive():
            if running := len(self.running) + len(self.prefilling):
                raise RuntimeError(f"{running} requests are running; wait for their end")
            with isolated():
                self.vocoder_runner = VocoderRunner(decoder, self.state, self.sync_interval + 1)
            self._vocoder_graphs = Graphs(self.vocoder_runner.advance, self.options.max_batch_size, self._capture)
            if self.options.cuda_graphs == "at_load":
                self._vocoder_graphs.capture_all()

    def submit(self, requests: Sequence[Request]) -> None:
        """Queue all requests or none. ValueError: the cache can never hold one of them."""
        for request in requests:
            if pages_of(request.cache_len) > self.pages:
                raise ValueError(
                    f"{request.name} and its {request.max_frames} frames fill {request.cache_len} tokens of the cache, "
                    f"which has {self.pages * PAGE_SIZE}: raise kv_cache_tokens in BatchingOptions, or lower max_frames"
                )
        with self._lock:
            self.waiting.extend(requests)

    def step(self, request: Request) -> None:
        """Admit, prefill, launch frames and read results, once for all requests.

        Does nothing if the request has a frame to read or is finished. Its next frame may need several steps.
        """
        with self.exclusive(), annotate("model/step"):
            if request.frames or request.finished:
                return
            try:
                self.sweep()
                self._admit()
                pending = self._advance()
                if self._pipelined:
                    pending, self._pending = self._pending, pending
                if pending is not None:
                    self._deliver(pending)
            except BaseException as error:
                self._abort(error)
                raise

    def sweep(self) -> None:
        """Finish the cancelled requests."""
        with self.exclusive():
            for request in [*self.waiting, *self.prefilling, *self.running]:
                if request.cancelled:
                    self._finish(request)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Inside, this thread alone launches on the device, in the scheduler's order.

        The caller's settings of torch do not apply, because a step runs requests of other callers.
        """
        with self._lock, isolated(), torch.inference_mode(), current(self.device), self._ordered():
            yield

    def replace_ops(self, ops: Ops) -> None:
        with self._lock:
            self._model_runner.ops = ops
            self._graphs.forget()

    def _ordered(self) -> AbstractContextManager[object]:
        if self._stream is None:
            return nullcontext()
        self._stream.wait_stream(torch.cuda.current_stream())  # the caller's tensors may still be in the making
        return torch.cuda.stream(self._stream)

    @contextmanager
    def _idle(self) -> Iterator[None]:
        """Inside, every slot is idle. SLOT_NONFINITE, because the vocoder would flush a slot that is SLOT_FREE."""
        before = self.state.positions.clone()
        self.state.positions.fill_(SLOT_NONFINITE)
        try:
            yield
        finally:
            self.state.positions.copy_(before)

    def _admit(self) -> None:
        """Give pages to waiting requests, first come first served; then prefill a chunk of their prompts."""
        while self.waiting and len(self.running) + len(self.prefilling) < self.options.max_batch_size:
            pages = self.state.alloc_pages(self.waiting[0].cache_len)
            if pages is None:
                break
            request = self.waiting.popleft()
            request.pages = pages
            self.prefilling.append(request)
        most = self.options.max_prefill_tokens if self.running and not self.per_sequence else MAX_PREFILL_TOKENS
        chunks: list[tuple[Request, int]] = []
        for request in self.prefilling:
            tokens = even_chunk(len(request.prompt) - request.num_prefilled, most)
            if not self.per_sequence and sum(taken for _, taken in chunks) + tokens > most:
                break
            chunks.append((request, tokens))
        for together in [[chunk] for chunk in chunks] if self.per_sequence else [chunks] if chunks else []:
            self._prefill(together)
        self._start()

    def _prefill(self, chunks: list[tuple[Request, int]]) -> None:
        """Prefill so many tokens of each prompt: together, or one by one if memory is short."""
        try:
            with annotate("model/prefill", sum(tokens for _, tokens in chunks)):
                self._model_runner.prefill(chunks)
        except OUT_OF_MEMORY as error:
            for chunk in chunks if len(chunks) > 1 else []:
                self._prefill([chunk])
            if len(chunks) == 1:
                self._finish(chunks[0][0], error)

    def _start(self) -> None:
        """Give the prefilled requests the next slots, and sample their first frames."""
        if ready := [request for request in self.prefilling if request.num_prefilled == len(request.prompt)]:
            first = len(self.running)
            with annotate("model/start", len(ready)):
                for slot, r in enumerate(ready, first):
                    self.state.add(slot, r.pages, len(r.prompt) - 1, r.max_frames, r.eoa_id, r.settings, r.seed)
                self._model_runner.start(ready, first)
            if self.vocoder_runner is not None:
                self.vocoder_runner.add(first, len(ready))
            for request in ready:
                request.num_scheduled = 1
            self.prefilling = [request for request in self.prefilling if request not in ready]
            self.running += ready

    def _advance(self) -> PendingSync | None:
        """Launch the frames up to the next synchronisation, and the copies that it reads."""
        if not self.running:
            return None
        batch_size = len(self.running)
        count = min(self.sync_interval, max(request.max_frames - request.num_scheduled for request in self.running))
        with annotate("model/frames", count):
            for _ in range(count):
                with annotate("model/frame", batch_size):
                    self._graphs.run(batch_size)
        for request in self.running:
            request.num_scheduled += count
        output = None
        if self.vocoder_runner is not None and self._vocoder_graphs is not None:
            with annotate("codec/advance", batch_size):
                self._vocoder_graphs.run(batch_size)
            output = self.vocoder_runner.drain(batch_size)
        scalars, frames = self.state.drain(batch_size, self.sync_interval + 1)
        if self._stream is None:
            return PendingSync([*self.running], scalars, frames, output, None)
        scalars, frames = (t.to("cpu", non_blocking=True) for t in (scalars, frames))
        output = output and VocoderOutput(*(t.to("cpu", non_blocking=True) for t in output))
        return PendingSync([*self.running], scalars, frames, output, self._stream.record_event())

    def _deliver(self, pending: PendingSync) -> None:
        """Wait for the copies, hand out the new frames and finish the requests that have ended."""
        if pending.done is not None:
            with annotate("model/wait"):
                pending.done.synchronize()
        positions, steps, _, _, _, drained = pending.scalars.tolist()
        with isolated():  # the reader of a frame may change it
            codes = pending.frames[..., :-1].long()
            samples: list[Tensor | None] = [None] * len(pending.requests)
            if self.vocoder_runner is not None and pending.output is not None:
                samples = [self.vocoder_runner.samples(pending.output, slot) for slot in range(len(pending.requests))]
        ends = pending.frames[..., -1].tolist()
        for slot, request in enumerate(pending.requests):
            if request.finished:
                continue
            count = steps[slot] - drained[slot]
            for j in range(count):
                newest = j == count - 1
                end = ends[slot][j] if ends[slot][j] >= 0 else None
                last = newest and positions[slot] == SLOT_FREE
                request.frames.append(Frame(codes[slot, j], end, last, samples[slot] if newest else None))
            if positions[slot] == SLOT_NONFINITE:
                error = FloatingPointError(
                    f"{request.name}: the logits of frame {steps[slot]} are not finite; another dtype may help"
                )
                self._finish(request, error)
            elif positions[slot] < 0:
                self._finish(request)

    def _finish(self, request: Request, error: BaseException | None = None) -> None:
        """Finish a request in any state, and free its slot and pages."""
        if request in self.running:
            slot, last = self.running.index(request), len(self.running) - 1
            self.state.remove(slot, last)
            if self.vocoder_runner is not None:
                self.vocoder_runner.remove(slot, last)
            self.running[slot] = self.running[-1]
            self.running.pop()
        elif request in self.prefilling:
            self.prefilling.remove(request)
        elif request in self.waiting:
            self.waiting.remove(request)
        self.state.free_pages += request.pages
        request.pages = []
        request.finish(error)

    def _abort(self, error: BaseException) -> None:
        """Fail every request: after an error of the scheduler the state of the device is unknown."""
        cause = error if isinstance(error, Exception) else RuntimeError(f"the scheduler was stopped: {error!r}")
        for request in [*self.waiting, *self.prefilling, *self.running]:
            request.finish(cause)
            self.state.free_pages += request.pages
            request.pages = []
        self.waiting.clear()
        self.prefilling, self.running, self._pending = [], [], None
        with suppress(RuntimeError):  # of a lost device
            self.state.positions.fill_(SLOT_FREE)
