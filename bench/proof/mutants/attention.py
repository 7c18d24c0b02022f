"""Mutants of both attentions."""

from collections.abc import Mapping

from zonos2_triton.bench.proof.mutants.shared import COUNTED, HEAD_NORM, TRUNCATED, TURNED, mutants
from zonos2_triton.bench.proof.mutation import Mutant

_SHARED = mutants(
    "_attention",
    TRUNCATED + TURNED + HEAD_NORM,
    head_epsilon_of_the_others="QK_EPS = {{1e-6 => 1e-5}}",
    cache_of_the_first_head="offs_kv % page_size) * HKV{{ + hk => }}) * DH",
    page_of_the_position_before="pages_ptr + {{offs_kv => tl.maximum(offs_kv - 1, 0)}} // page_size",
    position_in_the_page_off_by_one="{{offs_kv => (offs_kv + 1)}} % page_size) * HKV",
    position_off_by_one="cos_sin_ptr + {{positions => tl.maximum(positions - 1, 0)}}.to(tl.int64)[:, None]",
    temperature_signed="temperature = {{tl.abs => }}(",
    temperature_forgotten="scale normed = rms_normalize(... * {{temperature[:, None] => scale}}",
    scale_forgotten=".to(tl.float32)){{ * scale => }}",
    scale_twice=".to(tl.float32)) * scale{{ =>  * scale}}",
    query_not_normed="normed = {{rms_normalize(q.to(tl.float32), DH, EPS) => q.to(tl.float32)}}",
    query_not_rotated="{{apply_rotary(normed, cos, sin, N, DH) => normed}}",
    new_key_not_rotated="{{apply_rotary( => }}rms_normalize(k.to(tl.float32), DH, EPS){{, cos, sin, N, DH) => }}",
    new_key_not_normed="apply_rotary({{rms_normalize(k.to(tl.float32), DH, EPS) => k.to(tl.float32)}}, cos",
    new_key_not_written="{{tl.store(k_ptrs, k, mask=mask) => pass}} tl.store(",
    new_value_not_written="tl.store(k_ptrs, k, mask=mask) {{tl.store(v_ptrs, v, mask=mask) => pass}}",
    weights_not_rescaled="return m_new, l{{ * alpha => }} +",
    gate_forgotten="{{y = y * tl.sigmoid(gate)[:, None] => pass}}",
    gate_without_sigmoid="{{tl.sigmoid(gate) => gate}}[:, None]",
    no_preamble_scores_not_scaled="{{qk = qk * scale => pass}}",
    no_preamble_new_key_normed=(
        "{{ => k = round_to(rms_normalize(k.to(tl.float32), DH, EPS), k.dtype) if cos is None else k; }}"
        "if cos is not None: k = round_to("
    ),
)

