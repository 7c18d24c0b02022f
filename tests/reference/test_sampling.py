import dataclasses
from math import inf, nan

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zonos2_triton.model import Sampling
from zonos2_triton.reference.sampling import probabilities

NO_HISTORY = torch.zeros(0, 9, dtype=torch.int64)


def test_golden(golden):
    vectors, tensors = golden.json("sampling"), golden.tensors("sampling")
    assert len(vectors["cases"]) == 36
    for i, case in enumerate(vectors["cases"]):
        sampling = Sampling(**{key: case[key] for key in vectors["defaults"]})
        history = tensors["history"][i, : case["history_len"]]
        got, want = probabilities(tensors["logits"][case["logits_index"]], sampling, history), tensors["probs"][i]
        assert torch.equal(got > 0, want > 0), case["name"]
        assert (got - want).abs().max() <= 1e-6, case["name"]


finite = st.floats(allow_nan=False, allow_infinity=False, width=32)
history_lengths = st.integers(0, 60)


@given(finite, st.integers(-5, 2000), finite, finite, st.integers(-5, 70), finite, st.integers(-3, 12), history_lengths)
def test_any_finite_settings_make_a_distribution(t, k, top_p, min_p, window, penalty, codebooks, n):
    generator = torch.Generator().manual_seed(n)
    logits = 15 * torch.tanh(torch.randn(9, 1026, generator=generator))
    history = torch.randint(0, 1026, (n, 9), generator=generator)
    p = probabilities(logits, Sampling(t, k, top_p, min_p, window, penalty, codebooks), history)
    assert p.isfinite().all()
    assert (p >= 0).all()
    assert (p.sum(-1) - 1).abs().max() < 1e-5


def test_rows_are_independent_of_each_other(seeded):
    logits = 4 * seeded(9, 1026)
    alone = probabilities(logits, Sampling(), NO_HISTORY)
    logits[3] = 100 * logits[3]
    changed = probabilities(logits, Sampling(), NO_HISTORY)
    others = [c for c in range(9) if c != 3]
    assert torch.equal(alone[others], changed[others])


@pytest.mark.parametrize("count", [1, 5, 9], ids="first-{}".format)
def test_the_penalty_spares_end_padding_and_later_codebooks(seeded, count):
    logits = 4 * seeded(9, 1026)
    history = torch.tensor([[7] * 9, [1024] * 9, [1025] * 9])
    flat = Sampling(temperature=1, top_k=1026, min_p=0, repetition_codebooks=count, repetition_penalty=2)
    ratio = (probabilities(logits, flat, history) / probabilities(logits, flat, NO_HISTORY)).log()
    ratio = ratio - ratio[:, :1]  # the change of each logit, but for what normalisation adds to all
    changed = (ratio.abs() > 1e-3).nonzero().tolist()
    assert changed == [[c, 7] for c in range(count)]


FIELDS = [f.name for f in dataclasses.fields(Sampling) if f.name != "ignore_eos"]
REJECTED = [
    *(({field: value}, ValueError, f"{field} must be finite") for field in FIELDS for value in (nan, inf, -inf)),
    ({"seed": -1}, ValueError, "seed must be an integer in"),
    ({"seed": 2**64}, ValueError, "seed must be an integer in"),
    ({"seed": 1.5}, ValueError, "seed must be an integer in"),
    ({"max_frames": 0}, ValueError, "max_frames must be at least 1, got 0"),
    ({"top_k": "many"}, TypeError, "top_k must be a number, got 'many'"),
    ({"temperature": True}, TypeError, "temperature must be a number, got True"),
    ({"ignore_eos": 1}, TypeError, "ignore_eos must be True or False, got 1"),
]


@pytest.mark.parametrize(("settings", "error", "message"), REJECTED, ids=str)
def test_rejects(settings, error, message):
    with pytest.raises(error, match=f"sampling: {message}"):
        Sampling(**settings)


def test_clamping():
    s = Sampling(temperature=-1, top_k=0, top_p=2, min_p=-1, repetition_window=-3, repetition_penalty=0.5).clamped()
    assert (s.temperature, s.top_k, s.top_p, s.min_p) == (1e-6, 1024, 1, 0)
    assert (s.repetition_window, s.repetition_penalty) == (0, 1)
    assert [Sampling(repetition_codebooks=n).clamped().repetition_codebooks for n in (-1, 0, 9, 50)] == [9, 0, 9, 9]
