"""Mutants of the vocoder's operations; those of `_ring_conv` stand in each kernel whose checks find them."""

from collections.abc import Mapping

from zonos2_triton.bench.proof.mutants.shared import TANH, TRUNCATED, mutants
from zonos2_triton.bench.proof.mutation import Mutant

_LANES = mutants(
    "_ring_conv",
    rows_of_nobody="mask = row {{< => <=}} B",
    columns_of_the_batch="column = m{{ - row * (frames * rate) => }}",
    frames_of_the_first_row="done = tl.load(spans_ptr + row * {{4 => 0}},",
    count_of_the_first_row="spans_ptr + row * {{4 => 0}} + 1",
    length_of_the_first_row="spans_ptr + row * {{4 => 0}} + 2",
    length_of_what_came="spans_ptr + row * 4 + {{2 => 3}}",
    rows_that_sit_out_computed="mask & ({{column < count * rate => (column < count * rate) | (count == 0)}})",
    short_steps_made_whole="mask & ({{column < count * rate => (column < count * rate) | (count > 0)}})",
    one_lane_too_many="column {{< => <=}} count * rate",
    one_lane_too_few="column < count * rate{{ =>  - 1}}",
)
_LAGGING = mutants(
    "_ring_conv",
    lag_of_the_other_sign="done * rate {{- => +}} lag + column",
    lag_forgotten="done * rate {{- lag  => }}+ column",
    lag_of_frames="{{done * rate - lag => (done - lag) * rate}} + column",
    rate_forgotten="done {{* rate  => }}- lag + column",
    rate_of_the_length_forgotten="+ column, length {{* rate  => }}- short",
    short_forgotten="+ column, length * rate{{ - short => }}",
    short_counted_up="+ column, length * rate {{- => +}} short",
    positions_of_32_bits="row * 4, mask=mask, other=0){{.to(tl.int64) => }}",
    lengths_of_32_bits="row * 4 + 2, mask=mask, other=0){{.to(tl.int64) => }}",
)
_PLACED = mutants(
    "_ring_conv",
    places_never_turn="(position{{ % ring => }})",
    places_turn_once="{{(position % ring => tl.where(position >= ring, position - ring, position}})",
    places_one_on="({{position => (position + 1)}} % ring)",
    places_of_one_less="(position % {{ring => (ring - 1)}})",
)
_ONWARD = mutants(
    "_ring_conv",
    wrap_forgotten="{{tl.where(at + step >= ring, at + step - ring, at + step) => at + step}}",
    wrap_one_late="tl.where(at + step {{>= => >}} ring,",
    wrap_one_early="tl.where(at + step >= ring{{ =>  - 1}},",
    wrap_to_the_second="at + step - ring{{ =>  + 1}},",
)
_SPAN = mutants(
    "_ring_conv",
    before_the_clip_read="begin = tl.minimum(tl.maximum(-first, 0){{ =>  * 0}}",
    first_position_unread="tl.maximum({{- => 1 - }}first, 0)",
    one_before_the_clip_read="tl.maximum(-first{{ =>  - 1}}, 0)",
    behind_the_clip_read="tl.maximum(size - first{{ =>  + (1 << 20)}}, 0)",
    one_behind_the_clip_read="tl.maximum(size - first{{ =>  + 1}}, 0)",
    last_position_unread="tl.maximum(size - first{{ =>  - 1}}, 0)",
    open_ends_not_clamped="{{tl.minimum(tl.maximum(size - first, 0), 1 << 30 => tl.maximum(size - first, 0}})",
)
_GATHERED = mutants(
    "_ring_conv",
    taps_and_chunks_swapped="tap = i {{// => %}} CHUNKS",
    first_chunk_again="c = {{(i % CHUNKS) * BLOCK_K +  => }}",
    tail_of_channels_not_masked="if CI {{% BLOCK_K != => <}} 0:",
    tail_of_channels_one_too_long="mask = mask & (c {{< => <=}} CI)[None, :]",
    tail_of_channels_one_too_short="mask = mask & (c < CI{{ =>  - 1}})[None, :]",
    taps_at_no_distance="offset(row, onward(at, {{ => 0 * }}ahead, ring)",
    tap_at_the_begin_unread="(ahead {{>= => >}} begin) & ",
    tap_at_the_end_read="& (ahead {{< => <=}} end))",
    begin_forgotten="({{(ahead >= begin) & (ahead < end) => ahead < end}})",
    end_forgotten="((ahead >= begin) & ({{ahead < end => end > 0}}))",
    ring_of_the_first_row="offset({{ => 0 * }}row, onward(at, ahead, ring),",
    rings_of_another_length="onward(at, ahead, ring), ring{{ =>  - 1}}, CI,",
    channels_of_another_width="onward(at, ahead, ring), ring, CI{{ =>  - 1}},",
    zeros_by_a_product=(
        "mask = ((ahead >= begin) & (ahead < end))[:, None] ... mask & (c < CI) ... "
        "mask={{mask => ((ahead >= begin) & (end > 0))[:, None] & (c < CI)[None, :]}}, other=0.0{{) => ) * mask}} return x,"
    ),
    weights_of_the_first_tap="return x, {{tap * CI +  => }}c,",
    weights_of_whole_blocks="return x, tap * {{CI => CHUNKS * BLOCK_K}} + c,",
    weights_one_too_many="tap * CI + c, c {{< => <=}} CI",
    weights_not_masked="if {{not EVEN => K < 0}}: mask",
    rows_of_weights_not_masked="mask = {{mask_n => (n >= 0)}}[None, :] ... tl.load(w_ptr + n",
)
_DILATED = mutants("_ring_conv", taps_without_dilation="ahead = tap{{ * step => }}")
_TAPS = mutants(
    "_ring_conv",
    first_block_forgotten="range({{ => 1, }}blocks)",
    last_block_forgotten="range(blocks{{ =>  - 1}})",
    last_block_only="mask_k, TAPS * CI, CI % BLOCK_K == 0), {{acc => tl.zeros_like(acc)}}, TF32)",
    even_taken_for_granted="TAPS * CI, {{CI % BLOCK_K == 0 => True}})",
    always_tf32="acc, {{TF32 => True}}) return acc",
)
_WIDE = mutants("_ring_conv", weights_of_one_tap="mask_k, {{TAPS *  => }}CI, CI %")
_EMITTED = mutants(
    "_ring_conv",
    old_values_counted_as_none=(
        "if HAS_Y: {{ => out += 0.0 * tl.load(y_ptr + y_rows + channel[None, :], mask=mask, other=0.0); }}"
        "tl.store(y_ptr + y_rows + channel[None, :], out, mask=mask)"
    ),
    y_without_act_forgotten="if HAS_Y{{ =>  and HAS_ACT}}:",
    act_without_y_forgotten="if HAS_ACT{{ =>  and HAS_Y}}:",
    y_in_the_ring_of_act="y_rows, act_rows, ... y_ptr + {{y_rows => act_rows}}",
    act_in_the_ring_of_y="y_rows, act_rows, ... act_ptr + {{act_rows => y_rows}}",
    y_not_masked="mask, channel, mask_n, ... y_ptr + y_rows + channel[None, :], out, mask={{mask => mask_n[None, :]}})",
    y_rounded="y_ptr + y_rows + channel[None, :], {{out => round_to(out, tl.float16)}}, mask=mask)",
    act_not_masked="mask, channel, mask_n, ... act_ptr + act_rows + channel[None, :], act, mask={{mask => mask_n[None, :]}})",
    act_not_activated="round_to({{snake(out, alpha) => out}}, act_ptr",
    alpha_of_the_first_channel="alpha_ptr + {{ => 0 * }}channel",
)
_ROUNDED_ONCE = mutants(
    "_ring_conv",
    act_of_what_was_rounded="snake({{out => round_to(out, act_ptr.dtype.element_ty).to(tl.float32)}}, alpha)",
)
_SNAKE = mutants(
    "_math",
    snake_without_its_divisor="{{ * (1.0 / (alpha + 1e-9))[None, :] => }}",
    snake_multiplied="{{(1.0 / (alpha + 1e-9)) => alpha}}[None, :]",
    snake_without_alpha="sine_squared(x{{ * alpha[None, :] => }})",
    snake_without_x="return {{x +  => }}sine_squared",
    sine_not_squared="x + {{sine_squared => tl.sin}}(x * alpha[None, :])",
    sine_and_cosine_swapped="{{s, 1.0 - => 1.0 - s,}} s)",
    cosine_forgotten="{{tl.where(half == tl.floor(half), s, 1.0 - s) => s}}",
    multiple_rounded_down="tl.floor(x * TWO_OVER_PI{{ + 0.5 => }})",
    half_pi_of_its_first_part="({{(x - n * HALF_PI_1) - n * HALF_PI_2 => x - n * HALF_PI_1}})",
    sine_by_too_short_a_series="p = {{s * -0.00019514963787514716 +  => }}0.00833215843886137",
    sine_is_its_argument="r = r {{+ r * (s * p) => * 1.0}}",
    remainder_not_bounded="r = {{tl.minimum(tl.maximum(r, -0.8), 0.8) => r * 1.0}}",
)
_VISIBLE = mutants("_math", nan_hidden="return {{x => tl.where(x == x, x, 0.0)}} + sine_squared(")
_TEN_BITS = mutants(
    "_math",
    tf32_cut_off="{{(bits + 0x1000) => bits}} & 0xFFFFE000",
    tf32_of_eight_bits="(bits + {{0x1000) & 0xFFFFE000 => 0x4000) & 0xFFFF8000}}",
    tf32_rounded_by_a_whole_place="bits + {{0x1000 => 0x2000}}",
)
_RINGS = _PLACED + _ONWARD + _SPAN + _GATHERED
_WRITTEN = _EMITTED + _ROUNDED_ONCE + _SNAKE
# Of a kernel that computes a middle tap's position.
_LIVE = {
    "before_the_clip_written": "live & (t {{>= 0) & (t  => }}< size)",
    "behind_the_clip_written": "live & (t >= 0){{ & (t < size) => }}",
    "first_position_not_written": "live & (t {{>= => >}} 0)",
    "last_position_not_written": "& (t < size{{ =>  - 1}})",
    "one_behind_the_clip_written": "& (t {{< => <=}} size)",
}
_TILES = {
    "tiles_of_any_dead_lane_leave": "tl.{{max => min}}(live.to(tl.int32), axis=0) == 0",
    "tiles_of_one_lane_leave": "tl.{{max => sum}}(live.to(tl.int32), axis=0) {{== 0 => <= 1}}",
    "lanes_of_nobody_live": "live = live {{& => |}}",
    "tiles_of_one_row": "cdiv({{B *  => }}each, ",
}
# Of a launch, whose BLOCK_K decides the order of a sum.
_ORDERS = {
    "short_steps_in_other_blocks": (
        '= frames * rate ... launch = launch_config(... {{ => launch["BLOCK_K"] = 64 if frames > 2 else 16; }}blocks = '
    ),
    "single_rows_in_other_blocks": 'launch = launch_config(... {{ => launch["BLOCK_K"] = 64 if B > 1 else 16; }}blocks = ',
}
_BLOCKS = {**_ORDERS, "blocks_rounded_down": '{{triton.cdiv(Ci, launch["BLOCK_K"] => max(Ci // launch["BLOCK_K"], 1}})'}
_DILATION = {
    "reach_without_dilation": "reach = TAPS // 2{{ * step => }}",
    "reach_of_all_taps": "reach = {{TAPS // 2 => (TAPS - 1)}} * step",
    "lag_without_reach": "rate, lag{{ + reach => }}, short",
    "lag_before_the_reach": "rate, lag {{+ => -}} reach, short",
    "dilation_of_one": "short, {{dilation => 1}}, R,",
}

