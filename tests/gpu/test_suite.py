"""On a GPU: the reference there against the reference on the CPU. Bounds are those of the golden vectors."""

import pytest
import torch

from zonos2_triton.model import Sampling, SpeakerEncoder, SpeakerEncoderConfig, Zonos2, build_prompt

pytestmark = pytest.mark.gpu


@pytest.fixture(params=["ieee", "tf32"])
def tf32(request, monkeypatch):
    """A user may have allowed TF32; fp32 is IEEE fp32 here all the same."""
    for switch in (torch.backends.cuda.matmul, torch.backends.cudnn.conv) if request.param == "tf32" else ():
        monkeypatch.setattr(switch, "fp32_precision", "tf32")


@pytest.mark.usefixtures("tf32")
def test_vocoder(golden):
    codes = golden.tensors("dac_tiny")["even.codes"]
    audio = golden.vocoder("even", device="cuda").decode(codes)
    torch.testing.assert_close(audio.cpu(), golden.tensors("dac_tiny")["even.out.audio"], rtol=0, atol=1e-4)


@pytest.mark.usefixtures("tf32")
def test_speaker_encoder(golden):
    """The front end too: its mel bands are a matrix product."""
    vectors, stored = golden.json("speaker_encoder_tiny"), golden.tensors("speaker_encoder_tiny", "front_end.")
    weights = golden.tensors("speaker_encoder_tiny", "weights.")
    encoder = SpeakerEncoder.from_state(SpeakerEncoderConfig(**vectors["config"]), weights, device="cuda")
    embedding = encoder.embed(stored["wav44k_stereo.waveform"], 44100)
    torch.testing.assert_close(embedding.cpu(), stored["wav44k_stereo.embedding"], rtol=0, atol=5e-4)


def test_pipeline(tiny_folder):
    """The same seed: the same sound in a batch, streamed and again."""
    tts = Zonos2.load(tiny_folder, device="cuda")
    assert isinstance(tts.speaker_encoder, SpeakerEncoder)
    voice = torch.sin(torch.arange(24000) / 9), 24000
    sampling = Sampling(seed=3, max_frames=60, ignore_eos=True)
    one, two = tts.speak(["a", "bcd"], voice, sampling)
    assert one.samples.device.type == "cpu"
    assert torch.equal(tts.speak("bcd", voice, sampling).samples, two.samples)
    assert torch.equal(torch.cat(list(tts.stream("a", voice, sampling))), one.samples)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_other_precisions_run(tiny_folder, dtype):
    tts = Zonos2.load(tiny_folder, device="cuda", dtype=dtype)
    frames = tts.backbone.generate([build_prompt(tts.backbone.config, "a")], Sampling(seed=0, max_frames=5))[0].frames
    assert ((frames >= 0) & (frames <= 1025)).all()
