"""What ranges must move: the kernels' costs in their places, and nothing counted twice."""

from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from zonos2_triton.bench.specs.frame_cost import frame_cost, prompt_cost, total
from zonos2_triton.bench.suite.device_checks import whole_model
from zonos2_triton.bench.timing.range_costs import counts, placed, range_work
from zonos2_triton.bench.timing.range_times import Node
from zonos2_triton.bench.timing.vocoder import step_costs
from zonos2_triton.reference.vocoder import VocoderConfig

ROWS, FRAMES, STREAMS = 60, 40, 4


def work_of(calls, dtype=torch.bfloat16, backend="triton"):
    """Of the 8B model and the real codec, without their weights."""
    decoder = SimpleNamespace(lookahead=10)
    vocoder = SimpleNamespace(backend=backend, config=VocoderConfig(), dtype=dtype, decoder=decoder)
    backbone = SimpleNamespace(config=whole_model(), dtype=torch.bfloat16)
    tts = SimpleNamespace(backbone=backbone, vocoder=vocoder)
    return range_work(tts, STREAMS, FRAMES, ROWS, Counter(calls))


def test_a_frame_is_its_layers_its_head_and_its_draw():
    work = work_of({"model/frame": 10})
    parts = frame_cost(whole_model(), STREAMS, ROWS + 5)
    assert work["model/frame",] == (10 * total(parts).bytes, 10 * total(parts).flops)
    inside = [("model/layer",), ("model/draw",), ("kernel/frame_embedding",), ("kernel/head",)]
    assert sum(work["model/frame", *path][0] for path in inside) == work["model/frame",][0]
    experts = parts["experts"].bytes + parts["experts (dense)"].bytes
    assert work["model/frame", "model/layer", "kernel/experts"][0] == 10 * experts
    assert work["model/frame", "model/draw", "kernel/sample"][0] == 10 * parts["sample"].bytes
    assert not any("(dense)" in path[-1] for path in work)


@pytest.mark.parametrize("calls", [1, STREAMS])
def test_prompts_are_read_together_or_one_after_the_other(calls):
    """Attention is within a prompt, whoever else is there."""
    work, config = work_of({"model/prefill": calls, "model/start": 1}), whole_model()
    rows = ROWS * STREAMS // calls
    parts = prompt_cost(config, rows)
    head = frame_cost(config, STREAMS, ROWS)["head"].bytes
    assert work["model/prefill",][0] == calls * (total(parts).bytes - parts["head"].bytes)
    attention = work["model/prefill", "model/layer", "kernel/prefill_attention"][1]
    assert attention == pytest.approx(STREAMS * prompt_cost(config, ROWS)["prefill_attention"].flops, rel=0.02)
    assert work["model/start", "kernel/head"][0] == head
    assert work["model/start",][0] == head + work["model/start", "model/draw"][0]


# Calls of stages of the codec; clips that are decoded together, and frames of each step.
CODEC = {
    "steps of all": ({"codec/step": 5, "codec/speak": 5}, STREAMS, (FRAMES + 10) // 5),
    "steps of a graph": ({"codec/speak": 5}, STREAMS, (FRAMES + 10) // 5),
    "clip by clip": ({"codec/decode": STREAMS, "codec/step": STREAMS}, 1, FRAMES + 10),
}


@pytest.mark.parametrize(("calls", "together", "frames"), CODEC.values(), ids=CODEC)
def test_steps_of_the_codec_are_whole(calls, together, frames):
    each, steps = step_costs(VocoderConfig(), together, frames, 2), next(iter(calls.values()))
    whole = steps * sum(cost.bytes for cost in each), steps * sum(cost.flops for cost in each)
    assert work_of(calls, torch.float16) == {(stage,): whole for stage in calls}


def test_windows_of_the_reference_are_whole():
    alone = step_costs(VocoderConfig(), 1, FRAMES, 4)
    work = work_of({"codec/decode": STREAMS}, torch.float32, "reference")
    assert work == {("codec/decode",): (STREAMS * sum(c.bytes for c in alone), STREAMS * sum(c.flops for c in alone))}


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
