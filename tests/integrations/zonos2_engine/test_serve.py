"""The official launcher with every process accelerated. It launches a stand-in that reports its arguments."""

import json
import os
import sys
from types import SimpleNamespace

import pytest

from tests.integrations.zonos2_engine.official import STAND_IN, standing_in
from zonos2_triton.model.integrations.accelerate import MARK
from zonos2_triton.model.integrations.zonos2_engine import serve
from zonos2_triton.model.integrations.zonos2_engine.attention import BACKEND

OFFICIAL = ["--model-path", "somewhere", "--attn", "auto"]
OURS = [f"zonos2_triton.model.integrations.zonos2_engine.{name}" for name in ("package", "sampler")]


def test_every_process_is_accelerated(spawn):
    environment = os.environ | {"PYTHONPATH": str(STAND_IN), "ZONOS2_TRITON_BACKEND": "reference"}
    process = spawn([sys.executable, "-m", serve.__name__, *OFFICIAL], env=environment)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    names, scheduler, tokenizer = json.loads(out.splitlines()[-1])
    assert names == ["fi", BACKEND], "the launcher does not know the name that it is to accept"
    assert scheduler == ["scheduler", OFFICIAL, ["fi", BACKEND], *OURS]
    assert tokenizer == ["tokenizer", 0, "here", "Replacement"]


@pytest.fixture
def served(monkeypatch):
    """Arguments -> the entry function of each process, and the official arguments."""
    with standing_in() as package:
        launcher, started = package("server.launch"), []

        def launch_server():
            started.extend((launcher._run_scheduler, package("tokenizer").tokenize_worker, sys.argv[1:]))

        def serving(*arguments):
            serve.main(arguments)
            return started

        monkeypatch.setattr(launcher, "launch_server", launch_server)
        monkeypatch.setattr(sys, "argv", ["serve"])
        yield serving


@pytest.mark.parametrize(
    ("only", "scheduler", "tokenizer"),
    [
        ((), serve.SCHEDULER, serve.TOKENIZER),
        (("sampler", "vocoder"), ("sampler",), ("vocoder",)),
        (("model",), ("model",), ()),
    ],
)
def test_only(served, only, scheduler, tokenizer):
    first, second, given = served(*OFFICIAL, *(["--only", *only] if only else []))
    assert (first.func, first.args) == (serve.run_scheduler, (scheduler,))
    assert (second.func, second.args) == (serve.tokenize_worker, (tokenizer,))
    assert given == OFFICIAL


def test_help_is_both_texts(served, capsys):
    assert served("--help")[2] == ["--help"]
    assert "--only" in capsys.readouterr().out


def test_without_the_official_package(monkeypatch, capsys):
    monkeypatch.setattr(serve, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="1"):
        serve.main(OFFICIAL)
    missing = "the official package zonos2 is not installed: pip install git+https://github.com/Zyphra/ZONOS2"
    assert missing in capsys.readouterr().err


def test_a_process_of_which_nothing_is_replaced():
    with standing_in() as package:
        told = []
        package("core")
        serve.tokenize_worker((), ack_queue=SimpleNamespace(put=told.append), tokenizer_id=3, addr="there")
        assert told == [("tokenizer", 3, "there", "function")]
        assert MARK not in vars(sys.modules["zonos2"])


def test_the_device_is_set_first(monkeypatch):
    """The import of the engine creates a context on the current device."""
    with standing_in() as package:
        order = []
        monkeypatch.setattr(serve.torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(serve.torch.cuda, "set_device", lambda rank: order.append(("device", rank)))
        monkeypatch.setattr(serve, "accelerate", lambda _, only: order.append(("accelerate", only)))
        launcher = package("server.launch")
        monkeypatch.setattr(launcher, "_run_scheduler", lambda args, queue: order.append(("run", queue)))
        serve.run_scheduler(("model",), SimpleNamespace(tp_info=SimpleNamespace(rank=3)), "queue")
        assert order == [("device", 3), ("accelerate", ("model",)), ("run", "queue")]


def test_an_operation_that_is_none(capsys):
    with pytest.raises(SystemExit):
        serve.main(["--only", "sample"])
    assert "invalid choice: 'sample'" in capsys.readouterr().err
