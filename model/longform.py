"""A long text in chunks: how it is split, which chunks are context, and what a chunk's prompt is.

Source: the official engine, python/zonos2/tts/longform.py.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from zonos2_triton.model.conditioning import resolve_quality_buckets
from zonos2_triton.model.prompt import Quality, prompt_tokens
from zonos2_triton.reference.config import Zonos2Config
from zonos2_triton.reference.numeric import isolated
from zonos2_triton.reference.scalars import as_int

TRIM = 3  # frames that are dropped at the end of every chunk but the last
DEFAULT_QUALITY = {"trailing_silence_s": 3}  # of the official engine: 0.25 to 0.5 s
OFFICIAL_END = re.compile(r"(?<=[.!?…])[\"'”’)\]]*\s+|(?<=[。！？])")  # drops the quotes that it matches
SENTENCE_END = re.compile(r"[.!?…]+[\"'”’»)\]]*(?=\s)|[。！？]+[」』”’）】\"]*")


@dataclass(frozen=True)
class LongForm:
    """How a long text becomes speech.

    chunk_chars    most characters of a chunk; a longer word is a chunk of its own
    window_chunks  chunks that a chunk's prompt covers, itself included
    pin_anchor     the first chunk is context of every other
    split_mode     "word"; "sentence", which keeps quotes and the spacing of the text; "official": the official
                   sentences, which lose closing quotes, and the official end, which lacks the last codes
    trim           frames that are dropped at the end of every chunk but the last
    """

    chunk_chars: int = 150
    window_chunks: int = 2
    pin_anchor: bool = True
    split_mode: str = "word"
    trim: int = TRIM

    def __post_init__(self) -> None:
        for name, least in (("chunk_chars", 1), ("window_chunks", 1), ("trim", 0)):
            number = as_int(getattr(self, name))
            if number is None or number < least:
                raise ValueError(f"long_form_{name} must be an integer from {least}, got {getattr(self, name)!r}")
        if self.split_mode not in SPLITTERS:
            known = ", ".join(SPLITTERS)
            raise ValueError(f"long_form_split_mode must be one of {known}, got {self.split_mode!r}")

    def context(self, index: int) -> list[int]:
        """The chunks that are context of chunk `index`."""
        return windowed_context_indices(index, context_chunks=self.window_chunks - 1, pin_anchor=self.pin_anchor)


def split_text(text: str, max_chars: int = 150, mode: str = "word") -> list[str]:
    """The official chunks of at most max_chars characters, by "word" or by "sentence".

    ValueError: max_chars below 1, or another mode.
    """
    if as_int(max_chars) is None or max_chars < 1:
        raise ValueError(f"max_chars must be an integer from 1, got {max_chars!r}")
    if mode not in ("word", "sentence"):
        raise ValueError(f"mode must be 'word' or 'sentence', got {mode!r}")
    return _by_words(text, max_chars) if mode == "word" else _official_sentences(text, max_chars)


def long_form_chunks(
    text: str, long_form: bool | None = None, chunk_chars: int = 150, split_mode: str = "word"
) -> list[str] | None:
    """The chunks of a text, by a mode of `LongForm`; None: it is spoken the ordinary way.

    long_form  None: split a text of more than chunk_chars characters; True: split any; False: none. At most one chunk
               is spoken the ordinary way, with its text as it is.
    """
    form = LongForm(chunk_chars, split_mode=split_mode)
    if long_form is False or (long_form is None and len(text) <= chunk_chars):
        return None
    chunks = SPLITTERS[form.split_mode](text, chunk_chars)
    return chunks if len(chunks) > 1 else None


def windowed_context_indices(cur_index: int, *, context_chunks: int, pin_anchor: bool) -> list[int]:
    """The chunks in front of chunk cur_index that are its context: the last context_chunks, and the first if pinned."""
    if context_chunks < 0:
        raise ValueError(f"context_chunks must be at least 0, got {context_chunks}")
    first = max(cur_index - context_chunks, 0)
    return [0] * (pin_anchor and first > 0) + [*range(first, cur_index)]


def kept_frames(count: int, eos_frame: int | None, drop: int = 0) -> int:
    """How many of a chunk's `count` frames are kept: those before the end, less `drop`."""
    kept = count if eos_frame is None else min(max(eos_frame, 0), count)
    return max(kept - max(drop, 0), 0)


