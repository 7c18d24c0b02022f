"""Draws: the codes of a request follow their distribution and depend on nothing but it.

Words, by statistics: the bytes of a million, and a million in pairs of neighbours: the next codebook, frame or seed,
and what a weak key would repeat. Chi-square of pairs in 16 x 16 cells of the high and of the low bits, and correlation.

Codes, without chance. They are functions of words: of the 2^32 words a draw can meet, each code of all golden sampling
cases, and of two that no sampler makes, has its share, to a word.

The words and the rule are the product's: `draw` is compared with them in each case, `sample_codes` in each
golden one. Every check of words takes them as an argument, and is seen to fail with those that are broken.

Significance. A p-value is refused within LIMIT of 0 or, a fit too good, of 1. All in all that is 1e-3, by Bonferroni,
and seeds are fixed: what passes once passes always.
"""

from functools import partial

import pytest
import torch

from zonos2_triton.model import Sampling
from zonos2_triton.reference import sampling
from zonos2_triton.reference.philox import WEYL, WORD, philox
from zonos2_triton.reference.sample_codes import sample_codes
from zonos2_triton.reference.sampling import NEVER_SEEN, WEIGHT_BITS, draw, probabilities

LIMIT = 1e-3 / 100  # comparisons, at most
CODEBOOKS = torch.arange(9)
SIGN = -(2**63)  # the highest bit of a seed
REQUESTS = torch.tensor([6, 7, 6 + 2**32, 6 + SIGN])  # one's neighbours: the next, in the high half, in the sign
SEEDS = 4 * torch.cat([torch.arange(32), torch.randint(2**62, (32,), generator=torch.Generator().manual_seed(1))])
# So far apart that no word is in two pairs, which would make the pairs dependent.
POINTS = SEEDS[:, None, None], 16 + 16 * torch.arange(2048)[:, None], torch.tensor([1, 3, 5, 7])
NEIGHBOURS = {
    "codebook": lambda s, t, c: (s, t, c + 1),
    "frame": lambda s, t, c: (s, t + 1, c),
    "nine frames": lambda s, t, c: (s, t + 9, c),
    "delay pattern": lambda s, t, c: (s, t + 1, c + 1),
    "against the delay pattern": lambda s, t, c: (s, t + 1, c - 1),
    "seed": lambda s, t, c: (s + 1, t, c),
    "bit 31 of the seed": lambda s, t, c: (s ^ 2**31, t, c),
    "high half of the seed": lambda s, t, c: (s + 2**32, t, c),
    "sign of the seed": lambda s, t, c: (s ^ SIGN, t, c),
    "seed, a frame later": lambda s, t, c: (s + 1, t + 1, c),
    "seed, a frame earlier": lambda s, t, c: (s + 1, t - 1, c),
    "frame as codebook": lambda s, t, c: (s, c, t),
}
CHECKS = ["bytes", *NEIGHBOURS]


def words(seeds, frames, codebooks):
    """The sampler's random words; the arguments broadcast."""
    return philox(seeds, (frames, codebooks, 0, 0))[..., 0]


def invert(probs, drawn, target=lambda drawn, total: drawn * total >> 32, right=True):
    """The product's rule for many words: probs [C, V], words [C, N] -> codes [C, N]. The rest is for broken ones."""
    weights = (probs * 2**WEIGHT_BITS).long()
    reached = target(drawn, weights.sum(-1, keepdim=True)).contiguous()
    return torch.searchsorted(weights.cumsum(-1), reached, right=right)


def chi_square(cells):
    """p of 256 cells, as full as each other but for chance."""
    expected = len(cells) / 256
    statistic = (torch.bincount(cells, minlength=256).double() - expected).square().sum() / expected
    return torch.special.gammaincc(torch.tensor(255 / 2).double(), statistic / 2)


def plausible(check, generator):
    a = torch.broadcast_to(generator(*POINTS), (64, 2048, 4)).flatten()
    if check == "bytes":
        p = [chi_square(a >> shift & 255) for shift in (0, 8, 16, 24)]
    else:
        b = torch.broadcast_to(generator(*NEIGHBOURS[check](*POINTS)), (64, 2048, 4)).flatten()
        z = 12 * ((a.double() / 2**32 - 0.5) * (b.double() / 2**32 - 0.5)).sum() / len(a) ** 0.5
        high, low = (a >> 28) * 16 + (b >> 28), (a & 15) * 16 + (b & 15)
        p = [chi_square(high), chi_square(low), torch.special.erfc(z.abs() / 2**0.5)]
    return all(LIMIT <= value <= 1 - LIMIT for value in p)


