"""Tiny codecs of transformers' DacModel and of dac.DAC."""

import warnings

import pytest
import torch
from torch import nn

from tests.integrations.standins import dac_package
from tests.model.codecs import randomize
from zonos2_triton.bench.proof.interpreter import checked
from zonos2_triton.bench.proof.poison import poisoned

SIZES = {"n_codebooks": 3, "codebook_size": 16, "codebook_dim": 4}
INTEGRATIONS = [pytest.param("DacModel", marks=pytest.mark.needs("transformers")), "DAC"]


@pytest.fixture(autouse=True)
def launches():
    """The interpreter without its checks; memory that nothing wrote is NaN. dac uses an old weight norm."""
    with checked(bounds=False, undefined=False, races=False), poisoned(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".torch.nn.utils.weight_norm. is deprecated", FutureWarning)
        yield


@pytest.fixture(params=INTEGRATIONS)
def codec_class(request):
    return request.param


@pytest.fixture(scope="package")
def dac():
    """The package; its modules and metadata are removed after the tests here."""
    with dac_package() as package:
        yield package


@pytest.fixture
def build(request):
    """A tiny codec of a class, with weights [8, 16] by default; folded: without weight norm."""

    def made(codec_class, rates=(3, 2), dtype=torch.float32, folded=False):
        width, down = max(8 >> len(rates), 1), [*rates][::-1]
        if codec_class == "DacModel":
            from transformers import DacConfig, DacModel

            sizes = {"encoder_hidden_size": width, "downsampling_ratios": down, "decoder_hidden_size": 16}
            model = DacModel(DacConfig(**SIZES, **sizes))
            randomize(model)
        else:
            sizes = {"encoder_dim": width, "encoder_rates": down, "decoder_dim": 16, "decoder_rates": [*rates]}
            model = request.getfixturevalue("dac").DAC(**SIZES, **sizes)
            normed = [module for module in model.modules() if hasattr(module, "weight_g")]
            for module in normed:
                nn.utils.remove_weight_norm(module)
            randomize(model)
            for module in () if folded else normed:
                nn.utils.weight_norm(module)
        return model.to(dtype).eval().requires_grad_(False)

    return made


@pytest.fixture
def codes_of():
    """(clips, frames) -> codes [clips, codebooks, frames]."""
    seed = torch.Generator().manual_seed
    return lambda clips, frames, codebooks=3: torch.randint(16, (clips, codebooks, frames), generator=seed(1))


@pytest.fixture
def latents_of():
    """(clips, frames) -> latents [clips, 8, frames]."""
    seed = torch.Generator().manual_seed
    return lambda clips, frames, dtype=torch.float32: torch.randn(clips, 8, frames, generator=seed(2)).to(dtype)


@pytest.fixture
def decode():
    """(model, codes) -> samples, as the users of each class call it."""

    @torch.no_grad()
    def decoding(model, codes):
        if hasattr(model, "preprocess"):
            return model.decode(model.quantizer.from_codes(codes)[0])[:, 0]
        return model.decode(audio_codes=codes).audio_values

    return decoding
