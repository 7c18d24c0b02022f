"""The official zonos2 server with zonos2-triton's operations in each of its processes:

    python -m zonos2_triton.model.integrations.zonos2_engine.serve [--only OPERATIONS] ... the official arguments ...

A server has several processes: a scheduler per GPU, the tokenizers and the detokenizer. The launching process replaces
their entry functions by functions that call accelerate first.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch

from zonos2_triton.model.integrations.accelerate import accelerate

SCHEDULER = ("attention", "model", "sampler")  # operations in a scheduler process
TOKENIZER = ("vocoder",)
OPERATIONS = SCHEDULER + TOKENIZER


def main(arguments: Sequence[str] | None = None) -> None:
    """SystemExit: invalid arguments, or the official package is not installed."""
    parser = argparse.ArgumentParser(
        prog="python -m zonos2_triton.model.integrations.zonos2_engine.serve",
        description="The official zonos2 server with the kernels of zonos2-triton; it gets all other arguments.",
        epilog="The environment variables ZONOS2_TRITON_* apply to each of its processes.",
        add_help=False,
        allow_abbrev=False,
    )
    parser.add_argument("-h", "--help", action="store_true", help="this text, and then the official one")
    parser.add_argument(
        "--only", nargs="+", choices=OPERATIONS, default=OPERATIONS, help="the operations to replace; default: all"
    )
    own, rest = parser.parse_known_args(arguments)
    if own.help:
        parser.print_help()
        rest.append("--help")
    if find_spec("zonos2") is None:
        parser.exit(
            1, "the official package zonos2 is not installed: pip install git+https://github.com/Zyphra/ZONOS2\n"
        )
    launch(tuple(own.only), rest)


def launch(ops: tuple[str, ...], arguments: list[str]) -> None:
    """Start the official server, with replaced entry functions for its child processes."""
    if "attention" in ops:  # this process parses the backend's name
        accelerate(import_module("zonos2"), only=("attention",))
    server: Any = import_module("zonos2.server.launch")
    tokenizer: Any = import_module("zonos2.tokenizer")
    server._run_scheduler = partial(run_scheduler, tuple(op for op in SCHEDULER if op in ops))
    tokenizer.tokenize_worker = partial(tokenize_worker, tuple(op for op in TOKENIZER if op in ops))
    sys.argv[1:] = arguments
    server.launch_server()


def run_scheduler(ops: tuple[str, ...], args: Any, ack_queue: Any) -> None:
    """Entry of the scheduler process of one GPU."""
    if torch.cuda.is_available():
        torch.cuda.set_device(args.tp_info.rank)  # before the engine is imported
    _accelerate(ops)
    import_module("zonos2.server.launch")._run_scheduler(args, ack_queue)


def tokenize_worker(ops: tuple[str, ...], **kwargs: Any) -> None:
    """Entry of a tokenizer process, or of the detokenizer with the codec."""
    _accelerate(ops)
    import_module("zonos2.tokenizer").tokenize_worker(**kwargs)


def _accelerate(ops: tuple[str, ...]) -> None:
    if ops:
        accelerate(import_module("zonos2"), only=ops)


if __name__ == "__main__":
    # Import by name, so that the child processes can unpickle their entry functions.
    import_module("zonos2_triton.model.integrations.zonos2_engine.serve").main()
