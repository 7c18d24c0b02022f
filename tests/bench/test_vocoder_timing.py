"""The vocoder, timed beside plain PyTorch on a small codec."""

import math
from functools import partial

import pytest
import torch

from zonos2_triton.bench.catalogue import KERNELS
from zonos2_triton.bench.suite.recorder import Withheld
from zonos2_triton.bench.timing.timer import Device
from zonos2_triton.bench.timing.vocoder import VocoderTimer, Work, step_costs
from zonos2_triton.model import Vocoder
from zonos2_triton.reference.vocoder import VocoderConfig, layout

CPU = Device("cpu", 0, lambda: None, lambda run: 0.4, None)
CODEC = VocoderConfig(latent_dim=8, decoder_dim=6, decoder_rates=(5,), n_codebooks=3, codebook_size=16, codebook_dim=4)


def test_a_vocoder_is_timed_beside_pytorch(in_steps, monkeypatch):
    """On a small codec, by the kernels' reference: clips in several steps, and a step of streams; compiled or not."""
    timer = VocoderTimer(CODEC, "cpu", torch.float32)
    timer.vocoder = in_steps(Vocoder(CODEC, timer.state, "reference"))
    monkeypatch.setattr(timer.vocoder, "_frames_per_step", lambda rows: 12)
    monkeypatch.setattr(timer, "_compiled", lambda: timer._torch)
    streams = partial(timer.time, Work(1, 4, False), CPU, seconds=0.0, graph=False, least=1)
    found = timer.time(Work(2, 5, True), CPU, seconds=0.0, graph=False, least=1)
    assert (found["rows"], found["frames"], found["frames_of_a_step"]) == (2, 5, 12)
    assert found["audio_s_per_s"] == pytest.approx(2 * 5 * 5 / 44100 / 400e-6, abs=0.1)
    assert found["agreement_db"] > 90
    assert found["eager"]["speed_up"] == found["compiled"]["speed_up"] == 1
    assert found["compiled"]["mode"] == "default"
    assert streams(compiled=False)["compiled"] == {"not_timed": "no time left"}

    def broken(ids):
        raise RuntimeError("no C compiler\nand more")

    monkeypatch.setattr(timer, "_compiled", lambda: broken)
    assert streams()["compiled"] == {"not_timed": "RuntimeError: no C compiler", "mode": "default"}

    def crashing(ids):
        raise KeyError("a name")

    monkeypatch.setattr(timer, "_compiled", lambda: crashing)
    crashed = streams()
    assert (crashed["status"], crashed["error"]) == ("failed", "compiled: KeyError: 'a name'")
    assert crashed["median_us"]
    monkeypatch.setattr(timer, "_torch", lambda ids: torch.ones(1, 59))
    with pytest.raises(Withheld, match=r"are .* dB from the plain decoder's, which is less than 90 in torch\.float32"):
        streams()


def test_the_cost_of_a_step_is_that_of_its_launches():
    """At the 44.1 kHz sizes: 25 launches, 1.6 GFLOP a frame, weights read once."""
    config = VocoderConfig()
    one, two = (step_costs(config, 1, frames, 2) for frames in (16, 32))
    assert len(one) == 25
    weights = sum(math.prod(s) for name, s in layout(config).items() if name.endswith("weight") and "book" not in name)
    assert sum(cost.flops for cost in one) == pytest.approx(16 * 1.6e9, rel=0.02)
    moved = [sum(cost.bytes for cost in costs) for costs in (one, two)]
    assert 2 * moved[0] - moved[1] == pytest.approx(2 * weights, rel=1e-3)


def test_workloads_have_shapes_of_the_codec():
    of = {
        "conv1d_snake": lambda s: (s["Co"], s["Ci"], s["taps"]),
        "conv_transpose1d_snake": lambda s: (s["Ci"], s["Co"], 2 * s["stride"]),
        "residual_unit": lambda s: (s["C"], s["C"], s["taps"]),
        "conv1d_tanh": lambda s: (1, s["Ci"], s["taps"]),
    }
    used = {shape(w.sizes) for name, shape in of.items() for w in KERNELS[name].workloads if w.real}
    assert used <= {tuple(shape) for shape in layout(VocoderConfig()).values()}
