"""MoE router: scores E experts for each token, takes the top k, and sorts the tokens' slots by expert.

    s              = down_weight rms_norm(x, norm_weight) + down_bias (+ router_state * state_scale)
    probs          = softmax(w3 gelu(w2 gelu(w1 rms_norm(s, state_norm) + b1) + b2))
    expert_ids     = the top k of probs + balancing_biases, the lower expert first where they tie
    expert_weights = probs of those experts

Shapes     x [M, D]: M tokens; norm_weight [D], or None: x is normed already; router_state [M, R] and state_scale [R],
           or None, both; down_weight [R, D]; down_bias, state_norm, b1, b2 [R]; w1, w2 [R, R]; w3 [E, R];
           balancing_biases [E], E <= 256; positions [M], or None. Results: expert_ids, expert_weights [M, k];
           probs [M, E]; s [M, R], the state for the next router; sorted_slot_ids [M * k]; expert_offsets [E + 1].
Dtypes     x, router_state and weights one of fp32, fp16, bf16; expert_ids, sorted_slot_ids, expert_offsets, positions,
           counters int32; expert_weights, probs fp32; fp32 accumulation, norms, GELU (erf) and softmax; s and the
           operands of each matrix product are rounded to x's dtype.
Raises     ValueError, TypeError naming operation, argument, what came and what is accepted.
Reference  zonos2_triton.reference.moe_router.moe_router
Source     Zyphra/ZONOS2, models/zonos2.py, the router with a state across depth.

One launch has three roles. Each program projects a tile of s. An atomic counter finds the last program to arrive, which
then sees what the others stored and goes on:

    program (tile of R, tile of M)    role      when                           stores
    each                              project   at once                        its tile of s
    the last of a tile of M           network   its tile's s is whole          probs, expert_ids, expert_weights
    the last of all                   sort      every expert is chosen         sorted_slot_ids, expert_offsets

A slot is one choice of one token, a (token, expert) pair: slot m * k + j is choice j of token m.

sorted_slot_ids    slots ordered by expert, then by slot; slots of idle tokens (positions[m] < 0) come last. As vLLM's
                   sorted_token_ids, without padding to blocks.
expert_offsets     expert e has sorted_slot_ids[expert_offsets[e] : expert_offsets[e + 1]]; idle slots begin at
                   expert_offsets[E].

For example, 3 tokens, 2 experts, k = 1 and expert_ids [[1], [0], [1]]: expert 0 has slot 1, expert 1 slots 0 and 2.

    positions           sorted_slot_ids    expert_offsets
    None                [1, 0, 2]          [0, 1, 3]
    [5, 9, -1]          [1, 0, 2]          [0, 1, 2]         slot 2 is idle
    [-1, 9, 4]          [1, 2, 0]          [0, 1, 2]         slot 0 is idle

A token's row of expert_ids, expert_weights, probs and s depends on that token only. Idle tokens get theirs, too.
A token of NaN takes experts 0 .. k - 1, with weights of NaN.

counters   [1 + tiles of 16 tokens] or more: the first counts tiles that are done, each other one the programs of its
           tile. Zero before and after, so calls can share them. None: the call makes them by one more launch.
"""

from collections.abc import Iterator
from typing import Annotated

import torch
import triton
import triton.language as tl
from torch import Tensor

from zonos2_triton.kernels._args import check_rows
from zonos2_triton.kernels._gemm import gemm_tile
from zonos2_triton.kernels._launch_config import launch_config
from zonos2_triton.kernels._math import dot_fp32, gelu, last_to_arrive, round_to
from zonos2_triton.kernels._norm import check_norm, input_bytes, load_sum_sq, n_norm_groups, prepare_norm, rms_scale
from zonos2_triton.kernels._operator import Cost, operator, zeroed_counters

BLOCK_M = 16  # the least for AMD's matrix instructions; larger tiles would save little, as the weights are small
BLOCK_SORT = 128  # slots that are sorted at a time
MAX_EXPERTS = 256  # the one-hot tile of the sort is [BLOCK_SORT, E_POW2]


