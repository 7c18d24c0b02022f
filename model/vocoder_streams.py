"""Delayed frames in, samples out, while clips are still being generated."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zonos2_triton.model.backend import current
from zonos2_triton.model.vocoder_decoder import Decoder
from zonos2_triton.reference.delay import shear_up
from zonos2_triton.reference.vocoder_layers import OPEN

if TYPE_CHECKING:
    from zonos2_triton.model.vocoder import Vocoder

Ends = tuple[int, int | None]  # frames that are complete; frames that there are, once no more will come


class _Clip:
    """What has been said about a clip: the frames so far, how many are complete, and where it ends."""

    def __init__(self, vocoder: "Vocoder", name: str = "") -> None:
        """name: of the clip among others, for errors."""
        self.vocoder = vocoder
        self.codebooks = vocoder.config.n_codebooks
        self.name = name
        self.frames = torch.zeros(0, self.codebooks, dtype=torch.int64)
        self.passed = 0  # frames before those, which nobody needs again
        self.eos_frame: int | None = None
        self.closed = False

    def checked(self, frames: Tensor, eos_frame: int | None, last: bool, decoded: int) -> Tensor:
        """frames as int64; decoded: how many are behind us. ValueError, TypeError: see `ExactStream.push`."""
        if self.closed:
            raise ValueError(f"{self.name}this stream was closed by last=True; open another")
        if not isinstance(frames, Tensor) or frames.ndim != 2 or frames.shape[1] != self.codebooks:
            got = list(frames.shape) if isinstance(frames, Tensor) else type(frames).__name__
            raise ValueError(f"{self.name}frames must be a tensor [n, {self.codebooks}], got {got}")
        frames = self.vocoder.checked_codes(f"{self.name}frames", frames)
        self._check_end(eos_frame, self.total + len(frames), last, decoded)
        return frames

    def take(self, frames: Tensor, eos_frame: int | None, last: bool) -> Ends:
        """Of frames that `checked` let pass."""
        self.frames = torch.cat([self.frames, frames.cpu()])
        self.eos_frame = self.eos_frame if eos_frame is None else eos_frame
        self.closed = last
        total = self.total
        end = total if self.eos_frame is None else min(total, self.eos_frame)
        complete = max(min(total - self.codebooks + 1, end), 0)  # frames whose last codebook has arrived
        return complete, end if last else None

    @property
    def total(self) -> int:
        """Frames that have come."""
        return self.passed + len(self.frames)

    def aligned(self, first: int, end: int) -> Tensor:
        """Aligned frames first .. end - 1, [n, 9]; codes that never came are padding."""
        delayed = self.frames[first : end + self.codebooks - 1]
        pad = self.vocoder.config.codebook_size + 1
        missing = delayed.new_full((end - first + self.codebooks - 1 - len(delayed), self.codebooks), pad)
        return shear_up(torch.cat([delayed, missing]), pad)[: end - first]

    def _check_end(self, eos_frame: int | None, total: int, last: bool, decoded: int) -> None:
        if eos_frame is not None:
            if self.eos_frame not in (None, eos_frame):
                raise ValueError(
                    f"{self.name}eos_frame was {self.eos_frame} in an earlier message, got {eos_frame!r}"
                )  # fmt: skip
            if isinstance(eos_frame, bool) or not isinstance(eos_frame, int) or eos_frame < decoded:
                raise ValueError(
                    f"{self.name}eos_frame must be at least {decoded}, which are decoded, got {eos_frame!r}"
                )  # fmt: skip
        end = self.eos_frame if eos_frame is None else eos_frame
        if last and end is not None and end > total:
            raise ValueError(
                f"{self.name}eos_frame must be at most the {total} frames that were pushed, got {end}"
            )  # fmt: skip


class _Stream:
    """A stream of one clip that decodes it by itself."""

    def __init__(self, vocoder: "Vocoder") -> None:
        self.vocoder, self.clip = vocoder, _Clip(vocoder)

    def push(self, frames: Tensor, eos_frame: int | None = None, last: bool = False) -> Tensor:
        """As `ExactStream.push`."""
        frames = self.clip.checked(frames, eos_frame, last, self._decoded())
        return self._advance(*self.clip.take(frames, eos_frame, last))

    def _advance(self, complete: int, end: int | None) -> Tensor:
        """The samples that are final now that so many frames are complete; end: how many there are, if it is over."""
        raise NotImplementedError

    def _decoded(self) -> int:
        """Frames whose samples have been computed."""
        raise NotImplementedError


class WindowStream(_Stream):
    """Emits each window of the reference as soon as the frames that it is computed from are complete."""

    def __init__(self, vocoder: "Vocoder") -> None:
        super().__init__(vocoder)
        self.windows = 0  # emitted

    def _advance(self, complete: int, end: int | None) -> Tensor:
        if complete == self.clip.eos_frame:
            end = complete  # the frames that are still to come are no part of the audio
        total = complete if end is None else end
        ready = [torch.zeros(0, dtype=torch.float32, device=self.vocoder.device)]
        while True:
            window = self.vocoder.window(self.windows)
            if window.start >= total or (end is None and window.end > total):
                return torch.cat(ready)
            frames = self.clip.aligned(window.first, min(window.end, total))
            ready.append(self.vocoder.decode_window(window, frames, total))
            self.windows += 1

    def _decoded(self) -> int:
        frames = self.vocoder.window(self.windows).start
        return frames if self.clip.eos_frame is None else min(frames, self.clip.eos_frame)


class OverlapStream(_Stream):
    """The official engine's cross-fade: a chunk decodes the last frames of the one before again and fades them over."""

    def __init__(self, vocoder: "Vocoder", overlap: int, chunk: int) -> None:
        super().__init__(vocoder)
        check_frames(overlap=(overlap, 0), chunk=(chunk, 1))
        self.overlap, self.chunk = overlap, chunk
        self.decoded = 0
        self.tail = torch.zeros(
            0, dtype=torch.float32, device=vocoder.device
        )  # withheld, to be faded into the next chunk

    def _decoded(self) -> int:
        return self.decoded

    def _advance(self, complete: int, end: int | None) -> Tensor:
        nothing = self.tail[:0]
        if end is None and complete - self.decoded < self.chunk:
            return nothing
        if end is not None and complete <= self.decoded and len(self.tail) == 0:
            return nothing  # the official engine is silent about a clip none of whose frames was ever complete
        total = complete if end is None else end
        if total <= self.decoded:
            ready, self.tail = self.tail, nothing
            return ready
        first = max(self.decoded - self.overlap, 0)
        audio = self.vocoder.decode(self.clip.aligned(first, total).T[None])[0]
        n = min(len(self.tail), (self.decoded - first) * self.vocoder.config.hop)
        fade = 0.5 * (1 - torch.cos(torch.linspace(0, torch.pi, n, dtype=torch.float32, device=audio.device)))
        audio = torch.cat([(1 - fade) * self.tail[:n] + fade * audio[:n], audio[n:]])
        self.decoded = total
        kept = min(self.overlap * self.vocoder.config.hop, len(audio)) if end is None else 0
        ready, self.tail = audio.tensor_split([len(audio) - kept])
        return ready


