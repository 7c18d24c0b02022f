"""Text to speech on the tiny model, through the real loaders."""

import copy
import inspect
import pickle
import re
import shutil
from dataclasses import fields, replace
from typing import get_type_hints

import pytest
import torch
from safetensors.torch import load_file

from zonos2_triton import Audio, Backbone, BatchingOptions, Sampling, SpeakerEncoder, Vocoder, Zonos2, build_prompt
from zonos2_triton.model import TTSLLM, SpeakerEncoderConfig
from zonos2_triton.model.prompt import PromptOptions
from zonos2_triton.reference.delay import shear_up
from zonos2_triton.reference.sampling_params import SamplingOptions

SHORT = Sampling(seed=7, max_frames=12, ignore_eos=True)
ENDING = Sampling(seed=0, max_frames=60)  # of "Hello."; before the 60th frame


@pytest.fixture(scope="module")
def recording():
    """Half a second of stereo at an odd rate."""
    t = torch.arange(22050 // 2) / 22050
    return torch.stack([torch.sin(2 * torch.pi * 220 * t), torch.sin(2 * torch.pi * 330 * t)]) / 2, 22050


@pytest.mark.parametrize(
    ("sampling", "frames"), [(SHORT, 12), (Sampling(seed=0, max_frames=60), 13), (Sampling(seed=26, max_frames=60), 0)]
)
def test_speaking_is_prompt_generation_and_decoding(tts, sampling, frames):
    """Up to the end-of-audio code. These seeds were chosen because they end, one at its first frame."""
    audio = tts.speak("Hello.", sampling=sampling)
    result = tts.backbone.generate([build_prompt(tts.backbone.config, "Hello.")], sampling)[0]
    assert result.eos_frame == (None if sampling.ignore_eos else frames)
    assert torch.equal(audio.samples, tts.vocoder.decode([shear_up(result.frames, 1025)[:frames].T])[0])
    assert len(audio.samples) == frames * 512
    assert sum(map(len, tts.stream("Hello.", sampling=sampling))) == frames * 512
    assert (audio.sample_rate, audio.comment) == (44100, tts.comment)


def limit_of(tts, text, sampling, **settings):
    stream = tts.stream(text, sampling=sampling, **settings)
    request = tts.backbone.scheduler.waiting[-1]
    stream.close()
    return request.max_frames


def shortened(tts, max_seqlen, **options):
    config = replace(tts.backbone.config, max_seqlen=max_seqlen)
    backbone = Backbone(config, tts.backbone.weights, options=BatchingOptions(**options))
    return Zonos2(backbone, tts.vocoder)


@pytest.mark.parametrize(
    ("text", "sampling", "frames"),
    [
        ("Hello.", Sampling(), 1024 + 16 * 6),
        ("東京", replace(Sampling(), seed=7), 1024 + 16 * 6),  # bytes of UTF-8
        ("Hello.", copy.deepcopy(Sampling(seed=7)), 1024 + 16 * 6),
        ("Hello.", pickle.loads(pickle.dumps(Sampling())), 1024 + 16 * 6),
        ("x" * 1485, Sampling(), 544),  # what the context leaves
        ("Hello.", Sampling(max_frames=1024), 1024),
        ("x" * 1485, Sampling(max_frames=1024), 544),
    ],
    ids=str,
)
def test_frames_that_a_text_may_take_unless_max_frames_is_given(tts, text, sampling, frames):
    assert limit_of(tts, text, sampling) == frames


def test_the_default_fits_into_the_cache(tts):
    few = shortened(tts, 2048, kv_cache_tokens=1024)
    assert limit_of(few, "Hello.", Sampling()) == 1024 + 1 - len(build_prompt(few.backbone.config, "Hello."))


def test_says_that_the_end_was_reached(tts):
    assert tts.speak("Hello.", sampling=ENDING).ended == "end_of_audio"
    prompt = build_prompt(tts.backbone.config, "Hello.")
    assert tts.backbone.generate([prompt], ENDING)[0].ended == "end_of_audio"
    for stream in (tts.stream("Hello.", sampling=ENDING), tts.backbone.stream(prompt, ENDING)):
        next(stream)
        assert stream.ended is None
        for _ in stream:
            pass
        assert stream.ended == "end_of_audio"


def test_says_that_the_end_was_not_reached(tts):
    """The result says so, and so does one warning per text, which names the remedy."""
    cut = replace(ENDING, max_frames=9)
    with pytest.warns(UserWarning, match="cut off") as warned:
        audios = tts.speak(["Hello.", "Hello."], sampling=[cut, ENDING])
    assert [audio.ended for audio in audios] == ["max_frames", "end_of_audio"]
    text = "did not come to its end: it was cut off after 9 frames, 0.10 s; raise max_frames (--max-frames)"
    assert [str(warning.message) for warning in warned] == [f"text[0] {text}"]
    assert warned[0].filename == __file__
    stream = tts.stream("Hello.", sampling=cut)
    with pytest.warns(UserWarning, match=f"^{re.escape(f'text {text}')}$") as warned:
        list(stream)
    assert warned[0].filename == __file__
    frames = tts.backbone.stream(build_prompt(tts.backbone.config, "Hello."), cut)
    assert [frame.ended for frame in frames] == [None] * 8 + ["max_frames"]
    assert stream.ended == frames.ended == "max_frames"


@pytest.mark.parametrize("sampling", [Sampling(seed=7), Sampling(seed=7, max_frames=8)], ids=["default", "given"])
def test_a_full_context_asks_for_shorter_texts(tts, sampling):
    full = shortened(tts, 8 + len(build_prompt(tts.backbone.config, "Hello.")))
    with pytest.warns(UserWarning, match="after 8 frames, 0.09 s; the model's context of 33 tokens is full: split the"):
        assert full.speak("Hello.", sampling=sampling).ended == "max_frames"


def test_a_full_cache_asks_for_more_positions(tts):
    few = shortened(tts, 2048, kv_cache_tokens=32)
    with pytest.warns(UserWarning, match=r"the cache is full: raise kv_cache_tokens in BatchingOptions"):
        few.speak("Hello.", sampling=Sampling(seed=7))


@pytest.mark.filterwarnings("error")
def test_all_frames_without_an_end_were_asked_for(tts):
    assert tts.speak("Hello.", sampling=SHORT).ended == "max_frames"
    stream = tts.stream("Hello.", sampling=SHORT)
    assert list(stream)
    assert stream.ended == "max_frames"


def test_a_text_sounds_the_same_alone_in_a_batch_streamed_and_again(tts, tiny_folder, recording):
    """Bit for bit, the file included; the model is loaded twice."""
    texts = ["Hello.", "", "Grüße aus 東京 🚀"]
    samplings = [replace(SHORT, seed=i, max_frames=frames) for i, frames in enumerate((60, 12, 20))]
    together = tts.speak(texts, recording, samplings, accurate=False)
    other = Zonos2.load(tiny_folder, device="cpu")
    for text, sampling, audio in zip(texts, samplings, together, strict=True):
        assert torch.equal(other.speak(text, recording, sampling, accurate=False).samples, audio.samples)
        chunks = list(tts.stream(text, recording, sampling, accurate=False))
        assert len(chunks) > 1 or sampling.max_frames < 60
        assert torch.equal(torch.cat(chunks), audio.samples)


def test_a_voice_is_the_same_from_file_waveform_and_embedding(tts, tmp_path, recording):
    waveform, rate = recording
    mono = Audio(waveform[0], rate)
    mono.save(tmp_path / "voice.flac")
    quantised = (waveform[0].double() * 32767).round().float() / 32768
    embedding = tts.speaker_encoder.embed(quantised, rate)
    sounds = [tts.speak("a", voice, SHORT).samples for voice in (tmp_path / "voice.flac", (quantised, rate), embedding)]
    assert torch.equal(sounds[0], sounds[1])
    assert torch.equal(sounds[0], sounds[2])


@pytest.fixture
def folder(tiny_folder, tmp_path):
    return shutil.copytree(tiny_folder, tmp_path / "model")


def test_a_folder_as_others_arrange_it(folder, tts):
    """A pickle of weights, the codec's file beside it, no speaker encoder."""
    torch.save({"model": load_file(folder / "model.safetensors")}, folder / "model.pth")
    (folder / "model.safetensors").unlink()
    (folder / "dac" / "weights.pth").rename(folder / "weights_44khz_8kbps_0.0.1.pth")
    (folder / "dac").rmdir()
    shutil.rmtree(folder / "speaker_encoder")
    other = Zonos2.load(folder, device="cpu")
    assert torch.equal(other.speak("a", sampling=SHORT).samples, tts.speak("a", sampling=SHORT).samples)
    with pytest.raises(ValueError, match="no speaker encoder was found"):
        other.speak("a", (torch.ones(5000), 24000))


def test_of_several_files_one_can_be_named(folder, tts):
    """By the remedy in the error, for each part."""
    want = tts.speak("a", sampling=SHORT).samples
    files = {}
    for part, name in (("model", "model.safetensors"), ("vocoder", "dac/weights.pth"),
                       ("speaker_encoder", "speaker_encoder/model.safetensors")):  # fmt: skip
        path = folder / name
        files[part] = path.rename(path.with_name(f"b{path.suffix}"))
        shutil.copy(files[part], path.with_name(f"a{path.suffix}"))
    named: dict[str, object] = {"model": folder}
    for part, file in files.items():
        several = rf"several files for .*: a\{file.suffix}, b.*; name one of them instead of"
        with pytest.raises(ValueError, match=several) as error:
            Zonos2.load(device="cpu", **named)
        assert part == "model" or f"by {part}= or --{part.replace('_', '-')}" in str(error.value)
        named[part] = file
    other = Zonos2.load(device="cpu", **named)
    assert torch.equal(other.speak("a", sampling=SHORT).samples, want)
    assert other.speaker_encoder is not None
    assert TTSLLM(str(files["model"]), torch.float32, device="cpu", decode_audio=False).backbone.config.dim == 64


def test_files_of_other_programs_are_left_alone(folder, tts):
    for part in (folder, folder / "dac", folder / "speaker_encoder"):
        for name in ("._model.safetensors", "._weights.pth", "._dac.pth", ".DS_Store", "._config.json"):
            (part / name).write_bytes(b"\0\5\26\7")
        (part / ".ipynb_checkpoints").mkdir()
    (folder / "model.safetensors").rename(folder / "my.safetensors")
    (folder / "speaker_encoder" / "model.safetensors").rename(folder / "speaker_encoder" / "my.safetensors")
    other = Zonos2.load(folder, device="cpu")
    assert torch.equal(other.speak("a", sampling=SHORT).samples, tts.speak("a", sampling=SHORT).samples)
    assert other.speaker_encoder is not None


def test_of_several_codec_files_one_can_be_named(folder):
    for name in ("weights_a.pth", "weights_b.pth"):
        shutil.copy(folder / "dac" / "weights.pth", folder / name)
    shutil.rmtree(folder / "dac")
    with pytest.raises(ValueError, match=r"weights_a\.pth, weights_b\.pth; name one of them by vocoder= or --vocoder"):
        Zonos2.load(folder, device="cpu")
    Zonos2.load(folder, device="cpu", vocoder=folder / "weights_b.pth")


def test_weights_in_the_folder_of_the_official_training(folder):
    """params.json lies above them."""
    (folder / "consolidated").mkdir()
    torch.save({"model": load_file(folder / "model.safetensors")}, folder / "consolidated" / "consolidated.pth")
    (folder / "model.safetensors").unlink()
    assert Zonos2.load(folder, device="cpu").backbone.config.dim == 64


def test_options_are_of_their_class(folder):
    (folder / "model.safetensors").write_bytes(b"")  # is not read
    with pytest.raises(TypeError, match=r"^options must be a BatchingOptions, got \{'max_batch_size': 4\}$"):
        Zonos2.load(folder, device="cpu", options={"max_batch_size": 4})


@pytest.mark.parametrize(
    ("remove", "message"),
    [("params.json", "holds no params.json"), ("model.safetensors", "holds no weights"), ("dac", "holds no vocoder")],
)
def test_says_what_a_folder_lacks(folder, remove, message):
    (folder / remove).rename(folder.parent / remove)
    (folder.parent / "file").touch()
    with pytest.raises(FileNotFoundError, match=message):
        Zonos2.load(folder, device="cpu")
    if remove == "params.json":
        with pytest.raises(FileNotFoundError, match=message):
            Backbone.load(folder / "model.safetensors")
    with pytest.raises(FileNotFoundError, match="model must be a folder"):
        Zonos2.load(folder.parent / "file", device="cpu")


def test_parts_must_fit_each_other(tts, golden):
    config = SpeakerEncoderConfig(**golden.json("speaker_encoder_tiny")["config"])
    other = SpeakerEncoder.from_state(config, golden.tensors("speaker_encoder_tiny", "weights."))
    with pytest.raises(ValueError, match="speaker encoder makes 64 numbers, the backbone takes 48"):
        Zonos2(tts.backbone, tts.vocoder, other)


def test_settings_of_the_sampling_are_keywords_too(tts):
    """They override those of `sampling`, for all texts."""
    want = tts.speak("a", sampling=SHORT).samples
    assert torch.equal(tts.speak("a", seed=7, max_frames=12, ignore_eos=True).samples, want)
    assert torch.equal(torch.cat(list(tts.stream("a", seed=7, max_frames=12, ignore_eos=True))), want)
    other = replace(SHORT, seed=8, max_frames=20)
    assert torch.equal(tts.speak("a", sampling=other, seed=7, max_frames=12).samples, want)
    both = tts.speak(["a", "a"], sampling=[replace(SHORT, seed=8), replace(SHORT, temperature=0.1)], seed=7)
    assert torch.equal(both[0].samples, want)
    assert not torch.equal(both[1].samples, want)
    assert limit_of(tts, "Hello.", Sampling(), seed=7) == 1024 + 16 * 6


def test_the_keywords_are_those_of_sampling_and_prompt():
    sampling = {field.name: field.type for field in fields(Sampling)}
    assert get_type_hints(SamplingOptions) == sampling
    prompt = list(inspect.signature(build_prompt).parameters)
    assert list(PromptOptions.__annotations__) == prompt[prompt.index("clean_background") :]


@pytest.mark.parametrize(
    ("part", "name"),
    [(Zonos2, "."), (Backbone, "model.safetensors"), (Vocoder, "dac"), (SpeakerEncoder, "speaker_encoder")],
)
def test_from_pretrained_is_load(tiny_folder, part, name):
    assert isinstance(part.from_pretrained(tiny_folder / name, device="cpu"), part)


REJECTED = {
    "long": ({"text": "x" * 2048}, ValueError, r"2067 tokens.*takes 2047; shorten it by at least 20 bytes"),
    "none": ({"text": None}, TypeError, "text must be a string"),
    "rate": ({"speaking_rate": 9}, ValueError, "speaking_rate must be in"),
    "voice-size": ({"speaker": torch.zeros(47)}, ValueError, r"=48\], got \[47\]"),
    "voice-silent": ({"speaker": (torch.zeros(9000), 24000)}, ValueError, "waveform is silent"),
    "voice-short": ({"speaker": (torch.ones(9), 24000)}, ValueError, "shorter than one analysis"),
    "voice-missing": ({"speaker": "nowhere.wav"}, FileNotFoundError, "nowhere.wav is not a file"),
    "voice-kind": ({"speaker": 7}, TypeError, "speaker must be a file"),
    "unknown": ({"colour": 7}, TypeError, r"{way}\(\) got an unexpected .* 'colour'; it takes .*speaker, "),
    "max_tokens": ({"max_tokens": 7}, TypeError, r"{way}\(\) .*'max_tokens'; did you mean 'max_frames'\?"),
    "rate-word": ({"rate": 7}, TypeError, r"{way}\(\) .*'rate'; did you mean 'speaking_rate'\?"),
    "voice": ({"voice": "a.wav"}, TypeError, r"{way}\(\) .*'voice'; did you mean 'speaker'\?"),
    "sampling": ({"sampling": None}, TypeError, "sampling must be a Sampling, or a list of one for each text, got"),
    "samplings": ({"sampling": [SHORT, SHORT]}, ValueError, "one for all or one for each of 1 texts, got 2"),
    "temperature": ({"temperature": "hot"}, TypeError, "temperature must be a number, got 'hot'"),
    "frames": ({"max_frames": 2048}, ValueError, "text: max_frames is 2048, but behind a prompt of 20 tokens"),
}


@pytest.mark.parametrize(("arguments", "error", "message"), REJECTED.values(), ids=REJECTED)
@pytest.mark.parametrize("way", ["speak", "stream"])
def test_rejects_before_any_work(tts, way, arguments, error, message):
    """A stream too: at the call, not at the first chunk."""
    with pytest.raises(error, match=message.replace("{way}", way)):
        getattr(tts, way)(**{"text": "x", "sampling": SHORT, **arguments})


def test_says_which_of_several_texts_is_wrong(tts):
    with pytest.raises(TypeError, match=r"^text\[1\] must be a string, got int"):
        tts.speak(["text", 5])
    with pytest.raises(ValueError, match=r"^text\[1\] is too long: its prompt has 2067 tokens"):
        tts.speak(["a", "x" * 2048])
    with pytest.raises(
        ValueError, match=r"^text\[1\]: max_frames is 2029, but .* holds 2028 frames; only the default is"
    ):
        tts.speak(["", "a"], max_frames=2029)


@pytest.mark.parametrize("argument", ["vocoder", "speaker_encoder", "device", "dtype"])
def test_an_empty_name_is_not_the_default(tiny_folder, argument):
    with pytest.raises((ValueError, FileNotFoundError), match=f"(file|{argument}).* must be .*, got ''"):
        Zonos2.load(tiny_folder, **{argument: ""})
