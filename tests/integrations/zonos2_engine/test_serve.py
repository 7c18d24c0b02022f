"""The official launcher with every process accelerated. Here it launches a stand-in that says how it was started."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.integrations.zonos2_engine.official import STAND_IN, standing_in
from zonos2_triton.model.integrations.accelerate import MARK
from zonos2_triton.model.integrations.zonos2_engine import serve
from zonos2_triton.model.integrations.zonos2_engine.attention import BACKEND

OFFICIAL = ["--model-path", "somewhere", "--attn", "auto"]
OURS = [
    "zonos2_triton.model.integrations.zonos2_engine.package",
    "zonos2_triton.model.integrations.zonos2_engine.sampler",
]


def served(*arguments: str, path: Path | str = STAND_IN) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "zonos2_triton.model.integrations.zonos2_engine.serve", *arguments]
    environment = os.environ | {"PYTHONPATH": str(path), "ZONOS2_TRITON_BACKEND": "reference"}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)


def test_every_process_is_accelerated():
    done = served(*OFFICIAL)
    assert done.returncode == 0, done.stderr
    names, scheduler, tokenizer = json.loads(done.stdout.splitlines()[-1])
    assert names == ["fi", BACKEND], "the launcher does not know the name that it is to accept"
    assert scheduler == ["scheduler", OFFICIAL, ["fi", BACKEND], *OURS]
    assert tokenizer == ["tokenizer", 0, "here", "Replacement"]


def test_help_is_both_texts():
    done = served("--help")
    assert "--only" in done.stdout
    assert '["--help"]' in done.stdout


def test_without_the_official_package(tmp_path):
    done = served(*OFFICIAL, path=tmp_path)
    assert done.returncode == 1
    assert (
        "the official package zonos2 is not installed: pip install git+https://github.com/Zyphra/ZONOS2" in done.stderr
    )


@pytest.mark.parametrize(
    ("only", "scheduler", "tokenizer"),
    [
        ((), serve.SCHEDULER, serve.TOKENIZER),
        (("sampler", "vocoder"), ("sampler",), ("vocoder",)),
        (("model",), ("model",), ()),
    ],
)
def test_only(monkeypatch, only, scheduler, tokenizer):
    """What each process is started with."""
    with standing_in() as package:
        launcher, started = package("server.launch"), list[Any]()

        def launch_server() -> None:
            started.append((launcher._run_scheduler, package("tokenizer").tokenize_worker, sys.argv[1:]))

        monkeypatch.setattr(launcher, "launch_server", launch_server)
        monkeypatch.setattr(sys, "argv", ["serve"])
        serve.main([*OFFICIAL, *(["--only", *only] if only else [])])
        first, second, given = started[0]
        assert (first.func, first.args) == (serve.run_scheduler, (scheduler,))
        assert (second.func, second.args) == (serve.tokenize_worker, (tokenizer,))
        assert given == OFFICIAL


def test_a_process_of_which_nothing_is_replaced(monkeypatch):
    with standing_in() as package:
        told = list[Any]()
        package("core")
        serve.tokenize_worker((), ack_queue=SimpleNamespace(put=told.append), tokenizer_id=3, addr="there")
        assert told == [("tokenizer", 3, "there", "function")]
        assert MARK not in vars(sys.modules["zonos2"])


def test_the_device_is_set_first(monkeypatch):
    """Importing the engine makes a context on the current device."""
    with standing_in() as package:
        order = list[Any]()
        monkeypatch.setattr(serve.torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(serve.torch.cuda, "set_device", lambda rank: order.append(("device", rank)))
        monkeypatch.setattr(serve, "accelerate", lambda _, only: order.append(("accelerate", only)))
        monkeypatch.setattr(
            package("server.launch"), "_run_scheduler", lambda args, queue: order.append(("run", queue))
        )
        serve.run_scheduler(("model",), SimpleNamespace(tp_info=SimpleNamespace(rank=3)), "queue")
        assert order == [("device", 3), ("accelerate", ("model",)), ("run", "queue")]


def test_an_operation_that_is_none(capsys):
    with pytest.raises(SystemExit):
        serve.main(["--only", "sample"])
    assert "invalid choice: 'sample'" in capsys.readouterr().err
