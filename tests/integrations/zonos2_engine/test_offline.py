"""The official offline API on the tiny model: names, types, defaults, and the same audio as the pipeline."""

import inspect
import logging
import wave
from dataclasses import fields
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from zonos2_triton.model import TTSLLM, BatchingOptions, Sampling, TTSSamplingParams, build_prompt
from zonos2_triton.model.weights.tiny import PARAMS

KEYS = ["audio_tokens", "eos_frame", "audio", "sample_rate"]
OFFICIAL_PARAMS = {
    "temperature": 1.15, "topk": 106, "top_p": 0.0, "min_p": 0.18, "max_tokens": 1024, "ignore_eos": False,
    "repetition_window": 50, "repetition_penalty": 1.2, "repetition_codebooks": 8, "seed": None,
}  # fmt: skip
OFFICIAL_CALLS = {
    "__init__": {"model_path": ..., "dtype": torch.bfloat16, "n_codebooks": None, "codebook_size": None,
                 "text_vocab": None, "eoa_id": None, "audio_pad_id": None, "decode_audio": True, "kwargs": ...},
    "generate": {"prompts": ..., "sampling_params": ..., "decode_audio": None, "speaking_rate_bucket": None,
                 "quality_buckets": None},
    "generate_one": {"prompt": ..., "sampling_params": None, "decode_audio": None, "speaking_rate_bucket": None,
                     "quality_buckets": None},
    "save_audio": {"audio_bytes": ..., "path": ..., "sample_rate": 44100},
}  # fmt: skip
SIZES = ("n_codebooks", "codebook_size", "text_vocab", "eoa_id", "audio_pad_id")
SHORT = TTSSamplingParams(seed=7, max_tokens=20, ignore_eos=True)
SAME = Sampling(seed=7, max_frames=20, ignore_eos=True)
BRIEF, SAME_BRIEF = TTSSamplingParams(seed=7, max_tokens=3), Sampling(seed=7, max_frames=3)


@pytest.fixture(scope="module")
def llm(tiny_folder):
    return TTSLLM(str(tiny_folder), dtype=torch.float32, device="cpu")


@pytest.fixture(scope="module")
def mute(tiny_folder):
    return TTSLLM(str(tiny_folder), dtype=torch.float32, decode_audio=False, device="cpu")


def samples(result):
    return torch.frombuffer(bytearray(result["audio"]), dtype=torch.float32)


def run(tts, text, sampling, **prompt):
    """The pipeline's own results with the default conditioning."""
    return tts.speak(text, sampling=sampling, **({"quality": {"trailing_silence_s": 3}} | prompt)).samples


def test_the_parameters_are_the_official_ones():
    assert {field.name: field.default for field in fields(TTSSamplingParams)} == OFFICIAL_PARAMS


@pytest.mark.parametrize("method", OFFICIAL_CALLS)
def test_the_calls_are_the_official_ones(method):
    found = inspect.signature(getattr(TTSLLM, method)).parameters
    defaults = {name: ... if p.default is p.empty else p.default for name, p in found.items() if name != "self"}
    assert [*defaults.items()] == [*OFFICIAL_CALLS[method].items()]


def test_results_are_those_of_speak(llm, tts):
    result = llm.generate(["Hello."], SHORT)[0]
    assert [*result] == KEYS
    assert [type(value) for value in result.values()] == [list, type(None), bytes, int]
    assert [len(frame) for frame in result["audio_tokens"]] == [9] * 20
    assert all(type(code) is int for frame in result["audio_tokens"] for code in frame)
    assert torch.equal(samples(result), run(tts, "Hello.", SAME))
    assert result["sample_rate"] == 44100


def test_the_audio_ends_where_the_codes_say(llm, tts):
    result = llm.generate_one("Hello.", TTSSamplingParams(seed=7, max_tokens=400))
    assert result["eos_frame"] is not None, "this seed was chosen because it ends"
    assert len(samples(result)) == result["eos_frame"] * 512
    assert torch.equal(samples(result), run(tts, "Hello.", Sampling(seed=7, max_frames=400)))


def test_says_that_the_end_was_not_reached(mute):
    asked = [TTSSamplingParams(seed=7, max_tokens=400), BRIEF, SHORT]  # the last asks for all frames, whatever comes
    with pytest.warns(UserWarning, match="cut off") as warned:
        mute.generate(["Hello."] * 3, asked)
    text = "prompts[1] did not come to its end: it was cut off after 3 frames; raise max_tokens, or split the text"
    assert [str(warning.message) for warning in warned] == [text]
    assert warned[0].filename == __file__


