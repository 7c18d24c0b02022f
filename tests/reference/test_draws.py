"""Draws: the codes of a request follow their distribution and depend on nothing but it.

Words, by statistics. Of different codebooks, frames, seeds and shifted streams: chi-square of pairs in 16 x 16 cells,
of the high and of the low bits, and serial correlation, 65,520 to 147,456 disjoint pairs each; the bytes and the
uniforms of 1,179,648 words; the collisions among 589,824 words against Poisson's law.

Codes, without chance. They are functions of words: of the 2^32 words a draw can meet, each code of all golden sampling
cases, and of two that no sampler makes, has its share, to a word.

The words and the rule are the product's: `draw` is compared with them in each case, `sample` in each golden one. Every
check of words takes them as an argument, and is seen to fail with those that are broken.

Significance. A p-value is refused within LIMIT of 0 or, a fit too good, of 1. All in all that is 1e-3, by Bonferroni,
and seeds are fixed: what passes once passes always.
"""

from functools import lru_cache, partial
from itertools import combinations

import pytest
import torch

from zonos2_triton.model import Sampling
from zonos2_triton.reference import sampling
from zonos2_triton.reference.philox import WEYL, WORD, philox
from zonos2_triton.reference.sampling import NEVER, WEIGHT_BITS, draw, probabilities, sample

LIMIT = 1e-3 / 1700  # comparisons, at most
CODEBOOKS = torch.arange(9)
SIGN = -(2**63)  # the highest bit of a seed
REQUESTS = torch.tensor([6, 7, 6 + 2**32, 6 + SIGN])  # one's neighbours: the next, in the high half, in the sign
FRAMES = 32768
LAGS = 1, 2, 7, 9, 10


def words(seeds, frames, codebooks):
    """Of the product; all broadcast."""
    return philox(seeds, (frames, codebooks, 0, 0))[..., 0]


def invert(probs, drawn, target=lambda drawn, total: drawn * total >> 32, right=True):
    """The product's rule for many words: probs [C, V], words [C, N] -> codes [C, N]. The rest is for broken ones."""
    weights = (probs * 2**WEIGHT_BITS).long()
    reached = target(drawn, weights.sum(-1, keepdim=True)).contiguous()
    return torch.searchsorted(weights.cumsum(-1), reached, right=right)


@lru_cache(2)
def pool(generator):
    """[requests, frames, codebooks]"""
    seeds, frames = REQUESTS[:, None, None], torch.arange(FRAMES)[:, None]
    return torch.broadcast_to(generator(seeds, frames, CODEBOOKS), (len(REQUESTS), FRAMES, 9)).contiguous()


def rows(drawn):
    """[requests, ..., codebooks] -> [codebooks, all others]"""
    return drawn.movedim(-1, 0).flatten(1)


def apart(drawn, lag):
    """Two tensors of frames so far apart; no frame is in two pairs, which would make the pairs dependent."""
    pairs = drawn.unfold(1, 2 * lag, 2 * lag).unflatten(-1, (2, lag)).movedim(2, -1)
    return rows(pairs[:, :, 0]), rows(pairs[:, :, 1])


def chi_square(counts, expected):
    statistic = ((counts - expected).square() / expected).sum(-1)
    freedom = torch.tensor((counts.shape[-1] - 1) / 2, dtype=torch.float64)
    return torch.special.gammaincc(freedom.expand_as(statistic), statistic / 2)


def kolmogorov(distance, n):
    """Asymptotic; distances below that at which the series needs more terms have p = 1 anyway."""
    x = (distance * n**0.5).clamp(min=0.05)[..., None]
    k = torch.arange(1, 200, dtype=torch.float64)
    return (2 * (-1) ** (k - 1) * (-2 * (k * x).square()).exp()).sum(-1).clamp(0, 1)


def table(cells, size):
    """[K, N] of 0 .. size - 1 -> counts [K, size]"""
    offsets = size * torch.arange(len(cells))[:, None]
    return torch.bincount((cells + offsets).flatten(), minlength=size * len(cells)).view(-1, size).double()


