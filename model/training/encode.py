"""The command `encode`: recordings to a dataset of codes. Its help needs no torch."""

import argparse
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zonos2_triton._settings import local_path
from zonos2_triton.model.hints import did_you_mean
from zonos2_triton.model.threads import sleep_while_waiting

if TYPE_CHECKING:
    from zonos2_triton.model.training.dataset import Item

NAMED = 8  # bad recordings in an error


def add_arguments(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    """Fill the parser of the command; returns the function that runs it."""
    recordings = "JSON lines with id, text and audio, a sound file beside the manifest; and the keys of a dataset"
    parser.add_argument("recordings", metavar="JSONL", help=recordings)
    codec = "codec with its encoder: the official DAC file, or a folder in transformers' layout"
    parser.add_argument("--vocoder", required=True, metavar="PATH", help=codec)
    parser.add_argument("-o", "--out", required=True, metavar="JSONL", help="manifest of the dataset to write")
    parser.add_argument("--skip-bad", action="store_true", help="leave out bad recordings with a warning")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ...; default: a GPU if there is one")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    return encode


def encode(options: argparse.Namespace) -> int:
    """Run the command. Returns the exit status."""
    sleep_while_waiting()
    from tqdm import tqdm

    from zonos2_triton.model.backend import resolve_device
    from zonos2_triton.model.files import check_writable
    from zonos2_triton.model.training.codec_encoder import CodecEncoder
    from zonos2_triton.model.training.dataset import write_dataset

    source, out = local_path(options.recordings), local_path(options.out)
    lines = [(number, line) for number, line in enumerate(_text(source).split("\n"), 1) if line.strip()]
    if out.suffix != ".jsonl":
        raise ValueError(f"--out must end in .jsonl, got {out}")
    if out.parent.exists():  # it is made with the dataset
        check_writable(out)
    encoder = CodecEncoder.load(options.vocoder, resolve_device(options.device))
    items, faults, seen = list["Item"](), list[str](), set[str]()
    for number, line in tqdm(lines, unit="recording", disable=None, leave=False):
        try:
            items.append(_encoded(encoder, line, source.parent, seen))
        except (OSError, ValueError, TypeError) as error:
            faults.append(f"{source}:{number}: {error}")
    if faults:
        more = [f"and {len(faults) - NAMED} more"] if len(faults) > NAMED else []
        listed = "\n  ".join([f"{len(faults)} of {len(lines)} recordings are bad", *faults[:NAMED], *more])
        if not options.skip_bad:
            raise ValueError(f"{listed}\nmend them, or skip them with --skip-bad")
        warnings.warn(f"skipped: {listed}", stacklevel=2)
    if not items:
        raise ValueError(f"{source} holds no recording")
    write_dataset(out, items)
    frames = sum(len(item.codes) for item in items)
    seconds = round(frames * encoder.hop / encoder.config.sample_rate, 1)
    report = {"out": str(out), "items": len(items), "frames": frames, "seconds": seconds}
    print(json.dumps(report) if options.json else f"{out}: {len(items)} items, {frames} frames, {seconds} s of sound")
    return 0


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be UTF-8, byte {error.start} is not") from error


def _encoded(encoder: Any, line: str, folder: Path, seen: set[str]) -> "Item":
    from zonos2_triton.model.audio import read_audio
    from zonos2_triton.model.training.dataset import PROMPT_KEYS, Item

    keys = ("id", "text", "audio", *PROMPT_KEYS)
    given = json.loads(line)
    if not isinstance(given, dict):
        raise ValueError(f"must be a JSON object, got {type(given).__name__}")
    if unknown := sorted(given.keys() - {*keys}):
        raise ValueError(f"key {unknown[0]!r} is not one of {', '.join(keys)}{did_you_mean(unknown[0], keys)}")
    for key in ("id", "text", "audio"):
        if not isinstance(given.get(key), str) or not given[key].strip():
            raise ValueError(f"{key} must be a string that is not empty, got {given.get(key)!r}")
    if given["id"] in seen:
        raise ValueError(f"id {given['id']!r} must be unique")
    codes = encoder.encode(*read_audio(folder / given["audio"]))
    seen.add(given["id"])
    prompt: Any = {key: given[key] for key in PROMPT_KEYS if key in given}
    return Item(given["id"], given["text"], codes, prompt=prompt)
