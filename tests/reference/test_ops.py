"""Each operation of the reference against its formula, written another way, in fp64.

The epsilons of norms are 0.5 here: at their real size a wrong one could not be seen."""

import math

import pytest
import torch
import torch.nn.functional as F

from zonos2_triton.reference import ops
from zonos2_triton.reference.add_rms_norm import add_rms_norm, prepare_norm, rms_norm
from zonos2_triton.reference.codebook_head import codebook_head
from zonos2_triton.reference.decode_attention import decode_attention
from zonos2_triton.reference.frame_embedding import project_speaker
from zonos2_triton.reference.moe_experts import swiglu
from zonos2_triton.reference.moe_router import by_expert, moe_router
from zonos2_triton.reference.prefill_attention import prefill_attention
from zonos2_triton.reference.qkv_projection import qkv_projection
from zonos2_triton.reference.rotary import compute_cos_sin_cache, rotary

EPS = 0.5


def first(op):
    """The result without what it leaves for the norm that follows."""
    return lambda *args, **options: op(*args, **options)[0]


frame_embedding, output_projection, moe_experts = (
    first(getattr(ops, name)) for name in ("frame_embedding", "output_projection", "moe_experts")
)


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
    want, table = torch.view_as_real(turned).reshape(6, 2, 8), compute_cos_sin_cache(6144, 8, 1e4, x)
    torch.testing.assert_close(rotary(x, positions, table), want)


def attention_of(q, k, v, starts):
    """By PyTorch, sequence by sequence: queries of the new rows, keys and values of all, the new ones last."""
    parts = []
    for sequence, start in zip(zip(q, k, v, strict=True), starts, strict=True):
        new = len(sequence[0])
        mask = torch.ones(new, start + new, dtype=torch.bool).tril(start)
        heads = (part.transpose(0, 1)[None] for part in sequence)
        y = F.scaled_dot_product_attention(*heads, attn_mask=mask, enable_gqa=True)
        parts.append(y[0].transpose(0, 1).flatten(1))
    return torch.cat(parts)