def joint(a, b):
    """p of pairs of words [K, N]: the cells of their high and low bits, whose margins are known, and correlation."""
    n = a.shape[-1]
    cells = [(a >> 28) * 16 + (b >> 28), (a & 15) * 16 + (b & 15)]
    product = (a.double() / 2**32 - 0.5) * (b.double() / 2**32 - 0.5)
    z = 12 * product.sum(-1) / n**0.5
    return torch.cat([*(chi_square(table(c, 256), n / 256) for c in cells), torch.special.erfc(z.abs() / 2**0.5)])


def uniforms(generator):
    values = rows(pool(generator)).sort(-1).values.double() / 2**32
    n = values.shape[-1]
    rank = torch.arange(n, dtype=torch.float64) / n
    distance = torch.maximum(values - rank, rank + 1 / n - values).amax(-1)
    return kolmogorov(distance, n)


def single_bytes(generator):
    drawn = rows(pool(generator))
    return torch.cat([chi_square(table(drawn >> shift & 255, 256), drawn.shape[-1] / 256) for shift in (0, 8, 16, 24)])


def codebooks(generator):
    drawn = rows(pool(generator))
    first, second = map(list, zip(*combinations(range(9), 2), strict=True))
    return joint(drawn[first], drawn[second])


def frames(generator):
    return torch.cat([joint(*apart(pool(generator), lag)) for lag in LAGS])


def diagonals(generator):
    """A later frame's next codebook, which the delay pattern puts side by side, and its previous one."""
    drawn = pool(generator)
    before, after = drawn[:, :-1], drawn[:, 1:]
    return torch.cat([joint(rows(before[..., :-1]), rows(after[..., 1:])),
                      joint(rows(before[..., 1:]), rows(after[..., :-1]))])  # fmt: skip


def base_seeds():
    """Small ones and any, four apart at least: 64."""
    anything = torch.randint(-(2**62), 2**62, (32,), generator=torch.Generator().manual_seed(1))
    return torch.cat([4 * torch.arange(32), anything * 4])[:, None, None]


def streams(generator, change, shift):
    """Streams of seeds, against those of changed seeds some frames later or earlier."""
    t, seeds = torch.arange(16, 272)[:, None], base_seeds()
    pair = (generator(*key, CODEBOOKS) for key in ((seeds, t), (change(seeds), t + shift)))
    return joint(*(torch.broadcast_to(drawn, (64, 256, 9)).reshape(1, -1) for drawn in pair))


def seeds(generator):
    changes = (lambda s: s + 1, lambda s: s + 2**32, lambda s: s ^ SIGN, lambda s: s ^ 2**31)
    return torch.cat([streams(generator, change, 0) for change in changes])


def shifted(generator):
    changes = ((1, -1), (1, 1), (2, -2), (3, -3), (2**32, -1))
    return torch.cat([streams(generator, lambda s, add=add: s + add, shift) for add, shift in changes])


def swapped(generator):
    """Frame f of codebook c and frame c of codebook f, 4,096 seeds."""
    first, second = torch.combinations(CODEBOOKS).T
    requests = torch.arange(4096)[:, None]
    pair = generator(requests, first, second), generator(requests, second, first)
    return joint(*(torch.broadcast_to(drawn, (4096, 36)).reshape(1, -1) for drawn in pair))


def duplicates(generator):
    """Pairs of equal words; the p-value counts half of what is as probable as this."""
    low, high = torch.arange(16), torch.tensor([0, 1, 2**31 - 1, -(2**31)]) << 32
    requests = (low[:, None] + high).view(-1, 1, 1)
    drawn = torch.broadcast_to(generator(requests, torch.arange(1024)[:, None], CODEBOOKS), (64, 1024, 9)).flatten()
    times = drawn.unique(return_counts=True)[1].double()
    found, expected = (times * (times - 1)).sum() / 2, torch.tensor(len(drawn) * (len(drawn) - 1) / 2**33).double()
    above = torch.special.gammainc(torch.stack([found, found + 1]).clamp(min=1e-9), expected.expand(2))
    return above.mean()[None]


