"""The command `say`: a text into a sound file."""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, redirect_stdout
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from zonos2_triton.model.audio import Audio, check_writable, sound_format, whole_file, write_audio
from zonos2_triton.model.pipeline import Zonos2
from zonos2_triton.model.plot import check_plotting, save_spectrogram
from zonos2_triton.model.prompt import PromptOptions
from zonos2_triton.model.runtime.request import Frame, fresh_seed
from zonos2_triton.model.runtime.scheduler import LoopOptions
from zonos2_triton.model.runtime.stream import Progress
from zonos2_triton.model.threads import computing, threads_hint
from zonos2_triton.reference.sampling_params import Default, Sampling


def say(options: argparse.Namespace) -> int:
    """The exit status; options as `cli` reads them."""
    sampling = Sampling(**{field.name: getattr(options, field.name) for field in fields(Sampling)})
    sampling = Sampling(**{**vars(sampling), "seed": fresh_seed(sampling)})  # to be reported
    text = _stdin() if options.text == "-" else options.text
    if options.spectrogram:
        check_plotting()
        if Path(options.spectrogram) == Path(options.out):
            raise ValueError(f"--spectrogram and --out must be two files, got {options.out!r} for both")
    prompt: PromptOptions = {
        "speaking_rate": options.speaking_rate,
        "quality": _quality(options.quality),
        "clean_background": options.clean_background,
        "accurate": not options.expressive,
    }
    kind = sound_format(options.out)
    check_writable(options.out)  # known before the model is read
    if options.spectrogram:
        check_writable(options.spectrogram)
    with ExitStack() as stack:
        stack.enter_context(redirect_stdout(sys.stderr))  # what a library prints is not the result
        tts = Zonos2.load(
            options.model, options.device, options.dtype, options.backend, options.vocoder, options.speaker_encoder,
            LoopOptions(streams=1), options.vocoder_dtype,
        )  # fmt: skip
        if tts.notice:
            print(f"zonos2-triton: note: {tts.notice}", file=sys.stderr)
        default = torch.get_num_threads()
        weights = [*tts.backbone.weights.values(), *tts.vocoder.state.values()]
        threads = stack.enter_context(computing(weights))
        started, first_audio, frames, ended = time.perf_counter(), None, 0, None
        total = None if isinstance(sampling.max_frames, Default) else sampling.clamped().max_frames
        # disable=None: silent when standard error is no terminal
        with tqdm(total=total, unit="frame", disable=None, leave=False) as bar:

            def progress(_: int, frame: Frame) -> None:
                nonlocal frames, ended
                frames, ended = frames + 1, frame.ended
                bar.update()

            chunks = []
            for chunk in _chunks(tts, options, text, sampling, progress, prompt):
                first_audio = first_audio or time.perf_counter() - started
                chunks.append(chunk)
        audio = Audio(
            torch.cat([torch.zeros(0, dtype=torch.float32), *chunks]), tts.vocoder.config.sample_rate, tts.comment
        )
        with whole_file(options.out) as part:
            write_audio(part, kind, audio)
        seconds = time.perf_counter() - started
        if options.spectrogram:
            _draw(audio, options.spectrogram, f"{Path(options.out).name}: {tts.comment}")
    rate = seconds / audio.seconds if audio.seconds else None
    report = {
        "out": str(options.out),
        "frames": frames,
        "ended": ended,
        "audio_s": round(audio.seconds, 3),
        "wall_s": round(seconds, 3),
        "rtf": rate and round(rate, 4),
        "first_audio_s": first_audio and round(first_audio, 3),
        "seed": sampling.seed,
        "device": str(tts.backbone.device),
        "dtype": str(tts.backbone.dtype).removeprefix("torch."),
        "backend": tts.backbone.backend,
        "threads": threads,
        "notice": tts.notice,
    }
    if threads != default and not options.json:
        print(f"zonos2-triton: note: {threads_hint(threads, default)}", file=sys.stderr)
    print(json.dumps(report) if options.json else _closing_line(report))
    return 0


def _draw(audio: Audio, path: str, title: str) -> None:
    """The sound is there already: whatever fails is told, and no more."""
    try:
        with whole_file(path) as picture:
            save_spectrogram(audio, picture, title)
    except Exception as error:
        print(f"zonos2-triton: warning: the spectrogram was not drawn: {error}", file=sys.stderr)


def _stdin() -> str:
    """Standard input without the newline that ends it."""
    if sys.stdin is None:
        raise ValueError("text is -, but standard input is closed")
    return sys.stdin.read().removesuffix("\n")


def _chunks(
    tts: Zonos2, options: argparse.Namespace, text: str, sampling: Sampling, progress: Progress, prompt: PromptOptions
) -> Iterator[Tensor]:
    if options.stream:
        yield from tts.stream(text, options.speaker, sampling, progress, **prompt)
    else:
        yield tts.speak(text, options.speaker, sampling, progress, **prompt).samples


def _closing_line(report: dict[str, Any]) -> str:
    speed = "no audio"
    if report["rtf"] is not None:
        speed = f"RTF {report['rtf']:.3f}, first audio after {report['first_audio_s']:.2f} s"
    return (
        f"{report['out']}: {report['frames']} frames, {report['audio_s']:.2f} s of audio in {report['wall_s']:.2f} s, "
        f"{speed}, seed {report['seed']} ({report['backend']} backend, {report['device']}, {report['dtype']}), "
        f"ended: {report['ended']}"
    )


def _quality(pairs: list[str]) -> dict[str, int]:
    buckets = {}
    for pair in pairs:
        feature, _, bucket = pair.partition("=")
        if not bucket.removeprefix("-").isdecimal():
            raise ValueError(f"--quality must be FEATURE=BUCKET with a whole number, got {pair!r}")
        buckets[feature] = int(bucket)
    return buckets
