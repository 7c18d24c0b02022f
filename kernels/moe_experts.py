"""SwiGLU by each token's experts: y = x + sum over k of weight[m, k] * down_e(silu(gate_e h) * up_e h),
h = rms_norm(x).

Shapes     x, y [M, D]: M tokens; norm_weight [D], or None: x is normed already; gate, up [E, I, D], whose rows lie one
           stride apart, any (the official w13 is read in place: gate = w13[:, 0::2], up = w13[:, 1::2]); down
           [E, D, I]; sorted_slot_ids [M * K], expert_offsets [E + 1] and expert_weights [M, K] as `moe_router` makes
           them, or None, all three. residual=False: y is the sum alone, without x. x_scaled [M, D] and
           sum_sq [M, cdiv(D, 16)] are those of x (`_norm`), which is read as the residual alone then; or None, both.
           next_norm_weight [D]: of the norm that follows; x_scaled and sum_sq of y are results, else empty.
Dtypes     x, x_scaled and weights one of fp32, fp16, bf16; sorted_slot_ids, expert_offsets, counters int32;
           expert_weights, sum_sq fp32; fp32 accumulation; rounded are norm_weight * x, the product of gate and up, the
           sum, and next_norm_weight * y. In fp16, |norm_weight * x| and that must stay below 65,504.
Raises     ValueError, TypeError naming operation, argument, what came and what is accepted; more than 256 tokens but in
           prefill; slots that are out of order, where a check costs nothing (CPU tensors, TRITON_DEBUG=1).
Reference  zonos2_triton.reference.moe_experts.moe_experts
Source     Shazeer 2020, arXiv:2002.05202; tokens grouped by expert as in MegaBlocks, arXiv:2211.15841.

Slot m * K + j is choice j of token m. Two launches work on tiles of up to BLOCK_M slots of one expert:

    kernel                 program (tile of slots, tile of I or D)    result
    _moe_experts_up        silu(gate h) * up h                        h [M * K, I] by slot
    _moe_experts_down      weight * down h                            K = 1: y; K > 1: partial [M * K, D] by slot
    ... the last of each tile of D, for K > 1                         y: the sum of each token's partials, by choice

The tiles of expert 0 come first, then those of expert 1, and so on. Last come the tiles of idle slots, which lie at or
after expert_offsets[E]: they go to no expert and add nothing. For example, with K = 1, E = 2 and BLOCK_M = 2:

    sorted_slot_ids = [0, 1, 3, 4, 2], expert_offsets = [0, 3, 4]

    tile        0         1       2       3         4 and more
    expert      0         0       1       2 = E     none: the program returns
    slots       0, 1      3       4       2

With no more slots than experts, the grid has a tile for each place in sorted_slot_ids. A program has a tile if its
place is the first of an expert's, or BLOCK_M places further on. It loads its slots beside expert_offsets, not after.

Each chosen expert is read once in decoding, unless it has more slots than BLOCK_M. Without sorted_slot_ids every token
goes through the one expert, unweighted: the dense layer. prefill=True takes tiles that suit many tokens. A token's
result depends on itself and on `prefill` alone. Without x_scaled and sum_sq one more launch makes them, bit for bit.

counters   [tiles of D] or more, zero before and after; None: for K > 1, the call makes them by one more launch.
"""

from collections.abc import Iterator
from typing import Annotated

import torch
import triton
import triton.language as tl
from torch import Tensor

from zonos2_triton.kernels._args import STRIDED, check_batch, check_range, check_rows, may_sync
from zonos2_triton.kernels._dependent_launch import (
    begin_early_loads,
    end_early_loads,
    prefetch_l2,
    prefetch_rows,
    wait_for_previous_launch,
)
from zonos2_triton.kernels._gemm import early_gemm_tile, gemm_tile, load_early, row_ptrs
from zonos2_triton.kernels._launch_config import gemm_config
from zonos2_triton.kernels._math import last_to_arrive, round_to, silu
from zonos2_triton.kernels._norm import (
    FEW_TOKENS,
    check_norm,
    input_bytes,
    load_sum_sq,
    n_norm_groups,
    norm_bytes,
    norm_results,
    prepare_norm,
    rms_scale,
    store_norm,
)
from zonos2_triton.kernels._operator import Cost, operator, zeroed_counters
from zonos2_triton.kernels._sort_slots import slot_tile

