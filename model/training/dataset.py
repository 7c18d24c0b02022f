"""Datasets: texts and codes. A manifest of JSON lines names items; safetensors files beside it hold their tensors.

A line of the manifest:

    {"id": "a17", "text": "Hello.", "file": "train.safetensors"}

Keys `speaking_rate`, `quality`, `clean_background` and `accurate` are optional, as `build_prompt` takes them. Tensors
of the item in its file:

    a17.codes      [F, C] integers: the codes of the recording, not delayed
    a17.alignment  [F] integers, optional: the byte of the text that each frame speaks; -1: none
    a17.speaker    [S] floats, optional: the embedding of the voice
"""

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zonos2_triton._settings import local_path
from zonos2_triton.model.files import write_whole
from zonos2_triton.model.hints import did_you_mean
from zonos2_triton.model.prompt import PromptOptions, build_prompt
from zonos2_triton.model.training.files import save_tensors
from zonos2_triton.model.weights.checkpoint import Checkpoint
from zonos2_triton.reference.config import Zonos2Config

NAMED = 8  # bad items in an error
PROMPT_KEYS = ("speaking_rate", "quality", "clean_background", "accurate")
KEYS = ("id", "text", "file", *PROMPT_KEYS)
CONTIGUOUS = torch.contiguous_format  # items may be parts of one tensor
INTEGERS = (torch.int16, torch.int32, torch.int64, torch.uint8, torch.int8)


@dataclass(frozen=True)
class Item:
    """A text and its codes; tensors are views of the mapped file."""

    id: str
    text: str
    codes: Tensor  # [F, C]
    alignment: Tensor | None = None  # [F]
    speaker: Tensor | None = None  # [S]
    prompt: PromptOptions = field(default_factory=lambda: PromptOptions())

    def prompt_ids(self, config: Zonos2Config, options: PromptOptions | None = None) -> Tensor:
        """The tokens that come before the first frame; options: instead of its own."""
        given = self.prompt if options is None else options
        return build_prompt(config, self.text, speaker=self.speaker is not None, **given)

    def length(self, config: Zonos2Config) -> int:
        """Tokens of the sequence that a training step sees."""
        return len(self.prompt_ids(config)) + len(self.codes) + config.n_codebooks - 1


def load_dataset(path: str | Path, config: Zonos2Config, longest: int, skip_bad: bool = False) -> list[Item]:
    """The items of a manifest, checked against a model. longest: tokens that a sequence may have.

    ValueError: items are bad; it counts them and names file, line and fault of the first. skip_bad: a warning instead.
    """
    path, items = local_path(path), list[Item]()
    faults: list[str] = []
    seen: dict[str, int] = {}
    files: dict[Path, Mapping[str, Tensor] | str] = {}  # tensors, or why there are none
    for number, line in _lines(path):
        try:
            item = _item(line, path.parent, files)
            if item.id in seen:
                raise ValueError(f"id {item.id!r} must be unique, line {seen[item.id]} has it already")
            _check(item, config, min(longest, config.max_seqlen))
        except (ValueError, TypeError) as error:
            faults.append(f"{path}:{number}: {error}")
            continue
        seen[item.id] = number
        items.append(item)
    if faults:
        more = [f"and {len(faults) - NAMED} more"] if len(faults) > NAMED else []
        listed = "\n  ".join([f"{len(faults)} of {len(faults) + len(items)} items are bad", *faults[:NAMED], *more])
        if not skip_bad:
            raise ValueError(f"{listed}\nmend them, or skip them with --skip-bad")
        warnings.warn(f"skipped: {listed}", stacklevel=2)
    if not items:
        raise ValueError(f"{path} holds no item")
    return items


