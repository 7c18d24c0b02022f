"""Patches of a codec: the replaced attributes, refused codecs, and changes after the patch."""

import json
import math
import sys

import pytest
import torch
from torch import nn

from tests.integrations.standins import held, refused
from tests.integrations.writes import WRITES
from zonos2_triton.model import Vocoder, accelerate
from zonos2_triton.model.integrations.accelerate import MARK, difference
from zonos2_triton.model.integrations.dac.codec import BOUNDS
from zonos2_triton.model.integrations.patching import Replacement

pytestmark = pytest.mark.interpreter
BLOCK, UP = "decoder.model.1.block", nn.ConvTranspose1d


def test_restore_is_identity(build, codes_of, decode, codec_class):
    model, state = build(codec_class), torch.get_rng_state()
    before, names = held(model), [*model.state_dict()]
    report = accelerate(model, backend="reference")
    decode(model, codes_of(1, 2))
    changed = held(model).items() ^ before.items()
    assert {place for place, _ in changed} == {("quantizer", "from_codes"), ("decoder", "forward"), ("", MARK)}
    assert isinstance(model.decoder.forward, Replacement)
    assert [*model.state_dict()] == names
    assert torch.equal(torch.get_rng_state(), state)
    read = json.loads(report.json())
    assert [row["where"] for row in read["patched"]] == ["quantizer.from_codes", "decoder.forward"]
    assert [row["sites"] for row in read["patched"]] == [1, 1]
    assert read["package_version"] == ("1.0.0" if codec_class == "DAC" else sys.modules["transformers"].__version__)
    assert str(report).startswith("dac.DAC 1.0.0:" if codec_class == "DAC" else "transformers.DacModel ")
    assert 0 <= report.max_error < 1e-5
    report.restore()
    assert held(model) == before


EXCHANGED = (  # weights of two layers; in bf16, similar alphas differ by no more than rounding
    ("decoder", f"{BLOCK}.2.block.1.weight", f"{BLOCK}.3.block.1.weight"),
    ("decoder", f"{BLOCK}.4.block.3.weight", f"{BLOCK}.3.block.3.weight"),
    ("decoder", f"{BLOCK}.1.bias", f"{BLOCK}.2.block.1.bias"),
    ("decoder", f"{BLOCK}.2.block.0.alpha", "decoder.model.2.block.0.alpha"),
    ("from_codes", "quantizer.quantizers.0.out_proj.weight", "quantizer.quantizers.1.out_proj.weight"),
    ("from_codes", "quantizer.quantizers.0.out_proj.bias", "quantizer.quantizers.1.out_proj.bias"),
    ("from_codes", "quantizer.quantizers.1.codebook.weight", "quantizer.quantizers.2.codebook.weight"),
)


@pytest.mark.needs("transformers")
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
def test_a_wrong_weight_exceeds_the_bound(build, dtype, monkeypatch):
    """Each bound is below the error of any exchange."""
    model, right = build("DacModel", dtype=dtype), Vocoder.from_state.__func__
    for op, one, other in EXCHANGED:
        if dtype == torch.bfloat16 and "alpha" in one:
            continue

        def wrong(cls, config, state, *args, one=one, other=other):
            return right(cls, config, {**state, one: state[other]}, *args)

        monkeypatch.setattr(Vocoder, "from_state", classmethod(wrong))
        with pytest.raises(ValueError, match=f"{op} cannot be patched: differs"):
            accelerate(model, backend="reference")


def conv_of(model, kind=nn.Conv1d):
    """The first layer of this kind in the decoder."""
    return next(module for module in model.decoder.modules() if isinstance(module, kind))


def snake_of(model):
    return next(module for module in model.decoder.modules() if hasattr(module, "alpha"))


class Exponential(nn.Module):
    """A snake with a logarithmic alpha, as in other vocoders."""

    def __init__(self, alpha):
        super().__init__()
        self.alpha = alpha

    def forward(self, x):
        a = self.alpha.exp()
        return x + torch.sin(a * x).square() / a


class Loud(nn.Conv1d):
    def forward(self, x):
        return 2 * super().forward(x)


def put(model, old, new):
    for parent in model.modules():
        for name, child in parent.named_children():
            if child is old:
                setattr(parent, name, new.eval().requires_grad_(False))


def shorter(model):
    if hasattr(model.decoder, "block"):
        del model.decoder.block[0].res_unit2
    else:
        del model.decoder.model[1].block[3]


def thresholded(model):
    nn.utils.parametrize.register_parametrization(model.quantizer.quantizers[0].out_proj, "weight", nn.Threshold(0, 0))
    model.eval().requires_grad_(False)


def widened(model):
    conv_of(model).bias = nn.Parameter(torch.zeros(17), requires_grad=False)


def codebook_of(model, i=0):
    return model.quantizer.quantizers[i].codebook


