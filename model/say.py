"""The command `say`: a text to an audio file."""

import json
import os
import re
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from zonos2_triton._settings import local_path
from zonos2_triton.model.audio import Audio, read_audio, sound_ending, to_int16, wav_header, write_audio
from zonos2_triton.model.chapter import ChunkFile, check_ending, digest, fingerprint, write_sound
from zonos2_triton.model.console import aside
from zonos2_triton.model.files import check_writable, whole_file
from zonos2_triton.model.long_speech import Chunk
from zonos2_triton.model.normalization import normalized
from zonos2_triton.model.pipeline import Voice, Zonos2
from zonos2_triton.model.plot import check_plotting, save_spectrogram
from zonos2_triton.model.runtime.request import Frame, fresh_seed
from zonos2_triton.model.runtime.scheduler import BatchingOptions
from zonos2_triton.model.speech_options import SpeechOptions
from zonos2_triton.model.threads import computing, threads_hint
from zonos2_triton.model.voice import is_voice, read_voice
from zonos2_triton.reference.sampling_params import Default, Sampling


@dataclass
class _Made:
    """Progress of a text."""

    started: float = field(default_factory=time.perf_counter)
    first_audio: float | None = None  # seconds
    frames: int = 0
    ended: str | None = None
    chunks: list[Tensor] = field(default_factory=lambda: [torch.zeros(0, dtype=torch.float32, device="cpu")])


def say(options: Namespace) -> int:
    """Run the command; options as `cli` parses them. Returns the exit status."""
    sampling = Sampling(**{field.name: getattr(options, field.name) for field in fields(Sampling)})
    sampling = replace(sampling, seed=fresh_seed(sampling))  # to be reported
    text = _text(options.text) if options.text_file is None else _text_file(options.text_file)
    prompt: SpeechOptions = {
        "speaking_rate": options.speaking_rate,
        "quality": _quality(options.quality) or None,
        "bytes_per_second": options.bytes_per_second,
        "speed": options.speed,
        "quality_values": _quality_values(options.quality_value) or None,
        "clean_background": options.clean_background,
        "accurate": not options.expressive,
        "long_form": options.text_file is not None,
        **{f"long_form_{name}": value for name, value in _given_long(options).items()},  # type: ignore[typeddict-item]
    }
    voice = _voice(options.speaker)  # fails before the model is loaded
    with ExitStack() as stack:
        stdout = stack.enter_context(aside())  # prints of a library are not the result
        sink = stack.enter_context(_sink(options.out, stdout))
        ending = _checked_outputs(options, sink)
        chunks = ChunkFile(options.out) if options.text_file is not None and sink is None else None
        if chunks is not None and options.seed is None and chunks.settings is not None:
            sampling = replace(sampling, seed=chunks.settings.get("seed"))
        where, parts = (options.device, options.dtype, options.backend), (options.vocoder, options.speaker_encoder)
        batching = BatchingOptions(max_batch_size=1)
        tts = Zonos2.load(options.model, *where, *parts, batching, options.vocoder_dtype, options.lora)
        if tts.notice:
            print(f"zonos2-triton: note: {tts.notice}", file=sys.stderr)
        default = torch.get_num_threads()
        threads = stack.enter_context(computing([*tts.backbone.weights.values(), *tts.vocoder.state.values()]))
        text = normalized(text, tts.normalizer, {"text_normalization": options.normalize, "language": options.language})
        prompt["text_normalization"] = False  # once
        asked, resumable = (text, voice, sampling), chunks if tts.count_chunks(text, **prompt) else None
        try:
            if resumable is not None:
                made, audio_s = _chapter(tts, asked, prompt, options.out, ending, resumable)
            else:
                made = _speak(tts, asked, prompt, sink, options)
        except BrokenPipeError:  # the reader may stop early
            return 0
        except KeyboardInterrupt:
            if sink is None and resumable is None:
                raise
            kept = "what was made is written"
            if resumable is not None:
                kept = f"the finished chunks are in {resumable.path}: the same command resumes"
            print(f"zonos2-triton: interrupted; {kept}", file=sys.stderr)
            return 130  # a shell's status after Ctrl-C
        if resumable is None:
            audio = Audio(torch.cat(made.chunks), tts.vocoder.config.sample_rate, tts.comment)
            audio_s = audio.seconds
            if not sink:
                _save(audio, options.out, ending)
        seconds = time.perf_counter() - made.started
        if options.spectrogram:
            _draw(audio, options.spectrogram, f"{Path(options.out).name}: {tts.comment}")
    report = _report(str(options.out), tts, made, audio_s, seconds) | {"seed": sampling.seed, "threads": threads}
    if threads != default and not options.json:
        print(f"zonos2-triton: note: {threads_hint(threads, default)}", file=sys.stderr)
    print(json.dumps(report) if options.json else _closing_line(report), file=sys.stderr if sink else None)
    return 0


