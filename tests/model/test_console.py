"""Standard streams that are closed or full."""

import sys

import pytest

COMMAND = [sys.executable, "-m", "zonos2_triton"]


@pytest.mark.parametrize(
    ("command", "status", "message"),
    [
        (["doctor"], 2, "zonos2-triton: error: standard output cannot be written: [Errno 28] No space left on device"),
        (["tiny", "new"], 0, "zonos2-triton: note: standard output cannot be written: [Errno 28] No space left"),
    ],
    ids=["the-result", "of-the-result"],
)
def test_a_full_standard_output(spawn, tmp_path, command, status, message):
    with open("/dev/full", "w", encoding="utf-8") as full:
        process = spawn([*COMMAND, *command], stdout=full, cwd=tmp_path)
        err = process.communicate(timeout=300)[1]
    assert (process.returncode, err.count("\n")) == (status, 1)
    assert err.startswith(message)


def test_a_closed_stream_is_no_place_for_a_file(spawn, tmp_path):
    """The sound must not take the descriptor of standard error, where C's messages go."""
    (tmp_path / "x.py").write_text(
        "import os\nfrom zonos2_triton.model.console import unfailing\n"
        "with unfailing():\n    os._exit(os.open('x.py', os.O_RDONLY))\n"
    )
    process = spawn(["sh", "-c", 'exec "$0" x.py 2>&-', sys.executable], cwd=tmp_path)
    assert process.wait(timeout=300) > 2
