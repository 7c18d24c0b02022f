"""Streams of the vocoder: delayed frames in, samples out, while a clip is being generated."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from zonos2_triton.model.backend import current
from zonos2_triton.model.vocoder_decoder import VocoderDecoder, checked_codes
from zonos2_triton.model.vocoder_schedule import NO_END, Schedule, plan_step
from zonos2_triton.model.vocoder_windows import Windows
from zonos2_triton.reference.delay import shear_up
from zonos2_triton.reference.numeric import isolated
from zonos2_triton.reference.scalars import as_int
from zonos2_triton.reference.vocoder import VocoderConfig


class _Clip:
    """The messages of a clip so far: its frames and its end."""

    def __init__(self, config: VocoderConfig, schedule: Schedule, name: str = "") -> None:
        """name: prefix of error messages."""
        self.config, self.schedule, self.name = config, schedule, name
        self.frames = torch.zeros(0, config.n_codebooks, dtype=torch.int64, device="cpu")
        self.dropped = 0  # earlier frames, not kept
        self.eos_frame: int | None = None
        self.closed = False

    def checked(self, frames: Tensor, eos_frame: int | None, last: bool, decoded: int) -> Tensor:
        """frames as int64. decoded: frames decoded so far. ValueError, TypeError: see `ExactStream.push`."""
        C = self.config.n_codebooks
        if self.closed:
            raise ValueError(f"{self.name}this stream was closed by last=True; open another")
        if not isinstance(frames, Tensor) or frames.ndim != 2 or frames.shape[1] != C:
            got = list(frames.shape) if isinstance(frames, Tensor) else type(frames).__name__
            raise ValueError(f"{self.name}frames must be a tensor [n, {C}], got {got}")
        frames = checked_codes(self.config, f"{self.name}frames", frames)
        self._check_end(eos_frame, self.received + len(frames), last, decoded)
        return frames

    def append(self, frames: Tensor, eos_frame: int | None, last: bool) -> None:
        """Add a message whose frames were `checked`."""
        self.frames = torch.cat([self.frames, frames.cpu()])
        self.eos_frame = self.eos_frame if eos_frame is None else int(eos_frame)
        self.closed = bool(last)

    @property
    def received(self) -> int:
        """Number of frames so far."""
        return self.dropped + len(self.frames)

    @property
    def length(self) -> int:
        """Frames of the clip, or LENGTH_UNKNOWN."""
        return self.schedule.length(self.received, NO_END if self.eos_frame is None else self.eos_frame, self.closed)

    @property
    def complete(self) -> int:
        """Frames whose last codebook has come."""
        return self.schedule.complete(self.received, self.length)

    @property
    def finished(self) -> bool:
        """Whether all frames of the audio are complete."""
        return bool(self.schedule.finished(self.complete, self.length, self.closed))

    def aligned(self, first: int, end: int) -> Tensor:
        """Aligned frames first .. end - 1, [n, 9]. Codes that never came are padding."""
        C, pad = self.config.n_codebooks, self.config.codebook_size + 1
        delayed = self.frames[first - self.dropped : end + C - 1 - self.dropped]
        missing = delayed.new_full((end - first + C - 1 - len(delayed), C), pad)
        return shear_up(torch.cat([delayed, missing]), pad)[: end - first]

    def drop(self, first: int) -> None:
        """Forget the frames before `first`."""
        count = min(max(first - self.dropped, 0), len(self.frames))
        self.frames, self.dropped = self.frames[count:], self.dropped + count

    def _check_end(self, eos_frame: int | None, received: int, last: bool, decoded: int) -> None:
        if eos_frame is not None and self.eos_frame not in (None, eos_frame):
            raise ValueError(f"{self.name}eos_frame was {self.eos_frame} in an earlier message, got {eos_frame!r}")
        number = as_int(eos_frame)
        if eos_frame is not None and (number is None or number < decoded):
            raise ValueError(f"{self.name}eos_frame must be at least {decoded}, which are decoded, got {eos_frame!r}")
        end = self.eos_frame if eos_frame is None else eos_frame
        if last and end is not None and end > received:
            raise ValueError(f"{self.name}eos_frame must be at most the {received} frames that were pushed, got {end}")


class _Stream:
    """A stream of one clip that decodes whole frames."""

    def __init__(self, config: VocoderConfig) -> None:
        self.clip = _Clip(config, Schedule(config.n_codebooks, right_context=0))
        self.decoded = 0  # frames whose samples have been computed

    @isolated()
    def push(self, frames: Tensor, eos_frame: int | None = None, last: bool = False) -> Tensor:
        """As `ExactStream.push`."""
        frames = self.clip.checked(frames, eos_frame, last, self.decoded)
        self.clip.append(frames, eos_frame, last)
        return self._advance()

    def _advance(self) -> Tensor:
        """Samples that have become final."""
        raise NotImplementedError


class WindowStream(_Stream):
    """Emits a window of the reference as soon as the frames that it needs are complete."""

    def __init__(self, windows: Windows) -> None:
        super().__init__(windows.config)
        self.windows, self.emitted = windows, 0

    def _advance(self) -> Tensor:
        finished = self.clip.finished
        total = self.clip.length if finished else self.clip.complete
        ready = [torch.zeros(0, dtype=torch.float32, device=self.windows.device)]
        while True:
            window = self.windows.at(self.emitted)
            if window.start >= total or (not finished and window.end > total):
                self.decoded = min(window.start, self.clip.length)
                self.clip.drop(window.first)
                return torch.cat(ready)
            frames = self.clip.aligned(window.first, min(window.end, total))
            ready.append(self.windows.decode(window, frames, total))
            self.emitted += 1


class OverlapStream(_Stream):
    """The cross-fade of the official engine: a chunk decodes the last frames of the previous one again, and fades."""

    def __init__(
        self, config: VocoderConfig, device: torch.device, decode: Callable[[Tensor], Tensor], overlap: int, chunk: int
    ) -> None:
        """decode: aligned codes [9, T] -> their samples."""
        super().__init__(config)
        self.overlap, self.chunk = check_counts(overlap=(overlap, 0), chunk=(chunk, 1))
        self.hop, self.decode = config.hop, decode
        self.tail = torch.zeros(0, dtype=torch.float32, device=device)  # withheld, to be faded into the next chunk

    def _advance(self) -> Tensor:
        nothing, complete, closed = self.tail[:0], self.clip.complete, self.clip.closed
        if not closed and complete - self.decoded < self.chunk:
            return nothing
        if closed and complete <= self.decoded and len(self.tail) == 0:
            return nothing  # the official engine emits nothing for a clip without a complete frame
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


class _Slot(_Clip):
    """The clip of a slot of `Streams`, with its progress."""

    def __init__(self, config: VocoderConfig, schedule: Schedule, name: str = "") -> None:
        super().__init__(config, schedule, name)
        self.done = 0  # frames decoded, those behind the end included
        self.target = 0  # next value of `done`
        self.emitted = 0  # samples
        self.previews: list[tuple[int, Tensor]] = []  # emitted before they were final: (first sample, samples)
        self.signal = self.error = 0.0  # energies of the previews

    def append(self, frames: Tensor, eos_frame: int | None, last: bool) -> None:
        super().append(frames, eos_frame, last)
        begun = self.emitted > 0
        self.target = self.schedule.target(self.done, self.complete, self.length, self.closed, begun)

    def emit_final(self, begin: int, samples: Tensor) -> Tensor:
        """Emit the final samples of a step, from `begin` on, that were not emitted before; compare the previews."""
        kept = []
        for first, preview in self.previews:
            final = samples[first - begin : first - begin + len(preview)]  # samples before `begin` are compared already
            known, later = preview[: len(final)], preview[len(final) :]
            self.signal += float(final.double().square().sum())
            self.error += float((known.double() - final.double()).square().sum())
            if len(later):
                kept.append((first + len(final), later))
        self.previews = kept
        new = samples[max(self.emitted - begin, 0) :]
        self.emitted += len(new)
        return new

    def emit_preview(self, begin: int, samples: Tensor) -> Tensor:
        """Emit samples of a preview, from `begin` on, as far as lookahead allows."""
        hop, least = self.config.hop, self.config.samples(self.done)  # samples of a clip that ended here
        end = min((self.done - self.schedule.lookahead) * hop, least, begin + len(samples))
        new = samples[self.emitted - begin : max(end, self.emitted) - begin]
        if len(new):
            self.previews.append((self.emitted, new))
            self.emitted += len(new)
        return new


class Streams:
    """Exact streams of several clips, which one chain of launches a step advances together.

    The samples of a slot do not depend on the others, bit for bit.
    """

    def __init__(
        self, decoder: VocoderDecoder, batch_size: int, lookahead: int | None, chunk: int, first_chunk: int
    ) -> None:
        self.decoder, self.config, self.device = decoder, decoder.config, decoder.like.device
        right_context, C = decoder.right_context, decoder.config.n_codebooks
        counts = {"batch_size": (batch_size, 1), "chunk": (chunk, 1), "first_chunk": (first_chunk, 1)}
        ahead = right_context if lookahead is None else lookahead
        batch_size, chunk, first_chunk, ahead = check_counts(**counts, lookahead=(ahead, 0))
        lookahead = min(ahead, right_context)
        self.schedule = Schedule(C, right_context, lookahead, chunk, first_chunk)
        self.slots = [self._slot(i, batch_size) for i in range(batch_size)]
        self.frames = max(chunk, lookahead + first_chunk, right_context)  # of a step, at most
        self._rings = decoder.rings(batch_size, self.frames)
        self._codes = torch.zeros(batch_size, self.frames + C - 1, C, dtype=torch.int32, device="cpu")

    @isolated()
    def push(
        self,
        frames: Sequence[Tensor | None],
        eos_frames: Sequence[int | None] | None = None,
        last: Sequence[bool] | None = None,
    ) -> list[Tensor]:
        """A message for each slot, as `ExactStream.push` takes it, or None for nothing new -> the samples of each slot.

        ValueError, TypeError: another number of messages than slots, or a wrong one. All slots are then unchanged.
        """
        count = len(self.slots)
        eos_frames = [None] * count if eos_frames is None else eos_frames
        last = [False] * count if last is None else last
        for name, given in (("frames", frames), ("eos_frames", eos_frames), ("last", last)):
            if len(given) != count:
                raise ValueError(f"{name} must hold one entry for each of the {count} slots, got {len(given)}")
        none = torch.zeros(0, self.config.n_codebooks, dtype=torch.int64, device="cpu")
        messages = [
            None if new is None and eos is None and not end else (none if new is None else new, eos, end)
            for new, eos, end in zip(frames, eos_frames, last, strict=True)
        ]
        checked = [
            message and (slot.checked(*message, decoded=min(slot.done, slot.length)), *message[1:])
            for slot, message in zip(self.slots, messages, strict=True)
        ]
        for slot, message in zip(self.slots, checked, strict=True):
            if message:
                slot.append(*message)
        return self._advance()

    def restart(self, slot: int) -> None:
        """Begin another clip in a slot. Samples of the last clip that were not emitted are lost."""
        index = as_int(slot)
        if index is None or not 0 <= index < len(self.slots):
            raise ValueError(f"slot must be in 0..{len(self.slots) - 1}, got {slot!r}")
        self.slots[index] = self._slot(index, len(self.slots))

    def signal_to_error(self, slot: int = 0) -> float:
        """Signal-to-error ratio in dB of samples that were emitted early and are final by now; inf: no error."""
        signal, error = self.slots[slot].signal, self.slots[slot].error
        return math.inf if error == 0 else 10 * math.log10(signal / error)

    def _slot(self, index: int, batch_size: int) -> _Slot:
        return _Slot(self.config, self.schedule, f"slot {index}: " if batch_size > 1 else "")

    def _advance(self) -> list[Tensor]:
        nothing = torch.zeros(0, dtype=torch.float32, device=self.device)
        ready = [[nothing] for _ in self.slots]
        moved = [slot.target > slot.done for slot in self.slots]
        while any(slot.target > slot.done for slot in self.slots):
            made = self._step([slot.target for slot in self.slots])
            for slot, parts, (count, begin, samples) in zip(self.slots, ready, made, strict=True):
                parts.append(slot.emit_final(begin, samples))
                slot.done += count
        previews = [self.schedule.preview(m, s.target, s.length) for m, s in zip(moved, self.slots, strict=True)]
        if any(previews):
            made = self._step([slot.done + more for slot, more in zip(self.slots, previews, strict=True)])
            for slot, parts, (count, begin, samples) in zip(self.slots, ready, made, strict=True):
                if count:
                    parts.append(slot.emit_preview(begin, samples))
        return [torch.cat(parts) for parts in ready]

    def _step(self, targets: list[int]) -> list[tuple[int, int, Tensor]]:
        """Decode a step of each slot towards its target -> (frames, first sample, samples) of each."""
        plan = []
        for i, (slot, target) in enumerate(zip(self.slots, targets, strict=True)):
            end = min(target, slot.done + self.frames)
            if end > slot.done:
                self._write(i, slot, min(end + self.config.n_codebooks - 1, slot.received))
            plan.append(plan_step(slot.done, target, self.frames, slot.length, slot.dropped, slot.closed))
        with current(self.device):
            step_meta = torch.tensor(plan, dtype=torch.int32, device=self.device)
            codes, most = self._codes.to(self.device), max(count for _, count, _, _ in plan)
            samples = self.decoder.step(self._rings, codes, step_meta, most, True).float()
        made = []
        for i, (done, count, length, _) in enumerate(plan):
            where, columns = self.decoder.finished(done, count, length)
            made.append((count, where.start, samples[i, columns]))
        return made

    def _write(self, i: int, slot: _Slot, end: int) -> None:
        """Move frames up to `end` of a slot into the ring of codes."""
        count = end - slot.dropped
        positions = slot.dropped + torch.arange(count, device="cpu")
        self._codes[i, positions % self._codes.shape[1]] = slot.frames[:count].int()
        slot.frames, slot.dropped = slot.frames[count:], slot.dropped + count


class ExactStream:
    """A stream of one clip. Its samples, joined, are `decode` of the aligned frames: on the kernels bit for bit."""

    def __init__(self, streams: Streams) -> None:
        """streams: of one slot."""
        self._streams = streams

    def push(self, frames: Tensor, eos_frame: int | None = None, last: bool = False) -> Tensor:
        """Delayed frames [n, 9], n >= 0 -> the samples that became final, fp32 [m], m >= 0.

        eos_frame  where the audio ends, from the message on that knows it
        last       the clip ends here: the rest is emitted and the stream closed

        ValueError: a code out of range, a frame after the end, or an eos_frame that changes or lies outside the clip.
        The stream is then unchanged.
        """
        if frames is None:  # None is a message of `Streams` only
            raise ValueError(f"frames must be a tensor [n, {self._streams.config.n_codebooks}], got NoneType")
        return self._streams.push([frames], [eos_frame], [last])[0]

    @property
    def signal_to_error(self) -> float:
        """As `Streams.signal_to_error`."""
        return self._streams.signal_to_error()


def check_counts(**values: tuple[object, int]) -> list[int]:
    """Arguments, each given with its least value, as int. ValueError: not an integer, or too small."""
    numbers = []
    for name, (value, least) in values.items():
        number = as_int(value)
        if number is None or number < least:
            raise ValueError(f"{name} must be an integer from {least}, got {value!r}")
        numbers.append(number)
    return numbers
