"""The sampler of the official engine: each request is drawn by its own settings and seed alone."""

import gc
import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from tests.integrations.zonos2_engine.official import imported
from zonos2_triton.model.integrations.zonos2_engine import sampler as engine_sampler
from zonos2_triton.model.integrations.zonos2_engine.sampler import Sampler
from zonos2_triton.reference.sampling import Sampling, distributions, draw, probabilities

C, V, TEXT = 9, 66, 519
DEFAULTS = {
    "temperature": 1.15, "topk": 106, "top_p": 0.0, "min_p": 0.18, "repetition_window": 50, "repetition_penalty": 1.2,
    "repetition_codebooks": 8, "seed": None,
}  # fmt: skip
# (settings, generated frames after a prompt of three rows) of each request
REQUESTS = [
    ({"seed": 5}, 0),
    ({"seed": 5, "repetition_penalty": 3.0, "min_p": 0.0}, 7),
    ({"seed": 6, "repetition_window": 2, "repetition_penalty": 9.0, "temperature": 0.7}, 5),
    ({"seed": 2**64 - 1, "repetition_codebooks": 3, "repetition_penalty": 9.0, "topk": 4}, 4),
    ({"seed": 0, "repetition_codebooks": -1, "repetition_penalty": 9.0, "top_p": 0.5}, 6),
    ({"seed": 8, "repetition_window": 0, "topk": 0}, 3),
    ({"seed": 9, "repetition_penalty": 0.5}, 3),
]  # fmt: skip


class Request:
    def __init__(self, slot, settings, generated):
        self.sampling_params = SimpleNamespace(**DEFAULTS | settings)
        self.table_idx, self.total_generated, self.device_len, self.uid = slot, generated, 3 + generated, slot
        rows = torch.randint(V, (self.device_len, C + 1), generator=torch.Generator().manual_seed(slot))
        self.input_ids, self.rng = rows.int(), None  # end of audio and padding among them

    @property
    def history(self):
        return self.input_ids[3:, :C]


@pytest.fixture
def reqs():
    return [Request(slot, *request) for slot, request in enumerate(REQUESTS)]


@pytest.fixture
def pool(reqs):
    made = torch.full((len(reqs), 16, C + 1), 11, dtype=torch.int32)
    for req in reqs:
        made[req.table_idx, : req.device_len] = req.input_ids
    return made


@pytest.fixture
def logits(reqs):
    """Logits in which the codes of the history are likely."""
    made = 3 * torch.randn(len(REQUESTS), C, V, generator=torch.Generator().manual_seed(1))
    for row, req in zip(made, reqs, strict=True):
        row.scatter_add_(1, req.history.T.long(), torch.full((C, req.total_generated), 6.0))
    return made


def sampler(backend="reference"):
    return Sampler(torch.device("cpu"), n_codebooks=C, codebook_size=V - 2, text_vocab=TEXT, backend=backend)


def batch(reqs):
    return SimpleNamespace(reqs=reqs)


def alone(req, logits):
    """The reference's codes, from the request's own history."""
    given = vars(req.sampling_params).copy()
    seed, top_k = given.pop("seed"), given.pop("topk")
    sampling = Sampling(top_k=top_k if top_k >= 1 else V - 2, **given)
    return draw(probabilities(logits, sampling, req.history), seed, req.total_generated)


INTERPRETED = pytest.param("triton", True, marks=pytest.mark.interpreter)
SLOW = pytest.param("triton", False, marks=[pytest.mark.interpreter, pytest.mark.slow])


@pytest.mark.parametrize(("backend", "pooled"), [("reference", True), ("reference", False), INTERPRETED, SLOW], ids=str)
def test_each_as_if_it_were_alone(reqs, pool, logits, backend, pooled):
    """Some of the requests, in another order, get the same codes."""
    patched = sampler(backend)
    codes = patched.sample_to_tensor(logits, patched.prepare(batch(reqs), pool if pooled else None))
    assert codes.dtype == torch.int32
    assert codes[:, C].tolist() == [TEXT] * len(reqs)
    for row, req, own in zip(codes, reqs, logits, strict=True):
        assert torch.equal(row[:C].long(), alone(req, own))
    order = [4, 0, 2]
    some = patched.sample(logits[order], patched.prepare(batch([reqs[i] for i in order]), pool))
    assert some == codes[order].tolist()


def test_history_counts(reqs, logits):
    """The penalties of these requests change codes, so that the tests above detect a sampler without them."""
    changed = []
    for req, own in zip(reqs, logits, strict=True):
        with_history = alone(req, own)
        req.sampling_params.repetition_window = 0
        changed.append(not torch.equal(with_history, alone(req, own)))
    assert changed == [False, True, True, True, True, False, False]


