"""Mutants of the vocoder's operations; those of `_ring_conv` stand in each kernel whose checks find them."""

from collections.abc import Mapping

from zonos2_triton.bench.proof.mutants.shared import TANH, TRUNCATED, mutants
from zonos2_triton.bench.proof.mutation import Mutant

_POSITIONS = mutants(
    "_ring_conv",
    slots_beyond_the_batch="mask = slot {{< => <=}} B",
    columns_of_the_batch="column = m{{ - slot * (frames * samples_per_frame) => }}",
    frames_of_the_first_slot="done = tl.load(step_meta_ptr + slot * {{4 => 0}},",
    count_of_the_first_slot="step_meta_ptr + slot * {{4 => 0}} + 1",
    length_of_the_first_slot="step_meta_ptr + slot * {{4 => 0}} + 2",
    length_of_known_codes="step_meta_ptr + slot * 4 + {{2 => 3}}",
    idle_slots_computed="mask & ({{column < count * samples_per_frame => (column < count * samples_per_frame) | (count == 0)}})",
    short_steps_made_whole="mask & ({{column < count * samples_per_frame => (column < count * samples_per_frame) | (count > 0)}})",
    one_position_too_many="column {{< => <=}} count * samples_per_frame",
    one_position_too_few="column < count * samples_per_frame{{ =>  - 1}}",
)
_TIMING = mutants(
    "_ring_conv",
    delay_of_the_other_sign="done * samples_per_frame {{- => +}} delay + column",
    delay_forgotten="done * samples_per_frame {{- delay  => }}+ column",
    delay_of_frames="{{done * samples_per_frame - delay => (done - delay) * samples_per_frame}} + column",
    samples_per_frame_forgotten="done {{* samples_per_frame  => }}- delay + column",
    samples_per_frame_of_the_length_forgotten="clip_len = length {{* samples_per_frame  => }}- tail_trim return slot",
    tail_trim_forgotten="clip_len = length * samples_per_frame{{ - tail_trim => }} return slot",
    tail_trim_added="clip_len = length * samples_per_frame {{- => +}} tail_trim return slot",
    positions_of_32_bits="slot * 4, mask=mask, other=0){{.to(tl.int64) => }}",
    lengths_of_32_bits="slot * 4 + 2, mask=mask, other=0){{.to(tl.int64) => }}",
)
_RING_INDEX = mutants(
    "_ring_conv",
    ring_index_never_wraps="(position{{ % R => }})",
    ring_index_wraps_once="{{(position % R => tl.where(position >= R, position - R, position}})",
    ring_index_one_on="({{position => (position + 1)}} % R)",
    ring_of_one_less="(position % {{R => (R - 1)}})",
)
_RING_ADVANCE = mutants(
    "_ring_conv",
    wrap_forgotten="{{tl.where(index + distance >= R, index + distance - R, index + distance) => index + distance}}",
    wrap_one_late="tl.where(index + distance {{>= => >}} R,",
    wrap_one_early="tl.where(index + distance >= R{{ =>  - 1}},",
    wrap_to_the_second="index + distance - R{{ =>  + 1}},",
)
_TAP_RANGE = mutants(
    "_ring_conv",
    before_the_clip_read="begin = tl.minimum(tl.maximum(-first, 0){{ =>  * 0}}",
    first_position_unread="tl.maximum({{- => 1 - }}first, 0)",
    one_before_the_clip_read="tl.maximum(-first{{ =>  - 1}}, 0)",
    behind_the_clip_read="tl.maximum(clip_len - first{{ =>  + (1 << 20)}}, 0)",
    one_behind_the_clip_read="tl.maximum(clip_len - first{{ =>  + 1}}, 0)",
    last_position_unread="tl.maximum(clip_len - first{{ =>  - 1}}, 0)",
    open_ends_not_clamped="{{tl.minimum(tl.maximum(clip_len - first, 0), 1 << 30 => tl.maximum(clip_len - first, 0}})",
)
_IM2COL = mutants(
    "_ring_conv",
    taps_and_chunks_swapped="tap = i {{// => %}} CHUNKS",
    first_chunk_again="c = {{(i % CHUNKS) * BLOCK_K +  => }}",
    tail_of_channels_not_masked="if CI {{% BLOCK_K != => <}} 0:",
    tail_of_channels_one_too_long="mask = mask & (c {{< => <=}} CI)[None, :]",
    tail_of_channels_one_too_short="mask = mask & (c < CI{{ =>  - 1}})[None, :]",
    taps_at_no_distance="ring_offset(slot, ring_advance(index, {{ => 0 * }}ahead, R)",
    tap_at_the_begin_unread="(ahead {{>= => >}} begin) & ",
    tap_at_the_end_read="& (ahead {{< => <=}} end))",
    begin_forgotten="({{(ahead >= begin) & (ahead < end) => ahead < end}})",
    end_forgotten="((ahead >= begin) & ({{ahead < end => end > 0}}))",
    ring_of_the_first_slot="ring_offset({{ => 0 * }}slot, ring_advance(index, ahead, R),",
    rings_of_another_length="ring_advance(index, ahead, R), R{{ =>  - 1}}, CI,",
    channels_of_another_width="ring_advance(index, ahead, R), R, CI{{ =>  - 1}},",
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
_DILATED = mutants("_ring_conv", taps_without_dilation="ahead = tap{{ * dilation => }} mask = ")
_GEMM = mutants(
    "_ring_conv",
    first_block_forgotten="range({{ => 1, }}n_blocks)",
    last_block_forgotten="range(n_blocks{{ =>  - 1}})",
    last_block_only="mask_k, TAPS * CI, CI % BLOCK_K == 0), {{acc => tl.zeros_like(acc)}}, TF32)",
    even_taken_for_granted="TAPS * CI, {{CI % BLOCK_K == 0 => True}})",
    always_tf32="acc, {{TF32 => True}}) return acc",
)
_WIDE = mutants("_ring_conv", weights_of_one_tap="mask_k, {{TAPS *  => }}CI, CI %")
_EPILOGUE = mutants(
    "_ring_conv",
    old_values_counted_as_none=(
        "if y_ptr is not None: {{ => out += 0.0 * tl.load(y_ptr + y_offs + channel[None, :], mask=mask, other=0.0); }}"
        "tl.store(y_ptr + y_offs + channel[None, :], out, mask=mask)"
    ),
    y_without_activated_forgotten="if y_ptr is not None{{ =>  and activated_ptr is not None}}:",
    activated_without_y_forgotten="if activated_ptr is not None{{ =>  and y_ptr is not None}}:",
    y_in_the_ring_of_activated="y_offs, activated_offs, ... y_ptr + {{y_offs => activated_offs}}",
    activated_in_the_ring_of_y="y_offs, activated_offs, ... activated_ptr + {{activated_offs => y_offs}}",
    y_not_masked="mask, channel, mask_n): ... y_ptr + y_offs + channel[None, :], out, mask={{mask => mask_n[None, :]}})",
    y_rounded="y_ptr + y_offs + channel[None, :], {{out => round_to(out, tl.float16)}}, mask=mask)",
    activated_not_masked="mask, channel, mask_n): ... activated_ptr.dtype.element_ty), mask={{mask => mask_n[None, :]}})",
    activated_not_activated="round_to({{snake(out, alpha) => out}}, activated_ptr",
    alpha_of_the_first_channel="alpha_ptr + {{ => 0 * }}channel",
)
_ROUNDED_ONCE = mutants(
    "_ring_conv",
    activated_after_rounding="snake({{out => round_to(out, activated_ptr.dtype.element_ty).to(tl.float32)}}, alpha)",
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
_RINGS = _RING_INDEX + _RING_ADVANCE + _TAP_RANGE + _IM2COL
_WRITTEN = _EPILOGUE + _ROUNDED_ONCE + _SNAKE
# Of a kernel that computes a middle tap's position.
_LIVE = {
    "before_the_clip_written": "live & (t {{>= 0) & (t  => }}< clip_len)",
    "behind_the_clip_written": "live & (t >= 0){{ & (t < clip_len) => }}",
    "first_position_not_written": "live & (t {{>= => >}} 0)",
    "last_position_not_written": "& (t < clip_len{{ =>  - 1}})",
    "one_behind_the_clip_written": "& (t {{< => <=}} clip_len)",
}
_TILES = {
    "tiles_of_any_dead_position_leave": "tl.{{max => min}}(live.to(tl.int32), axis=0) == 0",
    "tiles_of_one_position_leave": "tl.{{max => sum}}(live.to(tl.int32), axis=0) {{== 0 => <= 1}}",
    "dead_positions_live": "live = live {{& => |}}",
    "tiles_of_one_slot": "cdiv({{B *  => }}each, ",
}
# BLOCK_K of a launch decides the order of a sum.
_ORDERS = {
    "short_steps_in_other_blocks": (
        'step_meta: Annotated[Tensor, "B 4", torch.int32], frames: int, ... tf32=tf32){{ =>  | dict(BLOCK_K=64 if frames > 2 else 16)}}'
    ),
    "single_slots_in_other_blocks": "tf32=tf32){{ =>  | dict(BLOCK_K=64 if B > 1 else 16)}}",
}
_BLOCKS = {**_ORDERS, "blocks_rounded_down": '{{triton.cdiv(Ci, launch["BLOCK_K"] => max(Ci // launch["BLOCK_K"], 1}})'}
_DILATION = {
    "reach_without_dilation": "reach = TAPS // 2{{ * step => }}",
    "reach_of_all_taps": "reach = {{TAPS // 2 => (TAPS - 1)}} * step",
    "delay_without_reach": "samples_per_frame, delay{{ + reach => }}, tail_trim",
    "delay_before_the_reach": "samples_per_frame, delay {{+ => -}} reach, tail_trim",
    "dilation_of_one": "dilation={{dilation => 1}}, **step",
}

# The lengths of a kernel's rings, as its arguments.
_SIZES = "step_meta_ptr, B, frames, n_blocks, samples_per_frame, delay, tail_trim, step, x_ring_len, residual_ring_len, y_ring_len, activated_ring_len, ... "

VOCODER: Mapping[str, tuple[Mutant, ...]] = {
    "conv1d_snake": mutants(
        "conv1d_snake",
        TRUNCATED + _POSITIONS + _TIMING + _RINGS + _DILATED + _GEMM + _WIDE + _WRITTEN + _VISIBLE + _TEN_BITS,
        **_LIVE,
        **_TILES,
        **_DILATION,
        **_BLOCKS,
        taps_from_the_middle="first = t{{ - reach => }} acc = implicit_gemm(",
        channels_of_the_first_tile="n = {{tl.program_id(1) * BLOCK_N +  => }}",
        one_channel_too_many="mask_n = n {{< => <=}} CO",
        bias_forgotten="acc += {{ => 0.0 * }}tl.load(bias_ptr",
        bias_of_the_first_channel="bias_ptr + {{ => 0 * }}n",
        residual_forgotten="acc += {{ => 0.0 * }}tl.load(residual_ptr",
        residual_taken_off="acc {{+= => -=}} tl.load(residual_ptr",
        residual_alone="acc {{+= => =}} tl.load(residual_ptr",
        residual_of_the_first_tap=(
            "reach = TAPS // 2 * step ... "
            "at = ring_offset(slot, ring_index(t{{ =>  - reach}}, residual_ring_len), residual_ring_len, CO, INT64) acc += tl.load(residual_ptr"
        ),
        residual_at_the_index_of_x=_SIZES + "ring_index(t, {{residual_ring_len => x_ring_len}})",
        residual_at_the_index_of_y=_SIZES + "ring_index(t, {{residual_ring_len => y_ring_len}})",
        residual_of_the_first_slot="at = ring_offset({{ => 0 * }}slot, ring_index(t, residual_ring_len), residual_ring_len, CO, INT64) acc += tl.load(residual_ptr",
        residual_with_the_length_of_x=_SIZES + "ring_index(t, residual_ring_len), {{residual_ring_len => x_ring_len}},",
        residual_of_what_is_masked="mask = live[:, None] & ... residual_ptr + at[:, None] + n[None, :], mask={{mask => live[:, None]}},",
        y_at_the_index_of_x=_SIZES + "y_offs = ring_offset(slot, ring_index(t, {{y_ring_len => x_ring_len}})",
        y_in_the_first_slot=_SIZES + "ring_offset({{ => 0 * }}slot, ring_index(t, y_ring_len)",
        activated_at_the_index_of_y=_SIZES + "ring_index(t, {{activated_ring_len => y_ring_len}})",
        activated_with_the_length_of_y=_SIZES
        + "ring_index(t, activated_ring_len), {{activated_ring_len => y_ring_len}},",
        activated_before_the_reach=_SIZES
        + "reach = TAPS // 2 * step ... ring_index(t{{ =>  - reach}}, activated_ring_len)",
    ),
    "conv_transpose1d_snake": mutants(
        "conv_transpose1d_snake",
        TRUNCATED + _POSITIONS + _TIMING + _RINGS + _GEMM + _WIDE + _WRITTEN,
        **_TILES,
        **_BLOCKS,
        last_outputs_forgotten="(q {{<= => <}} clip_len)",
        first_input_left_out="(q {{>= => >}} 0)",
        inputs_one_late="first = q{{ - 1 => }}",
        inputs_two_back="first = q - {{1 => 2}}",
        later_input_forgotten="x_ring_len, {{1 => 0}}, n_blocks",
        phases_interleaved="n {{// CO, n % CO => % STRIDE, n // STRIDE}}",
        bias_of_the_phase="phase, channel = ... bias_ptr + {{channel => phase}}",
        bias_forgotten="acc += {{ => 0.0 * }}tl.load(bias_ptr",
        padding_rounded_down="{{(STRIDE + 1) => STRIDE}} // 2",
        padding_forgotten="q * STRIDE{{ - (STRIDE + 1) // 2 => }}",
        padding_of_the_stride="{{(STRIDE + 1) // 2 => STRIDE}}",
        odd_stride_as_long_as_even="clip_len * STRIDE{{ - STRIDE % 2 => }}",
        even_stride_as_short_as_odd="clip_len * STRIDE - {{STRIDE % 2 => 1}}",
        length_of_the_input="clip_len{{ * STRIDE - STRIDE % 2 => }}",
        first_phase_left_out="phase[None, :] {{>= => >}} begin",
        one_phase_too_many="phase[None, :] {{< => <=}} end",
        phases_before_the_clip="{{(phase[None, :] >= begin[:, None]) &  => }}",
        phases_behind_the_clip=" & ({{phase[None, :] < end[:, None]) => end > 0)[:, None]}}",
        dead_positions_written="t = q * STRIDE ... clip_len * STRIDE - STRIDE % 2, {{live => q == q}})",
        outputs_not_masked="mask = {{mask_n[None, :] &  => }}",
        one_output_too_many="mask_n = n {{< => <=}} STRIDE * CO",
        outputs_of_the_first_tile="n = {{tl.program_id(1) * BLOCK_N +  => }}",
        tiles_of_one_phase="cdiv({{stride *  => }}Co, ",
        wrap_of_y_forgotten="y_ring_len, activated_ring_len, CI ... {{ring_advance => }}(ring_index(t, y_ring_len)[:, None]{{, =>  +}} phase[None, :]{{, y_ring_len => }})",
        wrap_of_activated_forgotten="activated_ring_len, CI ... {{ring_advance => }}(ring_index(t, activated_ring_len)[:, None]{{, =>  +}} phase[None, :]{{, activated_ring_len => }})",
        activated_wraps_with_y="y_ring_len, activated_ring_len, CI ... phase[None, :], {{activated_ring_len => y_ring_len}})",
        activated_at_the_index_of_y="y_ring_len, activated_ring_len, CI ... ring_index(t, {{activated_ring_len => y_ring_len}})",
        y_with_the_length_of_x="x_ring_len, y_ring_len, activated_ring_len, CI ... y_index, {{y_ring_len => x_ring_len}},",
        activated_in_the_first_slot="activated_ring_len, CI ... ring_offset({{ => 0 * }}slot[:, None], activated_index, activated_ring_len,",
        activated_in_the_rows_of_y="store_epilogue(acc, y_ptr, activated_ptr, alpha_ptr, y_offs, {{activated_offs => y_offs}}, mask",
        rows_of_one_channel="y_offs = ring_offset(slot[:, None], y_index, y_ring_len, {{CO => 1}}, INT64) activated_index",
        phases_of_one_channel="n // CO, ... mask, {{channel => n % 1}}, mask_n)",
    ),
    "residual_unit": mutants(
        "residual_unit",
        TRUNCATED + _POSITIONS + _TIMING + _RINGS + _DILATED + _EPILOGUE + _SNAKE,
        **_LIVE,
        **_TILES,
        **_DILATION,
        **_ORDERS,
        ring_of_the_residual=_SIZES + "im2col_tile(x_ptr, slot, at, {{x_ring_len => residual_ring_len}},",
        taps_from_the_middle="at = ring_index(t{{ - reach => }}, x_ring_len)",
        bounds_of_the_middle="tap_range(t{{ - reach => }}, clip_len, live)",
        second_tile_twice="n0 + BLOCK_N, n0 + {{2 *  => }}BLOCK_N",
        first_tile_twice="n0 = tl.arange(0, BLOCK_N) ... acc1 = dot_fp32(x, weight_tile(w_ptr, {{n1, k, n1 => n0, k, n0}} < C",
        last_block_forgotten="range(n_blocks{{ =>  - 1}})",
        blocks_rounded_down='{{triton.cdiv(C, => (C //}} launch["BLOCK_K"])',
        weights_of_one_tap="K: tl.constexpr = {{TAPS *  => }}C",
        even_taken_for_granted="EVEN: tl.constexpr = {{C % BLOCK_K == 0 => True}}",
        bias_forgotten="acc += {{ => 0.0 * }}tl.load(bias_ptr",
        activated_before_the_bias=(
            "{{acc += tl.load(bias_ptr + n, mask=n < C, other=0.0).to(tl.float32)[None, :] => pass}} return round_to("
            "{{ => tl.load(bias_ptr + n, mask=n < C, other=0.0).to(tl.float32)[None, :] + }}snake("
        ),
        not_activated_between="{{snake(acc, tl.load(alpha_ptr + n, mask=n < C, other=1.0).to(tl.float32)) => acc}}, dt",
        inner_alpha_of_the_outer=".element_ty h0 = _activate(acc0, bias_ptr, {{inner_alpha_ptr => alpha_ptr}},",
        outer_alpha_of_the_inner="y_ptr, activated_ptr, {{alpha_ptr => inner_alpha_ptr}}, y_offs",
        second_tile_is_the_first=".element_ty h0 = _activate(acc0, ... h1 = _activate({{acc1 => acc0}},",
        third_tile_of_other_channels=(
            ".element_ty h0 = ... h1 = _activate(acc1, bias_ptr, inner_alpha_ptr, n1, C, dtype) "
            "h2 = _activate(acc2, bias_ptr, inner_alpha_ptr, {{n2 => n1}},"
        ),
        second_weights_transposed="out = dot_fp32(h0, weight_tile(inner_w_ptr, {{n, n0, mask_n, n0 < C => n0, n, n0 < C, mask_n}}, C, C % BLOCK_N == 0), out, TF32) if",
        second_tile_forgotten="if N_TILES == 3: out {{= => += 0.0 *}} dot_fp32(h1, weight_tile(inner_w_ptr",
        third_tile_for_the_second="if N_TILES == 3: out = dot_fp32({{h1 => h2}}, ... out = dot_fp32(h2",
        second_weights_of_the_first_tile="n0 = tl.arange(0, BLOCK_N) ... weight_tile(inner_w_ptr, n, {{n1, mask_n, n1 => n0, mask_n, n0}} < C, C,",
        second_weights_not_masked="n1, n2 = ... n2 < C, C, {{C % BLOCK_N == 0 => True}})",
        inner_bias_forgotten="out += {{ => 0.0 * }}tl.load(inner_bias_ptr",
        bias_for_the_inner_bias="tl.load({{inner_bias_ptr => bias_ptr}} + n",
        residual_forgotten="out += {{ => 0.0 * }}tl.load(residual_ptr",
        residual_is_what_was_activated="{{residual_ptr => x_ptr}} + residual_offs",
        residual_at_the_index_of_x=_SIZES
        + "residual_offs = ring_offset(slot, ring_index(t, {{residual_ring_len => x_ring_len}})",
        residual_of_the_first_tap="reach = TAPS // 2 * step ... residual_offs = ring_offset(slot, ring_index(t{{ =>  - reach}}, residual_ring_len)",
        residual_with_the_length_of_x=_SIZES + "ring_index(t, residual_ring_len), {{residual_ring_len => x_ring_len}},",
        y_at_the_index_of_activated=_SIZES + "ring_index(t, {{y_ring_len => activated_ring_len}})",
        y_with_the_length_of_the_residual=_SIZES + "ring_index(t, y_ring_len), {{y_ring_len => residual_ring_len}},",
        activated_with_the_length_of_y=_SIZES
        + "ring_index(t, activated_ring_len), {{activated_ring_len => y_ring_len}},",
        activated_in_the_first_slot=_SIZES + "ring_offset({{ => 0 * }}slot, ring_index(t, activated_ring_len)",
        first_tile_only="tl.static_range({{N_TILES => 1}})",
        tiles_in_one_place="n = {{tile * BLOCK_N + n0 => n0 * 1}}",
        one_channel_too_many="mask_n = n {{< => <=}} C",
    ),
    "rvq_decode": mutants(
        "rvq_decode",
        TRUNCATED + _POSITIONS + _RING_INDEX,
        behind_the_clip_written="live = live & (frame {{< length => >= 0}})",
        one_behind_the_clip_written="live = live & (frame {{< => <=}} length)",
        last_frame_not_written="live = live & (frame < length{{ =>  - 1}})",
        codes_up_to_the_length="step_meta_ptr + slot * 4 + {{3 => 2}}",
        codes_that_came_to_the_first="step_meta_ptr + slot * {{4 => 0}} + 3",
        no_clip_closed="closed = known < {{0 => -(1 << 30)}}",
        every_clip_closed="closed = known < {{0 => (1 << 30)}}",
        closed_at_one_less="tl.where(closed, {{~known => -known - 2}}, known)",
        closed_at_one_more="tl.where(closed, {{~ => -}}known, known)",
        bias_columns_of_the_first="{{tl.where(p < C * K, p // K, p - C * => (p //}} K)",
        delay_ignored="+ c * {{DELAYED => 0}}",
        always_delayed="+ c{{ * DELAYED => }}",
        delay_of_one="+ {{c => tl.minimum(c, 1)}} * DELAYED",
        codes_of_the_first_slot="({{slot[:, None] * N +  => }}arrival % N)",
        codes_never_turn="{{arrival % N => tl.minimum(arrival, N - 1)}})",
        codes_turn_one_late="arrival % {{N => (N + 1)}})",
        columns_of_the_codebooks="arrival % N) * {{W => C}} + c",
        codebook_of_the_first="arrival % N) * W{{ + c => }}",
        stale_codes_read="mask=mask{{ & (arrival < known) => }}, other=NO_CODE",
        one_code_too_many="mask=mask & (arrival {{< => <=}} known), other=NO_CODE",
        missing_codes_are_the_first="other={{NO_CODE => 0}})",
        code_above_the_last="tl.maximum(code, 0), V{{ - 1 => }})",
        code_of_the_last_but_one="tl.maximum(code, 0), V - {{1 => 2}})",
        codes_not_clamped="code = {{tl.minimum(tl.maximum(code, 0), V - 1 => tl.maximum(code, 0}})",
        missing_codes_counted="used = mask{{ & ((arrival < known) | closed) => }}",
        codes_of_the_end_not_counted="used = mask & ({{(arrival < known) | closed => arrival < known}})",
        codebooks_share_a_table="({{c * V => 0 * c}} + code) * K",
        tables_of_one_more="(c * {{V => (V + 1)}} + code) * K",
        vectors_of_one_number="(p % {{K => 1}})[None, :]",
        bias_of_what_is_missing="used = mask & ... x, {{used.to => mask.to}}(tl.float32).to(x.dtype))",
        bias_forgotten="x, {{ => 0.0 * }}used.to(tl.float32).to(x.dtype))",
        bias_of_the_last_codebook_forgotten="(p < C * K + C{{ =>  - 1}})[None, :]",
        columns_of_the_first_tile="n = {{tl.program_id(1) * BLOCK_N +  => }}",
        one_column_too_many="mask_n = n {{< => <=}} D",
        columns_not_masked="mask_n = n < D ... mask=live[:, None] & {{mask_n => (n >= 0)}}[None, :]",
        dead_positions_written="ring_offset(slot, ... mask={{live => (slot < B)}}[:, None] & mask_n[None, :]",
        z_in_the_ring_of_codes="ring_index(frame, ring), {{ring => N}},",
        z_at_the_index_of_the_codes="ring_index(frame, {{ring => N}})",
        tiles_of_one_slot="cdiv({{B *  => }}frames, ",
        tiles_of_one_column="cdiv({{D => 1}}, launch",
    ),
    "conv1d_tanh": mutants(
        "conv1d_tanh",
        TANH + _POSITIONS + _TIMING + _RINGS + _GEMM,
        **_LIVE,
        **_BLOCKS,
        tiles_of_one_slot="cdiv({{B *  => }}each, ",
        delay_without_reach="samples_per_frame, delay{{ + TAPS // 2 => }}, tail_trim",
        taps_from_the_middle="first = t{{ - TAPS // 2 => }}",
        weights_of_two_channels="n, n < {{1 => 2}}, x_ring_len",
        channel_beyond_the_first="tl.where((n == {{0 => 1}})[None, :], acc, 0.0)",
        bias_forgotten="{{ + tl.load(bias_ptr).to(tl.float32) => }}",
        bias_for_each_column="{{tl.where((n == 0)[None, :], acc, 0.0), axis=1) => acc}} + tl.load(bias_ptr).to(tl.float32){{ => , axis=1)}}",
        tanh_forgotten="tl.where(live, {{tanh(out) => out}}, 0.0)",
        dead_samples_sound="{{tl.where(live, tanh(out), 0.0 => tanh(out}})",
        nan_hidden="tl.where(live{{ =>  & (out == out)}}, tanh(out), 0.0)",
        dead_samples_unwritten="samples = tl.where(live, ... tl.store(samples_ptr ... mask={{slot < B => live}})",
        samples_beyond_the_batch="+ column, samples{{, mask=slot < B => }})",
        samples_of_one_row="samples_ptr + {{slot * (frames * samples_per_frame) +  => }}column",
        samples_from_the_delay="delay + TAPS // 2, ... slot * (frames * samples_per_frame) + {{column => (column + delay) % samples_per_frame}}",
        tanh_kept="INT64), {{out => tanh(out)}}, mask=live)",
        kept_before_the_clip="ring_offset(slot, ... out, mask={{live => slot < B}}) samples = ",
        kept_at_the_index_of_x="x_ring_len, y_ring_len, CI ... ring_index(t, {{y_ring_len => x_ring_len}})",
        kept_in_the_first_slot="ring_offset({{ => 0 * }}slot, ring_index(t, y_ring_len)",
    ),
}
