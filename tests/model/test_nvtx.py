"""Ranges: nothing while nobody listens, a tree of stages, layers and operations when somebody does."""

import ast
import builtins
import importlib
import logging
import timeit
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from zonos2_triton.model import Sampling, build_prompt
from zonos2_triton.model import nvtx as ranges
from zonos2_triton.model.nvtx import annotate, ranged, recorded
from zonos2_triton.model.ops import vocoder_ops
from zonos2_triton.reference import network as reference
from zonos2_triton.reference.ops import REFERENCE

SHORT = Sampling(seed=7, max_frames=4, ignore_eos=True)
# A range while nobody listens, in plain calls of a Python function: 200 ns where such a call takes 35. Measured 3.6 and
# 4.3, on two threads of an AMD EPYC: 127 and 152 ns. A busy machine slows both.
IDLE_CALLS = 200 / 35


class Recorder:
    """A sink that keeps (depth, name, payload) in order, and what is open."""

    def __init__(self):
        self.entered, self.open = [], []

    @contextmanager
    def __call__(self, name, payload):
        self.entered.append((len(self.open), name, payload))
        self.open.append(name)
        try:
            yield
        finally:
            assert self.open.pop() == name

    def count(self, name):
        return sum(entry[1] == name for entry in self.entered)

    def payloads(self, name):
        return [payload for _, found, payload in self.entered if found == name]

    def parents(self, name):
        """Names of the ranges that a range of this name lies directly in."""
        path, found = [], set()
        for depth, own, _ in self.entered:
            path[depth:] = [own]
            if own == name:
                found.add(path[depth - 1] if depth else None)
        return found


@pytest.fixture(autouse=True)
def silent():
    """Whatever the environment of this run says."""
    with recorded(None):
        yield


def test_off_is_one_shared_nothing():
    assert annotate("model/generate") is annotate("kernel/experts", 3) is ranges.OFF
    with pytest.raises(KeyError), annotate("model/generate"):
        raise KeyError
    assert ranged(REFERENCE) is REFERENCE
    assert ranged(ops := vocoder_ops(torch.float32)) is ops


@pytest.mark.parametrize("range", ['annotate("model/layer", 3)', "in_layer(3)"])
def test_an_idle_range_costs_next_to_nothing(range):
    from zonos2_triton.model.runtime.model_runner import in_layer

    names = {"annotate": annotate, "in_layer": in_layer, "plain": lambda name, payload=None: name}

    def cost(statement):
        return min(timeit.repeat(statement, globals=names, number=2000, repeat=50))

    # Side by side, several times: what else the machine does meanwhile slows one or the other.
    assert min(cost(f"with {range}: pass") / cost('plain("model/layer", 3)') for _ in "12345678") < IDLE_CALLS


def test_recorded_listens_for_the_time_of_its_block_and_on_top_of_another():
    outer, inner = Recorder(), Recorder()
    with recorded(outer):
        with annotate("model/a"), recorded(inner), annotate("model/b", 2):
            pass
        with pytest.raises(KeyError), recorded(inner):
            raise KeyError
        with annotate("model/c"):
            pass
    assert annotate("model/d") is ranges.OFF
    assert outer.entered == [(0, "model/a", None), (0, "model/c", None)]
    assert inner.entered == [(0, "model/b", 2)]


def test_ranges_nest_and_close_where_their_block_fails():
    recorder = Recorder()
    with recorded(recorder), pytest.raises(KeyError), annotate("model/a"), annotate("model/b"):
        raise KeyError
    assert recorder.entered == [(0, "model/a", None), (1, "model/b", None)]
    assert recorder.open == []


def test_every_operation_of_a_table_is_a_range_with_its_rows():
    recorder = Recorder()
    with recorded(recorder):
        watched = ranged(REFERENCE)
        x = torch.ones(3, 8)
        _, normed = watched.add_rms_norm(x, None, torch.ones(8), 1e-5)
    assert recorder.entered == [(0, "kernel/add_rms_norm", 3)]
    assert torch.equal(normed, REFERENCE.add_rms_norm(x, None, torch.ones(8), 1e-5)[1])
    assert all(getattr(watched, field.name) is not getattr(REFERENCE, field.name) for field in fields(REFERENCE))
    ops = vocoder_ops(torch.float16)
    with recorded(recorder):
        assert ranged(ops).widest_unit == ops.widest_unit


class Domain:
    """Counts what is made; a stand-in for one of the nvtx package."""

    def __init__(self):
        self.made, self.calls = [], []

    def get_event_attributes(self, message, color, category, payload):
        self.made.append((message, category, payload))
        return message, payload

    def push_range(self, attributes):
        self.calls.append(attributes)

    def pop_range(self):
        self.calls.append("end")


def test_nvtx_makes_the_attributes_of_a_range_once():
    domain = Domain()
    with recorded(ranges.NvtxRanges(domain)):
        for _ in range(3):
            with annotate("model/frame", 2), annotate("kernel/head", 2):
                pass
        with pytest.raises(KeyError), annotate("model/frame", 2):
            raise KeyError
    assert domain.made == [("model/frame", "model", 2), ("kernel/head", "kernel", 2)]
    assert domain.calls == [("model/frame", 2), ("kernel/head", 2), "end", "end"] * 3 + [("model/frame", 2), "end"]


def test_nvtx_is_on_where_it_is_asked_for():
    nvtx = pytest.importorskip("nvtx")
    assert ranges.sink_of(False) is None
    sink = ranges.sink_of(True)
    assert sink._domain is nvtx.get_domain("zonos2_triton")
    with recorded(sink), annotate("model/generate", 1), annotate("codec/block"):
        pass


