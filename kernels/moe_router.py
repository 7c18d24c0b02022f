"""The router: which experts each row goes to, with what weight, and the rows sorted by expert.

s = down rms_norm(x) + bias (+ state * scale) is the state for the next router; probs = softmax(w3 gelu(w2 gelu(w1
rms_norm(s) + b1) + b2)); the experts are the top k of probs + biases, the lower one first where they tie; their weights
are the probs.

Shapes     x [M, D]; norm_weight [D], or None: x is normed already; router_state, s [M, R] (router_state and
           state_scale may be None); state_scale, down_bias, state_norm, b1, b2 [R]; down_weight [R, D]; w1, w2 [R, R];
           w3 [E, R]; balancing_biases [E]; expert_ids, expert_weights [M, k]; probs [M, E]; sorted_slot_ids [M * k]:
           slots m * k + j sorted by expert, then by slot; expert_offsets [E + 1]: where each expert's slots begin in
           it; positions [M] or None: a row with a negative one is idle. E <= 256.
Dtypes     x, router_state and weights one of fp32, fp16, bf16; expert_ids, sorted_slot_ids, expert_offsets, positions,
           counters int32; expert_weights, probs fp32; fp32 accumulation, norms, GELU (erf) and softmax; s and
           what enters a product rounded to x's dtype.
Raises     ValueError, TypeError naming operation, argument, what came and what is accepted.
Reference  zonos2_triton.reference.moe_router.moe_router
Source     Zyphra/ZONOS2, models/zonos2.py, the router with a state across depth.

One launch: programs make slices of s; the last one of a tile of rows carries that tile through the network; the last
tile sorts. A row's result depends on itself only; where its scores are NaN it goes to expert 0. An idle row goes to no
expert: its slots come last in sorted_slot_ids, behind expert_offsets[E].

counters   [tiles of 16 rows + 1] or more, zero before and after; None: made by the call, which is a launch more.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from zonos2_triton.kernels._args import Arg, check, check_rows
from zonos2_triton.kernels._gemm import gemm_tile
from zonos2_triton.kernels._launch_config import launch_config
from zonos2_triton.kernels._math import dot_fp32, gelu, last_to_arrive, round_to
from zonos2_triton.kernels._operator import Cost, cpu_fallback, fake, runs_kernel, zeroed_counters

ROWS = 16  # of a tile: the least that matrix instructions take; more would share no weights, which are few
SORTED = 128  # slots that are sorted at a time
MOST_EXPERTS = 256  # an axis of a tile of SORTED slots


@triton.jit(do_not_specialize=["M"])  # one binary for every batch
def _moe_router_kernel(
    x_ptr,
    norm_ptr,
    router_state_ptr,
    state_scale_ptr,
    down_ptr,
    down_bias_ptr,
    state_norm_ptr,
    w1_ptr,
    b1_ptr,
    w2_ptr,
    b2_ptr,
    w3_ptr,
    balancing_biases_ptr,
    ids_ptr,
    weights_ptr,
    probs_ptr,
    s_ptr,
    order_ptr,
    offsets_ptr,
    positions_ptr,
    counters_ptr,
    M,
    D,
    eps,
    R: tl.constexpr,
    E: tl.constexpr,
    K: tl.constexpr,
    NORM: tl.constexpr,
    CARRY: tl.constexpr,
    IDLE: tl.constexpr,
    EVEN_K: tl.constexpr,
    ROWS: tl.constexpr,
    SORTED: tl.constexpr,
    RP: tl.constexpr,
    EP: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Grid (tiles of R, tiles of M): a program owns a tile of s. RP and EP are R and E as axes of a tile."""
    tile, tiles_m = tl.program_id(1), tl.num_programs(1)
    offs_m = tile * ROWS + tl.arange(0, ROWS)
    offs_n = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    mask_m, mask_n = offs_m < M, offs_n < R
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    w_rows = down_ptr + offs_n.to(tl.int64) * D
    acc, _, sum_sq = gemm_tile(
        w_rows,
        w_rows,
        mask_n,
        x_ptr + offs_m.to(tl.int64) * D,
        mask_m,
        norm_ptr,
        D,
        False,
        NORM,
        EVEN_K,
        BLOCK_R,
        ROWS,
        BLOCK_K,
    )
    s = acc
    if NORM:
        s = acc * tl.rsqrt(sum_sq / D + eps)[None, :]
    s += tl.load(down_bias_ptr + offs_n, mask=mask_n, other=0.0).to(tl.float32)[:, None]
    at = offs_m.to(tl.int64)[None, :] * R + offs_n[:, None]
    mask = mask_n[:, None] & mask_m[None, :]
    if CARRY:
        state_scale = tl.load(state_scale_ptr + offs_n, mask=mask_n, other=0.0).to(tl.float32)
        s += tl.load(router_state_ptr + at, mask=mask, other=0.0).to(tl.float32) * state_scale[:, None]
    tl.store(s_ptr + at, round_to(s, dtype), mask=mask)
    if last_to_arrive(counters_ptr + 1 + tile, tl.num_programs(0)):
        _choose(
            s_ptr,
            state_norm_ptr,
            w1_ptr,
            b1_ptr,
            w2_ptr,
            b2_ptr,
            w3_ptr,
            balancing_biases_ptr,
            ids_ptr,
            weights_ptr,
            probs_ptr,
            offs_m,
            mask_m,
            eps,
            R,
            E,
            K,
            ROWS,
            RP,
            EP,
        )
        if last_to_arrive(counters_ptr, tiles_m):
            _sort(ids_ptr, order_ptr, offsets_ptr, positions_ptr, M * K, E, K, IDLE, SORTED, EP)


