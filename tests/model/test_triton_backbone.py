"""The backbone on its kernels, interpreted: golden vectors, launches per frame, and what a batch must not change."""

import dataclasses
from itertools import pairwise

import pytest
import torch

from zonos2_triton.bench.proof.interpreter import checked
from zonos2_triton.model import Backbone, Sampling
from zonos2_triton.model.ops import PAGE_SIZE
from zonos2_triton.reference import network as reference
from zonos2_triton.reference.network import Batch, Cache, Stages

pytestmark = [
    pytest.mark.usefixtures("interpreter"),
    pytest.mark.interpreter,
]


@pytest.fixture
def interpreter():
    """Quicker than as it comes; the kernels' own tests check each launch."""
    with checked(bounds=False, undefined=False, races=False) as launches:
        yield launches


@pytest.fixture(scope="module")
def triton_backbone(golden):
    return golden.backbone(dtype=torch.float32, backend="triton")


def shortened(backbone):
    """Its first three layers: dense, a mixture of two experts a row, one of one with the router's state carried."""
    config = dataclasses.replace(backbone.config, n_layers=3, moe_end_from_layer=0)
    return Backbone(config, backbone.weights, backbone.backend)


@pytest.fixture(scope="module")
def short_backbone(triton_backbone):
    return shortened(triton_backbone)


@pytest.fixture(scope="module")
def io(golden):
    return golden.tensors("backbone_b_io")


def forward(backbone, pieces, page_size=8, dtype=None):
    """Feed pieces one after the other: each {sequence: ids [T, 10]}, decoding where all have one row and say so.

    Returns of each sequence: hidden states [layers + 1, T, D], keys and values, logits after each piece [.., C, V].
    """
    model, config = backbone.model, backbone.config
    names = sorted({name for _, piece in pieces for name in piece})
    total = {n: sum(len(piece[n]) for _, piece in pieces if n in piece) for n in names}
    width = -(-max(total.values()) // page_size)
    table = torch.arange(len(names) * width, dtype=torch.int32).reshape(len(names), width).flip(0, 1)
    cache, done = Cache(config, table.numel(), page_size, model.table), dict.fromkeys(names, 0)
    seen = {n: ([], []) for n in names}
    for decode, piece in pieces:
        here = list(piece)
        starts = torch.tensor([done[n] for n in here], dtype=torch.int32)
        cuts = [0, *torch.tensor([len(piece[n]) for n in here]).cumsum(0).tolist()]
        ids = torch.cat([piece[n] for n in here])
        batch = Batch(ids, table[[names.index(n) for n in here]], starts)
        if not decode:
            longest = max(b - a for a, b in pairwise(cuts))
            batch = dataclasses.replace(batch, cu_seqlens=torch.tensor(cuts, dtype=torch.int32), longest=longest)
        stages = Stages()
        with torch.inference_mode():
            x = reference.forward(model, batch, cache, backbone.ops, stages)
            logits = reference.logits(model, x[[b - 1 for b in cuts[1:]]], backbone.ops)
        for i, (n, (a, b)) in enumerate(zip(here, pairwise(cuts), strict=True)):
            seen[n][0].append(torch.stack(stages.hidden_states)[:, a:b])
            seen[n][1].append(logits[i : i + 1])
            done[n] += b - a
    cached = {
        n: torch.stack([c[table[i].long()].flatten(0, 1)[: total[n]] for c in (*cache.k, *cache.v)])
        for i, n in enumerate(names)
    }
    return {n: (torch.cat(seen[n][0], 1), cached[n], torch.cat(seen[n][1])) for n in names}


def assert_same_bits(got, want):
    for name, a, b in zip(("hidden states", "cache", "logits"), got, (*want[:2], want[2][-len(got[2]) :]), strict=True):
        assert torch.equal(a.view(torch.int32), b.view(torch.int32)), name


def prompts(count):
    """Of lengths 1, 4, 7, ...; ids at random."""
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(0, 500, (1 + 3 * i % 11, 10), generator=generator) for i in range(count)]


ATOL = {"hidden_states": 1e-3, "router_states": 1e-3, "router_probs": 1e-4, "expert_weights": 1e-4, "final_norm": 1e-3}


