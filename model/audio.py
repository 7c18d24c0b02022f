"""Audio files: reading and writing."""

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zonos2_triton._settings import local_path
from zonos2_triton.model.files import whole_file
from zonos2_triton.reference.mel import resample
from zonos2_triton.reference.numeric import isolated
from zonos2_triton.reference.scalars import as_int

HIGHEST_RATE = 192_000  # Hz; libsndfile's encoders fail above it
LONGEST, MOST_CHANNELS = 600, 32  # limits of a recording: seconds, channels
MOST_BYTES = 1 << 30  # read from a file or a pipe
MOST_PADDING = 2304  # samples at the end of an .mp3 beyond the length that it states
BLOCK = 1 << 16  # samples; libsndfile crashes when it writes millions at once to .ogg
FORMATS = {".wav": ("WAV", "PCM_16"), ".flac": ("FLAC", "PCM_16"), ".ogg": ("OGG", "VORBIS")}
FORMATS |= {".opus": ("OGG", "OPUS"), ".mp3": ("MP3", "MPEG_LAYER_III")}
# Sample rates of a format; other rates are resampled to the next higher one.
RATES: dict[str, tuple[int, ...]] = {".opus": (8000, 12_000, 16_000, 24_000, 48_000)}
RATES |= {".mp3": (8000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)}
NEVER_EMPTY = (".flac", ".opus", ".mp3")  # an empty one is a file that libsndfile cannot read


@dataclass(frozen=True)
class Audio:
    """One channel of sound: samples fp32 [N], nominally in -1..1."""

    samples: Tensor
    sample_rate: int
    comment: str = ""  # written to the file: that the speech is synthetic, and the model
    ended: str | None = None  # "end_of_audio", or "max_frames" if it was cut off

    @property
    def seconds(self) -> float:
        """Duration."""
        return len(self.samples) / self.sample_rate

    def save(self, path: str | Path) -> None:
        """Write 16-bit .wav or .flac, or .ogg, .opus, .mp3. Samples beyond -1..1 are clipped, never wrapped.

        .opus and .mp3 accept some rates only. Others are resampled to the next higher one: 44.1 kHz to 48 for .opus.
        The file appears whole or not at all. ValueError: an unknown ending, or samples that are not finite. OSError:
        the path cannot be written.
        """
        ending = sound_ending(path)
        with whole_file(path) as part:
            write_audio(part, ending, self)


def sound_ending(path: str | Path) -> str:
    """The key of FORMATS that a file name ends in. ValueError: none, or one that this libsndfile lacks."""
    import soundfile  # loads a shared library: not at import

    ending = Path(path).suffix.lower()
    kinds, codings = soundfile.available_formats(), soundfile.available_subtypes
    known = [e for e, (kind, coding) in FORMATS.items() if kind in kinds and coding in codings(kind)]
    if ending not in known:
        lacking = f"libsndfile {soundfile.__libsndfile_version__} writes no {ending}, a newer soundfile may; "
        hint = lacking if ending in FORMATS else ""
        raise ValueError(f"{hint}a sound file must end in {', '.join(known)}, got {str(path)!r}")
    return ending


def write_audio(part: Path, ending: str, audio: Audio) -> None:
    """Write to `part`, whose name does not tell the format. ending: a key of FORMATS."""
    samples, rate = to_int16(audio.samples), as_int(audio.sample_rate)
    if rate is None or not 1 <= rate <= HIGHEST_RATE:
        raise ValueError(f"sample_rate must be a whole number of Hz in 1..{HIGHEST_RATE}, got {audio.sample_rate!r}")
    if ending in NEVER_EMPTY and len(samples) == 0:
        raise ValueError(f"a {ending} file cannot hold an empty sound; save it as .wav")
    if ending in RATES and rate not in RATES[ending]:
        fitting = next((r for r in RATES[ending] if r > rate), RATES[ending][-1])
        samples, rate = to_int16(resample(audio.samples.detach().cpu().float(), rate, fitting)), fitting
    with SoundWriter(part, ending, rate, audio.comment) as file:
        file.write(samples)


class SoundWriter:
    """Writes a sound file block by block, so that the way in which samples come does not change it."""

    def __init__(self, part: Path, ending: str, rate: int, comment: str) -> None:
        """part: its name does not tell the format. ending: a key of FORMATS that takes `rate`."""
        import soundfile

        self.part, self.samples, self._errors = part, 0, soundfile.LibsndfileError
        kind, coding = FORMATS[ending]
        # libsndfile takes UTF-8, but marks the comment of .mp3 as Latin-1.
        self._comment = comment.encode("ascii" if ending == ".mp3" else "utf-8", "backslashreplace").decode()
        self._rest = torch.zeros(0, dtype=torch.int16, device="cpu")
        with self._named():
            self._file = soundfile.SoundFile(os.fsencode(part), "w", rate, 1, coding, format=kind)

    def write(self, samples: Tensor) -> None:
        """Add int16 [m], as `to_int16` makes them. OSError: they cannot be written."""
        if len(samples) and self.samples == 0 and self._comment:
            self._file.comment = self._comment  # of an empty file, libsndfile would state a wrong length with it
        self.samples += len(samples)
        joined = torch.cat([self._rest, samples])
        whole = len(joined) // BLOCK * BLOCK
        with self._named():
            for block in joined[:whole].split(BLOCK) if whole else ():
                self._file.write(block.numpy())
        self._rest = joined[whole:]

    def __enter__(self) -> "SoundWriter":
        return self

    def __exit__(self, failed: object, *_: object) -> None:
        import soundfile

        with self._named():
            if failed is None and len(self._rest):
                self._file.write(self._rest.numpy())
            self._file.close()
            if failed is not None:
                return
            written = soundfile.info(os.fsencode(self.part)).frames
        if written != self.samples:  # libsndfile does not always report a full disk
            lost = f"only {written} of {self.samples} samples were kept"
            raise OSError(f"cannot write the sound: {lost}; is the disk full?")

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except self._errors as error:
            raise OSError(f"cannot write the sound: {error}") from error