@triton.jit
def _choose(
    s_ptr,
    state_norm_ptr,
    w1_ptr,
    b1_ptr,
    w2_ptr,
    b2_ptr,
    w3_ptr,
    balancing_biases_ptr,
    ids_ptr,
    weights_ptr,
    probs_ptr,
    offs_m,
    mask_m,
    eps,
    R: tl.constexpr,
    E: tl.constexpr,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    RP: tl.constexpr,
    EP: tl.constexpr,
):
    """The network and the choice for a tile of rows. Columns are rows of s, as in `product`."""
    offs_r, offs_e = tl.arange(0, RP), tl.arange(0, EP)
    mask_r, mask_e = offs_r < R, offs_e < E
    dtype: tl.constexpr = s_ptr.dtype.element_ty
    s_at = offs_m.to(tl.int64)[None, :] * R + offs_r[:, None]
    s = tl.load(s_ptr + s_at, mask=mask_r[:, None] & mask_m[None, :], other=0.0).to(tl.float32)  # [RP, ROWS]
    h = s * tl.rsqrt(tl.sum(s * s, axis=0) / R + eps)[None, :]
    h = round_to(h * tl.load(state_norm_ptr + offs_r, mask=mask_r, other=0.0).to(tl.float32)[:, None], dtype)
    w_at = offs_r[:, None] * R + offs_r[None, :]
    mask_w = mask_r[:, None] & mask_r[None, :]
    h = dot_fp32(tl.load(w1_ptr + w_at, mask=mask_w, other=0.0), h, tl.zeros((RP, ROWS), tl.float32))
    h = round_to(gelu(h + tl.load(b1_ptr + offs_r, mask=mask_r, other=0.0).to(tl.float32)[:, None]), dtype)
    h = dot_fp32(tl.load(w2_ptr + w_at, mask=mask_w, other=0.0), h, tl.zeros((RP, ROWS), tl.float32))
    h = round_to(gelu(h + tl.load(b2_ptr + offs_r, mask=mask_r, other=0.0).to(tl.float32)[:, None]), dtype)
    w3 = tl.load(w3_ptr + offs_e[:, None] * R + offs_r[None, :], mask=mask_e[:, None] & mask_r[None, :], other=0.0)
    z = dot_fp32(w3, h, tl.zeros((EP, ROWS), tl.float32))
    z = tl.where(mask_e[:, None], z, float("-inf"))
    z = tl.exp(z - tl.max(z, axis=0)[None, :])
    p = z / tl.sum(z, axis=0)[None, :]  # [EP, ROWS]
    tl.store(probs_ptr + offs_m.to(tl.int64)[None, :] * E + offs_e[:, None], p, mask=mask_e[:, None] & mask_m[None, :])
    score = p + tl.load(balancing_biases_ptr + offs_e, mask=mask_e, other=0.0).to(tl.float32)[:, None]
    # NaN is below every number and an expert that was taken, or is none, below NaN: ids stay in range.
    score = tl.where(mask_e[:, None], tl.where(score == score, score, -1e30), float("-inf"))
    for j in tl.static_range(K):
        best = tl.max(score, axis=0)
        chosen = tl.min(tl.where(score == best[None, :], offs_e[:, None], EP), axis=0)
        taken = offs_e[:, None] == chosen[None, :]
        at = offs_m.to(tl.int64) * K + j
        tl.store(ids_ptr + at, chosen, mask=mask_m)
        tl.store(weights_ptr + at, tl.sum(tl.where(taken, p, 0.0), axis=0), mask=mask_m)
        score = tl.where(taken, float("-inf"), score)


