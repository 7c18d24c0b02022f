"""Sorts slots, one for each choice of each token, by their expert: `moe_router` says what its lists hold."""

import triton
import triton.language as tl


@triton.jit
def sort_tile(
    choice,  # [E_POW2, BLOCK_M] int32, -1: not chosen, or no token
    idle,  # [BLOCK_M] int32: 1 or 0
    offs_m,  # [BLOCK_M]
    sorted_slot_ids_ptr,  # [M * TOP_K] int32
    expert_offsets_ptr,  # [E + 1] int32
    E: tl.constexpr,
    TOP_K: tl.constexpr,
    E_POW2: tl.constexpr,
):
    """The result of `sort_by_expert`, for slots of one tile of tokens, without a load or a loop."""
    offs_e, tokens = tl.arange(0, E_POW2), tl.arange(0, choice.shape[1])
    bit = tl.full(tokens.shape, 1, tl.uint64) << tokens.to(tl.uint64)  # words are sets of tokens, at most 64
    active = tl.sum(tl.where((choice >= 0) & (idle == 0)[None, :], bit[None, :], 0).to(tl.uint64), axis=1)
    counts = _popcount(active)
    ends = tl.cumsum(counts, axis=0)
    offs_sorted = (ends - counts)[:, None] + _popcount(active[:, None] & (bit - 1)[None, :])
    idle_before = _popcount(tl.sum(tl.where(idle == 1, bit, 0).to(tl.uint64), axis=0) & (bit - 1))
    idle_begins = tl.sum(counts, axis=0) + idle_before * TOP_K
    offs_sorted = tl.where((idle == 1)[None, :], idle_begins[None, :] + choice, offs_sorted)
    tl.store(sorted_slot_ids_ptr + offs_sorted, offs_m[None, :] * TOP_K + choice, mask=choice >= 0)
    tl.store(expert_offsets_ptr + 1 + offs_e, ends, mask=offs_e < E)
    tl.store(expert_offsets_ptr, 0)


@triton.jit
def _popcount(x):
    """Bits of uint64 x that are set."""
    x -= (x >> 1) & 0x5555555555555555
    x = (x & 0x3333333333333333) + ((x >> 2) & 0x3333333333333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F0F0F0F0F
    return ((x * 0x0101010101010101) >> 56).to(tl.int32)


@triton.jit
def sort_by_expert(
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
    list_ptrs = expert_ids_ptr, positions_ptr
    slots = tl.arange(0, BLOCK_SORT)
    ids, idle = _slot_expert(*list_ptrs, slots, N, TOP_K, E_POW2)
    counts = tl.sum((ids[None, :] == offs_e[:, None]).to(tl.int32), axis=1)
    for start in range(BLOCK_SORT, N, BLOCK_SORT):
        later_ids, _ = _slot_expert(*list_ptrs, start + slots, N, TOP_K, E_POW2)
        counts += tl.sum((later_ids[None, :] == offs_e[:, None]).to(tl.int32), axis=1)
    ends = tl.cumsum(counts, axis=0)
    tl.store(expert_offsets_ptr + 1 + offs_e, ends, mask=offs_e < E)
    tl.store(expert_offsets_ptr, 0)
    next_free = ends - counts  # each expert's next place in sorted_slot_ids
    next_idle = tl.sum(counts, axis=0)
    next_free, next_idle = _place(sorted_slot_ids_ptr, slots, ids, idle, next_free, next_idle, E_POW2)
    for start in range(BLOCK_SORT, N, BLOCK_SORT):
        ids, idle = _slot_expert(*list_ptrs, start + slots, N, TOP_K, E_POW2)
        next_free, next_idle = _place(sorted_slot_ids_ptr, start + slots, ids, idle, next_free, next_idle, E_POW2)


@triton.jit
def _place(
    sorted_slot_ids_ptr,  # [N] int32
    slots,  # [BLOCK_SORT]
    ids,  # [BLOCK_SORT], of experts; E_POW2: no expert
    idle,  # [BLOCK_SORT]
    next_free,  # [E_POW2]
    next_idle,
    E_POW2: tl.constexpr,
):
    """Stores slots in their experts' next places, and idle ones in theirs. The next places after these."""
    one_hot = (ids[None, :] == tl.arange(0, E_POW2)[:, None]).to(tl.int32)
    offs_sorted = next_free[:, None] + tl.cumsum(one_hot, axis=1) - 1
    tl.store(sorted_slot_ids_ptr + offs_sorted, slots[None, :] + 0 * one_hot, mask=one_hot == 1)
    tl.store(sorted_slot_ids_ptr + next_idle + tl.cumsum(idle, axis=0) - 1, slots, mask=idle == 1)
    return next_free + tl.sum(one_hot, axis=1), next_idle + tl.sum(idle, axis=0)


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


@triton.jit
def slot_tile(
    sorted_slot_ids_ptr,  # [M * TOP_K] int32, or None: dense
    expert_offsets_ptr,  # [E + 1] int32, or None
    M,
    E: tl.constexpr,
    E_POW2: tl.constexpr,
    TOP_K: tl.constexpr,
    FEW_SLOTS: tl.constexpr,  # as many tiles in the grid as slots
    BLOCK_M: tl.constexpr,
):
    """This program's tile: its expert, its slots [BLOCK_M] and their mask [BLOCK_M]; and the number of tiles.

    The expert is E for idle slots, and above E for a program without a tile. A slot outside of the mask is another
    program's.
    """
    tile = tl.program_id(0)
    offs_m = tl.arange(0, BLOCK_M)
    if sorted_slot_ids_ptr is not None:
        offs_e = tl.arange(0, E_POW2)
        begins = tl.load(expert_offsets_ptr + offs_e, mask=offs_e <= E, other=M * TOP_K, cache_modifier=".cg")
        ends = tl.load(expert_offsets_ptr + 1 + offs_e, mask=offs_e < E, other=M * TOP_K, cache_modifier=".cg")
        counts = (ends - begins + BLOCK_M - 1) // BLOCK_M
        if FEW_SLOTS:  # each may begin a tile: its list is loaded at once, and most programs have one
            places = tile + offs_m
            slots = tl.load(sorted_slot_ids_ptr + places, mask=places < M * TOP_K, other=0, cache_modifier=".cg")
            expert = tl.sum((ends <= tile).to(tl.int32), axis=0)
            is_expert = offs_e == expert
            within = tile - tl.sum(tl.where(is_expert, begins, 0), axis=0)
            mask = places < tl.sum(tl.where(is_expert, ends, 0), axis=0)
            expert = tl.where(within % BLOCK_M == 0, expert, E_POW2)
        else:
            tile_ends = tl.cumsum(counts, axis=0)  # of each expert, the tile after its last
            expert = tl.sum((tile_ends <= tile).to(tl.int32), axis=0)
            is_expert = offs_e == expert
            first = tl.sum(tl.where(is_expert, begins + (tile - tile_ends + counts) * BLOCK_M, 0), axis=0)
            places = first + offs_m
            mask = places < tl.sum(tl.where(is_expert, ends, 0), axis=0)
            slots = tl.load(sorted_slot_ids_ptr + places, mask=mask, other=0, cache_modifier=".cg")
        return expert.to(tl.int64), slots.to(tl.int64), mask, tl.sum(counts, axis=0)
    else:  # one expert, whose slots are the tokens
        slots = (tile * BLOCK_M + offs_m).to(tl.int64)
        return tl.zeros((), tl.int64), tl.minimum(slots, M - 1), slots < M, tl.num_programs(0)
