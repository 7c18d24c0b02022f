"""Attention of one new row per sequence over a paged cache: y[b, h] = sigmoid(gate[b, h]) * softmax(q k / sqrt(DH)) v.

Shapes     qkvg [B, (HQ + 2 * HKV) * DH + HQ] as `qkv_projection` makes it; qk_temperature [HQ]; cos_sin_cache
           [P, 2, DH / 2]; k_cache, v_cache [pages, page_size, HKV, DH]; block_table [B, W]: position p of sequence b
           lies in page block_table[b, p // page_size]; positions [B], negative: the row is idle; y [B, HQ * DH]. B <=
           256. Pass qk_temperature and cos_sin_cache together, or neither. With neither, qkvg [B, (HQ + 2 * HKV) * DH]
           holds queries, keys and values, and y = softmax(q k / sqrt(DH)) v: no norm, rotary or gate.
Dtypes     qkvg, qk_temperature, caches and y one of fp32, fp16, bf16; cos_sin_cache fp32; block_table, positions,
           counters int32. fp32 inside; keys are rounded as the cache holds them, queries and softmax weights to the
           same dtype; y once.
Raises     ValueError, TypeError naming operation, argument, what came and what is accepted; a position beyond the pages
           or the cos_sin_cache, a page out of range where looking costs nothing (CPU tensors, TRITON_DEBUG=1).
Reference  zonos2_triton.reference.attention.decode_attention
Source     Dao et al. 2022, arXiv:2205.14135; splits of the cache as in Flash-Decoding (T. Dao, D. Haziza, F. Massa,
           G. Sizov 2023). Norms, temperature, gate: Zyphra/ZONOS2, models/zonos2.py, Attention.

q and k are normed per head, q is scaled by |qk_temperature|, both are rotated; k and v are written to the
cache; all in the one launch. The cache is cut into splits of a fixed number of positions, each a program's; the last of
a sequence's programs to be done joins them, in order. So a result depends on its own sequence only, bit for bit. An
idle row's result is zeros, and its pages are not touched.

counters   [B * HKV] or more, zero before and after; None: made by the call, which is a launch more.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from zonos2_triton.kernels._args import Arg, check, check_batch, check_range, check_rows
from zonos2_triton.kernels._launch_config import launch_config
from zonos2_triton.kernels._math import apply_rotary, dot_fp32, last_to_arrive, rms_normalize, round_to
from zonos2_triton.kernels._operator import Cost, cpu_fallback, fake, runs_kernel, zeroed_counters
from zonos2_triton.kernels.rotary import check_head_dim

QK_EPS = 1e-6  # of the head norms
JOIN = 4  # splits that are joined at a time
LOG2E = 1.4426950408889634


@triton.jit(do_not_specialize=["W"])
def _decode_attention_kernel(
    qkvg_ptr,
    qk_temperature_ptr,
    cos_sin_ptr,
    k_ptr,
    v_ptr,
    block_table_ptr,
    positions_ptr,
    y_ptr,
    sums_ptr,
    stats_ptr,
    counters_ptr,
    W,
    page_size,
    scale,
    HQ: tl.constexpr,
    HKV: tl.constexpr,
    DH: tl.constexpr,
    ROWS: tl.constexpr,
    PLAIN: tl.constexpr,
    QK_EPS: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_S: tl.constexpr,
    JOIN: tl.constexpr,
):
    """Grid (splits that the pages could hold, HKV, B): a program owns a split of one key/value head's cache.

    sums [B, HKV, splits, GROUP, DH] and stats [B, HKV, splits, 2, GROUP] hold each split's unnormalised sum, its
    maximum and its sum of weights until the last program joins them. Programs beyond the sequence's end leave at once.
    ROWS is GROUP, the query heads of a key/value head, as an axis of a tile. PLAIN: without qk_temperature.
    """
    split, hk, b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    position = tl.load(positions_ptr + b)
    first = split * SPLIT
    GROUP: tl.constexpr = HQ // HKV
    WIDTH: tl.constexpr = (HQ + 2 * HKV) * DH + (0 if PLAIN else HQ)
    offs_g, offs_d, offs_i = tl.arange(0, ROWS), tl.arange(0, DH), tl.arange(0, DH // 2)
    offs_s = tl.arange(0, BLOCK_S)
    mask_g = offs_g < GROUP
    heads = hk * GROUP + offs_g
    dtype: tl.constexpr = y_ptr.dtype.element_ty
    if first > position:
        if split == 0:  # the row is idle
            idle_at = b * (HQ * DH) + heads[:, None] * DH + offs_d[None, :]
            tl.store(y_ptr + idle_at, tl.zeros((ROWS, DH), dtype), mask=mask_g[:, None])
        return
    if not PLAIN:
        angle_ptr = cos_sin_ptr + position.to(tl.int64) * DH
        cos = tl.load(angle_ptr + offs_i)[None, :]
        sin = tl.load(angle_ptr + DH // 2 + offs_i)[None, :]
    row_ptr = qkvg_ptr + b * WIDTH
    q = tl.load(row_ptr + heads[:, None] * DH + offs_d[None, :], mask=mask_g[:, None], other=0.0)  # [ROWS, DH]
    if not PLAIN:
        q = q.to(tl.float32)
        temperature = tl.abs(tl.load(qk_temperature_ptr + heads, mask=mask_g, other=0.0).to(tl.float32)) * scale
        q = round_to(apply_rotary(rms_normalize(q, DH, QK_EPS) * temperature[:, None], cos, sin, ROWS, DH), dtype)

    m = tl.full((ROWS,), float("-inf"), tl.float32)
    l = tl.zeros((ROWS,), tl.float32)
    acc = tl.zeros((ROWS, DH), tl.float32)
    end = tl.minimum(first + SPLIT, position)  # the new row is not in the cache yet
    for start in range(first, end, BLOCK_S):
        at = start + offs_s
        seen = at < end
        page = tl.load(block_table_ptr + b * W + at // page_size, mask=seen, other=0).to(tl.int64)
        place = ((page * page_size + at % page_size) * HKV + hk) * DH
        k = tl.load(k_ptr + place[None, :] + offs_d[:, None], mask=seen[None, :], other=0.0)  # [DH, BLOCK_S]
        s = dot_fp32(q, k, tl.zeros((ROWS, BLOCK_S), tl.float32))
        if PLAIN:
            s = s * scale  # and not q, which would be rounded once more
        s = tl.where(seen[None, :], s, float("-inf"))
        highest = tl.maximum(m, tl.max(s, axis=1))
        fade = tl.exp2(m - highest)
        p = round_to(tl.exp2(s - highest[:, None]), dtype)
        l = l * fade + tl.sum(p.to(tl.float32), axis=1)  # of the rounded weights: they sum to one
        v = tl.load(v_ptr + place[:, None] + offs_d[None, :], mask=seen[:, None], other=0.0)  # [BLOCK_S, DH]
        acc = dot_fp32(p, v, acc * fade[:, None])
        m = highest

    if position < first + SPLIT:  # this split owns the new row
        offs_one = tl.arange(0, 1)
        key_ptr = row_ptr + (HQ + hk) * DH + offs_one[:, None] + offs_d[None, :]
        k_new = tl.load(key_ptr)  # [1, DH]
        if not PLAIN:
            k_new = round_to(apply_rotary(rms_normalize(k_new.to(tl.float32), DH, QK_EPS), cos, sin, 1, DH), dtype)
        v_new = tl.load(key_ptr + HKV * DH)
        page = tl.load(block_table_ptr + b * W + position // page_size).to(tl.int64)
        place = ((page * page_size + position % page_size) * HKV + hk) * DH + offs_one[:, None] + offs_d[None, :]
        tl.store(k_ptr + place, k_new)
        tl.store(v_ptr + place, v_new)
        s_new = tl.sum(q.to(tl.float32) * k_new.to(tl.float32), axis=1)
        if PLAIN:
            s_new = s_new * scale
        highest = tl.maximum(m, s_new)
        fade = tl.exp2(m - highest)
        p_new = round_to(tl.exp2(s_new - highest), dtype).to(tl.float32)
        l = l * fade + p_new
        acc = acc * fade[:, None] + p_new[:, None] * v_new.to(tl.float32)
        m = highest

    if not PLAIN:
        gate = tl.load(row_ptr + (HQ + 2 * HKV) * DH + heads, mask=mask_g, other=0.0).to(tl.float32)
    y_at = b * (HQ * DH) + heads[:, None] * DH + offs_d[None, :]
    splits = position // SPLIT + 1
    if splits == 1:
        y = acc / l[:, None]
        if not PLAIN:
            y = y * tl.sigmoid(gate)[:, None]
        tl.store(y_ptr + y_at, round_to(y, dtype), mask=mask_g[:, None])
        return
    bh = b * HKV + hk
    slot = bh * tl.num_programs(0)
    tl.store(sums_ptr + ((slot + split) * GROUP + offs_g[:, None]) * DH + offs_d[None, :], acc, mask=mask_g[:, None])
    tl.store(stats_ptr + (slot + split) * (2 * GROUP) + offs_g, m, mask=mask_g)
    tl.store(stats_ptr + (slot + split) * (2 * GROUP) + GROUP + offs_g, l, mask=mask_g)
    if last_to_arrive(counters_ptr + bh, splits):
        offs_j = tl.arange(0, JOIN)
        stored = tl.minimum(offs_g, GROUP - 1)  # rows beyond the group repeat its last head: they are numbers too
        m = tl.full((ROWS,), float("-inf"), tl.float32)
        l = tl.zeros((ROWS,), tl.float32)
        acc = tl.zeros((ROWS, DH), tl.float32)
        for start in range(0, splits, JOIN):
            part = start + offs_j
            there = part < splits
            stat_at = (slot + part)[:, None] * (2 * GROUP) + stored[None, :]  # [JOIN, ROWS]
            m_part = tl.load(stats_ptr + stat_at, mask=there[:, None], other=float("-inf"))
            l_part = tl.load(stats_ptr + stat_at + GROUP, mask=there[:, None], other=0.0)
            sum_at = ((slot + part)[:, None, None] * GROUP + stored[None, :, None]) * DH + offs_d[None, None, :]
            sums = tl.load(sums_ptr + sum_at, mask=there[:, None, None], other=0.0)  # [JOIN, ROWS, DH]
            highest = tl.maximum(m, tl.max(m_part, axis=0))
            fade = tl.exp2(m - highest)
            weight = tl.exp2(m_part - highest[None, :])
            l = l * fade + tl.sum(l_part * weight, axis=0)
            acc = acc * fade[:, None] + tl.sum(sums * weight[:, :, None], axis=0)
            m = highest
        y = acc / l[:, None]
        if not PLAIN:
            y = y * tl.sigmoid(gate)[:, None]
        tl.store(y_ptr + y_at, round_to(y, dtype), mask=mask_g[:, None])


@torch.library.custom_op("zonos2_triton::decode_attention", mutates_args=("k_cache", "v_cache", "counters"))
def decode_attention(
    qkvg: Tensor,
    qk_temperature: Tensor | None,
    cos_sin_cache: Tensor | None,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    positions: Tensor,
    counters: Tensor | None = None,
) -> Tensor:
    sizes = check_attention(
        "decode_attention",
        qkvg,
        qk_temperature,
        cos_sin_cache,
        k_cache,
        v_cache,
        block_table,
        rows="B",
        positions=Arg(positions, "B", torch.int32),
    )
    B, HQ, HKV, DH, W, page_size = (sizes[axis] for axis in ("B", "HQ", "HKV", "DH", "W", "page_size"))
    check_batch("decode_attention", B, instead="prefill_attention")
    what = "what the pages and the rotary table hold, or negative: idle"
    check_range("decode_attention", "positions", positions, -(2**31), sizes["room"] - 1, what)
    count = zeroed_counters(qkvg, B * HKV, counters, "decode_attention")
    if not runs_kernel(qkvg):
        return cpu_fallback(
            "decode_attention", qkvg, qk_temperature, cos_sin_cache, k_cache, v_cache, block_table, positions
        )
    launch = launch_config("decode_attention", "split", qkvg.dtype)
    splits, rows = triton.cdiv(W * page_size, launch["SPLIT"]), max(16, triton.next_power_of_2(HQ // HKV))
    y = qkvg.new_empty(B, HQ * DH)
    sums = qkvg.new_empty((B, HKV, splits, HQ // HKV, DH), dtype=torch.float32)
    stats = qkvg.new_empty((B, HKV, splits, 2, HQ // HKV), dtype=torch.float32)
    _decode_attention_kernel[(splits, HKV, B)](
        qkvg,
        qkvg if qk_temperature is None else qk_temperature,
        qkvg if cos_sin_cache is None else cos_sin_cache,
        k_cache,
        v_cache,
        block_table,
        positions,
        y,
        sums,
        stats,
        count,
        W,
        page_size,
        DH**-0.5 * LOG2E,
        HQ=HQ,
        HKV=HKV,
        DH=DH,
        ROWS=rows,
        PLAIN=qk_temperature is None,
        QK_EPS=QK_EPS,
        JOIN=JOIN,
        **launch,
    )
    return y


@fake(decode_attention)
def _(
    qkvg: Tensor,
    qk_temperature: Tensor | None,
    cos_sin_cache: Tensor | None,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    positions: Tensor,
    counters: Tensor | None = None,
) -> Tensor:
    return outputs(qkvg, qk_temperature, k_cache)


def outputs(qkvg: Tensor, qk_temperature: Tensor | None, k_cache: Tensor) -> Tensor:
    """Room for the result of either attention."""
    rows, width = qkvg.shape
    kv_heads, head_dim = k_cache.shape[2:]
    return qkvg.new_empty(
        rows, width - 2 * kv_heads * head_dim if qk_temperature is None else qk_temperature.shape[0] * head_dim
    )


def check_attention(
    op: str,
    qkvg: Tensor,
    qk_temperature: Tensor | None,
    cos_sin_cache: Tensor | None,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    rows: str,
    **more: Arg,
) -> dict[str, int]:
    """`check` of what both attentions take; the sizes with HQ, and room: how many positions there are."""
    sizes = check(
        op,
        qkvg=Arg(qkvg, f"{rows} width"),
        qk_temperature=Arg(qk_temperature, "HQ"),
        k_cache=Arg(k_cache, "pages page_size HKV DH"),
        v_cache=Arg(v_cache, "pages page_size HKV DH"),
        cos_sin_cache=Arg(cos_sin_cache, "P 2 DH/2", torch.float32),
        block_table=Arg(block_table, "B W", torch.int32),
        **more,
    )
    HKV, DH, width = sizes["HKV"], sizes["DH"], sizes["width"]
    check_head_dim(op, DH)
    check_rows(op, qkvg.dtype, DH=DH)
    if (qk_temperature is None) != (cos_sin_cache is None):
        raise ValueError(f"{op}: qk_temperature and cos_sin_cache must be given together, or neither")
    HQ = sizes["HQ"] if qk_temperature is not None else width // DH - 2 * HKV
    if qk_temperature is None and (HQ < 1 or HQ % HKV or width % DH):
        raise ValueError(
            f"{op}: qkvg must have (HQ + 2 * HKV) * DH columns without qk_temperature and cos_sin_cache, HQ a "
            f"multiple of the cache's HKV={HKV} heads of DH={DH}, got {width}"
        )
    if HQ % HKV:
        raise ValueError(f"{op}: qk_temperature must have a multiple of the cache's HKV={HKV} heads, got {HQ}")
    if qk_temperature is not None and width != (HQ + 2 * HKV) * DH + HQ:
        raise ValueError(
            f"{op}: qkvg must have (HQ + 2 * HKV) * DH + HQ = {(HQ + 2 * HKV) * DH + HQ} columns, got {width}"
        )
    check_range(op, "block_table", block_table, 0, sizes["pages"] - 1, "the cache's pages")
    room = sizes["W"] * sizes["page_size"]
    return {**sizes, "HQ": HQ, "room": min(room, sizes.get("P", room))}


def cost(B: int, context: int, HQ: int, HKV: int, DH: int, itemsize: int, no_preamble: bool = False) -> Cost:
    """context: positions in the cache before the new one, of each sequence; no_preamble: without qk_temperature."""
    cache = 2 * B * HKV * DH * (context + 1)
    rows = B * ((HQ + 2 * HKV) * DH + (not no_preamble) * HQ + HQ * DH)
    angles = (not no_preamble) * 4 * B * DH
    return Cost(bytes=(cache + rows) * itemsize + angles, flops=4 * B * HQ * DH * (context + 1))
