"""MoE router: scores E experts for each token, takes the top k, and sorts the tokens' slots by expert.

    s              = down_weight rms_norm(x, norm_weight) + down_bias (+ router_state * state_scale)
    probs          = softmax(w3 gelu(w2 gelu(w1 rms_norm(s, state_norm) + b1) + b2))
    expert_ids     = the top k of probs + balancing_biases, the lower expert first where they tie
    expert_weights = probs of those experts

Shapes     x [M, D]: M tokens; norm_weight [D], or None: x is normed already; router_state [M, R] and state_scale [R],
           or None, both; down_weight [R, D]; down_bias, state_norm, b1, b2 [R]; w1, w2 [R, R]; w3 [E, R];
           balancing_biases [E], E <= 256; positions [M], or None. Results: expert_ids, expert_weights [M, k];
           probs [M, E]; s [M, R], the state for the next router; sorted_slot_ids [M * k]; expert_offsets [E + 1].
           x_scaled [M, D] and sum_sq [M, cdiv(D, 16)] are those of x (`_norm`), which is not read then; or None, both:
           one more launch makes them, with the same bits.
Dtypes     x, x_scaled, router_state and weights one of fp32, fp16, bf16; expert_ids, sorted_slot_ids, expert_offsets,
           positions, counters int32; sum_sq, expert_weights, probs fp32; fp32 accumulation, norms, GELU (erf) and
           softmax; s and the operands of each matrix product are rounded to x's dtype. In fp16, |norm_weight * x| must
           stay below 65,504.
Raises     ValueError, TypeError naming operation, argument, what came and what is accepted.
Reference  zonos2_triton.reference.moe_router.moe_router
Source     Zyphra/ZONOS2, models/zonos2.py, the router with a state across depth.

One launch has three roles. Each program multiplies a tile of down_weight by a split of D. An atomic counter finds the
last program to arrive, which then sees what the others stored and goes on. It adds the splits in their order. Any
program may be the last. For few tokens each holds the network's weights, loaded before it waits for the launch before.

    program (tile of R, split of D, tile of M)    role       when                    stores
    each                                          project    at once                 partial sums
    the last of a tile of M                       network    all sums are there      s, probs, ids, weights
    the last of all                               sort       every expert is chosen  sorted_slot_ids, expert_offsets

With one tile of M, the program of the network sorts: it has all choices in registers.

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
A token of NaN takes experts 0 .. k - 1, with weights of NaN. Balancing biases of -1e30 and less, -inf among them, tie.

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
from zonos2_triton.kernels._dependent_launch import begin_early_loads, end_early_loads
from zonos2_triton.kernels._launch_config import launch_config
from zonos2_triton.kernels._math import dot_fp32, gelu, last_to_arrive, round_to
from zonos2_triton.kernels._norm import check_norm, input_bytes, load_sum_sq, n_norm_groups, prepare_norm, rms_scale
from zonos2_triton.kernels._operator import Cost, operator, zeroed_counters
from zonos2_triton.kernels._sort_slots import sort_by_expert, sort_tile

# The least of AMD. 8, the least of NVIDIA, takes another instruction on sm_90: results would depend on the batch.
BLOCK_M = 16
BLOCK_SORT = 128  # slots that are sorted at a time
HELD_TILES = 4  # of tokens, of which each program holds the network's weights; more would load them too often
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
    partial_ptr,  # [SPLITS, M, R] fp32
    counters_ptr,  # [1 + tiles of M] int32: tiles that are done, then the programs of each tile
    M,
    D,
    eps,
    R: tl.constexpr,
    E: tl.constexpr,
    TOP_K: tl.constexpr,
    R_POW2: tl.constexpr,  # R and E as axes of a tile
    E_POW2: tl.constexpr,
    SPLITS: tl.constexpr,
    N_GROUPS: tl.constexpr,
    EVEN_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_SORT: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
    HOLD: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid (tiles of R, SPLITS, tiles of M): a program multiplies a tile of R by its split of D.

    The last one of a tile of M adds the splits and runs the network. The last of these sorts all slots.
    """
    split, tile, tiles_m = tl.program_id(1), tl.program_id(2), tl.num_programs(2)
    offs_m = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_r = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    mask_m, mask_r = offs_m < M, offs_r < R
    k = split * BLOCK_K + tl.arange(0, BLOCK_K)
    mask_down, mask_x = mask_r[:, None], mask_m[None, :]
    if not EVEN_K:
        mask_down, mask_x = mask_down & (k < D)[None, :], mask_x & (k < D)[:, None]
    WIDE: tl.constexpr = s_ptr.dtype.element_ty == tl.float32  # two layers would not fit into small shared memories
    begin_early_loads(
        PDL, "down_ptr down_bias_ptr state_norm_ptr w1_ptr b1_ptr w2_ptr b2_ptr w3_ptr balancing_biases_ptr"
    )
    down = tl.load(down_ptr + offs_r.to(tl.int64)[:, None] * D + k[None, :], mask=mask_down, other=0.0)
    if HOLD:
        down_bias, state_norm = _vector(down_bias_ptr, R, R_POW2), _vector(state_norm_ptr, R, R_POW2)
        w1, b1 = _layer(w1_ptr, b1_ptr, R, R, R_POW2, R_POW2)
        if not WIDE:
            w2, b2 = _layer(w2_ptr, b2_ptr, R, R, R_POW2, R_POW2)
        w3, balancing_biases = _layer(w3_ptr, balancing_biases_ptr, E, R, E_POW2, R_POW2)
    end_early_loads(PDL)
    if sum_sq_ptr is not None:
        sum_sq = load_sum_sq(sum_sq_ptr, offs_m, mask_m, N_GROUPS)
    x = tl.load(x_ptr + offs_m.to(tl.int64)[None, :] * D + k[:, None], mask=mask_x, other=0.0)
    acc = dot_fp32(down, x, tl.zeros((BLOCK_R, BLOCK_M), tl.float32))
    if sum_sq_ptr is not None:
        acc *= rms_scale(sum_sq, D, eps, BLOCK_M)
    offs = (split.to(tl.int64) * M + offs_m[None, :]) * R + offs_r[:, None]
    tl.store(partial_ptr + offs, acc, mask=mask_r[:, None] & mask_m[None, :])

    if last_to_arrive(counters_ptr + 1 + tile, tl.num_programs(0) * tl.num_programs(1)):
        idle = tl.zeros_like(offs_m)
        if positions_ptr is not None:
            idle = (tl.load(positions_ptr + offs_m, mask=mask_m, other=0) < 0).to(tl.int32)
        if not HOLD:
            down_bias, state_norm = _vector(down_bias_ptr, R, R_POW2), _vector(state_norm_ptr, R, R_POW2)
            w1, b1 = _layer(w1_ptr, b1_ptr, R, R, R_POW2, R_POW2)
            w3, balancing_biases = _layer(w3_ptr, balancing_biases_ptr, E, R, E_POW2, R_POW2)
        state_ptrs = partial_ptr, router_state_ptr, state_scale_ptr
        s, h = _normed_state(*state_ptrs, down_bias, state_norm, offs_m, mask_m, M, eps, R, R_POW2, SPLITS)
        offs_s = tl.arange(0, R_POW2)[:, None]
        tl.store(s_ptr + offs_m.to(tl.int64)[None, :] * R + offs_s, s, mask=(offs_s < R) & mask_m[None, :])
        h = _gelu_layer(w1, h, b1)
        if WIDE or not HOLD:
            w2, b2 = _layer(w2_ptr, b2_ptr, R, R, R_POW2, R_POW2)
        h = _gelu_layer(w2, h, b2)
        result_ptrs = probs_ptr, expert_ids_ptr, expert_weights_ptr
        choice = _topk(w3, h, balancing_biases, *result_ptrs, offs_m, mask_m, E, TOP_K, E_POW2, BLOCK_M)
        if tiles_m == 1:
            sort_tile(choice, idle, offs_m, sorted_slot_ids_ptr, expert_offsets_ptr, E, TOP_K, E_POW2)
        elif last_to_arrive(counters_ptr, tiles_m):
            routing_ptrs = sorted_slot_ids_ptr, expert_offsets_ptr
            sort_by_expert(expert_ids_ptr, positions_ptr, *routing_ptrs, M * TOP_K, E, TOP_K, BLOCK_SORT, E_POW2)