def _checked_outputs(options: Namespace, sink: FileIO | None) -> str:
    """The ending of the audio file; "" for a sink. Fails before the model is loaded."""
    if options.raw and sink is None:
        raise ValueError(f"--raw is for --out -, got --out {options.out}")
    if options.spectrogram is not None:
        if options.text_file is not None:
            raise ValueError("--spectrogram is for a short text, got --text-file")
        check_plotting()
        if os.path.realpath(local_path(options.spectrogram)) == os.path.realpath(local_path(options.out)):
            raise ValueError(f"--spectrogram and --out must be two files, got {options.out!r} for both")
        if not options.spectrogram.lower().endswith(".png"):
            raise ValueError(f"--spectrogram must end in .png, got {options.spectrogram!r}")
    ending = "" if sink else sound_ending(options.out)
    for path in (options.spectrogram, None if sink else options.out):
        if path is not None:
            check_writable(path)
    return ending


def _speak(
    tts: Zonos2, asked: tuple[str, Voice, Sampling], prompt: SpeechOptions, sink: FileIO | None, options: Namespace
) -> _Made:
    """Generate, and write chunks to the sink as they are made."""
    made = _Made()
    total = None if isinstance(asked[2].max_frames, Default) else asked[2].clamped().max_frames
    # disable=None: silent when standard error is no terminal
    with tqdm(total=total, unit="frame", disable=None, leave=False) as bar:

        def progress(_: int, frame: Frame) -> None:
            made.frames, made.ended = made.frames + 1, frame.ended
            bar.update()

        chunks: Iterable[Tensor]
        if options.stream or sink:
            chunks = tts.stream(*asked, progress, **prompt)
        else:
            chunks = [tts.speak(*asked, progress, **prompt).samples]
        if sink and not options.raw:
            _send(sink, wav_header(tts.vocoder.config.sample_rate))
        for chunk in chunks:
            if sink:
                _send(sink, to_int16(chunk).numpy().astype("<i2").tobytes())
            if made.first_audio is None:
                made.first_audio = time.perf_counter() - made.started
                if options.stream:
                    bar.write(f"zonos2-triton: note: first audio after {made.first_audio:.2f} s", file=sys.stderr)
            made.chunks.append(chunk)
    if sink and not options.raw:
        _state_length(sink, tts.vocoder.config.sample_rate, sum(map(len, made.chunks)))
    return made


def _chapter(
    tts: Zonos2,
    asked: tuple[str, Voice, Sampling],
    options: SpeechOptions,
    out: str,
    ending: str,
    chunks: ChunkFile,
) -> tuple[_Made, float]:
    """Speak a long text into a file, behind the chunks of an earlier run. Returns the progress and the seconds."""
    text, voice, sampling = asked
    rate, made, model = tts.vocoder.config.sample_rate, _Made(), tts.backbone
    check_ending(out, ending, rate)
    embedding = tts.embedding(voice)
    settings = {"text_sha256": digest(text.encode()), "speaker_sha256": digest(embedding), **asdict(sampling)}
    settings |= {"weights_sha256": fingerprint(model), "dtype": str(model.dtype), "backend": model.backend, **options}
    done = chunks.begin(settings)
    with tqdm(total=tts.count_chunks(text, **options), unit="chunk", disable=None, leave=False) as bar:

        def progress(_: int, frame: Frame) -> None:
            made.frames += 1

        def finished(chunk: Chunk) -> None:
            chunks.append(chunk)
            bar.update()

        def earlier() -> Iterator[Chunk]:
            for chunk in done:
                bar.update()
                yield chunk

        def first() -> None:
            made.first_audio = made.first_audio or time.perf_counter() - made.started

        stream = tts.resume(text, earlier(), finished, embedding, sampling, progress, **options)
        seconds = write_sound(stream, out, ending, rate, tts.comment, first)
    made.ended = stream.ended
    chunks.remove()
    return made, seconds