@pytest.mark.parametrize("voice", ["spk", "nospk"])
def test_golden_trace(io, triton_backbone, voice):
    speaker = io["speaker_embedding"] if voice == "spk" else None
    trace = triton_backbone.trace(io[f"{voice}.prompt_ids"], speaker)
    assert torch.equal(trace["expert_ids"], io[f"{voice}.expert_ids"].long())
    for stage, atol in ATOL.items():
        torch.testing.assert_close(trace[stage], io[f"{voice}.{stage}"], rtol=0, atol=atol)
    at = io[f"{voice}.logits_positions"]
    torch.testing.assert_close(trace["logits"][at], io[f"{voice}.logits"], rtol=0, atol=2e-3)


def test_golden_greedy_codes(io, triton_backbone):
    """With and without the penalty, beside a mate of another length and voice."""
    prompt, voice = io["spk.prompt_ids"], io["speaker_embedding"]
    plain, penalised = io["spk.decode_codes"].long(), io["spk.decode_codes_greedy_reppen"].long()
    samplings = [
        Sampling(temperature=0, repetition_window=0, max_frames=len(plain)),
        Sampling(max_frames=4, seed=1),
        Sampling(temperature=0, max_frames=len(penalised)),
    ]
    results = triton_backbone.generate([prompt, io["nospk.prompt_ids"][:9], prompt], samplings, [voice, None, voice])
    assert torch.equal(results[0].frames, plain)
    assert torch.equal(results[2].frames, penalised)


def test_launches_of_a_frame(triton_backbone, interpreter):
    """At most 6 for a layer with a mixture and 5 for a dense one; the embedding and the head are one each."""
    config = triton_backbone.config
    ids = torch.zeros(3, 10, dtype=torch.int64)
    cache = Cache(config, 3, PAGE_SIZE, triton_backbone.model.table)
    pages, starts = torch.arange(3, dtype=torch.int32)[:, None], torch.tensor([0, 5, 40], dtype=torch.int32)
    before = interpreter.launches
    x = reference.forward(triton_backbone.model, Batch(ids, pages, starts), cache, triton_backbone.ops)
    reference.logits(triton_backbone.model, x, triton_backbone.ops)
    mixtures = len(config.moe_layers)
    assert interpreter.launches - before == 2 + 6 * mixtures + 5 * (config.n_layers - mixtures)