def trim_chunk_codes(frames: Any, eos_frame: int | None, *, drop_trailing_frames: int = 0) -> Any:
    """The frames of a chunk [F, C], a tensor or a list, that are audio and later context; still delayed."""
    return frames[: kept_frames(len(frames), eos_frame, drop_trailing_frames)]


@isolated()
def build_continuation_prompt(
    config: Zonos2Config,
    context_text: str,
    cur_text: str,
    context_codes: Tensor | Sequence[Sequence[int]],
    speaker: bool = False,
    clean_background: bool = False,
    accurate: bool = True,
    speaking_rate: int | None = None,
    quality: Quality = None,
) -> Tensor:
    """int32 [T, 10]: both texts, then the frames of the context as they were generated, without the final silence.

    context_codes [F, 9]: still delayed. Other arguments and errors as of `build_prompt`.
    """
    C = config.n_codebooks
    text = f"{context_text} {cur_text}"
    front = prompt_tokens(config, text, speaker, clean_background, accurate, speaking_rate, quality)
    codes = torch.as_tensor(context_codes, dtype=torch.int32, device="cpu").reshape(-1, C)
    column = torch.full((len(codes), 1), config.text_vocab, dtype=torch.int32, device="cpu")
    return torch.cat([front, torch.cat([codes, column], 1)])


def chunk_quality(config: Zonos2Config, quality: Quality) -> tuple[list[int | None], list[int | None]]:
    """Quality buckets of the last chunk, and of the others, which have no trailing silence.

    None: the official default, a trailing silence of 0.25 to 0.5 s.
    """
    features = config.quality_features
    if quality is None:
        quality = {name: bucket for name, bucket in DEFAULT_QUALITY.items() if name in features}
    last = resolve_quality_buckets(config, quality_buckets=quality) or []
    silent = zip(features, last, strict=True)
    return last, [None if name == "trailing_silence_s" else bucket for name, bucket in silent]


def _by_words(text: str, max_chars: int) -> list[str]:
    return _packed([(" ", word) for word in text.split()], max_chars)


def _packed(pieces: Sequence[tuple[str, str]], max_chars: int) -> list[str]:
    """Chunks of pieces (text before it, piece), as many as fit."""
    chunks: list[str] = []
    for before, piece in pieces:
        if chunks and len(chunks[-1]) + len(before) + len(piece) <= max_chars:
            chunks[-1] += before + piece
        else:
            chunks.append(piece)
    return chunks


def _sentence_chunks(sentences: Sequence[tuple[str, str]], max_chars: int) -> list[str]:
    """As `_packed`. A sentence that is too long is split by words, and nothing is added to its last words."""
    chunks: list[str] = []
    together: list[tuple[str, str]] = []
    for before, sentence in sentences:
        if len(sentence) <= max_chars:
            together.append((before, sentence))
            continue
        chunks += [*_packed(together, max_chars), *_by_words(sentence, max_chars)]
        together = []
    return chunks + _packed(together, max_chars)


def _official_sentences(text: str, max_chars: int) -> list[str]:
    pieces = [piece.strip() for piece in OFFICIAL_END.split(text)]
    return _sentence_chunks([(" ", piece) for piece in pieces if piece], max_chars)


def _sentences(text: str, max_chars: int) -> list[str]:
    """Sentences with their closing quotes; a space stands between two only where the text has one."""
    return _sentence_chunks([*_spans(text)], max_chars)


def _spans(text: str) -> Iterator[tuple[str, str]]:
    for start, end in pairwise([0, *(match.end() for match in SENTENCE_END.finditer(text)), len(text)]):
        if sentence := " ".join(text[start:end].split()):
            spaced = text[start].isspace() or (start > 0 and text[start - 1].isspace())
            yield " " if spaced else "", sentence


SPLITTERS: dict[str, Callable[[str, int], list[str]]] = {
    "word": _by_words,
    "sentence": _sentences,
    "official": _official_sentences,
}
