"""Causal attention of many new tokens: y[t] = sigmoid(gate[t]) * softmax over s <= t of (q k / sqrt(DH)) v.

Shapes     as in `decode_attention`, but qkvg [T, ...] and y [T, HQ * DH] hold the new tokens of B sequences one
           sequence after the other; cache_seqlens [B]; cu_seqlens [B + 1]. max_seqlen_q: the most new tokens that a
           sequence has.
Dtypes     as in `decode_attention`; cache_seqlens and cu_seqlens int32.
Raises     ValueError, TypeError naming operation, argument, what came and what is accepted; a sequence without new
           tokens, one longer than `max_seqlen_q`, a position beyond the pages or the cos_sin_cache, a page out of range
           where looking costs nothing (CPU tensors, TRITON_DEBUG=1).
Reference  zonos2_triton.reference.prefill_attention.prefill_attention
Source     Dao et al. 2022, arXiv:2205.14135. Norms, temperature, gate: Zyphra/ZONOS2, models/zonos2.py, Attention.

cu_seqlens     tokens cu_seqlens[b] .. cu_seqlens[b + 1] - 1 of the flat batch belong to sequence b.
cache_seqlens  cache_seqlens[b] tokens of sequence b are in the cache already: its first new token has that position.

Example: cu_seqlens = [0, 3, 5] and cache_seqlens = [4, 0]. Tokens 0, 1, 2 are positions 4, 5, 6 of sequence 0, which
attend to the cached 0 .. 3 as well. Tokens 3, 4 are positions 0, 1 of sequence 1. max_seqlen_q = 3.

Two launches. The first writes the new keys and values to the cache, and notes which values are not finite. The second
attends from the cache, with one program for each tile of BLOCK_Q tokens and each key/value head. A program reads the
cache in blocks of BLOCK_KV positions, which lie at multiples of BLOCK_KV, in two loops. For the tile of sequence 0
above, with BLOCK_KV = 4:

    loop          first        second
    blocks        0 .. 3       4 .. 7, of which 7 is beyond the end
    tokens see    all of it    only positions up to their own: causal mask

So a token's bits depend neither on the tokens beside it nor on the chunks that the prompt comes in. Later tokens never
reach it: where a value is not finite, only the tokens that may see it become NaN.
"""

from collections.abc import Iterator
from typing import Annotated

import torch
import triton
import triton.language as tl
from torch import Tensor

from zonos2_triton.kernels._args import check_range, may_sync
from zonos2_triton.kernels._attention import (
    LOG2E,
    block_offsets,
    check_attention,
    kv_offsets,
    load_cos_sin,
    load_pages,
    online_softmax,
    prepare_query,
    scores,
    store_output,
    whole_blocks,
    write_new_kv,
)
from zonos2_triton.kernels._dependent_launch import wait_for_previous_launch
from zonos2_triton.kernels._launch_config import launch_config
from zonos2_triton.kernels._math import dot_fp32, finite
from zonos2_triton.kernels._operator import Cost, operator