# The lengths of a kernel's rings, as its arguments.
_RING_SIZES = "spans_ptr, B, frames, blocks, rate, lag, short, step, ring_x, ring_r, ring_y, ring_act, ... "

VOCODER: Mapping[str, tuple[Mutant, ...]] = {
    "conv1d_snake": mutants(
        "conv1d_snake",
        TRUNCATED + _LANES + _LAGGING + _RINGS + _DILATED + _TAPS + _WIDE + _WRITTEN + _VISIBLE + _TEN_BITS,
        **_LIVE,
        **_TILES,
        **_DILATION,
        **_BLOCKS,
        taps_from_the_middle="row, t{{ - reach => }}, size",
        channels_of_the_first_tile="n = {{tl.program_id(1) * BLOCK_N +  => }}",
        one_channel_too_many="mask_n = n {{< => <=}} CO",
        bias_forgotten="acc += {{ => 0.0 * }}tl.load(bias_ptr",
        bias_of_the_first_channel="bias_ptr + {{ => 0 * }}n",
        residual_forgotten="acc += {{ => 0.0 * }}tl.load(residual_ptr",
        residual_taken_off="acc {{+= => -=}} tl.load(residual_ptr",
        residual_alone="acc {{+= => =}} tl.load(residual_ptr",
        residual_of_the_first_tap=(
            "reach = TAPS // 2 * step ... "
            "at = offset(row, place(t{{ =>  - reach}}, ring_r), ring_r, CO, LONG) acc += tl.load(residual_ptr"
        ),
        residual_at_the_place_of_x=_RING_SIZES + "place(t, {{ring_r => ring_x}})",
        residual_at_the_place_of_y=_RING_SIZES + "place(t, {{ring_r => ring_y}})",
        residual_of_the_first_row="at = offset({{ => 0 * }}row, place(t, ring_r), ring_r, CO, LONG) acc += tl.load(residual_ptr",
        residual_in_the_row_of_x=_RING_SIZES + "place(t, ring_r), {{ring_r => ring_x}},",
        residual_of_what_is_masked="mask = live[:, None] & ... residual_ptr + at[:, None] + n[None, :], mask={{mask => live[:, None]}},",
        y_at_the_place_of_x=_RING_SIZES + "y_rows = offset(row, place(t, {{ring_y => ring_x}})",
        y_in_the_first_row=_RING_SIZES + "offset({{ => 0 * }}row, place(t, ring_y)",
        act_at_the_place_of_y=_RING_SIZES + "place(t, {{ring_act => ring_y}})",
        act_in_the_row_of_y=_RING_SIZES + "place(t, ring_act), {{ring_act => ring_y}},",
        act_before_the_reach=_RING_SIZES + "reach = TAPS // 2 * step ... place(t{{ =>  - reach}}, ring_act)",
    ),
    "conv_transpose1d_snake": mutants(
        "conv_transpose1d_snake",
        TRUNCATED + _LANES + _LAGGING + _RINGS + _TAPS + _WIDE + _WRITTEN,
        **_TILES,
        **_BLOCKS,
        last_outputs_forgotten="(q {{<= => <}} size)",
        first_input_left_out="(q {{>= => >}} 0)",
        inputs_one_late="row, q{{ - 1 => }}, size",
        inputs_two_back="row, q - {{1 => 2}}, size",
        later_input_forgotten="ring_x, {{1 => 0}}, blocks",
        phases_interleaved="n {{// CO, n % CO => % STRIDE, n // STRIDE}}",
        bias_of_the_phase="phase, channel = ... bias_ptr + {{channel => phase}}",
        bias_forgotten="acc += {{ => 0.0 * }}tl.load(bias_ptr",
        padding_rounded_down="{{(STRIDE + 1) => STRIDE}} // 2",
        padding_forgotten="q * STRIDE{{ - (STRIDE + 1) // 2 => }}",
        padding_of_the_stride="{{(STRIDE + 1) // 2 => STRIDE}}",
        odd_stride_as_long_as_even="size * STRIDE{{ - STRIDE % 2 => }}",
        even_stride_as_short_as_odd="size * STRIDE - {{STRIDE % 2 => 1}}",
        length_of_the_input="size{{ * STRIDE - STRIDE % 2 => }}",
        first_phase_left_out="phase[None, :] {{>= => >}} begin",
        one_phase_too_many="phase[None, :] {{< => <=}} end",
        phases_before_the_clip="{{(phase[None, :] >= begin[:, None]) &  => }}",
        phases_behind_the_clip=" & ({{phase[None, :] < end[:, None]) => end > 0)[:, None]}}",
        dead_lanes_written="t = q * STRIDE ... size * STRIDE - STRIDE % 2, {{live => q == q}})",
        outputs_not_masked="mask = {{mask_n[None, :] &  => }}",
        one_output_too_many="mask_n = n {{< => <=}} STRIDE * CO",
        outputs_of_the_first_tile="n = {{tl.program_id(1) * BLOCK_N +  => }}",
        tiles_of_one_phase="cdiv({{stride *  => }}Co, ",
        wrap_of_y_forgotten="ring_y, ring_act, CI ... {{onward => }}(place(t, ring_y)[:, None]{{, =>  +}} phase[None, :]{{, ring_y => }})",
        wrap_of_act_forgotten="ring_act, CI ... {{onward => }}(place(t, ring_act)[:, None]{{, =>  +}} phase[None, :]{{, ring_act => }})",
        act_wraps_with_y="ring_y, ring_act, CI ... phase[None, :], {{ring_act => ring_y}})",
        act_at_the_place_of_y="ring_y, ring_act, CI ... place(t, {{ring_act => ring_y}})",
        y_in_the_row_of_x="ring_x, ring_y, ring_act, CI ... y_at, {{ring_y => ring_x}},",
        act_in_the_first_row="ring_act, CI ... offset({{ => 0 * }}row[:, None], act_at, ring_act,",
        act_in_the_rows_of_y="emit(acc, y_ptr, act_ptr, alpha_ptr, y_rows, {{act_rows => y_rows}}, mask",
        rows_of_one_channel="y_rows = offset(row[:, None], y_at, ring_y, {{CO => 1}}, LONG) act_at",
        phases_of_one_channel="n // CO, ... mask, {{channel => n % 1}}, mask_n, HAS_Y",
    ),
    "residual_unit": mutants(
        "residual_unit",
        TRUNCATED + _LANES + _LAGGING + _RINGS + _DILATED + _EMITTED + _SNAKE,
        **_LIVE,
        **_TILES,
        **_DILATION,
        **_ORDERS,
        ring_of_the_residual=_RING_SIZES + "gathered(x_ptr, row, at, {{ring_x => ring_r}},",
        taps_from_the_middle="at = place(t{{ - reach => }}, ring_x)",
        bounds_of_the_middle="span(t{{ - reach => }}, size, live)",
        second_part_twice="n0 + BLOCK_N, n0 + {{2 *  => }}BLOCK_N",
        first_part_twice="n0 = tl.arange(0, BLOCK_N) ... acc1 = dot_fp32(x, weights(w_ptr, {{n1, k, n1 => n0, k, n0}} < C",
        last_block_forgotten="range(blocks{{ =>  - 1}})",
        blocks_rounded_down='{{triton.cdiv(C, => (C //}} launch["BLOCK_K"])',
        weights_of_one_tap="WIDE: tl.constexpr = {{TAPS *  => }}C",
        even_taken_for_granted="EVEN: tl.constexpr = {{C % BLOCK_K == 0 => True}}",
        bias_forgotten="acc += {{ => 0.0 * }}tl.load(bias_ptr",
        activated_before_the_bias=(
            "{{acc += tl.load(bias_ptr + n, mask=n < C, other=0.0).to(tl.float32)[None, :] => pass}} return round_to("
            "{{ => tl.load(bias_ptr + n, mask=n < C, other=0.0).to(tl.float32)[None, :] + }}snake("
        ),
        not_activated_between="{{snake(acc, tl.load(alpha_ptr + n, mask=n < C, other=1.0).to(tl.float32)) => acc}}, dt",
        inner_alpha_of_the_outer=".element_ty h0 = _between(acc0, bias_ptr, {{inner_alpha_ptr => alpha_ptr}},",
        outer_alpha_of_the_inner="y_ptr, act_ptr, {{alpha_ptr => inner_alpha_ptr}}, y_rows",
        second_part_is_the_first=".element_ty h0 = _between(acc0, ... h1 = _between({{acc1 => acc0}},",
        third_part_of_other_channels=(
            ".element_ty h0 = ... h1 = _between(acc1, bias_ptr, inner_alpha_ptr, n1, C, dtype) "
            "h2 = _between(acc2, bias_ptr, inner_alpha_ptr, {{n2 => n1}},"
        ),
        second_weights_transposed="out = dot_fp32(h0, weights(inner_w_ptr, {{n, n0, mask_n, n0 < C => n0, n, n0 < C, mask_n}}, C, C % BLOCK_N == 0), out, TF32) if",
        second_part_forgotten="if PARTS == 3: out {{= => += 0.0 *}} dot_fp32(h1, weights(inner_w_ptr",
        third_part_for_the_second="if PARTS == 3: out = dot_fp32({{h1 => h2}}, ... out = dot_fp32(h2",
        second_weights_of_the_first_part="n0 = tl.arange(0, BLOCK_N) ... weights(inner_w_ptr, n, {{n1, mask_n, n1 => n0, mask_n, n0}} < C, C,",
        second_weights_not_masked="n1, n2 = ... n2 < C, C, {{C % BLOCK_N == 0 => True}})",
        inner_bias_forgotten="out += {{ => 0.0 * }}tl.load(inner_bias_ptr",
        bias_for_the_inner_bias="tl.load({{inner_bias_ptr => bias_ptr}} + n",
        residual_forgotten="out += {{ => 0.0 * }}tl.load(residual_ptr",
        residual_is_what_was_activated="{{residual_ptr => x_ptr}} + r_rows",
        residual_at_the_place_of_x=_RING_SIZES + "r_rows = offset(row, place(t, {{ring_r => ring_x}})",
        residual_of_the_first_tap="reach = TAPS // 2 * step ... r_rows = offset(row, place(t{{ =>  - reach}}, ring_r)",
        residual_in_the_row_of_x=_RING_SIZES + "place(t, ring_r), {{ring_r => ring_x}},",
        y_at_the_place_of_act=_RING_SIZES + "place(t, {{ring_y => ring_act}})",
        y_in_the_row_of_the_residual=_RING_SIZES + "place(t, ring_y), {{ring_y => ring_r}},",
        act_in_the_row_of_y=_RING_SIZES + "place(t, ring_act), {{ring_act => ring_y}},",
        act_in_the_first_row=_RING_SIZES + "offset({{ => 0 * }}row, place(t, ring_act)",
        first_part_only="tl.static_range({{PARTS => 1}})",
        parts_in_one_place="n = {{part * BLOCK_N + n0 => n0 * 1}}",
        one_channel_too_many="mask_n = n {{< => <=}} C",
    ),
    "rvq_decode": mutants(
        "rvq_decode",
        TRUNCATED + _LANES + _PLACED,
        behind_the_clip_written="live = live & (frame {{< length => >= 0}})",
        one_behind_the_clip_written="live = live & (frame {{< => <=}} length)",
        last_frame_not_written="live = live & (frame < length{{ =>  - 1}})",
        codes_up_to_the_length="spans_ptr + row * 4 + {{3 => 2}}",
        codes_that_came_to_the_first="spans_ptr + row * {{4 => 0}} + 3",
        no_clip_closed="closed = known < {{0 => -(1 << 30)}}",
        every_clip_closed="closed = known < {{0 => (1 << 30)}}",
        closed_at_one_less="tl.where(closed, {{~known => -known - 2}}, known)",
        closed_at_one_more="tl.where(closed, {{~ => -}}known, known)",
        bias_columns_of_the_first="{{tl.where(p < C * K, p // K, p - C * => (p //}} K)",
        delay_ignored="+ c * {{DELAYED => 0}}",
        always_delayed="+ c{{ * DELAYED => }}",
        delay_of_one="+ {{c => tl.minimum(c, 1)}} * DELAYED",
        codes_of_the_first_row="({{row[:, None] * N +  => }}came % N)",
        codes_never_turn="{{came % N => tl.minimum(came, N - 1)}})",
        codes_turn_one_late="came % {{N => (N + 1)}})",
        columns_of_the_codebooks="came % N) * {{W => C}} + c",
        codebook_of_the_first="came % N) * W{{ + c => }}",
        stale_codes_read="mask=mask{{ & (came < known) => }}, other=OPEN",
        one_code_too_many="mask=mask & (came {{< => <=}} known), other=OPEN",
        missing_codes_are_the_first="other={{OPEN => 0}})",
        code_above_the_last="tl.maximum(code, 0), V{{ - 1 => }})",
        code_of_the_last_but_one="tl.maximum(code, 0), V - {{1 => 2}})",
        codes_not_clamped="code = {{tl.minimum(tl.maximum(code, 0), V - 1 => tl.maximum(code, 0}})",
        missing_codes_counted="used = mask{{ & ((came < known) | closed) => }}",
        codes_of_the_end_not_counted="used = mask & ({{(came < known) | closed => came < known}})",
        codebooks_share_a_table="({{c * V => 0 * c}} + code) * K",
        tables_of_one_more="(c * {{V => (V + 1)}} + code) * K",
        vectors_of_one_number="(p % {{K => 1}})[None, :]",
        bias_of_what_is_missing="used = mask & ... x, {{used.to => mask.to}}(tl.float32).to(x.dtype))",
        bias_forgotten="x, {{ => 0.0 * }}used.to(tl.float32).to(x.dtype))",
        bias_of_the_last_codebook_forgotten="(p < C * K + C{{ =>  - 1}})[None, :]",
        columns_of_the_first_tile="n = {{tl.program_id(1) * BLOCK_N +  => }}",
        one_column_too_many="w = weights(w_ptr, n, p, n {{< => <=}} D,",
        columns_not_masked="mask=live[:, None] & (n {{< D => >= 0}})[None, :]",
        dead_lanes_written="offset(row, ... mask={{live => (row < B)}}[:, None] & (n < D)[None, :]",
        z_in_the_ring_of_codes="place(frame, ring), {{ring => N}},",
        z_at_the_place_of_the_codes="place(frame, {{ring => N}})",
        tiles_of_one_row="cdiv({{B *  => }}frames, ",
        tiles_of_one_column="cdiv({{D => 1}}, launch",
    ),
    "conv1d_tanh": mutants(
        "conv1d_tanh",
        TANH + _LANES + _LAGGING + _RINGS + _TAPS,
        **_LIVE,
        **_BLOCKS,
        tiles_of_one_row="cdiv({{B *  => }}each, ",
        lag_without_reach="rate, lag{{ + TAPS // 2 => }}, short",
        taps_from_the_middle="row, t{{ - TAPS // 2 => }}, size",
        weights_of_two_channels="n, n < {{1 => 2}}, ring_x",
        channel_of_nobody="tl.where((n == {{0 => 1}})[None, :], acc, 0.0)",
        bias_forgotten="{{ + tl.load(bias_ptr).to(tl.float32) => }}",
        bias_for_each_column=(
            "{{tl.where((n == 0)[None, :], acc, 0.0), axis=1) => acc}}"
            " + tl.load(bias_ptr).to(tl.float32){{ => , axis=1)}}"
        ),
        tanh_forgotten="tl.where(live, {{tanh(out) => out}}, 0.0)",
        dead_samples_sound="{{tl.where(live, tanh(out), 0.0 => tanh(out}})",
        nan_hidden="tl.where(live{{ =>  & (out == out)}}, tanh(out), 0.0)",
        dead_samples_unwritten="tl.where(live, tanh(out), 0.0), mask={{row < B => live}})",
        samples_of_nobody="0.0){{, mask=row < B => }})",
        samples_of_one_row="samples_ptr + {{row * (frames * rate) +  => }}column",
        samples_from_the_lag="lag + TAPS // 2, ... row * (frames * rate) + {{column => (column + lag) % rate}}",
        tanh_kept="LONG), {{out => tanh(out)}}, mask=live)",
        kept_before_the_clip="offset(row, ... out, mask={{live => row < B}}) tl.store",
        kept_at_the_place_of_x="ring_x, ring_y, CI ... place(t, {{ring_y => ring_x}})",
        kept_in_the_first_row="offset({{ => 0 * }}row, place(t, ring_y)",
    ),
}