def test_many_are_each_alone(mute):
    texts = ["Hello.", "", "Grüße aus 東京 🚀"]
    params = [TTSSamplingParams(seed=i, max_tokens=2 + 2 * i) for i in range(3)]
    together = mute.generate(texts, params)
    assert together == [mute.generate_one(text, own) for text, own in zip(texts, params, strict=True)]
    assert [len(result["audio_tokens"]) for result in together] == [2, 4, 6]
    assert mute.generate(texts[1:], params[2]) == [mute.generate_one(text, params[2]) for text in texts[1:]]
    assert mute.generate([], SHORT) == []


def test_nothing_before_the_end_is_no_sound(llm, monkeypatch):
    ops = llm.backbone.ops

    def ends(logits, *state):
        only = torch.where(torch.arange(logits.shape[2]) == 1024, 0.0, -torch.inf)
        return ops.sample_codes(only.expand_as(logits).contiguous(), *state)

    monkeypatch.setattr(llm.backbone, "ops", type(ops)(**{**vars(ops), "sample_codes": ends}))
    result = llm.generate_one("Hello.")
    assert (result["eos_frame"], result["audio"]) == (0, b"")
    assert len(result["audio_tokens"]) == 10


def test_without_audio(llm, mute):
    silent, without = llm.generate_one("Hello.", SHORT, decode_audio=False), mute.generate_one("Hello.", SHORT)
    assert silent == without
    assert silent["audio"] is None
    assert silent["audio_tokens"] == llm.generate_one("Hello.", SHORT)["audio_tokens"]
    with pytest.raises(ValueError, match=r"decode_audio is True, but this TTSLLM was made with decode_audio=False"):
        mute.generate_one("Hello.", SHORT, decode_audio=True)


def test_without_audio_no_codec_is_needed(tiny_folder, tmp_path):
    for name in ("params.json", "model.safetensors"):
        (tmp_path / name).symlink_to(tiny_folder / name)
    made = TTSLLM(str(tmp_path), torch.float32, decode_audio=False, device="cpu")
    assert len(made.generate_one("a", SHORT)["audio_tokens"]) == 20
    assert TTSLLM(str(tmp_path), decode_audio=False, device="cpu").backbone.dtype == torch.bfloat16
    with pytest.raises(FileNotFoundError, match="holds no vocoder"):
        TTSLLM(str(tmp_path), torch.float32, device="cpu")


def test_prompts_may_be_rows_of_ids(mute):
    rows = build_prompt(mute.backbone.config, "Hello.", quality={"trailing_silence_s": 3})
    expected = mute.generate(["Hello."], BRIEF)
    assert mute.generate([rows.tolist()], BRIEF) == expected
    assert mute.generate([rows], BRIEF) == expected
    assert mute.generate([rows.tolist()], BRIEF, speaking_rate_bucket=3, quality_buckets={}) == expected


@pytest.mark.parametrize(
    ("asked", "prompt"),
    [
        ({"quality_buckets": {}}, {"quality": None}),
        ({"quality_buckets": {"lufs": 2, "max_pause": None}}, {"quality": {"lufs": 2}}),
        ({"quality_buckets": [None, 4]}, {"quality": [None, 4]}),
        ({"speaking_rate_bucket": 3}, {"speaking_rate": 3}),
    ],
)
def test_conditioning(mute, tts, asked, prompt):
    own = {"quality": {"trailing_silence_s": 3}} | prompt
    expected = tts.backbone.generate([build_prompt(tts.backbone.config, "a", **own)], SAME_BRIEF)
    assert mute.generate(["a"], BRIEF, **asked)[0]["audio_tokens"] == expected[0].frames.tolist()


def test_a_rate_for_each(mute):
    together = mute.generate(["a", "a"], BRIEF, speaking_rate_bucket=[None, 5])
    alone = [mute.generate_one("a", BRIEF, speaking_rate_bucket=rate) for rate in (None, 5)]
    assert together == alone
    assert alone[0] != alone[1]


def test_the_default_quality_is_what_the_model_has_of_it(mute, monkeypatch):
    assert mute._quality(None) == {"trailing_silence_s": 3}
    monkeypatch.setattr(mute, "backbone", SimpleNamespace(config=SimpleNamespace(quality_features=("lufs",))))
    assert mute._quality(None) == {}


