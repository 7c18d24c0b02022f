"""The draw of a frame: codes[b, c] = a code of the distribution that request b's settings make of logits[b, c].

In the official order: repetition penalty, temperature, top-k with ties, softmax, top-p, min-p. A row left empty is
one-hot at its largest logit. The distribution is inverted at a counter-based random number. Then, given the state of
the slots, each slot goes on by this frame: history, end of audio, the next input token.

Shapes     logits, last_seen [B, C, V]; settings [B, 8]; seeds, steps [B]; codes, nonfinite [B, C]. V <= 8192.
           Pass the state whole, or none of it: positions, max_frames, eoa_ids, eos_frames [B]; ids [B, C + 1]; frames
           [B, N, C + 1].
Dtypes     logits, settings fp32; seeds int64; all others int32.
Raises     ValueError, TypeError naming operation, argument, what came and what is accepted; settings out of range, by
           request, where looking costs nothing (CPU tensors, TRITON_DEBUG=1).
Reference  zonos2_triton.reference.sample_codes.sample_codes
Source     Zyphra/ZONOS2, tts/sampler.py, engine/sample.py; scheduler: the serial rule of its request class. Random
           numbers: Salmon et al., SC 2011 (Philox 4x32-10).

settings   of each request: temperature, top_k, top_p, min_p, window, penalty, penalised codebooks, unused.
seeds      the bits of each request's seed; steps: frames so far.
last_seen  the frame in which a code came last, or -2^30. A code is penalised if that is within `window` frames.
nonfinite  1 where a row holds NaN or +inf, or nothing above -inf. Its code is then V - 1 (padding).

The state, which changes in place, as do steps and last_seen with it:

positions   of the newest token in the cache. Negative: the slot is free, and nothing of it changes. A slot with any
            nonfinite flag keeps its state, but for its position, which becomes -2; the frame is not counted.
max_frames  how many frames there will be at most. After the last the slot is free: its position is -1.
eoa_ids     the code that ends the audio, or -1: none; eos_frames: where the audio ends, or -1: not known yet. The first
            frame with that code sets eos_frames[b] = steps[b] - the highest such codebook, at least 0, and lets C more
            frames follow. Later ends change nothing.
ids         the next input token: the codes and text_id.
frames      a ring: frame s, and eos_frame as known by then, lie at s % N.
counters    [B] or more: how many rows of a slot are drawn. Zero before and after, so calls can share them. None:
            allocated by the call, at the cost of one launch.

Example: C = 3, steps[b] = 20, eoa_ids[b] = 1024, and codes[b] = [7, 1024, 5] are drawn. The highest ending codebook is
1, so eos_frames[b] = 19, and max_frames[b] becomes at most 24.

One launch; the last program of a slot to arrive updates its state. The key of a random number is (seed, frame,
codebook): a code is a function of its own row, of its request's settings and of that key. Every number is rounded by
one IEEE operation at a time, and sums are sums of integers. So the codes are the reference's, bit for bit, on any
machine and in any order of summation.
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
from zonos2_triton.kernels._math import exp_nonpositive, finite, last_to_arrive
from zonos2_triton.kernels._operator import Cost, operator, zeroed_counters

LARGEST = 3.4028234663852886e38  # of the finite fp32 numbers
MASS = 2.0**40  # of the largest weight, in the integers that weights are compared and normalised by
WEIGHT = 2.0**30  # of a probability of one, in the integers that are drawn from
SETTINGS = 8  # numbers of a request
MAX_CODES = 8192  # a row of logits is one tile
SLOT_FREE, SLOT_NONFINITE = tl.constexpr(-1), tl.constexpr(-2)
SLOTS = ("seeds", "steps", "last_seen", "positions", "max_frames", "eoa_ids", "eos_frames", "ids", "frames")


@triton.jit(
    do_not_specialize=["N", "text_id"],
    do_not_specialize_on_alignment=[f"{name}_ptr" for name in SLOTS],  # batches begin at any slot
)
def _sample_codes_kernel(
    logits_ptr,  # [B, C, V] fp32
    settings_ptr,  # [B, SETTINGS] fp32
    seeds_ptr,  # [B] int64
    steps_ptr,  # [B] int32
    last_seen_ptr,  # [B, C, V] int32
    codes_ptr,  # [B, C] int32
    nonfinite_ptr,  # [B, C] int32
    positions_ptr,  # [B] int32, or None: codes are drawn, and no state changes
    max_frames_ptr,  # [B] int32, or None with positions
    eoa_ids_ptr,  # [B] int32, or None with positions
    eos_frames_ptr,  # [B] int32, or None with positions
    ids_ptr,  # [B, C + 1] int32, or None with positions
    frames_ptr,  # [B, N, C + 1] int32, or None with positions
    counters_ptr,  # [B] int32, or None with positions
    text_id,
    V,
    N,
    C: tl.constexpr,
    SETTINGS: tl.constexpr,
    LARGEST: tl.constexpr,
    MASS: tl.constexpr,
    WEIGHT: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid (C, B): a program owns a row of logits."""
    wait_for_previous_launch(PDL)
    c, b = tl.program_id(0), tl.program_id(1).to(tl.int64)
    row = b * C + c
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
    logits = tl.load(logits_ptr + row * V + offs, mask=mask, other=float("-inf"))
    last_seen = tl.load(last_seen_ptr + row * V + offs, mask=mask, other=0)

    recent = (last_seen >= step - window) & (offs < tl.where(c < penalised, V - 2, 0))  # end and padding are spared
    x = tl.where(recent, tl.where(logits > 0, tl.div_rn(logits, penalty), logits * penalty), logits)
    x = tl.div_rn(x, temperature)
    x = tl.minimum(tl.maximum(x, -LARGEST), LARGEST) + 0.0  # no -0, which has another key than 0
    x = tl.where(mask, x, float("-inf"))
    keys = _order(x)
    # NaN and infinities, which are not clamped here, show in the largest of all.
    unclamped = tl.where(finite(logits), keys, _order(tl.where(logits == logits, logits, float("inf"))))
    highest = _number(tl.max(unclamped, axis=0))
    is_invalid = tl.abs(highest) == float("inf")
    highest = tl.where(is_invalid, LARGEST, highest)
    weights = exp_nonpositive(x - highest)  # the largest is 1
    use_nucleus = (top_p > 0) & (top_p < 1)
    # Without a nucleus, top-k changes nothing if what min_p keeps is among the top_k largest: no search.
    kept = mask & (weights >= tl.where(use_nucleus, 0.0, min_p))
    least = tl.min(tl.where(kept, keys, 0x7FFFFFFF), axis=0)
    if tl.sum((keys >= least).to(tl.int32), axis=0) > top_k:
        weights = tl.where(_is_among_largest(keys, top_k), weights, 0.0)
    if use_nucleus:
        weights = _nucleus(weights, top_p, MASS)
    weights = tl.where(weights >= min_p, weights, 0.0)

    total = tl.sum((weights * MASS).to(tl.int64), axis=0)
    total_weight = tl.where(total > 0, total, 1).to(tl.float32) * (1.0 / MASS)
    drawn = (tl.div_rn(weights, total_weight) * WEIGHT).to(tl.int32)
    drawn = tl.where(total > 0, drawn, (x == highest).to(tl.int32))
    word, _, _, _ = tl.philox(seed, step, c, 0, 0)
    all_drawn = tl.sum(drawn, axis=0).to(tl.int64)
    target = tl.where(total > 0, (word.to(tl.int64) * all_drawn) >> 32, 0)  # 0: the first of the largest
    code = tl.sum((mask & (tl.cumsum(drawn, axis=0) <= target)).to(tl.int32), axis=0)
    tl.store(codes_ptr + row, tl.where(is_invalid, V - 1, code))
    tl.store(nonfinite_ptr + row, is_invalid.to(tl.int32))
    if positions_ptr is not None and last_to_arrive(counters_ptr + b, C):
        _advance_slot(
            codes_ptr + b * C,
            nonfinite_ptr + b * C,
            positions_ptr + b,
            steps_ptr + b,
            max_frames_ptr + b,
            eoa_ids_ptr + b,
            eos_frames_ptr + b,
            ids_ptr + b * (C + 1),
            last_seen_ptr + b * C * V,
            frames_ptr + (b * N + step % N) * (C + 1),
            step,
            text_id,
            V,
            C,
            BLOCK_C,
        )


