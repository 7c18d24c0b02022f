"""The command `train`. Its help needs no torch."""

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import Field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zonos2_triton._settings import local_path
from zonos2_triton.model.threads import sleep_while_waiting
from zonos2_triton.model.training.options import MEANING, TrainOptions

if TYPE_CHECKING:
    import torch

    from zonos2_triton.model.training.trainer import Result
    from zonos2_triton.model.training.weights import FullWeights

EXPORTED = ("float32", "bfloat16", "float16")
INTERRUPTED = 130  # a shell's status after Ctrl-C


def add_arguments(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    """Fill the parser of the command; returns the function that runs it."""
    parser.add_argument("data", metavar="JSONL", help="manifest of the dataset: texts, and codes in safetensors")
    out = "folder of the run: model.safetensors and params.json, and in training/ the state and the curves"
    parser.add_argument("-o", "--out", required=True, metavar="DIR", help=out)
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--params", metavar="JSON", help="train new weights of the model that this params.json states")
    start.add_argument("--init", metavar="DIR", help="train a given model further: its folder")
    resume = "go on with the run in --out; the options must be the same, --params and --init are known"
    parser.add_argument("--resume", action="store_true", help=resume)
    merge = "with --lora: also write the model with the adapters added"
    parser.add_argument("--merge", action="store_true", help=merge)
    parser.add_argument("--held-out", metavar="JSONL", help="manifest of items that are only listened to")
    parser.add_argument("--skip-bad", action="store_true", help="leave out bad items with a warning")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ...; default: a GPU if there is one")
    parser.add_argument("--dtype", choices=EXPORTED, default="float32", help="of the weights that are written")
    parser.add_argument("--notice", default="", metavar="TEXT", help="to be told by `say` of the model")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    group = parser.add_argument_group("training")
    for field in fields(TrainOptions):
        _add_option(group, field)
    return train


def _add_option(group: "argparse._ArgumentGroup", field: "Field[Any]") -> None:
    name, default, meaning = f"--{field.name.replace('_', '-')}", field.default, MEANING[field.name]
    if isinstance(default, bool):
        group.add_argument(name, action="store_true", help=meaning)
    elif isinstance(default, tuple):
        number = float if field.name == "codebook_weights" else int
        group.add_argument(name, type=_list_of(number), default=default, metavar="N,...", help=meaning)
    else:
        group.add_argument(
            name, type=type(default), default=default, metavar="N", help=f"{meaning}; default: {default}"
        )


def _list_of(number: type[int] | type[float]) -> Callable[[str], tuple[float, ...]]:
    def numbers(text: str) -> tuple[float, ...]:
        return tuple(number(part) for part in text.split(","))

    numbers.__name__ = f"list of {'whole numbers' if number is int else 'numbers'} with commas"
    return numbers


def train(options: argparse.Namespace) -> int:
    """Run the command. Returns the exit status."""
    given = TrainOptions(**{field.name: getattr(options, field.name) for field in fields(TrainOptions)})
    folder, source = local_path(options.out), _source(options)
    sleep_while_waiting()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it, cuBLAS is not bitwise reproducible
    from zonos2_triton.model.backend import resolve_device
    from zonos2_triton.model.threads import computing
    from zonos2_triton.model.training.dataset import load_dataset
    from zonos2_triton.model.training.parallel import local_device, processes
    from zonos2_triton.model.training.trainer import Trainer

    device = local_device(resolve_device(options.device))
    model, params = _model(options, source, given, device)
    items = load_dataset(options.data, model.config, given.batch_tokens, options.skip_bad)
    held_out = []
    if options.held_out is not None:
        held_out = load_dataset(options.held_out, model.config, given.batch_tokens, options.skip_bad)
    with processes(device) as joined, computing(model.weights().values()), _asked() as asked:
        trainer = Trainer(
            model.config, params, model, items, held_out, given, folder, options.dtype, options.notice, joined
        )
        if options.resume:
            trainer.resume()
        result = trainer.run(asked)
        if joined.rank == 0:
            print(json.dumps(_report(folder, given, result)) if options.json else _line(folder, given, result))
    if result.stopped:
        print(f"zonos2-triton: interrupted after step {result.step}; --resume goes on", file=sys.stderr)
    return INTERRUPTED if result.stopped else 0


def _source(options: argparse.Namespace) -> Path:
    """The params.json of the model. ValueError: it is not said which, or --out has a run already."""
    folder, given = local_path(options.out), options.params or options.init
    ran = (folder / "training" / "state.safetensors").exists()
    if options.lora and not options.init:
        raise ValueError("--lora trains adapters of a model: name its folder by --init, also with --resume")
    if options.merge and not options.lora:
        raise ValueError("--merge is for --lora")
    if options.resume and not ran:
        raise ValueError(f"--resume needs a run in --out, {folder} holds none")
    if options.resume and not options.lora:
        if given:
            raise ValueError(f"--resume goes on with the weights in --out, got {given} beside it")
        return folder / "params.json"
    if not given:
        raise ValueError("train needs --params for a new model, --init for a given one, or --resume")
    if ran and not options.resume:
        raise ValueError(f"{folder} holds a run already; go on with --resume, or name another --out")
    return local_path(options.params) if options.params else local_path(options.init) / "params.json"


def _model(
    options: argparse.Namespace, source: Path, given: TrainOptions, device: "torch.device"
) -> tuple["FullWeights", dict[str, Any]]:
    """The weights to train from, and the model's params.json."""
    import torch

    from zonos2_triton.model.pipeline import WEIGHTS
    from zonos2_triton.model.training.weights import FullWeights, LoraWeights, new_weights
    from zonos2_triton.model.weights.checkpoint import Checkpoint, load_weights, one_file
    from zonos2_triton.reference import network
    from zonos2_triton.reference.config import Zonos2Config

    config = Zonos2Config.from_json(source)
    params = json.loads(source.read_text(encoding="utf-8"))
    if options.init is None:  # a resumed run reads its state later
        return FullWeights(config, new_weights(config, given.seed), device), params
    checkpoint = Checkpoint(one_file(local_path(options.init), "weights", WEIGHTS))
    if given.lora:
        return LoraWeights(config, checkpoint, given, device, options.merge), params
    weights = load_weights(checkpoint, network.layout(config), torch.device("cpu"), torch.float32)
    return FullWeights(config, weights, device), params


@contextmanager
def _asked() -> Iterator[Callable[[], bool]]:
    """Inside, Ctrl-C and SIGTERM are kept until the step is done: the function says whether one came."""
    came: list[int] = []
    stops = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(stop, lambda number, _: came.append(number)) for stop in stops]
    try:
        yield lambda: bool(came)
    finally:
        for stop, handler in zip(stops, before, strict=True):
            signal.signal(stop, handler)


def _report(folder: Path, options: TrainOptions, result: "Result") -> dict[str, Any]:
    report = {"folder": str(folder), "step": result.step, "steps": options.steps, "stopped": result.stopped}
    return report | {"cross_entropy": result.cross_entropy, "held_out": result.held_out}


def _line(folder: Path, options: TrainOptions, result: "Result") -> str:
    def rounded(values: list[float]) -> str:
        return " ".join(f"{value:.3f}" for value in values)

    held_out = f", held out {rounded(result.held_out)}" if result.held_out else ""
    entropy = f"cross entropy by codebook {rounded(result.cross_entropy)}{held_out}"
    return f"{folder}: step {result.step} of {options.steps}, {entropy}; curves in {folder / 'training' / 'curves.png'}"