def test_settings_of_another_class(mute):
    names = [*OFFICIAL_PARAMS]
    official = SimpleNamespace(**dict(zip(names, (0.5, 3, 0.9, 0.1, 12, True, 4, 2.0, -1, 3), strict=True)))
    own = Sampling(0.5, 3, 0.9, 0.1, 4, 2.0, -1, 12, True, 3)
    assert mute.generate(["a"], official) == mute.generate(["a"], own)
    assert mute.generate(["a"], [official]) != mute.generate(["a"], TTSSamplingParams(seed=3, max_tokens=12))


@pytest.mark.parametrize(
    ("params", "kind", "message"),
    [
        (TTSSamplingParams(max_tokens=0), ValueError, r"sampling_params\[0\]: max_tokens must be at least 1, got 0"),
        (TTSSamplingParams(topk="x"), TypeError, r"sampling_params\[0\]: topk must be a number, got 'x'"),
        (TTSSamplingParams(max_tokens=2100), ValueError, r"prompts\[0\]: max_tokens is 2100, .* \(max_seqlen 2048\)"),
        ({"seed": 1}, TypeError, r"sampling_params\[0\] must be TTSSamplingParams, got dict, which has no temperature"),
    ],
)
def test_settings_that_are_refused(mute, params, kind, message):
    with pytest.raises(kind, match=message):
        mute.generate(["a"], params)


@pytest.mark.parametrize(
    ("prompts", "options", "kind", "message"),
    [
        ("Hello.", {}, TypeError, "prompts must be a list of texts or of rows of ids, got str"),
        (["a"], {"speaking_rate_bucket": 9}, ValueError, r"prompts\[0\]: speaking_rate_bucket must be in 0\.\.7"),
        (["a"], {"quality_buckets": [99]}, ValueError, r"prompts\[0\]: quality_buckets\[0\] \(lufs\) must be in"),
        (["a", "\ud800"], {}, ValueError, r"prompts\[1\]: text cannot be encoded: character 0 is the lone surrogate"),
        (["a", None], {}, ValueError, r"prompts\[1\] must be a text or rows of 10 ids each, got None"),
        (["a"], {"speaking_rate_bucket": [1, 2]}, ValueError, "speaking_rate_bucket must be one for all or one for"),
        (["a"], {"quality_buckets": "lufs"}, TypeError, "quality_buckets must be a list of buckets, a mapping"),
        (["a"], {"sampling_params": [SHORT] * 2}, ValueError, "sampling_params must be one for all or one for each"),
    ],
)  # fmt: skip
def test_calls_that_are_refused(mute, prompts, options, kind, message):
    with pytest.raises(kind, match=message):
        mute.generate(prompts, **({"sampling_params": SHORT} | options))


@pytest.fixture
def made(tiny_folder):
    return lambda **options: TTSLLM(str(tiny_folder), torch.float32, decode_audio=False, device="cpu", **options)


@pytest.mark.parametrize(
    ("asked", "options"),
    [
        ({}, BatchingOptions()),
        ({"max_running_req": 3}, BatchingOptions(max_batch_size=3)),
        ({"max_extend_tokens": 100}, BatchingOptions(max_prefill_tokens=100)),
        ({"max_extend_tokens": 8192}, BatchingOptions(max_prefill_tokens=4096)),
        ({"num_page_override": 300}, BatchingOptions(kv_cache_tokens=300)),
        ({"num_page_override": 300, "page_size": 16}, BatchingOptions(kv_cache_tokens=4800)),
        ({"num_page_override": None, "page_size": 16}, BatchingOptions()),
        ({"cuda_graph_bs": []}, BatchingOptions(cuda_graphs="off")),
        ({"cuda_graph_max_bs": 0}, BatchingOptions(cuda_graphs="off")),
        ({"cuda_graph_max_bs": 64, "cuda_graph_bs": None}, BatchingOptions()),
        ({"tp_info": SimpleNamespace(rank=0, size=1), "use_dummy_weight": False}, BatchingOptions()),
        ({name: PARAMS[name] for name in SIZES}, BatchingOptions()),
    ],
)
def test_engine_arguments_with_a_meaning(made, asked, options):
    assert made(**asked).backbone.options == options


def test_what_the_cache_never_holds_is_told_by_official_names(made):
    small, asked = made(num_page_override=64), TTSSamplingParams(max_tokens=500)
    with pytest.raises(ValueError, match=r"^prompts\[0\] .*: raise num_page_override, or lower max_tokens$"):
        small.generate(["a"], asked)
    assert made(num_page_override=640).generate(["a"], TTSSamplingParams(seed=7, max_tokens=5))