def test_without_the_package_the_switch_warns_once_and_nothing_is_on(monkeypatch, caplog):
    real = builtins.__import__

    def refused(name, *args, **kwargs):
        if name == "nvtx":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refused)
    with caplog.at_level(logging.WARNING, "zonos2_triton"):
        assert ranges.sink_of(True) is None
    assert [record.getMessage() for record in caplog.records] == [
        "ZONOS2_TRITON_NVTX=1 has no effect: the package nvtx is not installed"
    ]


@pytest.fixture(scope="module")
def spoken(tts):
    """A recording of two texts spoken, and the sounds."""
    recorder = Recorder()
    with recorded(recorder):
        sounds = tts.speak(["Hello.", "a"], sampling=SHORT)
    return recorder, sounds


def test_a_generation_is_the_expected_tree(tts, spoken):
    """The reference computes each row alone, so that a frame of two rows is two forwards."""
    recorder, _ = spoken
    layers, config = tts.backbone.config.n_layers, tts.backbone.config
    frames, prompts = SHORT.max_frames - 1, 2
    mixtures = len(config.moe_layers)
    assert recorder.open == []
    assert {name: recorder.count(f"model/{name}") for name in ("generate", "prefill", "start", "frame", "draw")} == {
        "generate": 1, "prefill": prompts, "start": 1, "frame": frames, "draw": 1 + 2 * frames,
    }  # fmt: skip
    passes = prompts + 2 * frames
    assert recorder.count("model/layer") == passes * layers
    assert recorder.payloads("model/layer") == [*range(layers)] * passes
    for name in ("qkv_projection", "output_projection", "experts"):
        assert recorder.count(f"kernel/{name}") == passes * layers
    assert recorder.count("kernel/router") == passes * mixtures
    assert recorder.count("kernel/decode_attention") == 2 * frames * layers
    assert recorder.count("kernel/prefill_attention") == prompts * layers
    assert recorder.count("kernel/sample") == recorder.count("kernel/advance") == 1 + 2 * frames
    assert recorder.count("codec/decode") == 2
    assert recorder.parents("model/generate") == recorder.parents("codec/decode") == {None}
    assert recorder.parents("model/layer") == {"model/prefill", "model/frame"}
    assert recorder.parents("kernel/experts") == {"model/layer"}
    assert recorder.parents("kernel/sample") == {"model/draw"}
    assert recorder.parents("kernel/head") == {"model/start", "model/frame"}
    assert recorder.parents("model/frame") == {"model/frames"}


def test_payloads_say_rows_and_frames(tts, spoken):
    recorder, _ = spoken
    rows = [len(build_prompt(tts.backbone.config, text)) for text in ("Hello.", "a")]
    assert recorder.payloads("model/generate") == [2]
    assert recorder.payloads("model/prefill") == rows
    assert recorder.payloads("kernel/prefill_attention") == [
        n for n in rows for _ in range(len(tts.backbone.model.layers))
    ]
    assert set(recorder.payloads("model/frame")) == {2}
    assert recorder.payloads("codec/decode") == [SHORT.max_frames] * 2


def test_sounds_are_the_same_with_ranges_and_without(tts, spoken):
    _, sounds = spoken
    for sound, again in zip(sounds, tts.speak(["Hello.", "a"], sampling=SHORT), strict=True):
        assert torch.equal(sound.samples, again.samples)


def test_a_step_of_the_codec_is_blocks_of_operations(tts, in_steps):
    vocoder = in_steps(tts.vocoder)
    codes = torch.randint(0, 1024, (1, 9, 3), generator=torch.Generator().manual_seed(0))
    quiet, recorder = vocoder.decode(codes), Recorder()
    with recorded(recorder):
        assert torch.equal(vocoder.decode(codes), quiet)
    blocks, steps = len(vocoder.config.decoder_rates), recorder.count("codec/step")
    assert steps >= 1
    assert recorder.payloads("codec/block") == [*range(blocks)] * steps
    assert recorder.parents("codec/block") == {"codec/step"}
    assert recorder.parents("kernel/transposed_convolution") == {"codec/block"}
    assert recorder.count("kernel/waveform") == recorder.count("kernel/codebook_sum") == steps


def test_no_kernel_knows_of_ranges():
    room = Path(importlib.import_module("zonos2_triton.kernels").__file__).parent
    for path in sorted(room.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            assert not any("ranges" in name or "nvtx" in name for name in [*names, module]), path.name


def test_the_hook_around_a_layer_does_not_break_a_compilers_graph(tts):
    """Attention, router and experts aside, whose reference asks for values."""
    model = tts.backbone.model
    dense = replace(model, layers=[replace(layer, router=None) for layer in model.layers])
    width = model.config.heads * model.config.head_dim
    ops = replace(
        REFERENCE, prefill_attention=lambda qkvg, *_: qkvg[:, :width], experts=lambda x, *_, **__: x + 1
    )  # fmt: skip
    ids, graphs = build_prompt(tts.backbone.config, "a"), []
    batch = reference.Batch.single(ids, 0, torch.zeros(1, dtype=torch.int32))
    cache = reference.Cache(model.config, 1, len(ids), model.table)

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(reference.forward, backend=backend, fullgraph=True)
    with torch.no_grad():
        got, want = (run(dense, batch, cache, ops) for run in (compiled, reference.forward))
    torch.compiler.reset()
    assert len(graphs) == 1
    torch.testing.assert_close(got, want)
