"""Each operation of the reference against its formula, written another way, in fp64.

The epsilons of norms are 0.5 here: at their real size a wrong one could not be seen."""

import math

import pytest
import torch
import torch.nn.functional as F

from zonos2_triton.reference.attention import AttentionCache, attention, causal_attention, project
from zonos2_triton.reference.embedding import frame_embedding, speaker_row
from zonos2_triton.reference.experts import experts, swiglu
from zonos2_triton.reference.head import head
from zonos2_triton.reference.norm import rms_norm
from zonos2_triton.reference.rotary import rotary
from zonos2_triton.reference.router import route

EPS = 0.5


@pytest.fixture
def randn(seeded):
    return lambda *shape: seeded(*shape, dtype=torch.float64)


def test_rms_norm_is_torchs(randn):
    x, weight = randn(5, 64), randn(64)
    torch.testing.assert_close(rms_norm(x, weight, EPS), F.rms_norm(x, (64,), weight, EPS))
    torch.testing.assert_close(rms_norm(x, None, EPS), F.rms_norm(x, (64,), None, EPS))


def test_rms_norm_rounds_once(seeded):
    x, weight = seeded(5, 64).bfloat16(), seeded(64).bfloat16()
    exact = rms_norm(x.double(), weight.double(), EPS)
    assert torch.equal(rms_norm(x, weight, EPS), exact.float().bfloat16())


def test_rotary_turns_neighbours_as_complex_numbers(randn):
    x, positions = randn(6, 2, 8), torch.tensor([0, 1, 2, 500, 6142, 6143])
    frequencies = 1e4 ** (-torch.arange(0, 8, 2, dtype=torch.float64) / 8)
    turned = torch.view_as_complex(x.reshape(6, 2, 4, 2)) * torch.exp(1j * positions[:, None, None] * frequencies)
    torch.testing.assert_close(rotary(x, positions, 1e4), torch.view_as_real(turned).reshape(6, 2, 8))


def test_rotary_scores_depend_on_distance_only(randn):
    q, k = randn(1, 1, 16), randn(1, 1, 16)

    def score(at, distance):
        return (rotary(q, torch.tensor([at]), 1e4) * rotary(k, torch.tensor([at - distance]), 1e4)).sum()

    torch.testing.assert_close(score(5000, 7), score(7, 7))


@pytest.mark.parametrize(("T", "S"), [(1, 1), (1, 9), (4, 9), (9, 9)], ids=["first", "decode", "chunk", "prefill"])
def test_causal_attention_is_torchs(randn, T, S):
    q, k, v = randn(T, 4, 8), randn(S, 2, 8), randn(S, 2, 8)
    mask = torch.ones(T, S, dtype=torch.bool).tril(S - T)
    want = F.scaled_dot_product_attention(
        *(t.transpose(0, 1)[None] for t in (q, k, v)), attn_mask=mask, enable_gqa=True
    )[0].transpose(0, 1)
    torch.testing.assert_close(causal_attention(q, k, v), want)


