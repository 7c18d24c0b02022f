"""Attention of one new token per sequence over a paged cache: y[b] = sigmoid(gate) * softmax(q k / sqrt(DH)) v.

Shapes     qkvg [B, (HQ + 2 * HKV) * DH + HQ] as `qkv_projection` makes it; qk_temperature [HQ]; cos_sin_cache
           [P, 2, DH / 2]; k_cache, v_cache [pages, page_size, HKV, DH]; block_table [B, W]; positions [B];
           y [B, HQ * DH]. B <= 256. Pass qk_temperature and cos_sin_cache together, or neither. With neither, qkvg
           [B, (HQ + 2 * HKV) * DH] holds queries, keys and values: no QK norm, no rotary, no gate.
Dtypes     qkvg, qk_temperature, caches and y one of fp32, fp16, bf16; cos_sin_cache fp32; block_table, positions,
           counters int32. fp32 inside. Queries, keys and softmax weights are rounded to the cache's dtype, y once.
Raises     ValueError, TypeError naming operation, argument, what came and what is accepted; a position beyond the pages
           or the cos_sin_cache, a page out of range where looking costs nothing (CPU tensors, TRITON_DEBUG=1).
Reference  zonos2_triton.reference.decode_attention.decode_attention
Source     Dao et al. 2022, arXiv:2205.14135; splits of the cache as in Flash-Decoding (T. Dao, D. Haziza, F. Massa,
           G. Sizov 2023). Norms, temperature, gate: Zyphra/ZONOS2, models/zonos2.py, Attention.

One launch norms and rotates q and k, scales q, writes k and v to the cache, attends and gates. A program owns one split
of one key/value head of one sequence, for all query heads that share it (GQA). Each prepares its own q; the split that
holds the new position writes k and v.

block_table  block_table[b, p // page_size] is the page that holds position p of sequence b, at p % page_size.
positions    positions[b] is the position of b's new token: the cache holds that many tokens before it. Negative: the
             slot is idle. Its y is zeros, and its pages are not touched.

Example: page_size = 4, block_table[b] = [7, 2, 5, 0], positions[b] = 9. The new key goes to k_cache[5, 1], because
block_table[b, 9 // 4] = 5 and 9 % 4 = 1. With KV_PER_SPLIT = 4 the programs of (b, one key/value head) do this:

    split     0              1              2              3
    reads     0 1 2 3        4 5 6 7        8              returns: its first position is beyond 9
    new                                     9: writes and attends to it
    partial   acc, m, l      acc, m, l      acc, m, l
              the last of the three to arrive merges them in the order 0, 1, 2 and stores y

Splits have a fixed number of positions, whatever the batch, and are merged in order. So a result depends on its own
sequence alone, bit for bit. A sequence that fits split 0 stores y without a merge.

counters   [B * HKV] or more: how many splits of a head have arrived. Zero before and after, so calls can share them.
           None: allocated by the call, at the cost of one launch.
"""

from collections.abc import Iterator
from typing import Annotated

import torch
import triton
import triton.language as tl
from torch import Tensor

from zonos2_triton.kernels._args import check_batch, check_range
from zonos2_triton.kernels._attention import (
    LOG2E,
    check_attention,
    kv_offsets,
    load_cos_sin,
    online_softmax,
    prepare_query,
    scores,
    store_output,
    write_new_kv,
)
from zonos2_triton.kernels._launch_config import launch_config
from zonos2_triton.kernels._math import dot_fp32, last_to_arrive
from zonos2_triton.kernels._operator import Cost, operator, zeroed_counters

BLOCK_SPLITS = 4  # splits that are merged at a time