def _given_long(options: Namespace) -> dict[str, Any]:
    """The options for long texts that were given."""
    given = {name: getattr(options, name) for name in ("chunk_chars", "window_chunks", "split_mode")}
    given["pin_anchor"] = False if options.no_pin_anchor else None
    given = {name: value for name, value in given.items() if value is not None}
    if given and options.text_file is None:
        name = next(iter(given))
        option = "no-pin-anchor" if name == "pin_anchor" else name.replace("_", "-")
        raise ValueError(f"--{option} is for --text-file")
    return given


@contextmanager
def _sink(out: str, stdout: int | None) -> Iterator[FileIO | None]:
    """Standard output, a named pipe or a device, to which samples are written at once; None: a file."""
    path = local_path(out)
    if out in ("-", "/dev/stdout"):
        if stdout is None:
            raise ValueError(f"--out is {out}, but standard output is closed")
        sink = FileIO(stdout, "wb", closefd=False)
    elif path.is_fifo() or path.is_char_device():
        if path.suffix.lower() not in ("", ".wav"):
            raise ValueError(f"a pipe or a device takes .wav alone, got {out!r}")
        try:  # not blocking: a pipe without a reader is an error
            sink = FileIO(os.open(path, os.O_WRONLY | os.O_NONBLOCK), "wb")
        except OSError as error:
            raise type(error)(f"cannot write {out}: {error.strerror}; a pipe needs a reader") from error
        os.set_blocking(sink.fileno(), True)
    else:
        yield None
        return
    with sink:
        if sink.isatty():
            raise ValueError(f"--out is {out}, a terminal: pipe the sound into a player, or name a file")
        yield sink


def _send(sink: FileIO, content: bytes) -> None:
    left = memoryview(content)
    try:
        while left:
            left = left[sink.write(left) or 0 :]
    except BrokenPipeError:
        raise
    except OSError as error:
        raise type(error)(f"the sound cannot be written any further: {error.strerror}") from error


def _state_length(sink: FileIO, rate: int, samples: int) -> None:
    """Write the length into the header if standard output is a file that is not appended to."""
    with suppress(ImportError, OSError):  # the file is valid without it
        from fcntl import F_GETFL, fcntl

        if sink.seekable() and not fcntl(sink, F_GETFL) & os.O_APPEND:
            header = wav_header(rate, samples)
            os.pwrite(sink.fileno(), header, sink.tell() - 2 * samples - len(header))


def _save(audio: Audio, path: str, ending: str) -> None:
    """Write the file, or a temporary one if that fails. OSError: names the temporary file."""
    try:
        with whole_file(path) as part:
            write_audio(part, ending, audio)
    except OSError as error:
        handle, name = tempfile.mkstemp(ending, "zonos2-triton-")
        os.close(handle)
        try:
            write_audio(Path(name), ending, audio)
        except OSError:
            os.unlink(name)
            raise error from None
        raise OSError(f"{error}; the sound is in {name}") from error


def _draw(audio: Audio, path: str, title: str) -> None:
    """Draw the spectrogram. The audio is saved already, so a failure is only reported."""
    try:
        with whole_file(path) as picture:
            save_spectrogram(audio, picture, title)
    except (Exception, KeyboardInterrupt) as error:
        why = str(error) or type(error).__name__
        print(f"zonos2-triton: warning: the spectrogram was not drawn: {why}", file=sys.stderr)


