"""Time and cost by range: trees and rows of traces made by hand; the kernels' costs in their places, counted once."""

from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from zonos2_triton.bench.specs.frame_cost import frame_cost, prompt_cost, total
from zonos2_triton.bench.specs.roofline import UNKNOWN, Roofline
from zonos2_triton.bench.suite.device_checks import whole_model
from zonos2_triton.bench.timing.range_costs import counts, placed, range_work
from zonos2_triton.bench.timing.range_times import Node, of_trace, rows, table
from zonos2_triton.bench.timing.vocoder import step_costs
from zonos2_triton.reference.vocoder import VocoderConfig

ROWS, FRAMES, STREAMS = 60, 40, 4


def ranged(name, start, us, **more):
    return {"ph": "X", "cat": "user_annotation", "name": name, "ts": start, "dur": us, "args": {}} | more


def launch(start, correlation, cat="cuda_runtime"):
    return {"ph": "X", "cat": cat, "name": "launch", "ts": start, "dur": 1, "args": {"correlation": correlation}}


def kernel(start, us, correlation, cat="kernel"):
    return {"ph": "X", "cat": cat, "name": "k", "ts": start, "dur": us, "args": {"correlation": correlation}}


# Two frames, the second launched as one graph of two kernels; all of it runs after the host is done.
TRACE = [
    ranged("model/frames 2", 100, 60),
    ranged("model/frame 1", 100, 30),
    ranged("model/layer 0", 100, 10),
    ranged("kernel/moe_experts 1", 102, 6),
    launch(103, 1, "cuda_driver"),
    ranged("model/layer 1", 110, 15),
    launch(112, 2),
    launch(127, 3),
    ranged("model/frame 1", 140, 20),
    launch(145, 4),
    kernel(1000, 7, 1),
    kernel(1010, 5, 2),
    kernel(1020, 2, 3, "gpu_memcpy"),
    kernel(1030, 11, 4),
    kernel(1041, 13, 4),
    kernel(1060, 17, 99),  # launched before the trace began
    ranged("ProfilerStep#1", 100, 60),
    {"ph": "X", "cat": "gpu_user_annotation", "name": "model/frame 1", "ts": 1000, "dur": 20},
    {"ph": "s", "cat": "ac2g", "name": "ac2g", "ts": 103, "id": 1},
    ranged("codec/decode 2", 200, 40),
]


def found(root):
    return {path: (node.count, node.us) for path, node in root.walk()}


# By range: calls, microseconds of the host, and those on the device of what was launched inside.
FRAME = ("model/frames", "model/frame")
TIMES = {("model/frames",): (1, 60, 38), FRAME: (2, 50, 38), (*FRAME, "model/layer"): (2, 25, 12)}
TIMES |= {(*FRAME, "model/layer", "kernel/moe_experts"): (1, 6, 7), ("codec/decode",): (1, 40, 0)}


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("events", [TRACE, TRACE[::-1]], ids=["in order", "reversed"])
def test_times_are_those_of_the_ranges(events, on_device):
    """On a device, wherever on its own clock it ran; a graph's kernels belong to the launch of the graph."""
    want = {path: (count, us[on_device]) for path, (count, *us) in TIMES.items()}
    assert found(of_trace(events, on_device)) == want


def test_rows_have_shares_and_floors():
    root = of_trace(TRACE, on_device=False)
    work = {(*FRAME, "model/layer"): (2e4, 2e6), (*FRAME, "model/layer", "kernel/moe_experts"): (6e3, 0)}
    by_name = {row["range"]: row for row in rows(root, work, Roofline(1.0, 1.0))}
    layer = by_name["model/layer"]
    assert (layer["count"], layer["total_us"], layer["mean_us"]) == (2, 25, 12.5)
    assert (layer["bytes"], layer["floor_us"], layer["pct_floor"]) == (10_000, 10, 80)
    assert layer["share"] == 25
    assert by_name["kernel/moe_experts"]["pct_floor"] == 100
    assert by_name["codec/decode"]["bytes"] is by_name["codec/decode"]["floor_us"] is None
    assert sum(by_name[name]["share"] for name in ("model/frames", "codec/decode")) == 100
    unknown = {row["range"]: row for row in rows(root, work, UNKNOWN)}["model/layer"]
    assert (unknown["bytes"], unknown["floor_us"], unknown["pct_floor"]) == (10_000, None, None)


