"""SwiGLU by the chosen experts: y = x + sum over k of weight[m, k] * down_e(silu(gate_e h) * up_e h), h = rms_norm(x).

Shapes     x, y [M, D]; norm_weight [D], or None: x is normed already; gate, up [E, I, D], their rows apart by one
           stride of any size (the official w13 is read where it lies: gate = w13[:, 0::2], up = w13[:, 1::2]); down
           [E, D, I]; sorted_slot_ids [M * K], expert_offsets [E + 1] and expert_weights [M, K] as `moe_router` makes
           them: slots behind expert_offsets[E] are of rows that go to no expert, y = x. Without those three every row
           goes through the one expert, unweighted: the dense layer. residual=False: y is the sum alone, without x.
Dtypes     x and weights one of fp32, fp16, bf16; sorted_slot_ids, expert_offsets, counters int32;
           expert_weights fp32; fp32 accumulation; the product of gate and up rounded once, then the sum once. Decoding
           multiplies norm_weight * x, rounded, and scales by 1 / rms(x): in fp16, |norm_weight * x| must stay below
           65,504.
Raises     ValueError, TypeError naming operation, argument, what came and what is accepted; more than 256 rows but in
           prefill; sorted_slot_ids that is none where looking costs nothing (CPU tensors, TRITON_DEBUG=1).
Reference  zonos2_triton.reference.moe_experts.moe_experts
Source     Shazeer 2020, arXiv:2002.05202; rows grouped by expert as in MegaBlocks, arXiv:2211.15841.

Two launches. Each expert that was chosen is streamed once by decoding, but for experts with more rows than a tile has.
The terms of a row with several experts are added in the order of choice by whoever finishes last. prefill=True norms
by a launch of its own and multiplies in tiles that suit many rows. A row's result depends on itself and on `prefill`
alone.

counters   [tiles of D] or more, zero before and after; None: made by the call, which is a launch more for K > 1.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from zonos2_triton.kernels._args import Arg, check, check_batch, check_range, check_rows, may_sync
from zonos2_triton.kernels._gemm import gemm_tile
from zonos2_triton.kernels._launch_config import gemm_config
from zonos2_triton.kernels._math import last_to_arrive, round_to, silu
from zonos2_triton.kernels._operator import Cost, cpu_fallback, fake, runs_kernel, zeroed_counters
from zonos2_triton.kernels.add_rms_norm import normed


@triton.jit
def _slots(
    order_ptr,
    offsets_ptr,
    M,
    ROUTED: tl.constexpr,
    E: tl.constexpr,
    EP: tl.constexpr,
    K: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Of this program's tile of rows: its expert, its slots, which of them exist, and how many tiles there are.

    Each expert has as many tiles as its slots fill, one expert's after the other's; the slots that go to no expert come
    last, as those of an expert E. Programs beyond the last tile get none.
    """
    tile = tl.program_id(0)
    offs_m = tl.arange(0, BLOCK_M)
    if ROUTED:
        offs_e = tl.arange(0, EP)
        begins = tl.load(offsets_ptr + offs_e, mask=offs_e <= E, other=M * K)
        ends = tl.load(offsets_ptr + 1 + offs_e, mask=offs_e < E, other=M * K)
        counts = (ends - begins + BLOCK_M - 1) // BLOCK_M
        before = tl.cumsum(counts, axis=0)  # tiles of the experts up to each
        expert = tl.sum((before <= tile).to(tl.int32), axis=0)
        mine = offs_e == expert
        first = tl.sum(tl.where(mine, begins + (tile - before + counts) * BLOCK_M, 0), axis=0) + offs_m
        mask = first < tl.sum(tl.where(mine, ends, 0), axis=0)
        slots = tl.load(order_ptr + first, mask=mask, other=0).to(tl.int64)
        return expert.to(tl.int64), slots, mask, tl.sum(counts, axis=0)
    else:  # one expert, whose slots are the rows
        slots = (tile * BLOCK_M + offs_m).to(tl.int64)
        return tl.zeros((), tl.int64), slots, slots < M, tl.num_programs(0)


