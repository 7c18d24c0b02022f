"""On a GPU: the reference there against the reference on the CPU. Bounds are those of the golden vectors."""

import pytest
import torch

from zonos2_triton.model import Sampling, SpeakerEncoder, SpeakerEncoderConfig, Vocoder, Zonos2, build_prompt

pytestmark = [
    pytest.mark.gpu,
]


@pytest.fixture(params=["as-it-comes", "tf32-allowed"])
def tf32(request):
    """A user may have allowed TF32; fp32 is IEEE fp32 here all the same."""
    switches = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    before = [switch.fp32_precision for switch in switches]
    if request.param == "tf32-allowed":
        for switch in switches:
            switch.fp32_precision = "tf32"
    yield
    for switch, value in zip(switches, before, strict=True):
        switch.fp32_precision = value


@pytest.mark.usefixtures("tf32")
@pytest.mark.parametrize("voice", ["spk", "nospk"])
def test_backbone(golden, voice):
    io = golden.tensors("backbone_b_io")
    speaker = io["speaker_embedding"] if voice == "spk" else None
    trace = golden.backbone(device="cuda", dtype=torch.float32).trace(io[f"{voice}.prompt_ids"], speaker)
    assert trace["logits"].device.type == "cuda"
    assert torch.equal(trace["expert_ids"].cpu(), io[f"{voice}.expert_ids"].long())
    torch.testing.assert_close(trace["hidden_states"].cpu(), io[f"{voice}.hidden_states"], rtol=0, atol=1e-3)
    at = io[f"{voice}.logits_positions"]
    torch.testing.assert_close(trace["logits"].cpu()[at], io[f"{voice}.logits"], rtol=0, atol=2e-3)


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


def test_a_stream_is_its_clip(golden):
    vocoder: Vocoder = golden.vocoder("even", device="cuda")
    frames = torch.randint(0, 1024, (100, 9), generator=torch.Generator().manual_seed(0))
    stream = vocoder.stream()
    chunks = [stream.push(frame[None], last=i == 99) for i, frame in enumerate(frames)]
    whole = vocoder.stream().push(frames, last=True)
    assert torch.equal(torch.cat(chunks), whole)


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
