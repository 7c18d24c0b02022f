"""The draw of a frame: codes[b, c] = a code of the distribution that request b's settings make of logits[b, c].

In the official order: repetition penalty, temperature, top-k with ties, softmax, top-p, min-p. A row left empty is
one-hot at its largest logit. The distribution is inverted at a counter-based random number.

Shapes     logits, last_seen [B, C, V]; settings [B, 8]; seeds, steps [B]; codes, nonfinite [B, C]. V <= 8192.
Dtypes     logits, settings fp32; seeds int64; steps, last_seen, codes, nonfinite int32.
Raises     ValueError, TypeError naming operation, argument, what came and what is accepted; settings out of range, by
           request, where looking costs nothing (CPU tensors, TRITON_DEBUG=1).
Reference  zonos2_triton.reference.sample_codes.sample_codes
Source     Zyphra/ZONOS2, tts/sampler.py, engine/sample.py. Random numbers: Salmon et al., SC 2011 (Philox 4x32-10).

settings   of each request: temperature, top_k, top_p, min_p, window, penalty, penalised codebooks, unused.
seeds      the bits of each request's seed; steps: frames so far.
last_seen  the frame in which a code came last, or -2^30. A code is penalised if that is within `window` frames.
nonfinite  1 where a row holds NaN or +inf, or nothing above -inf. Its code is then V - 1 (padding).

One launch. The key of a random number is (seed, frame, codebook): a code is a function of its own row, of its request's
settings and of that key. Every number is rounded by one IEEE operation at a time, and sums are sums of integers. So the
codes are the reference's, bit for bit, on any machine and in any order of summation.
"""

from collections.abc import Iterator
from typing import Annotated

import torch
import triton
import triton.language as tl
from torch import Tensor

from zonos2_triton.kernels._args import may_sync
from zonos2_triton.kernels._dependent_launch import wait_for_previous_launch
from zonos2_triton.kernels._launch_config import launch_config
from zonos2_triton.kernels._math import exp_nonpositive
from zonos2_triton.kernels._operator import Cost, operator

LARGEST = 3.4028234663852886e38  # of the finite fp32 numbers
MASS = 2.0**40  # of the largest weight, in the integers that weights are compared and normalised by
WEIGHT = 2.0**30  # of a probability of one, in the integers that are drawn from
SETTINGS = 8  # numbers of a request
MAX_CODES = 8192  # a row of logits is one tile


