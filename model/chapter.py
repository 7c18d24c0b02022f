"""A long text into a sound file, chunk by chunk, in a run that can be stopped and resumed.

Beside the file grows `<out>.chunks`: a line of JSON with the settings, then one for each chunk with its frames. A chunk
is final once its line is written. A resumed run decodes those frames again, so the file has the same bytes.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zonos2_triton._settings import local_path
from zonos2_triton.model.audio import RATES, SoundWriter, to_int16
from zonos2_triton.model.audio_stream import AudioStream
from zonos2_triton.model.backbone import Backbone
from zonos2_triton.model.files import whole_file
from zonos2_triton.model.long_speech import Chunk
from zonos2_triton.reference.numeric import isolated

SAMPLE = 256  # numbers of each tensor that tell one checkpoint from another


class ChunkFile:
    """The chunks of a long text that are finished, in a file beside its sound."""

    def __init__(self, out: str | Path) -> None:
        """out: the sound file."""
        path = local_path(out)
        self.path = path.with_name(f"{path.name}.chunks")
        self.settings: dict[str, Any] | None = None  # of an earlier run
        self._end = 0
        if self.path.exists():
            with self.path.open("rb") as file:
                line = file.readline()
            if line.endswith(b"\n"):
                self.settings, self._end = self._parsed(line), len(line)

    def begin(self, settings: dict[str, Any]) -> Iterator[Chunk]:
        """The chunks of an earlier run, read one by one. ValueError: it had other settings."""
        if self.settings is None:
            self.path.write_text(json.dumps(settings) + "\n", encoding="utf-8")
            self._end = self.path.stat().st_size
            return iter(())
        stated = json.loads(json.dumps(settings))  # as they are after a round trip
        for name in sorted({*stated, *self.settings}):
            before, now = self.settings.get(name), stated.get(name)
            if before != now:
                raise ValueError(
                    f"{self.path} was made with other settings: {name} was {before!r}, is {now!r}; give the same ones, "
                    "or delete it to begin again"
                )
        return self._read()

    def append(self, chunk: Chunk) -> None:
        """Write a finished chunk, on the disk when this returns."""
        entry = {"kept": chunk.kept, "ended": chunk.ended, "frames": chunk.codes.tolist()}
        with self.path.open("r+b") as file:
            file.truncate(self._end)  # a line that was not finished
            file.seek(self._end)
            file.write(json.dumps(entry).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
            self._end = file.tell()

    def remove(self) -> None:
        """The sound is complete."""
        self.path.unlink(missing_ok=True)

    @isolated()
    def _read(self) -> Iterator[Chunk]:
        with self.path.open("rb") as file:
            file.seek(self._end)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                with suppress(ValueError):
                    entry = json.loads(line)
                    codes = torch.tensor(entry["frames"], dtype=torch.int64, device="cpu")
                    self._end += len(line)
                    yield Chunk(codes.reshape(len(codes), -1), entry["kept"], entry["ended"])
                    continue
                return

    def _parsed(self, line: bytes) -> dict[str, Any]:
        with suppress(ValueError):
            if isinstance(found := json.loads(line), dict):
                return found
        raise ValueError(f"{self.path} is no file of chunks; move it away, for the run needs that name")


def check_ending(out: str, ending: str, rate: int) -> None:
    """ValueError: a format that cannot be written chunk by chunk."""
    if ending in RATES and rate not in RATES[ending]:
        raise ValueError(f"a long text is written to .wav, .flac, .ogg or .mp3, got {out!r}")


@isolated()
def fingerprint(backbone: Backbone) -> str:
    """SHA-256 of the shapes and the first numbers of the weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(backbone.weights.items()):
        digest.update(f"{name} {list(tensor.shape)}".encode())
        digest.update(tensor.flatten()[:SAMPLE].cpu().double().numpy().tobytes())
    return digest.hexdigest()


def digest(content: bytes | Tensor | None) -> str | None:
    """SHA-256 of a text or an embedding."""
    if isinstance(content, Tensor):
        content = content.cpu().double().numpy().tobytes()
    return None if content is None else hashlib.sha256(content).hexdigest()


def write_sound(
    stream: AudioStream, out: str, ending: str, rate: int, comment: str, first: Callable[[], None]
) -> float:
    """Write a stream to a file that appears whole. first: called with the first samples. Returns the seconds."""
    with stream, whole_file(out) as part, SoundWriter(part, ending, rate, comment) as file:
        for samples in stream:
            first()
            file.write(to_int16(samples))
        if file.samples == 0:
            raise ValueError("the text made no sound: every chunk ended at once")
        return file.samples / rate
