"""A long text on a backbone: one request per chunk, each continuing the frames of the chunks before it.

Memory holds the frames of the window, not those of the text.
"""

import warnings
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from zonos2_triton.model.backbone import Backbone
from zonos2_triton.model.longform import LongForm, build_continuation_prompt, chunk_quality, kept_frames
from zonos2_triton.model.prompt import PromptOptions, build_prompt
from zonos2_triton.model.runtime.request import Frame, fresh_seed
from zonos2_triton.model.runtime.stream import Progress
from zonos2_triton.reference.sampling import Sampling
from zonos2_triton.reference.sampling_params import Default

FRAMES_PER_BYTE = 16  # beyond the default max_frames; speech of 15 letters a second takes 6


class Chunk(NamedTuple):
    """A chunk that is finished."""

    codes: Tensor  # [n, 9] int64, still delayed; behind the audio of the last chunk come the codes that end it
    kept: int  # frames of audio, the first of codes
    ended: str


class Piece(NamedTuple):
    """Frames of the joined text that are final."""

    codes: Tensor  # [n, 9] int64, still delayed
    eos_frame: int | None = None  # of the whole text, from the piece on that shows it
    last: bool = False
    chunk: Chunk | None = None  # the one that these frames finish
    resumed: bool = False  # the chunk is one of an earlier run