@triton.jit(do_not_specialize=["M"])  # one binary for every batch
def _moe_experts_up_kernel(
    x_ptr,
    norm_ptr,
    gate_ptr,
    up_ptr,
    order_ptr,
    offsets_ptr,
    h_ptr,
    M,
    D,
    I,
    stride_expert,
    stride_row,
    eps,
    ROUTED: tl.constexpr,
    E: tl.constexpr,
    EP: tl.constexpr,
    K: tl.constexpr,
    NORM: tl.constexpr,
    EVEN_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Grid (tiles of slots, tiles of I): a program owns a tile of h = silu(gate x) * up x, [M * K, I] by slot."""
    offs_n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_n = offs_n < I
    expert, slots, mask_m, _ = _slots(order_ptr, offsets_ptr, M, ROUTED, E, EP, K, BLOCK_M)
    if ROUTED:  # noqa: SIM102  which the compiler settles
        if expert >= E:
            return
    w_at = expert * stride_expert + offs_n.to(tl.int64) * stride_row
    gate, up, sum_sq = gemm_tile(
        gate_ptr + w_at,
        up_ptr + w_at,
        mask_n,
        x_ptr + slots // K * D,
        mask_m,
        norm_ptr,
        D,
        True,
        NORM,
        EVEN_K,
        BLOCK_N,
        BLOCK_M,
        BLOCK_K,
    )
    if NORM:
        scale = tl.rsqrt(sum_sq / D + eps)[None, :]
        gate = gate * scale
        up = up * scale
    h = round_to(silu(gate) * up, h_ptr.dtype.element_ty)
    tl.store(h_ptr + slots[None, :] * I + offs_n[:, None], h, mask=mask_n[:, None] & mask_m[None, :])


@triton.jit(do_not_specialize=["M"])
def _moe_experts_down_kernel(
    x_ptr,
    h_ptr,
    down_ptr,
    order_ptr,
    offsets_ptr,
    weights_ptr,
    terms_ptr,
    y_ptr,
    counters_ptr,
    M,
    D,
    I,
    ROUTED: tl.constexpr,
    E: tl.constexpr,
    EP: tl.constexpr,
    K: tl.constexpr,
    RESIDUAL: tl.constexpr,
    EVEN_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Grid (tiles of slots, tiles of D): a program owns a tile of the weighted terms, [M * K, D] by slot.

    With one expert a row the term is added to x right away; with several, the last program of a tile of D adds all.
    RESIDUAL: x is added at all.
    """
    offs_n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_n = offs_n < D
    expert, slots, mask_m, tiles_m = _slots(order_ptr, offsets_ptr, M, ROUTED, E, EP, K, BLOCK_M)
    if ROUTED:  # noqa: SIM102
        if tl.program_id(0) >= tiles_m:
            return
    w_rows = down_ptr + (tl.minimum(expert, E - 1) * D + offs_n) * I
    length = I
    if ROUTED:
        length = tl.where(expert < E, I, 0)  # without an expert, the sum is over nothing
    term, _, _ = gemm_tile(
        w_rows,
        w_rows,
        mask_n,
        h_ptr + slots * I,
        mask_m,
        h_ptr,
        length,
        False,
        False,
        EVEN_K,
        BLOCK_N,
        BLOCK_M,
        BLOCK_K,
    )
    if ROUTED:
        known = mask_m & (expert + 0 * slots < E)  # of a block's shape; the weight of nobody may be NaN
        term = term * tl.load(weights_ptr + slots, mask=known, other=0.0)[None, :]
    dtype: tl.constexpr = y_ptr.dtype.element_ty
    at = slots[None, :] * D + offs_n[:, None]
    mask = mask_n[:, None] & mask_m[None, :]
    if K == 1:
        if RESIDUAL:
            x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
        tl.store(y_ptr + at, round_to(x + term if RESIDUAL else term, dtype), mask=mask)
    else:
        tl.store(terms_ptr + at, term, mask=mask)
        if last_to_arrive(counters_ptr + tl.program_id(1), tiles_m):
            for start in range(0, M, BLOCK_M):
                rows = start + tl.arange(0, BLOCK_M)
                at = rows.to(tl.int64)[None, :] * D + offs_n[:, None]
                mask = mask_n[:, None] & (rows < M)[None, :]
                y = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
                for j in tl.static_range(K):
                    term_at = (rows.to(tl.int64)[None, :] * K + j) * D + offs_n[:, None]
                    y += tl.load(terms_ptr + term_at, mask=mask, other=0.0)
                if RESIDUAL:
                    y += tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
                tl.store(y_ptr + at, round_to(y, dtype), mask=mask)


@torch.library.custom_op("zonos2_triton::moe_experts", mutates_args=("counters",))
def moe_experts(
    x: Tensor,
    norm_weight: Tensor | None,
    gate: Tensor,
    up: Tensor,
    down: Tensor,
    eps: float,
    sorted_slot_ids: Tensor | None = None,
    expert_offsets: Tensor | None = None,
    expert_weights: Tensor | None = None,
    prefill: bool = False,
    residual: bool = True,
    counters: Tensor | None = None,
) -> Tensor:
    M, D, I, E, K = _checked_sizes(x, norm_weight, gate, up, down, sorted_slot_ids, expert_offsets, expert_weights)
    if not prefill:
        check_batch("moe_experts", M)
    if not runs_kernel(x):
        return cpu_fallback(
            "moe_experts",
            x,
            norm_weight,
            gate,
            up,
            down,
            eps,
            sorted_slot_ids,
            expert_offsets,
            expert_weights,
            prefill,
            residual,
        )
    routed, slots = sorted_slot_ids is not None, M * K
    one = {"E": E, "EP": triton.next_power_of_2(E + 1), "K": K, "ROUTED": routed}
    lists = (sorted_slot_ids, expert_offsets) if routed else (x, x)
    # Rows of a tile: those of an expert that gets twice its share.
    busy = min(slots, 2 * triton.cdiv(slots, E)) if routed else slots
    launch = gemm_config("moe_experts_up", prefill, x.dtype, busy, D)
    launch_down = gemm_config("moe_experts_down", prefill, x.dtype, busy, I)
    tiles_n = triton.cdiv(D, launch_down["BLOCK_N"])
    h, y = x.new_empty(slots, I), torch.empty_like(x)
    terms = x.new_empty((slots, D), dtype=torch.float32) if K > 1 else y
    count = zeroed_counters(x, tiles_n, counters, "moe_experts") if K > 1 else y
    rows, norm = (normed(x, norm_weight, eps), None) if prefill and norm_weight is not None else (x, norm_weight)
    _moe_experts_up_kernel[(_tiles_m(slots, E, launch["BLOCK_M"]), triton.cdiv(I, launch["BLOCK_N"]))](
        rows,
        rows if norm is None else norm,
        gate,
        up,
        *lists,
        h,
        M,
        D,
        I,
        gate.stride(0),
        gate.stride(1),
        eps,
        **one,
        NORM=norm is not None,
        **launch,
    )
    _moe_experts_down_kernel[(_tiles_m(slots, E + routed, launch_down["BLOCK_M"]), tiles_n)](
        x,
        h,
        down,
        *lists,
        expert_weights if routed else x,
        terms,
        y,
        count,
        M,
        D,
        I,
        **one,
        RESIDUAL=residual,
        **launch_down,
    )
    return y


@fake(moe_experts)
def _(
    x: Tensor,
    norm_weight: Tensor | None,
    gate: Tensor,
    up: Tensor,
    down: Tensor,
    eps: float,
    sorted_slot_ids: Tensor | None = None,
    expert_offsets: Tensor | None = None,
    expert_weights: Tensor | None = None,
    prefill: bool = False,
    residual: bool = True,
    counters: Tensor | None = None,
) -> Tensor:
    return torch.empty_like(x)


def _tiles_m(slots: int, groups: int, block_m: int) -> int:
    """The most tiles that so many slots fill, however they are spread over the groups."""
    return (slots + min(groups, slots) * (block_m - 1)) // block_m


def _checked_sizes(
    x: Tensor,
    norm_weight: Tensor | None,
    gate: Tensor,
    up: Tensor,
    down: Tensor,
    sorted_slot_ids: Tensor | None,
    expert_offsets: Tensor | None,
    expert_weights: Tensor | None,
) -> tuple[int, int, int, int, int]:
    sizes = check(
        "moe_experts",
        x=Arg(x, "M D"),
        norm_weight=Arg(norm_weight, "D"),
        gate=Arg(gate, "E I D", strided=True),
        up=Arg(up, "E I D", strided=True),
        down=Arg(down, "E D I"),
        expert_weights=Arg(expert_weights, "M K", torch.float32),
    )
    M, D, I, E, K = (sizes.get(axis, 1) for axis in ("M", "D", "I", "E", "K"))
    check(
        "moe_experts",
        x=Arg(x, "M D"),
        sorted_slot_ids=Arg(sorted_slot_ids, f"{M * K}", torch.int32),
        expert_offsets=Arg(expert_offsets, f"{E + 1}", torch.int32),
    )
    check_rows("moe_experts", x.dtype, D=D, I=I)
    check_rows("moe_experts", x.dtype, **{f"stride {axis} of gate": gate.stride(axis) for axis in (0, 1)})
    if gate.stride() != up.stride():
        raise ValueError(f"moe_experts: up must have the strides of gate, {gate.stride()}, got {up.stride()}")
    given = [
        name
        for name, value in (
            ("sorted_slot_ids", sorted_slot_ids),
            ("expert_offsets", expert_offsets),
            ("expert_weights", expert_weights),
        )
        if value is not None
    ]
    if len(given) not in (0, 3):
        raise ValueError(
            f"moe_experts: sorted_slot_ids, expert_offsets and expert_weights must be given together, got {given} alone"
        )
    if not given and E != 1:
        raise ValueError(f"moe_experts: without sorted_slot_ids, gate must hold one expert, got E={E}")
    if sorted_slot_ids is not None and expert_offsets is not None and may_sync(sorted_slot_ids):
        check_range("moe_experts", "sorted_slot_ids", sorted_slot_ids, 0, M * K - 1, "the slots")
        check_range("moe_experts", "expert_offsets", expert_offsets, 0, M * K, "places in sorted_slot_ids")
        check_range("moe_experts", "steps of expert_offsets", expert_offsets.diff(), 0, M * K, "slots of an expert")
    return M, D, I, E, K


def cost(
    M: int, D: int, I: int, active: float, k: int, itemsize: int, routed: bool = True, normed: bool = False
) -> Cost:
    """active: how many experts are read; h between the launches is counted as written and read once."""
    weights = round(active * 3 * I * D)
    rows = 2 * M * D + (not normed) * D + 2 * M * k * I
    return Cost(bytes=(weights + rows) * itemsize + (8 * M * k if routed else 0), flops=6 * M * k * I * D)
