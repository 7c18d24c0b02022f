"""Delayed frames in, samples out, while the clip is still being generated."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zonos2_triton.reference.delay import shear_up

if TYPE_CHECKING:
    from zonos2_triton.model.vocoder import Vocoder


class _Stream:
    """What both kinds share: the frames so far, how many are complete, and where the clip ends."""

    def __init__(self, vocoder: "Vocoder") -> None:
        self.vocoder = vocoder
        self.codebooks = vocoder.config.n_codebooks
        self.frames = torch.zeros(0, self.codebooks, dtype=torch.int64)
        self.eos_frame: int | None = None
        self.closed = False

    def push(self, frames: Tensor, eos_frame: int | None = None, last: bool = False) -> Tensor:
        """frames [n, 9], delayed, n may be 0 -> the samples that became final, fp32 [m], m may be 0.

        eos_frame  where the audio ends, from the message on that knows it
        last       the clip ends here: the rest is emitted and the stream closed

        ValueError: a code out of range, a frame after the end, an eos_frame that moves or lies outside of the clip; the
        stream is then as it was before.
        """
        frames = self._checked(frames)
        total = len(self.frames) + len(frames)
        self._check_end(eos_frame, total, last)
        self.frames = torch.cat([self.frames, frames.cpu()])
        self.eos_frame = self.eos_frame if eos_frame is None else eos_frame
        self.closed = last
        end = total if self.eos_frame is None else min(total, self.eos_frame)
        complete = max(min(total - self.codebooks + 1, end), 0)  # frames whose last codebook has arrived
        return self._advance(complete, end if last else None)

    def _advance(self, complete: int, end: int | None) -> Tensor:
        """The samples that are final now that so many frames are complete; end: how many there are, if it is over."""
        raise NotImplementedError

    def _decoded(self) -> int:
        """Frames whose samples have been computed."""
        raise NotImplementedError

    def _aligned(self, first: int, end: int) -> Tensor:
        """Aligned frames first .. end - 1, [n, 9]; codes that never came are padding."""
        delayed = self.frames[first : end + self.codebooks - 1]
        pad = self.vocoder.config.codebook_size + 1
        missing = delayed.new_full((end - first + self.codebooks - 1 - len(delayed), self.codebooks), pad)
        return shear_up(torch.cat([delayed, missing]), pad)[: end - first]

    def _checked(self, frames: Tensor) -> Tensor:
        if self.closed:
            raise ValueError("this stream was closed by last=True; open another")
        if not isinstance(frames, Tensor) or frames.ndim != 2 or frames.shape[1] != self.codebooks:
            got = list(frames.shape) if isinstance(frames, Tensor) else type(frames).__name__
            raise ValueError(f"frames must be a tensor [n, {self.codebooks}], got {got}")
        return self.vocoder.checked_codes("frames", frames)

    def _check_end(self, eos_frame: int | None, total: int, last: bool) -> None:
        if eos_frame is not None:
            if self.eos_frame not in (None, eos_frame):
                raise ValueError(f"eos_frame was {self.eos_frame} in an earlier message, got {eos_frame!r}")
            if isinstance(eos_frame, bool) or not isinstance(eos_frame, int) or eos_frame < self._decoded():
                raise ValueError(f"eos_frame must be at least {self._decoded()}, which are decoded, got {eos_frame!r}")
        end = self.eos_frame if eos_frame is None else eos_frame
        if last and end is not None and end > total:
            raise ValueError(f"eos_frame must be at most the {total} frames that were pushed, got {end}")


class ExactStream(_Stream):
    """Emits each window of the vocoder as soon as the frames that it is computed from are complete."""

    def __init__(self, vocoder: "Vocoder") -> None:
        super().__init__(vocoder)
        self.windows = 0  # emitted

    def _advance(self, complete: int, end: int | None) -> Tensor:
        if complete == self.eos_frame:
            end = complete  # the frames that are still to come are no part of the audio
        total = complete if end is None else end
        ready = [torch.zeros(0, dtype=torch.float32, device=self.vocoder.device)]
        while True:
            window = self.vocoder.window(self.windows)
            if window.start >= total or (end is None and window.end > total):
                return torch.cat(ready)
            frames = self._aligned(window.first, min(window.end, total))
            ready.append(self.vocoder.decode_window(window, frames, total))
            self.windows += 1

    def _decoded(self) -> int:
        frames = self.vocoder.window(self.windows).start
        return frames if self.eos_frame is None else min(frames, self.eos_frame)


class OverlapStream(_Stream):
    """The official engine's cross-fade: a chunk decodes the last frames of the one before again and fades them over."""

    def __init__(self, vocoder: "Vocoder", overlap: int, chunk: int) -> None:
        super().__init__(vocoder)
        for name, value, least in (("overlap", overlap, 0), ("chunk", chunk, 1)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be an integer from {least}, got {value!r}")
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
        audio = self.vocoder.decode(self._aligned(first, total).T[None])[0]
        n = min(len(self.tail), (self.decoded - first) * self.vocoder.config.hop)
        fade = 0.5 * (1 - torch.cos(torch.linspace(0, torch.pi, n, dtype=torch.float32, device=audio.device)))
        audio = torch.cat([(1 - fade) * self.tail[:n] + fade * audio[:n], audio[n:]])
        self.decoded = total
        kept = min(self.overlap * self.vocoder.config.hop, len(audio)) if end is None else 0
        ready, self.tail = audio.tensor_split([len(audio) - kept])
        return ready
