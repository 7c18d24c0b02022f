"""Delayed frames in, samples out, while clips are still being generated."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from zonos2_triton.model.backend import current
from zonos2_triton.model.vocoder_decoder import VocoderDecoder, checked_codes
from zonos2_triton.model.vocoder_schedule import NO_END, Schedule, step
from zonos2_triton.model.vocoder_windows import Windows
from zonos2_triton.reference.delay import shear_up
from zonos2_triton.reference.numeric import isolated
from zonos2_triton.reference.scalars import as_int
from zonos2_triton.reference.vocoder import VocoderConfig


class _Clip:
    """What has been said about a clip: the frames so far, how many are complete, and where it ends."""

    def __init__(self, config: VocoderConfig, schedule: Schedule, name: str = "") -> None:
        """name: of the clip among others, for errors."""
        self.config, self.schedule, self.name = config, schedule, name
        self.frames = torch.zeros(0, config.n_codebooks, dtype=torch.int64, device="cpu")
        self.passed = 0  # frames before those, which nobody needs again
        self.eos_frame: int | None = None
        self.closed = False

    def checked(self, frames: Tensor, eos_frame: int | None, last: bool, decoded: int) -> Tensor:
        """frames as int64; decoded: how many are behind us. ValueError, TypeError: see `ExactStream.push`."""
        C = self.config.n_codebooks
        if self.closed:
            raise ValueError(f"{self.name}this stream was closed by last=True; open another")
        if not isinstance(frames, Tensor) or frames.ndim != 2 or frames.shape[1] != C:
            got = list(frames.shape) if isinstance(frames, Tensor) else type(frames).__name__
            raise ValueError(f"{self.name}frames must be a tensor [n, {C}], got {got}")
        frames = checked_codes(self.config, f"{self.name}frames", frames)
        self._check_end(eos_frame, self.total + len(frames), last, decoded)
        return frames

    def take(self, frames: Tensor, eos_frame: int | None, last: bool) -> None:
        """Of frames that `checked` let pass."""
        self.frames = torch.cat([self.frames, frames.cpu()])
        self.eos_frame = self.eos_frame if eos_frame is None else int(eos_frame)
        self.closed = bool(last)

    @property
    def total(self) -> int:
        """Frames that have come."""
        return self.passed + len(self.frames)

    @property
    def length(self) -> int:
        """Frames of the clip, LENGTH_UNKNOWN while that is not known."""
        return self.schedule.length(self.total, NO_END if self.eos_frame is None else self.eos_frame, self.closed)

    @property
    def complete(self) -> int:
        """Frames whose last codebook has come."""
        return self.schedule.complete(self.total, self.length)

    @property
    def over(self) -> bool:
        """Whether all frames of the audio are there."""
        return bool(self.schedule.over(self.complete, self.length, self.closed))

    def aligned(self, first: int, end: int) -> Tensor:
        """Aligned frames first .. end - 1, [n, 9]; codes that never came are padding."""
        C, pad = self.config.n_codebooks, self.config.codebook_size + 1
        delayed = self.frames[first : end + C - 1]
        missing = delayed.new_full((end - first + C - 1 - len(delayed), C), pad)
        return shear_up(torch.cat([delayed, missing]), pad)[: end - first]

    def _check_end(self, eos_frame: int | None, total: int, last: bool, decoded: int) -> None:
        if eos_frame is not None:
            if self.eos_frame not in (None, eos_frame):
                raise ValueError(f"{self.name}eos_frame was {self.eos_frame} in an earlier message, got {eos_frame!r}")
            number = as_int(eos_frame)
            if number is None or number < decoded:
                raise ValueError(
                    f"{self.name}eos_frame must be at least {decoded}, which are decoded, got {eos_frame!r}"
                )
        end = self.eos_frame if eos_frame is None else eos_frame
        if last and end is not None and end > total:
            raise ValueError(f"{self.name}eos_frame must be at most the {total} frames that were pushed, got {end}")


class _Stream:
    """A stream of one clip that decodes it by itself."""

    def __init__(self, config: VocoderConfig) -> None:
        self.clip = _Clip(config, Schedule(config.n_codebooks, behind=0))

    @isolated()
    def push(self, frames: Tensor, eos_frame: int | None = None, last: bool = False) -> Tensor:
        """As `ExactStream.push`."""
        frames = self.clip.checked(frames, eos_frame, last, self._decoded())
        self.clip.take(frames, eos_frame, last)
        return self._advance()

    def _advance(self) -> Tensor:
        """The samples that are final by now."""
        raise NotImplementedError

    def _decoded(self) -> int:
        """Frames whose samples have been computed."""
        raise NotImplementedError


class WindowStream(_Stream):
    """Emits each window of the reference as soon as the frames that it is computed from are complete."""

    def __init__(self, windows: Windows) -> None:
        super().__init__(windows.config)
        self.windows, self.emitted = windows, 0

    def _advance(self) -> Tensor:
        over = self.clip.over
        total = self.clip.length if over else self.clip.complete
        ready = [torch.zeros(0, dtype=torch.float32, device=self.windows.device)]
        while True:
            window = self.windows.at(self.emitted)
            if window.start >= total or (not over and window.end > total):
                return torch.cat(ready)
            frames = self.clip.aligned(window.first, min(window.end, total))
            ready.append(self.windows.decode(window, frames, total))
            self.emitted += 1

    def _decoded(self) -> int:
        return min(self.windows.at(self.emitted).start, self.clip.length)


class OverlapStream(_Stream):
    """The official engine's cross-fade: a chunk decodes the last frames of the one before again and fades them over."""

    def __init__(
        self, config: VocoderConfig, device: torch.device, decode: Callable[[Tensor], Tensor], overlap: int, chunk: int
    ) -> None:
        """decode: aligned codes [9, T] -> their samples."""
        super().__init__(config)
        self.overlap, self.chunk = check_frames(overlap=(overlap, 0), chunk=(chunk, 1))
        self.hop, self.decode = config.hop, decode
        self.decoded = 0
        self.tail = torch.zeros(0, dtype=torch.float32, device=device)  # withheld, to be faded into the next chunk

    def _decoded(self) -> int:
        return self.decoded

    def _advance(self) -> Tensor:
        nothing, complete, closed = self.tail[:0], self.clip.complete, self.clip.closed
        if not closed and complete - self.decoded < self.chunk:
            return nothing
        if closed and complete <= self.decoded and len(self.tail) == 0:
            return nothing  # the official engine is silent about a clip none of whose frames was ever complete
        total = self.clip.length if closed else complete
        if total <= self.decoded:
            ready, self.tail = self.tail, nothing
            return ready
        first = max(self.decoded - self.overlap, 0)
        audio = self.decode(self.clip.aligned(first, total).T)
        n = min(len(self.tail), (self.decoded - first) * self.hop)
        fade = 0.5 * (1 - torch.cos(torch.linspace(0, torch.pi, n, dtype=torch.float32, device=audio.device)))
        audio = torch.cat([(1 - fade) * self.tail[:n] + fade * audio[:n], audio[n:]])
        self.decoded = total
        kept = 0 if closed else min(self.overlap * self.hop, len(audio))
        ready, self.tail = audio.tensor_split([len(audio) - kept])
        return ready