PREFETCHED_TILES = tl.constexpr(2)  # tiles of slots whose weights of the second launch the first one asks for in L2


@triton.jit(do_not_specialize=["M"])  # one binary for every batch
def _moe_experts_up_kernel(
    x_ptr,  # [M, D]: x_scaled; or x, normed already
    sum_sq_ptr,  # [M, N_GROUPS] fp32, or None
    gate_ptr,  # [E, I, D], of strides (stride_expert, stride_row, 1)
    up_ptr,  # [E, I, D], of gate's strides
    down_ptr,  # [E, D, I]
    sorted_slot_ids_ptr,  # [M * TOP_K] int32, or None: dense
    expert_offsets_ptr,  # [E + 1] int32, or None
    h_ptr,  # [M * TOP_K, I]
    M,
    D,
    I,
    stride_expert,
    stride_row,
    eps,
    E: tl.constexpr,
    E_POW2: tl.constexpr,  # E + 1 as an axis of a tile
    TOP_K: tl.constexpr,
    FEW_SLOTS: tl.constexpr,
    N_GROUPS: tl.constexpr,
    EVEN_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    K_SLICES: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid (tiles of slots, tiles of I): a program owns a tile of h = silu(gate x) * up x."""
    first_n = tl.program_id(1) * BLOCK_N
    offs_n = first_n + tl.arange(0, BLOCK_N)
    if sorted_slot_ids_ptr is None:
        prefetch_rows(gate_ptr, first_n, I, D, stride_row, BLOCK_N, PDL)
        prefetch_rows(up_ptr, first_n, I, D, stride_row, BLOCK_N, PDL)
    wait_for_previous_launch(PDL)
    expert, slots, mask_m, tiles_m = slot_tile(
        sorted_slot_ids_ptr, expert_offsets_ptr, M, E, E_POW2, TOP_K, FEW_SLOTS, BLOCK_M
    )
    if sorted_slot_ids_ptr is not None and expert >= E:
        return
    offs_w = row_ptrs(expert * stride_expert, offs_n, I, stride_row)
    x_rows = x_ptr + slots // TOP_K * D
    if sum_sq_ptr is not None and BLOCK_M <= FEW_TOKENS:
        sum_sq = load_sum_sq(sum_sq_ptr, slots // TOP_K, mask_m, N_GROUPS)
    gate, up = gemm_tile(
        gate_ptr + offs_w, up_ptr + offs_w, x_rows, mask_m, D, EVEN_K, BLOCK_N, BLOCK_M, BLOCK_K, K_SLICES
    )
    if sorted_slot_ids_ptr is not None:  # few experts are certain now, and fit into L2: memory need not rest
        rows = tl.where(tiles_m <= PREFETCHED_TILES, tl.cdiv(D, tl.num_programs(1)), 0)
        first_row = tl.program_id(1) * rows
        prefetch_l2(down_ptr + (expert * D + first_row) * I, tl.minimum(D - first_row, rows) * I, PDL)
    if sum_sq_ptr is not None:
        if BLOCK_M > FEW_TOKENS:
            sum_sq = load_sum_sq(sum_sq_ptr, slots // TOP_K, mask_m, N_GROUPS)
        scale = rms_scale(sum_sq, D, eps, BLOCK_M)
        gate, up = gate * scale, up * scale
    h = round_to(silu(gate) * up, h_ptr.dtype.element_ty)
    tl.store(h_ptr + slots[None, :] * I + offs_n[:, None], h, mask=(offs_n < I)[:, None] & mask_m[None, :])


@triton.jit(do_not_specialize=["M"])
def _moe_experts_down_kernel(
    residual_ptr,  # [M, D], or None
    h_ptr,  # [M * TOP_K, I]
    down_ptr,  # [E, D, I]
    sorted_slot_ids_ptr,  # [M * TOP_K] int32, or None: dense
    expert_offsets_ptr,  # [E + 1] int32, or None
    expert_weights_ptr,  # [M, TOP_K] fp32, or None
    partial_ptr,  # [M * TOP_K, D] fp32, or None for TOP_K = 1
    norm_ptr,  # [D], of the norm that follows, or None
    y_ptr,  # [M, D]
    x_scaled_ptr,  # [M, D]
    sum_sq_ptr,  # [M, cdiv(D, 16)] fp32
    counters_ptr,  # [tiles of D] int32, or None for TOP_K = 1
    M,
    D,
    I,
    E: tl.constexpr,
    E_POW2: tl.constexpr,
    TOP_K: tl.constexpr,
    FEW_SLOTS: tl.constexpr,
    EVEN_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    K_SLICES: tl.constexpr,
    K_PARTS: tl.constexpr,  # of weights that are loaded early; 0: none are
    PDL: tl.constexpr,
):
    """Grid (tiles of slots, tiles of D): a program owns a tile of y, or of the weighted partials.

    For TOP_K = 1 it adds the residual itself; otherwise the last program of a tile of D sums the partials.
    """
    first_n = tl.program_id(1) * BLOCK_N
    offs_n = first_n + tl.arange(0, BLOCK_N)
    mask_n = offs_n < D
    if sorted_slot_ids_ptr is None:
        prefetch_rows(down_ptr, first_n, D, I, I, BLOCK_N, PDL)
    begin_early_loads(PDL, "down_ptr sorted_slot_ids_ptr expert_offsets_ptr")
    expert, slots, mask_m, tiles_m = slot_tile(
        sorted_slot_ids_ptr, expert_offsets_ptr, M, E, E_POW2, TOP_K, FEW_SLOTS, BLOCK_M
    )
    w_rows = row_ptrs(down_ptr + tl.minimum(expert, E - 1) * D * I, offs_n, D, I)
    if K_PARTS > 0:
        w = load_early(w_rows, expert < E, I, K_PARTS, BLOCK_N, BLOCK_K, K_SLICES)
    end_early_loads(PDL)
    if sorted_slot_ids_ptr is not None and expert > E:
        return
    length = I
    if sorted_slot_ids_ptr is not None:
        length = tl.where(expert < E, I, 0)  # without an expert, the sum is over nothing
    offs = slots[None, :] * D + offs_n[:, None]
    mask = mask_n[:, None] & mask_m[None, :]
    if sorted_slot_ids_ptr is not None:  # these loads are under way in the product
        has_weight = mask_m & (expert + 0 * slots < E)  # of a block's shape; the weight of an idle slot may be NaN
        weights = tl.load(expert_weights_ptr + slots, mask=has_weight, other=0.0)
    if TOP_K == 1 and residual_ptr is not None:
        residual = tl.load(residual_ptr + offs, mask=mask, other=0.0)
    norm_w = tl.load(norm_ptr + offs_n, mask=mask_n, other=0.0) if norm_ptr is not None else None
    h_rows = h_ptr + slots * I
    if K_PARTS > 0:
        mask_h = mask_m & (expert + 0 * slots < E)  # h of an idle slot is not written
        acc = early_gemm_tile(w, h_rows, mask_h, I, K_PARTS, BLOCK_N, BLOCK_M, BLOCK_K, K_SLICES)
    else:
        acc, _ = gemm_tile(w_rows, None, h_rows, mask_m, length, EVEN_K, BLOCK_N, BLOCK_M, BLOCK_K, K_SLICES)
    if sorted_slot_ids_ptr is not None:
        acc = acc * weights[None, :]
    if TOP_K == 1:
        if residual_ptr is not None:
            acc += residual.to(tl.float32)
        y = round_to(acc, y_ptr.dtype.element_ty)
        tl.store(y_ptr + offs, y, mask=mask)
        if norm_w is not None:
            store_norm(y, norm_w, x_scaled_ptr, sum_sq_ptr, first_n, slots, mask_m, D, BLOCK_N, BLOCK_M)
    else:
        tl.store(partial_ptr + offs, acc, mask=mask)
        if last_to_arrive(counters_ptr + tl.program_id(1), tiles_m):
            _sum_partials(
                partial_ptr, residual_ptr, norm_w, y_ptr, x_scaled_ptr, sum_sq_ptr, M, D, TOP_K, BLOCK_N, BLOCK_M
            )


@triton.jit
def _sum_partials(
    partial_ptr,  # [M * TOP_K, D] fp32
    residual_ptr,  # [M, D], or None
    norm_w,  # [BLOCK_N], or None
    y_ptr,  # [M, D]
    x_scaled_ptr,  # [M, D]
    sum_sq_ptr,  # [M, cdiv(D, 16)] fp32
    M,
    D,
    TOP_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """y of all tokens, in the program's columns: the partials in the order of choice, then the residual."""
    first_n = tl.program_id(1) * BLOCK_N
    offs_n = first_n + tl.arange(0, BLOCK_N)
    for start in range(0, M, BLOCK_M):
        offs_m = start + tl.arange(0, BLOCK_M)
        offs = offs_m.to(tl.int64)[None, :] * D + offs_n[:, None]
        mask = (offs_n < D)[:, None] & (offs_m < M)[None, :]
        y = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
        for j in tl.static_range(TOP_K):
            offs_partial = (offs_m.to(tl.int64)[None, :] * TOP_K + j) * D + offs_n[:, None]
            y += tl.load(partial_ptr + offs_partial, mask=mask, other=0.0)
        if residual_ptr is not None:
            y += tl.load(residual_ptr + offs, mask=mask, other=0.0).to(tl.float32)
        y = round_to(y, y_ptr.dtype.element_ty)
        tl.store(y_ptr + offs, y, mask=mask)
        if norm_w is not None:
            store_norm(y, norm_w, x_scaled_ptr, sum_sq_ptr, first_n, offs_m, offs_m < M, D, BLOCK_N, BLOCK_M)


@operator(mutates_args=("counters",))
def moe_experts(
    x: Annotated[Tensor, "M D"],
    norm_weight: Annotated[Tensor | None, "D"],
    gate: Annotated[Tensor, "E I D", STRIDED],
    up: Annotated[Tensor, "E I D", STRIDED],
    down: Annotated[Tensor, "E D I"],
    eps: float,
    sorted_slot_ids: Annotated[Tensor | None, "M*K", torch.int32] = None,
    expert_offsets: Annotated[Tensor | None, "E+1", torch.int32] = None,
    expert_weights: Annotated[Tensor | None, "M K", torch.float32] = None,
    prefill: bool = False,
    residual: bool = True,
    x_scaled: Annotated[Tensor | None, "M D"] = None,
    sum_sq: Annotated[Tensor | None, "M D/16", torch.float32] = None,
    next_norm_weight: Annotated[Tensor | None, "D"] = None,
    counters: Tensor | None = None,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    (M, D), (E, I, _) = x.shape, gate.shape
    TOP_K = 1 if expert_weights is None else expert_weights.shape[1]
    _check(x, gate, up, sorted_slot_ids=sorted_slot_ids, expert_offsets=expert_offsets, expert_weights=expert_weights)
    check_norm("moe_experts", norm_weight, x_scaled, sum_sq)
    if not prefill:
        check_batch("moe_experts", M)
    y = torch.empty_like(x)
    y_scaled, y_sum_sq = norm_results(x, M, D, next_norm_weight)
    yield y, y_scaled, y_sum_sq
    routed, slots = sorted_slot_ids is not None, M * TOP_K
    # A tile holds the slots of an expert that gets twice its share.
    rows_per_expert = min(slots, 2 * triton.cdiv(slots, E)) if routed else slots
    launch = gemm_config("moe_experts_up", prefill, x.dtype, rows_per_expert, D)
    launch_down = gemm_config("moe_experts_down", prefill, x.dtype, rows_per_expert, I)
    tiles_n = triton.cdiv(D, launch_down["BLOCK_N"])
    h, partial = x.new_empty(slots, I), None
    if TOP_K > 1:
        partial = x.new_empty((slots, D), dtype=torch.float32)
        counters = zeroed_counters(x, tiles_n, counters, "moe_experts")
    added = x if residual else None
    x, sum_sq = prepare_norm(x, norm_weight, x_scaled, sum_sq)
    shared = {"sorted_slot_ids_ptr": sorted_slot_ids, "expert_offsets_ptr": expert_offsets, "M": M, "D": D, "I": I}
    shared |= {"E": E, "E_POW2": triton.next_power_of_2(E + 1), "TOP_K": TOP_K, "FEW_SLOTS": slots <= E}
    _moe_experts_up_kernel[(_tiles_m(slots, E, launch["BLOCK_M"]), triton.cdiv(I, launch["BLOCK_N"]))](
        x_ptr=x,
        sum_sq_ptr=sum_sq,
        gate_ptr=gate,
        up_ptr=up,
        down_ptr=down,
        h_ptr=h,
        stride_expert=gate.stride(0),
        stride_row=gate.stride(1),
        eps=eps,
        N_GROUPS=n_norm_groups(D),
        **shared,
        **launch,
    )
    _moe_experts_down_kernel[(_tiles_m(slots, E + routed, launch_down["BLOCK_M"]), tiles_n)](
        residual_ptr=added,
        h_ptr=h,
        down_ptr=down,
        expert_weights_ptr=expert_weights,
        partial_ptr=partial,
        norm_ptr=next_norm_weight,
        y_ptr=y,
        x_scaled_ptr=y_scaled,
        sum_sq_ptr=y_sum_sq,
        counters_ptr=counters if TOP_K > 1 else None,
        **shared,
        **launch_down,
    )


def _tiles_m(slots: int, groups: int, block_m: int) -> int:
    """The most tiles that so many slots fill, however they are spread over the groups."""
    return (slots + min(groups, slots) * (block_m - 1)) // block_m


def _check(x: Tensor, gate: Tensor, up: Tensor, **routing: Tensor | None) -> None:
    E, I, D = gate.shape
    check_rows("moe_experts", x.dtype, D=D, I=I, **{f"stride {axis} of gate": gate.stride(axis) for axis in (0, 1)})
    if gate.stride() != up.stride():
        raise ValueError(f"moe_experts: up must have the strides of gate, {gate.stride()}, got {up.stride()}")
    given = [name for name, value in routing.items() if value is not None]
    if len(given) not in (0, 3):
        every = "sorted_slot_ids, expert_offsets and expert_weights"
        raise ValueError(f"moe_experts: {every} must be given together, got {given} alone")
    if not given and E != 1:
        raise ValueError(f"moe_experts: without sorted_slot_ids, gate must hold one expert, got E={E}")
    sorted_slot_ids, expert_offsets = routing["sorted_slot_ids"], routing["expert_offsets"]
    if sorted_slot_ids is not None and expert_offsets is not None and may_sync(sorted_slot_ids):
        slots = len(sorted_slot_ids)
        check_range("moe_experts", "sorted_slot_ids", sorted_slot_ids, 0, slots - 1, "the slots")
        check_range("moe_experts", "expert_offsets", expert_offsets, 0, slots, "places in sorted_slot_ids")
        check_range("moe_experts", "steps of expert_offsets", expert_offsets.diff(), 0, slots, "slots of an expert")


def cost(
    M: int,
    D: int,
    I: int,
    active: float,
    k: int,
    itemsize: int,
    routed: bool = True,
    normed: bool = False,
    prepared: bool = True,
    residual: bool = True,
    next_norm: bool = True,
) -> Cost:
    """active: how many experts are read; h between the launches is counted as written and read once."""
    weights = round(active * 3 * I * D)
    moved = M * D + 2 * M * k * I
    moved += M * D * (residual and prepared and not normed)  # x, which the experts do not read
    tokens = input_bytes(M, D, itemsize, normed, prepared) + (8 * M * k if routed else 0)
    tokens += norm_bytes(M, D, itemsize) + D * itemsize if next_norm else 0
    return Cost(bytes=(weights + moved) * itemsize + tokens, flops=6 * M * k * I * D)
