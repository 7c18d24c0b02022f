"""Draws, by statistics: the codes of a request follow their distribution and depend on nothing but it.

Fit. All golden sampling cases, and two that no sampler makes, 131,072 draws of each of nine codebooks (4 seeds, 32,768
frames): no code outside of the golden support, chi-square and Kolmogorov-Smirnov of the codes against the golden
probabilities. And without chance: of the 2^32 words a draw can meet, each code has its share, to a word.

Independence. Words and codes of different codebooks, frames, seeds and shifted streams: chi-square of pairs in 16 x 16
cells, of the high and of the low bits, and serial correlation, 65,520 to 147,456 disjoint pairs each; the joint counts
of codes, 32,768 pairs at least; the bytes and the uniforms of 1,179,648 words; the collisions among 589,824 words
against Poisson's law.

The words and the rule are the product's: `draw` is compared with them in each case, `sample` in each golden one. Every
check takes them as an argument, and is seen to fail with those that are broken.

Significance. A p-value is refused within LIMIT of 0 or, a fit too good, of 1. All in all that is 1e-3, by Bonferroni,
and seeds are fixed: what passes once passes always.
"""

from functools import lru_cache
from itertools import combinations, pairwise

import pytest
import torch

from zonos2_triton.model import Sampling
from zonos2_triton.reference import sampling
from zonos2_triton.reference.philox import MULTIPLIERS, WEYL, WORD, philox
from zonos2_triton.reference.sampling import NEVER, WEIGHT_BITS, draw, probabilities, sample

LIMIT = 1e-3 / 1700  # comparisons: two of each of 706 p-values, one of each of 255
CODEBOOKS = torch.arange(9)
SIGN = -(2**63)  # the highest bit of a seed
REQUESTS = torch.tensor([6, 7, 6 + 2**32, 6 + SIGN])  # one's neighbours: the next, in the high half, in the sign
FRAMES = 32768
LAGS = 1, 2, 7, 9, 10


def words(seeds, frames, codebooks):
    """Of the product; all broadcast."""
    return philox(seeds, (frames, codebooks, 0, 0))[..., 0]


def invert(probs, drawn):
    """The product's rule for many words: probs [C, V], words [C, N] -> codes [C, N]."""
    weights = (probs * 2**WEIGHT_BITS).long()
    target = drawn * weights.sum(-1, keepdim=True) >> 32
    return torch.searchsorted(weights.cumsum(-1), target.contiguous(), right=True)


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


def fit(counts, probs):
    """p of counts [K]; codes expected fewer than five times are one bin. A count where the probability is zero: 0."""
    if counts[probs == 0].any():
        return torch.zeros((), dtype=torch.float64)
    expected = probs.double() / probs.double().sum() * counts.sum()
    rare = expected < 5
    counts, expected = (torch.cat([x[~rare], x[rare].sum(0, keepdim=True)]) for x in (counts, expected))
    if expected[-1] < 5:  # together still too few: they join the last of the others
        counts, expected = (torch.cat([x[:-2], x[-2:].sum(0, keepdim=True)]) for x in (counts, expected))
    return chi_square(counts, expected)


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
    """name -> what is drawn from, and what the draws shall follow. Two are not golden: a draw divides by the sum of the
    weights, and keeps zero weights apart from the smallest, both of which nearly normalised rows of many would hide."""
    vectors, tensors = golden.json("sampling"), golden.tensors("sampling")
    found = {}
    for case, history, expected in zip(vectors["cases"], tensors["history"], tensors["probs"], strict=True):
        settings = Sampling(**{key: case[key] for key in vectors["defaults"]})
        probs = probabilities(tensors["logits"][case["logits_index"]], settings, history[: case["history_len"]])
        found[case["name"]] = probs, expected
    few = torch.tensor([0.0, 1, 0, 0, 2, 3, 0]).repeat(9, 1)
    defaults = found["defaults_no_history"]
    return {**found, "halved": (defaults[0] / 2, defaults[1]), "few": (few / 2**WEIGHT_BITS, few / 6)}


def goodness(case, drawn, rule):
    """p of chi-square, then of Kolmogorov-Smirnov, of each codebook; those with one code only have none, unless
    another one is drawn."""
    probs, expected = case
    counts = table(rule(probs, drawn), probs.shape[-1] + 1)  # and what is drawn beyond the last code
    expected = torch.nn.functional.pad(expected.double(), (0, 1))
    expected = expected / expected.sum(-1, keepdim=True)
    varied = ((expected > 0).sum(-1) > 1) | (counts * (expected == 0)).any(-1)
    counts, expected = counts[varied], expected[varied]
    distance = (counts / drawn.shape[-1] - expected).cumsum(-1).abs().amax(-1)
    chi = [fit(*row) for row in zip(counts, expected, strict=True)]
    return torch.tensor(chi, dtype=torch.float64), kolmogorov(distance, drawn.shape[-1])


