"""Shared by both attentions: cache addresses, new queries, keys and values, online softmax, epilogue, checks."""

import triton
import triton.language as tl
from torch import Tensor

from zonos2_triton.kernels._args import check_range, check_rows
from zonos2_triton.kernels._math import apply_rotary, dot_fp32, rms_normalize, round_to
from zonos2_triton.kernels._operator import Launch
from zonos2_triton.kernels.rotary import check_head_dim

QK_EPS = 1e-6  # of the head norms
LOG2E = 1.4426950408889634  # goes into the scale: softmax by exp2


@triton.jit
def kv_offsets(pages_ptr, offs_kv, mask_kv, page_size, hk, HKV: tl.constexpr, DH: tl.constexpr):
    """Where key/value head hk of each position offs_kv begins in a cache [pages, page_size, HKV, DH], int64.

    pages_ptr points at the sequence's block table: position p lies in page pages[p // page_size]. It is read past L1,
    as an early load must be (`_dependent_launch`).
    """
    page = tl.load(pages_ptr + offs_kv // page_size, mask=mask_kv, other=0, cache_modifier=".cg").to(tl.int64)
    return ((page * page_size + offs_kv % page_size) * HKV + hk) * DH


@triton.jit
def load_pages(pages_ptr, block, W, page_size, page_blocks, BLOCK_KV: tl.constexpr):
    """The pages of a block of positions: one, or [BLOCK_KV] where blocks and pages have different borders.

    pages_ptr points at the sequence's block table [W], which is read past L1; page_blocks is the number of blocks in a
    page, or None.
    """
    if page_blocks is not None:
        return tl.load(pages_ptr + block // page_blocks, cache_modifier=".cg")
    else:
        offs_kv = block * BLOCK_KV + tl.arange(0, BLOCK_KV)
        return tl.load(pages_ptr + offs_kv // page_size, mask=offs_kv < W * page_size, other=0, cache_modifier=".cg")


@triton.jit
def block_offsets(
    pages,  # of `load_pages`
    block,
    page_size,
    page_blocks,
    hk,
    HKV: tl.constexpr,
    DH: tl.constexpr,
    BLOCK_KV: tl.constexpr,
):
    """Where key/value head hk of each position of a block begins in a cache, [BLOCK_KV] int64."""
    offs_kv = tl.arange(0, BLOCK_KV)
    if page_blocks is not None:
        first = pages.to(tl.int64) * page_size + block % page_blocks * BLOCK_KV
        return (first * HKV + hk) * DH + offs_kv * (HKV * DH)
    else:
        return ((pages.to(tl.int64) * page_size + (block * BLOCK_KV + offs_kv) % page_size) * HKV + hk) * DH


@triton.jit
def load_cos_sin(cos_sin_ptr, positions, mask, DH: tl.constexpr):
    """Cosines and sines [N, DH / 2] of positions [N], from [P, 2, DH / 2]; mask [N, 1]."""
    angle = cos_sin_ptr + positions.to(tl.int64)[:, None] * DH + tl.arange(0, DH // 2)[None, :]
    return tl.load(angle, mask=mask, other=0.0), tl.load(angle + DH // 2, mask=mask, other=0.0)


@triton.jit
def prepare_query(
    q,  # [N, DH]
    temperature,  # [N]
    cos,  # [N or 1, DH / 2]
    sin,  # [N or 1, DH / 2]
    scale,
    EPS: tl.constexpr,
):
    """q normed per head, scaled by |temperature| * scale and rotated, in its own dtype."""
    N: tl.constexpr = q.shape[0]
    DH: tl.constexpr = q.shape[1]
    normed = rms_normalize(q.to(tl.float32), DH, EPS) * (tl.abs(temperature.to(tl.float32)) * scale)[:, None]
    return round_to(apply_rotary(normed, cos, sin, N, DH), q.dtype)


@triton.jit
def prepare_key(
    k,  # [N, DH]
    cos,  # [N or 1, DH / 2]
    sin,  # [N or 1, DH / 2]
    EPS: tl.constexpr,
):
    """k normed per head and rotated, in its own dtype."""
    N: tl.constexpr = k.shape[0]
    DH: tl.constexpr = k.shape[1]
    return round_to(apply_rotary(rms_normalize(k.to(tl.float32), DH, EPS), cos, sin, N, DH), k.dtype)


@triton.jit
def write_new_kv(
    key_ptrs,  # [N, DH]: the new keys in qkvg
    value_ptrs,  # [N, DH]: the new values in qkvg
    mask,  # [N, 1]
    k_ptrs,  # [N, DH]: their places in k_cache
    v_ptrs,  # [N, DH]: their places in v_cache
    cos,  # [N, DH / 2], or None: keys are neither normed nor rotated
    sin,  # [N, DH / 2]
    EPS: tl.constexpr,
):
    """Writes the new keys, normed and rotated, and the new values. Returns the values [N, DH]."""
    k = tl.load(key_ptrs, mask=mask, other=0.0)
    if cos is not None:
        k = prepare_key(k, cos, sin, EPS)
    v = tl.load(value_ptrs, mask=mask, other=0.0)
    tl.store(k_ptrs, k, mask=mask)
    tl.store(v_ptrs, v, mask=mask)
    return v


@triton.jit
def online_softmax(qk, m, l, dtype: tl.constexpr):
    """One step of the online softmax over scores qk [N, BLOCK_KV] in units of log2.

    m, l [N] are the maximum and the sum of weights so far. Returns the new ones, the factor alpha [N] that rescales
    earlier sums, and the weights p in the cache's dtype. l sums p as rounded, as p @ v does: p / l sums to one.
    """
    m_new = tl.maximum(m, tl.max(qk, axis=1))
    alpha = tl.exp2(m - m_new)
    p = round_to(tl.exp2(qk - m_new[:, None]), dtype)
    return m_new, l * alpha + tl.sum(p.to(tl.float32), axis=1), alpha, p


@triton.jit
def scores(q, k, scale):
    """scale * (q @ k) [N, BLOCK_KV], fp32; scale None: `prepare_query` has put it into q.

    Without `prepare_query` the scale comes here, because a scaled q would be rounded once more.
    """
    qk = dot_fp32(q, k, tl.zeros((q.shape[0], k.shape[1]), tl.float32))
    if scale is not None:
        qk = qk * scale
    return qk


@triton.jit
def store_output(y_ptrs, acc, l, gate, mask):
    """y = sigmoid(gate) * acc / l, rounded once; gate [N] fp32, or None: no gate."""
    y = acc / l[:, None]
    if gate is not None:
        y = y * tl.sigmoid(gate)[:, None]
    tl.store(y_ptrs, round_to(y, y_ptrs.dtype.element_ty), mask=mask)


def whole_blocks(page_size: int, BLOCK_KV: int) -> int | None:
    """How many blocks of BLOCK_KV positions a page has; None: not a whole number."""
    return None if page_size % BLOCK_KV else page_size // BLOCK_KV


def check_attention(
    op: str,
    qkvg: Tensor,
    qk_temperature: Tensor | None,
    cos_sin_cache: Tensor | None,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
) -> tuple[int, int, Launch]:
    """HQ query heads, the positions that pages and cos_sin_cache hold, and the launch arguments of all kernels.

    ValueError as documented.
    """
    (_, width), (pages, page_size, HKV, DH) = qkvg.shape, k_cache.shape
    check_head_dim(op, DH)
    check_rows(op, qkvg.dtype, DH=DH)
    if (qk_temperature is None) != (cos_sin_cache is None):
        raise ValueError(f"{op}: qk_temperature and cos_sin_cache must be given together, or neither")
    HQ = qk_temperature.shape[0] if qk_temperature is not None else width // DH - 2 * HKV
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
    check_range(op, "block_table", block_table, 0, pages - 1, "the cache's pages")
    capacity = block_table.shape[1] * page_size
    if cos_sin_cache is not None:
        capacity = min(capacity, cos_sin_cache.shape[0])
    pointers = {"qkvg_ptr": qkvg, "cos_sin_ptr": cos_sin_cache, "k_ptr": k_cache, "v_ptr": v_cache}
    sizes = {"W": block_table.shape[1], "page_size": page_size, "HQ": HQ, "HKV": HKV, "DH": DH, "QK_EPS": QK_EPS}
    return HQ, capacity, {**pointers, "block_table_ptr": block_table, **sizes}
