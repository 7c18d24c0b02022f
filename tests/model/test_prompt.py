import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zonos2_triton.model import Zonos2Config, build_prompt
from zonos2_triton.model.prompt import SILENCE
from zonos2_triton.model.weights.tiny import PARAMS

CONFIG = Zonos2Config.from_params(PARAMS)  # its prompt is the real model's
COUNTS = (12, 12, 12, 8, 8, 8)
NAMES = {"speaker": "speaker", "clean_background": "clean_speaker_background", "accurate": "accurate_mode"}
NAMES |= {"speaking_rate": "speaking_rate_bucket", "quality": "quality_buckets"}  # in the golden vectors


def test_golden(golden):
    vectors = golden.json("prompts")
    config = Zonos2Config.from_params({**golden.json("params_b"), **vectors["config"]})
    assert config.quality_bucket_counts == COUNTS
    for case in vectors["cases"]:
        ids = build_prompt(config, case["text"], **{name: case[key] for name, key in NAMES.items()})
        assert (ids.dtype, ids.tolist()) == (torch.int32, case["ids"]), case["name"]


texts, flags = st.text(st.characters(exclude_categories=["Cs"])), st.booleans()
optional_buckets = [st.none() | st.integers(0, n - 1) for n in COUNTS]


@given(texts, flags, flags, flags, st.none() | st.integers(0, 7), st.none() | st.tuples(*optional_buckets))
def test_round_trip(text, speaker, clean, accurate, rate, quality):
    ids = build_prompt(CONFIG, text, speaker, clean, accurate, rate, quality)
    column = ids[: -len(SILENCE), 9].tolist()
    assert (ids[: -len(SILENCE), :9] == 1025).all()
    begin = column.index(2)
    assert column[-1] == 3
    assert bytes(i - 192 for i in column[begin + 1 : -1]).decode("utf-8") == text
    head = column[:begin]
    if speaker:
        assert head.pop(0) == 519
        assert head.pop(0) == (516 if clean else 517)
        assert not accurate or head.pop(0) == 518
    if rate is not None:
        assert head.pop(0) == 448 + rate
    wanted = [456 + sum(COUNTS[:i]) + bucket for i, bucket in enumerate(quality or ()) if bucket is not None]
    assert head == wanted


def test_quality_by_name_is_quality_by_place():
    by_name = build_prompt(CONFIG, "x", quality={"trailing_silence_s": 3, "lufs": 0, "max_pause": None})
    assert torch.equal(by_name, build_prompt(CONFIG, "x", quality=[0, None, None, None, None, 3]))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"speaking_rate": 8}, ValueError, r"speaking_rate must be in 0\.\.7 or None, got 8"),
        ({"speaking_rate": 1.0}, ValueError, r"speaking_rate must be .* got 1\.0"),
        ({"quality": [12]}, ValueError, r"quality\[0\] \(lufs\) must be in 0\.\.11"),
        ({"quality": [None] * 7}, ValueError, r"at most 6 buckets .*got 7"),
        ({"quality": {"loudness": 1}}, ValueError, r"features of lufs.*got loudness"),
        ({"text": "a\ud800b"}, ValueError, r"character 1 is the lone surrogate '\\ud800'"),
        ({"text": b"bytes"}, TypeError, r"text must be a string, got bytes"),
    ],
    ids=ascii,
)
def test_rejects(arguments, error, message):
    with pytest.raises(error, match=message):
        build_prompt(CONFIG, **{"text": "x", **arguments})


def test_a_model_without_speakers_or_rates_says_so():
    with pytest.raises(ValueError, match="takes no speaker embedding"):
        build_prompt(dataclasses.replace(CONFIG, speaker_enabled=False), "x", speaker=True)
    params = PARAMS | {"speaking_rate_num_buckets": 0, "speaking_rate_buckets": []}
    with pytest.raises(ValueError, match="no such buckets"):
        build_prompt(Zonos2Config.from_params(params), "x", speaking_rate=0)