@triton.jit
def _sort(
    ids_ptr,
    order_ptr,
    offsets_ptr,
    positions_ptr,
    N,
    E: tl.constexpr,
    K: tl.constexpr,
    IDLE: tl.constexpr,
    SORTED: tl.constexpr,
    EP: tl.constexpr,
):
    """The stable counting sort of N slots by expert; those of idle rows come last."""
    offs_e = tl.arange(0, EP)
    counts = tl.zeros((EP,), tl.int32)
    for start in range(0, N, SORTED):
        slots = start + tl.arange(0, SORTED)
        ids, _ = _owners(ids_ptr, positions_ptr, slots, N, K, IDLE, EP)
        counts += tl.sum((ids[:, None] == offs_e[None, :]).to(tl.int32), axis=0)
    ends = tl.cumsum(counts, axis=0)
    tl.store(offsets_ptr + 1 + offs_e, ends, mask=offs_e < E)
    tl.store(offsets_ptr, 0)
    free = ends - counts  # the next place of each expert
    last = tl.sum(counts, axis=0)  # the next of the idle
    for start in range(0, N, SORTED):
        slots = start + tl.arange(0, SORTED)
        ids, idle = _owners(ids_ptr, positions_ptr, slots, N, K, IDLE, EP)
        mine = (ids[:, None] == offs_e[None, :]).to(tl.int32)
        place = tl.sum(mine * (free[None, :] + tl.cumsum(mine, axis=0) - 1), axis=1)
        if IDLE:
            place += idle * (last + tl.cumsum(idle, axis=0) - 1)
            last += tl.sum(idle, axis=0)
        tl.store(order_ptr + place, slots, mask=slots < N)
        free += tl.sum(mine, axis=0)