class _Row(_Clip):
    """A clip on its way through the decoder."""

    def __init__(self, config: VocoderConfig, schedule: Schedule, name: str = "") -> None:
        super().__init__(config, schedule, name)
        self.done = 0  # frames that went through the decoder, those behind the end included
        self.goal = 0  # what `done` is to become
        self.sent = 0  # samples that the caller has
        self.shown: list[tuple[int, Tensor]] = []  # those of them that were not final, each from a sample on
        self.signal = self.error = 0.0  # energies of what was shown

    def take(self, frames: Tensor, eos_frame: int | None, last: bool) -> None:
        super().take(frames, eos_frame, last)
        self.goal = self.schedule.goal(self.done, self.complete, self.length, self.closed, begun=self.sent > 0)


class Streams:
    """Exact streams of several clips that advance together: one chain of launches a step, whoever has something to do.

    What a row emits depends on itself alone, bit for bit.
    """

    def __init__(
        self,
        decoder: VocoderDecoder,
        device: torch.device,
        rows: int,
        lookahead: int | None,
        chunk: int,
        first_chunk: int,
    ) -> None:
        rows, chunk, first_chunk = check_frames(rows=(rows, 1), chunk=(chunk, 1), first_chunk=(first_chunk, 1))
        if lookahead is not None:
            (lookahead,) = check_frames(lookahead=(lookahead, 0))
        self.decoder, self.config, self.device = decoder, decoder.config, device
        behind, C = decoder.lookahead, decoder.config.n_codebooks
        lookahead = behind if lookahead is None else min(lookahead, behind)
        self.schedule = Schedule(C, behind, lookahead, chunk, first_chunk)
        self.rows = [self._row(i, rows) for i in range(rows)]
        self.frames = max(chunk, lookahead + first_chunk, behind)  # of a step, at most
        self._rings = decoder.rings(rows, self.frames)
        self._codes = torch.zeros(rows, self.frames + C - 1, C, dtype=torch.int32, device="cpu")

    @isolated()
    def push(
        self, frames: Sequence[Tensor | None], eos_frames: Sequence[int | None] | None = None,
        last: Sequence[bool] | None = None,
    ) -> list[Tensor]:  # fmt: skip
        """A message for each row, as `ExactStream.push` takes them; None: nothing new. -> the samples of each.

        ValueError, TypeError: another number of messages than rows, or a wrong one, named; all rows are then as before.
        """
        count = len(self.rows)
        eos_frames = [None] * count if eos_frames is None else eos_frames
        last = [False] * count if last is None else last
        for name, given in (("frames", frames), ("eos_frames", eos_frames), ("last", last)):
            if len(given) != count:
                raise ValueError(f"{name} must hold one entry for each of the {count} rows, got {len(given)}")
        messages = [
            None if new is None and eos is None and not end else (self._empty() if new is None else new, eos, end)
            for new, eos, end in zip(frames, eos_frames, last, strict=True)
        ]
        checked = [
            message and (row.checked(*message, decoded=min(row.done, row.length)), *message[1:])
            for row, message in zip(self.rows, messages, strict=True)
        ]
        for row, message in zip(self.rows, checked, strict=True):
            if message:
                row.take(*message)
        return self._advance()

    def restart(self, row: int) -> None:
        """Row `row` begins another clip; what has not been emitted of the one before is lost."""
        index = as_int(row)
        if index is None or not 0 <= index < len(self.rows):
            raise ValueError(f"row must be in 0..{len(self.rows) - 1}, got {row!r}")
        self.rows[index] = self._row(index, len(self.rows))

    def signal_to_error(self, row: int = 0) -> float:
        """dB, of the samples that were emitted before they were final and are known by now; inf: none was off."""
        energies = self.rows[row].signal, self.rows[row].error
        return math.inf if energies[1] == 0 else 10 * math.log10(energies[0] / energies[1])

    def _row(self, index: int, rows: int) -> _Row:
        return _Row(self.config, self.schedule, f"row {index}: " if rows > 1 else "")

    def _empty(self) -> Tensor:
        return torch.zeros(0, self.config.n_codebooks, dtype=torch.int64, device="cpu")

    def _advance(self) -> list[Tensor]:
        ready: list[list[Tensor]] = [[] for _ in self.rows]
        moved = [row.goal > row.done for row in self.rows]
        while any(row.goal > row.done for row in self.rows):
            goals = [row.goal for row in self.rows]
            for row, out, (count, at, samples) in zip(self.rows, ready, self._step(goals), strict=True):
                if hidden := _compared(row, at, samples):
                    samples = samples[hidden:]
                out.append(samples)
                row.sent += len(samples)
                row.done += count
        ahead = [self.schedule.preview(m, row.goal, row.length) for m, row in zip(moved, self.rows, strict=True)]
        if any(ahead):
            goals = [row.done + more for row, more in zip(self.rows, ahead, strict=True)]
            for row, out, (count, at, samples) in zip(self.rows, ready, self._step(goals), strict=True):
                least = self.config.samples(row.done)  # that the clip has, should it end here
                end = min((row.done - self.schedule.lookahead) * self.config.hop, least, at + len(samples))
                if count and end > row.sent:
                    row.shown.append((row.sent, samples[row.sent - at : end - at]))
                    out.append(row.shown[-1][1])
                    row.sent = end
        nothing = torch.zeros(0, dtype=torch.float32, device=self.device)
        return [torch.cat([nothing, *parts]) for parts in ready]

    def _step(self, goals: list[int]) -> list[tuple[int, int, Tensor]]:
        """Each row through the decoder towards its goal: how many frames, where its samples begin, and the samples."""
        plan = []
        for b, (row, goal) in enumerate(zip(self.rows, goals, strict=True)):
            end = min(goal, row.done + self.frames)
            if end > row.done:
                self._write(b, row, min(end + self.config.n_codebooks - 1, row.total))
            plan.append(step(row.done, goal, self.frames, row.length, row.passed, row.closed))
        with current(self.device):
            step_meta = torch.tensor(plan, dtype=torch.int32, device=self.device)
            codes, most = self._codes.to(self.device), max(count for _, count, _, _ in plan)
            samples = self.decoder.step(self._rings, codes, step_meta, most, True).float()
        found = []
        for b, (done, count, length, _) in enumerate(plan):
            where, columns = self.decoder.finished(done, count, length)
            found.append((count, where.start, samples[b, columns]))
        return found

    def _write(self, b: int, row: _Row, end: int) -> None:
        """Frames up to `end` into the ring of codes; what has passed into it is not kept besides."""
        count = end - row.passed
        at = row.passed + torch.arange(count, device="cpu")
        self._codes[b, at % self._codes.shape[1]] = row.frames[:count].int()
        row.frames, row.passed = row.frames[count:], row.passed + count


