"""The command zonos2-triton."""

import argparse
import json
import os
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import fields
from importlib.metadata import entry_points
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from zonos2_triton.model.audio import Audio, sound_format, whole_file, write_audio
from zonos2_triton.model.backbone import Progress
from zonos2_triton.model.backend import BACKENDS, DTYPES
from zonos2_triton.model.doctor import as_text, diagnose
from zonos2_triton.model.pipeline import Zonos2
from zonos2_triton.model.plot import check_plotting, save_spectrogram
from zonos2_triton.model.prompt import PromptOptions
from zonos2_triton.model.runtime.request import Frame, fresh_seed
from zonos2_triton.model.runtime.scheduler import LoopOptions
from zonos2_triton.model.weights.tiny import NOTICE, write_tiny
from zonos2_triton.reference.sampling import Sampling

# Commands of rooms that this one may not import: declared as entry points, loaded when asked for.
TOOLS = {
    "bench": "time kernels beside PyTorch and other libraries, or compare two files of results",
    "compile": "compile every kernel for GPUs that need not be there, and judge the result",
    "gpu": "on a GPU: correctness, then every timing, into a file of results",
    "plan": "what a card can serve: memory, time of a frame, streams, time to first audio",
    "profile": "where the time of a generation goes, by range, beside the least it could take",
    "report": "a page of results: roofline, waterfall, curves, comparisons",
    "verify": "every kernel against the reference, here and now",
}
INTERRUPTED = 130  # what a shell reports for a program that Ctrl-C ended


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 done, 1 doctor found something missing, 2 bad input, 130 interrupted; of a tool, its own."""
    argv = sys.argv[1:] if argv is None else argv
    options = _parser(argv[0] if argv else "").parse_args(argv)
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup
        signal.signal(signal.SIGHUP, _interrupt)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            warnings.showwarning = _show_warning
            status = int(options.run(options))
            sys.stdout.flush()
            return status
    except BrokenPipeError:  # nobody reads the closing line; the work is done
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("zonos2-triton: interrupted; nothing was written", file=sys.stderr)
        return INTERRUPTED
    except (ValueError, TypeError, OSError, ImportError, ArithmeticError, torch.OutOfMemoryError, MemoryError) as error:
        print(f"zonos2-triton: error: {error}", file=sys.stderr)
        return 2


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"zonos2-triton: warning: {message}", file=sys.stderr)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _parser(chosen: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="zonos2-triton", description="ZONOS2 text-to-speech.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    say = commands.add_parser("say", help="speak a text into a sound file", formatter_class=_Help)
    say.set_defaults(run=_say)
    say.add_argument("text", help="what to say; - reads it from standard input")
    say.add_argument("--model", required=True, metavar="DIR", help="folder with params.json and weights, or a hub id")
    say.add_argument("--out", required=True, metavar="FILE", help="the sound file: .wav, .flac or .ogg")
    say.add_argument("--speaker", metavar="FILE", help="a recording of the voice to speak with")
    say.add_argument("--stream", action="store_true", help="decode while generating; the file is the same")
    say.add_argument("--spectrogram", metavar="PNG", help="also draw the result")
    say.add_argument("--device", help="cpu, cuda, cuda:1, ...; default: a GPU if there is one")
    say.add_argument("--dtype", choices=DTYPES, help="default: as the checkpoint states")
    say.add_argument("--backend", choices=BACKENDS, default="auto")
    say.add_argument("--vocoder", metavar="PATH", help="codec file, folder or hub id; default: in the model's folder")
    say.add_argument("--vocoder-dtype", choices=[*DTYPES, "tf32"], default="float32",
                     help="tf32: float32 that the kernels may multiply so")  # fmt: skip
    say.add_argument("--speaker-encoder", metavar="PATH", help="folder or hub id; default: in the model's folder")
    say.add_argument("--json", action="store_true", help="print the closing line as JSON")
    prompt = say.add_argument_group("conditioning")
    prompt.add_argument("--rate", type=int, metavar="BUCKET", help="speaking rate, 0 slow to 7 fast")
    prompt.add_argument("--quality", action="append", default=[], metavar="FEATURE=BUCKET",
                        help="may be repeated; the official server adds trailing_silence_s=3")  # fmt: skip
    prompt.add_argument("--clean-background", action="store_true", help="the speaker's recording is clean")
    prompt.add_argument("--expressive", action="store_true", help="follow the speaker less strictly")
    sampling = say.add_argument_group("sampling")
    for field in fields(Sampling):
        name = f"--{field.name.replace('_', '-')}"
        if field.name == "ignore_eos":
            sampling.add_argument(name, action="store_true", help="generate all frames, whatever the codes say")
        else:
            kind = float if isinstance(field.default, float) else int
            default = "a new one each time" if field.default is None else field.default
            sampling.add_argument(name, type=kind, metavar="N", default=field.default, help=f"default: {default}")

    tiny = commands.add_parser("tiny", help="write a tiny model with random weights, for trying things out")
    tiny.set_defaults(run=_tiny)
    tiny.add_argument("folder", metavar="DIR", help="a new or empty folder")
    tiny.add_argument("--seed", type=int, default=0)
    tiny.add_argument("--json", action="store_true", help="print the result as JSON")

    doctor = commands.add_parser("doctor", help="versions, devices, and what will run where")
    doctor.set_defaults(run=_doctor)
    doctor.add_argument("--json", action="store_true", help="print the report as JSON")

    for tool in sorted(entry_points(group="zonos2_triton.commands")):
        command = commands.add_parser(tool.name, help=TOOLS.get(tool.name))
        if tool.name == chosen:
            command.set_defaults(run=tool.load()(command))
    return parser


class _Help(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32)


def _say(options: argparse.Namespace) -> int:
    sampling = Sampling(**{field.name: getattr(options, field.name) for field in fields(Sampling)})
    sampling = Sampling(**{**vars(sampling), "seed": fresh_seed(sampling)})  # to be reported
    text = _stdin() if options.text == "-" else options.text
    if options.spectrogram:
        check_plotting()
        if Path(options.spectrogram) == Path(options.out):
            raise ValueError(f"--spectrogram and --out must be two files, got {options.out!r} for both")
    prompt: PromptOptions = {
        "speaking_rate": options.rate,
        "quality": _quality(options.quality),
        "clean_background": options.clean_background,
        "accurate": not options.expressive,
    }
    kind = sound_format(options.out)
    with ExitStack() as files:  # whether they can be written is known before the model is read
        part = files.enter_context(whole_file(options.out))
        picture = files.enter_context(whole_file(options.spectrogram)) if options.spectrogram else None
        tts = Zonos2.load(
            options.model, options.device, options.dtype, options.backend, options.vocoder, options.speaker_encoder,
            LoopOptions(streams=1), options.vocoder_dtype,
        )  # fmt: skip
        if tts.notice:
            print(f"zonos2-triton: note: {tts.notice}", file=sys.stderr)
        started, first_audio, frames = time.perf_counter(), None, 0
        # disable=None: silent when standard error is no terminal
        with tqdm(total=sampling.clamped().max_frames, unit="frame", disable=None, leave=False) as bar:

            def progress(_: int, __: Frame) -> None:
                nonlocal frames
                frames += 1
                bar.update()

            chunks = []
            for chunk in _chunks(tts, options, text, sampling, progress, prompt):
                first_audio = first_audio or time.perf_counter() - started
                chunks.append(chunk)
        audio = Audio(
            torch.cat([torch.zeros(0, dtype=torch.float32), *chunks]), tts.vocoder.config.sample_rate, tts.comment
        )
        write_audio(part, kind, audio)
        seconds = time.perf_counter() - started
        if picture:
            save_spectrogram(audio, picture, f"{Path(options.out).name}: {tts.comment}")
    rate = seconds / audio.seconds if audio.seconds else None
    report = {
        "out": str(options.out),
        "frames": frames,
        "audio_s": round(audio.seconds, 3),
        "wall_s": round(seconds, 3),
        "rtf": rate and round(rate, 4),
        "first_audio_s": first_audio and round(first_audio, 3),
        "seed": sampling.seed,
        "device": str(tts.backbone.device),
        "dtype": str(tts.backbone.dtype).removeprefix("torch."),
        "backend": tts.backbone.backend,
        "notice": tts.notice,
    }
    print(json.dumps(report) if options.json else _closing_line(report))
    return 0


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
        f"{speed}, seed {report['seed']} ({report['backend']} backend, {report['device']}, {report['dtype']})"
    )


def _quality(pairs: list[str]) -> dict[str, int]:
    buckets = {}
    for pair in pairs:
        feature, _, bucket = pair.partition("=")
        if not bucket.removeprefix("-").isdecimal():
            raise ValueError(f"--quality must be FEATURE=BUCKET with a whole number, got {pair!r}")
        buckets[feature] = int(bucket)
    return buckets


def _tiny(options: argparse.Namespace) -> int:
    folder = write_tiny(options.folder, options.seed)
    print(json.dumps({"folder": str(folder), "notice": NOTICE}) if options.json else f"{folder}: {NOTICE}")
    return 0


def _doctor(options: argparse.Namespace) -> int:
    report = diagnose()
    print(json.dumps(report, indent=1) if options.json else as_text(report))
    return 1 if report["missing"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