class LongSpeech(Iterator[Piece]):
    """The joined frames of all chunks, which are one clip for a vocoder: un-sheared and decoded once."""

    def __init__(
        self,
        backbone: Backbone,
        chunks: Sequence[str],
        sampling: Sampling,
        speaker: Tensor | None,
        prompt: PromptOptions,
        form: LongForm,
        progress: Progress | None = None,
        done: Iterable[Chunk] = (),
        name: str = "text",
    ) -> None:
        """chunks: at least one. sampling: of every chunk, its seed too. done: chunks that are finished already.

        ValueError: the prompt of a chunk is too long for the model, before any work or when its context is known.
        """
        self.backbone, self.chunks, self.form, self.name = backbone, chunks, form, name
        self.sampling = replace(sampling, seed=fresh_seed(sampling))
        self.ended: str | None = None  # once all is read: "end_of_audio", or "max_frames" if a chunk was cut off
        self._speaker, self._prompt, self._progress, self._done = speaker, prompt, progress, iter(done)
        # Without buckets there are no tokens, as everywhere in this package.
        given = prompt.get("quality")
        self._quality = chunk_quality(backbone.config, {} if given is None else given)
        self._context: dict[int, Tensor] = {}
        longest = max(len(self._ids(i, {})) for i in range(len(chunks)))
        self._room = (backbone.max_frames_after(longest)) // (1 + max(map(len, self._windows())))
        if self._room < 1:
            raise ValueError(f"{name} is too long for a window of {form.window_chunks} chunks; use smaller chunks")
        self._pieces = self._generate()

    def __next__(self) -> Piece:
        return next(self._pieces)

    def close(self) -> None:
        """Cancel the rest."""
        self._pieces.close()

    def _windows(self) -> Iterator[list[int]]:
        for i in range(len(self.chunks)):
            yield self.form.context(i)

    def _generate(self) -> Generator[Piece, None, None]:
        total, cut = 0, False
        for i, context in enumerate(self._windows()):
            last = i + 1 == len(self.chunks)
            if (chunk := next(self._done, None)) is not None:
                end = total + chunk.kept if last and chunk.ended == "end_of_audio" else None
                yield Piece(self._sent(chunk, last), self._told(end), last, chunk, resumed=True)
            else:
                for piece in self._chunk(i, context, total, last):
                    chunk = piece.chunk
                    yield piece
                if chunk is None:
                    raise RuntimeError(f"{self.name}: chunk {i + 1} ended without its last frame")
            total, cut = total + chunk.kept, cut or chunk.ended == "max_frames"
            self._context[i] = chunk.codes[: chunk.kept]
            needed = set(self.form.context(i + 1))
            self._context = {j: codes for j, codes in self._context.items() if j in needed}
        self.ended = "max_frames" if cut else "end_of_audio"

    def _chunk(self, i: int, context: list[int], total: int, last: bool) -> Iterator[Piece]:
        """The frames of chunk i, behind `total` of the chunks before it."""
        ids = self._ids(i, {j: self._context[j] for j in context})
        frames: list[Frame] = []
        sent, trim = 0, 0 if last else self.form.trim
        # An end shows up to C - 1 frames after the last frame of audio.
        unsure = self.backbone.config.n_codebooks - 1 + trim
        with self.backbone.stream(ids, self._settings(i, ids), self._speaker) as stream:
            for frame in stream:
                frames.append(frame)
                if self._progress is not None:
                    self._progress(i, frame)
                if frame.last:
                    break
                certain = max(len(frames) - unsure, 0)
                if frame.eos_frame is not None:
                    certain = kept_frames(len(frames), frame.eos_frame, trim)
                if certain > sent:
                    yield Piece(torch.stack([own.codes for own in frames[sent:certain]]))
                    sent = certain
        chunk = self._finished(frames, trim, last)
        if chunk.ended == "max_frames" and not self.sampling.ignore_eos:
            where = f"{self.name}: chunk {i + 1} of {len(self.chunks)}"
            warnings.warn(f"{where} did not come to its end: it was cut off after {len(frames)} frames", stacklevel=2)
        end = total + chunk.kept if last and chunk.ended == "end_of_audio" else None
        yield Piece(self._sent(chunk, last)[sent:], self._told(end), last, chunk)

    def _finished(self, frames: list[Frame], trim: int, last: bool) -> Chunk:
        codes, eos = torch.stack([frame.codes for frame in frames]), frames[-1].eos_frame
        kept = kept_frames(len(frames), eos, trim)
        end = kept + self.backbone.config.n_codebooks - 1 if last else kept
        return Chunk(codes[:end].clone(), kept, frames[-1].ended or "")

    def _sent(self, chunk: Chunk, last: bool) -> Tensor:
        """The frames of a chunk for the vocoder. The official engine lacks the codes behind the last frame of audio."""
        return chunk.codes if last and self.form.split_mode != "official" else chunk.codes[: chunk.kept]

    def _told(self, end: int | None) -> int | None:
        return None if self.form.split_mode == "official" else end

    def _settings(self, i: int, ids: Tensor) -> Sampling:
        """Sampling of a chunk. max_frames is cut to what the context leaves; a default also leaves room for others."""
        own, most = self.sampling.max_frames, self.backbone.max_frames_after(len(ids))
        if isinstance(own, Default):
            most, own = min(most, self._room), own + FRAMES_PER_BYTE * len(self.chunks[i].encode())
        return replace(self.sampling, max_frames=max(min(own, most), 1))

    def _ids(self, i: int, context: dict[int, Tensor]) -> Tensor:
        """The prompt of chunk i. Without frames of context it is that of an ordinary text."""
        config, options = self.backbone.config, dict(self._prompt)
        options["quality"] = self._quality[i + 1 < len(self.chunks)]
        codes = [own for own in context.values() if len(own)]
        speaker = self._speaker is not None
        if codes:
            text = " ".join(self.chunks[j] for j in context)
            ids = build_continuation_prompt(config, text, self.chunks[i], torch.cat(codes), speaker, **options)  # type: ignore[arg-type]
        else:
            ids = build_prompt(config, self.chunks[i], speaker, **options)  # type: ignore[arg-type]
        if len(ids) >= config.max_seqlen:
            raise ValueError(
                f"{self.name}: the prompt of chunk {i + 1} has {len(ids)} tokens, the model takes "
                f"{config.max_seqlen - 1}: use fewer characters a chunk, fewer chunks a window, or fewer max_frames"
            )
        return ids
