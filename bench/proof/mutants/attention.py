"""Mutants of both attentions."""

from collections.abc import Mapping

from zonos2_triton.bench.proof.mutants.shared import COUNTED, HEAD_NORM, TRUNCATED, TURNED, mutants
from zonos2_triton.bench.proof.mutation import Fault

# The gate of a result; the result of several splits up to it; queries that are not to be normed.
_GATE = "        if not PLAIN:\n            y = y * tl.sigmoid(gate)[:, None]\n"
_JOINED = "m = highest\n        y = acc / l[:, None]\n        if not PLAIN:\n            y = y * "
_NORMED_QUERIES = (
    "    if {{not PLAIN => PLAIN:\n        q = round_to(rms_normalize(q.to(tl.float32), DH, QK_EPS), dtype)\n    else}}:\n"
    "        q = q.to(tl.float32)\n"
)

ATTENTION: Mapping[str, tuple[Fault, ...]] = {
    "decode_attention": mutants(
        "decode_attention",
        TRUNCATED + TURNED + HEAD_NORM + COUNTED,
        split_of_the_new_row_leaves="if first {{> => >=}} position:",
        cache_beyond_the_end="end = {{tl.minimum(first + SPLIT, position) => first + SPLIT}}",
        last_cached_row_forgotten="end = tl.minimum(first + SPLIT, position{{ =>  - 1}})",
        new_row_read_from_the_cache="end = tl.minimum(first + SPLIT, position{{ =>  + 1}})",
        new_row_in_two_splits="if position {{< => <=}} first + SPLIT:",
        one_split_too_few="splits = {{position // SPLIT + 1 => tl.cdiv(position, SPLIT)}}",
        tail_of_a_block_not_masked='{{        s = tl.where(seen[None, :], s, float("-inf"))\n => }}',
        gate_forgotten="if splits == 1:\n        y = acc / l[:, None]\n{{" + _GATE + " => }}",
        gate_without_sigmoid=_JOINED + "{{tl.sigmoid(gate) => gate}}[:, None]\n",
        gates_of_the_first_group="(HQ + 2 * HKV) * DH + {{heads => offs_g}}, mask",
        temperature_signed="temperature = {{tl.abs => }}(",
        temperature_forgotten="rms_normalize(q, DH, QK_EPS) * {{temperature[:, None] => scale}}",
        scale_forgotten=".to(tl.float32)){{ * scale => }}",
        scale_twice=".to(tl.float32)) * scale{{ =>  * scale}}",
        powers_of_two_for_powers_of_e="DH**-0.5{{ * LOG2E => }}",
        head_epsilon_of_the_others="QK_EPS = 1e-{{6 => 5}}",
        query_not_turned=(
            "{{apply_rotary(rms_normalize => rms_normalize}}(q, DH, QK_EPS) * temperature[:, None]{{, cos, sin, ROWS, DH) => }}, dtype)"
        ),
        new_key_not_turned="round_to({{apply_rotary( => }}rms_normalize(k_new.to(tl.float32), DH, QK_EPS){{, cos, sin, 1, DH) => }}, dtype)",
        new_key_not_normed="apply_rotary({{rms_normalize(k_new.to(tl.float32), DH, QK_EPS => k_new.to(tl.float32}}), cos",
        position_off_by_one="{{position.to => tl.maximum(position - 1, 0).to}}(tl.int64) * DH",
        values_are_keys="tl.load(key_ptr{{ + HKV * DH => }})",
        keys_are_values="(HQ + {{ => HKV + }}hk) * DH + offs_one",
        new_key_not_written="{{        tl.store(k_ptr + place, k_new)\n => }}",
        new_value_not_written="{{        tl.store(v_ptr + place, v_new)\n => }}",
        new_row_one_slot_on="{{position => (position + 1)}} % page_size) * HKV",
        new_row_to_the_first_sequence="{{b * W +  => }}position // page_size",
        new_row_in_the_page_before="b * W + {{position => tl.maximum(position - 1, 0)}} // page_size",
        cache_of_the_first_sequence="{{b * W +  => }}at // page_size",
        cache_of_the_first_head="at % page_size) * HKV{{ + hk => }}) * DH\n",
        groups_interleaved="heads = hk {{* GROUP + offs_g => + offs_g * HKV}}",
        sum_not_faded="acc = dot_fp32(p, v, acc{{ * fade[:, None] => }})",
        weights_not_faded="l = l {{* fade  => }}+ tl.sum(p.to",
        new_row_without_fade="l = l {{* fade  => }}+ p_new",
        joined_without_fade="acc = acc {{* fade[:, None]  => }}+ tl.sum(sums",
        last_split_not_joined="there = part < splits{{ =>  - 1}}",
        one_split_more_joined="there = part {{< => <=}} splits",
        last_round_not_joined="for start in range(0, splits{{ =>  - 1}}, JOIN)",
        splits_joined_twice="for start in range(0, splits, JOIN{{ =>  - 1}})",
        splits_of_equal_weight="tl.exp2(m_part - {{highest[None, :] => m_part}})",
        heads_share_a_counter="counters_ptr + {{bh => b}}",
        sequences_share_their_sums="slot = {{bh => hk}} * tl.num_programs(0)",
        idle_row_left_unwritten="if split {{== 0:  # the row is idle => > HKV * HQ:}}",
        idle_row_at_position_zero="position = {{ => tl.maximum(}}tl.load(positions_ptr + b){{ => , 0)}}",
        idle_row_not_masked="tl.zeros((ROWS, DH), dtype){{, mask=mask_g[:, None] => }})",
        splits_beyond_the_end_write_zeros="if split {{== 0:  # the row is idle => >= 0:}}",
        splits_of_the_grid_counted="counters_ptr + bh, {{splits => tl.num_programs(0)}})",
        plain_scores_not_scaled="{{s = s * scale => pass}}  # and not q",
        plain_queries_normed=_NORMED_QUERIES,
        plain_new_score_not_scaled="            {{s_new = s_new * scale => pass}}\n",
        plain_new_key_normed=(
            "k_new = tl.load(key_ptr){{ => \n        if PLAIN:\n"
            "            k_new = round_to(rms_normalize(k_new.to(tl.float32), DH, QK_EPS), dtype)}}  # [1, DH]"
        ),
        plain_rows_of_the_gated_width="{{(0 if PLAIN else HQ) => HQ}}",
    ),
    "prefill_attention": mutants(
        "prefill_attention",
        TRUNCATED + TURNED + HEAD_NORM,
        row_does_not_see_itself="s_at[None, :] {{<= => <}} at[:, None]",
        row_sees_the_next="s_at[None, :] <= at[:, None]{{ =>  + 1}}",
        not_causal="seen = written[None, :] & {{(s_at[None, :] <= at[:, None]) => there[:, None]}}",
        start_forgotten="s_at[None, :] <= {{at => offs_t}}[:, None]",
        common_border_off_by_one="(start + row + {{1 => 2}}) // BLOCK_S",
        common_border_rounded_up="{{(start + row + 1) // BLOCK_S => tl.cdiv(start + row + 1, BLOCK_S)}} * BLOCK_S",
        tile_without_its_last_row="end = start + tl.minimum(row + BLOCK_Q{{ =>  - 1}}, length)",
        length_for_the_end="end = {{start +  => }}tl.minimum(row + BLOCK_Q, length)",
        nan_not_guarded="acc = dot_fp32(p, {{tl.where(sound, v, tl.zeros_like(v)) => v}}, acc",
        nan_hidden="{{reached => (reached & (l < 0))}}[:, None], float",
        nan_reaches_earlier_rows="({{seen & unsound[None, :]) => written & unsound)[None, :]}}",
        one_tile_too_far="tl.num_programs(0) - {{1 -  => }}tl.program_id(0)",
        rows_of_the_next_tile="{{(offs_m < BLOCK_Q * GROUP) & (offs_t < length) => offs_t < length}}",
        rows_of_the_next_sequence="(offs_m < BLOCK_Q * GROUP) & (offs_t {{< => <=}} length)",
        cached_row_too_many="there = offs_t {{< => <=}} length",
        cached_row_too_few="there = offs_t < length{{ =>  - 1}}",
        gate_forgotten="{{y = y * tl.sigmoid(gate)[:, None] => pass}}",
        gate_without_sigmoid="{{tl.sigmoid(gate) => gate}}[:, None]",
        temperature_signed="temperature = {{tl.abs => }}(",
        scale_forgotten=".to(tl.float32)){{ * scale => }}",
        powers_of_two_for_powers_of_e="DH**-0.5{{ * LOG2E => }}",
        key_not_turned="k = {{apply_rotary(rms_normalize(k, DH, QK_EPS), cos, sin, BLOCK_Q, DH => rms_normalize(k, DH, QK_EPS}})",
        query_not_normed="apply_rotary({{rms_normalize(q, DH, QK_EPS) => q}} * temperature",
        keys_from_position_zero="there = offs_t < length\n    mask = there[:, None]\n    at = {{start +  => }}offs_t",
        queries_one_position_on="(offs_t < length)\n    mask = there[:, None]\n    at = start + offs_t{{ =>  - 1}}",
        values_are_keys="tl.load(qkvg_ptr + key_at{{ + HKV * DH => }},",
        values_not_written="{{    tl.store(v_ptr + place, v, mask=mask)\n => }}",
        pages_of_the_first_sequence="pages_ptr = block_table_ptr{{ + b * W => }}",
        written_to_the_first_sequence="block_table_ptr + {{b * W +  => }}at",
        groups_interleaved="heads = hk {{* GROUP + offs_m % GROUP => + offs_m % GROUP * HKV}}",
        sum_not_faded="acc = dot_fp32(p, v, acc{{ * fade[:, None] => }})",
        weights_not_faded="l = l {{* fade  => }}+ tl.sum(p.to(tl.float32), axis=1)\n",
        results_of_the_first_sequence="    y_at = ({{ => 0 * }}begin + offs_t)",
        plain_scores_not_scaled="{{s = s * scale => pass}}  # and not q",
        plain_queries_normed=_NORMED_QUERIES,
        plain_last_scores_not_scaled="            {{s = s * scale => pass}}\n        seen",
        plain_keys_normed="if {{not PLAIN => PLAIN:\n        k = rms_normalize(k, DH, QK_EPS)\n    else}}:\n        k = apply_rotary(",
        plain_keys_of_the_gated_width="{{(0 if PLAIN else HQ) => HQ}}\n    offs_t",
        plain_queries_of_the_gated_width="{{(0 if PLAIN else HQ) => HQ}}\n    offs_m",
    ),
}