@triton.jit
def _advance_slot(
    codes_ptr,  # [C]
    nonfinite_ptr,  # [C]
    position_ptr,
    step_ptr,
    max_frames_ptr,
    eoa_id_ptr,
    eos_frame_ptr,
    ids_ptr,  # [C + 1]
    last_seen_ptr,  # [C, V]
    frame_ptr,  # [C + 1], of the ring
    step,
    text_id,
    V,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The state of one slot after the frame that its programs have drawn."""
    offs = tl.arange(0, BLOCK_C)
    mask = offs < C
    position, max_frames = tl.load(position_ptr), tl.load(max_frames_ptr)  # every load in one round trip
    eoa_id, eos_frame = tl.load(eoa_id_ptr), tl.load(eos_frame_ptr)
    codes = tl.load(codes_ptr + offs, mask=mask, other=0)
    is_invalid = tl.max(tl.load(nonfinite_ptr + offs, mask=mask, other=0), axis=0) != 0
    if (position >= 0) & is_invalid:
        tl.store(position_ptr, SLOT_NONFINITE)
    elif position >= 0:
        highest = tl.max(tl.where(mask & (codes == eoa_id), offs, -1), axis=0)
        ends = (highest >= 0) & (eos_frame < 0)
        eos_frame = tl.where(ends, tl.maximum(step - highest, 0), eos_frame)
        max_frames = tl.where(ends, tl.minimum(max_frames, step + C + 1), max_frames)
        tl.store(last_seen_ptr + offs * V + codes, step, mask=mask)
        tl.store(ids_ptr + offs, tl.where(mask, codes, text_id), mask=offs <= C)
        tl.store(frame_ptr + offs, tl.where(mask, codes, eos_frame), mask=offs <= C)
        tl.store(max_frames_ptr, max_frames)
        tl.store(eos_frame_ptr, eos_frame)
        tl.store(step_ptr, step + 1)
        tl.store(position_ptr, tl.where(step + 1 < max_frames, position + 1, SLOT_FREE))


@triton.jit
def _order(x):
    """int32 keys in the order of fp32 numbers."""
    bits = x.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _number(key):
    """The fp32 number of a key."""
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _is_among_largest(keys, k):
    """Which int32 keys are not below the k-th largest. Finds it bit by bit, until exactly k are not below."""
    keys = (keys ^ -0x80000000).to(tl.uint32, bitcast=True)
    least = tl.zeros((), tl.uint32)
    bit = tl.full((), 0x80000000, tl.uint32)
    count = tl.full((), 0, tl.int32)
    while (bit != 0) & (count != k):
        more = least | bit
        n_at_least = tl.sum((keys >= more).to(tl.int32), axis=0)
        least = tl.where(n_at_least >= k, more, least)
        count = tl.where(n_at_least >= k, n_at_least, count)
        bit = bit >> 1
    return keys >= least


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


@operator(mutates_args=("steps", "last_seen", "positions", "max_frames", "eos_frames", "ids", "frames", "counters"))
def sample_codes(
    logits: Annotated[Tensor, "B C V", torch.float32],
    settings: Annotated[Tensor, f"B {SETTINGS}", torch.float32],
    seeds: Annotated[Tensor, "B", torch.int64],
    steps: Annotated[Tensor, "B", torch.int32],
    last_seen: Annotated[Tensor, "B C V", torch.int32],
    positions: Annotated[Tensor | None, "B", torch.int32] = None,
    max_frames: Annotated[Tensor | None, "B", torch.int32] = None,
    eoa_ids: Annotated[Tensor | None, "B", torch.int32] = None,
    eos_frames: Annotated[Tensor | None, "B", torch.int32] = None,
    ids: Annotated[Tensor | None, "B C+1", torch.int32] = None,
    frames: Annotated[Tensor | None, "B N C+1", torch.int32] = None,
    text_id: int = 0,
    counters: Tensor | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    op, (B, C, V) = "sample_codes", logits.shape
    if not 3 <= V <= MAX_CODES:
        raise ValueError(f"{op}: logits must have 3..{MAX_CODES} codes a row, two of them end and padding, got {V}")
    state = {"positions": positions, "max_frames": max_frames, "eoa_ids": eoa_ids, "eos_frames": eos_frames}
    state |= {"ids": ids, "frames": frames}
    absent = [name for name, value in state.items() if value is None]
    if 0 < len(absent) < len(state):
        raise ValueError(f"{op}: {', '.join(state)} must be given together, got no {', '.join(absent)}")
    _check_settings(settings)
    codes, nonfinite = (logits.new_empty((B, C), dtype=torch.int32) for _ in range(2))
    counters = None if absent else zeroed_counters(logits, B, counters, op)
    yield codes, nonfinite
    _sample_codes_kernel[(C, B)](
        logits_ptr=logits,
        settings_ptr=settings,
        seeds_ptr=seeds,
        steps_ptr=steps,
        last_seen_ptr=last_seen,
        codes_ptr=codes,
        nonfinite_ptr=nonfinite,
        **{f"{name}_ptr": value for name, value in state.items()},
        counters_ptr=counters,
        text_id=text_id,
        V=V,
        N=1 if frames is None else frames.shape[1],
        C=C,
        SETTINGS=SETTINGS,
        LARGEST=LARGEST,
        MASS=MASS,
        WEIGHT=WEIGHT,
        BLOCK_V=triton.next_power_of_2(V),
        BLOCK_C=triton.next_power_of_2(C + 1),
        **launch_config(op, "row", torch.float32),
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


def cost(B: int, C: int, V: int, itemsize: int, state: bool = True) -> Cost:
    """Per logit: three divisions, 20 for the exponential, the comparisons of the search for the k-th largest, and sums.

    state: slots go on. itemsize has no effect.
    """
    rows = 8 * B * C * V + B * (4 * SETTINGS + 12) + 8 * B * C
    return Cost(bytes=rows + state * B * 4 * (4 + 4 + C + 2 * (C + 1)), flops=B * C * V * (3 + 20 + 32 + 5))