@pytest.mark.parametrize("check", CHECKS)
def test_words_are_uniform_and_independent(check):
    assert plausible(check, words)


BROKEN_WORDS = {  # and the checks that are made for what is wrong with them
    "one word for all codebooks": (lambda s, t, c: words(s, t, 0 * c), ["codebook"]),
    "no frame": (lambda s, t, c: words(s, 0 * t, c), ["frame", "nine frames"]),
    "no bit 31 of the seed": (lambda s, t, c: words(s & ~(2**31), t, c), ["bit 31 of the seed"]),
    "no high half of the seed": (lambda s, t, c: words(s & WORD, t, c), ["high half of the seed", "sign of the seed"]),
    "no sign of the seed": (lambda s, t, c: words(s & ~SIGN, t, c), ["sign of the seed"]),
    "seed + frame": (lambda s, t, c: words(s + t, 0, c), ["seed, a frame earlier"]),
    "seed - frame": (lambda s, t, c: words(s - t, 0, c), ["seed, a frame later"]),
    "frame + codebook": (lambda s, t, c: words(s, t + c, 0), ["against the delay pattern", "frame as codebook"]),
    "frame - codebook": (lambda s, t, c: words(s, t - c, 0), ["delay pattern"]),
    "frame x codebook": (lambda s, t, c: words(s, (t + 1) * (c + 1), 0), ["frame as codebook"]),
    "low half of the word": (lambda s, t, c: words(s, t, c) & 0xFFFF, ["bytes"]),
    "high half of the word": (lambda s, t, c: words(s, t, c) & ~0xFFFF, ["bytes"]),
    "31 bits of the word": (lambda s, t, c: words(s, t, c) | 1, ["bytes"]),
    "too even": (lambda s, t, c: (words(s, 0, c) + t * WEYL[0]) & WORD, ["bytes", "frame"]),
    "weak hash": (lambda s, t, c: (s * 0x9E3779B1 + t * 0x85EBCA6B + c * 0xC2B2AE35) & WORD, ["seed", "codebook"]),
}


@pytest.mark.parametrize(("broken", "failing"), BROKEN_WORDS.values(), ids=BROKEN_WORDS)
def test_checks_fail_with_broken_words(broken, failing):
    assert [check for check in failing if plausible(check, broken)] == []


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
    t = torch.arange(0, 32768, 2048)
    for name, probs in cases.items():
        for request in REQUESTS:
            got = draw(probs.expand(len(t), -1, -1), request.expand(len(t), 1), t[:, None])
            assert torch.equal(got, invert(probs, words(request, t[:, None], CODEBOOKS).T).T), name


def test_codes_are_those_of_sample(golden, cases):
    vectors, tensors = golden.json("sampling"), golden.tensors("sampling")
    requests = torch.cat([SEEDS[::8], REQUESTS])
    B = len(requests)
    for case, history in zip(vectors["cases"], tensors["history"], strict=True):
        n = case["history_len"]
        last_seen = torch.full((9, 1026), NEVER_SEEN, dtype=torch.int32)
        for frame, ids in enumerate(history[:n]):
            last_seen[CODEBOOKS, ids] = frame
        logits = tensors["logits"][case["logits_index"]].expand(B, -1, -1)
        settings = torch.tensor([Sampling(**{key: case[key] for key in vectors["defaults"]}).packed()]).expand(B, -1)
        steps = torch.full((B,), n, dtype=torch.int32)
        codes, nonfinite = sample_codes(logits, settings, requests, steps, last_seen.expand(B, -1, -1))
        drawn = words(requests[:, None], n, CODEBOOKS)
        assert torch.equal(codes, invert(cases[case["name"]], drawn.T).T.int()), case["name"]
        assert not nonfinite.any()


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


BROKEN_RULES = {
    "fp32 sums": lambda probs, w: torch.searchsorted(probs.cumsum(-1), (w.float() / 2**32).contiguous(), right=True),
    "less instead of not above": partial(invert, right=False),
    "24 bits of the word": partial(invert, target=lambda drawn, total: (drawn >> 8) * total >> 24),
    "not divided by the sum": partial(invert, target=lambda drawn, total: drawn * 2**WEIGHT_BITS >> 32),
}


@pytest.mark.parametrize("broken", BROKEN_RULES.values(), ids=BROKEN_RULES)
def test_shares_fail_with_broken_rules(cases, broken):
    assert max(shares_error(cases[name], broken) for name in ("defaults_long_history", "few")) > 1
