import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from zonos2_triton.model import Zonos2
from zonos2_triton.model.cli import main
from zonos2_triton.model.training.dataset import write_dataset
from zonos2_triton.model.training.trainer import Trainer

QUICK = ["--batch-tokens", "130", "--log-every", "1", "--save-every", "100"]


@pytest.fixture
def work(tmp_path, monkeypatch, items, tiny_folder):
    """The current folder: train.jsonl, held.jsonl and a model."""
    monkeypatch.chdir(tmp_path)
    write_dataset(tmp_path / "train.jsonl", items[:5])
    write_dataset(tmp_path / "held.jsonl", items[5:])
    (tmp_path / "tiny").symlink_to(tiny_folder)
    return tmp_path


def test_training_a_given_model_further(work, capsys):
    words = [
        "train",
        "train.jsonl",
        "--held-out",
        "held.jsonl",
        "--init",
        "tiny",
        "--out",
        "run",
        "--steps",
        "3",
        "--notice",
        "a small voice",
        "--json",
    ]
    assert main([*words, *QUICK]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["step"], report["stopped"], len(report["held_out"])) == (3, False, 9)
    tts = Zonos2.load("run", device="cpu", vocoder="tiny/dac")
    assert "a small voice" in tts.notice
    changed = load_file("run/model.safetensors")
    assert any(not torch.equal(changed[name], t) for name, t in load_file("tiny/model.safetensors").items())


def test_ctrl_c_waits_for_the_step_and_resume_goes_on(work, capsys, monkeypatch):
    words = ["train", "train.jsonl", "--out", "run", "--steps", "4", *QUICK]
    step = Trainer._train

    def interrupted(self, *arguments):
        os.kill(os.getpid(), signal.SIGINT if self.step else 0)
        return step(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train", interrupted)
        assert main([*words, "--params", "tiny/params.json"]) == 130
    said = capsys.readouterr()
    assert "run: step 3 of 4" in said.out
    assert "interrupted after step 3; --resume goes on" in said.err
    assert main([*words, "--params", "tiny/params.json"]) == 2
    assert "run holds a run already; go on with --resume" in capsys.readouterr().err
    assert main([*words, "--resume", "--seed", "1"]) == 2
    assert "seed was 0, now it is 1" in capsys.readouterr().err
    assert main([*words, "--resume"]) == 0
    assert "run: step 4 of 4" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "train needs --params for a new model, --init for a given one, or --resume"),
        (["--resume"], "--resume needs a run in --out, run holds none"),
        (["--init", "tiny", "--steps", "0"], "steps must be at least 1, got 0"),
        (["--init", "none"], "none holds no params.json"),
        (["--init", "tiny", "--batch-tokens", "30"], "5 of 5 items are bad"),
        (["--init", "tiny", "--held-out", "none.jsonl"], "none.jsonl"),
        (["--init", "tiny", "--guide-layers", "9"], "guide_layers must be in 0..5, got 9"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(work, capsys, words, message):
    assert main(["train", "train.jsonl", "--out", "run", *words]) == 2
    err = capsys.readouterr().err
    assert err.startswith("zonos2-triton: error: ")
    assert message in err
    assert not (work / "run").exists()


def test_a_list_of_numbers_is_explained(work, capsys):
    with pytest.raises(SystemExit):
        main(["train", "train.jsonl", "--out", "run", "--guide-layers", "1,x"])
    assert "argument --guide-layers: invalid list of whole numbers with commas value: '1,x'" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_train_as_one_run(work):
    """torchrun's processes share gradients by gloo; an interrupted run goes on to the same bits."""
    words = ["train", "train.jsonl", "--held-out", "held.jsonl", "--params", "tiny/params.json", "--steps", "4", *QUICK]
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "zonos2_triton",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for out in ("one", "two"):
        run = subprocess.run([*launch, *words, "--out", out], env=environment, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        assert run.stdout.count(f"{out}: step 4 of 4") == 1
    one, two = load_file("one/model.safetensors"), load_file("two/model.safetensors")
    assert all(torch.equal(one[name], two[name]) for name in one)