def test_the_table_shows_depth_and_leaves_out_what_is_unknown():
    root = of_trace(TRACE, on_device=False)
    lines = table(rows(root, {("codec/decode",): (1.5e9, 0)}, Roofline(1.0, None))).splitlines()
    assert lines[3].startswith("    model/layer ")
    assert lines[-1].split() == ["codec/decode", "1", "0.040", "40.0", "40", "1.5", "GB", "1500000", "3750000"]
    assert "None" not in "".join(lines)


# Costs.


def work_of(calls, backend="triton"):
    """The costs of the 8B model and the real codec, without their weights."""
    decoder = SimpleNamespace(right_context=10)
    vocoder = SimpleNamespace(backend=backend, config=VocoderConfig(), dtype=torch.float32, decoder=decoder)
    backbone = SimpleNamespace(config=whole_model(), dtype=torch.bfloat16)
    tts = SimpleNamespace(backbone=backbone, vocoder=vocoder)
    return range_work(tts, STREAMS, FRAMES, ROWS, Counter(calls))


def test_a_frame_is_its_layers_its_head_and_its_draw():
    work = work_of({"model/frame": 10})
    parts = frame_cost(whole_model(), STREAMS, ROWS + 5)
    assert work["model/frame",] == (10 * total(parts).bytes, 10 * total(parts).flops)
    inside = [("model/layer",), ("model/sample",), ("kernel/frame_embedding",), ("kernel/codebook_head",)]
    assert sum(work["model/frame", *path][0] for path in inside) == work["model/frame",][0]
    experts = parts["moe_experts"].bytes + parts["moe_experts (dense)"].bytes
    assert work["model/frame", "model/layer", "kernel/moe_experts"][0] == 10 * experts
    assert work["model/frame", "model/sample", "kernel/sample_codes"][0] == 10 * parts["sample_codes"].bytes
    assert not any("(dense)" in path[-1] for path in work)


@pytest.mark.parametrize("calls", [1, STREAMS])
def test_prompts_are_read_together_or_one_after_the_other(calls):
    """Attention stays within a prompt, for any batch."""
    work, config = work_of({"model/prefill": calls, "model/start": 1}), whole_model()
    parts = prompt_cost(config, ROWS * STREAMS // calls)
    head = frame_cost(config, STREAMS, ROWS)["codebook_head"].bytes
    assert work["model/prefill",][0] == calls * (total(parts).bytes - parts["codebook_head"].bytes)
    attention = work["model/prefill", "model/layer", "kernel/prefill_attention"][1]
    assert attention == pytest.approx(STREAMS * prompt_cost(config, ROWS)["prefill_attention"].flops, rel=0.02)
    assert work["model/start", "kernel/codebook_head"][0] == head
    assert work["model/start",][0] == head + work["model/start", "model/sample"][0]


# Backend and calls of stages of the codec; clips that are decoded together, and frames of each step.
CODEC = {
    "steps of all": ("triton", {"codec/step": 5, "codec/advance": 5}, STREAMS, (FRAMES + 10) // 5),
    "steps of a graph": ("triton", {"codec/advance": 5}, STREAMS, (FRAMES + 10) // 5),
    "clip by clip": ("triton", {"codec/decode": STREAMS, "codec/step": STREAMS}, 1, FRAMES + 10),
    "windows": ("reference", {"codec/decode": STREAMS}, 1, FRAMES),
}


@pytest.mark.parametrize(("backend", "calls", "together", "frames"), CODEC.values(), ids=CODEC)
def test_steps_of_the_codec_are_whole(backend, calls, together, frames):
    each, steps = step_costs(VocoderConfig(), together, frames, 4), next(iter(calls.values()))
    whole = steps * sum(cost.bytes for cost in each), steps * sum(cost.flops for cost in each)
    assert work_of(calls, backend) == {(stage,): whole for stage in calls}


def test_costs_find_their_places_in_a_tree():
    prefill, frames = (Node(n, children={"model/layer": Node(28 * n)}) for n in (1, 3))
    inside = {"model/prefill": prefill, "model/frames": Node(children={"model/frame": frames}), "model/wait": Node(1)}
    root = Node(children={"model/generate": Node(1, children=inside)})
    assert counts(root).items() >= {"model/prefill": 1, "model/frame": 3, "model/layer": 28 + 84}.items()
    work = work_of(counts(root))
    in_tree = placed(root, work)
    frame = ("model/generate", "model/frames", "model/frame")
    assert in_tree[frame] == work["model/frame",]
    assert in_tree[*frame, "model/layer"] == work["model/frame", "model/layer"]
    assert in_tree["model/generate", "model/prefill", "model/layer"] == work["model/prefill", "model/layer"]
    assert {path[1] for path in in_tree} == {"model/prefill", "model/frames"}
    assert work_of({}) == {}
