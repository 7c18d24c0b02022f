"""The number of threads of a command, which the library leaves alone."""

import json
import os
import subprocess
import sys

import pytest
import torch

from zonos2_triton.model import doctor, threads
from zonos2_triton.model.cli import main

SMALL, LARGE = torch.zeros(100), torch.empty(threads.SMALL + 1)


@pytest.fixture(autouse=True)
def _unset(monkeypatch):
    for name in (*threads.NUMBER, *threads.WAITING):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def two():
    """Torch with two threads, as it would have on two cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("weights", "variable", "expected"),
    [
        ([SMALL], None, 1),
        ([SMALL, LARGE], None, 2),
        ([SMALL], "OMP_NUM_THREADS", 2),
        ([SMALL], "OMP_NUM_THREADS=2,1", 2),  # of nested regions
        ([SMALL], "OMP_NUM_THREADS=many", 1),
        ([SMALL], "MKL_NUM_THREADS=0", 1),
        ([SMALL], "MKL_NUM_THREADS", 2),
        ([], None, 2),
        ([SMALL.to("meta")], None, 2),  # of another device
    ],
    ids=["small", "large", "user", "user-list", "user-word", "user-zero", "user-mkl", "none", "elsewhere"],
)
@pytest.mark.usefixtures("two")
def test_the_number_fits_the_largest_weight(monkeypatch, weights, variable, expected):
    if variable:
        name, _, value = variable.partition("=")
        monkeypatch.setenv(name, value or "2")
    with threads.computing(weights) as count:
        assert count == torch.get_num_threads() == expected
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two")
def test_say_tells_of_another_number_and_leaves_the_caller_s(tiny_folder, tmp_path, capsys):
    command = ["say", "a", "--model", str(tiny_folder), "--out", str(tmp_path / "a.wav"), "--max-frames", "9"]
    assert main(command) == 0
    hint = "note: 1 thread instead of 2, for the model is small; OMP_NUM_THREADS chooses another number"
    assert hint in capsys.readouterr().err
    assert main([*command, "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["threads"] == 1
    assert "thread" not in err
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("name", [None, *threads.WAITING])
def test_threads_sleep_unless_the_user_says_otherwise(name):
    code = "import os\nfrom zonos2_triton.model.threads import *\nsleep_while_waiting()\n"
    environment = {key: value for key, value in os.environ.items() if key not in threads.WAITING}
    command = [sys.executable, "-c", f"{code}print(os.environ.get('OMP_WAIT_POLICY'))"]
    set_by_user = {name: "7"} if name else {}
    run = subprocess.run(command, env=environment | set_by_user, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ({"OMP_WAIT_POLICY": "7"}.get(name, "None") if name else "PASSIVE")


def test_where_torch_is_loaded_the_environment_stays():
    threads.sleep_while_waiting()
    assert not {*threads.WAITING} & os.environ.keys()


def test_doctor_says_what_would_be_chosen_and_why(monkeypatch):
    report = doctor.diagnose()
    assert report["threads"]["small_model"] == 1
    assert f"one is enough where no weight has more than {threads.SMALL} numbers" in doctor.as_text(report)
    assert "between operations they wait asleep" in doctor.as_text(report)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("GOMP_SPINCOUNT", "9")
    report = doctor.diagnose()
    assert report["threads"]["small_model"] == torch.get_num_threads()
    assert "OMP_NUM_THREADS says so; the reference's sound for a seed may depend on it" in report["threads"]["why"]
    assert "as GOMP_SPINCOUNT says" in doctor.as_text(report)
