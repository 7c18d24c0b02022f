"""Starts a process of each kind as the official launcher does, and prints their reports."""

import json
import multiprocessing as mp
import sys
from types import SimpleNamespace


class Args(SimpleNamespace):
    """The arguments of a scheduler process, which are pickled by name."""


def _run_scheduler(args, ack_queue):
    from zonos2.attention import SUPPORTED_ATTENTION_BACKENDS
    from zonos2.engine import engine, sample

    found = engine.GraphRunner.__init__.__module__, sample.TTSSampler.__mro__[1].__module__
    ack_queue.put(("scheduler", args.given, SUPPORTED_ATTENTION_BACKENDS.supported_names(), *found))


def launch_server():
    from zonos2.attention import SUPPORTED_ATTENTION_BACKENDS
    from zonos2.tokenizer import tokenize_worker

    mp.set_start_method("spawn", force=True)
    queue = mp.Queue()
    args = Args(given=sys.argv[1:], tp_info=SimpleNamespace(rank=0))
    given = {"ack_queue": queue, "tokenizer_id": 0, "addr": "here"}
    workers = [mp.Process(target=_run_scheduler, args=(args, queue)), mp.Process(target=tokenize_worker, kwargs=given)]
    for worker in workers:
        worker.start()
    told = sorted(queue.get(timeout=300) for _ in workers)
    print(json.dumps([SUPPORTED_ATTENTION_BACKENDS.supported_names(), *told]))
    for worker in workers:
        worker.join()