def test_a_shorter_context(made):
    short = made(max_seq_len_override=64)
    frames = short.generate_one("a", TTSSamplingParams(seed=1, ignore_eos=True))["audio_tokens"]
    prompt = build_prompt(short.backbone.config, "a", quality={"trailing_silence_s": 3})
    assert len(prompt) + len(frames) == 64


def test_engine_arguments_without_a_meaning_are_told_once(made, caplog):
    with caplog.at_level(logging.INFO, "zonos2_triton"):
        made(attention_backend="fa", memory_ratio=0.8, max_running_req=2)
    assert caplog.messages == ["TTSLLM: without a meaning here: attention_backend='fa', memory_ratio=0.8"]


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"use_dummy_weight": True}, ValueError, "use_dummy_weight must be False: there are no dummy weights here"),
        ({"tp_info": SimpleNamespace(rank=0, size=2)}, ValueError, "tp_info must have the size 1, for there is no"),
        ({"max_running_req": 257}, ValueError, r"max_running_req must be an integer in 1\.\.256, got 257"),
        ({"num_page_override": 1.5}, ValueError, r"num_page_override must be an integer in 1\.\."),
        ({"max_extend_tokens": 0}, ValueError, r"max_extend_tokens must be an integer in 1\.\."),
        ({"num_page_override": 8, "page_size": True}, ValueError, r"page_size must be an integer in 1\.\."),
        ({"max_seq_len_override": 4096}, ValueError, r"max_seq_len_override must be an integer in 1\.\.2048, got 4096"),
        *(({name: 3}, ValueError, f"{name} is 3, but the model has {PARAMS[name]}") for name in SIZES),
        ({"backend": "cuda"}, ValueError, "backend must be one of reference, triton, auto, got 'cuda'"),
        ({"max_streams": 3}, TypeError, r"TTSLLM\.__init__\(\) got an unexpected keyword argument 'max_streams'"),
    ],
)  # fmt: skip
def test_arguments_that_are_refused(made, options, kind, message):
    with pytest.raises(kind, match=message):
        made(**options)


def test_a_codec_of_its_own(tiny_folder, tmp_path):
    codec = tmp_path / "codec.pth"
    codec.symlink_to(tiny_folder / "dac" / "weights.pth")
    made = TTSLLM(str(tiny_folder), torch.float32, device="cpu", vocoder=codec, vocoder_dtype=torch.float64)
    assert made.vocoder.dtype == torch.float64
    assert len(samples(made.generate_one("a", SHORT))) == 20 * 512


def test_saving_clips_instead_of_wrapping(llm, tmp_path):
    loud = np.array([0.0, 0.5, 1.2, -1.2, -0.5], dtype=np.float32)
    llm.save_audio(loud.tobytes(), str(tmp_path / "wave whatever the name"), 22050)
    with wave.open(str(tmp_path / "wave whatever the name")) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, 22050)
        assert np.frombuffer(file.readframes(9), np.int16).tolist() == [0, 16384, 32767, -32767, -16384]
    llm.save_audio(b"", str(tmp_path / "nothing"))
    with wave.open(str(tmp_path / "nothing")) as file:
        assert (file.getnframes(), file.getframerate()) == (0, 44100)


@pytest.mark.parametrize(
    ("audio", "kind", "message"),
    [
        (None, TypeError, "audio_bytes must be the bytes of fp32 samples, got NoneType"),
        (b"123", ValueError, "audio_bytes must hold samples of 4 bytes each, got 3 bytes"),
        (np.array([np.nan], dtype=np.float32).tobytes(), ValueError, "samples must be finite to be saved"),
    ],
)
def test_what_cannot_be_saved(llm, tmp_path, audio, kind, message):
    with pytest.raises(kind, match=message):
        llm.save_audio(audio, str(tmp_path / "a.wav"))
    assert [*tmp_path.iterdir()] == []


def test_of_a_model_that_is_loaded(tts, llm):
    made = TTSLLM.of(tts)
    assert made.backbone is tts.backbone
    assert made.vocoder is tts.vocoder
    assert [getattr(made, name) for name in SIZES] == [PARAMS[name] for name in SIZES]
    assert made.decode_audio is llm.decode_audio is True
    assert made.generate(["a b"], SHORT) == llm.generate(["a b"], SHORT)
