"""The profile command on a CPU: its table, its trace, what it refuses."""

import argparse
import gzip
import json
import os
import subprocess
import sys
import warnings

import pytest

from zonos2_triton.bench.specs.frame_cost import frame_cost, total
from zonos2_triton.bench.timing import profile
from zonos2_triton.bench.timing.profile import TEXT
from zonos2_triton.bench.timing.range_times import bare
from zonos2_triton.bench.timing.vocoder import step_costs
from zonos2_triton.model import build_prompt

FRAMES = 3


def options_of(*argv):
    parser = argparse.ArgumentParser()
    profile.command(parser)
    return parser.parse_args([str(argument) for argument in argv])


@pytest.fixture(scope="module")
def recorded(tiny_folder, tmp_path_factory):
    """A report and its trace, of a model that is named by its weights."""
    out = tmp_path_factory.mktemp("profile") / "trace.json.gz"
    model = tiny_folder / "model.safetensors"
    options = profile.checked(options_of("--model", model, "--frames", FRAMES, "--device", "cpu", "--out", out))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Warning: Profiler clears events", UserWarning)  # of torch 2.11
        report = profile.profiled(options)
    return report, json.loads(gzip.decompress(out.read_bytes()))


def only(report, *path):
    [row] = [row for row in report["ranges"] if tuple(row["path"][-len(path) :]) == path]
    return row


def test_the_trace_holds_every_range(recorded, tts):
    report, trace = recorded
    seen = [bare(event["name"]) for event in trace["traceEvents"] if event.get("cat") == "user_annotation"]
    assert seen.count("model/frame") == FRAMES - 1
    assert seen.count("model/layer") == FRAMES * tts.backbone.config.n_layers
    assert {row["range"] for row in report["ranges"]} <= set(seen)
    names = {event["name"] for event in trace["traceEvents"]}
    assert {f"model/layer {i}" for i in range(tts.backbone.config.n_layers)} <= names
    assert "kernel/decode_attention 1" in names


def test_bytes_are_the_kernels_own_costs(recorded, tts):
    report, _ = recorded
    config = tts.backbone.config
    parts = frame_cost(config, 1, len(build_prompt(config, TEXT)) + (FRAMES - 1) // 2, 4)
    assert only(report, "model/frame")["bytes"] == total(parts).bytes
    attention = only(report, "model/frame", "model/layer", "kernel/decode_attention")
    assert (attention["count"], attention["bytes"]) == (
        (FRAMES - 1) * config.n_layers, parts["decode_attention"].bytes / config.n_layers,
    )  # fmt: skip
    codec = step_costs(tts.vocoder.config, 1, FRAMES, 4)
    assert only(report, "codec/decode")["bytes"] == sum(cost.bytes for cost in codec)


def test_the_report_for_a_person(recorded):
    report, _ = recorded
    assert (report["time_of"], report["device"], report["matmul_tflop_per_s"]) == ("host", "CPU", None)
    frame = only(report, "model/frame")
    assert frame["floor_us"] == pytest.approx(frame["bytes"] / report["copy_gb_per_s"] / 1e3, rel=1e-3)
    lines = profile.shown(report).splitlines()
    assert f"copy bandwidth measured just now: {report['copy_gb_per_s']:g} GB/s" in lines
    assert "host times of a CPU, the profiler's own cost among them" in lines
    assert any(line.split()[:2] == ["model/frame", str(FRAMES - 1)] for line in lines)
    assert lines[-1] == f"{report['trace']}: ui.perfetto.dev opens it"


@pytest.mark.parametrize(
    ("on_device", "cuda_graphs", "said"), [(False, "off", "mean nothing"), (True, "lazy", "off"), (True, "off", "lazy")]
)
def test_interpreted_and_replayed_times_say_so(on_device, cuda_graphs, said):
    assert said in profile.note(cuda_graphs, "triton", on_device)


def test_a_folder_gets_a_file_of_the_commands_name(tmp_path):
    assert profile.checked(options_of("--out", tmp_path)).out == tmp_path / "profile.json.gz"


@pytest.mark.slow  # a process of its own
def test_triton_is_left_to_the_model_and_a_compiler_is_refused_on_a_cpu(tmp_path):
    """Whether it interprets is settled when it is imported."""
    program = """
import sys
import zonos2_triton.bench.timing.profile as profile
assert "triton" not in sys.modules
import triton
from zonos2_triton.model import cli
sys.exit(cli.main(["profile", "--backend", "triton", "--device", "cpu", "--frames", "1"]))
"""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert run.returncode == 2, run.stderr
    assert "set TRITON_INTERPRET=1 before it starts" in run.stderr
