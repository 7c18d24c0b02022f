"""Small codecs and frames for them, for the tests of the vocoder."""

import math

import torch

from zonos2_triton.model import Vocoder, VocoderConfig
from zonos2_triton.model.weights.tiny import codec_weights
from zonos2_triton.reference import vocoder as reference
from zonos2_triton.reference.delay import shear_up

STAGE_ATOL, AUDIO_ATOL = 3e-4, 1e-4  # of the golden vectors; the kernels: measured 9.1e-6 and 5.1e-6
SMALL = {"latent_dim": 8, "decoder_dim": 8, "n_codebooks": 3, "codebook_size": 16, "codebook_dim": 4}


def random_codec(rates, backend="reference", dtype=torch.float32, **sizes):
    config = VocoderConfig(**{**SMALL, "decoder_rates": rates, **sizes})
    weights = codec_weights(config, torch.Generator().manual_seed(0))
    return Vocoder.from_state(config, weights, dtype=dtype, backend=backend)


def integer_codec(rates, **sizes):
    """fp64, small integers, a snake that changes nothing: sums are exact in any order, a sample is right or wrong."""
    config = VocoderConfig(**{**SMALL, "latent_dim": 6, "codebook_dim": 2, "decoder_rates": rates, **sizes})
    generator = torch.Generator().manual_seed(0)
    state = {n: torch.randint(-1, 2, shape, generator=generator) for n, shape in reference.layout(config).items()}
    state = {n: t.double() * (not n.endswith("alpha")) for n, t in state.items()}
    codes = torch.randint(config.codebook_size + 2, (1, config.n_codebooks, 60), generator=generator)
    stages = Vocoder(config, state).trace(codes)
    assert all(stages[name].abs().max() < 2**40 for name in stages), "or fp64 rounds"
    scale = 2.0 ** -round(math.log2(stages["pre_tanh"].std()))
    last = f"decoder.model.{len(rates) + 2}."
    vocoder = Vocoder(config, {n: t * scale if n.startswith(last) else t for n, t in state.items()})
    assert 0.2 < vocoder.decode(codes).std() < 0.9
    return vocoder


def frames_of(n, seed=0, codebooks=3, top=18):
    """Frames [n, codebooks] as generated, delayed."""
    return torch.randint(top, (n, codebooks), generator=torch.Generator().manual_seed(seed))


def aligned(vocoder, frames, eos_frame=None):
    return shear_up(frames, vocoder.config.codebook_size + 1)[:eos_frame].T


def clip(vocoder, frames, eos_frame=None):
    return vocoder.decode(aligned(vocoder, frames, eos_frame)[None])[0]


def in_windows(vocoder, frames, eos_frame=None):
    """Samples of the whole clip by the reference, in windows."""
    return clip(Vocoder(vocoder.config, vocoder.state, "reference"), frames, eos_frame)


def assert_golden(vocoder, stored, clips=2):
    """Every stored stage of the first clips."""
    trace = vocoder.trace(stored["codes"][:clips])
    blocks = [f"block_{i}" for i in range(len(vocoder.config.decoder_rates))]
    assert [*trace] == ["z", "conv_in", *blocks, "pre_tanh", "audio"]
    assert {f"out.{stage}" for stage in ("z", "conv_in", "block_0", "pre_tanh", "audio")} <= stored.keys()
    for stage, value in trace.items():
        if f"out.{stage}" in stored:
            atol, want = AUDIO_ATOL if stage == "audio" else STAGE_ATOL, stored[f"out.{stage}"][:clips]
            torch.testing.assert_close(value, want, atol=atol, rtol=0, msg=lambda m, s=stage: f"{s}: {m}")
    return trace


def assert_golden_frame(vocoder, stored):
    """Codes of one frame, and of fewer codebooks."""
    audio = vocoder.decode(stored["codes"][:1, :, :1]).cpu()
    torch.testing.assert_close(audio, stored["single_frame.audio"], atol=AUDIO_ATOL, rtol=0)
    z = vocoder.trace(stored["codes"][:1, :4, :1])["z"].cpu()
    torch.testing.assert_close(z, stored["first_4_codebooks.z"][:1, :, :1], atol=STAGE_ATOL, rtol=0)


def randomize(model):
    """Weights of a DacModel that is not silent and does not amplify rounding errors."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if name.endswith("alpha"):
                tensor.uniform_(0.5, 1.5, generator=generator)
            elif tensor.ndim == 3:
                tensor.normal_(0, 0.7 * math.prod(tensor.shape[1:]) ** -0.5, generator=generator)
            else:
                tensor.normal_(0, 1 if "codebook" in name else 0.1, generator=generator)
