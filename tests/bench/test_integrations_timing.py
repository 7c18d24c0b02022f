"""Before and after, on a CPU: that both are timed, on a model that is restored, and that a wrong patch has no time."""

import pytest
import torch

from zonos2_triton.bench.suite.gpu import quiet_interpreter
from zonos2_triton.bench.suite.presets import SMOKE
from zonos2_triton.bench.timing import integrations, timer
from zonos2_triton.bench.timing.vocoder import Work
from zonos2_triton.model.integrations.dac import codec

CPU, WORK = timer.cpu_device(), Work(1, 2, True)


@pytest.fixture(autouse=True)
def quick():
    """The interpreter without its checks of each access, which tests of the kernels have."""
    with quiet_interpreter():
        yield


@pytest.mark.slow
def test_both_are_timed_and_the_second_is_patched(monkeypatch):
    seen, measure = [], timer.measure
    model = integrations.dac_model(SMOKE.codec, "cpu", torch.float32)

    def watched(*args):
        seen.append("forward" in vars(model.decoder))
        return measure(*args)

    assert [block.conv_t1.stride[0] for block in model.decoder.block] == list(SMOKE.codec.decoder_rates)
    monkeypatch.setattr(integrations, "dac_model", lambda *_: model)
    monkeypatch.setattr(integrations.timer, "measure", watched)
    found = integrations.time_dac_model(SMOKE.codec, WORK, CPU, torch.float32, seconds=0.01)
    assert seen == [False, True]
    assert "forward" not in vars(model.decoder)
    assert found["speed_up"] == timer.ratio(found["before"]["median_us"], found["after"]["median_us"])
    assert found["errors"].keys() == {"from_codes", "decoder"}


def test_a_wrong_patch_has_no_time(monkeypatch):
    original = codec.Vocoder.decode_latents
    monkeypatch.setattr(codec.Vocoder, "decode_latents", lambda self, z: original(self, z) * 1.1)
    with pytest.raises(ValueError, match="decoder cannot be patched: differs from the original by"):
        integrations.time_dac_model(SMOKE.codec, WORK, CPU, torch.float32, seconds=0.01)
