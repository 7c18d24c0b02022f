"""Before and after, on a CPU: that both are timed, on a host that is put back, and that a wrong swap has no time."""

import sys

import pytest
import torch

from zonos2_triton.bench import hosts_timing, timing
from zonos2_triton.bench.record import NotRun
from zonos2_triton.bench.scale import REHEARSAL
from zonos2_triton.bench.vocoder_timing import Work
from zonos2_triton.model.hosts import codec

WORK = Work(1, 2, True)


@pytest.fixture
def device():
    return timing.cpu_device()


def test_the_model_has_the_sizes_of_the_codec():
    config = REHEARSAL.codec
    model = hosts_timing.dac_model(config, "cpu", torch.float32)
    assert [block.conv_t1.stride[0] for block in model.decoder.block] == list(config.decoder_rates)
    assert (model.decoder.conv1.in_channels, model.decoder.conv1.out_channels) == (
        config.latent_dim,
        config.decoder_dim,
    )
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_both_are_timed_and_the_second_is_swapped(device, monkeypatch):
    seen = []
    model = hosts_timing.dac_model(REHEARSAL.codec, "cpu", torch.float32)
    monkeypatch.setattr(hosts_timing, "dac_model", lambda *_: model)
    measure = timing.measure

    def watched(*args):
        seen.append("forward" in vars(model.decoder))
        return measure(*args)

    monkeypatch.setattr(hosts_timing.timing, "measure", watched)
    found = hosts_timing.time_dac_model(REHEARSAL.codec, WORK, device, torch.float32, seconds=0.01)
    assert seen == [False, True]
    assert "forward" not in vars(model.decoder)
    assert found["speed_up"] == round(found["before"]["median_us"] / found["after"]["median_us"], 3)
    assert found["errors"].keys() == {"from_codes", "decoder"}


def test_a_wrong_swap_has_no_time(device, monkeypatch):
    original = codec.Vocoder.decode_latents
    monkeypatch.setattr(codec.Vocoder, "decode_latents", lambda self, z: original(self, z) * 1.1)
    with pytest.raises(ValueError, match="decoder cannot be swapped: differs from the original by"):
        hosts_timing.time_dac_model(REHEARSAL.codec, WORK, device, torch.float32, seconds=0.01)


def test_without_transformers_nothing_is_run(device, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(NotRun, match="transformers cannot be imported"):
        hosts_timing.time_dac_model(REHEARSAL.codec, WORK, device, torch.float32)