def test_the_newest_frame_may_be_written_after_the_batch_is_prepared(reqs, pool, logits):
    """The engine prepares a batch before the previous frame is drawn."""
    patched, newest = sampler(), pool[1, reqs[1].device_len - 1].clone()
    pool[1, reqs[1].device_len - 1] = 0
    args = patched.prepare(batch(reqs[1:2]), pool)
    pool[1, reqs[1].device_len - 1] = newest
    assert torch.equal(patched.sample_to_tensor(logits[1:2], args)[0, :C].long(), alone(reqs[1], logits[1]))


def test_seeds(logits):
    patched, plain = sampler(), {"min_p": 0.0, "temperature": 9.0}
    first, second = Request(0, plain, 0), Request(1, plain, 0)

    def drawn(req, step=0):
        req.total_generated = step
        return patched.sample(logits[:1], patched.prepare(batch([req]), torch.zeros(2, 16, C + 1, dtype=torch.int32)))

    assert drawn(first) == drawn(first)
    assert drawn(first) != drawn(first, step=1)
    assert drawn(first) != drawn(second), "two requests without a seed are alike"
    negative, same = (Request(0, plain | {"seed": seed}, 0) for seed in (-1, 2**64 - 1))
    assert drawn(negative) == drawn(same)
    assert sampler()._keys.getrandbits(64) != sampler()._keys.getrandbits(64)


def test_requests_are_forgotten(reqs, pool):
    patched = sampler()
    patched.prepare(batch(reqs), pool)
    assert len(patched._known) == len(reqs)
    del reqs[2:]
    gc.collect()
    assert len(patched._known) == 2
    reqs[0].sampling_params = SimpleNamespace(**DEFAULTS | {"temperature": 2.0})
    assert patched.prepare(batch(reqs), pool).settings[0, 0] == 2.0


@pytest.mark.parametrize("wrong", [{"temperature": math.nan}, {"min_p": math.inf}, {"top_p": "much"}, {"topk": None}])
def test_settings_that_are_no_numbers(wrong, caplog):
    """One request must not fail the others."""
    reqs = [Request(4, wrong, 0), Request(1, {"temperature": 0.5}, 0)]
    settings = sampler().prepare(batch(reqs)).settings
    assert settings[0].tolist() == pytest.approx(Sampling().packed())
    assert settings[1, 0] == 0.5
    assert "request 4: " in caplog.text
    assert "it gets the default settings" in caplog.text


def test_logits_of_another_precision(reqs, pool, logits):
    patched = sampler()
    half, full = logits.half(), logits.half().float()
    found = [patched.sample(x, patched.prepare(batch(reqs), pool)) for x in (half, full)]
    assert found[0] == found[1]


@pytest.mark.parametrize(("backend", "device"), [("gloo", "cpu"), ("nccl", "meta")])
def test_ranks_agree_on_what_nobody_seeded(monkeypatch, backend, device):
    sent = []

    def broadcast(number, source):
        sent.append((number.device.type, source))
        monkeypatch.setattr(Tensor, "item", lambda self: 1234)

    monkeypatch.setattr(engine_sampler.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(engine_sampler.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(engine_sampler.dist, "get_backend", lambda: backend)
    monkeypatch.setattr(engine_sampler.dist, "broadcast", broadcast)
    assert engine_sampler._agreed_seed(torch.device("meta")) == 1234
    assert sent == [(device, 0)]


@pytest.mark.needs("zonos2")
def test_the_official_distribution(reqs, pool, logits, monkeypatch):
    """For a single request, both samplers draw from the same distribution."""
    with imported() as official, torch.inference_mode():
        module = official("engine.sample")
        monkeypatch.setattr(module, "make_device_tensor", lambda data, dtype, device: torch.tensor(data, dtype=dtype))
        original, patched = module.TTSSampler(torch.device("cpu"), C, V - 2, TEXT), sampler()
        for req, own in zip(reqs, logits[:, None], strict=True):
            seen = []

            def multinomial(probs, seen=seen, **_):
                seen.append(probs)
                return probs.argmax(-1, keepdim=True)

            with monkeypatch.context() as patch:
                patch.setattr(torch, "multinomial", multinomial)
                original.sample(own, original.prepare(batch([req]), pool))
            args = patched.prepare(batch([req]), pool)
            mine = distributions(own, args.settings, args.steps, patched._last_seen(own, args))
            torch.testing.assert_close(mine[0], seen[0], atol=1e-6, rtol=0)
