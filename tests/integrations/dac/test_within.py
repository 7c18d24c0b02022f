"""Codecs whose weights require gradients, and codecs inside other modules."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tests.integrations.standins import held, refused
from zonos2_triton.model import accelerate
from zonos2_triton.model.integrations.accelerate import difference
from zonos2_triton.model.integrations.patching import Replacement


class Speaker(nn.Module):
    def __init__(self, **codecs):
        super().__init__()
        self.text = nn.Linear(2, 2)
        for name, codec in codecs.items():
            setattr(self, name, codec)


@pytest.mark.parametrize("without", [torch.no_grad, torch.inference_mode])
def test_weights_may_require_gradients(build, codes_of, codec_class, without):
    model, codes = build(codec_class).requires_grad_(True), codes_of(1, 3)
    report = accelerate(model, backend="reference")
    assert [row.where.split(", ")[-1] for row in report.patched] == ["under torch.no_grad()"] * 2
    assert all(parameter.requires_grad for parameter in model.parameters())
    for replacement in (model.quantizer.from_codes, model.decoder.forward):
        replacement._original = None  # not needed
    with without():
        assert model.decoder(model.quantizer.from_codes(codes)[0]).isfinite().all()
    with pytest.raises(TypeError, match="NoneType"):
        model.quantizer.from_codes(codes)


def test_with_gradients_the_original_makes_them(build, codes_of, codec_class):
    model, codes = build(codec_class, folded=True).requires_grad_(True), codes_of(1, 3)
    other = copy.deepcopy(model)
    accelerate(model, backend="reference")
    for each in (model, other):
        each.decoder(each.quantizer.from_codes(codes)[0]).square().sum().backward()
    for (name, new), (_, old) in zip(model.named_parameters(), other.named_parameters(), strict=True):
        assert (new.grad is None) == (old.grad is None), name
        assert new.grad is None or torch.equal(new.grad, old.grad), name


def test_gradients_of_latents_alone(build, latents_of, codec_class):
    model, z = build(codec_class), latents_of(1, 3).requires_grad_(True)
    want = torch.autograd.grad(model.decoder(z).sum(), z)[0]
    accelerate(model, backend="reference")
    assert torch.equal(torch.autograd.grad(model.decoder(z).sum(), z)[0], want)


def test_a_codec_within_a_module(build, codes_of, decode, codec_class):
    speaker = Speaker(audio_encoder=Speaker(model=build(codec_class))).eval()
    before, codes = held(speaker), codes_of(1, 3)
    want = decode(speaker.audio_encoder.model, codes)
    report = accelerate(speaker, backend="reference")
    name = {"DAC": "dac.DAC", "DacModel": "transformers.DacModel"}[codec_class]
    assert report.integration == f"audio_encoder.model: {name}"
    wheres = ["quantizer.from_codes", "decoder.forward"]
    assert [row.where for row in report.patched] == [f"audio_encoder.model: {where}" for where in wheres]
    assert isinstance(speaker.audio_encoder.model.decoder.forward, Replacement)
    assert 0 < difference(decode(speaker.audio_encoder.model, codes), want) < 1e-5
    assert accelerate(speaker, backend="reference") is report
    report.restore()
    assert held(speaker) == before


def test_a_codec_that_an_object_holds(build, codec_class):
    """A pipeline, for example, is no module."""
    pipeline = SimpleNamespace(model=Speaker(codec=build(codec_class)), name="speaks", other=None)
    with accelerate(pipeline, backend="reference") as report:
        assert report.integration.startswith("model.codec: ")
        assert accelerate(pipeline, backend="reference") is report
    assert [*vars(pipeline)] == ["model", "name", "other"]


def test_several_codecs_and_one_under_two_names(build, codec_class):
    shared = build(codec_class)
    speaker = Speaker(first=shared, second=nn.ModuleList([build(codec_class)]), third=shared)
    before = held(speaker)
    report = accelerate(speaker, backend="reference")
    assert report.integration.startswith("first, third: ")
    assert ", second.0: " in report.integration
    assert [row.where.split(": ")[0] for row in report.patched] == ["first, third"] * 2 + ["second.0"] * 2
    report.restore()
    assert held(speaker) == before


def test_all_of_a_module_or_nothing(build, codec_class):
    speaker = Speaker(first=build(codec_class), second=build(codec_class).train())
    refused(speaker, r"second: .*is in training mode: call \.eval\(\)")
    refused(speaker, "only: first: .* has no operation 'norm'; it has from_codes, decoder", only="norm")
    speaker.second.eval()
    accelerate(speaker.second, backend="reference")
    refused(speaker, r"second: .* is accelerated by itself: call restore\(\) of that report first")


def test_auto_names_what_it_leaves(build, codec_class):
    report = accelerate(Speaker(codec=build(codec_class)))
    assert all(row.reason.startswith('codec: "auto" replaces nothing') for row in report.skipped)
    assert report.skipped


def test_what_wraps_a_codec(build, codec_class):
    model = build(codec_class)
    parallel = nn.DataParallel(model)
    assert accelerate(parallel, backend="reference").integration.startswith("module: ")
    accelerate(parallel, backend="reference").restore()
    parallel.device_ids = [0, 1]
    refused(parallel, r"module: DataParallel copies it to other devices at each call: accelerate and call its \.module")
    refused(torch.compile(model, backend="eager"), "OptimizedModule is compiled already: accelerate first, then com")
    compiled = torch.compile(Speaker(codec=model), backend="eager")
    refused(compiled, "_orig_mod.codec: OptimizedModule is compiled already: accelerate first, then compile")


def test_tied_weights(build, codes_of, decode, codec_class):
    model, codes = build(codec_class), codes_of(1, 3)
    quantizers = model.quantizer.quantizers
    quantizers[1].codebook.weight, quantizers[2] = quantizers[0].codebook.weight, quantizers[0]
    want = decode(model, codes)
    accelerate(model, backend="reference")
    assert difference(decode(model, codes), want) < 1e-5