def write_dataset(path: str | Path, items: Sequence[Item]) -> Path:
    """A manifest that ends in .jsonl, and a file of safetensors beside it. Both appear whole."""
    path = local_path(path)
    if path.suffix != ".jsonl":
        raise ValueError(f"a manifest must end in .jsonl, got {path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    file, tensors = path.with_suffix(".safetensors"), dict[str, Tensor]()
    for item in items:
        given = {"codes": item.codes, "alignment": item.alignment, "speaker": item.speaker}
        tensors |= {
            f"{item.id}.{name}": tensor.cpu().clone(memory_format=CONTIGUOUS)
            for name, tensor in given.items()
            if tensor is not None
        }
    save_tensors(file, tensors)
    lines = [{"id": item.id, "text": item.text, "file": file.name, **item.prompt} for item in items]
    write_whole(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return path


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number and text of each line that is not blank."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be UTF-8, byte {error.start} is not") from error
    yield from ((number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip())


def _item(line: str, folder: Path, files: dict[Path, Mapping[str, Tensor] | str]) -> Item:
    try:
        given = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"must be a JSON object on one line: {error}") from error
    if not isinstance(given, dict):
        raise ValueError(f"must be a JSON object, got {type(given).__name__}")
    if unknown := sorted(given.keys() - {*KEYS}):
        raise ValueError(f"key {unknown[0]!r} is not one of {', '.join(KEYS)}{did_you_mean(unknown[0], KEYS)}")
    for key in ("id", "text", "file"):
        if not isinstance(given.get(key), str) or not given[key].strip():
            raise ValueError(f"{key} must be a string that is not empty, got {given.get(key)!r}")
    file = folder / given["file"]
    if file not in files:
        files[file] = _tensors(file)
    tensors = files[file]
    if isinstance(tensors, str):
        raise ValueError(tensors)
    codes, alignment, speaker = (tensors.get(f"{given['id']}.{name}") for name in ("codes", "alignment", "speaker"))
    if codes is None:
        raise ValueError(f"{given['file']} holds no tensor {given['id']}.codes")
    prompt: Any = {key: given[key] for key in PROMPT_KEYS if key in given}
    return Item(given["id"], given["text"], codes, alignment, speaker, prompt)


def _tensors(file: Path) -> Mapping[str, Tensor] | str:
    try:
        checkpoint = Checkpoint(file)
        return checkpoint.tensors(checkpoint.shapes)
    except (OSError, ValueError) as error:
        return str(error)


def _check(item: Item, config: Zonos2Config, longest: int) -> None:
    """ValueError, TypeError: the item does not fit the model."""
    C, last, text_bytes = config.n_codebooks, config.codebook_size - 1, len(item.text.encode())
    if item.codes.dtype not in INTEGERS or item.codes.ndim != 2 or item.codes.shape[1] != C or not len(item.codes):
        raise ValueError(f"codes must be integers [frames, {C}], got {item.codes.dtype} {list(item.codes.shape)}")
    _check_range("codes", item.codes, 0, last)
    if item.alignment is not None:
        if item.alignment.dtype not in INTEGERS or item.alignment.shape != item.codes.shape[:1]:
            found = f"{item.alignment.dtype} {list(item.alignment.shape)}"
            raise ValueError(f"alignment must be integers [{len(item.codes)}], one a frame, got {found}")
        _check_range("alignment", item.alignment, -1, text_bytes - 1)
    if item.speaker is not None:
        shape = [config.speaker_embedding_dim]
        if list(item.speaker.shape) != shape or not item.speaker.is_floating_point():
            raise ValueError(f"speaker must be floats {shape}, got {item.speaker.dtype} {list(item.speaker.shape)}")
        if not item.speaker.isfinite().all():
            raise ValueError("speaker holds NaN or Inf")
    if (length := item.length(config)) > longest:
        raise ValueError(f"has {length} tokens, at most {longest} are accepted")


def _check_range(name: str, found: Tensor, low: int, high: int) -> None:
    least, most = (int(value) for value in torch.aminmax(found))
    if least < low or most > high:
        raise ValueError(f"{name} must be in {low}..{high}, got {least if least < low else most}")