@triton.jit(do_not_specialize=["W"])
def _decode_attention_kernel(
    qkvg_ptr,  # [B, (HQ + 2 * HKV) * DH + HQ]: queries, keys, values, gates; without qk_temperature_ptr no gates
    qk_temperature_ptr,  # [HQ], or None: no QK norm, no rotary, no gate
    cos_sin_ptr,  # [P, 2, DH / 2] fp32, or None with qk_temperature
    k_ptr,  # [pages, page_size, HKV, DH]
    v_ptr,  # [pages, page_size, HKV, DH]
    block_table_ptr,  # [B, W] int32
    positions_ptr,  # [B] int32
    y_ptr,  # [B, HQ * DH]
    partial_acc_ptr,  # [B, HKV, splits of the grid, GROUP, DH] fp32: each split's sum of weighted values
    partial_ml_ptr,  # [B, HKV, splits of the grid, 2, GROUP] fp32: each split's maximum and sum of weights
    counters_ptr,  # [B * HKV] int32
    W,
    page_size,
    scale,
    HQ: tl.constexpr,
    HKV: tl.constexpr,
    DH: tl.constexpr,
    BLOCK_G: tl.constexpr,  # GROUP, the query heads of a key/value head, as an axis of a tile
    QK_EPS: tl.constexpr,
    KV_PER_SPLIT: tl.constexpr,
    BLOCK_KV: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr,
):
    """Grid (cdiv(W * page_size, KV_PER_SPLIT), HKV, B): a program owns one split of one key/value head of a sequence.

    Splits beyond the sequence's position return at once.
    """
    split, hk, b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    position = tl.load(positions_ptr + b)
    begin = split * KV_PER_SPLIT
    GROUP: tl.constexpr = HQ // HKV
    FUSED_PREAMBLE: tl.constexpr = qk_temperature_ptr is not None
    WIDTH: tl.constexpr = (HQ + 2 * HKV) * DH + (HQ if FUSED_PREAMBLE else 0)
    offs_g, offs_d = tl.arange(0, BLOCK_G), tl.arange(0, DH)
    mask_g = offs_g < GROUP
    heads = hk * GROUP + offs_g
    offs_head = heads[:, None] * DH + offs_d[None, :]  # [BLOCK_G, DH]
    dtype: tl.constexpr = y_ptr.dtype.element_ty
    if begin > position:
        if split == 0:  # the slot is idle
            tl.store(y_ptr + b * (HQ * DH) + offs_head, tl.zeros((BLOCK_G, DH), dtype), mask=mask_g[:, None])
        return
    token_ptr = qkvg_ptr + b * WIDTH
    pages_ptr = block_table_ptr + b * W
    q = tl.load(token_ptr + offs_head, mask=mask_g[:, None], other=0.0)
    one = tl.arange(0, 1)  # the new token as an axis of length 1
    always = tl.full((1, 1), True, tl.int1)
    cos = None
    sin = None
    gate = None
    if FUSED_PREAMBLE:
        cos, sin = load_cos_sin(cos_sin_ptr, position + one, always, DH)
        q = prepare_query(q, qk_temperature_ptr + heads, mask_g, cos, sin, scale, QK_EPS)
        scale = None  # it is in q
    end = tl.minimum(begin + KV_PER_SPLIT, position)  # the new token is not in the cache yet
    m, l, acc = _attend_cached(q, k_ptr, v_ptr, pages_ptr, begin, end, page_size, hk, scale, HKV, BLOCK_KV)
    if position < begin + KV_PER_SPLIT:  # this split owns the new token
        offs_new = kv_offsets(pages_ptr, position + one, one == 0, page_size, hk, HKV, DH)[:, None] + offs_d[None, :]
        key_ptrs = token_ptr + (HQ + hk) * DH + one[:, None] + offs_d[None, :]
        k, v = write_new_kv(key_ptrs, key_ptrs + HKV * DH, always, k_ptr + offs_new, v_ptr + offs_new, cos, sin, QK_EPS)
        qk = tl.sum(q.to(tl.float32) * k.to(tl.float32), axis=1)
        if scale is not None:
            qk = qk * scale
        m, l, alpha, p = online_softmax(qk[:, None], m, l, dtype)
        acc = acc * alpha[:, None] + p.to(tl.float32) * v.to(tl.float32)

    if FUSED_PREAMBLE:
        gate = tl.load(token_ptr + (HQ + 2 * HKV) * DH + heads, mask=mask_g, other=0.0).to(tl.float32)
    y_ptrs = y_ptr + b * (HQ * DH) + offs_head  # computed here: before the loop they would hold registers across it
    splits = position // KV_PER_SPLIT + 1  # of this sequence, at most those of the grid
    if splits == 1:
        store_output(y_ptrs, acc, l, gate, mask_g[:, None])
        return
    bh = b * HKV + hk
    first = bh * tl.num_programs(0)  # split 0 of this head in partial_acc and partial_ml
    ml_ptrs = partial_ml_ptr + (first + split) * (2 * GROUP) + offs_g
    acc_ptrs = partial_acc_ptr + ((first + split) * GROUP + offs_g[:, None]) * DH + offs_d[None, :]
    tl.store(acc_ptrs, acc, mask=mask_g[:, None])
    tl.store(ml_ptrs, m, mask=mask_g)
    tl.store(ml_ptrs + GROUP, l, mask=mask_g)
    if last_to_arrive(counters_ptr + bh, splits):
        l, acc = _merge_splits(partial_acc_ptr, partial_ml_ptr, first, splits, GROUP, DH, BLOCK_G, BLOCK_SPLITS)
        store_output(y_ptrs, acc, l, gate, mask_g[:, None])