def test_attention_is_its_formula(randn):
    """Row by row, head by head, with the cache filled in pieces."""
    T, D, HQ, HKV, DH, theta = 5, 12, 4, 2, 6, 100.0
    x, wq, wkv = randn(T, D), randn(HQ * DH, D), randn(2, HKV * DH, D)
    gater, temp, wo = randn(HQ, D), randn(1, HQ, 1), randn(D, HQ * DH)

    def normed(y):
        return y / (y.square().mean() + 1e-6).sqrt()

    def turned(y, at):
        return rotary(y[None, None], torch.tensor([at]), theta)[0, 0]

    want = torch.zeros(T, D, dtype=torch.float64)
    for t in range(T):
        parts = []
        for h in range(HQ):
            rows = slice(h // 2 * DH, (h // 2 + 1) * DH)
            q = turned(normed(wq[h * DH : (h + 1) * DH] @ x[t]) * temp[0, h].abs(), t)
            keys = torch.stack([turned(normed(wkv[0, rows] @ x[s]), s) for s in range(t + 1)])
            values = torch.stack([wkv[1, rows] @ x[s] for s in range(t + 1)])
            weights = (keys @ q / math.sqrt(DH)).softmax(0)
            parts.append(torch.sigmoid(gater[h] @ x[t]) * (weights @ values))
        want[t] = wo @ torch.cat(parts)
    cache = AttentionCache.empty(T + 3, HKV, DH, x)
    pieces = [(0, 3), (3, 4), (4, 5)]
    got = [attention(*project(x[a:b], wq, wkv, gater, DH), temp, cache, a, theta) @ wo.T for a, b in pieces]
    torch.testing.assert_close(torch.cat(got), want)
    assert (cache.k[T:] == 0).all()


def test_experts_are_a_weighted_sum_of_interleaved_swiglus(randn):
    T, D, I, E = 7, 6, 4, 3
    x, w13, w2 = randn(T, D), randn(E, 2 * I, D), randn(E, D, I)
    ids = torch.tensor([[0, 1], [1, 0], [2, 1], [0, 2], [0, 1], [2, 0], [1, 2]])
    weights = randn(T, 2)
    want = torch.zeros_like(x)
    for t in range(T):
        for k in range(2):
            e = ids[t, k]
            gate, up = w13[e, 0::2] @ x[t], w13[e, 1::2] @ x[t]
            want[t] += weights[t, k] * (w2[e] @ (gate * torch.sigmoid(gate) * up))
    torch.testing.assert_close(experts(x, ids, weights, w13, w2), want)


def test_one_expert_is_the_dense_layer(randn):
    x, gate, up, out = randn(5, 6), randn(4, 6), randn(4, 6), randn(6, 4)
    w13 = torch.stack([gate, up], 1).reshape(1, 8, 6)
    ids, weights = torch.zeros(5, 1, dtype=torch.int64), torch.ones(5, 1, dtype=torch.float64)
    torch.testing.assert_close(experts(x, ids, weights, w13, out[None]), swiglu(x, gate, up, out))


def test_router_chooses_by_biased_and_weighs_by_plain_probabilities(randn):
    T, D, R, E = 6, 8, 4, 5
    x, state, scale, norm = randn(T, D), randn(T, R), randn(R), randn(R)
    down, biases = (randn(R, D), randn(R)), randn(E)
    mlp = [(randn(R, R), randn(R)), (randn(R, R), randn(R)), (randn(E, R), None)]
    got = route(x, state, scale, down, norm, mlp, biases, 2, EPS)
    s = x @ down[0].T + down[1] + state * scale
    h = F.rms_norm(s, (R,), norm, EPS)
    for i, (weight, bias) in enumerate(mlp):
        h = h if i == 0 else h * 0.5 * (1 + torch.erf(h / math.sqrt(2)))
        h = h @ weight.T + (0 if bias is None else bias)
    probs = h.softmax(-1)
    best = (probs + biases).topk(2).indices
    torch.testing.assert_close(got.state, s)
    torch.testing.assert_close(got.probs, probs)
    assert torch.equal(got.expert_ids, best)
    torch.testing.assert_close(got.expert_weights, probs.gather(1, best))
    alone = route(x, None, None, down, norm, mlp, biases, 2, EPS)
    torch.testing.assert_close(alone.state, x @ down[0].T + down[1])


def test_router_prefers_the_lower_expert_in_a_tie():
    zero = torch.zeros(8, 8)
    got = route(torch.ones(3, 8), None, None, (zero, zero[0]), zero[0], [(zero, None)] * 3, zero[0], 3, EPS)
    assert got.expert_ids.tolist() == [[0, 1, 2]] * 3


def test_head_is_capped_and_codebook_major(randn):
    x, weight = 50 * randn(3, 4), randn(2 * 5, 4)
    got = head(x, weight, 2, 15.0)
    want = 15 * torch.tanh(torch.einsum("td,cvd->tcv", x, weight.reshape(2, 5, 4)) / 15)
    torch.testing.assert_close(got, want)
    assert got.abs().max() <= 15
    torch.testing.assert_close(head(x, weight, 2, 0.0), torch.einsum("td,cvd->tcv", x, weight.reshape(2, 5, 4)))


def test_frame_embedding_counts_every_row_and_replaces_the_first(randn):
    tables, ids = [randn(6, 8) for _ in range(10)], torch.randint(0, 6, (4, 10))
    total = sum(tables[c][ids[:, c]] for c in range(10))
    torch.testing.assert_close(frame_embedding(ids, tables, EPS), F.rms_norm(total, (8,), None, EPS))
    speaker = randn(8)
    got = frame_embedding(ids, tables, EPS, speaker)
    torch.testing.assert_close(got[0], F.rms_norm(speaker, (8,), None, EPS))
    torch.testing.assert_close(got[1:], F.rms_norm(total, (8,), None, EPS)[1:])


@pytest.mark.parametrize("lda", [False, True], ids=["direct", "lda"])
def test_speaker_row_is_affine(randn, lda):
    embedding, reduction, projection = randn(6), (randn(4, 6), randn(4)), (randn(8, 4 if lda else 6), randn(8))
    x = reduction[0] @ embedding + reduction[1] if lda else embedding
    want = projection[0] @ x + projection[1]
    torch.testing.assert_close(speaker_row(embedding, [reduction, projection] if lda else [projection]), want)


def test_experts_round_once(seeded):
    """bf16 against fp64 of the same bf16 numbers: a rounding of the product in between and one at the end. Relative RMS
    error 3.4e-3, measured on a CPU, 2026-11-23."""
    x, w13, w2 = (seeded(*shape).bfloat16() for shape in ((64, 32), (4, 64, 32), (4, 32, 32)))
    ids, weights = torch.arange(128).reshape(64, 2) % 4, seeded(64, 2).softmax(-1)
    exact = experts(x.double(), ids, weights.double(), w13.double(), w2.double())
    error = (experts(x, ids, weights, w13, w2) - exact).square().mean().sqrt() / exact.square().mean().sqrt()
    assert error < 4.5e-3