def _text_file(name: str) -> str:
    """The text of a file. ValueError: not UTF-8, by line and byte; or empty."""
    path = local_path(name)
    if not path.is_file():
        raise FileNotFoundError(f"--text-file: {name} is not a file")
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        at = error.start + (3 if content.startswith(b"\xef\xbb\xbf") else 0)  # the byte order mark does not count
        line, byte = content.count(b"\n", 0, at) + 1, at - content.rfind(b"\n", 0, at)
        raise ValueError(
            f"--text-file must be UTF-8, but line {line} of {name} has 0x{content[at]:02x} as its byte {byte}; "
            "iconv -f LATIN1 -t UTF-8 converts Latin-1, for one"
        ) from error
    if "\0" in text:
        raise ValueError(
            f"--text-file must be UTF-8 text, but line {text[: text.index(chr(0))].count(chr(10)) + 1} of "
            f"{name} has a NUL"
        )
    if not text.strip():
        raise ValueError(f"--text-file: {name} is empty: there is nothing to say")
    return text


def _text(given: str) -> str:
    """The text as given or from standard input. A byte order mark and line ends are normalised: they would be spoken.

    ValueError: not UTF-8, or empty.
    """
    name, read = "text", given.encode("utf-8", "surrogateescape")  # the bytes, whatever the locale
    if given == "-":
        if sys.stdin is None:
            raise ValueError("text is -, but standard input is closed")
        name, came = "standard input", getattr(sys.stdin, "buffer", sys.stdin).read()
        read = came.encode() if isinstance(came, str) else came
    text = read.decode("utf-8", "surrogateescape")
    if wrong := re.search("[\0\ud800-\udfff]", text):  # Python keeps a byte that is not UTF-8 as a surrogate
        byte = f"byte 0x{ord(wrong[0]) & 0xFF:02x} at character {wrong.start()}"
        raise ValueError(f"{name} must be UTF-8, got {byte}; iconv -f UTF-16 -t UTF-8 converts UTF-16, for one")
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n")
    if not text.strip():
        raise ValueError(f"{name} is empty: there is nothing to say")
    return text


def _report(out: str, tts: Zonos2, made: _Made, audio_s: float, wall_s: float) -> dict[str, Any]:
    model, rtf = tts.backbone, round(wall_s / audio_s, 4) if audio_s else None
    report = {"out": out, "frames": made.frames, "ended": made.ended}
    report |= {"audio_s": round(audio_s, 3), "wall_s": round(wall_s, 3), "rtf": rtf}
    report |= {"first_audio_s": made.first_audio and round(made.first_audio, 3), "device": str(model.device)}
    return report | {"dtype": str(model.dtype).removeprefix("torch."), "backend": model.backend, "notice": tts.notice}


def _closing_line(report: dict[str, Any]) -> str:
    speed = "no audio"
    if report["rtf"] is not None:
        speed = f"RTF {report['rtf']:.3f}, first audio after {report['first_audio_s']:.2f} s"
    return (
        f"{report['out']}: {report['frames']} frames, {report['audio_s']:.2f} s of audio in {report['wall_s']:.2f} s, "
        f"{speed}, seed {report['seed']} ({report['backend']} backend, {report['device']}, {report['dtype']}), "
        f"ended: {report['ended']}"
    )


def _voice(path: str | None) -> Voice:
    """A recording, or the path of a saved voice."""
    if path is None or is_voice(path):
        if path is not None:
            read_voice(path)
        return path
    return read_audio(path)


def _quality_values(pairs: list[str]) -> dict[str, float]:
    values = {}
    for pair in pairs:
        feature, _, value = pair.partition("=")
        try:
            values[feature] = float(value)
        except ValueError as error:
            raise ValueError(f"--quality-value must be FEATURE=NUMBER, got {pair!r}") from error
    return values


def _quality(pairs: list[str]) -> dict[str, int]:
    buckets = {}
    for pair in pairs:
        feature, _, bucket = pair.partition("=")
        if not bucket.removeprefix("-").isdecimal():
            raise ValueError(f"--quality must be FEATURE=BUCKET with a whole number, got {pair!r}")
        buckets[feature] = int(bucket)
    return buckets
