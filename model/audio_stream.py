"""The sound of a text as it is made."""

from collections.abc import Iterator

from torch import Tensor

from zonos2_triton.model.long_speech import LongSpeech
from zonos2_triton.model.runtime.stream import Stream


class AudioStream(Iterator[Tensor]):
    """Iterator of fp32 chunks [m] of one text, on the CPU. Read it to the end or close it, for example by `with`."""

    def __init__(self, chunks: Iterator[Tensor], frames: Stream | LongSpeech) -> None:
        self._chunks, self._frames = chunks, frames

    def __next__(self) -> Tensor:
        return next(self._chunks)

    @property
    def ended(self) -> str | None:
        """Why the audio ended, once all is read: "end_of_audio", or "max_frames" if it was cut off."""
        return self._frames.ended

    def close(self) -> None:
        """Cancel the rest."""
        self._frames.close()

    def __enter__(self) -> "AudioStream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