@triton.jit
def _attend_cached(
    q,  # [BLOCK_G, DH]
    k_ptr,  # [pages, page_size, HKV, DH]
    v_ptr,  # [pages, page_size, HKV, DH]
    pages_ptr,  # [W] int32: the sequence's block table
    begin,
    end,
    page_size,
    hk,
    scale,  # None: it is in q
    HKV: tl.constexpr,
    BLOCK_KV: tl.constexpr,
):
    """Attention to cached positions begin .. end - 1: maximum m, sum of weights l [BLOCK_G], acc [BLOCK_G, DH]."""
    BLOCK_G: tl.constexpr = q.shape[0]
    DH: tl.constexpr = q.shape[1]
    offs_d = tl.arange(0, DH)
    m = tl.full((BLOCK_G,), float("-inf"), tl.float32)
    l = tl.zeros((BLOCK_G,), tl.float32)
    acc = tl.zeros((BLOCK_G, DH), tl.float32)
    for start in range(begin, end, BLOCK_KV):
        offs_kv = start + tl.arange(0, BLOCK_KV)
        mask_kv = offs_kv < end
        kv_offs = kv_offsets(pages_ptr, offs_kv, mask_kv, page_size, hk, HKV, DH)
        k = tl.load(k_ptr + kv_offs[None, :] + offs_d[:, None], mask=mask_kv[None, :], other=0.0)  # [DH, BLOCK_KV]
        qk = scores(q, k, scale)
        qk = tl.where(mask_kv[None, :], qk, float("-inf"))
        m, l, alpha, p = online_softmax(qk, m, l, q.dtype)
        v = tl.load(v_ptr + kv_offs[:, None] + offs_d[None, :], mask=mask_kv[:, None], other=0.0)  # [BLOCK_KV, DH]
        acc = dot_fp32(p, v, acc * alpha[:, None])
    return m, l, acc


