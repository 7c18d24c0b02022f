"""How mutants are written, and those of the helpers that several kernels share."""

from itertools import chain

from zonos2_triton.bench.proof.mutation import Mutant


def mutants(file: str, *shared: tuple[Mutant, ...], **patterns: str) -> tuple[Mutant, ...]:
    """The shared ones, and those of a module: a pattern by name, as in `bench.proof.patterns`."""
    return (*chain(*shared), *(Mutant(name.replace("_", "-"), file, text) for name, text in patterns.items()))


EXPONENTIAL = mutants(
    "_math",
    exponential_without_its_correction="({{(high - (one - 1.0)) + (low + r * r * p) => low + r * r * p}})",
    exponential_without_the_low_part="low = n * {{-LN2_LOW => 0.0}}",
    exponential_of_a_wide_remainder="tl.floor(c * LOG2E{{ + 0.5 => }})",
)
TRUNCATED = mutants("_math", truncated="({{(bits + 0x7FFF + ((bits >> 16) & 1)) => bits}} & 0xFFFF0000)")
TURNED = mutants(
    "_math",
    sine_of_the_wrong_sign="(even * cos {{- => +}} odd * sin, {{even * sin + odd * cos => odd * cos - even * sin}})",
    pair_swapped="(even * {{cos - => sin +}} odd * {{sin => cos}}, even * {{sin + => cos -}} odd * {{cos => sin}})",
)
HEAD_NORM = mutants("_math", head_norm_without_epsilon="/ DH{{ + EPS => }})", head_norm_of_sum="{{/ DH  => }}+ EPS)")
TANH = mutants(
    "_math",
    tanh_without_sign="{{tl.where(x < 0, -t, t) => t}}",
    tanh_by_too_short_a_fraction="s * {{(1260.0 + s * 21.0) => 1260.0}}",
    tanh_series_too_far="a < {{0.625 => 6.25}}",
)
COUNTED = mutants(
    "_math",
    counter_stays="{{tl.store(counter_ptr, 0) => pass}}",
    no_barrier_before_the_count="{{tl.debug_barrier() => pass}} seen = tl.atomic_add",
    relaxed_count='sem={{"acq_rel" => "relaxed"}}',
    count_within_a_block='scope={{"gpu" => "cta"}}',
    last_but_one_joins="last = seen == n - {{1 => 2}}",
)
MULTIPLIED = mutants(
    "_gemm",
    tail_of_K_not_masked="mask_w = {{start + k_w < end_k if not EVEN_K else None => None}} mask_x",
    tail_of_K_one_too_long="k_w {{< => <=}} end_k if not EVEN_K else None mask_x = start + k_x {{< => <=}} end_k if",
    tail_of_K_one_too_short="mask_x = start + k_x < end_k{{ =>  - 1}} if not EVEN_K else None if",
    rows_beyond_the_last="{{tl.minimum(offs, n - 1) => offs}}.to(tl.int64) * stride",
    last_block_of_K_only="acc = dot_fp32(w, x, {{acc => tl.zeros_like(acc)}}) if up_ptrs is not None",
    slice_forgotten="acc = {{left + right => left}} return",
    slices_overlap="[:, None, None] * {{slice_k => 1}} end = tl.minimum(",
    weights_of_the_first_slice="k_w = {{first_k => first_k * 0}} + tl.arange(0, DEPTH)[None, None, :]",
)
# Of products that load their weights early for a few tokens.
EARLY = mutants(
    "_gemm",
    early_weights_of_the_first_slice="def load_early(... k = tl.arange(0, K_SLICES)[:, None, None] * {{slice_k => 0}} + tl.arange",
    first_half_of_one_part="if wanted: loaded = () for i in tl.static_range(HALF): loaded += (tl.load(ptrs + {{i => 0}} * DEPTH),)",
    second_half_of_the_first="for i in tl.static_range(HALF, K_PARTS): loaded += (tl.load(ptrs + {{i => (i - HALF)}} * DEPTH),)",
    second_half_in_front="return {{first + second => second + first}}",
    early_weights_for_nobody="if {{wanted & (K > 0) => K > K}}: loaded = ()",
    early_part_forgotten="acc = tl.zeros((K_SLICES, BLOCK_N, BLOCK_M), tl.float32) for i in tl.static_range(K_PARTS{{ =>  - 1}}): acc = dot_fp32(w[i]",
    early_activations_of_the_first_part="acc = dot_fp32(w[i], _stays(x[{{i => 0}}]), acc)",
    early_parts_in_reverse="acc = dot_fp32(w[{{i => K_PARTS - 1 - i}}], _stays(x[{{i => K_PARTS - 1 - i}}]), acc)",
)
PREPARED = mutants(
    "_norm",
    next_norm_weight_forgotten="round_to(wide{{ * norm_w.to(tl.float32)[:, None] => }}, x_scaled_ptr",
    sums_in_halves="x = tl.sum(x.reshape(A, {{N >> (i + 1), 2, B), axis=2 => 2, N >> (i + 1), B), axis=1}})",
    one_group_too_many="mask=(offs_g {{< => <=}} n_groups)[:, None]",
    one_group_too_few="mask=(offs_g < n_groups{{ =>  - 1}})[:, None]",
    groups_of_a_token_too_close="offs_m.to(tl.int64)[None, :] * {{n_groups => (n_groups - 1)}} + offs_g",
    x_scaled_of_columns_not_masked="x_scaled, mask={{mask_n[:, None] &  => }}mask_m[None, :]",
)
# Of producers whose programs own tiles; those of `frame_embedding` own a token.
PREPARED_TILES = PREPARED + mutants(
    "_norm",
    squares_of_columns_not_masked="{{tl.where(mask_n[:, None], wide * wide, 0.0) => wide * wide}}",
    groups_of_the_first_tile="offs_g = {{first_n // GROUP +  => }}tl.arange",
    sums_of_tokens_not_masked="(offs_g < n_groups)[:, None]{{ & mask_m[None, :] => }}",
    x_scaled_of_tokens_not_masked="x_scaled, mask=mask_n[:, None]{{ & mask_m[None, :] => }}",
)
NORMED = mutants(
    "_norm",
    norm_without_epsilon="total / D{{ + eps => }})",
    norm_of_the_sum="total {{/ D  => }}+ eps)",
    squares_of_the_first_token="offs = {{tokens.to(tl.int64)[:, None] * N_GROUPS + offs_g => 0 * tokens.to(tl.int64)[:, None] + offs_g}}",
    one_group_too_many_read="mask_m[:, None] & (offs_g {{< => <=}} N_GROUPS)",
    one_group_too_few_read="mask_m[:, None] & (offs_g < N_GROUPS{{ =>  - 1}})",
    not_prepared="if norm_weight is None {{or x_scaled is not None => or True}}:",
)
SLOT_TILES = mutants(
    "_sort_slots",
    idle_rows_left_out="mask=offs_e {{<= => <}} E, other=M * TOP_K, cache_modifier=",
    idle_slots_from_the_first="mask=offs_e {{<= E, other=M * TOP_K => < E, other=0}}, cache_modifier=",
    one_idle_slot_too_few="mask=offs_e < E, other=M * TOP_K{{ =>  - 1}}, cache_modifier=",
    first_expert_for_all="return {{ => 0 * }}expert.to(tl.int64), slots",
    expert_slots_off_by_one="before = tl.cumsum(counts, axis=0) expert = tl.sum((before {{<= => <}} tile)",
    expert_of_few_slots_off_by_one='other=0, cache_modifier=".cg") expert = tl.sum((ends {{<= => <}} tile)',
    few_slots_each_begin_a_tile="tl.where({{within % BLOCK_M == 0 => within >= 0}}, expert, E_POW2)",
    second_tile_of_few_slots_forgotten="tl.where(within{{ % BLOCK_M => }} == 0, expert, E_POW2)",
    few_slots_of_the_next_expert="mask = places {{< => <=}} tl.sum(tl.where(mine, ends, 0), axis=0) expert = tl.where(",
    ragged_tile_forgotten="(ends - begins{{ + BLOCK_M - 1 => }}) // BLOCK_M",
    slot_of_the_next_expert="+ offs_m mask = places {{< => <=}} tl.sum(",
    second_tile_of_an_expert="(tile - before + counts){{ * BLOCK_M => }}",
    slots_in_sequence='slots = {{tl.load(sorted_slot_ids_ptr + first, mask=mask, other=0, cache_modifier=".cg") => tl.where(mask, first, 0)}} return',
)
GATED = mutants(
    "moe_experts",
    gate_not_scaled="gate, up = gate * {{scale => 1.0}}, up * scale",
    up_not_scaled="gate, up = gate * scale, up * {{scale => 1.0}}",
)

# Of all tiles of rows; each is its own program.
ROW_TILES = {
    "rows_not_masked": "mask_m, mask_n = offs_m {{< M => >= 0}},",
    "one_row_too_many": "mask_m, mask_n = offs_m {{< => <=}} M,",
    "one_row_too_few": "mask_m, mask_n = offs_m < M{{ =>  - 1}},",
}
GELU = mutants(
    "_math",
    gelu_by_tanh="return {{tl.maximum(x, 0.0) - a * (t * q) * tl.exp(-0.5 * a * a) => "
    "0.5 * x * (1.0 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))}}",
    gelu_of_one_side="{{tl.maximum(x, 0.0) => x}} - a * (t * q)",
)
SILU = mutants("_math", silu_is_sigmoid="return {{x => 1.0}} / (1.0 + tl.exp(-x))")
