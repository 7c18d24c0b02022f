"""Ranges: none without a listener, a tree of stages, layers and operations with one."""

import logging
import sys
from contextlib import contextmanager
from dataclasses import fields
from types import SimpleNamespace

import nvtx
import pytest
import torch

from zonos2_triton.model import Sampling, build_prompt
from zonos2_triton.model import nvtx as ranges
from zonos2_triton.model.nvtx import annotate, ranged, recorded
from zonos2_triton.model.ops import vocoder_ops
from zonos2_triton.model.runtime.model_runner import in_layer
from zonos2_triton.reference.ops import REFERENCE

SHORT = Sampling(seed=7, max_frames=4, ignore_eos=True)


class Recorder:
    """A sink that keeps (parent, name, payload) in order, and the open ranges."""

    def __init__(self):
        self.entered, self.open = [], []

    @contextmanager
    def __call__(self, name, payload):
        self.entered.append((self.open[-1] if self.open else None, name, payload))
        self.open.append(name)
        try:
            yield
        finally:
            assert self.open.pop() == name

    def payloads(self, name):
        return [payload for _, found, payload in self.entered if found == name]

    def parents(self, name):
        return {parent for parent, found, _ in self.entered if found == name}


@pytest.fixture(autouse=True)
def silent():
    """Independent of the environment of this run."""
    with recorded(None):
        yield


def test_off_is_one_shared_nothing():
    assert annotate("model/generate") is annotate("kernel/moe_experts", 3) is in_layer(3) is ranges.OFF
    with pytest.raises(KeyError), annotate("model/generate"):
        raise KeyError
    assert ranged(REFERENCE) is REFERENCE
    assert ranged(ops := vocoder_ops(torch.float32)) is ops


def test_recorded_listens_for_the_time_of_its_block_and_on_top_of_another():
    outer, inner = Recorder(), Recorder()
    with recorded(outer):
        with annotate("model/a"), recorded(inner), annotate("model/b", 2):
            pass
        with pytest.raises(KeyError), annotate("model/c"), annotate("model/d"), recorded(inner):
            raise KeyError
        with annotate("model/e"):
            pass
    assert annotate("model/f") is ranges.OFF
    alone = [(None, f"model/{name}", None) for name in "ace"]
    assert outer.entered == [*alone[:2], ("model/c", "model/d", None), alone[2]]
    assert inner.entered == [(None, "model/b", 2)]
    assert outer.open == inner.open == []


def test_every_operation_of_a_table_is_a_range_with_its_rows():
    recorder = Recorder()
    with recorded(recorder):
        watched = ranged(REFERENCE)
        x = torch.ones(3, 8)
        _, normed = watched.add_rms_norm(x, None, torch.ones(8), 1e-5)
    assert recorder.entered == [(None, "kernel/add_rms_norm", 3)]
    assert torch.equal(normed, REFERENCE.add_rms_norm(x, None, torch.ones(8), 1e-5)[1])
    assert all(getattr(watched, field.name) is not getattr(REFERENCE, field.name) for field in fields(REFERENCE))
    ops = vocoder_ops(torch.float16)
    with recorded(recorder):
        assert ranged(ops).widest_unit == ops.widest_unit


def test_nvtx_makes_the_attributes_of_a_range_once():
    made, calls = [], []
    domain = SimpleNamespace(  # in place of one of the nvtx package
        get_event_attributes=lambda *attributes: made.append(attributes) or attributes[::3],
        push_range=calls.append,
        pop_range=lambda: calls.append("end"),
    )
    with recorded(ranges.nvtx_ranges(domain)):
        for _ in range(3):
            with annotate("model/frame", 2), annotate("kernel/codebook_head", 2):
                pass
        with pytest.raises(KeyError), annotate("model/frame", 2):
            raise KeyError
    assert made == [("model/frame", None, "model", 2), ("kernel/codebook_head", None, "kernel", 2)]
    assert calls == [("model/frame", 2), ("kernel/codebook_head", 2), "end", "end"] * 3 + [("model/frame", 2), "end"]


def test_nvtx_is_on_where_it_is_asked_for():
    assert ranges.sink_of(False) is None
    sink = ranges.sink_of(True)
    assert sink("model/frame", 1)._domain is nvtx.get_domain("zonos2_triton")
    with recorded(sink), annotate("model/generate", 1), annotate("codec/block"):
        pass


def test_without_the_package_the_switch_warns_once_and_nothing_is_on(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "nvtx", None)
    with caplog.at_level(logging.WARNING, "zonos2_triton"):
        assert ranges.sink_of(True) is None
    assert caplog.messages == ["ZONOS2_TRITON_NVTX=1 has no effect: the package nvtx is not installed"]


def test_a_generation_is_the_expected_tree(tts):
    """The reference computes each sequence alone: a frame of two requests is two forwards. No token comes twice."""
    texts, spoken = ["Hello.", "a"], Recorder()
    with recorded(spoken):
        sounds = tts.speak(texts, sampling=SHORT)
    quiet = tts.speak(texts, sampling=SHORT)
    assert all(torch.equal(a.samples, b.samples) for a, b in zip(sounds, quiet, strict=True))
    config, prompts, frames = tts.backbone.config, 2, SHORT.max_frames - 1
    steps = 2 * frames
    expected = {
        "model/start": 1, "model/sample": 1 + steps,
        "kernel/sample_codes": 1 + steps,
        "kernel/decode_attention": steps * config.n_layers,
        "kernel/moe_router": (prompts + steps) * len(config.moe_layers),
        **dict.fromkeys(("kernel/output_projection", "kernel/moe_experts"), (prompts + steps) * config.n_layers),
    }  # fmt: skip
    assert {name: len(spoken.payloads(name)) for name in expected} == expected
    assert spoken.open == []
    parents = {"model/generate": {None}, "codec/decode": {None}, "model/layer": {"model/prefill", "model/frame"},
               "kernel/moe_experts": {"model/layer"}, "kernel/sample_codes": {"model/sample"},
               "model/frame": {"model/frames"}, "kernel/codebook_head": {"model/start", "model/frame"}}  # fmt: skip
    assert {name: spoken.parents(name) for name in parents} == parents
    rows = [len(build_prompt(config, text)) for text in texts]
    in_layers = [n for n in rows for _ in range(config.n_layers)]
    payloads = {"model/generate": [2], "model/prefill": rows, "model/frame": [2] * frames}
    payloads |= {"codec/decode": [SHORT.max_frames] * 2, "kernel/prefill_attention": in_layers}
    payloads["kernel/qkv_projection"] = in_layers + [1] * (steps * config.n_layers)
    payloads["model/layer"] = [*range(config.n_layers)] * (prompts + steps)
    assert {name: spoken.payloads(name) for name in payloads} == payloads


def test_a_step_of_the_codec_is_blocks_of_operations(tts, in_steps):
    vocoder = in_steps(tts.vocoder)
    codes = torch.randint(0, 1024, (1, 9, 3), generator=torch.Generator().manual_seed(0))
    quiet, recorder = vocoder.decode(codes), Recorder()
    with recorded(recorder):
        assert torch.equal(vocoder.decode(codes), quiet)
    blocks, steps = len(vocoder.config.decoder_rates), len(recorder.payloads("codec/step"))
    assert steps >= 1
    assert recorder.payloads("codec/block") == [*range(blocks)] * steps
    assert recorder.parents("codec/block") == {"codec/step"}
    assert recorder.parents("kernel/conv_transpose1d_snake") == {"codec/block"}
    assert len(recorder.payloads("kernel/conv1d_tanh")) == len(recorder.payloads("kernel/rvq_decode")) == steps