CHECKS = {check.__name__: check for check in
          (uniforms, single_bytes, codebooks, frames, diagonals, seeds, shifted, swapped, duplicates)}  # fmt: skip


def plausible(p):
    return bool(((p >= LIMIT) & (p <= 1 - LIMIT)).all())


@pytest.mark.parametrize("check", CHECKS)
def test_words_are_uniform_and_independent(check):
    p = CHECKS[check](words)
    assert plausible(p), (p.min(), p.max())


@pytest.fixture(scope="module")
def cases(golden):
    """name -> what is drawn from. Two are not golden: a draw divides by the sum of the weights, and keeps zero weights
    apart from the smallest, both of which nearly normalised rows of many would hide."""
    vectors, tensors = golden.json("sampling"), golden.tensors("sampling")
    found = {}
    for case, history in zip(vectors["cases"], tensors["history"], strict=True):
        settings = Sampling(**{key: case[key] for key in vectors["defaults"]})
        logits = tensors["logits"][case["logits_index"]]
        found[case["name"]] = probabilities(logits, settings, history[: case["history_len"]])
    few = torch.tensor([0.0, 1, 0, 0, 2, 3, 0]).repeat(9, 1)
    return {**found, "halved": found["defaults_no_history"] / 2, "few": few / 2**WEIGHT_BITS}


