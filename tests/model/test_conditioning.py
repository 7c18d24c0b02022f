"""Conditioning by value, blended and saved voices."""

import json
import math
import struct
import wave

import pytest
import torch

from zonos2_triton.model import SpeakerEncoder, Zonos2Config, slerp_embeddings
from zonos2_triton.model.cli import main
from zonos2_triton.model.conditioning import (
    resolve_max_tokens,
    resolve_prompt,
    resolve_quality_buckets,
    resolve_speaking_rate_bucket,
)
from zonos2_triton.model.voice import make_voice, read_voice
from zonos2_triton.model.weights.tiny import PARAMS

FUNCTIONS = {"rate_cases": resolve_speaking_rate_bucket, "quality_cases": resolve_quality_buckets}


@pytest.fixture(scope="module")
def vectors(golden):
    return golden.json("conditioning")


@pytest.fixture(scope="module")
def config():
    return Zonos2Config.from_params(PARAMS)


def config_of(own):
    counts = sum(map(len, own["quality_buckets"].values())) + own["speaking_rate_num_buckets"]
    return Zonos2Config.from_params(PARAMS | own | {"text_vocab": 448 + counts + 3})


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_values_go_to_the_official_buckets(vectors, kind):
    configs = {name: config_of(own) for name, own in vectors["configs"].items() if name != "wrong_count"}
    for case in (case for case in vectors[kind] if case["config"] in configs):
        given = {name: value for name, value in case.items() if name not in ("config", "result", "error")}
        if "error" in case:
            with pytest.raises(ValueError, match=r"give one|must"):
                FUNCTIONS[kind](configs[case["config"]], **given)
        else:
            assert FUNCTIONS[kind](configs[case["config"]], **given) == case["result"], case


def test_max_tokens_are_cut_to_the_context(vectors, config):
    for case in vectors["max_tokens_cases"]:
        if "error" in case:
            with pytest.raises(ValueError, match="max_tokens must be a positive integer"):
                resolve_max_tokens(config, case["requested"])
        elif case["requested"] in (1, 600):
            assert resolve_max_tokens(config, case["requested"]) == case["result"]
    assert resolve_max_tokens(config, 9999) == resolve_max_tokens(config, None) == config.max_seqlen


@pytest.mark.parametrize(
    ("options", "values", "message"),
    [
        ({}, {"bytes_per_second": 0}, "bytes_per_second must be a positive number, got 0"),
        ({}, {"speed": math.nan}, "speed must be a positive number, got nan"),
        ({"speaking_rate": 2}, {"speed": 1.0}, "give one of speaking_rate, bytes_per_second and speed, got"),
        ({}, {"quality_values": {"luf": 1.0}}, "quality_values must name features of lufs.*did you mean 'lufs'"),
        ({}, {"quality_values": {"lufs": "loud"}}, r"quality_values\['lufs'\] must be a finite number or None"),
        ({"quality": [1]}, {"quality_values": [1.0]}, "give one of quality and quality_values"),
    ],
)
def test_bad_values_are_named(config, options, values, message):
    with pytest.raises(ValueError, match=message):
        resolve_prompt(config, options, values)


def test_ranges_that_are_no_ranges_are_refused_when_used(config):
    made = Zonos2Config.from_params(PARAMS | {"speaking_rate_buckets": [f"bucket {i}" for i in range(8)]})
    assert resolve_speaking_rate_bucket(made, speaking_rate_bucket=2) == 2
    with pytest.raises(ValueError, match=r"speaking_rate_buckets of params.json .* got 'bucket 0'"):
        resolve_speaking_rate_bucket(made, speed=1.0)


def test_speak_takes_values(tts):
    options = {"seed": 3, "max_frames": 4}
    by_value = tts.speak("Hello.", speed=1.2, quality_values={"lufs": -20}, **options)
    by_bucket = tts.speak("Hello.", speaking_rate=5, quality={"lufs": 7}, **options)
    assert torch.equal(by_value.samples, by_bucket.samples)


def test_blends_are_the_official_ones(golden):
    vectors, tensors = golden.json("slerp"), golden.tensors("slerp")
    for case in vectors["cases"]:
        v0, v1, want = (tensors[f"{case['pair']}.{part}"] for part in ("v0", "v1", case["t"]))
        got = slerp_embeddings(v0, v1, case["t"])
        assert got.isfinite().all()
        if case["omega"] < 3.1:
            torch.testing.assert_close(got, want, rtol=0, atol=2e-5 * max(1.0, want.abs().max().item()))


@pytest.mark.parametrize(
    ("v1", "t", "message"),
    [
        (torch.ones(4), 1.5, r"t must be in 0\.\.1, got 1\.5"),
        (torch.ones(3), 0.5, "v0 and v1 must be of one size, got 4 and 3"),
        (torch.tensor([1.0, math.inf, 0, 0]), 0.5, "v1 must be a tensor .* of finite floats"),
    ],
)
def test_what_cannot_be_blended_is_named(v1, t, message):
    with pytest.raises(ValueError, match=message):
        slerp_embeddings(torch.ones(4), v1, t)


@pytest.fixture
def recording(tmp_path, seeded):
    path = tmp_path / "ref.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 24000, 0, "NONE", ""))
        samples = (seeded(12000).clamp(-3, 3) * 9000).int().tolist()
        file.writeframes(struct.pack(f"<{len(samples)}h", *samples))
    return path


def test_a_saved_voice_sounds_like_its_recording(tts, recording, tmp_path, tiny_folder):
    about = make_voice(tts.speaker_encoder, recording, tmp_path / "anna.safetensors")
    assert about["recording"] == "ref.wav"
    assert about["recording_s"] == 0.5
    options = {"seed": 3, "max_frames": 4}
    saved = tts.speak("Hello.", speaker=tmp_path / "anna.safetensors", **options)
    assert torch.equal(saved.samples, tts.speak("Hello.", speaker=recording, **options).samples)


def test_voices_of_another_model_are_refused(tts, recording, tmp_path):
    path = tmp_path / "anna.safetensors"
    encoder = tts.speaker_encoder
    make_voice(SpeakerEncoder(encoder.config, {name: 2 * t for name, t in encoder.state.items()}), recording, path)
    with pytest.raises(ValueError, match="is a voice of another model: its speaker encoder has SHA-256"):
        tts.speak("Hello.", speaker=path)
    with pytest.raises(ValueError, match="is a voice of another model: it has 48 numbers, not 2048"):
        read_voice(path, 2048)


def test_other_files_are_no_voices(tts, tiny_folder, tmp_path, recording):
    with pytest.raises(ValueError, match="must be a voice of `zonos2-triton voice make`, but holds layers"):
        tts.speak("Hello.", speaker=tiny_folder / "model.safetensors")
    with pytest.raises(FileNotFoundError, match=r"nobody\.safetensors is not a file"):
        tts.speak("Hello.", speaker=tmp_path / "nobody.safetensors")
    (tmp_path / "torn.safetensors").write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"torn\.safetensors cannot be read"):
        tts.speak("Hello.", speaker=tmp_path / "torn.safetensors")
    with pytest.raises(ValueError, match=r"a voice file must end in \.safetensors, got"):
        make_voice(tts.speaker_encoder, recording, tmp_path / "anna.wav")


def test_the_command_makes_a_voice(capsys, recording, tmp_path, tiny_folder):
    out, encoder = tmp_path / "anna.safetensors", tiny_folder / "speaker_encoder"
    assert main(["voice", "make", str(recording), "-o", str(out), "--speaker-encoder", str(encoder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["recording_s"] == 0.5
    assert len(read_voice(out)) == 48
