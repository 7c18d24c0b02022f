"""The backbone on its kernels, interpreted: batch, pages, chunked prefill and NaN elsewhere change no bit."""

import dataclasses
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from zonos2_triton.model import Backbone
from zonos2_triton.reference import network as reference
from zonos2_triton.reference.network import Batch, Cache, Stages

pytestmark = [pytest.mark.interpreter, pytest.mark.usefixtures("quick_interpreter")]


@pytest.fixture(scope="module")
def short_backbone(golden):
    """The first three layers: dense, a mixture of two experts per token, one of one with the router's state."""
    backbone = golden.backbone(dtype=torch.float32, backend="triton")
    config = dataclasses.replace(backbone.config, n_layers=3, moe_end_from_layer=0)
    return Backbone(config, backbone.weights, backbone.backend)


def forward(backbone, pieces, page_size=8, dtype=None):
    """Feed chunks one after the other: each (decode, {sequence: ids [T, 10]}); decode: one token of each sequence.

    Returns for each sequence hidden states [layers + 1, T, D], keys and values, logits after each chunk [.., C, V].
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
            batch = dataclasses.replace(batch, cu_seqlens=torch.tensor(cuts, dtype=torch.int32), max_seqlen_q=longest)
        stages = Stages()
        with torch.inference_mode():
            stream = reference.forward(model, batch, cache, backbone.ops, stages)
            last = [part[[b - 1 for b in cuts[1:]]] for part in stream]
            logits = reference.logits(model, *last, ops=backbone.ops)
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


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


def prompts(count):
    """Random prompts of lengths 1, 4, 7, ..."""
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(0, 500, (1 + 3 * i % 11, 10), generator=generator) for i in range(count)]


@pytest.mark.parametrize("count", [2, slow(17), slow(33)], ids="batch-{}".format)
def test_a_batch_changes_no_bit(short_backbone, count):
    """Batches on both sides of every change of tiles: prefill together, then a frame together."""
    every = prompts(count)
    frames = torch.randint(0, 500, (count, 1, 10), generator=torch.Generator().manual_seed(6))
    steps = [(False, dict(enumerate(every))), (True, dict(enumerate(frames)))]
    together = forward(short_backbone, steps)
    for i in {0, 1, count // 2, count - 1}:
        alone = forward(short_backbone, [(decode, {i: piece[i]}) for decode, piece in steps])
        assert_same_bits(together[i], alone[i])


@pytest.fixture(scope="module")
def whole(short_backbone):
    """A prompt of 37 tokens and its result at once: 34 are prefilled, three are decoded."""
    prompt = torch.randint(0, 500, (37, 10), generator=torch.Generator().manual_seed(7))
    decoded = [(False, {0: prompt[:34]}), *((True, {0: prompt[t : t + 1]}) for t in range(34, 37))]
    return prompt, forward(short_backbone, [(False, {0: prompt})])[0], decoded, forward(short_backbone, decoded)[0]


@pytest.mark.parametrize("cuts", [slow([1]), [16], slow([15, 17]), slow([8, 9, 31]), slow([33])], ids=str)
def test_a_prompt_in_pieces_is_the_prompt(short_backbone, whole, cuts):
    """Chunks that end at, before and behind the borders of the attention's blocks and tiles."""
    prompt, at_once, _, _ = whole
    pieces = [(False, {0: prompt[a:b]}) for a, b in pairwise([0, *cuts, 37])]
    assert_same_bits(at_once, forward(short_backbone, pieces)[0])


@pytest.mark.parametrize("page_size", [slow(1), 5, slow(64)], ids="pages-of-{}".format)
def test_pages_change_no_bit(short_backbone, whole, page_size):
    _, _, steps, decoded = whole
    assert_same_bits(forward(short_backbone, steps, page_size)[0], decoded)


@pytest.mark.filterwarnings("ignore:All-NaN slice")  # of numpy, in the interpreter
def test_a_row_that_is_not_finite_changes_no_bit_of_earlier_rows_and_mates(short_backbone):
    """NaN from the first layer on, through prefill, decoding and the cache. Causality holds for NaN too."""
    model, config, ops = short_backbone.model, short_backbone.config, short_backbone.ops
    ids = torch.randint(0, 500, (38, 10), generator=torch.Generator().manual_seed(10))
    a, b, c, row = ids.split([4, 21, 10, 3])
    pages = torch.arange(12, dtype=torch.int32).reshape(3, 4)  # of eight positions
    sick = 4 + 18  # a row of b, behind the first block of the attention
    index = torch.full((35,), -1, dtype=torch.int32)
    index[sick] = 0

    def run(value):
        cache, voice = Cache(config, 12, 8, model.table), torch.full((1, config.dim), value)
        starts, cuts = torch.zeros(3, dtype=torch.int32), torch.tensor([0, 4, 25, 35], dtype=torch.int32)
        batch = Batch(torch.cat([a, b, c]), pages, starts, cuts, 21, speakers=voice, speaker_index=index)
        first, *_ = reference.forward(model, batch, cache, ops)
        second, *_ = reference.forward(model, Batch(row, pages, cuts.diff()), cache, ops)
        return first, second, torch.stack([*cache.k, *cache.v])

    (first, second, cached), (want_first, want_second, want_cached) = run(torch.nan), run(0.5)
    assert first[sick:25].isnan().all()
    assert second[1].isnan().all()
    healthy = [*range(sick), *range(25, 35)]
    assert torch.equal(first[healthy], want_first[healthy])
    assert torch.equal(second[[0, 2]], want_second[[0, 2]])
    of_mates = pages[[0, 2]].flatten().long()
    assert torch.equal(cached[:, of_mates], want_cached[:, of_mates])


# Geometric mean over tokens of the final norm's error against fp64, teacher-forced, over the reference's. A token near
# a tie of its experts has ten times the error of others, in either backend: a mean of squares would be that token's.
# Measured in the interpreter, 2026-12-01: bf16 0.91, fp16 1.00.
@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_other_precisions(golden, dtype):
    io = golden.tensors("backbone_b_io")
    logs: dict[str, list[Tensor]] = {"reference": [], "triton": []}
    for voice in ("spk", "nospk"):
        ids, speaker = io[f"{voice}.prompt_ids"], io["speaker_embedding"] if voice == "spk" else None
        exact = golden.backbone(dtype=torch.float64).trace(ids, speaker)
        for backend in logs:
            got = golden.backbone(dtype=dtype, backend=backend).trace(ids, speaker)
            same = (got["expert_ids"] == exact["expert_ids"]).all(0).all(-1)
            assert same.double().mean() >= 0.9
            logs[backend].append((got["final_norm"].double() - exact["final_norm"]).square().mean(-1).log() / 2)
    error = {backend: torch.cat(each).mean().exp() for backend, each in logs.items()}
    assert error["triton"] / error["reference"] < 1.1
