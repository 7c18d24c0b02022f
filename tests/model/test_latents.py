"""The vocoder from latents: what codes sum to, and the samples of that, in steps as from codes."""

import pytest
import torch

from tests.model.codecs import random_codec
from zonos2_triton.bench.proof.interpreter import checked
from zonos2_triton.bench.proof.invariants import same_bits
from zonos2_triton.bench.proof.poison import poisoned
from zonos2_triton.model import vocoder as vocoder_module
from zonos2_triton.reference import vocoder as reference

pytestmark = pytest.mark.interpreter

BOTH = pytest.mark.parametrize("backend", ["reference", "triton"])


@pytest.fixture(autouse=True)
def launches():
    """Quicker than as it comes. What nobody wrote is NaN."""
    with checked(bounds=False, undefined=False, races=False), poisoned():
        yield


def on_kernels(dtype=torch.float32):
    vocoder = random_codec((8,), "triton", dtype)
    vocoder.decoder.ops = vocoder.decoder.ops._replace(widest_unit=4)  # one launch for two: the quicker way
    return vocoder


def codes_of(clips, frames, codebooks=3):
    return torch.randint(16, (clips, codebooks, frames), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("codebooks", [1, 2, 3])
@BOTH
def test_latents_are_the_sum_of_the_codebooks(backend, codebooks):
    vocoder, codes = random_codec((3, 2), backend), codes_of(2, 5, codebooks)
    z = vocoder.latents(codes)
    torch.testing.assert_close(z, reference.codebook_sum(vocoder.config, vocoder.state, codes), atol=1e-6, rtol=0)


def test_a_trace_of_one_codebook():
    """Its codes, [B, 1, T], are contiguous either way round, with strides that no kernel takes."""
    vocoder, codes = on_kernels(), codes_of(2, 2, codebooks=1)
    assert same_bits(vocoder.trace(codes)["z"].contiguous(), vocoder.latents(codes).contiguous())


@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)], ids=str)
def test_from_latents_as_from_codes_on_kernels(dtype):
    """Bit for bit: the layers find the same numbers in the ring of z."""
    vocoder, codes = on_kernels(dtype), codes_of(2, 4)
    assert same_bits(vocoder.decode_latents(vocoder.latents(codes)), vocoder.decode(codes))


def test_a_clip_is_the_same_alone_together_and_in_any_steps(monkeypatch):
    """In fp32, and as from codes."""
    vocoder, codes = on_kernels(), codes_of(3, 4)
    together, z = vocoder.decode(codes), vocoder.latents(codes)
    assert same_bits(vocoder.decode_latents(z[1:2])[0], together[1])
    monkeypatch.setattr(vocoder_module, "ROWS_TOGETHER", 2)
    monkeypatch.setattr(vocoder_module, "ACTIVATIONS", vocoder.decoder.room(2, 3))
    assert same_bits(vocoder.decode_latents(z), together)


def test_in_one_pass():
    vocoder, codes = random_codec((3, 2)), codes_of(2, 40)
    want = reference.decode(vocoder.config, vocoder.state, codes)["audio"]
    torch.testing.assert_close(vocoder.decode_latents(vocoder.latents(codes)), want, atol=1e-5, rtol=0)


def test_double_precision_stays():
    vocoder, codes = random_codec((3, 2), dtype=torch.float64), codes_of(1, 20)
    want = reference.decode(vocoder.config, vocoder.state, codes)["audio"]
    got = vocoder.decode_latents(vocoder.latents(codes))
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, want, atol=1e-13, rtol=0)


@BOTH
def test_no_frames_make_no_samples(backend):
    assert random_codec((3, 2), backend).decode_latents(torch.zeros(2, 8, 0)).shape == (2, 0)


def test_latents_need_not_be_contiguous():
    vocoder, z = random_codec((3, 2)), torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(0))
    assert same_bits(vocoder.decode_latents(z.mT), vocoder.decode_latents(z.mT.contiguous()))


@pytest.mark.parametrize(
    ("z", "error", "message"),
    [
        pytest.param(torch.zeros(8, 3), ValueError, r"z must be a tensor \[B, 8, T\] .*, got \[8, 3\]", id="2d"),
        pytest.param(torch.zeros(1, 7, 3), ValueError, r"\[B, 8, T\].*, got \[1, 7, 3\]", id="width"),
        pytest.param(torch.zeros(0, 8, 3), ValueError, r"B >= 1, got \[0, 8, 3\]", id="no-clips"),
        pytest.param([1.0], ValueError, r"z must be a tensor .*, got list", id="a-list"),
        pytest.param(torch.zeros(1, 8, 3, device="meta"), ValueError, "z must be on cpu.*, got meta", id="device"),
        pytest.param(torch.zeros(1, 8, 3).half(), TypeError, "float32 like the weights, got torch.float16", id="dtype"),
    ],
)
def test_rejects(z, error, message):
    with pytest.raises(error, match=message):
        random_codec((3, 2)).decode_latents(z)


def test_clips_of_one_length_need_nothing_of_the_host(in_steps, monkeypatch):
    """Which a CUDA graph could not hold."""
    uploads = []
    monkeypatch.setattr(vocoder_module, "upload", lambda values, device: uploads.append(values) or values.to(device))
    for vocoder in (random_codec((3, 2)), in_steps(random_codec((3, 2)))):
        vocoder.decode_latents(torch.randn(2, 8, 5))
    assert not uploads
    vocoder.decode([codes_of(1, 2)[0], codes_of(1, 4)[0]])
    assert [values.tolist() for values in uploads] == [[2, 4]]
