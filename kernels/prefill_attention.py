"""Causal attention of many new rows: y[t, h] = sigmoid(gate[t, h]) * softmax over s <= t of (q k / sqrt(DH)) v.

Shapes     as in `decode_attention`, but qkvg [T, ...] and y [T, HQ * DH] hold the new rows of B sequences one sequence
           after the other: rows cu_seqlens[b] to cu_seqlens[b + 1] - 1, cu_seqlens [B + 1], at positions from
           cache_seqlens[b] on, cache_seqlens [B]. max_seqlen_q: the most rows that a sequence has.
Dtypes     as in `decode_attention`; cache_seqlens and cu_seqlens int32.
Raises     ValueError, TypeError naming operation, argument, what came and what is accepted; a sequence without rows,
           one longer than `max_seqlen_q`, a position beyond the pages or the cos_sin_cache, a page out of range where
           looking costs nothing (CPU tensors, TRITON_DEBUG=1).
Reference  zonos2_triton.reference.attention.prefill_attention
Source     Dao et al. 2022, arXiv:2205.14135. Norms, temperature, gate: Zyphra/ZONOS2, models/zonos2.py, Attention.

Two launches: keys and values into the cache, then attention from it. A row meets the cache in blocks that lie at fixed
positions, so its bits depend neither on the rows beside it nor on the pieces that the prompt comes in. Later rows never
reach it: where a value is not finite, only the rows that may see it become NaN.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from zonos2_triton.kernels._args import Arg, check_range, may_sync
from zonos2_triton.kernels._launch_config import launch_config
from zonos2_triton.kernels._math import apply_rotary, dot_fp32, finite, rms_normalize, round_to
from zonos2_triton.kernels._operator import Cost, cpu_fallback, fake, runs_kernel
from zonos2_triton.kernels.decode_attention import LOG2E, QK_EPS, check_attention, outputs


@triton.jit(do_not_specialize=["W"])
def _write_cache_kernel(
    qkvg_ptr,
    cos_sin_ptr,
    k_ptr,
    v_ptr,
    block_table_ptr,
    cache_seqlens_ptr,
    cu_seqlens_ptr,
    W,
    page_size,
    HQ: tl.constexpr,
    HKV: tl.constexpr,
    DH: tl.constexpr,
    PLAIN: tl.constexpr,
    QK_EPS: tl.constexpr,
    BLOCK_Q: tl.constexpr,
):
    """Grid (tiles of rows of the longest sequence, HKV, B): a program owns a tile of one head's keys and values."""
    hk, b = tl.program_id(1), tl.program_id(2).to(tl.int64)
    begin, start = tl.load(cu_seqlens_ptr + b).to(tl.int64), tl.load(cache_seqlens_ptr + b)
    length = tl.load(cu_seqlens_ptr + b + 1) - begin
    WIDTH: tl.constexpr = (HQ + 2 * HKV) * DH + (0 if PLAIN else HQ)
    offs_t = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    offs_d, offs_i = tl.arange(0, DH), tl.arange(0, DH // 2)
    there = offs_t < length
    mask = there[:, None]
    at = start + offs_t
    if not PLAIN:
        angle_at = at.to(tl.int64)[:, None] * DH + offs_i[None, :]
        cos = tl.load(cos_sin_ptr + angle_at, mask=mask, other=0.0)
        sin = tl.load(cos_sin_ptr + angle_at + DH // 2, mask=mask, other=0.0)
    key_at = (begin + offs_t)[:, None] * WIDTH + (HQ + hk) * DH + offs_d[None, :]
    k = tl.load(qkvg_ptr + key_at, mask=mask, other=0.0).to(tl.float32)
    if not PLAIN:
        k = apply_rotary(rms_normalize(k, DH, QK_EPS), cos, sin, BLOCK_Q, DH)
    v = tl.load(qkvg_ptr + key_at + HKV * DH, mask=mask, other=0.0)
    page = tl.load(block_table_ptr + b * W + at // page_size, mask=there, other=0).to(tl.int64)
    place = ((page * page_size + at % page_size) * HKV + hk)[:, None] * DH + offs_d[None, :]
    tl.store(k_ptr + place, round_to(k, k_ptr.dtype.element_ty), mask=mask)
    tl.store(v_ptr + place, v, mask=mask)


@triton.jit(do_not_specialize=["W"])
def _prefill_attention_kernel(
    qkvg_ptr,
    qk_temperature_ptr,
    cos_sin_ptr,
    k_ptr,
    v_ptr,
    block_table_ptr,
    cache_seqlens_ptr,
    cu_seqlens_ptr,
    y_ptr,
    W,
    page_size,
    scale,
    HQ: tl.constexpr,
    HKV: tl.constexpr,
    DH: tl.constexpr,
    PLAIN: tl.constexpr,
    QK_EPS: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """Grid (tiles of rows of the longest sequence, HKV, B): a program owns BLOCK_Q rows of a key/value head's queries.

    A tile's rows are (row of the sequence, query head of the group), BLOCK_M of them. Later tiles, which see more, come
    first.
    """
    hk, b = tl.program_id(1), tl.program_id(2).to(tl.int64)
    begin, start = tl.load(cu_seqlens_ptr + b).to(tl.int64), tl.load(cache_seqlens_ptr + b)
    length = (tl.load(cu_seqlens_ptr + b + 1) - begin).to(tl.int32)
    row = (tl.num_programs(0) - 1 - tl.program_id(0)) * BLOCK_Q
    if row >= length:
        return
    GROUP: tl.constexpr = HQ // HKV
    WIDTH: tl.constexpr = (HQ + 2 * HKV) * DH + (0 if PLAIN else HQ)
    offs_m, offs_s = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_S)
    offs_d, offs_i = tl.arange(0, DH), tl.arange(0, DH // 2)
    offs_t = row + offs_m // GROUP
    heads = hk * GROUP + offs_m % GROUP
    there = (offs_m < BLOCK_Q * GROUP) & (offs_t < length)
    mask = there[:, None]
    at = start + offs_t
    if not PLAIN:
        angle_at = at.to(tl.int64)[:, None] * DH + offs_i[None, :]
        cos = tl.load(cos_sin_ptr + angle_at, mask=mask, other=0.0)
        sin = tl.load(cos_sin_ptr + angle_at + DH // 2, mask=mask, other=0.0)
    row_at = (begin + offs_t) * WIDTH
    q = tl.load(qkvg_ptr + row_at[:, None] + heads[:, None] * DH + offs_d[None, :], mask=mask, other=0.0)
    dtype: tl.constexpr = y_ptr.dtype.element_ty
    if not PLAIN:
        q = q.to(tl.float32)
        temperature = tl.abs(tl.load(qk_temperature_ptr + heads, mask=there, other=0.0).to(tl.float32)) * scale
        q = round_to(
            apply_rotary(rms_normalize(q, DH, QK_EPS) * temperature[:, None], cos, sin, BLOCK_M, DH), dtype
        )  # [BLOCK_M, DH]

    m = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    l = tl.zeros((BLOCK_M,), tl.float32)
    acc = tl.zeros((BLOCK_M, DH), tl.float32)
    end = start + tl.minimum(row + BLOCK_Q, length)  # what the tile's last row sees
    common = (start + row + 1) // BLOCK_S * BLOCK_S  # blocks before it are seen whole, by every row
    pages_ptr = block_table_ptr + b * W
    for first in range(0, common, BLOCK_S):
        s_at = first + offs_s
        page = tl.load(pages_ptr + s_at // page_size).to(tl.int64)
        place = ((page * page_size + s_at % page_size) * HKV + hk) * DH
        k = tl.load(k_ptr + place[None, :] + offs_d[:, None])  # [DH, BLOCK_S]
        s = dot_fp32(q, k, tl.zeros((BLOCK_M, BLOCK_S), tl.float32))
        if PLAIN:
            s = s * scale  # and not q, which would be rounded once more
        highest = tl.maximum(m, tl.max(s, axis=1))
        fade = tl.exp2(m - highest)
        p = round_to(tl.exp2(s - highest[:, None]), dtype)
        l = l * fade + tl.sum(p.to(tl.float32), axis=1)  # of the rounded weights: they sum to one
        v = tl.load(v_ptr + place[:, None] + offs_d[None, :])  # [BLOCK_S, DH]
        acc = dot_fp32(p, v, acc * fade[:, None])
        m = highest
    for first in range(common, end, BLOCK_S):
        s_at = first + offs_s
        written = s_at < end
        page = tl.load(pages_ptr + s_at // page_size, mask=written, other=0).to(tl.int64)
        place = ((page * page_size + s_at % page_size) * HKV + hk) * DH
        k = tl.load(k_ptr + place[None, :] + offs_d[:, None], mask=written[None, :], other=0.0)
        s = dot_fp32(q, k, tl.zeros((BLOCK_M, BLOCK_S), tl.float32))
        if PLAIN:
            s = s * scale
        seen = written[None, :] & (s_at[None, :] <= at[:, None])
        s = tl.where(seen, s, float("-inf"))
        highest = tl.maximum(m, tl.max(s, axis=1))
        fade = tl.exp2(m - highest)
        p = round_to(tl.exp2(s - highest[:, None]), dtype)
        l = l * fade + tl.sum(p.to(tl.float32), axis=1)
        v = tl.load(v_ptr + place[:, None] + offs_d[None, :], mask=written[:, None], other=0.0)
        # A weight of zero times a NaN of a later row would be NaN: such values count as zero, and their rows are noted.
        sound = finite(v)
        unsound = tl.min(sound.to(tl.int32), axis=1) == 0
        acc = dot_fp32(p, tl.where(sound, v, tl.zeros_like(v)), acc * fade[:, None])
        reached = tl.max((seen & unsound[None, :]).to(tl.int32), axis=1) > 0
        acc = tl.where(reached[:, None], float("nan"), acc)
        m = highest
    if not PLAIN:
        gate = tl.load(qkvg_ptr + row_at + (HQ + 2 * HKV) * DH + heads, mask=there, other=0.0).to(tl.float32)
    y = acc / l[:, None]
    if not PLAIN:
        y = y * tl.sigmoid(gate)[:, None]
    y_at = (begin + offs_t)[:, None] * (HQ * DH) + heads[:, None] * DH + offs_d[None, :]
    tl.store(y_ptr + y_at, round_to(y, dtype), mask=mask)


@torch.library.custom_op("zonos2_triton::prefill_attention", mutates_args=("k_cache", "v_cache"))
def prefill_attention(
    qkvg: Tensor,
    qk_temperature: Tensor | None,
    cos_sin_cache: Tensor | None,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    cache_seqlens: Tensor,
    cu_seqlens: Tensor,
    max_seqlen_q: int,
) -> Tensor:
    sizes = check_attention(
        "prefill_attention",
        qkvg,
        qk_temperature,
        cos_sin_cache,
        k_cache,
        v_cache,
        block_table,
        cache_seqlens=Arg(cache_seqlens, "B", torch.int32),
        cu_seqlens=Arg(cu_seqlens, "B+1", torch.int32),
        rows="T",
    )
    T, B, HQ, HKV, DH, W, page_size = (sizes[axis] for axis in ("T", "B", "HQ", "HKV", "DH", "W", "page_size"))
    if not 1 <= max_seqlen_q <= T:
        raise ValueError(
            f"prefill_attention: max_seqlen_q must be in 1..{T}, the rows that there are, got {max_seqlen_q}"
        )
    if may_sync(cache_seqlens):
        _check_sequences(cache_seqlens, cu_seqlens, max_seqlen_q, T, sizes["room"])
    if not runs_kernel(qkvg):
        return cpu_fallback(
            "prefill_attention",
            qkvg,
            qk_temperature,
            cos_sin_cache,
            k_cache,
            v_cache,
            block_table,
            cache_seqlens,
            cu_seqlens,
            max_seqlen_q,
        )
    attend = launch_config("prefill_attention", "attend", qkvg.dtype)
    block_q = attend["BLOCK_M"] // (HQ // HKV)
    if block_q == 0:
        raise ValueError(
            f"prefill_attention: {'qkvg' if qk_temperature is None else 'qk_temperature'} must have at most "
            f"{attend['BLOCK_M']} heads for each of the cache's HKV={HKV}, got {HQ}"
        )
    y, plain = outputs(qkvg, qk_temperature, k_cache), qk_temperature is None
    angles = qkvg if cos_sin_cache is None else cos_sin_cache
    write = launch_config("prefill_attention", "write", qkvg.dtype)
    _write_cache_kernel[(triton.cdiv(max_seqlen_q, write["BLOCK_Q"]), HKV, B)](
        qkvg,
        angles,
        k_cache,
        v_cache,
        block_table,
        cache_seqlens,
        cu_seqlens,
        W,
        page_size,
        HQ=HQ,
        HKV=HKV,
        DH=DH,
        PLAIN=plain,
        QK_EPS=QK_EPS,
        **write,
    )
    _prefill_attention_kernel[(triton.cdiv(max_seqlen_q, block_q), HKV, B)](
        qkvg,
        qkvg if qk_temperature is None else qk_temperature,
        angles,
        k_cache,
        v_cache,
        block_table,
        cache_seqlens,
        cu_seqlens,
        y,
        W,
        page_size,
        DH**-0.5 * LOG2E,
        HQ=HQ,
        HKV=HKV,
        DH=DH,
        PLAIN=plain,
        QK_EPS=QK_EPS,
        BLOCK_Q=block_q,
        **attend,
    )
    return y


def _check_sequences(cache_seqlens: Tensor, cu_seqlens: Tensor, max_seqlen_q: int, T: int, most: int) -> None:
    rows, room = cu_seqlens.diff(), "what the pages and the rotary table hold"
    for name, values, low, high, what in (
        ("rows of a sequence", rows, 1, max_seqlen_q, "max_seqlen_q being the most"),
        ("the first of cu_seqlens", cu_seqlens[:1], 0, 0, "the first row of qkvg"),
        ("the last of cu_seqlens", cu_seqlens[-1:], T, T, "the rows of qkvg"),
        ("cache_seqlens", cache_seqlens, 0, most - 1, room),
        ("cache_seqlens + rows", cache_seqlens + rows, 1, most, room),
    ):
        check_range("prefill_attention", name, values, low, high, what)


@fake(prefill_attention)
def _(
    qkvg: Tensor,
    qk_temperature: Tensor | None,
    cos_sin_cache: Tensor | None,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    cache_seqlens: Tensor,
    cu_seqlens: Tensor,
    max_seqlen_q: int,
) -> Tensor:
    return outputs(qkvg, qk_temperature, k_cache)


def cost(T: int, context: int, B: int, HQ: int, HKV: int, DH: int, itemsize: int, no_preamble: bool = False) -> Cost:
    """B sequences of T / B new rows each, after `context` cached rows each; no_preamble: without qk_temperature."""
    rows = T // B
    seen = rows * context + rows * (rows + 1) // 2  # pairs of query and key in one sequence
    cache = 2 * HKV * DH * B * (context + rows)
    moved = T * ((HQ + 2 * HKV) * DH + (not no_preamble) * HQ + HQ * DH)
    return Cost(bytes=(cache + moved) * itemsize + (not no_preamble) * 4 * T * DH, flops=4 * B * HQ * DH * seen)
