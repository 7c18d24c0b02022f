"""The command zonos2-triton. Parsing and help need no torch; running a command loads it."""

import argparse
import json
import math
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from functools import partial
from importlib import import_module
from importlib.metadata import entry_points
from types import FrameType
from typing import NoReturn

from zonos2_triton import __version__
from zonos2_triton._settings import BACKENDS
from zonos2_triton.model.console import unfailing
from zonos2_triton.model.hints import did_you_mean
from zonos2_triton.model.threads import sleep_while_waiting
from zonos2_triton.reference.sampling_params import Sampling

DTYPES = ("float64", "float32", "bfloat16", "float16")  # as model.backend has them, which needs torch
# Commands of bench/, which model/ may not import: entry points, loaded when called.
TOOLS = {
    "bench": "time kernels next to PyTorch and other libraries, or compare two files of results",
    "compile": "compile every kernel for GPUs that are not installed, and check the binaries",
    "gpu": "on a GPU: correctness, then every timing, into a file of results",
    "plan": "what a GPU can serve: memory, time of a frame, batch size, time to first audio",
    "profile": "where the time of a generation goes, by range, compared with the least it could take",
    "report": "a page of results: rooflines, tables, comparisons",
    "tune": "try launch configurations of a kernel, and write those that are better",
    "verify": "every kernel against the reference, here and now",
}
# Commands of this room that few need: module and help. The module is loaded when its command is called.
OWN = {
    "encode": ("zonos2_triton.model.training.encode", "codes of recordings, as a dataset for train"),
    "train": ("zonos2_triton.model.training.command", "train a model on texts and codes, or a given one further"),
}
# Defaults that a number does not describe, and what the settings mean.
DEFAULTS = {"seed": "a new one each time", "max_frames": "1024, and 16 more for each byte of the text"}
MEANING = {
    "temperature": "0: the most probable code",
    "top_k": "draw from the k most probable codes",
    "top_p": "draw from the most probable codes of this sum; 0 or 1: off",
    "min_p": "drop codes below this share of the largest probability; 0: off",
    "repetition_window": "frames whose codes are penalised; 0: off",
    "repetition_penalty": "factor of their logits; 1: off",
    "repetition_codebooks": "penalise the first N codebooks; -1: all",
    "max_frames": "86 are a second",
    "seed": "makes the result reproducible",
}
# Ranges of the command line, other than from 0. The library clamps instead, as the official request path does.
RANGES = {"top_p": (0, 1), "min_p": (0, 1), "repetition_penalty": (1, math.inf), "repetition_codebooks": (-1, 9)}
RANGES |= {"max_frames": (1, math.inf), "seed": (0, 2**64 - 1)}
# Their result is a file, not what they print.
FILES = ("say", "tiny", "encode", "train", "voice", "gpu", "profile", "report")
INTERRUPTED = 130  # a shell's status after Ctrl-C
STOPPED = "zonos2-triton: interrupted; nothing was written"
REPORTED = (ValueError, TypeError, OSError, ImportError, ArithmeticError, MemoryError)  # in one line
Run = Callable[[argparse.Namespace], int]


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 done, 1 doctor found a fault, 2 bad input, 130 interrupted; tools have their own."""
    argv = sys.argv[1:] if argv is None else argv
    with unfailing() as out:
        status = _run(argv)
        out.flush()
        if out.error and not isinstance(out.error, BrokenPipeError):  # the reader may stop early
            kept = argv[0] in FILES
            kind = "note" if kept else "error"
            print(f"zonos2-triton: {kind}: standard output cannot be written: {out.error}", file=sys.stderr)
            return status if kept else status or 2
    return status


def _run(argv: list[str]) -> int:
    stops = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # background jobs and nohup ignore some of them
    before = {stop: handler for stop in stops if (handler := signal.getsignal(stop)) not in (signal.SIG_IGN, None)}
    _handle(before, _leave)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            warnings.showwarning = lambda said, *_, **__: print(f"zonos2-triton: warning: {said}", file=sys.stderr)
            options, unknown = _parser(argv[0] if argv else "").parse_known_args(argv)
            if unknown:
                words = "text" in options and not unknown[0].startswith("-")
                hint = "; a text of several words needs quotes" if words else ""
                options.parser.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
            run: Run = options.load(options)
            _handle(before, signal.default_int_handler)  # raises KeyboardInterrupt
            return int(run(options))
    except KeyboardInterrupt:
        print(STOPPED, file=sys.stderr)
        return INTERRUPTED
    except (*REPORTED, getattr(sys.modules.get("torch"), "OutOfMemoryError", MemoryError)) as error:
        print(f"zonos2-triton: error: {error}", file=sys.stderr)
        return 2
    finally:
        for stop, handler in before.items():
            signal.signal(stop, handler)


def _handle(stops: Iterable[signal.Signals], handler: Callable[[int, FrameType | None], object]) -> None:
    for stop in stops:
        signal.signal(stop, handler)


def _leave(signum: int, frame: FrameType | None) -> None:
    """The handler while modules load: torch and numpy may swallow an exception then, or fail in their own ways."""
    os.write(2, f"{STOPPED}\n".encode())
    os._exit(INTERRUPTED)


class _Parser(argparse.ArgumentParser):
    """Reports an error in one line, with suggestions."""

    given: Sequence[str] = ()

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        self.given = args or ()
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        if choice := re.search(r"invalid choice: '(.+?)' \(choose from (.+)\)", message):
            message += did_you_mean(choice[1], re.findall(r"[\w.-]+", choice[2]))
        known = [name for action in self._actions for name in action.option_strings]
        for name in (word.partition("=")[0] for word in self.given if word.startswith("--")):
            if not any(option.startswith(name) for option in known):
                hint = did_you_mean(name, known)
                message += hint if name in message else hint.replace("; ", f"; {name}: ")
        self.exit(2, f"{self.prog}: error: {message}\n")


def _parser(chosen: str) -> argparse.ArgumentParser:
    parser = _Parser(prog="zonos2-triton", description="ZONOS2 text-to-speech.")
    version = f"zonos2-triton {__version__}"
    parser.add_argument("-V", "--version", action="version", version=version)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    layout = partial(argparse.HelpFormatter, max_help_position=32)
    say = commands.add_parser("say", help="speak a text into a sound file", formatter_class=layout)
    say.set_defaults(load=_say)
    say.add_argument("text", nargs="?", help="what to say; - reads it from standard input")
    file = "a text of any length, spoken in chunks; a run that was stopped resumes by the same command"
    say.add_argument("--text-file", metavar="FILE", help=file)
    model = "folder with params.json and weights, the weights in it, or a hub id"
    say.add_argument("--model", required=True, metavar="DIR", help=model)
    lora = "an adapter of the model, as `zonos2-triton train --lora` writes it"
    say.add_argument("--lora", metavar="FILE", help=lora)
    out = ".wav, .flac, .ogg, .opus or .mp3; -: WAV on standard output, as it is made"
    say.add_argument("-o", "--out", required=True, metavar="FILE", help=out)
    say.add_argument("--raw", action="store_true", help="with --out -: the 16-bit samples without a header")
    say.add_argument(
        "--speaker", metavar="FILE", help="a recording of the voice to speak with, or a saved voice (.safetensors)"
    )
    stream = "decode while generating, tell when there is sound; the file is the same"
    say.add_argument("--stream", action="store_true", help=stream)
    say.add_argument("--spectrogram", metavar="PNG", help="also draw the result")
    say.add_argument("--device", help="cpu, cuda, cuda:1, ...; default: a GPU if there is one")
    say.add_argument("--dtype", choices=DTYPES, help="default: as the checkpoint states")
    backend = "default: the kernels on a GPU, else the reference"
    say.add_argument("--backend", choices=BACKENDS, default="auto", help=backend)
    say.add_argument("--vocoder", metavar="PATH", help="codec file, folder or hub id; default: in the model's folder")
    dtypes, tf32 = [*DTYPES, "tf32"], "as --dtype, or tf32: float32 with products in TF32; default: float32"
    say.add_argument("--vocoder-dtype", choices=dtypes, default="float32", metavar="DTYPE", help=tf32)
    say.add_argument("--speaker-encoder", metavar="PATH", help="folder or hub id; default: in the model's folder")
    closing = "print the closing line as JSON; with --out - on standard error"
    say.add_argument("--json", action="store_true", help=closing)
    prompt = say.add_argument_group("conditioning")
    rate = prompt.add_mutually_exclusive_group()
    rate.add_argument("--speaking-rate", type=int, metavar="BUCKET", help="0 slow to 7 fast")
    rate.add_argument("--bytes-per-second", type=float, metavar="N", help="the same in bytes of UTF-8; 19 is neutral")
    rate.add_argument("--speed", type=float, metavar="FACTOR", help="the same as a factor of the neutral rate")
    quality = "such as lufs=3; may be repeated; the official server adds trailing_silence_s=3"
    prompt.add_argument("--quality", action="append", default=[], metavar="FEATURE=BUCKET", help=quality)
    value = "such as lufs=-20; may be repeated; instead of --quality"
    prompt.add_argument("--quality-value", action="append", default=[], metavar="FEATURE=NUMBER", help=value)
    prompt.add_argument("--clean-background", action="store_true", help="the speaker's recording is clean")
    prompt.add_argument("--expressive", action="store_true", help="follow the speaker less strictly")
    language = "of the text, where a normaliser is installed; default: %(default)s"
    prompt.add_argument("--language", default="en_us", metavar="CODE", help=language)
    raw = "speak the text as it is written: no words for numbers and signs"
    prompt.add_argument("--no-normalize", dest="normalize", action="store_false", help=raw)
    long = say.add_argument_group("long text")
    long.add_argument("--chunk-chars", type=int, metavar="N", help="most characters of a chunk; default: 150")
    window = "chunks that a prompt covers, the new one included; default: 2"
    long.add_argument("--window-chunks", type=int, metavar="N", help=window)
    long.add_argument("--no-pin-anchor", action="store_true", help="do not keep the first chunk in every window")
    modes = ("word", "sentence", "official")
    long.add_argument("--split-mode", choices=modes, help="where to split; default: word")
    sampling = say.add_argument_group("sampling")
    for field in fields(Sampling):
        name = f"--{field.name.replace('_', '-')}"
        if field.name == "ignore_eos":
            sampling.add_argument(name, action="store_true", help="generate all frames, whatever the codes say")
        else:
            kind = float if isinstance(field.default, float) else int
            default = DEFAULTS.get(field.name, field.default)
            sampling.add_argument(
                name, type=kind, metavar="N", default=field.default, help=f"{MEANING[field.name]}; default: {default}"
            )

    voice = commands.add_parser("voice", help="save the voice of a recording", formatter_class=layout)
    voice.set_defaults(load=_voice)
    make = voice.add_subparsers(required=True, metavar="ACTION").add_parser("make", help="embed a recording, once")
    make.add_argument("recording", metavar="FILE", help="a recording of the voice; half a minute is enough")
    make.add_argument("-o", "--out", required=True, metavar="FILE", help="a .safetensors file, for say --speaker")
    make.add_argument("--speaker-encoder", metavar="PATH", help="folder or hub id; default: ZONOS2's, from the hub")
    make.add_argument("--device", default="cpu", help="default: %(default)s")
    make.add_argument("--json", action="store_true", help="print what the file says of its origin as JSON")

    tiny = commands.add_parser("tiny", help="write a tiny model with random weights, for trying things out")
    tiny.set_defaults(load=_tiny)
    tiny.add_argument("folder", metavar="DIR", help="a new or empty folder")
    tiny.add_argument("--seed", type=int, default=0, help="of the weights; default: %(default)s")
    tiny.add_argument("--json", action="store_true", help="print the result as JSON")

    doctor = commands.add_parser("doctor", help="versions, devices, and what will run where")
    doctor.set_defaults(load=_doctor)
    doctor.add_argument("--json", action="store_true", help="print the report as JSON")

    for name, (module, text) in OWN.items():
        command = commands.add_parser(name, help=text, formatter_class=layout)
        if name == chosen:
            own: Run = import_module(module).add_arguments(command)
            command.set_defaults(load=partial(lambda run, _: run, own))
    for tool in sorted(entry_points(group="zonos2_triton.commands")):
        command = commands.add_parser(tool.name, help=TOOLS.get(tool.name))
        if tool.name == chosen:
            command.set_defaults(load=partial(lambda run, _: run, tool.load()(command)))
    for command in commands.choices.values():
        command.add_argument("-V", "--version", action="version", version=version, help=argparse.SUPPRESS)
        command.set_defaults(parser=command)
    return parser


def _say(options: argparse.Namespace) -> Run:
    if (options.text is None) == (options.text_file is None):
        given = "neither" if options.text is None else "both"
        raise ValueError(f"say takes a text or --text-file FILE, got {given}")
    for field in fields(Sampling):
        (low, high), value = RANGES.get(field.name, (0, math.inf)), getattr(options, field.name)
        if value is not None and (value < low or value > high):  # NaN is refused later
            lowest = f"{low}, which means all," if low < 0 else low
            accepted = f"at least {low}" if high == math.inf else f"from {lowest} to {high}"
            raise ValueError(f"--{field.name.replace('_', '-')} must be {accepted}, got {value}")
    sleep_while_waiting()  # before torch is loaded
    from zonos2_triton.model.say import say

    return say


def _voice(_: argparse.Namespace) -> Run:
    sleep_while_waiting()
    from zonos2_triton.model.speaker import SpeakerEncoder
    from zonos2_triton.model.voice import make_voice
    from zonos2_triton.model.weights.hub import SPEAKER_REPO, resolve_path

    def voice(options: argparse.Namespace) -> int:
        encoder = SpeakerEncoder.load(resolve_path(options.speaker_encoder or SPEAKER_REPO), options.device)
        about = make_voice(encoder, options.recording, options.out)
        line = f"{options.out}: the voice of {about['recording']}, {about['recording_s']} s"
        print(json.dumps({"out": options.out, **about}) if options.json else line)
        return 0

    return voice


def _tiny(_: argparse.Namespace) -> Run:
    sleep_while_waiting()
    from zonos2_triton.model.weights.tiny import NOTICE, write_tiny

    def tiny(options: argparse.Namespace) -> int:
        folder = write_tiny(options.folder, options.seed)
        print(json.dumps({"folder": str(folder), "notice": NOTICE}) if options.json else f"{folder}: {NOTICE}")
        return 0

    return tiny


def _doctor(_: argparse.Namespace) -> Run:
    from zonos2_triton.model.doctor import as_text, diagnose

    def doctor(options: argparse.Namespace) -> int:
        report = diagnose()
        print(json.dumps(report, indent=1) if options.json else as_text(report))
        return 1 if report["missing"] else 0

    return doctor