@triton.jit
def _owners(ids_ptr, positions_ptr, slots, N, K: tl.constexpr, IDLE: tl.constexpr, EP: tl.constexpr):
    """Of each slot: its expert, or EP where it has none; and 1 where its row is idle."""
    ids = tl.load(ids_ptr + slots, mask=slots < N, other=EP)
    idle = tl.zeros_like(slots)
    if IDLE:
        idle = (tl.load(positions_ptr + slots // K, mask=slots < N, other=0) < 0).to(tl.int32)
        ids = tl.where(idle == 1, EP, ids)
    return ids, idle


@torch.library.custom_op("zonos2_triton::moe_router", mutates_args=("counters",))
def moe_router(
    x: Tensor,
    norm_weight: Tensor | None,
    router_state: Tensor | None,
    state_scale: Tensor | None,
    down_weight: Tensor,
    down_bias: Tensor,
    state_norm: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    w3: Tensor,
    balancing_biases: Tensor,
    k: int,
    eps: float,
    positions: Tensor | None = None,
    counters: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    sizes = check(
        "moe_router",
        x=Arg(x, "M D"),
        norm_weight=Arg(norm_weight, "D"),
        down_weight=Arg(down_weight, "R D"),
        down_bias=Arg(down_bias, "R"),
        router_state=Arg(router_state, "M R"),
        state_scale=Arg(state_scale, "R"),
        state_norm=Arg(state_norm, "R"),
        w1=Arg(w1, "R R"),
        b1=Arg(b1, "R"),
        w2=Arg(w2, "R R"),
        b2=Arg(b2, "R"),
        w3=Arg(w3, "E R"),
        balancing_biases=Arg(balancing_biases, "E"),
        positions=Arg(positions, "M", torch.int32),
    )
    M, D, R, E = sizes["M"], sizes["D"], sizes["R"], sizes["E"]
    check_rows("moe_router", x.dtype, D=D, R=R)
    if (router_state is None) != (state_scale is None):
        raise ValueError("moe_router: router_state and state_scale must be given together")
    if E > MOST_EXPERTS:
        raise ValueError(f"moe_router: w3 must have at most {MOST_EXPERTS} rows, one for each expert, got {E}")
    if not 1 <= k <= E:
        raise ValueError(f"moe_router: k must be in 1..E={E}, got {k}")
    tiles_m, carry = triton.cdiv(M, ROWS), router_state is not None and state_scale is not None
    count = zeroed_counters(x, tiles_m + 1, counters, "moe_router")
    if not runs_kernel(x):
        return cpu_fallback(
            "moe_router",
            x,
            norm_weight,
            router_state,
            state_scale,
            down_weight,
            down_bias,
            state_norm,
            w1,
            b1,
            w2,
            b2,
            w3,
            balancing_biases,
            k,
            eps,
            positions,
        )
    outputs = _outputs(x, R, E, k)
    launch = launch_config("moe_router", "down" if norm_weight is not None else "normed", x.dtype)
    _moe_router_kernel[(triton.cdiv(R, launch["BLOCK_R"]), tiles_m)](
        x,
        x if norm_weight is None else norm_weight,
        router_state if carry else x,
        state_scale if carry else x,
        down_weight,
        down_bias,
        state_norm,
        w1,
        b1,
        w2,
        b2,
        w3,
        balancing_biases,
        *outputs,
        x if positions is None else positions,
        count,
        M,
        D,
        eps,
        R=R,
        E=E,
        K=k,
        NORM=norm_weight is not None,
        CARRY=carry,
        IDLE=positions is not None,
        EVEN_K=D % launch["BLOCK_K"] == 0,
        ROWS=ROWS,
        SORTED=SORTED,
        RP=max(16, triton.next_power_of_2(R)),
        EP=max(16, triton.next_power_of_2(E)),
        **launch,
    )
    return outputs


@fake(moe_router)
def _(
    x: Tensor,
    norm_weight: Tensor | None,
    router_state: Tensor | None,
    state_scale: Tensor | None,
    down_weight: Tensor,
    down_bias: Tensor,
    state_norm: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    w3: Tensor,
    balancing_biases: Tensor,
    k: int,
    eps: float,
    positions: Tensor | None = None,
    counters: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    return _outputs(x, down_weight.shape[0], w3.shape[0], k)


def _outputs(x: Tensor, R: int, E: int, k: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """expert_ids, expert_weights, probs, s, sorted_slot_ids, expert_offsets: room for them."""
    M = x.shape[0]
    ids, weights = x.new_empty((M, k), dtype=torch.int32), x.new_empty((M, k), dtype=torch.float32)
    probs, s = x.new_empty((M, E), dtype=torch.float32), x.new_empty((M, R))
    return ids, weights, probs, s, x.new_empty(M * k, dtype=torch.int32), x.new_empty(E + 1, dtype=torch.int32)


def cost(M: int, D: int, R: int, E: int, k: int, itemsize: int, normed: bool = False) -> Cost:
    weights = R * D + 2 * R * R + E * R
    vectors = (not normed) * D + 5 * R + E
    rows = M * (D + 2 * R)
    return Cost(bytes=(weights + vectors + rows) * itemsize + 4 * (M * (E + 3 * k) + E + 1), flops=2 * M * weights)