def to_int16(samples: Tensor) -> Tensor:
    """fp32 [m] -> int16, clipped and rounded to nearest. TypeError: not floats. ValueError: not [N], NaN or Inf."""
    if not samples.is_floating_point():
        raise TypeError(f"samples must be floating-point, nominally in -1..1, got {samples.dtype}")
    if samples.ndim != 1:
        raise ValueError(f"samples must be [N], one channel, got {list(samples.shape)}")
    if not bool(samples.isfinite().all()):
        raise ValueError("samples must be finite to be saved, got NaN or Inf")
    return (samples.detach().cpu().double().clamp(-1, 1) * 32767).round().to(torch.int16)


def wav_header(rate: int, samples: int | None = None) -> bytes:
    """The header of a 16-bit mono file. samples None: the length is not known and is given as the largest number."""
    size = 2**32 - 1 if samples is None else 2 * samples
    sizes = (1, 1, rate, 2 * rate, 2, 16)  # PCM, channels, Hz, bytes a second, bytes and bits of a sample
    whole = min(size + 36, 2**32 - 1)
    return struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", whole, b"WAVE", b"fmt ", 16, *sizes, b"data", size)


@isolated()
def read_audio(path: str | Path) -> tuple[Tensor, int]:
    """(fp32 [channels, N], Hz) of a file, a pipe or /dev/stdin, read to its end whatever length the header states.

    FileNotFoundError. ValueError: libsndfile cannot read it, it is longer than LONGEST, or it has more channels than
    MOST_CHANNELS.
    """
    import soundfile

    path = local_path(path)
    if not (path.is_file() or path.is_fifo() or path.is_char_device()):
        raise FileNotFoundError(f"{path} is not a file")
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES)
        found = _read(soundfile.SoundFile(BytesIO(unsized := _unsized(content))))
        if unsized != content:
            with suppress(soundfile.SoundFileError):
                stated = _read(soundfile.SoundFile(BytesIO(content)))
                if 0 <= found[0].shape[1] - stated[0].shape[1] <= MOST_PADDING:
                    found = stated
        if not found[0].numel() and (mended := _unfinished(content)):
            found = _read(soundfile.SoundFile(BytesIO(mended)))
    except (soundfile.SoundFileError, TypeError) as error:  # TypeError: a headerless format
        why = getattr(error, "error_string", error)
        raise ValueError(f"{path} is no sound file that can be read: {why}") from error
    except ValueError as error:
        raise ValueError(f"{path} {error}") from error
    return found


def _read(file: Any) -> tuple[Tensor, int]:
    file.seekable = lambda: False  # otherwise it seeks the end that the header states
    with file:
        if file.channels > MOST_CHANNELS:
            raise ValueError(f"has {file.channels} channels, a recording may have {MOST_CHANNELS}")
        blocks, left = [], LONGEST * min(max(file.samplerate, 1000), HIGHEST_RATE)  # the rate may be wrong
        while len(block := file.read(BLOCK, "float32", always_2d=True)):
            blocks.append(torch.from_numpy(block))
            left -= len(block)
            if left < 0:
                raise ValueError(f"lasts over {LONGEST} s, and half a minute shows a voice; cut it first")
        blocks.append(torch.zeros(0, file.channels, dtype=torch.float32, device="cpu"))  # there may be none
        return torch.cat(blocks).T.contiguous(), file.samplerate


def _unsized(content: bytes) -> bytes:
    """Remove the length that a FLAC or MP3 states, because libsndfile would stop there."""
    if content[:4] == b"fLaC":
        return content[:21] + bytes([content[21] & 0xF0]) + bytes(4) + content[26:]
    start = 0
    if content[:3] == b"ID3":
        start = 10 + sum(byte << shift for byte, shift in zip(content[6:10], (21, 14, 7, 0), strict=True))
    if content[start : start + 1] != b"\xff":
        return content
    tags = b"Xing", b"Info"
    if (at := max(content.find(tag, start, start + 64) for tag in tags)) < 0:
        content = _tag_frame(content) + content[start:]
        at = max(content.find(tag, 0, 64) for tag in tags)
    if content[at + 7] & 1:  # it states the number of frames: libsndfile would believe 0
        return content[: at + 8] + b"\x7f\xff\xff\xff" + content[at + 12 :]
    return content


def _tag_frame(content: bytes) -> bytes:
    """The header frame of an .mp3 like this one. Without its length libsndfile guesses by the bitrate."""
    import soundfile

    like, made = soundfile.info(BytesIO(content)), BytesIO()
    silence = torch.zeros(1, like.channels, dtype=torch.float32, device="cpu").numpy()
    soundfile.write(made, silence, like.samplerate, format="MP3")
    frames = made.getvalue()
    return frames[: frames.index(frames[:2], 2)]


def _unfinished(content: bytes) -> bytes:
    """A .wav whose size was never written, as programs write it to a pipe, with the largest size; else nothing."""
    data = content.find(b"data", 12)
    if content[:4] != b"RIFF" or data < 0 or int.from_bytes(content[4:8], "little") == len(content) - 8:
        return b""
    most = b"\xff" * 4
    return content[:4] + most + content[8 : data + 4] + most + content[data + 8 :]
