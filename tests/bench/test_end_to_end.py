"""Waiting time and memory of a user, measured on a model small enough for the reference."""

import time
from types import SimpleNamespace

import pytest
import torch

from zonos2_triton.bench.suite.presets import SMOKE
from zonos2_triton.bench.timing import end_to_end as module
from zonos2_triton.bench.timing.end_to_end import EndToEnd
from zonos2_triton.model.nvtx import annotate
from zonos2_triton.model.prompt import build_prompt
from zonos2_triton.model.vocoder import Vocoder
from zonos2_triton.reference.sampling import Sampling


@pytest.fixture(scope="module")
def whole():
    return EndToEnd(SMOKE.config, SMOKE.codec, SMOKE.text, "cpu", torch.bfloat16)


def test_text_to_first_audio(whole):
    found = whole.first_audio(2, 1)
    assert (found["batch_size"], found["prompt_rows"]) == (2, len(build_prompt(whole.config, "a")))
    assert len(found["samples_ms"]) == 1  # the first round is not counted
    assert 0 < found["median_ms"] <= found["sixteen_frames_ms"]


def test_what_is_waited_for(whole):
    """First the last text's first samples, then 16 frames of each; then the rest is not wanted."""
    hop, read = whole.codec.hop, []

    class Stream:
        def __init__(self, *sizes):
            self.sizes, self.closed = list(sizes), False

        def __next__(self):
            read.append(self.sizes[0])
            return torch.zeros(self.sizes.pop(0))

        def close(self):
            self.closed = True

    streams = [Stream(3, 5, 16 * hop), Stream(1, 20 * hop)]
    waiting = iter(streams)
    tts = SimpleNamespace(stream=lambda text, sampling: next(waiting))
    first, sixteen = whole._first(tts, 2, 0)
    assert read == [3, 1, 5, 16 * hop, 20 * hop]
    assert first <= sixteen
    assert all(stream.closed for stream in streams)


def test_the_host_s_work_is_what_it_does_not_wait(whole, monkeypatch):
    """A scheduler that is busy for 2 ms in a step, and waits for 20."""
    tts = whole.speaking(1, 72)
    scheduler = tts.backbone.scheduler

    def slow(request):
        with annotate("model/step"):
            time.sleep(0.002)
            with annotate("model/wait"):
                time.sleep(0.02)
        request.frames.extend(made)

    with tts.backbone.stream(whole.prompt, Sampling(max_frames=2)) as stream:
        made = [next(stream)]
    monkeypatch.setattr(scheduler, "step", slow)
    monkeypatch.setattr(whole, "speaking", lambda batch_size, frames: tts)
    found = whole.host(1, 5)
    assert len(found["samples_us"]) == 5
    assert 2000 / scheduler.sync_interval <= found["p20_us"] <= found["median_us"] < 15_000 / scheduler.sync_interval


def test_memory_counts_weights_codec_and_cache(whole):
    found = whole.memory(0.01)
    assert found["weights_bytes"] == sum(tensor.nbytes for tensor in whole.weights.values())
    codec = Vocoder(whole.codec, module.random_codec(whole.codec, "cpu", torch.float32), "reference")
    assert found["vocoder_bytes"] == sum(tensor.nbytes for tensor in codec.state.values())
    frames = int(0.01 * whole.codec.sample_rate / whole.codec.hop)
    config, rows = whole.config, -(-(frames + len(whole.prompt)) // 64) * 64
    assert found["cache_bytes"] == 2 * config.n_layers * config.kv_heads * config.head_dim * 2 * rows
    assert found["peak_bytes"] is None
    assert found["seconds_of_audio"] == pytest.approx(0.01, abs=1e-3)
