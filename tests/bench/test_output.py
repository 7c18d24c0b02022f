"""Output of the tools: with --json one document on standard output alone; files are complete, or as they were."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from zonos2_triton.bench.compiler import op_schema, snapshot
from zonos2_triton.bench.compiler.expected import Row
from zonos2_triton.model.cli import TOOLS, main

SAMPLE = Path(__file__).parent / "results" / "sample.json"
COMMANDS = {
    "bench --kernel rvq_decode --workload tiny": 0,
    "bench --compare {sample} {sample}": 0,
    "gpu": 1,
    "gpu --names --stage accuracy": 0,
    "gpu --smoke --stage calibration --out {tmp}": 0,
    "plan": 0,
    "plan --gpu rtx4060": 1,
    "profile --frames 2 --out {tmp}": 0,
    "report {sample} -o {tmp}/page.html": 0,
    "verify --kernel rotary --workload tiny --dtype float32": 0,
}


def document(text):
    """Strictly: JSON has no NaN or Infinity."""

    def refuse(constant):
        raise ValueError(constant)

    return json.loads(text, parse_constant=refuse)


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch 2.11's profiler
@pytest.mark.parametrize(("command", "status"), COMMANDS.items())
def test_one_document_and_nothing_else(command, status, capfd, tmp_path):
    """Descriptors are watched, not Python's streams alone: libraries write by themselves."""
    words = [word.format(sample=SAMPLE, tmp=tmp_path) for word in command.split()]
    assert main([*words, "--json"]) == status
    assert document(capfd.readouterr().out)


@pytest.mark.slow
def test_compile_in_its_own_processes(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "zonos2_triton", "compile", "--kernel", "rotary", "--target", "sm_90"]
    run = subprocess.run([*command, "--json"], capture_output=True, text=True, env=environment, cwd=tmp_path)
    found = document(run.stdout)
    assert {row["kernel"] for row in found["rows"]} == {"rotary"}
    assert not found["failed"], run.stderr


def test_every_tool_is_asked():
    assert {command.split()[0] for command in COMMANDS} | {"compile", "tune"} == TOOLS.keys()


def test_the_report_names_its_page(capfd, tmp_path):
    page = tmp_path / "page.html"
    assert main(["report", str(SAMPLE), "-o", str(page), "--json"]) == 0
    assert document(capfd.readouterr().out) == {"page": str(page), "results": ["sample.json"]}


@pytest.mark.parametrize(
    "write",
    [
        lambda path: snapshot.write_snapshot(path, [Row("k", "_k", "decode-B1-bfloat16", "sm_90", ())], ["k"]),
        lambda path: op_schema.write(path, "2.0.0", {"op": "op() -> Tensor"}),
    ],
    ids=["snapshot", "schemas"],
)
def test_a_disk_that_is_full_leaves_the_file_before(write, tmp_path, monkeypatch):
    before = '{"version": "1.0.0", "ops": {}}' + "\n" * 99
    (path := tmp_path / "kept.json").write_text(before, encoding="utf-8")
    monkeypatch.setattr(snapshot, "read_snapshot", lambda _: {})
    whole = Path.write_text

    def half(self, text, **options):
        whole(self, text[: len(text) // 2], **options)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(OSError, match="No space"):
        write(path)
    assert path.read_text(encoding="utf-8") == before
    assert [*tmp_path.iterdir()] == [path]