WRONG = {
    "training": (lambda m: m.train(), r"quantizer: \S+ is in training mode: call \.eval\(\)"),
    "compiled": (lambda m: m.decoder.compile(), r"decoder: \S+ is compiled already: accelerate first, then compile"),
    "a hook": (lambda m: snake_of(m).register_forward_hook(print), r"decoder: \S+ has a forward hook"),
    "NaN": (lambda m: codebook_of(m).weight.fill_(math.nan), r"quantizer\.quantizers\.0\.codebook\.weight holds NaN"),
    "a shape": (widened, r"decoder\.model\.0\.bias is \[17\], expected \[16\]"),
    "padding": (lambda m: setattr(conv_of(m), "padding", (0,)), r"decoder\.\S+\.padding must be \(3,\), got \(0,\)"),
    "dilation": (lambda m: setattr(conv_of(m), "dilation", (2,)), r"\.dilation must be \(1,\), got \(2,\)"),
    "groups": (lambda m: setattr(conv_of(m), "groups", 2), r"\.groups must be 1, got 2"),
    "padding mode": (lambda m: setattr(conv_of(m), "padding_mode", "reflect"), "must be zeros, got reflect"),
    "output padding": (lambda m: setattr(conv_of(m, UP), "output_padding", (1,)), r"output_padding must be \(0,\)"),
    "stride": (lambda m: setattr(conv_of(m, UP), "stride", (4,)), r"\.kernel_size must be \(8,\), got \(6,\)"),
    "no bias": (lambda m: setattr(conv_of(m), "bias", None), "must have a bias, got none"),
    "a class of its own": (lambda m: setattr(conv_of(m), "__class__", Loud), "must be a Conv1d of torch, got Loud"),
    "a replaced forward": (lambda m: setattr(m.decoder, "forward", print), r"decoder\.forward was replaced on the mod"),
    "another activation": (lambda m: put(m, snake_of(m), Exponential(snake_of(m).alpha)), "; Exponential differs"),
    "no snake": (lambda m: put(m, snake_of(m), nn.PReLU()), r"must be a snake of alpha \[1, 16, 1\], got parameters"),
    "another end": (lambda m: put(m, conv_of(m, nn.Tanh), nn.Hardtanh()), "must be a Tanh of torch, got Hardtanh"),
    "one layer more": (lambda m: m.decoder.add_module("more", nn.Tanh().eval()), r"decoder\.more is a layer that the"),
    "one layer less": (shorter, r"has no layer decoder\.model\.1\.block\.3\.|must be \(9,\), got \(27,\)"),
    "a parametrization": (thresholded, r"out_proj\.weight may be parametrized by weight norm alone, got Threshold"),
    "a bounded norm": (lambda m: setattr(codebook_of(m, 1), "max_norm", 1.0), "max_norm must be None"),
    "no codebooks": (lambda m: setattr(m.quantizer, "quantizers", nn.ModuleList().eval()), "holds no Embedding"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_one_that_is_not_as_expected(build, codec_class, fault):
    """With strict=False too: its computation is unknown."""
    model = build(codec_class, folded=fault == "a parametrization")
    spoil, message = WRONG[fault]
    spoil(model)
    for strict in (True, False):
        refused(model, message, backend="reference", strict=strict)


def test_after_a_change_the_rest_runs_and_all_can_be_accelerated_again(build, codes_of, latents_of, codec_class):
    model, codes, z = build(codec_class), codes_of(1, 3), latents_of(1, 3)
    report = accelerate(model, backend="reference")
    codebook_of(model).weight.mul_(2)
    assert model.decoder(z).isfinite().all()
    report.restore()
    want = model.quantizer.from_codes(codes)[0]
    accelerate(model, backend="reference")
    assert difference(model.quantizer.from_codes(codes)[0], want) < 1e-6


@pytest.mark.parametrize("write", WRITES)
def test_every_way_to_change_a_weight(build, codes_of, latents_of, codec_class, write):
    model = build(codec_class, folded=True)
    for weight in model.parameters():
        weight.data = weight.data.clone()  # separate memory
    accelerate(model, backend="reference")
    WRITES[write](codebook_of(model, 1))
    with pytest.raises(RuntimeError, match=r"quantizer\.quantizers\.1\.codebook\S* was changed"):
        model.quantizer.from_codes(codes_of(1, 3))
    WRITES[write](conv_of(model))
    with pytest.raises(RuntimeError, match=r"^decoder\.\S+ was changed after accelerate\(\), .* call report\.restore"):
        model.decoder(latents_of(1, 3))


def test_weights_of_the_encoder_may_change(build, codes_of, decode, codec_class):
    model, codes = build(codec_class), codes_of(1, 3)
    accelerate(model, backend="reference")
    model.encoder.requires_grad_()
    model.quantizer.quantizers[0].in_proj.requires_grad_()
    assert decode(model, codes).isfinite().all()