@triton.jit(do_not_specialize=["W"])
def _write_cache_kernel(
    qkvg_ptr,  # [T, (HQ + 2 * HKV) * DH + HQ]: queries, keys, values, gates; without cos_sin_ptr no gates
    cos_sin_ptr,  # [P, 2, DH / 2] fp32, or None: keys are neither normed nor rotated
    k_ptr,  # [pages, page_size, HKV, DH]
    v_ptr,  # [pages, page_size, HKV, DH]
    block_table_ptr,  # [B, W] int32
    cache_seqlens_ptr,  # [B] int32
    cu_seqlens_ptr,  # [B + 1] int32
    nonfinite_ptr,  # [T, HKV] int32: whether a new value is not finite
    W,
    page_size,
    HQ: tl.constexpr,
    HKV: tl.constexpr,
    DH: tl.constexpr,
    QK_EPS: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid (tiles of max_seqlen_q, HKV, B): a program writes BLOCK_Q tokens' keys and values of one head."""
    wait_for_previous_launch(PDL)
    hk, b = tl.program_id(1), tl.program_id(2).to(tl.int64)
    first_token, cache_len = tl.load(cu_seqlens_ptr + b).to(tl.int64), tl.load(cache_seqlens_ptr + b)
    new_len = tl.load(cu_seqlens_ptr + b + 1) - first_token
    FUSED_PREAMBLE: tl.constexpr = cos_sin_ptr is not None
    WIDTH: tl.constexpr = (HQ + 2 * HKV) * DH + (HQ if FUSED_PREAMBLE else 0)
    offs_t = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    offs_d = tl.arange(0, DH)
    mask_t = offs_t < new_len
    mask = mask_t[:, None]
    positions = cache_len + offs_t
    cos = None
    sin = None
    if FUSED_PREAMBLE:
        cos, sin = load_cos_sin(cos_sin_ptr, positions, mask, DH)
    key_ptrs = qkvg_ptr + (first_token + offs_t)[:, None] * WIDTH + (HQ + hk) * DH + offs_d[None, :]
    kv_offs = kv_offsets(block_table_ptr + b * W, positions, mask_t, page_size, hk, HKV, DH)
    offs_new = kv_offs[:, None] + offs_d[None, :]
    v = write_new_kv(key_ptrs, key_ptrs + HKV * DH, mask, k_ptr + offs_new, v_ptr + offs_new, cos, sin, QK_EPS)
    nonfinite = tl.max(1 - finite(v).to(tl.int32), axis=1)
    tl.store(nonfinite_ptr + (first_token + offs_t) * HKV + hk, nonfinite, mask=mask_t)


@triton.jit(do_not_specialize=["W"])
def _prefill_attention_kernel(
    qkvg_ptr,  # [T, (HQ + 2 * HKV) * DH + HQ]: queries, keys, values, gates; without qk_temperature_ptr no gates
    qk_temperature_ptr,  # [HQ], or None: no preamble, no gate
    cos_sin_ptr,  # [P, 2, DH / 2] fp32, or None with qk_temperature
    k_ptr,  # [pages, page_size, HKV, DH]
    v_ptr,  # [pages, page_size, HKV, DH]
    block_table_ptr,  # [B, W] int32
    cache_seqlens_ptr,  # [B] int32
    cu_seqlens_ptr,  # [B + 1] int32
    nonfinite_ptr,  # [T, HKV] int32: whether a new value is not finite
    y_ptr,  # [T, HQ * DH]
    W,
    page_size,
    page_blocks,  # blocks of BLOCK_KV positions in a page, or None: not a whole number
    scale,
    HQ: tl.constexpr,
    HKV: tl.constexpr,
    DH: tl.constexpr,
    QK_EPS: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_KV: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid (tiles of max_seqlen_q, HKV, B): a program owns BLOCK_Q tokens' queries of one key/value head.

    A row of the tile is (token, query head of the group): BLOCK_Q * GROUP of the BLOCK_M rows are used. Later tiles,
    which see more, come first.
    """
    wait_for_previous_launch(PDL)
    hk, b = tl.program_id(1), tl.program_id(2).to(tl.int64)
    first_token, cache_len = tl.load(cu_seqlens_ptr + b).to(tl.int64), tl.load(cache_seqlens_ptr + b)
    new_len = (tl.load(cu_seqlens_ptr + b + 1) - first_token).to(tl.int32)
    tile_start = (tl.num_programs(0) - 1 - tl.program_id(0)) * BLOCK_Q
    if tile_start >= new_len:
        return
    GROUP: tl.constexpr = HQ // HKV
    FUSED_PREAMBLE: tl.constexpr = qk_temperature_ptr is not None
    WIDTH: tl.constexpr = (HQ + 2 * HKV) * DH + (HQ if FUSED_PREAMBLE else 0)
    offs_m, offs_d = tl.arange(0, BLOCK_M), tl.arange(0, DH)
    offs_t = tile_start + offs_m // GROUP
    heads = hk * GROUP + offs_m % GROUP
    mask_m = (offs_m < BLOCK_Q * GROUP) & (offs_t < new_len)
    mask = mask_m[:, None]
    positions = cache_len + offs_t
    token_ptrs = qkvg_ptr + (first_token + offs_t) * WIDTH
    cos = None
    sin = None
    gate = None
    if FUSED_PREAMBLE:
        cos, sin = load_cos_sin(cos_sin_ptr, positions, mask, DH)
    q = tl.load(token_ptrs[:, None] + heads[:, None] * DH + offs_d[None, :], mask=mask, other=0.0)  # [BLOCK_M, DH]
    if FUSED_PREAMBLE:
        temperature = tl.load(qk_temperature_ptr + heads, mask=mask_m, other=0.0)
        q = prepare_query(q, temperature, cos, sin, scale, QK_EPS)
        scale = None  # it is in q

    m = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    l = tl.zeros((BLOCK_M,), tl.float32)
    acc = tl.zeros((BLOCK_M, DH), tl.float32)
    seen = cache_len + tl.minimum(tile_start + BLOCK_Q, new_len)
    common = (cache_len + tile_start + 1) // BLOCK_KV  # blocks before it are seen whole, by every token
    pages_ptr, nonfinite_ptr = block_table_ptr + b * W, nonfinite_ptr + first_token * HKV
    for part in tl.static_range(2):
        begin, end = (common, tl.cdiv(seen, BLOCK_KV)) if part == 1 else (0, common)
        m, l, acc = _attend(
            q,
            positions,
            m,
            l,
            acc,
            begin,
            end,
            seen,
            cache_len,
            k_ptr,
            v_ptr,
            nonfinite_ptr,
            pages_ptr,
            W,
            page_size,
            page_blocks,
            hk,
            scale,
            part == 1,
            HKV,
            BLOCK_KV,
        )
    if FUSED_PREAMBLE:
        gate = tl.load(token_ptrs + (HQ + 2 * HKV) * DH + heads, mask=mask_m, other=0.0).to(tl.float32)
    y_ptrs = y_ptr + (first_token + offs_t)[:, None] * (HQ * DH) + heads[:, None] * DH + offs_d[None, :]
    store_output(y_ptrs, acc, l, gate, mask)


@triton.jit
def _attend(
    q,  # [BLOCK_M, DH]
    positions,  # [BLOCK_M]
    m,  # [BLOCK_M] maximum so far
    l,  # [BLOCK_M] sum of weights so far
    acc,  # [BLOCK_M, DH] sum of weighted values so far
    begin,
    end,
    seen,  # positions before it are seen by the tile's last token
    cache_len,
    k_ptr,  # [pages, page_size, HKV, DH]
    v_ptr,  # [pages, page_size, HKV, DH]
    nonfinite_ptr,  # [tokens of the sequence, HKV] int32
    pages_ptr,  # [W] int32: the sequence's block table
    W,
    page_size,
    page_blocks,
    hk,
    scale,  # None: it is in q
    CAUSAL: tl.constexpr,
    HKV: tl.constexpr,
    BLOCK_KV: tl.constexpr,
):
    """m, l, acc after blocks begin .. end - 1. CAUSAL: each row sees its own position and earlier ones.

    A weight of zero times a NaN is NaN. So new values that are not finite are read as zeros, and the rows that see one
    become NaN afterwards. The pages are loaded one block ahead.
    """
    DH: tl.constexpr = q.shape[1]
    offs_d = tl.arange(0, DH)
    last = (seen - 1) // BLOCK_KV
    pages = load_pages(pages_ptr, tl.minimum(begin, last), W, page_size, page_blocks, BLOCK_KV)
    for block in range(begin, end):
        offs_kv = block * BLOCK_KV + tl.arange(0, BLOCK_KV)
        kv_offs = block_offsets(pages, block, page_size, page_blocks, hk, HKV, DH, BLOCK_KV)
        pages = load_pages(pages_ptr, tl.minimum(block + 1, last), W, page_size, page_blocks, BLOCK_KV)
        k_ptrs, v_ptrs = k_ptr + kv_offs[None, :] + offs_d[:, None], v_ptr + kv_offs[:, None] + offs_d[None, :]
        if CAUSAL:
            mask_kv = offs_kv < seen
            nonfinite = _load_nonfinite(nonfinite_ptr, block, cache_len, seen, hk, HKV, BLOCK_KV)
            mask_v = mask_kv & (nonfinite == 0)
            k = tl.load(k_ptrs, mask=mask_kv[None, :], other=0.0)  # [DH, BLOCK_KV]
            mask_qk = mask_kv[None, :] & (offs_kv[None, :] <= positions[:, None])
            qk = tl.where(mask_qk, scores(q, k, scale), float("-inf"))
            nan_rows = tl.max((mask_qk & (nonfinite > 0)[None, :]).to(tl.int32), axis=1) > 0
            m, l, alpha, p = online_softmax(qk, m, l, q.dtype)
            v = tl.load(v_ptrs, mask=mask_v[:, None], other=0.0)  # [BLOCK_KV, DH]
            acc = dot_fp32(p, v, acc * alpha[:, None])
            acc = tl.where(nan_rows[:, None], float("nan"), acc)
        else:
            m, l, alpha, p = online_softmax(scores(q, tl.load(k_ptrs), scale), m, l, q.dtype)
            acc = dot_fp32(p, tl.load(v_ptrs), acc * alpha[:, None])
    return m, l, acc


@triton.jit
def _load_nonfinite(nonfinite_ptr, block, cache_len, seen, hk, HKV: tl.constexpr, BLOCK_KV: tl.constexpr):
    """Which values of a block [BLOCK_KV] are new, seen by the tile and not finite; nonfinite_ptr: its sequence's."""
    offs_kv = block * BLOCK_KV + tl.arange(0, BLOCK_KV)
    mask = (offs_kv >= cache_len) & (offs_kv < seen)
    return tl.load(nonfinite_ptr + (offs_kv - cache_len) * HKV + hk, mask=mask, other=0)


@operator(mutates_args=("k_cache", "v_cache"))
def prefill_attention(
    qkvg: Annotated[Tensor, "T width"],
    qk_temperature: Annotated[Tensor | None, "HQ"],
    cos_sin_cache: Annotated[Tensor | None, "P 2 DH/2", torch.float32],
    k_cache: Annotated[Tensor, "pages page_size HKV DH"],
    v_cache: Annotated[Tensor, "pages page_size HKV DH"],
    block_table: Annotated[Tensor, "B W", torch.int32],
    cache_seqlens: Annotated[Tensor, "B", torch.int32],
    cu_seqlens: Annotated[Tensor, "B+1", torch.int32],
    max_seqlen_q: int,
) -> Iterator[Tensor]:
    op, T, (_, page_size, HKV, DH), B = "prefill_attention", qkvg.shape[0], k_cache.shape, block_table.shape[0]
    HQ, capacity, shared = check_attention(op, qkvg, qk_temperature, cos_sin_cache, k_cache, v_cache, block_table)
    if not 1 <= max_seqlen_q <= T:
        raise ValueError(f"{op}: max_seqlen_q must be in 1..{T}, the tokens of qkvg, got {max_seqlen_q}")
    if may_sync(cache_seqlens):
        _check_sequences(cache_seqlens, cu_seqlens, max_seqlen_q, T, capacity)
    y = qkvg.new_empty(T, HQ * DH)
    yield y
    write, attend = (launch_config(op, variant, qkvg.dtype) for variant in ("write", "attend"))
    block_q = attend["BLOCK_M"] // (HQ // HKV)
    if block_q == 0:  # checked after the yield, for it needs the launch configuration
        raise ValueError(
            f"{op}: {'qkvg' if qk_temperature is None else 'qk_temperature'} must have at most {attend['BLOCK_M']} "
            f"heads for each of the cache's HKV={HKV}, got {HQ}"
        )
    shared |= {"cache_seqlens_ptr": cache_seqlens, "cu_seqlens_ptr": cu_seqlens}
    shared["nonfinite_ptr"] = qkvg.new_empty((T, HKV), dtype=torch.int32)
    _write_cache_kernel[(triton.cdiv(max_seqlen_q, write["BLOCK_Q"]), HKV, B)](**shared, **write)
    _prefill_attention_kernel[(triton.cdiv(max_seqlen_q, block_q), HKV, B)](
        qk_temperature_ptr=qk_temperature,
        y_ptr=y,
        page_blocks=whole_blocks(page_size, attend["BLOCK_KV"]),
        scale=DH**-0.5 * LOG2E,
        BLOCK_Q=block_q,
        **shared,
        **attend,
    )


def _check_sequences(cache_seqlens: Tensor, cu_seqlens: Tensor, max_seqlen_q: int, T: int, capacity: int) -> None:
    tokens, held = cu_seqlens.diff(), "what the pages and the rotary table hold"
    for name, values, low, high, what in (
        ("tokens of a sequence", tokens, 1, max_seqlen_q, "max_seqlen_q being the most"),
        ("the first of cu_seqlens", cu_seqlens[:1], 0, 0, "the first token of qkvg"),
        ("the last of cu_seqlens", cu_seqlens[-1:], T, T, "the tokens of qkvg"),
        ("cache_seqlens", cache_seqlens, 0, capacity - 1, held),
        ("cache_seqlens + tokens", cache_seqlens + tokens, 1, capacity, held),
    ):
        check_range("prefill_attention", name, values, low, high, what)


def cost(T: int, context: int, B: int, HQ: int, HKV: int, DH: int, itemsize: int, no_preamble: bool = False) -> Cost:
    """B sequences of T / B new tokens each, after `context` cached ones each; no_preamble: without qk_temperature."""
    new = T // B
    pairs = new * context + new * (new + 1) // 2  # of query and key in one sequence
    cache = 2 * HKV * DH * B * (context + new)
    moved = T * ((HQ + 2 * HKV) * DH + (not no_preamble) * HQ + HQ * DH)
    return Cost(bytes=(cache + moved) * itemsize + (not no_preamble) * 4 * T * DH, flops=4 * B * HQ * DH * pairs)
