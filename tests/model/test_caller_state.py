"""The caller's settings of torch change no bit, neither at construction nor at use."""

import threading
from contextlib import contextmanager
from functools import partial

import pytest
import torch
from torch.nn import Parameter

from tests.model.codecs import random_codec
from zonos2_triton import Audio, Backbone, Sampling, SpeakerEncoder, Vocoder, Zonos2, build_prompt
from zonos2_triton.bench.proof.invariants import same_bits
from zonos2_triton.model import TTSLLM, TTSSamplingParams, Zonos2Config
from zonos2_triton.model.audio import read_audio
from zonos2_triton.model.weights.tiny import CODEC, PARAMS, codec_weights, write_tiny
from zonos2_triton.reference.delay import shear, shear_up
from zonos2_triton.reference.sampling import probabilities
from zonos2_triton.reference.stopping import find_end

pytestmark = pytest.mark.usefixtures("quick_interpreter")

CONFIG, SAMPLING = Zonos2Config.from_params(PARAMS), Sampling(seed=7, max_frames=3)
GENERATOR = torch.Generator().manual_seed(3)
PROMPT, VOICE = build_prompt(CONFIG, "a", True), torch.randn(CONFIG.speaker_embedding_dim, generator=GENERATOR)
FRAMES, LOGITS = torch.randint(1024, (34, 9), generator=GENERATOR), torch.randn(9, 1026, generator=GENERATOR)
CODES, FEW, WAVE = FRAMES.T[None, :, :20], FRAMES[:12, :3] % 18, torch.sin(torch.arange(3000) / 5)
WEIGHTS = {name: Parameter(t) for name, t in codec_weights(CODEC, torch.Generator().manual_seed(0)).items()}


@contextmanager
def process_wide(**settings):
    """The names of torch's functions that set something, without set_."""
    before = {name: getattr(torch, f"get_{name}")() for name in settings}
    for name, value in settings.items():
        getattr(torch, f"set_{name}")(value)
    try:
        yield
    finally:
        for name, value in before.items():
            getattr(torch, f"set_{name}")(value)


@contextmanager
def loose():
    torch.backends.mkldnn.enabled = False
    try:
        with process_wide(float32_matmul_precision="medium"):
            yield
    finally:
        torch.backends.mkldnn.enabled = True


STATES = {"inference_mode": torch.inference_mode, "loose": loose}
STATES |= {"deterministic": partial(process_wide, deterministic_debug_mode=2)}  # fills torch.empty with NaN, too
STATES |= {"autocast": partial(torch.autocast, "cpu", torch.bfloat16), "device": partial(torch.device, "meta")}
STATES |= {name: partial(process_wide, default_dtype=getattr(torch, name)) for name in ("float64", "bfloat16")}


def streamed(stream, frames):
    return [stream.push(part, None, i == 2) for i, part in enumerate(frames.tensor_split(3))]


def of_backbone(backbone):
    made = backbone.generate([PROMPT, PROMPT[5:]], SAMPLING, [VOICE, None])
    frames = [frame.codes for frame in backbone.stream(PROMPT, SAMPLING, VOICE)]
    return [*backbone.trace(PROMPT, VOICE).values(), *frames, *(one.frames for one in made)]


def of_vocoder(vocoder):
    trace = vocoder.trace(CODES)
    found = [*trace.values(), vocoder.latents(CODES), vocoder.decode_latents(trace["z"])]
    return [*found, vocoder.decode(CODES), *vocoder.decode([CODES[0], CODES[0, :, :5]])]


def streams(folder):
    made = Vocoder.from_state(CODEC, WEIGHTS)
    return [made.stream(), made.stream(lookahead=4, chunk=2), made.stream("overlap", chunk=3), made.streams(1, chunk=4)]


def of_streams(made):
    *alone, many = made
    found = [samples for stream in alone for samples in streamed(stream, FRAMES)] + many.push([FRAMES])
    many.restart(0)
    return found + many.push([FRAMES], [30], [True])