def follows(case, drawn, rule):
    """Of discrete distributions the Kolmogorov-Smirnov p-value is too large: it only tells of bad fits."""
    chi, ks = goodness(case, drawn, rule)
    return plausible(chi) and bool((ks >= LIMIT).all())


def test_codes_follow_the_golden_distributions(cases):
    drawn = rows(pool(words))
    assert len(cases) == 38
    assert [name for name, case in cases.items() if not follows(case, drawn, invert)] == []


def test_codes_are_those_of_draw(cases):
    t = torch.arange(0, FRAMES, FRAMES // 16)
    for name, (probs, _) in cases.items():
        for request, drawn in zip(REQUESTS, pool(words), strict=True):
            got = draw(probs.expand(len(t), -1, -1), request.expand(len(t), 1), t[:, None])
            assert torch.equal(got, invert(probs, drawn[t].T).T), name


def test_every_draw_of_the_defaults_is_that_of_draw(cases):
    """131,072 times nine; columns of zeros, which nothing is drawn from, are left out."""
    probs, _ = cases["defaults_no_history"]
    want = invert(probs, rows(pool(words))).view(9, len(REQUESTS), FRAMES)
    used = probs.topk(int((probs > 0).sum(-1).max())).indices.sort(-1).values
    narrow = probs.gather(-1, used).expand(FRAMES // 4, -1, -1)
    for i, request in enumerate(REQUESTS.tolist()):
        for t in torch.arange(FRAMES).chunk(4):
            got = used.gather(-1, draw(narrow, request, t[:, None]).T)
            assert torch.equal(got, want[:, i, t])


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
        assert torch.equal(codes, invert(cases[case["name"]][0], drawn.T).T.int()), case["name"]
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
    for name, (probs, _) in cases.items():
        assert shares_error(probs, invert) <= 1, name
        weights, p = (probs * 2**WEIGHT_BITS).long().double(), probs.double()
        p, got = (x / x.sum(-1, keepdim=True) for x in (p, weights))
        bound = (1 + p * (p > 0).sum(-1, keepdim=True)) * 2.0**-WEIGHT_BITS / probs.double().sum(-1, keepdim=True)
        assert ((got - p).abs() <= bound).all(), name


@pytest.mark.parametrize("name", ["few", "halved", "defaults_long_history", "top_k_1", "ties_at_top_k"])
def test_draw_changes_code_where_the_rule_does(monkeypatch, cases, name):
    """`draw`, given the last word of each code and the word after it."""
    probs, _ = cases[name]
    ends = words_up_to(probs, invert)
    given = torch.cat([ends - 1, ends.clamp(max=WORD)], -1).clamp(min=0)
    for part in given.unique(dim=-1).split(128, -1):
        monkeypatch.setattr(sampling, "philox", lambda key, counter, part=part: part.T[..., None])
        assert torch.equal(draw(probs.expand(part.shape[-1], -1, -1), 0, 0), invert(probs, part).T)


def pairs_of_codes(case, generator):
    """p of the joint counts of codes: in two codebooks, in frames apart, of neighbouring seeds."""
    probs, expected = case
    support = expected > 0
    codes = (support.cumsum(-1) - 1).gather(-1, invert(probs, rows(pool(generator))))  # their place in the support
    codes = codes.view(9, len(REQUESTS), FRAMES)
    margins = [p[kept].double() for p, kept in zip(expected, support, strict=True)]
    found = []

    def compare(c, d, a, b):
        cells = torch.outer(margins[c], margins[d]).flatten()
        counts = torch.bincount((a * len(margins[d]) + b).flatten(), minlength=len(cells)).double()
        found.append(fit(counts, cells))

    for c, d in [*pairwise(range(9)), (0, 2), (0, 4), (0, 8), (1, 7)]:
        compare(c, d, codes[c], codes[d])
    for lag in LAGS:
        for c, pair in enumerate(zip(*apart(codes.movedim(0, -1), lag), strict=True)):
            compare(c, c, *pair)
    for c in range(9):
        for request in (1, 2, 3):
            compare(c, c, codes[c, 0], codes[c, request])
    return torch.stack(found)


def test_codes_of_the_defaults_are_independent(cases):
    p = pairs_of_codes(cases["defaults_no_history"], words)
    assert len(p) == 84
    assert plausible(p), (p.min(), p.max())


def of_rounds(rounds):
    """The product's words, but for the number of rounds, which is ten."""

    def generator(seeds, frames, codebooks):
        given = (frames, codebooks, 0, 0, seeds, seeds >> 32)
        c0, c1, c2, c3, k0, k1 = torch.broadcast_tensors(*(torch.as_tensor(word) & WORD for word in given))
        for _ in range(rounds):
            a, b = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
            c0, c1, c2, c3 = (b >> 32 & WORD) ^ c1 ^ k0, b & WORD, (a >> 32 & WORD) ^ c3 ^ k1, a & WORD
            k0, k1 = k0 + WEYL[0] & WORD, k1 + WEYL[1] & WORD
        return c0

    return generator


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
    "3 rounds": (of_rounds(3), {"codebooks", "seeds", "shifted", "swapped"}),
    "6 rounds": (of_rounds(6), {"codebooks"}),  # of seven on, Salmon et al. found no test that fails
}


@pytest.mark.parametrize("name", BROKEN_WORDS)
def test_checks_fail_with_broken_words(name):
    generator, failing = BROKEN_WORDS[name]
    assert {check for check in failing if plausible(CHECKS[check](generator))} == set()


def test_too_good_a_fit_is_refused(cases):
    """A sequence that leaves no gaps: nothing is wrong with its uniforms but that."""
    even, _ = BROKEN_WORDS["too even"]
    assert uniforms(even).min() > 1 - LIMIT
    assert goodness(cases["defaults_long_history"], rows(pool(even)), invert)[0].max() > 1 - LIMIT


def test_rounds_are_all_that_words_of_fewer_rounds_lack():
    assert torch.equal(of_rounds(10)(REQUESTS[:, None], 5, CODEBOOKS), words(REQUESTS[:, None], 5, CODEBOOKS))


@pytest.mark.parametrize("name", ["one word for all codebooks", "no frame", "no high half of the seed", "weak hash"])
def test_codes_of_broken_words_are_not_independent(cases, name):
    assert not plausible(pairs_of_codes(cases["defaults_no_history"], BROKEN_WORDS[name][0]))


@pytest.mark.parametrize("name", ["no frame", "low half of the word", "weak hash"])
def test_codes_of_broken_words_do_not_fit(cases, name):
    assert not follows(cases["defaults_no_history"], rows(pool(BROKEN_WORDS[name][0])), invert)


def rule(target=lambda drawn, total: drawn * total >> 32, right=True):
    """`invert` with another target, or that counts the sums below the target."""

    def broken(probs, drawn):
        weights = (probs * 2**WEIGHT_BITS).long()
        reached = target(drawn, weights.sum(-1, keepdim=True)).contiguous()
        return torch.searchsorted(weights.cumsum(-1), reached, right=right)

    return broken


BROKEN_RULES = {  # and the cases that their codes do not fit
    "less instead of not above": (rule(right=False), {"few"}),
    "target without its high bits": (
        rule(lambda drawn, total: drawn * total >> 32 & 2**20 - 1), {"defaults_no_history", "halved"}
    ),
    "low half of the word": (rule(lambda drawn, total: (drawn & 0xFFFF) * total >> 32), {"defaults_no_history", "few"}),
    "not divided by the sum": (rule(lambda drawn, total: drawn * 2**WEIGHT_BITS >> 32), {"few", "halved"}),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN_RULES)
def test_codes_of_broken_rules_do_not_fit(cases, name):
    broken, failing = BROKEN_RULES[name]
    drawn = rows(pool(words))
    assert {case for case in failing if follows(cases[case], drawn, broken)} == set()


def fp32_sums(probs, drawn):
    return torch.searchsorted(probs.cumsum(-1), (drawn.float() / 2**32).contiguous(), right=True)


@pytest.mark.parametrize("broken", [fp32_sums, rule(right=False), rule(lambda d, total: (d >> 8) * total >> 24)],
                         ids=["fp32 sums", "less", "24 bits"])  # fmt: skip
def test_shares_of_words_show_what_is_too_small_for_statistics(cases, broken):
    case = cases["defaults_long_history"]
    assert follows(case, rows(pool(words)), broken)
    assert shares_error(case[0], broken) > 1
