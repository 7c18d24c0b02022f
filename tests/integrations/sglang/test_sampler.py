"""The plugin's sampler draws from the distribution of sglang-omni's sampler, for every request."""

import pytest
import torch

from zonos2_triton._settings import BACKEND
from zonos2_triton.model.integrations.sglang import components, plugin
from zonos2_triton.reference.sampling import distributions

V = 40  # the last two are end and padding
REQUESTS = [  # temperature, top_k, top_p, min_p, repetition_penalty
    (1.15, 106, 0.0, 0.18, 1.2),
    (0.7, 5, 0.0, 0.0, 1.0),
    (2.5, 0, 0.8, 0.0, 1.7),
    (1.0, -1, 1.0, 0.05, 0.5),
    (1.3, V, 0.3, 0.3, 2.0),
    (0.0, 3, 0.5, 0.1, 1.4),
    (-1.0, 0, 0.0, 0.0, 1.4),
    (1e-6, 7, 0.95, 0.0, 1.4),
]


def asked(requests, **changes):
    """The arguments of sample_tts as the model's runner makes them."""
    temperature, top_k, top_p, min_p, penalty = zip(*requests, strict=True)
    arguments = {
        "temperature": torch.tensor(temperature), "top_k": torch.tensor(top_k), "top_p": torch.tensor(top_p),
        "min_p": torch.tensor(min_p), "repetition_penalty": torch.tensor(penalty),
        "top_k_max": max((k for k in top_k if 0 < k < V), default=0),
        "any_top_p": any(0 < p < 1 for p in top_p), "any_min_p": any(p > 0 for p in min_p),
    }  # fmt: skip
    return {**arguments, **changes}


def window(logits, frames=6):
    """The codes of each codebook in a runner's window, -1 for those that do not count."""
    seen = torch.randint(-1, V - 2, (*logits.shape[:2], frames), generator=torch.Generator().manual_seed(1))
    seen[:, -1] = -1
    return seen


@pytest.fixture
def drawn_from(engine, monkeypatch):
    """The arguments of sample_tts -> probabilities [B, C, V] of the replacement and of the original."""
    original, found = engine.sampler.sample_tts, []

    def multinomial(probs, num_samples):
        found.append(probs)
        return torch.zeros(len(probs), num_samples, dtype=torch.long)

    def sample(logits, settings, seeds, steps, seen):
        found.append(distributions(logits, settings, steps, seen))
        return found[-1].argmax(-1), seeds

    def run(logits, **arguments):
        with monkeypatch.context() as patched:
            patched.setattr(torch, "multinomial", multinomial)
            patched.setattr(components, "_operation", lambda *_: sample)
            original(logits, **arguments)
            components.sample(original, logits, **arguments)
        old, new = found[-2:]
        return new, old.view(new.shape)

    return run


@pytest.mark.parametrize("changes", [{}, {"any_top_p": False}, {"any_min_p": False}, {"top_k_max": 0}], ids=str)
def test_every_request_is_drawn_from_its_own_distribution(drawn_from, seeded, changes):
    logits = seeded(len(REQUESTS), 3, V) * 4
    new, old = drawn_from(logits, **asked(REQUESTS, rep_token_ids=window(logits), **changes))
    assert torch.equal(new > 0, old > 0)
    assert (new - old).abs().max() < 1e-6


@pytest.mark.parametrize("requests", [REQUESTS[:1], REQUESTS[5:]], ids=["default", "greedy"])
def test_without_a_window_nothing_is_penalised(drawn_from, seeded, requests):
    logits = seeded(len(requests), 2, V) * 4
    for seen in None, torch.zeros(len(requests), 2, 0, dtype=torch.long), torch.full((len(requests), 2, 5), -1):
        new, old = drawn_from(logits, **asked(requests, rep_token_ids=seen))
        assert (new - old).abs().max() < 1e-6


def test_logits_that_tie_are_theirs_too(drawn_from, engine):
    """Logits of a bf16 head often tie. The runner forbids one code."""
    logits = torch.tensor([3.0, 1, 3, -float("inf"), 2, 2, 1, 3, 0, 0]).expand(4, 2, 10).clone()
    requests = [(1.0, 2, 0.0, 0.0, 1.0), (1.0, 4, 0.0, 0.5, 1.0), (0.0, 0, 0.0, 0.0, 1.0), (1.0, 0, 0.0, 0.0, 1.0)]
    new, old = drawn_from(logits, **asked(requests))
    assert torch.equal(new > 0, old > 0)
    assert (new - old).abs().max() < 1e-6
    assert new[2, :, 0].eq(1).all()


@pytest.mark.interpreter
def test_codes_are_the_same_by_either_backend_and_settled_by_the_generator(engine, monkeypatch, seeded):
    logits = seeded(3, 9, 1026) * 4
    arguments = asked(REQUESTS[:3], rep_token_ids=window(logits))
    plugin.hook_components(["sampler"])
    found = {}
    for name in "reference", "triton":
        monkeypatch.setenv(BACKEND, name)
        components._operation.cache_clear()
        torch.manual_seed(5)
        found[name] = [engine.sampler.sample_tts(logits, **arguments) for _ in range(2)]
    first, second = found["reference"]
    assert (first.shape, first.dtype) == ((3, 9), torch.int64)
    assert not torch.equal(first, second)
    assert all(torch.equal(a, b) for a, b in zip(found["triton"], found["reference"], strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_greedy_requests_get_the_codes_that_they_got(engine, backend, seeded, dtype):
    logits = (seeded(2, 4, 1026) * 4).to(dtype)
    logits[0, 0, [3, 700]] = 20.0
    requests = [(0.0, 106, 0.0, 0.18, 1.2), (-0.5, 0, 0.9, 0.0, 1.5)]
    arguments = asked(requests, rep_token_ids=window(logits))
    before = engine.sampler.sample_tts(logits, **arguments)
    plugin.hook_components(["sampler"])
    assert torch.equal(engine.sampler.sample_tts(logits, **arguments), before)


@pytest.mark.interpreter
def test_the_engine_may_compile_its_sampler(engine, monkeypatch, seeded):
    """The engine's runner compiles it by default."""
    monkeypatch.setenv(BACKEND, "triton")
    logits, arguments = seeded(2, 2, V), asked(REQUESTS[:2])
    plugin.hook_components(["sampler"])
    torch.manual_seed(2)
    eager = engine.sampler.sample_tts(logits, **arguments)
    torch.manual_seed(2)
    compiled = torch.compile(engine.sampler.sample_tts, dynamic=True, backend="eager")
    assert torch.equal(compiled(logits, **arguments), eager)
