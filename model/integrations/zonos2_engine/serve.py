"""The official zonos2 server, each of its processes with our operations:

    python -m zonos2_triton.model.integrations.zonos2_engine.serve [--only OPERATIONS] ... the official arguments ...

A server is several processes, which share nothing: the scheduler of each GPU, the tokenizers and the detokenizer. So
the functions that they start with are replaced, in the process that starts them, by ones that accelerate first.
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

SCHEDULER = ("attention", "model", "sampler")  # what a scheduler has of the package's operations
TOKENIZER = ("vocoder",)
OPERATIONS = SCHEDULER + TOKENIZER


def main(arguments: Sequence[str] | None = None) -> None:
    """SystemExit: arguments that cannot be, or no official package."""
    parser = argparse.ArgumentParser(
        prog="python -m zonos2_triton.model.integrations.zonos2_engine.serve",
        description="The official zonos2 server with the kernels of zonos2-triton; what is not listed here goes to it.",
        epilog="The environment variables ZONOS2_TRITON_* count in each of its processes.",
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
    """Start the official server. Only this process's names are replaced, the children are started with ours."""
    if "attention" in ops:  # its name is an argument that this process reads
        accelerate(import_module("zonos2"), only=("attention",))
    server: Any = import_module("zonos2.server.launch")
    tokenizer: Any = import_module("zonos2.tokenizer")
    server._run_scheduler = partial(run_scheduler, tuple(op for op in SCHEDULER if op in ops))
    tokenizer.tokenize_worker = partial(tokenize_worker, tuple(op for op in TOKENIZER if op in ops))
    sys.argv[1:] = arguments
    server.launch_server()


def run_scheduler(ops: tuple[str, ...], args: Any, ack_queue: Any) -> None:
    """The scheduler of one GPU: the process's whole life."""
    if torch.cuda.is_available():
        torch.cuda.set_device(args.tp_info.rank)  # before anything of the engine is imported
    _accelerate(ops)
    import_module("zonos2.server.launch")._run_scheduler(args, ack_queue)


def tokenize_worker(ops: tuple[str, ...], **kwargs: Any) -> None:
    """A tokenizer, or the detokenizer with the codec."""
    _accelerate(ops)
    import_module("zonos2.tokenizer").tokenize_worker(**kwargs)


def _accelerate(ops: tuple[str, ...]) -> None:
    if ops:
        accelerate(import_module("zonos2"), only=ops)


if __name__ == "__main__":
    # By its name, so that the processes find the functions that they start with.
    import_module("zonos2_triton.model.integrations.zonos2_engine.serve").main()
