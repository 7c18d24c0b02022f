"""The frame loop: requests join and leave a batch whose frames never wait for the host.

A frame is one graph on the device: forward, head, draw, end, feedback. The host looks every few frames: it collects
what has come, gives the rows and pages of ended requests back, and lets new ones in. While it does, the frames until
its next look are running already.

    submit ──▶ waiting ──pages and a row──▶ filling ──prompt in the cache──▶ running ──last frame──▶ over

What becomes of a request does not depend on any other, nor on when it came.

Data goes one way: a `Request` is plain data, `Loop` takes it through `Slots` and `Frames`, which import no scheduler,
and a `Stream`, which the loop does not know, hands its frames out.
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
from zonos2_triton.model.ops import PAGE_SIZE, ROWS_AT_ONCE, SEQUENCES_AT_ONCE
from zonos2_triton.model.runtime.batch_state import Slots, cache_pages, pages_of
from zonos2_triton.model.runtime.cuda_graphs import Capture, CudaCapture, Graphs, buckets
from zonos2_triton.model.runtime.model_runner import Frames
from zonos2_triton.model.runtime.request import Frame, Request
from zonos2_triton.model.runtime.vocoder_runner import Speech, Spoken
from zonos2_triton.model.vocoder_decoder import Decoder
from zonos2_triton.reference import network as reference
from zonos2_triton.reference.advance_frame import SLOT_FREE, SLOT_NONFINITE
from zonos2_triton.reference.numeric import isolated
from zonos2_triton.reference.ops import Ops
from zonos2_triton.reference.scalars import as_int

LOOK = 8  # frames between two looks of the host, on a GPU
OUT_OF_MEMORY = (torch.OutOfMemoryError, MemoryError)


@dataclass(frozen=True)
class LoopOptions:
    """How many requests run together, and how.

    streams       requests that decode together, 1..256; more wait
    positions     rows of the cache, for the prompts and frames of all of them; None: 4 times the context, or what fewer
                  streams can fill
    look          frames between two looks of the host; None: 8, and 1 on a CPU, where looking costs nothing
    graphs        "lazy": captured when a size of batch first comes; "load": all at once; "off"
    prefill_rows  rows of prompts between two looks while others are decoding: what a newcomer may hold them up for
    """

    streams: int = 16
    positions: int | None = None
    look: int | None = None
    graphs: str = "lazy"
    prefill_rows: int = 512

    def __post_init__(self) -> None:
        most = {"streams": SEQUENCES_AT_ONCE, "positions": 2**31 - 1, "look": 1024, "prefill_rows": ROWS_AT_ONCE}
        for name, high in most.items():
            value = getattr(self, name)
            if value is None and name in ("positions", "look"):
                continue
            number = as_int(value)
            if number is None or not 1 <= number <= high:
                raise ValueError(f"options: {name} must be an integer in 1..{high}, got {value!r}")
            object.__setattr__(self, name, number)
        if self.graphs not in ("lazy", "load", "off"):
            raise ValueError(f"options: graphs must be one of lazy, load, off, got {self.graphs!r}")


@dataclass
class _Look:
    """What the host asked the device for, and will find when `done` has come."""

    requests: list[Request]  # by row
    numbers: Tensor  # [6, rows] of `Slots`
    frames: Tensor  # [rows, most, C + 1]
    spoken: Spoken | None
    done: torch.cuda.Event | None


class Loop:
    """The requests of one model. Its methods may be called from any thread."""

    def __init__(
        self, model: reference.Model, ops: Ops, options: LoopOptions, alone: bool, capture: Capture | None = None
    ) -> None:
        """alone: these operations' results depend on the batch, so each row is computed by itself.

        capture: in place of CUDA graphs.
        """
        config, self.device = model.config, model.table.device
        self.options, self.alone = options, alone
        on_gpu = self.device.type == "cuda"
        self.look = options.look or (LOOK if on_gpu else 1)
        rows = buckets(options.streams)[-1]
        self.pages = cache_pages(config, options.streams, options.positions)
        # Frames of a look, the one before it, and those whose last codes were still to come.
        with isolated():
            self.slots = Slots(config, rows, self.pages, self.look + config.n_codebooks, model.table)
        self.speech: Speech | None = None
        self.waiting: deque[Request] = deque()
        self.filling: list[Request] = []
        self.running: list[Request] = []  # by row
        self._pending: _Look | None = None
        self._lock = threading.RLock()
        self._stream = torch.cuda.Stream(self.device) if on_gpu else None
        self._ahead = on_gpu  # the device goes on while the host is busy with what came before
        if capture is None and on_gpu and options.graphs != "off" and not alone:
            capture = CudaCapture(self._idle)
        self._frames = Frames(model, ops, self.slots, alone)
        self._capture = capture
        self._graphs = Graphs(self._frames.frame, options.streams, capture)
        self._voices: Graphs | None = None
        if options.graphs == "load":
            with self.exclusive():
                self._graphs.capture_all()

    def speak(self, decoder: Decoder) -> None:
        """From now on frames come with their samples. RuntimeError: requests that have begun without them."""
        with self.exclusive():
            if self.running or self.filling:
                raise RuntimeError(f"{len(self.running) + len(self.filling)} requests are running; wait for their end")
            with isolated():
                self.speech = Speech(decoder, self.slots, self.look + 1)
            self._voices = Graphs(self.speech.advance, self.options.streams, self._capture)
            if self.options.graphs == "load":
                self._voices.capture_all()

    def submit(self, requests: Sequence[Request]) -> None:
        """All or none. ValueError: the cache can never hold one of them."""
        for request in requests:
            if pages_of(request.room) > self.pages:
                raise ValueError(
                    f"{request.name} and its {request.limit} frames fill {request.room} rows of the cache, which has "
                    f"{self.pages * PAGE_SIZE}: raise positions in LoopOptions, or lower max_frames"
                )
        with self._lock:
            self.waiting.extend(requests)

    def turn(self, request: Request) -> None:
        """One look, unless the request has something to read already: what it waits for comes after a few."""
        with self.exclusive(), annotate("model/turn"):
            if request.frames or request.over:
                return
            try:
                self.sweep()
                self._admit()
                look = self._advance()
                if self._ahead:
                    look, self._pending = self._pending, look
                if look is not None:
                    self._deliver(look)
            except BaseException as error:
                self._abort(error)
                raise

    def sweep(self) -> None:
        """Forget whoever was cancelled."""
        with self.exclusive():
            for request in [*self.waiting, *self.filling, *self.running]:
                if request.cancelled:
                    self._end(request)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Inside, the device is this thread's, in the loop's order of launches; what the caller has set in torch is
        nothing to the requests, which may be anybody's."""
        with self._lock, isolated(), torch.inference_mode(), current(self.device), self._ordered():
            yield

    def replace_ops(self, ops: Ops) -> None:
        with self._lock:
            self._frames.ops = ops
            self._graphs.forget()

    def _ordered(self) -> AbstractContextManager[object]:
        if self._stream is None:
            return nullcontext()
        self._stream.wait_stream(torch.cuda.current_stream())  # what the caller made may still be under way
        return torch.cuda.stream(self._stream)

    @contextmanager
    def _idle(self) -> Iterator[None]:
        """Inside, no row is live; none is over either, which would be spoken to its end."""
        before = self.slots.positions.clone()
        self.slots.positions.fill_(SLOT_NONFINITE)
        try:
            yield
        finally:
            self.slots.positions.copy_(before)

    # Letting requests in.

    def _admit(self) -> None:
        """Pages and a row for those that wait, in the order they came; then a piece of their prompts."""
        while self.waiting and len(self.running) + len(self.filling) < self.options.streams:
            pages = self.slots.take(self.waiting[0].room)
            if pages is None:
                break
            request = self.waiting.popleft()
            request.pages = pages
            self.filling.append(request)
        budget = self.options.prefill_rows if self.running else ROWS_AT_ONCE
        pieces: list[tuple[Request, int]] = []
        for request in self.filling:
            rows = min(len(request.prompt) - request.filled, ROWS_AT_ONCE if self.alone else budget)
            if rows > 0:
                pieces.append((request, rows))
                budget -= rows
        for together in [[piece] for piece in pieces] if self.alone else [pieces] if pieces else []:
            self._prefill(together)
        self._start()

    def _prefill(self, pieces: list[tuple[Request, int]]) -> None:
        """So many rows of each prompt into the cache. Where memory does not do for all, each by itself."""
        try:
            with annotate("model/prefill", sum(rows for _, rows in pieces)):
                self._frames.fill(pieces)
        except OUT_OF_MEMORY as error:
            for piece in pieces if len(pieces) > 1 else []:
                self._prefill([piece])
            if len(pieces) == 1:
                self._end(pieces[0][0], error)

    def _start(self) -> None:
        """Those whose prompt is in the cache get the rows behind the others, and their first frame."""
        if ready := [request for request in self.filling if request.filled == len(request.prompt)]:
            with annotate("model/start", len(ready)):
                for row, r in enumerate(ready, len(self.running)):
                    self.slots.enter(row, r.pages, len(r.prompt) - 1, r.limit, r.eoa_id, r.settings, r.seed)
                self._frames.start(ready, len(self.running))
            if self.speech is not None:
                self.speech.enter(len(self.running), len(ready))
            for request in ready:
                request.issued = 1
            self.filling = [request for request in self.filling if request not in ready]
            self.running += ready

    # Frames.

    def _advance(self) -> _Look | None:
        """Ask for the frames until the next look, and for what has come by then."""
        if not self.running:
            return None
        rows = len(self.running)
        count = min(self.look, max(request.limit - request.issued for request in self.running))
        with annotate("model/frames", count):
            for _ in range(count):
                with annotate("model/frame", rows):
                    self._graphs.run(rows)
        for request in self.running:
            request.issued += count
        spoken = None
        if self.speech is not None and self._voices is not None:
            with annotate("codec/speak", rows):
                self._voices.run(rows)
            spoken = self.speech.collect(rows)
        numbers, frames = self.slots.collect(rows, self.look + 1)
        if self._stream is None:
            return _Look([*self.running], numbers, frames, spoken, None)
        numbers, frames = (t.to("cpu", non_blocking=True) for t in (numbers, frames))
        spoken = spoken and Spoken(*(t.to("cpu", non_blocking=True) for t in spoken))
        return _Look([*self.running], numbers, frames, spoken, self._stream.record_event())

    # What has come.

    def _deliver(self, look: _Look) -> None:
        if look.done is not None:
            with annotate("model/wait"):
                look.done.synchronize()
        positions, steps, _, _, _, collected = look.numbers.tolist()
        with isolated():  # whoever gets a frame may change it
            codes = look.frames[..., :-1].long()
            spoken: list[Tensor | None] = [None] * len(look.requests)
            if self.speech is not None and look.spoken is not None:
                spoken = [self.speech.samples(look.spoken, row) for row in range(len(look.requests))]
        ends = look.frames[..., -1].tolist()
        for row, request in enumerate(look.requests):
            if request.over:
                continue
            count = steps[row] - collected[row]
            for j in range(count):
                newest = j == count - 1
                end = ends[row][j] if ends[row][j] >= 0 else None
                samples = spoken[row] if newest else None
                request.frames.append(Frame(codes[row, j], end, newest and positions[row] == SLOT_FREE, samples))
            if positions[row] == SLOT_NONFINITE:
                error = FloatingPointError(
                    f"{request.name}: the logits of frame {steps[row]} are not finite; another dtype may help"
                )
                self._end(request, error)
            elif positions[row] < 0:
                self._end(request)

    def _end(self, request: Request, error: BaseException | None = None) -> None:
        """Wherever it is, it is over: what it held is free."""
        if request in self.running:
            row = self.running.index(request)
            self.slots.leave(row, len(self.running) - 1)
            if self.speech is not None:
                self.speech.leave(row, len(self.running) - 1)
            self.running[row] = self.running[-1]
            self.running.pop()
        elif request in self.filling:
            self.filling.remove(request)
        elif request in self.waiting:
            self.waiting.remove(request)
        self.slots.free += request.pages
        request.pages = []
        request.end(error)

    def _abort(self, error: BaseException) -> None:
        """The loop itself failed: nobody knows what state the device is in, so everybody is told."""
        cause = error if isinstance(error, Exception) else RuntimeError(f"the frame loop was stopped: {error!r}")
        for request in [*self.waiting, *self.filling, *self.running]:
            request.end(cause)
            self.slots.free += request.pages
            request.pages = []
        self.waiting.clear()
        self.filling, self.running, self._pending = [], [], None
        with suppress(RuntimeError):  # of a device that is lost
            self.slots.positions.fill_(SLOT_FREE)
