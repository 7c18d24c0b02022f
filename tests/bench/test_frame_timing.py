"""Whole frames and prompts, timed on a small model by the reference: how the kernels take a frame, others test."""

import dataclasses

import pytest
import torch

from zonos2_triton.bench.specs.frame_cost import frame_cost, prompt_cost, total
from zonos2_triton.bench.specs.roofline import Roofline
from zonos2_triton.bench.suite import device_checks
from zonos2_triton.bench.suite.presets import FULL
from zonos2_triton.bench.timing.frame import ROOM, FrameTimer, state_at
from zonos2_triton.bench.timing.timer import Device
from zonos2_triton.reference import network
from zonos2_triton.reference.ops import REFERENCE

CPU = Device("cpu", 0, lambda: None, lambda run: 0.4, None)
CONFIG = device_checks.layer_chain(small=True)


@pytest.fixture
def timer():
    found = FrameTimer(network.bind(CONFIG, device_checks.random_weights(CONFIG, "cpu", torch.float32)))
    found.ops = REFERENCE
    return found


@pytest.fixture
def faulty(timer):
    timer.model = dataclasses.replace(timer.model, out_norm=timer.model.out_norm * float("nan"))
    return timer


def test_a_frame_is_timed_with_its_draw_and_without(timer):
    found = timer.time(2, 5, CPU, Roofline(1.0, None), 0.0, graph=False, least=1)
    assert (found["batch_size"], found["context"]) == (2, 5)
    assert found["bytes"] == sum(cost.bytes for cost in frame_cost(CONFIG, 2, 5, 4).values())
    assert found["floor_us"] == pytest.approx(found["bytes"] / 1e3, abs=1e-3)
    assert found["pct_floor"] == pytest.approx(100 * found["floor_us"] / found["median_us"], abs=0.1)
    assert {"median_us", "forward_us", "sampling_us", "sampling_share", "gb_per_s"} <= found.keys()


def test_a_prompt_is_timed_to_its_last_row_s_logits(timer):
    found = timer.time_prompt(20, CPU, Roofline(1.0, 1e-3), 0.0, least=1)
    cost = total(prompt_cost(CONFIG, 20, 4))
    assert (found["rows"], found["bytes"], found["flops"]) == (20, cost.bytes, cost.flops)
    assert found["floor_us"] == pytest.approx(max(cost.bytes / 1e3, cost.flops / 1e3), abs=1e-2)
    assert (found["median_us"], found["launch"]) == (400, "eager")


def test_what_is_not_finite_has_no_time(faulty):
    running = dataclasses.replace(CPU, elapsed=lambda run: (run(), 0.4)[1])
    with pytest.raises(FloatingPointError, match="a stream ended while it was timed"):
        faulty.time(1, 5, running, seconds=0.0, graph=False, least=1)
    with pytest.raises(FloatingPointError, match="the logits of a prompt are not finite"):
        faulty.time_prompt(20, CPU, seconds=0.0, least=1)


def test_streams_have_room_for_the_frames_of_a_sample_and_little_more(timer):
    slots = state_at(timer.model, 3, 100)
    assert slots.cache.k[0].shape[0] == 3 * 3  # pages of 64
    assert slots.positions.tolist() == [100] * 3
    assert len(set(slots.block_table[:, :3].flatten().tolist())) == 9
    for contexts in FULL.contexts.values():
        assert max(contexts) + ROOM == FULL.config.max_seqlen