@triton.jit(do_not_specialize_on_alignment=["seeds_ptr", "steps_ptr", "last_seen_ptr"])  # batches begin at any slot
def _sample_codes_kernel(
    logits_ptr,  # [B, C, V] fp32
    settings_ptr,  # [B, SETTINGS] fp32
    seeds_ptr,  # [B] int64
    steps_ptr,  # [B] int32
    last_seen_ptr,  # [B, C, V] int32
    codes_ptr,  # [B, C] int32
    nonfinite_ptr,  # [B, C] int32
    V,
    SETTINGS: tl.constexpr,
    LARGEST: tl.constexpr,
    MASS: tl.constexpr,
    WEIGHT: tl.constexpr,
    BLOCK_V: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid (C, B): a program owns a row of logits."""
    wait_for_previous_launch(PDL)
    c, b, C = tl.program_id(0), tl.program_id(1), tl.num_programs(0)
    row = (b * C + c).to(tl.int64)
    offs = tl.arange(0, BLOCK_V)
    mask = offs < V
    temperature = tl.load(settings_ptr + b * SETTINGS)
    top_k = tl.minimum(tl.load(settings_ptr + b * SETTINGS + 1).to(tl.int32), V)
    top_p = tl.load(settings_ptr + b * SETTINGS + 2)
    min_p = tl.load(settings_ptr + b * SETTINGS + 3)
    window = tl.load(settings_ptr + b * SETTINGS + 4).to(tl.int32)
    penalty = tl.load(settings_ptr + b * SETTINGS + 5)
    penalised = tl.load(settings_ptr + b * SETTINGS + 6).to(tl.int32)
    step = tl.load(steps_ptr + b)
    seed = tl.load(seeds_ptr + b)
    x = tl.load(logits_ptr + row * V + offs, mask=mask, other=float("-inf"))
    last_seen = tl.load(last_seen_ptr + row * V + offs, mask=mask, other=0)

    has_nan_or_posinf = tl.sum(((x != x) | (x == float("inf"))).to(tl.int32), axis=0) > 0
    is_invalid = has_nan_or_posinf | (tl.sum((x > float("-inf")).to(tl.int32), axis=0) == 0)
    x = tl.where(is_invalid, 0.0, x)
    recent = (last_seen >= step - window) & (offs < tl.where(c < penalised, V - 2, 0))  # end and padding are spared
    x = tl.where(recent, tl.where(x > 0, tl.div_rn(x, penalty), x * penalty), x)
    x = tl.div_rn(x, temperature)
    x = tl.minimum(tl.maximum(x, -LARGEST), LARGEST)
    x = tl.where(mask, x, float("-inf"))
    highest = tl.max(x, axis=0)
    weights = tl.where(x >= _kth_largest(x, top_k), exp_nonpositive(x - highest), 0.0)  # the largest is 1
    if (top_p > 0) & (top_p < 1):
        weights = _nucleus(weights, top_p, MASS)
    weights = tl.where(weights >= min_p, weights, 0.0)

    total = tl.sum((weights * MASS).to(tl.int64), axis=0)
    total_weight = tl.where(total > 0, total, 1).to(tl.float32) * (1.0 / MASS)
    drawn = (tl.div_rn(weights, total_weight) * WEIGHT).to(tl.int32)
    word, _, _, _ = tl.philox(seed, step, c, 0, 0)
    all_drawn = tl.sum(drawn, axis=0).to(tl.int64)
    target = (word.to(tl.int64) * all_drawn) >> 32
    code = tl.sum((mask & (tl.cumsum(drawn, axis=0) <= target)).to(tl.int32), axis=0)
    code = tl.where(total > 0, code, tl.min(tl.where(x == highest, offs, V), axis=0))
    tl.store(codes_ptr + row, tl.where(is_invalid, V - 1, code))
    tl.store(nonfinite_ptr + row, is_invalid.to(tl.int32))


@triton.jit
def _kth_largest(x, k):
    """The k-th largest of fp32 x, with multiplicity. Finds it bit by bit, and stops once exactly k are not below."""
    bits = x.to(tl.int32, bitcast=True)
    keys = (bits ^ ((bits >> 31) | -2147483648)).to(tl.uint32, bitcast=True)  # in the order of the numbers
    least = tl.zeros((), tl.uint32)
    bit = tl.full((), 0x80000000, tl.uint32)
    count = tl.full((), 0, tl.int32)
    while (bit != 0) & (count != k):
        more = least | bit
        n_at_least = tl.sum((keys >= more).to(tl.int32), axis=0)
        least = tl.where(n_at_least >= k, more, least)
        count = tl.where(n_at_least >= k, n_at_least, count)
        bit = bit >> 1
    return tl.min(tl.where(keys >= least, x, float("inf")), axis=0)


@triton.jit
def _nucleus(weights, top_p, MASS: tl.constexpr):
    """Weights with no more than top_p of all before them in descending order, ties by code; the others are 0."""
    mass = (weights * MASS).to(tl.int64)
    limit = (tl.sum(mass, axis=0).to(tl.float64) * top_p.to(tl.float64)).to(tl.int64)
    keys = weights.to(tl.int32, bitcast=True)  # in the order of the numbers, which are not negative
    threshold = tl.zeros((), tl.int32)  # the largest weight that more than the limit is not below
    for i in range(30):  # the bits of 1.0 and less
        more = threshold | (tl.full((), 1, tl.int32) << (29 - i))
        threshold = tl.where(tl.sum(tl.where(keys >= more, mass, 0), axis=0) > limit, more, threshold)
    tied = keys == threshold
    above = tl.sum(tl.where(keys > threshold, mass, 0), axis=0)
    before = above + tl.cumsum(tl.where(tied, mass, 0), axis=0) - mass  # of those that tie
    return tl.where((keys > threshold) | (tied & (before <= limit)), weights, 0.0)


@operator()
def sample_codes(
    logits: Annotated[Tensor, "B C V", torch.float32],
    settings: Annotated[Tensor, f"B {SETTINGS}", torch.float32],
    seeds: Annotated[Tensor, "B", torch.int64],
    steps: Annotated[Tensor, "B", torch.int32],
    last_seen: Annotated[Tensor, "B C V", torch.int32],
) -> Iterator[tuple[Tensor, Tensor]]:
    B, C, V = logits.shape
    if not 3 <= V <= MAX_CODES:
        raise ValueError(
            f"sample_codes: logits must have 3..{MAX_CODES} codes a row, two of them end and padding, got {V}"
        )
    _check_settings(settings)
    codes, nonfinite = (logits.new_empty((B, C), dtype=torch.int32) for _ in range(2))
    yield codes, nonfinite
    _sample_codes_kernel[(C, B)](
        logits_ptr=logits,
        settings_ptr=settings,
        seeds_ptr=seeds,
        steps_ptr=steps,
        last_seen_ptr=last_seen,
        codes_ptr=codes,
        nonfinite_ptr=nonfinite,
        V=V,
        SETTINGS=SETTINGS,
        LARGEST=LARGEST,
        MASS=MASS,
        WEIGHT=WEIGHT,
        BLOCK_V=triton.next_power_of_2(V),
        **launch_config("sample_codes", "row", torch.float32),
    )


# Name, least and largest number of each column of settings that is used.
_RANGES = (
    ("temperature", 1e-7, LARGEST),
    ("top_k", 1, 2**24),
    ("top_p", 0, 1),
    ("min_p", 0, LARGEST),
    ("window", 0, 2**24),
    ("penalty", 1, LARGEST),
    ("penalised codebooks", 0, 2**24),
)


def _check_settings(settings: Tensor) -> None:
    if not may_sync(settings):
        return
    for b, row in enumerate(settings.tolist()):
        for (name, low, high), value in zip(_RANGES, row, strict=False):
            if not low <= value <= high:
                raise ValueError(f"sample_codes: settings[{b}], {name}, must be in {low}..{high}, got {value}")


def cost(B: int, C: int, V: int, itemsize: int) -> Cost:
    """Per logit: three divisions, 20 for the exponential, the comparisons of the search for the k-th largest, and sums.

    itemsize has no effect.
    """
    return Cost(bytes=8 * B * C * V + B * (4 * SETTINGS + 12) + 8 * B * C, flops=B * C * V * (3 + 20 + 32 + 5))