ATTENTION: Mapping[str, tuple[Mutant, ...]] = {
    "decode_attention": mutants(
        "decode_attention",
        _SHARED + COUNTED,
        split_of_the_new_token_leaves="if begin {{> => >=}} position:",
        cache_beyond_the_end="end = {{tl.minimum(begin + KV_PER_SPLIT, position) => begin + KV_PER_SPLIT}}",
        last_cached_token_forgotten="end = tl.minimum(begin + KV_PER_SPLIT, position{{ =>  - 1}})",
        new_token_read_from_the_cache="end = tl.minimum(begin + KV_PER_SPLIT, position{{ =>  + 1}})",
        new_token_in_two_splits="if position {{< => <=}} begin + KV_PER_SPLIT:",
        one_split_too_few="splits = {{position // KV_PER_SPLIT + 1 => tl.cdiv(position, KV_PER_SPLIT)}}",
        tail_of_a_block_not_masked='{{qk = tl.where(mask_kv[None, :], qk, float("-inf")) => pass}}',
        gates_of_the_first_group="heads = hk * GROUP + offs_g ... (HQ + 2 * HKV) * DH + {{heads => offs_g}}, mask=",
        powers_of_two_for_powers_of_e="DH**-0.5{{ * LOG2E => }}",
        values_are_keys="key_ptrs{{ + HKV * DH => }}, always",
        keys_are_values="(HQ + {{ => HKV + }}hk) * DH + one",
        new_token_one_position_on="kv_offsets(pages_ptr, position + one{{ =>  + 1}}, one == 0",
        pages_of_the_first_sequence="pages_ptr = block_table_ptr{{ + b * W => }}",
        groups_interleaved="heads = hk {{* GROUP + offs_g => + offs_g * HKV}}",
        sum_not_rescaled="acc = dot_fp32(p, v, acc{{ * alpha[:, None] => }})",
        new_token_without_rescaling="acc = acc{{ * alpha[:, None] => }} + p",
        merged_without_rescaling="acc = acc{{ * alpha[:, None] => }} + tl.sum(",
        merged_weights_not_rescaled="l = l{{ * alpha => }} + tl.sum(",
        last_split_not_merged="mask_split = offs_split < splits{{ =>  - 1}} ml_ptrs = partial_ml_ptr",
        one_split_more_merged="mask_split = offs_split {{< => <=}} splits ml_ptrs = partial_ml_ptr",
        last_round_not_merged="for start in range(0, splits{{ =>  - 1}}, BLOCK_SPLITS)",
        splits_merged_twice="for start in range(0, splits, BLOCK_SPLITS{{ =>  - 1}})",
        splits_of_equal_weight="tl.exp2(m_part - {{m_new[None, :] => m_part}})",
        heads_share_a_counter="bh = b * HKV + hk ... counters_ptr + {{bh => b}}",
        sequences_share_their_sums="bh = b * HKV + hk first = {{bh => hk}} * tl.num_programs(0)",
        idle_slot_left_unwritten="if split {{== 0 => > HKV * HQ}}: tl.store(",
        idle_slot_at_position_zero="position = {{ => tl.maximum(}}tl.load(positions_ptr + b){{ => , 0)}}",
        idle_slot_not_masked="tl.zeros((BLOCK_G, DH), dtype){{, mask=mask_g[:, None] => }})",
        splits_beyond_the_end_write_zeros="if split {{== 0 => >= 0}}: tl.store(",
        splits_of_the_grid_counted="counters_ptr + bh, {{splits => tl.num_programs(0)}})",
        no_preamble_queries_normed=(
            "q = tl.load(token_ptr + offs_head, mask=mask_g[:, None], other=0.0) {{ => q = q if FUSED_PREAMBLE else (q * tl.rsqrt(tl.sum(q * q, axis=1) / DH)[:, None]).to(q.dtype); }}one ="
        ),
        no_preamble_new_score_not_scaled="qk = tl.sum(... {{qk = qk * scale => pass}}",
        no_preamble_tokens_of_the_gated_width="{{(HQ if FUSED_PREAMBLE else 0) => HQ}}",
    ),
    "prefill_attention": mutants(
        "prefill_attention",
        _SHARED,
        token_does_not_see_itself="offs_kv[None, :] {{<= => <}} positions[:, None]",
        token_sees_the_next="offs_kv[None, :] <= positions[:, None]{{ =>  + 1}}",
        not_causal="mask_kv[None, :] & ({{offs_kv[None, :] <= positions[:, None] => positions[:, None] >= 0}})",
        cached_tokens_forgotten="offs_t = first + ... positions = {{start + => }}offs_t token_ptrs =",
        common_border_off_by_one="(start + first + {{1 => 2}}) // BLOCK_KV",
        common_border_rounded_up="{{(start + first + 1) // BLOCK_KV => tl.cdiv(start + first + 1, BLOCK_KV)}} * BLOCK_KV",
        tile_without_its_last_token="end = start + tl.minimum(first + BLOCK_Q{{ =>  - 1}}, length)",
        length_for_the_end="end = {{start +  => }}tl.minimum(first + BLOCK_Q, length)",
        nan_not_guarded="acc = dot_fp32(p, {{tl.where(sound, v, tl.zeros_like(v)) => v}}, acc",
        nan_hidden="l, alpha, p = online_softmax(... {{reached => (reached & (l < 0))}}[:, None], float(",
        nan_reaches_earlier_tokens="mask_qk = mask_kv[None, :] & (... tl.max(({{mask_qk & unsound[None, :] => mask_kv[None, :] & unsound[None, :]}})",
        one_tile_too_far="tl.num_programs(0) - {{1 -  => }}tl.program_id(0)",
        tokens_of_the_next_tile="{{(offs_m < BLOCK_Q * GROUP) & (offs_t < length) => offs_t < length}}",
        tokens_of_the_next_sequence="(offs_m < BLOCK_Q * GROUP) & (offs_t {{< => <=}} length)",
        written_token_too_many="def _write_cache_kernel(... mask_t = offs_t {{< => <=}} length",
        written_token_too_few="def _write_cache_kernel(... mask_t = offs_t < length{{ =>  - 1}}",
        powers_of_two_for_powers_of_e="DH**-0.5{{ * LOG2E => }}",
        keys_from_position_zero="def _write_cache_kernel(... positions = {{start +  => }}offs_t",
        queries_one_position_on="offs_t = first + ... positions = start + offs_t{{ =>  - 1}} token_ptrs =",
        values_are_keys="key_ptrs{{ + HKV * DH => }}, mask",
        pages_of_the_first_sequence="pages_ptr = block_table_ptr{{ + b * W => }}",
        written_to_the_first_sequence="kv_offsets(block_table_ptr{{ + b * W => }},",
        groups_interleaved="heads = hk {{* GROUP + offs_m % GROUP => + offs_m % GROUP * HKV}}",
        sum_not_rescaled="acc = dot_fp32(p, v, acc{{ * alpha[:, None] => }})",
        last_sum_not_rescaled="tl.zeros_like(v)), acc{{ * alpha[:, None] => }})",
        results_of_the_first_sequence="y_ptr + ({{ => 0 * }}begin + offs_t)[:, None]",
        no_preamble_queries_normed=(
            "q = tl.load(token_ptrs[... {{ => q = q if FUSED_PREAMBLE else (q * tl.rsqrt(tl.sum(q * q, axis=1) / DH)[:, None]).to(q.dtype); }}if"
        ),
        no_preamble_keys_of_the_gated_width="def _write_cache_kernel(... {{(HQ if FUSED_PREAMBLE else 0) => HQ}}",
        no_preamble_queries_of_the_gated_width=(
            "def _prefill_attention_kernel(... {{(HQ if FUSED_PREAMBLE else 0) => HQ}}"
        ),
    ),
}