class ExactStream:
    """One clip: what it emits, joined, is `decode` of the aligned frames: by the kernels bit for bit, in any pieces."""

    def __init__(self, streams: Streams) -> None:
        """streams: of one row."""
        self._streams = streams

    def push(self, frames: Tensor, eos_frame: int | None = None, last: bool = False) -> Tensor:
        """frames [n, 9], delayed, n may be 0 -> the samples that became final, fp32 [m], m may be 0.

        eos_frame  where the audio ends, from the message on that knows it
        last       the clip ends here: the rest is emitted and the stream closed

        ValueError: a code out of range, a frame after the end, an eos_frame that moves or lies outside of the clip; the
        stream is then as it was before.
        """
        if frames is None:  # of one stream it is no message
            raise ValueError(f"frames must be a tensor [n, {self._streams.config.n_codebooks}], got NoneType")
        return self._streams.push([frames], [eos_frame], [last])[0]

    @property
    def signal_to_error(self) -> float:
        """As `Streams.signal_to_error`."""
        return self._streams.signal_to_error()


def check_frames(**values: tuple[object, int]) -> list[int]:
    """Numbers of frames or rows, each given with the least that it may be. ValueError: one that is none."""
    numbers = []
    for name, (value, least) in values.items():
        number = as_int(value)
        if number is None or number < least:
            raise ValueError(f"{name} must be an integer from {least}, got {value!r}")
        numbers.append(number)
    return numbers


def _compared(row: _Row, at: int, samples: Tensor) -> int:
    """How many final samples from `at` on were shown before; by how much those were off is added up."""
    hidden = max(row.sent - at, 0)
    kept = []
    for begin, shown in row.shown:
        final = samples[begin - at : begin - at + len(shown)]  # what lies before `at` was compared when it was made
        known, later = shown[: len(final)], shown[len(final) :]
        row.signal += float(final.double().square().sum())
        row.error += float((known.double() - final.double()).square().sum())
        if len(later):
            kept.append((begin + len(final), later))
    row.shown = kept
    return hidden