@pytest.mark.parametrize("count", [2, 17, 33], ids="batch-{}".format)
def test_a_batch_changes_no_bit(short_backbone, count):
    """On both sides of every number of rows that tiles change at: prefill together, then a frame together."""
    every = prompts(count)
    frames = torch.randint(0, 500, (count, 1, 10), generator=torch.Generator().manual_seed(6))
    steps = [(False, dict(enumerate(every))), (True, dict(enumerate(frames)))]
    together = forward(short_backbone, steps)
    for i in {0, 1, count // 2, count - 1}:
        alone = forward(short_backbone, [(decode, {i: piece[i]}) for decode, piece in steps])
        assert_same_bits(together[i], alone[i])


def test_sequences_may_join_and_leave(short_backbone):
    """A sequence at any place of a batch, with mates that come and go."""
    a, b, c = prompts(3)
    row = torch.full((1, 10), 7)
    steps = [
        (False, {"a": a, "b": b}),
        (True, {"a": row, "b": row}),
        (False, {"c": c}),
        (True, {"c": row, "b": row}),
        (True, {"b": row, "c": row}),
    ]
    together = forward(short_backbone, steps)
    for name in "abc":
        alone = forward(short_backbone, [(decode, {name: piece[name]}) for decode, piece in steps if name in piece])
        assert_same_bits(together[name], alone[name])


@pytest.mark.parametrize("cuts", [[1], [16], [15, 17], [8, 9, 31], [33]], ids=str)
def test_a_prompt_in_pieces_is_the_prompt(short_backbone, cuts):
    """Cut at, before and behind the borders of the attention's blocks, and of its tiles of rows."""
    prompt = torch.randint(0, 500, (37, 10), generator=torch.Generator().manual_seed(7))
    whole = forward(short_backbone, [(False, {0: prompt})])
    pieces = [(False, {0: prompt[a:b]}) for a, b in pairwise([0, *cuts, 37])]
    assert_same_bits(whole[0], forward(short_backbone, pieces)[0])


@pytest.mark.parametrize("page_size", [1, 5, 64], ids="pages-of-{}".format)
def test_pages_change_no_bit(short_backbone, page_size):
    prompt = torch.randint(0, 500, (18, 10), generator=torch.Generator().manual_seed(8))
    steps = [(False, {0: prompt[:15]}), *((True, {0: prompt[t : t + 1]}) for t in range(15, 18))]
    assert_same_bits(forward(short_backbone, steps, page_size)[0], forward(short_backbone, steps)[0])


def test_decoding_across_the_splits_of_the_cache_is_the_reference(golden, short_backbone):
    """Positions on both sides of one, two and four splits, against the reference in fp64."""
    exact = shortened(golden.backbone(dtype=torch.float64))
    prompt = torch.randint(0, 500, (66, 10), generator=torch.Generator().manual_seed(9))
    want = exact.trace(prompt)["hidden_states"]
    ends = (15, 16, 31, 32, 64, 65)
    steps = [(False, {t: prompt[:t] for t in ends}), (True, {t: prompt[t : t + 1] for t in ends})]
    for t, (hidden, _, _) in forward(short_backbone, steps).items():
        torch.testing.assert_close(hidden[:, t].double(), want[:, t], rtol=0, atol=1e-4, msg=f"position {t}")


@pytest.mark.filterwarnings("ignore:All-NaN slice")  # of numpy, in the interpreter
def test_a_mate_that_is_not_finite_changes_no_bit(short_backbone):
    """NaN from the first row on, through prefill and decoding, in every layer and in the cache."""
    model, config = short_backbone.model, short_backbone.config
    a, b, c = prompts(4)[1:]
    row = torch.full((1, 10), 7)

    def run(poisoned):
        table, cache = torch.arange(12, dtype=torch.int32).reshape(3, 4), Cache(config, 12, 8, model.table)
        cuts = torch.tensor([0, len(a), len(a) + len(b), len(a) + len(b) + len(c)], dtype=torch.int32)
        index = torch.full((int(cuts[-1]),), -1, dtype=torch.int32)
        index[len(a)] = 0  # the first row of b
        voice = torch.full((1, config.dim), torch.nan if poisoned else 0.5)
        batch = Batch(
            torch.cat([a, b, c]), table, torch.zeros(3, dtype=torch.int32), cuts, max(map(len, (a, b, c))), voice, index
        )
        first = reference.forward(model, batch, cache, short_backbone.ops)
        second = reference.forward(model, Batch(row.repeat(3, 1), table, cuts.diff()), cache, short_backbone.ops)
        return first, second, torch.stack([*cache.k, *cache.v])

    healthy, sick = run(False), run(True)
    rows = torch.arange(len(healthy[0]))
    mates = (rows < len(a)) | (rows >= len(a) + len(b))
    assert sick[0][~mates].isnan().all()
    assert sick[1][1].isnan().all()
    for got, want in ((sick[0][mates], healthy[0][mates]), (sick[1][[0, 2]], healthy[1][[0, 2]])):
        assert torch.equal(got, want)
    assert torch.equal(sick[2][:, [0, 1, 2, 3, 8, 9, 10, 11]], healthy[2][:, [0, 1, 2, 3, 8, 9, 10, 11]])


@pytest.mark.filterwarnings("ignore:All-NaN slice")  # of numpy, in the interpreter
def test_idle_rows_change_no_bit(short_backbone):
    """Between live ones, two on the same pages as a live one, one NaN: they go to no expert and write no page."""
    model, config, ops = short_backbone.model, short_backbone.config, short_backbone.ops
    a, b, c = prompts(4)[1:]
    pages = torch.arange(12, dtype=torch.int32).reshape(3, 4)
    cuts = torch.tensor([0, len(a), len(a) + len(b), len(a) + len(b) + len(c)], dtype=torch.int32)
    ids = torch.randint(0, 500, (3, 10), generator=torch.Generator().manual_seed(11))
    voice = torch.full((1, config.dim), torch.nan)

    def run(rows, idle):
        cache, stages = Cache(config, 16, 8, model.table), Stages()
        batch = Batch(torch.cat([a, b, c]), pages, torch.zeros(3, dtype=torch.int32), cuts, max(map(len, (a, b, c))))
        reference.forward(model, batch, cache, ops)
        table = torch.stack([pages[i] if i is not None else torch.tensor(at, dtype=torch.int32) for i, at in rows])
        starts = torch.tensor([int(cuts.diff()[i]) if i is not None else idle for i, _ in rows], dtype=torch.int32)
        index = torch.full((len(rows),), -1, dtype=torch.int32)
        index[0] = 0 if rows[0][0] is None else -1
        step = Batch(ids[[i or 0 for i, _ in rows]], table, starts, speakers=voice, speaker_index=index)
        x = reference.forward(model, step, cache, ops, stages)
        live = [row for row, (i, _) in enumerate(rows) if i is not None]
        counts = [int(routing.offsets[-1]) // routing.expert_ids.shape[1] for routing in stages.routings]
        assert counts == [len(live)] * 2
        return x[live], reference.logits(model, x, ops)[live], torch.stack([*cache.k, *cache.v])

    alone = run([(0, None), (1, None), (2, None)], 0)
    for idle in (-1, -(2**31)):
        mixed = run([(None, [0, 1, 2, 3]), (0, None), (None, [12, 13, 14, 15]), (1, None), (None, [8, 9, 10, 11]),
                     (2, None)], idle)  # fmt: skip
        assert_same_bits(mixed, alone)


@pytest.mark.filterwarnings("ignore:All-NaN slice")  # of numpy, in the interpreter
def test_a_later_row_that_is_not_finite_leaves_earlier_ones_alone(short_backbone):
    """Of one sequence: causality holds for NaN too."""
    model, config = short_backbone.model, short_backbone.config
    ids = torch.randint(0, 500, (21, 10), generator=torch.Generator().manual_seed(10))
    page = torch.zeros(1, dtype=torch.int32)
    index = torch.full((21,), -1, dtype=torch.int32)
    index[18] = 0

    def run(value):
        batch = dataclasses.replace(
            Batch.single(ids, 0, page), speakers=torch.full((1, config.dim), value), speaker_index=index
        )
        return reference.forward(model, batch, Cache(config, 1, 21, model.table), short_backbone.ops)

    healthy, sick = run(0.5), run(torch.nan)
    assert torch.equal(sick[:18], healthy[:18])
    assert sick[18:].isnan().all()


def test_again_is_the_same(io, short_backbone):
    sampling = Sampling(seed=3, max_frames=3)
    once, twice = (short_backbone.generate([io["nospk.prompt_ids"][:7]], sampling)[0].frames for _ in range(2))
    assert torch.equal(once, twice)


def test_generation_is_the_same_alone_and_together(io, short_backbone):
    voices = [None, io["speaker_embedding"], None]
    texts = [io["nospk.prompt_ids"][:5], io["spk.prompt_ids"], io["nospk.prompt_ids"][:11]]
    samplings = [Sampling(seed=i, max_frames=2 + i) for i in range(3)]
    together = short_backbone.generate(texts, samplings, voices)
    for i in (0, 1, 2):
        alone = short_backbone.generate([texts[i]], samplings[i], [voices[i]])[0]
        assert torch.equal(alone.frames, together[i].frames)
        assert len(alone.frames) == 2 + i


# RMS error of the final norm against fp64, teacher-forced, of tokens that go to the same experts, over the reference's.
# Measured in the interpreter, 2026-11-25: bf16 1.08, fp16 0.99. A token near a tie of its experts makes it jump.
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_other_precisions(golden, io, dtype):
    squares = dict.fromkeys(("reference", "triton"), 0.0)
    for voice in ("spk", "nospk"):
        ids, speaker = io[f"{voice}.prompt_ids"], io["speaker_embedding"] if voice == "spk" else None
        exact = golden.backbone(dtype=torch.float64).trace(ids, speaker)
        for backend in squares:
            got = golden.backbone(dtype=dtype, backend=backend).trace(ids, speaker)
            same = (got["expert_ids"] == exact["expert_ids"]).all(0).all(-1)
            assert same.double().mean() >= 0.9
            squares[backend] += float((got["final_norm"].double() - exact["final_norm"])[same].square().mean())
    assert (squares["triton"] / squares["reference"]) ** 0.5 < 1.25