@triton.jit(do_not_specialize=["M"])  # one binary for every batch
def _moe_router_kernel(
    x_ptr,  # [M, D]: x_scaled; or x, normed already
    sum_sq_ptr,  # [M, N_GROUPS] fp32, or None
    router_state_ptr,  # [M, R], or None
    state_scale_ptr,  # [R], or None
    down_ptr,  # [R, D]
    down_bias_ptr,  # [R]
    state_norm_ptr,  # [R]
    w1_ptr,  # [R, R]
    b1_ptr,  # [R]
    w2_ptr,  # [R, R]
    b2_ptr,  # [R]
    w3_ptr,  # [E, R]
    balancing_biases_ptr,  # [E]
    positions_ptr,  # [M] int32, or None: no token is idle
    expert_ids_ptr,  # [M, TOP_K] int32
    expert_weights_ptr,  # [M, TOP_K] fp32
    probs_ptr,  # [M, E] fp32
    s_ptr,  # [M, R]
    sorted_slot_ids_ptr,  # [M * TOP_K] int32
    expert_offsets_ptr,  # [E + 1] int32
    counters_ptr,  # [1 + tiles of M] int32: tiles that are done, then the programs of each tile
    M,
    D,
    eps,
    R: tl.constexpr,
    E: tl.constexpr,
    TOP_K: tl.constexpr,
    R_POW2: tl.constexpr,  # R and E as axes of a tile
    E_POW2: tl.constexpr,
    N_GROUPS: tl.constexpr,
    EVEN_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_SORT: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Grid (tiles of R, tiles of M): a program projects a tile of s.

    The last one of a tile of M runs its network, and the last of these sorts all slots.
    """
    tile, tiles_m = tl.program_id(1), tl.num_programs(1)
    offs_m = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_r = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    mask_m, mask_r = offs_m < M, offs_r < R
    w_rows = down_ptr + offs_r.to(tl.int64) * D
    x_rows = x_ptr + offs_m.to(tl.int64) * D
    if sum_sq_ptr is not None:
        sum_sq = load_sum_sq(sum_sq_ptr, offs_m, mask_m, N_GROUPS)
    s, _ = gemm_tile(w_rows, None, mask_r, x_rows, mask_m, D, EVEN_K, BLOCK_R, BLOCK_M, BLOCK_K)
    if sum_sq_ptr is not None:
        s *= rms_scale(sum_sq, D, eps, BLOCK_M)
    s += tl.load(down_bias_ptr + offs_r, mask=mask_r, other=0.0).to(tl.float32)[:, None]
    offs = offs_m.to(tl.int64)[None, :] * R + offs_r[:, None]
    mask = mask_r[:, None] & mask_m[None, :]
    if router_state_ptr is not None:
        state_scale = tl.load(state_scale_ptr + offs_r, mask=mask_r, other=0.0).to(tl.float32)
        s += tl.load(router_state_ptr + offs, mask=mask, other=0.0).to(tl.float32) * state_scale[:, None]
    tl.store(s_ptr + offs, round_to(s, s_ptr.dtype.element_ty), mask=mask)
    if last_to_arrive(counters_ptr + 1 + tile, tl.num_programs(0)):
        h = _normed_state(s_ptr, state_norm_ptr, offs_m, mask_m, eps, R, R_POW2)
        h = _gelu_layer(h, w1_ptr, b1_ptr, R, R_POW2, BLOCK_M)
        h = _gelu_layer(h, w2_ptr, b2_ptr, R, R_POW2, BLOCK_M)
        probs = _softmax_layer(h, w3_ptr, R, E, R_POW2, E_POW2, BLOCK_M)
        offs_e = tl.arange(0, E_POW2)
        mask_e = (offs_e < E)[:, None]
        tl.store(probs_ptr + offs_m.to(tl.int64)[None, :] * E + offs_e[:, None], probs, mask=mask_e & mask_m[None, :])
        _topk(probs, balancing_biases_ptr, expert_ids_ptr, expert_weights_ptr, offs_m, mask_m, E, TOP_K, E_POW2)
        if last_to_arrive(counters_ptr, tiles_m):
            _sort_by_expert(
                expert_ids_ptr,
                positions_ptr,
                sorted_slot_ids_ptr,
                expert_offsets_ptr,
                M * TOP_K,
                E,
                TOP_K,
                BLOCK_SORT,
                E_POW2,
            )


@triton.jit
def _normed_state(s_ptr, state_norm_ptr, offs_m, mask_m, eps, R: tl.constexpr, R_POW2: tl.constexpr):
    """rms_norm(s) [R_POW2, BLOCK_M] of a tile of tokens, rounded. Tokens are columns, as in `gemm_tile`."""
    offs_r = tl.arange(0, R_POW2)
    mask_r = offs_r < R
    offs = offs_m.to(tl.int64)[None, :] * R + offs_r[:, None]
    s = tl.load(s_ptr + offs, mask=mask_r[:, None] & mask_m[None, :], other=0.0).to(tl.float32)
    h = s * tl.rsqrt(tl.sum(s * s, axis=0) / R + eps)[None, :]
    norm_w = tl.load(state_norm_ptr + offs_r, mask=mask_r, other=0.0).to(tl.float32)
    return round_to(h * norm_w[:, None], s_ptr.dtype.element_ty)


@triton.jit
def _gelu_layer(h, w_ptr, b_ptr, R: tl.constexpr, R_POW2: tl.constexpr, BLOCK_M: tl.constexpr):
    """gelu(w h + b) [R_POW2, BLOCK_M], rounded to h's dtype."""
    offs_r = tl.arange(0, R_POW2)
    mask_r = offs_r < R
    offs_w = offs_r[:, None] * R + offs_r[None, :]
    w = tl.load(w_ptr + offs_w, mask=mask_r[:, None] & mask_r[None, :], other=0.0)
    acc = dot_fp32(w, h, tl.zeros((R_POW2, BLOCK_M), tl.float32))
    b = tl.load(b_ptr + offs_r, mask=mask_r, other=0.0).to(tl.float32)
    return round_to(gelu(acc + b[:, None]), h.dtype)


@triton.jit
def _softmax_layer(
    h, w3_ptr, R: tl.constexpr, E: tl.constexpr, R_POW2: tl.constexpr, E_POW2: tl.constexpr, BLOCK_M: tl.constexpr
):
    """softmax(w3 h) over the experts, [E_POW2, BLOCK_M] fp32."""
    offs_r, offs_e = tl.arange(0, R_POW2), tl.arange(0, E_POW2)
    mask_r, mask_e = offs_r < R, offs_e < E
    w3 = tl.load(w3_ptr + offs_e[:, None] * R + offs_r[None, :], mask=mask_e[:, None] & mask_r[None, :], other=0.0)
    z = dot_fp32(w3, h, tl.zeros((E_POW2, BLOCK_M), tl.float32))
    z = tl.where(mask_e[:, None], z, float("-inf"))
    z = tl.exp(z - tl.max(z, axis=0)[None, :])
    return z / tl.sum(z, axis=0)[None, :]


@triton.jit
def _topk(
    probs,  # [E_POW2, BLOCK_M]
    balancing_biases_ptr,  # [E]
    expert_ids_ptr,  # [M, TOP_K] int32
    expert_weights_ptr,  # [M, TOP_K] fp32
    offs_m,  # [BLOCK_M]
    mask_m,  # [BLOCK_M]
    E: tl.constexpr,
    TOP_K: tl.constexpr,
    E_POW2: tl.constexpr,
):
    """Stores the ids and weights of the TOP_K experts with the largest probs + balancing_biases."""
    offs_e = tl.arange(0, E_POW2)
    mask_e = offs_e < E
    score = probs + tl.load(balancing_biases_ptr + offs_e, mask=mask_e, other=0.0).to(tl.float32)[:, None]
    # NaN is below every number; experts that were taken, or do not exist, are below NaN: ids stay in range.
    score = tl.where(mask_e[:, None], tl.where(score == score, score, -1e30), float("-inf"))
    for j in tl.static_range(TOP_K):
        best = tl.max(score, axis=0)
        chosen = tl.min(tl.where(score == best[None, :], offs_e[:, None], E_POW2), axis=0)
        taken = offs_e[:, None] == chosen[None, :]
        slots = offs_m.to(tl.int64) * TOP_K + j
        tl.store(expert_ids_ptr + slots, chosen, mask=mask_m)
        tl.store(expert_weights_ptr + slots, tl.sum(tl.where(taken, probs, 0.0), axis=0), mask=mask_m)
        score = tl.where(taken, float("-inf"), score)


@triton.jit
def _sort_by_expert(
    expert_ids_ptr,  # [N] int32
    positions_ptr,  # [N / TOP_K] int32, or None: no token is idle
    sorted_slot_ids_ptr,  # [N] int32
    expert_offsets_ptr,  # [E + 1] int32
    N,  # M * TOP_K
    E: tl.constexpr,
    TOP_K: tl.constexpr,
    BLOCK_SORT: tl.constexpr,
    E_POW2: tl.constexpr,
):
    """The stable counting sort of N slots by expert, in one program; those of idle tokens come last."""
    offs_e = tl.arange(0, E_POW2)
    counts = tl.zeros((E_POW2,), tl.int32)
    for start in range(0, N, BLOCK_SORT):
        slots = start + tl.arange(0, BLOCK_SORT)
        ids, _ = _slot_expert(expert_ids_ptr, positions_ptr, slots, N, TOP_K, E_POW2)
        counts += tl.sum((ids[:, None] == offs_e[None, :]).to(tl.int32), axis=0)
    ends = tl.cumsum(counts, axis=0)
    tl.store(expert_offsets_ptr + 1 + offs_e, ends, mask=offs_e < E)
    tl.store(expert_offsets_ptr, 0)
    next_free = ends - counts  # each expert's next place in sorted_slot_ids
    next_idle = tl.sum(counts, axis=0)
    for start in range(0, N, BLOCK_SORT):
        slots = start + tl.arange(0, BLOCK_SORT)
        ids, idle = _slot_expert(expert_ids_ptr, positions_ptr, slots, N, TOP_K, E_POW2)
        one_hot = (ids[:, None] == offs_e[None, :]).to(tl.int32)
        offs_sorted = tl.sum(one_hot * (next_free[None, :] + tl.cumsum(one_hot, axis=0) - 1), axis=1)
        if positions_ptr is not None:
            offs_sorted += idle * (next_idle + tl.cumsum(idle, axis=0) - 1)
            next_idle += tl.sum(idle, axis=0)
        tl.store(sorted_slot_ids_ptr + offs_sorted, slots, mask=slots < N)
        next_free += tl.sum(one_hot, axis=0)


@triton.jit
def _slot_expert(
    expert_ids_ptr,  # [N] int32
    positions_ptr,  # [N / TOP_K] int32, or None: no token is idle
    slots,  # [BLOCK_SORT]
    N,
    TOP_K: tl.constexpr,
    E_POW2: tl.constexpr,
):
    """[BLOCK_SORT] each: the expert of a slot, E_POW2 where there is none; and 1 where its token is idle, else 0."""
    ids = tl.load(expert_ids_ptr + slots, mask=slots < N, other=E_POW2)
    idle = tl.zeros_like(slots)
    if positions_ptr is not None:
        idle = (tl.load(positions_ptr + slots // TOP_K, mask=slots < N, other=0) < 0).to(tl.int32)
        ids = tl.where(idle == 1, E_POW2, ids)
    return ids, idle


@operator(mutates_args=("counters",))
def moe_router(
    x: Annotated[Tensor, "M D"],
    norm_weight: Annotated[Tensor | None, "D"],
    router_state: Annotated[Tensor | None, "M R"],
    state_scale: Annotated[Tensor | None, "R"],
    down_weight: Annotated[Tensor, "R D"],
    down_bias: Annotated[Tensor, "R"],
    state_norm: Annotated[Tensor, "R"],
    w1: Annotated[Tensor, "R R"],
    b1: Annotated[Tensor, "R"],
    w2: Annotated[Tensor, "R R"],
    b2: Annotated[Tensor, "R"],
    w3: Annotated[Tensor, "E R"],
    balancing_biases: Annotated[Tensor, "E"],
    k: int,
    eps: float,
    positions: Annotated[Tensor | None, "M", torch.int32] = None,
    x_scaled: Annotated[Tensor | None, "M D"] = None,
    sum_sq: Annotated[Tensor | None, "M D/16", torch.float32] = None,
    counters: Tensor | None = None,
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]]:
    (M, D), (E, R) = x.shape, w3.shape
    check_rows("moe_router", x.dtype, D=D, R=R)
    check_norm("moe_router", norm_weight, x_scaled, sum_sq)
    if (router_state is None) != (state_scale is None):
        raise ValueError("moe_router: router_state and state_scale must be given together")
    if E > MAX_EXPERTS:
        raise ValueError(f"moe_router: w3 must have at most {MAX_EXPERTS} rows, one for each expert, got {E}")
    if not 1 <= k <= E:
        raise ValueError(f"moe_router: k must be in 1..E={E}, got {k}")
    tiles_m = triton.cdiv(M, BLOCK_M)
    counters = zeroed_counters(x, tiles_m + 1, counters, "moe_router")
    expert_ids, expert_weights = x.new_empty((M, k), dtype=torch.int32), x.new_empty((M, k), dtype=torch.float32)
    probs, s = x.new_empty((M, E), dtype=torch.float32), x.new_empty((M, R))
    sorted_slot_ids = x.new_empty(M * k, dtype=torch.int32)
    expert_offsets = x.new_empty(E + 1, dtype=torch.int32)
    yield expert_ids, expert_weights, probs, s, sorted_slot_ids, expert_offsets
    x, sum_sq = prepare_norm(x, norm_weight, x_scaled, sum_sq)
    launch = launch_config("moe_router", "down", x.dtype)
    _moe_router_kernel[(triton.cdiv(R, launch["BLOCK_R"]), tiles_m)](
        x_ptr=x,
        sum_sq_ptr=sum_sq,
        router_state_ptr=router_state,
        state_scale_ptr=state_scale,
        down_ptr=down_weight,
        down_bias_ptr=down_bias,
        state_norm_ptr=state_norm,
        w1_ptr=w1,
        b1_ptr=b1,
        w2_ptr=w2,
        b2_ptr=b2,
        w3_ptr=w3,
        balancing_biases_ptr=balancing_biases,
        positions_ptr=positions,
        expert_ids_ptr=expert_ids,
        expert_weights_ptr=expert_weights,
        probs_ptr=probs,
        s_ptr=s,
        sorted_slot_ids_ptr=sorted_slot_ids,
        expert_offsets_ptr=expert_offsets,
        counters_ptr=counters,
        M=M,
        D=D,
        eps=eps,
        R=R,
        E=E,
        TOP_K=k,
        R_POW2=max(16, triton.next_power_of_2(R)),
        E_POW2=max(16, triton.next_power_of_2(E)),
        N_GROUPS=n_norm_groups(D),
        EVEN_K=D % launch["BLOCK_K"] == 0,
        BLOCK_M=BLOCK_M,
        BLOCK_SORT=BLOCK_SORT,
        **launch,
    )


def cost(M: int, D: int, R: int, E: int, k: int, itemsize: int, normed: bool = False, prepared: bool = True) -> Cost:
    weights = R * D + 2 * R * R + E * R
    vectors = 5 * R + E
    states = 2 * M * R
    numbers = M * (E + 3 * k) + E + 1
    tokens = input_bytes(M, D, itemsize, normed, prepared)
    return Cost(bytes=(weights + vectors + states) * itemsize + tokens + 4 * numbers, flops=2 * M * weights)
