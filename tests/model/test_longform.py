"""Long texts: splitting, windows, prompts, and the joined sound."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zonos2_triton.model import Backbone, Sampling, Zonos2
from zonos2_triton.model.long_speech import LongSpeech
from zonos2_triton.model.longform import (
    LongForm,
    build_continuation_prompt,
    chunk_quality,
    long_form_chunks,
    split_text,
    trim_chunk_codes,
    windowed_context_indices,
)
from zonos2_triton.reference.delay import shear_up

TEXT = "The rain had stopped. A grey cat crossed. Nobody saw it go."
SMALL = {"long_form": True, "long_form_chunk_chars": 24, "max_frames": 14, "ignore_eos": True, "seed": 5}


@pytest.fixture(scope="module")
def vectors(golden):
    return golden.json("longform_helpers")


def test_texts_are_split_as_the_official_engine_splits_them(vectors):
    for case in vectors["split_cases"]:
        assert split_text(case["text"], case["max_chars"], case["mode"]) == case["chunks"]


@pytest.mark.parametrize(
    ("text", "chunks"),
    [
        ('She said "Stop." Then (softly.) she left.', ['She said "Stop."', "Then (softly.)", "she left."]),
        (
            "今日は良い天気です。散歩に行く！「はい。」終わり。",
            ["今日は良い天気です。散歩に行く！", "「はい。」終わり。"],
        ),
        ("One. 二。三。 Four.", ["One. 二。三。 Four."]),
        ("a  b\n\nc. " + "long " * 6, ["a b c.", "long long long", "long long long"]),
    ],
)
def test_sentences_keep_their_quotes_and_spacing(text, chunks):
    assert long_form_chunks(text, True, 17, "sentence") == (chunks if len(chunks) > 1 else None)


@given(st.text(alphabet='ab .!?。"”)\n', max_size=60), st.integers(1, 30), st.sampled_from(["word", "sentence"]))
def test_splitting_loses_nothing_but_white_space(text, most, mode):
    chunks = long_form_chunks(text, True, most, mode) or [text]
    assert "".join("".join(chunks).split()) == "".join(text.split())
    assert len(chunks) == 1 or all(len(chunk) <= most or " " not in chunk for chunk in chunks)


def test_long_texts_are_told_by_their_length(vectors):
    for case in vectors["auto_cases"]:
        chunks = long_form_chunks(case["text"], case["long_form"], case["chunk_chars"], "word")
        assert (chunks and len(chunks)) == case["chunks"]


def test_windows_and_trims_are_the_official_ones(vectors):
    for case in vectors["window_cases"]:
        form = LongForm(window_chunks=case["window_chunks"], pin_anchor=case["pin_anchor"])
        assert form.context(case["cur_index"]) == case["indices"]
    for case in vectors["trim_cases"]:
        got = trim_chunk_codes(case["frames"], case["eos_frame"], drop_trailing_frames=case["drop_trailing_frames"])
        assert got == case["frames"][: case["kept"]]
    with pytest.raises(ValueError, match="context_chunks must be at least 0, got -1"):
        windowed_context_indices(3, context_chunks=-1, pin_anchor=True)


def test_prompts_continue_the_context(vectors, golden_weights):
    config, _ = golden_weights
    for case in vectors["continuation_prompts"]:
        options = {"speaker": case["speaker"], "clean_background": case["clean_speaker_background"]}
        options |= {"accurate": case["accurate_mode"], "speaking_rate": case["speaking_rate_bucket"]}
        texts = case["context_text"], case["cur_text"], case["context_codes"]
        ids = build_continuation_prompt(config, *texts, **options, quality=case["quality_buckets"])
        assert ids.tolist() == case["ids"]
    for case in vectors["chunk_quality"]:
        assert chunk_quality(config, case["quality_buckets"]) == (case["final"], case["nonfinal"])


RUNS = ["sentence_speaker", "independent", "no_pin_window_3", "pin_alone", "word_default"]


@pytest.mark.parametrize("name", [*(pytest.param(run, marks=pytest.mark.slow) for run in RUNS[:3]), *RUNS[3:]])
def test_chunks_are_the_official_ones(golden, golden_weights, name):
    vectors, (config, weights) = golden.json("longform"), golden_weights
    (run,) = [run for run in vectors["runs"] if run["name"] == name]
    weights = dict(weights)
    head = weights["multi_output.weight"] = weights["multi_output.weight"].clone()
    head[torch.arange(9) * 1026 + 1024] *= run["eoa_gain"]
    backbone = Backbone(replace(config, **vectors["overrides"]), weights, "reference")
    options, given = run["options"], run["conditioning"]
    modes = {"split_mode": "official"} if "split_mode" in options else {}
    form = LongForm(**{k: v for k, v in options.items() if k != "boundary_trim_frames"} | modes)
    prompt = {"clean_background": given.get("clean_speaker_background", False)}
    prompt |= {"accurate": given.get("accurate_mode", True), "speaking_rate": given.get("speaking_rate_bucket")}
    prompt["quality"] = given.get("quality_buckets", {"trailing_silence_s": 3})
    sampling = Sampling(temperature=0, max_frames=run["sampling"]["max_tokens"])
    speaker = golden.tensors("longform").get(f"{name}.speaker")
    speech = LongSpeech(backbone, [c["text"] for c in run["chunks"]], sampling, speaker, prompt, form)
    pieces = [*speech]
    want = [frame for chunk in run["chunks"] for frame in chunk["frames"][: chunk["kept"]]]
    joined = torch.cat([piece.codes for piece in pieces])
    assert joined[: len(want)].tolist() == want
    assert [piece.chunk.kept for piece in pieces if piece.chunk] == [chunk["kept"] for chunk in run["chunks"]]
    if form.split_mode == "official":
        assert (len(joined), pieces[-1].eos_frame) == (len(want), None)
    else:  # the codes that end the last frames
        assert joined[len(want) :].tolist() == run["chunks"][-1]["frames"][run["chunks"][-1]["kept"] :][:8]
        assert pieces[-1].eos_frame == len(want)
    assert speech.ended == "end_of_audio"
    (
        resumed := LongSpeech(
            backbone, speech.chunks, sampling, speaker, prompt, form, done=[p.chunk for p in pieces if p.chunk][:2]
        )
    )
    assert torch.equal(torch.cat([piece.codes for piece in resumed]), joined)


@pytest.mark.parametrize("steps", [False, True], ids=["windows", "steps"])
def test_a_stream_is_the_sound_of_speak(tts, in_steps, steps):
    voices = Zonos2(tts.backbone, in_steps(tts.vocoder) if steps else tts.vocoder)
    frames = []
    whole = voices.speak(TEXT, progress=lambda i, frame: frames.append((i, frame.codes)), **SMALL)
    parts = [*voices.stream(TEXT, **SMALL)]
    assert len(parts) > 1 or not steps
    assert torch.equal(torch.cat(parts), whole.samples)
    assert [*dict.fromkeys(i for i, _ in frames)] == [0, 1, 2]
    kept = [code for i in range(3) for code in [c for j, c in frames if j == i][: 14 if i == 2 else 11]]
    assert torch.equal(whole.samples, voices.vocoder.decode(shear_up(torch.stack(kept), 1025).T[None])[0])
    assert whole.ended == "max_frames"


def test_a_short_text_is_spoken_the_ordinary_way(tts):
    options = {"seed": 5, "max_frames": 6}
    ordinary = tts.speak(["Hi  there.", TEXT], **options)
    both = tts.speak(["Hi  there.", TEXT], long_form=None, long_form_chunk_chars=24, **options)
    assert torch.equal(both[0].samples, ordinary[0].samples)
    assert len(both[1].samples) > len(ordinary[1].samples)


def test_chunks_share_a_seed_that_was_drawn(tts):
    options = SMALL | {"seed": None, "long_form_window_chunks": 1, "long_form_pin_anchor": False}
    frames = []
    tts.speak("Same. Same. ", progress=lambda i, f: frames.append(f.codes), **options | {"long_form_chunk_chars": 5})
    assert torch.equal(torch.stack(frames[:14]), torch.stack(frames[14:]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"long_form_chunk_chars": 0}, "long_form_chunk_chars must be an integer from 1, got 0"),
        ({"long_form_window_chunks": 0}, "long_form_window_chunks must be an integer from 1, got 0"),
        ({"long_form_split_mode": "line"}, "must be one of word, sentence, official, got 'line'"),
        ({}, r"text: the prompt of chunk 3 has \d+ tokens, the model takes 79: use fewer characters a chunk"),
    ],
)
def test_what_cannot_be_spoken_is_named(tts, options, message):
    backbone = Backbone(replace(tts.backbone.config, max_seqlen=80), tts.backbone.weights, "reference")
    with pytest.raises(ValueError, match=message):
        Zonos2(backbone, tts.vocoder).speak(TEXT, **SMALL | options)


def test_memory_is_that_of_the_window(tts, monkeypatch):
    """Frames of a long text come and go."""
    monkeypatch.setattr(type(tts.vocoder.windows), "decode", lambda *_: torch.zeros(0))
    stream = tts.stream(TEXT * 4, **SMALL | {"max_frames": 4, "long_form_chunk_chars": 12})
    held = []
    for _ in stream._frames:
        held.append(sum(map(len, stream._frames._context.values())))
    assert len(held) > 20
    assert max(held) <= 2 * 4
