"""Scalars of numpy, wherever a caller may hand one in, are the numbers that they are."""

import json
from dataclasses import asdict, astuple

import numpy as np
import pytest
import torch

from tests.model.codecs import frames_of, random_codec
from zonos2_triton import Audio, BatchingOptions, Sampling, SpeakerEncoder, build_prompt
from zonos2_triton.model import SpeakerEncoderConfig, TTSSamplingParams, VocoderConfig, Zonos2Config
from zonos2_triton.model.integrations.zonos2_engine.offline import _batching_options, _sampling
from zonos2_triton.model.weights.tiny import PARAMS, write_tiny
from zonos2_triton.reference.scalars import as_int, as_python

PROMPT = {"speaking_rate": 3, "quality": {"lufs": 5}}
CONFIG = Zonos2Config.from_params(PARAMS)


def numpys(value):
    """The same, of numpy's scalars."""
    if isinstance(value, dict):
        return {key: numpys(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(numpys(inner) for inner in value)
    kinds = {bool: np.bool_, int: np.int64, float: np.float64}
    return kinds[type(value)](value) if type(value) in kinds else value


@pytest.mark.parametrize(
    ("value", "want"),
    [
        *((kind(3), 3) for kind in (np.int8, np.uint64, np.int64)),
        *((kind(3.5), 3.5) for kind in (np.float16, np.float32, np.float64)),
        *((np.bool_(False), False), ([np.int64(1), (np.bool_(True),)], [1, (True,)])),
        *((value, value) for value in (3, 3.5, True, "3", None, torch.tensor(3))),
    ],
    ids=repr,
)
def test_what_a_value_is(value, want):
    assert as_python(value) == want
    assert type(as_python(value)) is type(want)
    assert as_int(value) == (want if type(want) is int else None)


SETTINGS = [Sampling(0.9, 40, 0.8, 0.1, 20, 1.5, 4, 12, True, 5), BatchingOptions(4, 2048, 3, "off", 128)]
SETTINGS += [VocoderConfig(8, 8, (2, 2), 3, 16, 4, 24000), SpeakerEncoderConfig(), CONFIG]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: type(settings).__name__)
def test_settings(settings):
    fields = {name: getattr(settings, name) for name in settings.__dataclass_fields__}
    made = type(settings)(**numpys(fields))
    assert made == settings
    assert json.dumps(asdict(made)) == json.dumps(asdict(settings))
    assert repr(astuple(made)) == repr(astuple(settings))


def test_prompts():
    assert torch.equal(build_prompt(CONFIG, "a", **numpys(PROMPT)), build_prompt(CONFIG, "a", **PROMPT))


def test_streams():
    vocoder, frames = random_codec((2,)), frames_of(30)
    options = {"chunk": 4, "lookahead": 2, "first_chunk": 2}
    for more in (options, {"mode": "overlap", "overlap": 2, "chunk": 4}, {}):
        message = {"eos_frame": 25, "last": True}
        plain, given = vocoder.stream(**more), vocoder.stream(**numpys(more))
        assert torch.equal(given.push(frames, **numpys(message)), plain.push(frames, **message))
    many = vocoder.streams(np.int64(2))
    many.restart(np.int64(1))
    assert many.push([frames, None], [np.int64(3), None], [np.bool_(True), np.bool_(False)])[0].numel() == 6


def test_rates(tmp_path, tiny_folder):
    encoder, wave = SpeakerEncoder.load(tiny_folder / "speaker_encoder"), torch.rand(4000)
    assert torch.equal(encoder.embed(wave, np.int64(22050)), encoder.embed(wave, 22050))
    Audio(wave, np.int64(22050)).save(tmp_path / "a.wav")
    Audio(wave, 22050).save(tmp_path / "b.wav")
    assert (tmp_path / "a.wav").read_bytes() == (tmp_path / "b.wav").read_bytes()
    write_tiny(tmp_path / "tiny", np.int64(0))
    assert (tmp_path / "tiny" / "params.json").read_bytes() == (tiny_folder / "params.json").read_bytes()


def test_the_offline_api():
    params = TTSSamplingParams(topk=7, seed=3, ignore_eos=True, temperature=0.5)
    assert _sampling("", TTSSamplingParams(**numpys(vars(params)))) == _sampling("", params)
    kwargs = {"max_running_req": 3, "num_page_override": 64, "page_size": 16, "cuda_graph_max_bs": 0}
    assert _batching_options(numpys(kwargs)) == _batching_options(kwargs)