class _Row(_Clip):
    """A clip on its way through the decoder."""

    def __init__(self, vocoder: "Vocoder", name: str = "") -> None:
        super().__init__(vocoder, name)
        self.done = 0  # frames that went through the decoder, those behind the end included
        self.goal = 0  # what `done` is to become
        self.length = OPEN
        self.sent = 0  # samples that the caller has
        self.shown: list[tuple[int, Tensor]] = []  # those of them that were not final, each from a sample on
        self.signal = self.error = 0.0  # energies of what was shown

    def plan(self, complete: int, end: int | None, lookahead: int, chunk: int, first_chunk: int, behind: int) -> None:
        """Set how far to go. behind: frames that the last samples wait for."""
        if complete == self.eos_frame:
            end = complete  # the frames that are still to come are no part of the audio
        if self.eos_frame is not None or end is not None:
            self.length = end if self.eos_frame is None and end is not None else self.eos_frame  # type: ignore[assignment]
        if end is not None:
            self.goal = end + behind if end else 0
        elif complete - self.done >= chunk if self.sent else complete >= lookahead + first_chunk:
            self.goal = complete


class Streams:
    """Exact streams of several clips that advance together: one chain of launches a step, whoever has something to do.

    What a row emits depends on itself alone, bit for bit.
    """

    def __init__(
        self, decoder: Decoder, vocoder: "Vocoder", rows: int, lookahead: int | None, chunk: int, first_chunk: int
    ) -> None:
        check_frames(rows=(rows, 1), chunk=(chunk, 1), first_chunk=(first_chunk, 1))
        if lookahead is not None:
            check_frames(lookahead=(lookahead, 0))
        self.decoder, self.vocoder = decoder, vocoder
        self.exact = decoder.lookahead
        self.lookahead = self.exact if lookahead is None else min(lookahead, self.exact)
        self.chunk, self.first_chunk = chunk, first_chunk
        self.rows = [self._row(i, rows) for i in range(rows)]
        self.frames = max(chunk, self.lookahead + first_chunk, self.exact)  # of a step, at most
        config = vocoder.config
        self._rings = decoder.rings(rows, self.frames)
        self._codes = torch.zeros(rows, self.frames + config.n_codebooks - 1, config.n_codebooks, dtype=torch.int32)

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
                ends = row.take(*message)
                row.plan(*ends, self.lookahead, self.chunk, self.first_chunk, self.exact)
        return self._advance()

    def restart(self, row: int) -> None:
        """Row `row` begins another clip; what has not been emitted of the one before is lost."""
        if isinstance(row, bool) or not isinstance(row, int) or not 0 <= row < len(self.rows):
            raise ValueError(f"row must be in 0..{len(self.rows) - 1}, got {row!r}")
        self.rows[row] = self._row(row, len(self.rows))

    def signal_to_error(self, row: int = 0) -> float:
        """dB, of the samples that were emitted before they were final and are known by now; inf: none was off."""
        energies = self.rows[row].signal, self.rows[row].error
        return math.inf if energies[1] == 0 else 10 * math.log10(energies[0] / energies[1])

    def _row(self, index: int, rows: int) -> _Row:
        return _Row(self.vocoder, f"row {index}: " if rows > 1 else "")

    def _empty(self) -> Tensor:
        return torch.zeros(0, self.vocoder.config.n_codebooks, dtype=torch.int64)

    @torch.no_grad()
    def _advance(self) -> list[Tensor]:
        ready: list[list[Tensor]] = [[] for _ in self.rows]
        moved = [row.goal > row.done for row in self.rows]
        while any(counts := [min(row.goal - row.done, self.frames) for row in self.rows]):
            for row, out, (at, samples) in zip(self.rows, ready, self._step(counts), strict=True):
                if hidden := _compared(row, at, samples):
                    samples = samples[hidden:]
                out.append(samples)
                row.sent += len(samples)
            for row, count in zip(self.rows, counts, strict=True):
                row.done += count
        ahead = self.exact - self.lookahead
        if ahead and any(
            counts := [ahead * (m and row.goal <= row.length) for m, row in zip(moved, self.rows, strict=True)]
        ):
            config = self.vocoder.config
            for row, out, (at, samples), count in zip(self.rows, ready, self._step(counts), counts, strict=True):
                least = config.samples(row.done)  # that the clip has, should it end here
                end = min((row.done - self.lookahead) * config.hop, least, at + len(samples))
                if count and end > row.sent:
                    row.shown.append((row.sent, samples[row.sent - at : end - at]))
                    out.append(row.shown[-1][1])
                    row.sent = end
        nothing = torch.zeros(0, dtype=torch.float32, device=self.vocoder.device)
        return [torch.cat([nothing, *parts]) for parts in ready]

    def _step(self, counts: list[int]) -> list[tuple[int, Tensor]]:
        """So many frames of each row through the decoder: its samples, and where they begin."""
        spans = []
        for b, (row, count) in enumerate(zip(self.rows, counts, strict=True)):
            if count:
                self._write(b, row, min(row.done + count + row.codebooks - 1, row.total))
            known = ~row.passed if row.closed else row.passed
            spans.append((row.done, count, row.length, known))
        device, frames = self.vocoder.device, max(counts)
        with current(device):
            samples = self.decoder.step(
                self._rings, self._codes.to(device), torch.tensor(spans, dtype=torch.int32, device=device), frames, True
            ).float()
        found = []
        for b, (done, count, length, _) in enumerate(spans):
            where, columns = self.decoder.finished(done, count, length)
            found.append((where.start, samples[b, columns]))
        return found

    def _write(self, b: int, row: _Row, end: int) -> None:
        """Frames up to `end` into the ring of codes; what has passed into it is not kept besides."""
        count = end - row.passed
        at = row.passed + torch.arange(count)
        self._codes[b, at % self._codes.shape[1]] = row.frames[:count].int()
        row.frames, row.passed = row.frames[count:], row.passed + count


class ExactStream:
    """One clip: what it emits, joined, is `decode` of the aligned frames, bit for bit, however they come."""

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
            raise ValueError(f"frames must be a tensor [n, {self._streams.vocoder.config.n_codebooks}], got NoneType")
        return self._streams.push([frames], [eos_frame], [last])[0]

    @property
    def signal_to_error(self) -> float:
        """As `Streams.signal_to_error`."""
        return self._streams.signal_to_error()


def check_frames(**values: tuple[object, int]) -> None:
    """ValueError: a number of frames or rows, with the least it may be, that is none."""
    for name, (value, least) in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be an integer from {least}, got {value!r}")


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
