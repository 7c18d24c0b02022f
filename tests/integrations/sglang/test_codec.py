"""The plugin on sglang-omni's codec."""

import sys
from types import SimpleNamespace

import pytest
import torch

from tests.integrations.standins import dac_package, module
from zonos2_triton._settings import BACKEND
from zonos2_triton.bench.proof.interpreter import checked
from zonos2_triton.model.integrations.accelerate import MARK, difference
from zonos2_triton.model.integrations.report import Skipped
from zonos2_triton.model.integrations.sglang import components, plugin

HOP = 8


@pytest.fixture
def codec(engine, monkeypatch):
    """The module of the engine's codec, with a small dac.DAC."""
    with dac_package() as package:
        torch.manual_seed(0)
        sizes = {"encoder_dim": 4, "encoder_rates": [2, 4], "latent_dim": 16, "decoder_dim": 32}
        small = package.DAC(**sizes, decoder_rates=[4, 2], codebook_size=1024)
    loads, utils = SimpleNamespace(load=lambda path: small), SimpleNamespace(download=lambda model_type: model_type)
    monkeypatch.setitem(sys.modules, "dac", module("dac", DAC=loads, utils=utils))
    monkeypatch.setattr(engine.codec, "DAC_HOP_LENGTH", HOP)
    return engine.codec


def clip(rows, seed):
    """Delayed codes [rows, 9], of rows - 8 frames."""
    return torch.randint(1024, (rows, 9), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    "backend", ["reference", pytest.param("triton", marks=[pytest.mark.interpreter, pytest.mark.slow])], indirect=True
)
def test_the_codec_decodes_as_it_did(codec, backend):
    with checked(bounds=False, undefined=False, races=False):
        codes = clip(13, 1)
        before = codec.Zonos2DACVocoder("cpu").decode(codes, 4)
        original = codec.get_dac("cpu")
        plugin.hook_components(["vocoder"])
        vocoder = codec.Zonos2DACVocoder("cpu")
        assert vocoder.dac is codec.get_dac("cpu") is original
        assert {patch.op for patch in vars(original)[MARK].patched} == {"from_codes", "decoder"}
        assert vars(original)[MARK].backend == backend
        after = vocoder.decode(codes, 4)
    assert after.shape == (4 * HOP,)
    assert difference(after, before) < 1e-5


def test_a_batch_of_clips_is_each_clip_alone(codec, monkeypatch):
    """In the original, a shorter clip ended in the sound of its padding."""
    monkeypatch.setenv(BACKEND, "reference")
    clips, ends = [clip(22, 1), clip(12, 2), clip(8, 3), clip(18, 4)], [None, 9, None, 3]
    vocoder = codec.Zonos2DACVocoder("cpu")
    before = vocoder.decode_batch(clips, ends)
    plugin.hook_components(["vocoder"])
    vocoder = codec.Zonos2DACVocoder("cpu")
    alone = [vocoder.decode(codes, end) for codes, end in zip(clips, ends, strict=True)]
    together = vocoder.decode_batch(clips, ends)
    assert [len(samples) for samples in together] == [14 * HOP, 4 * HOP, 0, 3 * HOP]
    assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))
    assert difference(together[0], before[0]) < 1e-5
    assert difference(together[1], before[1]) > 1e-2
    assert vocoder.decode_batch([], []) == []


def test_on_a_cpu_the_codec_stays_the_engines_unless_a_backend_is_named(codec, monkeypatch, caplog):
    monkeypatch.setenv(BACKEND, "auto")
    vocoder, clips = codec.Zonos2DACVocoder("cpu"), [clip(22, 1), clip(12, 2)]
    before = vocoder.decode_batch(clips, [None, 9])
    plugin.hook_components(["vocoder"])
    after = codec.Zonos2DACVocoder("cpu").decode_batch(clips, [None, 9])
    assert all(torch.equal(new, old) for new, old in zip(after, before, strict=True))
    assert "on a CPU it names one" in caplog.text


@pytest.mark.parametrize(
    ("codes", "ends", "error"),
    [([clip(9, 1)], [], "audio_codes_list and eos_frames length mismatch"),
     ([clip(9, 1), clip(9, 2)[None]], [None, None], r"each audio_codes entry must be \[T, 9\], got shape \(1, 9, 9\)")],
)  # fmt: skip
def test_wrong_batches_are_the_engines_errors(codec, codes, ends, error):
    plugin.hook_components(["vocoder"])
    with pytest.raises(ValueError, match=error):
        codec.Zonos2DACVocoder("cpu").decode_batch(codes, ends)


def test_skipped_operations_of_the_codec_are_in_the_log(codec, monkeypatch, caplog):
    report = SimpleNamespace(skipped=[Skipped("decoder", "differs from the original")])
    monkeypatch.setattr(components, "accelerate", lambda codec, strict: report)
    plugin.hook_components(["vocoder"])
    codec.get_dac("cpu")
    assert "SGLang: vocoder stays with the engine: decoder: differs from the original" in caplog.text