@pytest.mark.parametrize("page_size", [1, 3, 16])
def test_attention_is_its_formula(randn, page_size):
    """By PyTorch's attention, with the cache filled in pieces, of pages that lie in no order."""
    T, D, HQ, HKV, DH, theta = 5, 12, 4, 2, 6, 100.0
    x, wq, wkv = randn(T, D), randn(HQ * DH, D), randn(2, HKV * DH, D)
    gater, temp, wo = randn(HQ, D), randn(HQ), randn(D, HQ * DH)
    norm_weight, table = randn(D), compute_cos_sin_cache(9, DH, theta, randn(1))
    h, t = F.rms_norm(x, (D,), norm_weight, EPS), torch.arange(T)
    q, k, v = ((h @ weight.T).unflatten(1, (-1, DH)) for weight in (wq, *wkv))
    q, k = (F.rms_norm(heads, (DH,), None, 1e-6) for heads in (q, k))
    q, k = rotary(q * temp.abs()[:, None], t, table), rotary(k, t, table)
    gates = torch.sigmoid(h @ gater.T).repeat_interleave(DH, 1)
    want = x + (gates * attention_of([q], [k], [v], [0])) @ wo.T
    pages = -(-9 // page_size)
    k_cache, v_cache = (torch.zeros(pages, page_size, HKV, DH, dtype=torch.float64) for _ in range(2))
    block_table = torch.arange(pages - 1, -1, -1, dtype=torch.int32)[None]
    got = []
    for a, b in [(0, 3), (3, 4), (4, 5)]:
        qkvg = qkv_projection(x[a:b], norm_weight, wq, wkv, gater, EPS)
        places = temp, table, k_cache, v_cache, block_table, torch.tensor([a], dtype=torch.int32)
        if b == a + 1:
            y = decode_attention(qkvg, *places)
        else:
            y = prefill_attention(qkvg, *places, torch.tensor([0, b - a], dtype=torch.int32), b - a)
        got.append(output_projection(y, wo, x[a:b]))
    torch.testing.assert_close(torch.cat(got), want)
    unused = block_table[0].long()[torch.arange(T, 9) // page_size], torch.arange(T, 9) % page_size
    assert (k_cache[unused] == 0).all()


def test_idle_rows_of_a_decode_step_leave_the_cache_alone(randn):
    HQ, HKV, DH = 2, 1, 4
    qkvg, temp, table = randn(4, (HQ + 2 * HKV) * DH + HQ), randn(HQ), compute_cos_sin_cache(8, DH, 100.0, randn(1))
    caches = randn(12, 2, HKV, DH), randn(12, 2, HKV, DH)
    block_table = torch.randperm(12, generator=torch.Generator().manual_seed(0)).int().reshape(4, 3)
    block_table[1] = block_table[2]  # an idle row's pages may be anybody's
    positions, live = torch.tensor([-1, -(2**31), 4, 0], dtype=torch.int32), [2, 3]
    others = [cache.clone() for cache in caches]
    want = decode_attention(qkvg[live], temp, table, *others, block_table[live], positions[live])
    got = decode_attention(qkvg, temp, table, *caches, block_table, positions)
    assert torch.equal(got[live], want)
    assert (got[:2] == 0).all()
    assert all(torch.equal(*pair) for pair in zip(caches, others, strict=True))


@pytest.mark.parametrize("page_size", [1, 2])
@pytest.mark.parametrize("way", ["prefill", "decode"])
def test_attention_without_temp_and_table_takes_its_rows_as_they_are(randn, way, page_size):
    """Nothing is normed, turned or gated; keys and values lie in the cache bit for bit."""
    HQ, HKV, DH, starts = 4, 2, 8, [0, 3, 4]
    lengths = [3, 1, 2] if way == "prefill" else [1, 1, 1]
    qkv = randn(sum(lengths), (HQ + 2 * HKV) * DH)
    q, k, v = (part.unflatten(1, (-1, DH)).split(lengths) for part in qkv.split([HQ * DH, HKV * DH, HKV * DH], 1))
    k_cache, v_cache = (randn(18 // page_size, page_size, HKV, DH) for _ in range(2))
    block_table = torch.randperm(len(k_cache), generator=torch.Generator().manual_seed(0)).int().view(3, -1)
    known = [[cache[pages.long()].flatten(0, 1)[:start] for pages, start in zip(block_table, starts, strict=True)]
             for cache in (k_cache, v_cache)]  # fmt: skip
    keys, values = ([torch.cat(pair) for pair in zip(*both, strict=True)] for both in zip(known, (k, v), strict=True))
    arguments = qkv, None, None, k_cache, v_cache, block_table, torch.tensor(starts, dtype=torch.int32)
    if way == "prefill":
        cuts = F.pad(torch.tensor(lengths).cumsum(0), (1, 0)).int()
        got = prefill_attention(*arguments, cuts, max(lengths))
    else:
        got = decode_attention(*arguments)
    torch.testing.assert_close(got, attention_of(q, keys, values, starts))
    for cache, whole in ((k_cache, keys), (v_cache, values)):
        for pages, want in zip(block_table, whole, strict=True):
            assert torch.equal(cache[pages.long()].flatten(0, 1)[: len(want)], want)


def test_an_idle_row_without_temp_is_as_wide_as_the_others(randn):
    qkv, caches = randn(2, 4 * 4), [randn(2, 3, 1, 4) for _ in range(2)]
    block_table, positions = torch.tensor([[0], [1]], dtype=torch.int32), torch.tensor([-1, 0], dtype=torch.int32)
    got = decode_attention(qkv, None, None, *caches, block_table, positions)
    assert torch.equal(got, torch.cat([torch.zeros(1, 8, dtype=torch.float64), qkv[1:, 12:].repeat(1, 2)]))


def test_output_projection_adds_nothing_where_there_is_no_residual(seeded):
    y, weight = seeded(3, 8).bfloat16(), seeded(4, 8).bfloat16()
    assert torch.equal(output_projection(y, weight, None), y @ weight.T)


def test_what_is_normed_already_is_taken_as_it_is(randn):
    D, E = 8, 3
    x, weight = randn(5, D), randn(D)
    h = rms_norm(x, weight, EPS)
    maps = randn(4, D), randn(2, 2, D), randn(2, D)
    assert torch.equal(qkv_projection(h, None, *maps, EPS), qkv_projection(x, weight, *maps, EPS))
    mlp = randn(4, 4), randn(4), randn(4, 4), randn(4), randn(E, 4)
    rest = randn(5, 4), randn(4), randn(4, D), randn(4), randn(4), *mlp, randn(E), 2, EPS
    routing = moe_router(x, weight, *rest)
    for ours, others in zip(moe_router(h, None, *rest), routing, strict=True):
        assert torch.equal(ours, others)
    tensors = randn(E, 4, D), randn(E, 4, D), randn(E, D, 4), EPS
    chosen = routing.sorted_slot_ids, routing.expert_offsets, routing.expert_weights
    for choice, parts in ((chosen, tensors), ((), (*(part[:1] for part in tensors[:3]), EPS))):
        total = moe_experts(x, weight, *parts, *choice, residual=False)
        assert torch.equal(moe_experts(h, None, *parts, *choice, residual=False), total)
        torch.testing.assert_close(moe_experts(x, weight, *parts, *choice), x + total)


def test_a_norm_in_two_halves_is_the_norm(randn):
    for D in (48, 40, 3):
        x, weight = randn(5, D), randn(D)
        x_scaled, sum_sq = prepare_norm(x, weight)
        assert sum_sq.shape == (5, -(-D // 16))
        torch.testing.assert_close(sum_sq[:, 0], x[:, :16].square().sum(1))
        normed = x_scaled * torch.rsqrt(sum_sq.sum(1, keepdim=True) / D + EPS)
        torch.testing.assert_close(normed, rms_norm(x, weight, EPS))
    assert [part.numel() for part in prepare_norm(x, None)] == [0, 0]


def test_producers_prepare_the_norm_of_what_they_return(randn):
    x, weight, gate, up, down = randn(5, 8), randn(8), randn(1, 4, 8), randn(1, 4, 8), randn(1, 8, 4)
    made = [
        ops.output_projection(randn(5, 4), randn(8, 4), x, next_norm_weight=weight),
        ops.moe_experts(x, None, gate, up, down, EPS, next_norm_weight=weight),
        ops.frame_embedding(torch.zeros(5, 3, dtype=torch.int32), randn(9, 8), 4, EPS, next_norm_weight=weight),
    ]
    for y, *prepared in made:
        for ours, others in zip(prepared, prepare_norm(y, weight), strict=True):
            assert torch.equal(ours, others)


def test_add_rms_norm_returns_the_sum_and_its_norm(randn):
    x, residual, weight = randn(3, 8), randn(3, 8), randn(8)
    total, normed = add_rms_norm(x, residual, weight, EPS)
    torch.testing.assert_close(total, x + residual)
    torch.testing.assert_close(normed, F.rms_norm(x + residual, (8,), weight, EPS))


def test_experts_are_a_weighted_sum_of_interleaved_swiglus(randn):
    T, D, I, E = 7, 6, 4, 3
    x, w13, w2, norm_weight = randn(T, D), randn(E, 2 * I, D), randn(E, D, I), randn(D)
    ids = torch.tensor([[0, 1], [1, 0], [2, 1], [0, 2], [0, 1], [2, 0], [1, 2]])
    weights, want, h = randn(T, 2), x.clone(), F.rms_norm(x, (D,), norm_weight, EPS)
    for t in range(T):
        for k in range(2):
            e = ids[t, k]
            gate, up = w13[e, 0::2] @ h[t], w13[e, 1::2] @ h[t]
            want[t] += weights[t, k] * (w2[e] @ (gate * torch.sigmoid(gate) * up))
    got = moe_experts(x, norm_weight, w13[:, 0::2], w13[:, 1::2], w2, EPS, *by_expert(ids, E), weights)
    torch.testing.assert_close(got, want)


def test_one_expert_is_the_dense_layer(randn):
    x, gate, up, out, norm_weight = randn(5, 6), randn(1, 4, 6), randn(1, 4, 6), randn(1, 6, 4), randn(6)
    ids, weights = torch.zeros(5, 1, dtype=torch.int64), torch.ones(5, 1, dtype=torch.float64)
    want = x + swiglu(F.rms_norm(x, (6,), norm_weight, EPS), gate[0], up[0], out[0])
    torch.testing.assert_close(moe_experts(x, norm_weight, gate, up, out, EPS), want)
    torch.testing.assert_close(moe_experts(x, norm_weight, gate, up, out, EPS, *by_expert(ids, 1), weights), want)


def test_slots_are_sorted_by_expert_and_keep_their_order():
    ids = torch.tensor([[3, 0], [0, 3], [3, 1]])
    order, offsets = by_expert(ids, 5)
    assert (order.tolist(), offsets.tolist()) == ([1, 2, 5, 0, 3, 4], [0, 2, 3, 3, 6, 6])
    order, offsets = by_expert(ids, 5, torch.tensor([0, -1, 2]))
    assert (order.tolist(), offsets.tolist()) == ([1, 5, 0, 4, 2, 3], [0, 1, 2, 2, 4, 4])


def test_router_chooses_by_biased_and_weighs_by_plain_probabilities(randn):
    T, D, R, E = 6, 8, 4, 5
    x, state, scale, norm, state_norm = randn(T, D), randn(T, R), randn(R), randn(D), randn(R)
    down, biases = (randn(R, D), randn(R)), randn(E)
    mlp = randn(R, R), randn(R), randn(R, R), randn(R), randn(E, R)
    got = moe_router(x, norm, state, scale, *down, state_norm, *mlp, biases, 2, EPS)
    s = F.rms_norm(x, (D,), norm, EPS) @ down[0].T + down[1]
    alone = moe_router(x, norm, None, None, *down, state_norm, *mlp, biases, 2, EPS)
    torch.testing.assert_close(alone.router_state, s)
    s = s + state * scale
    h = F.rms_norm(s, (R,), state_norm, EPS)
    for weight, bias in (mlp[:2], mlp[2:4]):
        h = h @ weight.T + bias
        h = h * 0.5 * (1 + torch.erf(h / math.sqrt(2)))
    probs = (h @ mlp[4].T).softmax(-1)
    best = (probs + biases).topk(2).indices
    torch.testing.assert_close(got.router_state, s)
    torch.testing.assert_close(got.probs, probs)
    assert torch.equal(got.expert_ids, best.int())
    torch.testing.assert_close(got.expert_weights, probs.gather(1, best))
    assert torch.equal(got.sorted_slot_ids, best.flatten().argsort(stable=True).int())


def test_idle_rows_go_to_no_expert(randn):
    """Whatever is said of them elsewhere, NaN too: their slots come last, and they pass through."""
    T, D, I, R, E, k = 5, 8, 4, 4, 3, 2
    x, mlp = randn(T, D), (randn(R, R), randn(R), randn(R, R), randn(R), randn(E, R))
    rest = randn(D), None, None, randn(R, D), randn(R), randn(R), *mlp, randn(E), k, EPS
    live, positions = [0, 2, 4], torch.tensor([3, -1, 0, -(2**31), 7], dtype=torch.int32)
    got, every = moe_router(x, *rest, positions), moe_router(x, *rest)
    for ours, others in zip(got[:4], every[:4], strict=True):
        assert torch.equal(ours, others)
    counts = every.expert_ids[live].flatten().long().bincount(minlength=E)
    assert got.expert_offsets.tolist() == [0, *counts.cumsum(0).tolist()]
    assert got.sorted_slot_ids[-4:].tolist() == [2, 3, 6, 7]
    experts_of = got.expert_ids.flatten()[got.sorted_slot_ids[:-4].long()]
    assert torch.equal(experts_of, experts_of.sort().values)
    weights, tensors = got.expert_weights.clone(), (randn(D), randn(E, I, D), randn(E, I, D), randn(E, D, I))
    weights[[1, 3]] = torch.nan
    y = moe_experts(x, *tensors, EPS, got.sorted_slot_ids, got.expert_offsets, weights)
    want = moe_experts(x, *tensors, EPS, every.sorted_slot_ids, every.expert_offsets, every.expert_weights)
    torch.testing.assert_close(y[live], want[live])
    assert torch.equal(y[[1, 3]], x[[1, 3]])
    alone = moe_experts(x, *tensors, EPS, got.sorted_slot_ids, got.expert_offsets, weights, residual=False)
    assert (alone[[1, 3]] == 0).all()
    assert (alone[live] != 0).all()


def test_router_prefers_the_lower_expert_in_a_tie():
    zero = torch.zeros(8, 8)
    mlp = zero, zero[0], zero, zero[0], zero
    got = moe_router(torch.ones(3, 8), zero[0], None, None, zero, zero[0], zero[0], *mlp, zero[0], 3, EPS)
    assert got.expert_ids.tolist() == [[0, 1, 2]] * 3


def test_head_is_capped_and_codebook_major(randn):
    x, weight, norm_weight = 50 * randn(3, 4), randn(2 * 5, 4), randn(4)
    got = codebook_head(x, None, weight, 2, EPS, 15.0)
    want = 15 * torch.tanh(torch.einsum("td,cvd->tcv", x, weight.reshape(2, 5, 4)) / 15)
    torch.testing.assert_close(got, want)
    assert got.abs().max() <= 15
    plain = torch.einsum("td,cvd->tcv", x, weight.reshape(2, 5, 4))
    torch.testing.assert_close(codebook_head(x, None, weight, 2, EPS, 0.0), plain)
    of_normed = codebook_head(F.rms_norm(x, (4,), norm_weight, EPS), None, weight, 2, EPS, 15.0)
    torch.testing.assert_close(codebook_head(x, norm_weight, weight, 2, EPS, 15.0), of_normed)


def test_frame_embedding_counts_every_row_and_replaces_those_with_a_speaker(randn):
    tables, ids = [randn(6, 8) for _ in range(10)], torch.randint(0, 6, (4, 10))
    total = sum(tables[c][ids[:, c]] for c in range(10))
    torch.testing.assert_close(frame_embedding(ids, torch.cat(tables), 6, EPS), F.rms_norm(total, (8,), None, EPS))
    speakers, index = randn(2, 8), torch.tensor([1, -1, -1, 0], dtype=torch.int32)
    total[0], total[3] = speakers[1], speakers[0]
    got = frame_embedding(ids, torch.cat(tables), 6, EPS, speakers, index)
    torch.testing.assert_close(got, F.rms_norm(total, (8,), None, EPS))
    bare = frame_embedding(ids, torch.cat(tables), 6, float("nan"), speakers, index, norm=False)
    torch.testing.assert_close(bare, total)
    assert torch.equal(bare[[0, 3]], speakers.flip(0))


def test_a_sum_of_rows_is_rounded_once(seeded):
    table, ids = seeded(60, 8).bfloat16(), torch.arange(40).view(4, 10) % 6
    want = frame_embedding(ids, table.double(), 6, EPS, norm=False)
    assert torch.equal(frame_embedding(ids, table, 6, EPS, norm=False), want.float().bfloat16())


@pytest.mark.parametrize("lda", [False, True], ids=["direct", "lda"])
def test_speaker_row_is_affine(randn, lda):
    embedding, reduction, projection = randn(6), (randn(4, 6), randn(4)), (randn(8, 4 if lda else 6), randn(8))
    x = reduction[0] @ embedding + reduction[1] if lda else embedding
    want = projection[0] @ x + projection[1]
    torch.testing.assert_close(project_speaker(embedding, [reduction, projection] if lda else [projection]), want)


def test_experts_round_once(seeded):
    """bf16 against fp64 of the same numbers. Relative RMS error 5.0e-3, measured on a CPU, 2026-11-25."""
    x, w13, w2 = (seeded(*shape).bfloat16() for shape in ((64, 32), (4, 64, 32), (4, 32, 32)))
    weights, norm_weight = seeded(64, 2).softmax(-1), seeded(32).bfloat16()
    tensors = x, norm_weight, w13[:, 0::2], w13[:, 1::2], w2
    rest = EPS, *by_expert(torch.arange(128).reshape(64, 2) % 4, 4)
    exact = moe_experts(*(t.double() for t in tensors), *rest, weights.double())
    error = moe_experts(*tensors, *rest, weights) - exact
    assert error.square().mean().sqrt() < 6.5e-3 * exact.square().mean().sqrt()
