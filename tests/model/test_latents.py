"""The vocoder from latents: what codes sum to, and the samples of that, in steps as from codes."""

import pytest
import torch

from zonos2_triton.bench.proof.interpreter import checked
from zonos2_triton.bench.proof.poison import poisoned
from zonos2_triton.model import Vocoder, VocoderConfig
from zonos2_triton.model import vocoder as vocoder_module
from zonos2_triton.model.weights.tiny import codec_weights
from zonos2_triton.reference import vocoder as reference

pytestmark = pytest.mark.interpreter

BOTH = pytest.mark.parametrize("backend", ["reference", "triton"])
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True)
def launches():
    """Quicker than as it comes. What nobody wrote is NaN."""
    with checked(bounds=False, undefined=False, races=False), poisoned():
        yield


def codec(backend, dtype=torch.float32, rates=(3, 2)):
    config = VocoderConfig(
        latent_dim=8, decoder_dim=8, decoder_rates=rates, n_codebooks=3, codebook_size=16, codebook_dim=4
    )
    weights = codec_weights(config, torch.Generator().manual_seed(0))
    return Vocoder.from_state(config, weights, dtype=dtype, backend=backend)


def codes_of(clips, frames, codebooks=3):
    return torch.randint(16, (clips, codebooks, frames), generator=torch.Generator().manual_seed(1))


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.view(torch.uint8), b.view(torch.uint8))


@pytest.mark.parametrize("codebooks", [1, 2, 3])
@BOTH
def test_latents_are_the_sum_of_the_codebooks(backend, codebooks):
    vocoder, codes = codec(backend), codes_of(2, 5, codebooks)
    z = vocoder.latents(codes)
    torch.testing.assert_close(z, reference.codebook_sum(vocoder.config, vocoder.state, codes), atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_from_latents_as_from_codes_on_kernels(dtype):
    """Bit for bit: the layers find the same numbers in the ring of z."""
    vocoder, codes = codec("triton", dtype), codes_of(2, 4)
    assert same_bits(vocoder.decode_latents(vocoder.latents(codes)), vocoder.decode(codes))


def test_a_trace_of_one_codebook():
    """Its codes, [B, 1, T], are contiguous either way round, with strides that no kernel takes."""
    vocoder, codes = codec("triton"), codes_of(2, 4, codebooks=1)
    assert same_bits(vocoder.trace(codes)["z"].contiguous(), vocoder.latents(codes).contiguous())


def test_from_latents_as_from_codes_in_one_pass():
    vocoder, codes = codec("reference"), codes_of(2, 40)
    want = reference.decode(vocoder.config, vocoder.state, codes)["audio"]
    torch.testing.assert_close(vocoder.decode_latents(vocoder.latents(codes)), want, atol=1e-5, rtol=0)


def test_double_precision_stays():
    vocoder, codes = codec("reference", torch.float64), codes_of(1, 20)
    want = reference.decode(vocoder.config, vocoder.state, codes)["audio"]
    got = vocoder.decode_latents(vocoder.latents(codes))
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, want, atol=1e-13, rtol=0)


def test_a_clip_is_the_same_alone_together_and_in_any_steps(monkeypatch):
    vocoder = codec("triton", rates=(3,))
    z = torch.randn(3, 8, 7, generator=torch.Generator().manual_seed(2))
    together = vocoder.decode_latents(z)
    assert together.isfinite().all()
    for row, clip in zip(together, z, strict=True):
        assert same_bits(vocoder.decode_latents(clip[None])[0], row)
    monkeypatch.setattr(vocoder_module, "ROWS_TOGETHER", 2)
    monkeypatch.setattr(vocoder_module, "ACTIVATIONS", vocoder.decoder.room(2, 3))
    assert vocoder._frames_together(2) == 3
    assert same_bits(vocoder.decode_latents(z), together)


@pytest.mark.parametrize("frames", [1, 4, 7])
@BOTH
def test_the_length_is_that_of_the_clip(backend, frames):
    vocoder = codec(backend, rates=(3,))
    assert vocoder.decode_latents(torch.zeros(2, 8, frames)).shape == (2, 3 * frames - 1)


@BOTH
def test_no_frames_make_no_samples(backend):
    assert codec(backend).decode_latents(torch.zeros(2, 8, 0)).shape == (2, 0)


def test_latents_need_not_be_contiguous():
    vocoder, z = codec("reference"), torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(0))
    assert same_bits(vocoder.decode_latents(z.mT), vocoder.decode_latents(z.mT.contiguous()))


@pytest.mark.parametrize(
    ("z", "error", "message"),
    [
        pytest.param(torch.zeros(8, 3), ValueError, r"z must be a tensor \[B, 8, T\] .*, got \[8, 3\]", id="2d"),
        pytest.param(torch.zeros(1, 7, 3), ValueError, r"\[B, 8, T\].*, got \[1, 7, 3\]", id="width"),
        pytest.param(torch.zeros(0, 8, 3), ValueError, r"B >= 1, got \[0, 8, 3\]", id="no-clips"),
        pytest.param([1.0], ValueError, r"z must be a tensor .*, got list", id="a-list"),
        pytest.param(torch.zeros(1, 8, 3, device="meta"), ValueError, "z must be on cpu.*, got meta", id="device"),
        pytest.param(torch.zeros(1, 8, 3).half(), TypeError, r"torch\.float32 like the weights, got torch\.float16",
                     id="dtype"),
    ],
)  # fmt: skip
def test_rejects(z, error, message):
    with pytest.raises(error, match=message):
        codec("reference").decode_latents(z)


@BOTH
def test_clips_of_one_length_need_nothing_of_the_host(backend, monkeypatch):
    """Which a CUDA graph could not hold."""
    uploads = []
    monkeypatch.setattr(vocoder_module, "upload", lambda values, device: uploads.append(values) or values.to(device))
    vocoder = codec(backend)
    vocoder.decode_latents(torch.randn(2, 8, 5))
    assert not uploads
    if backend == "triton":
        vocoder.decode([codes_of(1, 2)[0], codes_of(1, 4)[0]])
        assert [values.tolist() for values in uploads] == [[2, 4]]
