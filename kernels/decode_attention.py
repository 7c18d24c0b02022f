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

One launch norms and rotates q and k, scales q, writes k and v to the cache, attends and gates. The cached positions of
a sequence are cut into blocks of BLOCK_KV. Block i belongs to split i % SPLITS. A program owns one or several splits of
one key/value head of one sequence, for all query heads that share it (GQA). There are so many programs that they fill
the GPU, whatever the positions.

block_table  block_table[b, p // page_size] is the page that holds position p of sequence b, at p % page_size.
positions    positions[b] is the position of b's new token: the cache holds that many tokens before it. Negative: the
             slot is idle. Its y is zeros, and its pages are not touched.

Example: page_size = 4, block_table[b] = [7, 2, 5, 0], positions[b] = 9. The new key goes to k_cache[5, 1], because
block_table[b, 9 // 4] = 5 and 9 % 4 = 1. With BLOCK_KV = 2, SPLITS = 4 and two programs for a head, these do:

    program   0                  1               0               1
    split     0                  1               2               3
    begins    the new token, 9   empty           empty           empty
    blocks    0 1, 8             2 3             4 5             6 7
    partial   acc, m, l          acc, m, l       acc, m, l       acc, m, l
              the last of the two to arrive merges the splits in the order 0, 1, 2, 3 and stores y

As a dependent launch it looks up position, pages and angles before its wait, where the caller's loop promises that
they are settled (`_dependent_launch`), and asks for its first keys and values in L2.

Splits follow from the position alone, whatever the batch and its number of programs, and are merged in order. So a
result depends on its own sequence alone, bit for bit. Every maximum begins with the score of the new token: no weight
is NaN because a block has no position in it.

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
    block_offsets,
    check_attention,
    kv_offsets,
    load_cos_sin,
    load_pages,
    online_softmax,
    prepare_key,
    prepare_query,
    scores,
    store_output,
    whole_blocks,
)
from zonos2_triton.kernels._dependent_launch import begin_early_loads, end_early_loads, prefetch_l2
from zonos2_triton.kernels._launch_config import launch_config
from zonos2_triton.kernels._math import dot_fp32, last_to_arrive
from zonos2_triton.kernels._operator import Cost, operator, zeroed_counters


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
    partial_acc_ptr,  # [B, HKV, SPLITS, GROUP, DH] fp32: each split's sum of weighted values
    partial_ml_ptr,  # [B, HKV, 2, GROUP, SPLITS] fp32: each split's maximum and sum of weights
    counters_ptr,  # [B * HKV] int32
    W,
    page_size,
    page_blocks,  # blocks of BLOCK_KV positions in a page, or None: not a whole number
    scale,
    HQ: tl.constexpr,
    HKV: tl.constexpr,
    DH: tl.constexpr,
    BLOCK_G: tl.constexpr,  # GROUP, the query heads of a key/value head, as an axis of a tile
    BLOCK_H: tl.constexpr,  # those that are merged at a time
    QK_EPS: tl.constexpr,
    BLOCK_KV: tl.constexpr,
    SPLITS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid (programs, HKV, B), programs a divisor of SPLITS: each owns every programs-th split of a key/value head."""
    program, hk, b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    programs = tl.num_programs(0)
    GROUP: tl.constexpr = HQ // HKV
    FUSED_PREAMBLE: tl.constexpr = qk_temperature_ptr is not None
    WIDTH: tl.constexpr = (HQ + 2 * HKV) * DH + (HQ if FUSED_PREAMBLE else 0)
    token_ptr, pages_ptr = qkvg_ptr + b * WIDTH, block_table_ptr + b * W
    offs_g, offs_d = tl.arange(0, BLOCK_G), tl.arange(0, DH)
    mask_g = offs_g < GROUP
    heads = hk * GROUP + offs_g
    begin_early_loads(PDL, "qk_temperature_ptr cos_sin_ptr block_table_ptr positions_ptr")
    position = tl.load(positions_ptr + b, cache_modifier=".cg")
    pages = load_pages(pages_ptr, program, W, page_size, page_blocks, BLOCK_KV)
    temperature = None
    cos = None
    sin = None
    new = tl.maximum(position, 0) + tl.arange(0, 1)
    if FUSED_PREAMBLE:
        temperature = tl.load(qk_temperature_ptr + heads, mask=mask_g, other=0.0)
        cos, sin = load_cos_sin(cos_sin_ptr, new, tl.full((1, 1), True, tl.int1), DH)
    offs_new = kv_offsets(pages_ptr, new, new >= 0, page_size, hk, HKV, DH)[:, None] + offs_d[None, :]
    blocks = tl.maximum(tl.cdiv(position, BLOCK_KV), 1)  # of cached positions; at position 0 one that is masked out
    second, _, _ = _next_block(program, blocks, programs, SPLITS)
    second_pages = load_pages(pages_ptr, tl.minimum(second, blocks - 1), W, page_size, page_blocks, BLOCK_KV)
    if PDL == "early" and page_blocks is not None:
        # Its positions lie together, with all heads: each head's program asks for as much as it will read.
        first = pages.to(tl.int64) * page_size + program % page_blocks * BLOCK_KV
        count = tl.where(program * BLOCK_KV < position, BLOCK_KV * DH, 0)
        prefetch_l2(k_ptr + (first * HKV + hk * BLOCK_KV) * DH, count, PDL)
        prefetch_l2(v_ptr + (first * HKV + hk * BLOCK_KV) * DH, count, PDL)
    end_early_loads(PDL)
    # After the wait, one round trip: these, and the first keys and values, whose addresses are known.
    offs_head = heads[:, None] * DH + offs_d[None, :]  # [BLOCK_G, DH]
    q = tl.load(token_ptr + offs_head, mask=mask_g[:, None], other=0.0)
    offs_0 = (offs_g * 0)[:, None]
    new_ptrs = token_ptr + (HQ + hk) * DH + offs_0 + offs_d[None, :]
    k_new = tl.load(new_ptrs)  # in every row, so that each warp has what its queries need
    v_new = tl.load(new_ptrs + HKV * DH)
    if position < 0:
        if program == 0:  # the slot is idle
            tl.store(y_ptr + b * (HQ * DH) + offs_head, tl.zeros_like(q), mask=mask_g[:, None])
        return
    if program >= blocks:
        return
    bh, block = b * HKV + hk, program
    m_new = tl.zeros((BLOCK_G,), tl.float32)
    m, l, acc = m_new, m_new, tl.zeros((BLOCK_G, DH), tl.float32)
    for i in range(tl.cdiv(blocks - program, programs)):
        if i == 0:  # here, so that keys and values are under way before the angles arrive
            q, k_new, m_new = _prepare_new(q, k_new, temperature, cos, sin, scale, QK_EPS)
            m = m_new
            if program == 0:  # split 0 begins with the new token, whose weight is 1
                tl.store(k_ptr + offs_new + offs_0, k_new, mask=(offs_g == 0)[:, None])
                tl.store(v_ptr + offs_new + offs_0, v_new, mask=(offs_g == 0)[:, None])
                l += 1.0
                acc += v_new.to(tl.float32)
        pages = tl.where(block == second, second_pages, pages)
        offs_kv = block_offsets(pages, block, page_size, page_blocks, hk, HKV, DH, BLOCK_KV)
        mask_kv = block * BLOCK_KV + tl.arange(0, BLOCK_KV) < position
        block, split, ends = _next_block(block, blocks, programs, SPLITS)
        pages = load_pages(pages_ptr, tl.minimum(block, blocks - 1), W, page_size, page_blocks, BLOCK_KV)
        m, l, acc = _attend_block(q, k_ptr, v_ptr, offs_kv, mask_kv, m, l, acc, None if FUSED_PREAMBLE else scale)
        if ends:
            _store_split(partial_acc_ptr, partial_ml_ptr, bh, split, m, l, acc, GROUP, SPLITS)
            m, l, acc = m_new, tl.zeros_like(l), tl.zeros_like(acc)
    if last_to_arrive(counters_ptr + bh, tl.minimum(blocks, programs)):
        for start in range(0, GROUP, BLOCK_H):
            offs_h = tl.minimum(start + tl.arange(0, BLOCK_H), GROUP - 1)  # beyond GROUP the last head, stored again
            head = hk * GROUP + offs_h
            gate_h = None
            if FUSED_PREAMBLE:
                gate_h = tl.load(token_ptr + (HQ + 2 * HKV) * DH + head).to(tl.float32)
            l_h, acc_h = _merge_splits(partial_acc_ptr, partial_ml_ptr, bh, blocks, offs_h, GROUP, DH, SPLITS)
            store_output(y_ptr + b * (HQ * DH) + head[:, None] * DH + offs_d[None, :], acc_h, l_h, gate_h, None)


@triton.jit
def _next_block(block, blocks, programs, SPLITS: tl.constexpr):
    """The block after this one in its program, the split of this one, and whether that ends with it."""
    split, ends = block % SPLITS, block + SPLITS >= blocks
    return tl.where(ends, split + programs, block + SPLITS), split, ends


@triton.jit
def _prepare_new(
    q,  # [BLOCK_G, DH]
    k,  # [BLOCK_G, DH]: the new key in every row
    temperature,  # [BLOCK_G], or None: no QK norm, no rotary
    cos,  # [1, DH / 2], or None with temperature
    sin,  # [1, DH / 2], or None with temperature
    scale,
    EPS: tl.constexpr,
):
    """q as it attends, k as the cache holds it, and their scores [BLOCK_G], fp32."""
    if temperature is not None:
        q = prepare_query(q, temperature, cos, sin, scale, EPS)
        k = prepare_key(k, cos, sin, EPS)
    qk = tl.sum(q.to(tl.float32) * k.to(tl.float32), axis=1)
    if temperature is None:
        qk = qk * scale
    return q, k, qk


@triton.jit
def _attend_block(
    q,  # [BLOCK_G, DH]
    k_ptr,  # [pages, page_size, HKV, DH]
    v_ptr,  # [pages, page_size, HKV, DH]
    offs_kv,  # [BLOCK_KV]: where the head of each position begins
    mask_kv,  # [BLOCK_KV]
    m,  # [BLOCK_G] maximum so far
    l,  # [BLOCK_G] sum of weights so far
    acc,  # [BLOCK_G, DH] sum of weighted values so far
    scale,  # None: it is in q
):
    """m, l, acc after a block of cached positions."""
    offs_d = tl.arange(0, q.shape[1])
    k = tl.load(k_ptr + offs_kv[None, :] + offs_d[:, None], mask=mask_kv[None, :], other=0.0)  # [DH, BLOCK_KV]
    qk = tl.where(mask_kv[None, :], scores(q, k, scale), float("-inf"))
    m, l, alpha, p = online_softmax(qk, m, l, q.dtype)
    v = tl.load(v_ptr + offs_kv[:, None] + offs_d[None, :], mask=mask_kv[:, None], other=0.0)  # [BLOCK_KV, DH]
    return m, l, dot_fp32(p, v, acc * alpha[:, None])


@triton.jit
def _store_split(
    partial_acc_ptr,  # [B, HKV, SPLITS, GROUP, DH]
    partial_ml_ptr,  # [B, HKV, 2, GROUP, SPLITS]
    bh,
    split,
    m,  # [BLOCK_G]
    l,  # [BLOCK_G]
    acc,  # [BLOCK_G, DH]
    GROUP: tl.constexpr,
    SPLITS: tl.constexpr,
):
    offs_g, offs_d = tl.arange(0, acc.shape[0]), tl.arange(0, acc.shape[1])
    mask_g = offs_g < GROUP
    offs_acc = ((bh * SPLITS + split) * GROUP + offs_g[:, None]) * acc.shape[1] + offs_d[None, :]
    tl.store(partial_acc_ptr + offs_acc, acc, mask=mask_g[:, None])
    ml_ptrs = partial_ml_ptr + (bh * (2 * GROUP) + offs_g) * SPLITS + split
    tl.store(ml_ptrs, m, mask=mask_g)
    tl.store(ml_ptrs + GROUP * SPLITS, l, mask=mask_g)


@triton.jit
def _merge_splits(
    partial_acc_ptr,  # [B, HKV, SPLITS, GROUP, DH]
    partial_ml_ptr,  # [B, HKV, 2, GROUP, SPLITS]
    bh,
    blocks,
    offs_g,  # [BLOCK_H], of GROUP
    GROUP: tl.constexpr,
    DH: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """l [BLOCK_H] and acc [BLOCK_H, DH] of these heads, merged over SPLITS splits, or fewer blocks.

    Warps lie along the first axis, so that a thread adds its own elements of every split, in their order.
    """
    offs_s, offs_d = tl.arange(0, SPLITS), tl.arange(0, DH)
    mask_s = offs_s < blocks
    ml_ptrs = partial_ml_ptr + (bh * (2 * GROUP) + offs_g[:, None]) * SPLITS + offs_s[None, :]
    split = bh * SPLITS + offs_s
    offs_acc = (split[None, :, None] * GROUP + offs_g[:, None, None]) * DH + offs_d[None, None, :]
    acc = tl.load(partial_acc_ptr + offs_acc, mask=mask_s[None, :, None], other=0.0)  # [BLOCK_H, SPLITS, DH]
    m = tl.load(ml_ptrs, mask=mask_s[None, :], other=float("-inf"))  # [BLOCK_H, SPLITS]
    l = tl.load(ml_ptrs + GROUP * SPLITS, mask=mask_s[None, :], other=0.0)
    weight = tl.exp2(m - tl.max(m, axis=1)[:, None])
    return tl.sum(l * weight, axis=1), tl.sum(acc * weight[:, :, None], axis=1)


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
    launch = dict(launch_config(op, "split", qkvg.dtype))
    GROUP, SPLITS, BLOCK_KV = HQ // HKV, launch["SPLITS"], launch["BLOCK_KV"]
    programs = _programs(launch.pop("PROGRAMS") // (B * HKV), SPLITS, triton.cdiv(W * page_size, BLOCK_KV))
    _decode_attention_kernel[(programs, HKV, B)](
        qk_temperature_ptr=qk_temperature,
        positions_ptr=positions,
        y_ptr=y,
        partial_acc_ptr=qkvg.new_empty((B, HKV, SPLITS, GROUP, DH), dtype=torch.float32),
        partial_ml_ptr=qkvg.new_empty((B, HKV, 2, GROUP, SPLITS), dtype=torch.float32),
        counters_ptr=counters,
        page_blocks=whole_blocks(page_size, BLOCK_KV),
        scale=DH**-0.5 * LOG2E,
        BLOCK_G=max(16, triton.next_power_of_2(GROUP)),
        **shared,
        **launch,
    )


def _programs(wanted: int, splits: int, blocks: int) -> int:
    """The programs of a key/value head: a power of two, not above `wanted`, the splits or the table's blocks."""
    return 1 << max(1, min(wanted, splits, blocks)).bit_length() - 1


def cost(B: int, context: int, HQ: int, HKV: int, DH: int, itemsize: int, no_preamble: bool = False) -> Cost:
    """context: tokens in the cache before the new one, of each sequence; no_preamble: without qk_temperature."""
    cache = 2 * B * HKV * DH * (context + 1)
    new = B * ((HQ + 2 * HKV) * DH + (not no_preamble) * HQ + HQ * DH)
    angles = (not no_preamble) * 4 * B * DH
    return Cost(bytes=(cache + new) * itemsize + angles, flops=4 * B * HQ * DH * (context + 1))