def test_codes_are_those_of_draw(cases):
    assert len(cases) == 38
    t = torch.arange(0, FRAMES, FRAMES // 16)
    for name, probs in cases.items():
        for request, drawn in zip(REQUESTS, pool(words), strict=True):
            got = draw(probs.expand(len(t), -1, -1), request.expand(len(t), 1), t[:, None])
            assert torch.equal(got, invert(probs, drawn[t].T).T), name


def test_codes_are_those_of_sample(golden, cases):
    vectors, tensors = golden.json("sampling"), golden.tensors("sampling")
    requests = torch.cat([base_seeds().flatten()[::8], REQUESTS])
    B = len(requests)
    for case, history in zip(vectors["cases"], tensors["history"], strict=True):
        n = case["history_len"]
        last_seen = torch.full((9, 1026), NEVER, dtype=torch.int32)
        for frame, ids in enumerate(history[:n]):
            last_seen[CODEBOOKS, ids] = frame
        logits = tensors["logits"][case["logits_index"]].expand(B, -1, -1)
        settings = torch.tensor([Sampling(**{key: case[key] for key in vectors["defaults"]}).row()]).expand(B, -1)
        steps = torch.full((B,), n, dtype=torch.int32)
        codes, faults = sample(logits, settings, requests, steps, last_seen.expand(B, -1, -1))
        drawn = words(requests[:, None], n, CODEBOOKS)
        assert torch.equal(codes, invert(cases[case["name"]], drawn.T).T.int()), case["name"]
        assert not faults.any()


def words_up_to(probs, rule):
    """[C, V]: how many of the 2^32 words have the code or one before, by bisection: rules are monotone."""
    codes = torch.arange(probs.shape[-1])
    count = torch.zeros(probs.shape, dtype=torch.int64)
    for bit in range(31, -1, -1):
        more = count + 2**bit
        count = torch.where(rule(probs, more - 1) <= codes, more, count)
    return count + (rule(probs, count) <= codes)  # all but one are found so far, where all are


def shares_error(probs, rule):
    """In words, the largest difference of a code's share from that of its integer weight."""
    weights = (probs * 2**WEIGHT_BITS).long().double()
    count = words_up_to(probs, rule).double()
    shares = torch.diff(count, dim=-1, prepend=torch.zeros(len(count), 1, dtype=torch.float64))
    return (shares - weights / weights.sum(-1, keepdim=True) * 2**32).abs().max()


def test_each_code_has_its_share_of_all_words(cases):
    """A share is exact to a word, 2^-32; a weight loses less than 2^-30 of what it stands for, and their sum no more
    than there are codes."""
    for name, probs in cases.items():
        assert shares_error(probs, invert) <= 1, name
        weights, p = (probs * 2**WEIGHT_BITS).long().double(), probs.double()
        p, got = (x / x.sum(-1, keepdim=True) for x in (p, weights))
        bound = (1 + p * (p > 0).sum(-1, keepdim=True)) * 2.0**-WEIGHT_BITS / probs.double().sum(-1, keepdim=True)
        assert ((got - p).abs() <= bound).all(), name


@pytest.mark.parametrize("name", ["few", "halved", "defaults_long_history", "top_k_1", "ties_at_top_k"])
def test_draw_changes_code_where_the_rule_does(monkeypatch, cases, name):
    """`draw`, given the last word of each code and the word after it."""
    probs = cases[name]
    ends = words_up_to(probs, invert)
    given = torch.cat([ends - 1, ends.clamp(max=WORD)], -1).clamp(min=0)
    for part in given.unique(dim=-1).split(128, -1):
        monkeypatch.setattr(sampling, "philox", lambda key, counter, part=part: part.T[..., None])
        assert torch.equal(draw(probs.expand(part.shape[-1], -1, -1), 0, 0), invert(probs, part).T)


BROKEN_WORDS = {  # and the checks that are made for what is wrong with them
    "one word for all codebooks": (lambda s, t, c: words(s, t, 0 * c), {"codebooks", "duplicates"}),
    "no frame": (lambda s, t, c: words(s, 0 * t, c), {"uniforms", "frames"}),
    "no high half of the seed": (lambda s, t, c: words(s & WORD, t, c), {"seeds", "duplicates"}),
    "no sign of the seed": (lambda s, t, c: words(s & ~SIGN, t, c), {"seeds"}),
    "seed + frame": (lambda s, t, c: words(s + t, 0, c), {"shifted"}),
    "frame + codebook": (lambda s, t, c: words(s, t + c, 0), {"diagonals", "swapped"}),
    "frame x codebook": (lambda s, t, c: words(s, (t + 1) * (c + 1), 0), {"swapped"}),
    "low half of the word": (lambda s, t, c: words(s, t, c) & 0xFFFF, {"uniforms", "single_bytes", "duplicates"}),
    "high half of the word": (lambda s, t, c: words(s, t, c) & ~0xFFFF, {"single_bytes", "duplicates"}),
    "31 bits of the word": (lambda s, t, c: words(s, t, c) | 1, {"single_bytes", "duplicates"}),
    "weak hash": (
        lambda s, t, c: (s * 0x9E3779B1 + t * 0x85EBCA6B + c * 0xC2B2AE35) & WORD,
        {"uniforms", "codebooks", "frames", "diagonals", "seeds", "shifted", "swapped"},
    ),
    "too even": (lambda s, t, c: words(s, 0, c) + t * WEYL[0] & WORD, {"uniforms", "frames"}),
}
QUICK = ("weak hash", "low half of the word", "frame + codebook")  # in which each check fails once


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in BROKEN_WORDS]
)
def test_checks_fail_with_broken_words(name):
    generator, failing = BROKEN_WORDS[name]
    assert {check for check in failing if plausible(CHECKS[check](generator))} == set()


def test_too_good_a_fit_is_refused():
    """A sequence that leaves no gaps: nothing is wrong with its uniforms but that."""
    even, _ = BROKEN_WORDS["too even"]
    assert uniforms(even).min() > 1 - LIMIT


def fp32_sums(probs, drawn):
    return torch.searchsorted(probs.cumsum(-1), (drawn.float() / 2**32).contiguous(), right=True)


BROKEN_RULES = {
    "fp32 sums": fp32_sums,
    "less instead of not above": partial(invert, right=False),
    "24 bits of the word": partial(invert, target=lambda drawn, total: (drawn >> 8) * total >> 24),
    "not divided by the sum": partial(invert, target=lambda drawn, total: drawn * 2**WEIGHT_BITS >> 32),
}


@pytest.mark.parametrize("broken", BROKEN_RULES.values(), ids=BROKEN_RULES)
def test_shares_fail_with_broken_rules(cases, broken):
    assert max(shares_error(cases[name], broken) for name in ("defaults_long_history", "few")) > 1