@triton.jit
def _layer(w_ptr, b_ptr, N: tl.constexpr, K: tl.constexpr, N_POW2: tl.constexpr, K_POW2: tl.constexpr):
    """The weights [N_POW2, K_POW2] and biases [N_POW2] of a layer."""
    offs_n, offs_k = tl.arange(0, N_POW2), tl.arange(0, K_POW2)
    mask = (offs_n < N)[:, None] & (offs_k < K)[None, :]
    w = tl.load(w_ptr + offs_n[:, None] * K + offs_k[None, :], mask=mask, other=0.0)
    return w, _vector(b_ptr, N, N_POW2)


@triton.jit
def _vector(
    ptr,  # [N]
    N: tl.constexpr,
    N_POW2: tl.constexpr,
):
    """N elements, then zeros up to N_POW2."""
    offs = tl.arange(0, N_POW2)
    return tl.load(ptr + offs, mask=offs < N, other=0.0)


@triton.jit
def _normed_state(
    partial_ptr,  # [SPLITS, M, R] fp32
    router_state_ptr,  # [M, R], or None
    state_scale_ptr,  # [R], or None
    down_bias,  # [R_POW2]
    state_norm,  # [R_POW2]
    offs_m,  # [BLOCK_M]
    mask_m,  # [BLOCK_M]
    M,
    eps,
    R: tl.constexpr,
    R_POW2: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """s and rms_norm(s) of a tile of tokens, [R_POW2, BLOCK_M] each, rounded. Tokens are columns, as in `gemm_tile`."""
    offs_r = tl.arange(0, R_POW2)
    mask_r = offs_r < R
    offs = offs_m.to(tl.int64)[None, :] * R + offs_r[:, None]
    mask = mask_r[:, None] & mask_m[None, :]
    if router_state_ptr is not None:
        state_scale = _vector(state_scale_ptr, R, R_POW2)
        state = tl.load(router_state_ptr + offs, mask=mask, other=0.0)
    s = tl.load(partial_ptr + offs, mask=mask, other=0.0)
    for split in tl.static_range(1, SPLITS):
        s += tl.load(partial_ptr + split * M.to(tl.int64) * R + offs, mask=mask, other=0.0)
    s += down_bias.to(tl.float32)[:, None]
    if router_state_ptr is not None:
        s += state.to(tl.float32) * state_scale.to(tl.float32)[:, None]
    s = round_to(s, state_norm.dtype)
    h = s.to(tl.float32)
    h *= tl.rsqrt(tl.sum(h * h, axis=0) / R + eps)[None, :]
    return s, round_to(h * state_norm.to(tl.float32)[:, None], state_norm.dtype)


@triton.jit
def _gelu_layer(w, h, b):
    """gelu(w h + b), rounded to h's dtype, of h [K, BLOCK_M], w [N, K] and b [N]."""
    acc = dot_fp32(w, h, tl.zeros((w.shape[0], h.shape[1]), tl.float32))
    return round_to(gelu(acc + b.to(tl.float32)[:, None]), h.dtype)


@triton.jit
def _topk(
    w3,  # [E_POW2, R_POW2]
    h,  # [R_POW2, BLOCK_M]
    balancing_biases,  # [E_POW2]
    probs_ptr,  # [M, E] fp32
    expert_ids_ptr,  # [M, TOP_K] int32
    expert_weights_ptr,  # [M, TOP_K] fp32
    offs_m,  # [BLOCK_M]
    mask_m,  # [BLOCK_M]
    E: tl.constexpr,
    TOP_K: tl.constexpr,
    E_POW2: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Stores probs, and ids and weights of the TOP_K experts with the largest probs + balancing_biases.

    [E_POW2, BLOCK_M] int32: which choice of a token an expert is, or -1.
    """
    offs_e = tl.arange(0, E_POW2)[:, None]
    mask_e = offs_e < E
    z = dot_fp32(w3, h, tl.zeros((E_POW2, BLOCK_M), tl.float32))
    z = tl.where(mask_e, z, float("-inf"))
    z = tl.exp(z - tl.max(z, axis=0)[None, :])
    probs = z / tl.sum(z, axis=0)[None, :]
    # NaN and -inf are the least scores; experts that were taken, or do not exist, are below them: ids stay in range.
    score = probs + balancing_biases.to(tl.float32)[:, None]
    score = tl.where(mask_e, tl.where(score > -1e30, score, -1e30), float("-inf"))
    choice = tl.full((E_POW2, BLOCK_M), -1, tl.int32)
    for j in tl.static_range(TOP_K):
        best = tl.max(score, axis=0)
        expert = tl.min(tl.where(score == best[None, :], offs_e, E_POW2), axis=0)
        taken = offs_e == expert[None, :]
        choice = tl.where(taken, j, choice)
        score = tl.where(taken, float("-inf"), score)
    tokens = offs_m.to(tl.int64)[None, :]
    tl.store(probs_ptr + tokens * E + offs_e, probs, mask=mask_e & mask_m[None, :])
    chosen = (choice >= 0) & mask_m[None, :]
    tl.store(expert_ids_ptr + tokens * TOP_K + choice, offs_e + 0 * choice, mask=chosen)
    tl.store(expert_weights_ptr + tokens * TOP_K + choice, probs, mask=chosen)
    return tl.where(mask_m[None, :], choice, -1)


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
    splits = triton.cdiv(D, launch["BLOCK_K"])
    partial = x.new_empty((splits, M, R), dtype=torch.float32)
    _moe_router_kernel[(triton.cdiv(R, launch["BLOCK_R"]), splits, tiles_m)](
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
        partial_ptr=partial,
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
        SPLITS=splits,
        EVEN_K=D % launch["BLOCK_K"] == 0,
        BLOCK_M=BLOCK_M,
        BLOCK_SORT=BLOCK_SORT,
        HOLD=tiles_m <= HELD_TILES,
        **launch,
    )


def cost(M: int, D: int, R: int, E: int, k: int, itemsize: int, normed: bool = False, prepared: bool = True) -> Cost:
    weights = R * D + 2 * R * R + E * R
    vectors = 5 * R + E
    states = 2 * M * R
    numbers = M * (E + 3 * k) + E + 1
    tokens = input_bytes(M, D, itemsize, normed, prepared)
    return Cost(bytes=(weights + vectors + states) * itemsize + tokens + 4 * numbers, flops=2 * M * weights)