def of_pipeline(tts):
    return [tts.speak("a", (WAVE, 16000), SAMPLING).samples, *tts.stream("a", VOICE, SAMPLING)]


def of_offline(llm):
    return [*llm.generate(["a"], TTSSamplingParams(seed=7, max_tokens=3))[0].values()]


def of_encoder(encoder):
    mel = encoder.log_mel(WAVE)
    return [mel, encoder.embed_mel(mel), encoder.embed(WAVE, 24000), encoder.embed(WAVE, 44100)]


def of_sound(path):
    Audio(WAVE.repeat(20), 44100).save(path)  # resampled
    return [*read_audio(path)]


def of_functions(_):
    found = [build_prompt(CONFIG, "a", True, quality={"lufs": 3}), find_end(FRAMES)]
    found += [probabilities(LOGITS, sampling, FRAMES) for sampling in (SAMPLING, Sampling(top_p=0.7, top_k=40))]
    return [*found, *(turn(FRAMES, 7).tolist() for turn in (shear, shear_up))]


def of_kernels(vocoder):
    found = [vocoder.decode(FEW.T[None]), *vocoder.trace(FEW.T[None]).values()]
    return found + streamed(vocoder.stream(lookahead=2, chunk=3), FEW)


ENTRIES = {
    "backbone": (lambda folder: Backbone.load(folder / "model.safetensors"), of_backbone),
    "vocoder": (lambda folder: Vocoder.load(folder / "dac" / "weights.pth"), of_vocoder),
    "streams": (streams, of_streams),
    "pipeline": (Zonos2.load, of_pipeline),
    "offline": (lambda folder: TTSLLM(str(folder), torch.float32), of_offline),
    "encoder": (lambda folder: SpeakerEncoder.load(folder / "speaker_encoder"), of_encoder),
    "sound": (lambda folder: folder.parent / "sound.opus", of_sound),
    "functions": (lambda folder: None, of_functions),
    "kernels": (lambda folder: random_codec((2,), "triton"), of_kernels),
}
PLAIN = {}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("entry", ENTRIES)
def test_no_bit_depends_on_it(tiny_folder, entry, state):
    """Objects made under the setting and used without, and the reverse; results may be changed in place."""
    make, use = ENTRIES[entry]
    if entry not in PLAIN:
        PLAIN[entry] = use(make(tiny_folder))
    made, generator = make(tiny_folder), torch.get_rng_state()
    with STATES[state]():
        under, made_under = use(made), make(tiny_folder)
    for found in (under, use(made_under)):
        for ours, plain in zip(found, PLAIN[entry], strict=True):
            if not isinstance(plain, torch.Tensor):
                assert ours == plain
                continue
            assert same_bits(ours, plain)
            assert not ours.is_inference()
            assert not ours.requires_grad
    assert torch.equal(torch.get_rng_state(), generator)


def test_who_drives_the_loop_is_nothing_to_the_others(tiny_folder, tts):
    alone = tts.backbone.generate([PROMPT], SAMPLING)[0].frames
    first, second = (tts.backbone.stream(PROMPT, SAMPLING) for _ in range(2))

    def drive():
        with torch.autocast("cpu", torch.bfloat16), torch.device("meta"):
            list(first)

    thread = threading.Thread(target=drive)
    thread.start()
    thread.join()
    assert torch.equal(torch.stack([frame.codes for frame in second]), alone)


@pytest.mark.parametrize("state", ["device", "float64", "inference_mode"])
def test_the_tiny_model_is_the_same(tiny_folder, tmp_path, state):
    with STATES[state]():
        write_tiny(tmp_path / "tiny")
    for file in ("model.safetensors", "speaker_encoder/model.safetensors"):
        assert (tmp_path / "tiny" / file).read_bytes() == (tiny_folder / file).read_bytes()