@triton.jit
def _merge_splits(
    partial_acc_ptr,  # [B, HKV, splits of the grid, GROUP, DH]
    partial_ml_ptr,  # [B, HKV, splits of the grid, 2, GROUP]
    first,
    splits,
    GROUP: tl.constexpr,
    DH: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr,
):
    """l [BLOCK_G] and acc [BLOCK_G, DH] of a head, merged over its splits: rows first .. first + splits - 1."""
    offs_d = tl.arange(0, DH)
    stored = tl.minimum(tl.arange(0, BLOCK_G), GROUP - 1)  # padding rows load the last head: they stay finite
    m = tl.full((BLOCK_G,), float("-inf"), tl.float32)
    l = tl.zeros((BLOCK_G,), tl.float32)
    acc = tl.zeros((BLOCK_G, DH), tl.float32)
    for start in range(0, splits, BLOCK_SPLITS):
        offs_split = start + tl.arange(0, BLOCK_SPLITS)
        mask_split = offs_split < splits
        ml_ptrs = partial_ml_ptr + (first + offs_split)[:, None] * (2 * GROUP) + stored[None, :]
        m_part = tl.load(ml_ptrs, mask=mask_split[:, None], other=float("-inf"))  # [BLOCK_SPLITS, BLOCK_G]
        l_part = tl.load(ml_ptrs + GROUP, mask=mask_split[:, None], other=0.0)
        offs_acc = ((first + offs_split)[:, None, None] * GROUP + stored[None, :, None]) * DH + offs_d[None, None, :]
        acc_part = tl.load(partial_acc_ptr + offs_acc, mask=mask_split[:, None, None], other=0.0)
        m_new = tl.maximum(m, tl.max(m_part, axis=0))
        alpha = tl.exp2(m - m_new)
        weight = tl.exp2(m_part - m_new[None, :])
        l = l * alpha + tl.sum(l_part * weight, axis=0)
        acc = acc * alpha[:, None] + tl.sum(acc_part * weight[:, :, None], axis=0)
        m = m_new
    return l, acc


@operator(mutates_args=("k_cache", "v_cache", "counters"))
def decode_attention(
    qkvg: Annotated[Tensor, "B width"],
    qk_temperature: Annotated[Tensor | None, "HQ"],
    cos_sin_cache: Annotated[Tensor | None, "P 2 DH/2", torch.float32],
    k_cache: Annotated[Tensor, "pages page_size HKV DH"],
    v_cache: Annotated[Tensor, "pages page_size HKV DH"],
    block_table: Annotated[Tensor, "B W", torch.int32],
    positions: Annotated[Tensor, "B", torch.int32],
    counters: Tensor | None = None,
) -> Iterator[Tensor]:
    op, B, (_, page_size, HKV, DH), W = "decode_attention", qkvg.shape[0], k_cache.shape, block_table.shape[1]
    HQ, capacity, shared = check_attention(op, qkvg, qk_temperature, cos_sin_cache, k_cache, v_cache, block_table)
    check_batch(op, B, instead="prefill_attention")
    held = "what the pages and the rotary table hold, or negative: idle"
    check_range(op, "positions", positions, -(2**31), capacity - 1, held)
    counters = zeroed_counters(qkvg, B * HKV, counters, op)
    y = qkvg.new_empty(B, HQ * DH)
    yield y
    launch = launch_config(op, "split", qkvg.dtype)
    GROUP, splits = HQ // HKV, triton.cdiv(W * page_size, launch["KV_PER_SPLIT"])
    _decode_attention_kernel[(splits, HKV, B)](
        qk_temperature_ptr=qk_temperature,
        positions_ptr=positions,
        y_ptr=y,
        partial_acc_ptr=qkvg.new_empty((B, HKV, splits, GROUP, DH), dtype=torch.float32),
        partial_ml_ptr=qkvg.new_empty((B, HKV, splits, 2, GROUP), dtype=torch.float32),
        counters_ptr=counters,
        scale=DH**-0.5 * LOG2E,
        BLOCK_G=max(16, triton.next_power_of_2(GROUP)),
        BLOCK_SPLITS=BLOCK_SPLITS,
        **shared,
        **launch,
    )


def cost(B: int, context: int, HQ: int, HKV: int, DH: int, itemsize: int, no_preamble: bool = False) -> Cost:
    """context: tokens in the cache before the new one, of each sequence; no_preamble: without qk_temperature."""
    cache = 2 * B * HKV * DH * (context + 1)
    new = B * ((HQ + 2 * HKV) * DH + (not no_preamble) * HQ + HQ * DH)
    angles = (not no_preamble) * 4 * B * DH
    return Cost(bytes=(cache + new) * itemsize + angles, flops=4 * B * HQ * DH * (context + 1))
