"""Faults put into copies of the kernels, and whether the checks of an operation find them.

A check that no fault can break proves nothing. So each operation has some realistic faults, one replaced text each, and
`killed` tells which of the operation's own checks fails on a copy that has one.
"""

import atexit
import functools
import importlib
import itertools
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from zonos2_triton import kernels
from zonos2_triton.bench.catalogue import Kernel, Workload
from zonos2_triton.bench.interpreter import DataRace, OutOfBounds
from zonos2_triton.bench.invariants import INVARIANTS, Op, exact, rounded_once, variants
from zonos2_triton.bench.poison import GuardBandTouched
from zonos2_triton.bench.verify import Case

SOURCES = Path(kernels.__file__).parent


@dataclass(frozen=True)
class Fault:
    """A text of a module of kernels/, which is there once, and what a mistake would have made of it."""

    name: str
    file: str  # without .py
    old: str
    new: str


def _faults(file: str, **texts: tuple[str, str]) -> tuple[Fault, ...]:
    return tuple(Fault(name.replace("_", "-"), file, old, new) for name, (old, new) in texts.items())


_EXPONENTIAL = _faults(
    "_numeric",
    exponential_without_its_correction=("((high - (one - 1.0)) + (low + r * r * p))", "(low + r * r * p)"),
    exponential_without_the_low_part=("low = n * -LN2_LOW", "low = n * 0.0"),
    exponential_of_a_wide_remainder=("tl.floor(c * LOG2E + 0.5)", "tl.floor(c * LOG2E)"),
)

_TRUNCATED = _faults(
    "_numeric", truncated=("((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000)", "(bits & 0xFFFF0000)")
)

_TURNED = _faults(
    "_numeric",
    sine_of_the_wrong_sign=("tl.join(even * cos - odd * sin, even * sin + odd * cos)",
                            "tl.join(even * cos + odd * sin, odd * cos - even * sin)"),
    pair_swapped=("tl.join(even * cos - odd * sin, even * sin + odd * cos)",
                  "tl.join(even * sin + odd * cos, even * cos - odd * sin)"),
)  # fmt: skip

_HEAD_NORM = _faults(
    "_numeric",
    head_norm_without_epsilon=("/ DH + EPS)", "/ DH)"),
    head_norm_of_the_sum=("/ DH + EPS)", "+ EPS)"),
)

_COUNTED = _faults(
    "_numeric",
    counter_stays=("    if last:\n        tl.store(counter_ptr, 0)\n", ""),
    no_barrier_before_the_count=("    tl.debug_barrier()  # what every thread stored comes before the count\n", ""),
    relaxed_count=('sem="acq_rel"', 'sem="relaxed"'),
    count_within_a_block=('scope="gpu"', 'scope="cta"'),
    last_but_one_joins=("last = seen == n - 1", "last = seen == n - 2"),
)

_MULTIPLIED = _faults(
    "_product",
    tail_of_K_not_masked=("if not EVEN_K:\n            mask_w", "if K < 0:\n            mask_w"),
    tail_of_K_one_too_long=("mask_w & (k < K)[None, :]\n            mask_x = mask_x & (k < K)[:, None]",
                            "mask_w & (k <= K)[None, :]\n            mask_x = mask_x & (k <= K)[:, None]"),
    tail_of_K_one_too_short=("mask_x & (k < K)[:, None]", "mask_x & (k < K - 1)[:, None]"),
    last_block_of_K_only=("acc = mma(w, x, acc)", "acc = mma(w, x, tl.zeros_like(acc))"),
)  # fmt: skip

_NORMED = _faults(
    "_product",
    norm_weight_forgotten=("cast(wide * gain[:, None], w.dtype)", "cast(wide, w.dtype)"),
    squares_of_the_last_block_only=("squares += wide * wide", "squares = wide * wide"),
)

# Of all tiles of rows; each is its own program.
_ROW_TILES = {
    "rows_not_masked": ("mask_m, mask_n = offs_m < M,", "mask_m, mask_n = offs_m >= 0,"),
    "one_row_too_many": ("mask_m, mask_n = offs_m < M,", "mask_m, mask_n = offs_m <= M,"),
    "one_row_too_few": ("mask_m, mask_n = offs_m < M,", "mask_m, mask_n = offs_m < M - 1,"),
}
_SCALED = {
    "norm_without_epsilon": ("tl.rsqrt(squares / D + eps)", "tl.rsqrt(squares / D)"),
    "norm_of_the_sum": ("tl.rsqrt(squares / D + eps)", "tl.rsqrt(squares + eps)"),
}

FAULTS: Mapping[str, tuple[Fault, ...]] = {
    "frame_embedding": _TRUNCATED + _faults(
        "frame_embedding",
        table_row_not_masked=("tl.load(table_ptr + entry * D + offs, mask=mask, other=0.0)",
                              "tl.load(table_ptr + entry * D + offs)"),
        mask_one_too_long=("mask = offs < D", "mask = offs <= D"),
        codebooks_share_a_table=(" + c * codebook_vocab\n", "\n"),
        codebook_one_too_far=("c * codebook_vocab\n", "c * (codebook_vocab + 1)\n"),
        text_forgotten=("tl.static_range(COLUMNS)", "tl.static_range(COLUMNS - 1)"),
        ids_of_the_first_frame=("ids_ptr + row * COLUMNS + c", "ids_ptr + c"),
        first_voice_is_none=("speaker >= 0", "speaker > 0"),
        voice_of_the_one_before=("tl.maximum(speaker, 0)", "tl.maximum(speaker - 1, 0)"),
        voice_added=("voice.to(tl.float32), x)", "x + voice.to(tl.float32), x)"),
        norm_without_epsilon=("/ D + eps)", "/ D)"),
        mean_over_the_tile=("/ D + eps)", "/ BLOCK_D + eps)"),
        norm_forgotten=("h = x * tl.rsqrt(tl.sum(x * x, axis=0) / D + eps)", "h = x"),
    ),
    "add_rms_norm": _TRUNCATED + _faults(
        "add_rms_norm",
        row_not_masked=("s = tl.load(x_ptr + row + offs, mask=mask, other=0.0)", "s = tl.load(x_ptr + row + offs)"),
        mask_one_too_long=("mask = offs < D", "mask = offs <= D"),
        masked_lanes_undefined=("x_ptr + row + offs, mask=mask, other=0.0", "x_ptr + row + offs, mask=mask"),
        residual_forgotten=("s += tl.load(residual_ptr", "s += 0.0 * tl.load(residual_ptr"),
        residual_added_twice=("s += tl.load(residual_ptr", "s += 2.0 * tl.load(residual_ptr"),
        sum_not_stored=("        tl.store(s_ptr + row + offs, cast(s, s_ptr.dtype.element_ty), mask=mask)\n", ""),
        sum_without_residual_not_copied=("s.copy_(x)", "pass"),
        x_normed_without_residual=("h = s * tl.rsqrt(",
                                   "h = tl.load(x_ptr + row + offs, mask=mask, other=0.0).to(tl.float32) * tl.rsqrt("),
        norm_without_epsilon=("/ D + eps)", "/ D)"),
        epsilon_outside_the_root=("tl.rsqrt(tl.sum(s * s, axis=0) / D + eps)",
                                  "(1.0 / (tl.sqrt(tl.sum(s * s, axis=0) / D) + eps))"),
        mean_over_the_tile=("/ D + eps)", "/ BLOCK_D + eps)"),
        weight_forgotten=("h = h * tl.load(weight_ptr", "h = h + 0.0 * tl.load(weight_ptr"),
        weight_around_one=("other=0.0).to(tl.float32)\n    tl.store(h_ptr",
                           "other=0.0).to(tl.float32) + h\n    tl.store(h_ptr"),
    ),
    "sample": _EXPONENTIAL + _faults(
        "sample",
        end_and_padding_penalised=("c < penalised, V - 2, 0", "c < penalised, V, 0"),
        padding_penalised=("c < penalised, V - 2, 0", "c < penalised, V - 1, 0"),
        one_codebook_more_penalised=("c < penalised", "c <= penalised"),
        penalty_forgotten=("x = tl.where(recent, tl.where", "x = tl.where(recent & (V < 0), tl.where"),
        window_one_longer=("last_seen >= step - window", "last_seen >= step - window - 1"),
        window_one_shorter=("last_seen >= step - window", "last_seen > step - window"),
        history_without_a_window=("last_seen >= step - window", "last_seen >= 0"),
        positive_logits_multiplied=("tl.where(x > 0, tl.div_rn", "tl.where(x < 0, tl.div_rn"),
        temperature_multiplied=("tl.div_rn(x, temperature)", "x * temperature"),
        temperature_before_the_penalty=(
            "    x = tl.where(recent, tl.where(x > 0, tl.div_rn(x, penalty), x * penalty), x)\n"
            "    x = tl.div_rn(x, temperature)\n",
            "    x = tl.div_rn(x, temperature)\n"
            "    x = tl.where(recent, tl.where(x > 0, tl.div_rn(x, penalty), x * penalty), x)\n",
        ),
        multiplied_by_a_reciprocal=("tl.div_rn(x, temperature)", "x * (1.0 / temperature)"),
        penalty_by_a_reciprocal=("tl.div_rn(x, penalty)", "x * (1.0 / penalty)"),
        overflow_not_clamped=("    x = tl.minimum(tl.maximum(x, -LARGEST), LARGEST)\n", ""),
        temperature_of_the_first=("tl.load(settings_ptr + b * SETTINGS)", "tl.load(settings_ptr)"),
        history_of_the_first=("last_seen_ptr + row * V + offs", "last_seen_ptr + c * V + offs"),
        settings_of_the_first=("tl.load(settings_ptr + b * SETTINGS + 1)", "tl.load(settings_ptr + 1)"),
        ties_dropped=("tl.where(x >= _kth_largest(x, top_k)", "tl.where(x > _kth_largest(x, top_k)"),
        one_more_kept=("_kth_largest(x, top_k)", "_kth_largest(x, top_k + 1)"),
        one_fewer_kept=("_kth_largest(x, top_k)", "_kth_largest(x, tl.maximum(top_k - 1, 1))"),
        order_of_negative_numbers=("bits ^ ((bits >> 31) | -2147483648)", "bits ^ -2147483648"),
        search_without_the_sign=("tl.full((), 0x80000000, tl.uint32)", "tl.full((), 0x40000000, tl.uint32)"),
        too_early=("count != k)", "count < k + 1)"),
        nucleus_forgotten=("if (top_p > 0) & (top_p < 1):", "if top_p < 0:"),
        nucleus_before_top_k=(
            "weights = tl.where(x >= _kth_largest(x, top_k), decaying(x - highest), 0.0)  # the largest is 1\n"
            "    if (top_p > 0) & (top_p < 1):\n        weights = _nucleus(weights, top_p, MASS)\n",
            "weights = decaying(x - highest)\n"
            "    if (top_p > 0) & (top_p < 1):\n        weights = _nucleus(weights, top_p, MASS)\n"
            "    weights = tl.where(x >= _kth_largest(x, top_k), weights, 0.0)\n",
        ),
        min_p_before_the_nucleus=(
            "    if (top_p > 0) & (top_p < 1):\n        weights = _nucleus(weights, top_p, MASS)\n"
            "    weights = tl.where(weights >= min_p, weights, 0.0)\n",
            "    weights = tl.where(weights >= min_p, weights, 0.0)\n"
            "    if (top_p > 0) & (top_p < 1):\n        weights = _nucleus(weights, top_p, MASS)\n",
        ),
        nucleus_in_fp32=("(tl.sum(mass, axis=0).to(tl.float64) * top_p.to(tl.float64))",
                         "(tl.sum(mass, axis=0).to(tl.float32) * top_p)"),
        nucleus_of_min_p=("settings_ptr + b * SETTINGS + 2)", "settings_ptr + b * SETTINGS + 3)"),
        nucleus_up_to_the_limit=("before <= limit", "before < limit"),
        border_at_the_limit=("mass, 0), axis=0) > limit", "mass, 0), axis=0) >= limit"),
        nucleus_at_one=("(top_p > 0) & (top_p < 1)", "(top_p >= 0) & (top_p < 1)"),
        border_not_in_the_nucleus=("(keys > border) | (tied & (before <= limit))", "keys > border"),
        all_ties_in_the_nucleus=("(keys > border) | (tied & (before <= limit))", "keys >= border"),
        last_tie_first=("- mass  # of those that tie", "# of those that tie"),
        min_p_forgotten=("weights >= min_p", "weights >= 0"),
        min_p_itself_dropped=("weights >= min_p", "weights > min_p"),
        min_p_of_the_share=("weights >= min_p", "weights >= min_p * tl.sum(weights, axis=0)"),
        not_renormalised=("tl.div_rn(weights, share)", "weights"),
        shares_by_a_reciprocal=("tl.div_rn(weights, share)", "weights * (1.0 / share)"),
        code_before_the_target=("axis=0) <= target", "axis=0) < target"),
        target_rounded_up=("* all_drawn) >> 32", "* all_drawn + 0xFFFFFFFF) >> 32"),
        target_in_fp32=("(word.to(tl.int64) * all_drawn) >> 32",
                        "(word.to(tl.float32) * all_drawn.to(tl.float32) * 2.3283064365386963e-10).to(tl.int64)"),
        key_without_the_frame=("tl.philox(seed, step, c, 0, 0)", "tl.philox(seed, 0, c, 0, 0)"),
        key_without_the_codebook=("tl.philox(seed, step, c, 0, 0)", "tl.philox(seed, step, 0, 0, 0)"),
        key_of_the_row=("tl.philox(seed, step, c, 0, 0)", "tl.philox(seed, step, b * C + c, 0, 0)"),
        frame_and_codebook_swapped=("tl.philox(seed, step, c, 0, 0)", "tl.philox(seed, c, step, 0, 0)"),
        seed_without_its_high_half=("tl.philox(seed, ", "tl.philox(seed & 0xFFFFFFFF, "),
        seed_of_the_first=("tl.load(seeds_ptr + b)", "tl.load(seeds_ptr)"),
        frame_of_the_first=("tl.load(steps_ptr + b)", "tl.load(steps_ptr)"),
        second_word=("word, _, _, _ = tl.philox", "_, word, _, _ = tl.philox"),
        word_with_a_sign=("word.to(tl.int64)", "word.to(tl.int32, bitcast=True).to(tl.int64)"),
        greedy_takes_the_last=("tl.min(tl.where(x == highest, offs, V)", "tl.max(tl.where(x == highest, offs, 0)"),
        greedy_forgotten=("code = tl.where(total > 0, code, tl.min", "code = tl.where(total >= 0, code, tl.min"),
        nan_not_seen=("(x != x) | (x == float(\"inf\"))", "x == float(\"inf\")"),
        infinity_not_seen=("(x != x) | (x == float(\"inf\"))", "x != x"),
        nothing_not_seen=("axis=0) == 0)\n    x = tl.where(fault", "axis=0) < 0)\n    x = tl.where(fault"),
        one_minus_infinity_is_a_fault=("axis=0) == 0)\n    x = tl.where(fault", "axis=0) < V)\n    x = tl.where(fault"),
        code_out_of_range=("tl.where(fault, V - 1, code)", "tl.where(fault, V, code)"),
        fault_not_told=("fault.to(tl.int32))", "fault.to(tl.int32) * 0)"),
        logits_not_masked=("row * V + offs, mask=mask, other=float(\"-inf\"))", "row * V + offs)"),
        padded_lanes_are_codes=("x = tl.where(mask, x, float(\"-inf\"))", "x = tl.where(mask, x, 0.0)"),
        row_of_the_request=("row = (b * C + c)", "row = (b * C)"),
    ),
    "advance": _faults(
        "advance",
        idle_rows_go_on=("    if position < 0:\n        return\n", "    if position < -9:\n        return\n"),
        first_position_is_idle=("if position < 0:", "if position <= 0:"),
        faults_ignored=("tl.max(faults, axis=0) != 0", "tl.max(faults, axis=0) > 1"),
        fault_of_the_first_codebook=("tl.max(faults, axis=0)", "tl.sum(tl.where(offs == 0, faults, 0), axis=0)"),
        fault_is_an_end=("tl.store(positions_ptr + b, FAULTY)", "tl.store(positions_ptr + b, OUT)"),
        lowest_codebook=("highest = tl.max(tl.where(mask & (codes == eoa_id), offs, -1), axis=0)",
                         "highest = tl.max(tl.where(mask & (codes == eoa_id) & (offs == 0), offs, -1), axis=0)"),
        lanes_beyond_the_codebooks=("mask & (codes == eoa_id), offs", "codes == eoa_id, offs"),
        faults_not_masked=("faults_ptr + b * C + offs, mask=mask, other=0)", "faults_ptr + b * C + offs)"),
        end_at_zero_is_none=("(eos_frame < 0)", "(eos_frame <= 0)"),
        later_end_counts=("(highest >= 0) & (eos_frame < 0)", "highest >= 0"),
        end_at_the_step=("tl.maximum(step - highest, 0)", "step"),
        end_before_the_beginning=("tl.maximum(step - highest, 0)", "step - highest"),
        one_frame_too_few=("tl.minimum(limit, step + C + 1)", "tl.minimum(limit, step + C)"),
        one_frame_too_many=("tl.minimum(limit, step + C + 1)", "tl.minimum(limit, step + C + 2)"),
        limit_forgotten=("tl.minimum(limit, step + C + 1)", "step + C + 1"),
        end_ends_nothing=("limit = tl.where(ends, tl.minimum(limit, step + C + 1), limit)", "pass"),
        limit_not_kept=("    tl.store(limits_ptr + b, limit)\n", ""),
        end_not_kept=("    tl.store(eos_frames_ptr + b, eos_frame)\n", ""),
        step_not_counted=("tl.store(steps_ptr + b, step + 1)", "tl.store(steps_ptr + b, step)"),
        last_frame_too_late=("step + 1 < limit", "step < limit"),
        position_stays=("step + 1 < limit, position + 1, OUT", "step + 1 < limit, position, OUT"),
        row_after_the_end=("step + 1 < limit, position + 1, OUT", "step + 1 < limit, position + 1, position"),
        history_forgotten=("    tl.store(last_seen_ptr + (b * C + offs) * V + codes, step, mask=mask)\n", ""),
        history_of_the_first_codebook=("(b * C + offs) * V + codes", "(b * C) * V + codes"),
        history_of_the_first_request=("(b * C + offs) * V + codes", "offs * V + codes"),
        history_one_frame_on=("+ codes, step, mask", "+ codes, step + 1, mask"),
        text_forgotten=("fed, mask=offs <= C", "fed, mask=mask"),
        one_lane_too_many_fed=("fed, mask=offs <= C", "fed, mask=offs <= C + 1"),
        row_of_another=("ids_ptr + b * (C + 1) + offs", "ids_ptr + b * C + offs"),
        ring_not_turned=("step % N", "tl.minimum(step, N - 1)"),
        ring_one_on=("step % N", "(step + 1) % N"),
        end_not_in_the_frame=("kept, mask=offs <= C", "kept, mask=mask"),
        codes_of_the_first=("codes_ptr + b * C + offs", "codes_ptr + offs"),
    ),
    "rotary": _TRUNCATED + _TURNED + _faults(
        "rotary",
        position_off_by_one=("tl.load(positions_ptr + m).to(tl.int64) * DH",
                             "tl.maximum(tl.load(positions_ptr + m) - 1, 0).to(tl.int64) * DH"),
        position_one_too_far=("tl.load(positions_ptr + m).to(tl.int64)",
                              "(tl.load(positions_ptr + m) + 1).to(tl.int64)"),
        position_of_the_first_row=("positions_ptr + m)", "positions_ptr)"),
        row_number_as_position=("tl.load(positions_ptr + m).to(tl.int64)", "m"),
        cosine_for_sine=("angle_ptr + DH // 2 + offs_i", "angle_ptr + offs_i"),
        half_a_row_of_the_table=(".to(tl.int64) * DH\n", ".to(tl.int64) * (DH // 2)\n"),
        heads_not_masked=("mask = (offs_h < H)[:, None]", "mask = (offs_h >= 0)[:, None]"),
        one_head_too_many=("mask = (offs_h < H)[:, None]", "mask = (offs_h <= H)[:, None]"),
        one_head_too_few=("mask = (offs_h < H)[:, None]", "mask = (offs_h < H - 1)[:, None]"),
        rows_of_padded_heads=("(m * H + offs_h)", "(m * BLOCK_H + offs_h)"),
    ),
    "qkv_projection": _TRUNCATED + _MULTIPLIED + _NORMED + _faults(
        "qkv_projection",
        **_SCALED,
        one_row_too_many=("mask_m = offs_m < M", "mask_m = offs_m <= M"),
        gate_takes_the_tile_of_keys=("is_q = tile < tiles_q", "is_q = tile <= tiles_q"),
        first_gate_tile_is_values=("is_gate = tile >= tiles_q + tiles_kv", "is_gate = tile > tiles_q + tiles_kv"),
        gates_over_the_values=("before = tl.where(is_q, 0, tl.where(is_gate, NQ + 2 * NKV, NQ))",
                               "before = tl.where(is_q, 0, tl.where(is_gate, NQ + NKV, NQ))"),
        keys_over_the_queries=("before = tl.where(is_q, 0, tl.where(is_gate, NQ + 2 * NKV, NQ))",
                               "before = tl.where(is_gate, NQ + 2 * NKV, 0)"),
        values_forgotten=("rows = tl.where(is_q, NQ, tl.where(is_gate, G, 2 * NKV))",
                          "rows = tl.where(is_q, NQ, tl.where(is_gate, G, NKV))"),
        outputs_not_masked=("mask_n = offs_n < rows", "mask_n = offs_n < rows + BLOCK_N"),
        one_output_too_many=("mask_n = offs_n < rows", "mask_n = offs_n <= rows"),
        norm_twice_in_prefill=("NORM=not prefill", "NORM=True"),
        no_norm_in_prefill=("x = normed(x, norm_weight, eps)", "pass"),
        scale_forgotten=("acc = acc * tl.rsqrt(squares / D + eps)[None, :]", "pass"),
    ),
    "decode_attention": _TRUNCATED + _TURNED + _HEAD_NORM + _COUNTED + _faults(
        "decode_attention",
        split_of_the_new_row_leaves=("if first > position:", "if first >= position:"),
        cache_beyond_the_end=("end = tl.minimum(first + SPLIT, position)", "end = first + SPLIT"),
        last_cached_row_forgotten=("end = tl.minimum(first + SPLIT, position)",
                                   "end = tl.minimum(first + SPLIT, position - 1)"),
        new_row_read_from_the_cache=("end = tl.minimum(first + SPLIT, position)",
                                     "end = tl.minimum(first + SPLIT, position + 1)"),
        new_row_in_two_splits=("if position < first + SPLIT:", "if position <= first + SPLIT:"),
        one_split_too_few=("splits = position // SPLIT + 1", "splits = tl.cdiv(position, SPLIT)"),
        tail_of_a_block_not_masked=('        s = tl.where(seen[None, :], s, float("-inf"))\n', ""),
        gate_forgotten=("if splits == 1:\n        y = acc / l[:, None] * tl.sigmoid(gate)[:, None]",
                        "if splits == 1:\n        y = acc / l[:, None]"),
        gate_without_sigmoid=("m = highest\n        y = acc / l[:, None] * tl.sigmoid(gate)[:, None]",
                              "m = highest\n        y = acc / l[:, None] * gate[:, None]"),
        gates_of_the_first_group=("(HQ + 2 * HKV) * DH + heads, mask", "(HQ + 2 * HKV) * DH + offs_g, mask"),
        temperature_signed=("temp = tl.abs(tl.load(temp_ptr + heads, mask=mask_g, other=0.0).to(tl.float32)) * scale",
                            "temp = tl.load(temp_ptr + heads, mask=mask_g, other=0.0).to(tl.float32) * scale"),
        temperature_forgotten=("unit(q, DH, QK_EPS) * temp[:, None]", "unit(q, DH, QK_EPS) * scale"),
        scale_forgotten=(".to(tl.float32)) * scale", ".to(tl.float32))"),
        scale_twice=(".to(tl.float32)) * scale", ".to(tl.float32)) * scale * scale"),
        powers_of_two_for_powers_of_e=("DH**-0.5 * LOG2E", "DH**-0.5"),
        head_epsilon_of_the_others=("QK_EPS = 1e-6", "QK_EPS = 1e-5"),
        query_not_turned=("cast(turn(unit(q, DH, QK_EPS) * temp[:, None], cos, sin, ROWS, DH), dtype)",
                          "cast(unit(q, DH, QK_EPS) * temp[:, None], dtype)"),
        new_key_not_turned=("cast(turn(unit(tl.load(key_ptr).to(tl.float32), DH, QK_EPS), cos, sin, 1, DH), dtype)",
                            "cast(unit(tl.load(key_ptr).to(tl.float32), DH, QK_EPS), dtype)"),
        new_key_not_normed=("turn(unit(tl.load(key_ptr).to(tl.float32), DH, QK_EPS), cos",
                            "turn(tl.load(key_ptr).to(tl.float32), cos"),
        position_off_by_one=("position.to(tl.int64) * DH", "tl.maximum(position - 1, 0).to(tl.int64) * DH"),
        values_are_keys=("tl.load(key_ptr + HKV * DH)", "tl.load(key_ptr)"),
        keys_are_values=("(HQ + hk) * DH + offs_one", "(HQ + HKV + hk) * DH + offs_one"),
        new_key_not_written=("        tl.store(k_ptr + place, k_new)\n", ""),
        new_value_not_written=("        tl.store(v_ptr + place, v_new)\n", ""),
        new_row_one_slot_on=("position % page_size) * HKV", "(position + 1) % page_size) * HKV"),
        new_row_to_the_first_sequence=("b * W + position // page_size", "position // page_size"),
        new_row_in_the_page_before=("b * W + position // page_size",
                                    "b * W + tl.maximum(position - 1, 0) // page_size"),
        cache_of_the_first_sequence=("b * W + at // page_size", "at // page_size"),
        cache_of_the_first_head=("at % page_size) * HKV + hk) * DH\n", "at % page_size) * HKV) * DH\n"),
        groups_interleaved=("heads = hk * GROUP + offs_g", "heads = hk + offs_g * HKV"),
        sum_not_faded=("acc = mma(p, v, acc * fade[:, None])", "acc = mma(p, v, acc)"),
        weights_not_faded=("l = l * fade + tl.sum(p.to", "l = l + tl.sum(p.to"),
        new_row_without_fade=("l = l * fade + p_new", "l = l + p_new"),
        joined_without_fade=("acc = acc * fade[:, None] + tl.sum(sums", "acc = acc + tl.sum(sums"),
        last_split_not_joined=("there = part < splits", "there = part < splits - 1"),
        one_split_more_joined=("there = part < splits", "there = part <= splits"),
        last_round_not_joined=("for start in range(0, splits, JOIN)", "for start in range(0, splits - 1, JOIN)"),
        splits_joined_twice=("for start in range(0, splits, JOIN)", "for start in range(0, splits, JOIN - 1)"),
        splits_of_equal_weight=("tl.exp2(m_part - highest[None, :])", "tl.exp2(m_part - m_part)"),
        heads_share_a_counter=("counters_ptr + pair", "counters_ptr + b"),
        sequences_share_their_sums=("slot = pair * tl.num_programs(0)", "slot = hk * tl.num_programs(0)"),
        idle_row_left_unwritten=("if split == 0:  # the row is idle", "if split > HKV * HQ:"),
        idle_row_at_position_zero=("position = tl.load(positions_ptr + b)",
                                   "position = tl.maximum(tl.load(positions_ptr + b), 0)"),
        idle_row_not_masked=("tl.zeros((ROWS, DH), dtype), mask=mask_g[:, None])", "tl.zeros((ROWS, DH), dtype))"),
        splits_beyond_the_end_write_zeros=("if split == 0:  # the row is idle", "if split >= 0:"),
        splits_of_the_grid_counted=("counters_ptr + pair, splits)", "counters_ptr + pair, tl.num_programs(0))"),
    ),
    "prefill_attention": _TRUNCATED + _TURNED + _HEAD_NORM + _faults(
        "prefill_attention",
        row_does_not_see_itself=("s_at[None, :] <= at[:, None]", "s_at[None, :] < at[:, None]"),
        row_sees_the_next=("s_at[None, :] <= at[:, None]", "s_at[None, :] <= at[:, None] + 1"),
        not_causal=("seen = written[None, :] & (s_at[None, :] <= at[:, None])",
                    "seen = written[None, :] & there[:, None]"),
        start_forgotten=("s_at[None, :] <= at[:, None]", "s_at[None, :] <= offs_t[:, None]"),
        common_border_off_by_one=("(start + row + 1) // BLOCK_S", "(start + row + 2) // BLOCK_S"),
        common_border_rounded_up=("(start + row + 1) // BLOCK_S * BLOCK_S",
                                  "tl.cdiv(start + row + 1, BLOCK_S) * BLOCK_S"),
        tile_without_its_last_row=("end = start + tl.minimum(row + BLOCK_Q, length)",
                                   "end = start + tl.minimum(row + BLOCK_Q - 1, length)"),
        length_for_the_end=("end = start + tl.minimum(row + BLOCK_Q, length)",
                            "end = tl.minimum(row + BLOCK_Q, length)"),
        nan_not_guarded=("acc = mma(p, tl.where(sound, v, tl.zeros_like(v)), acc", "acc = mma(p, v, acc"),
        nan_hidden=("reached[:, None], float", "(reached & (l < 0))[:, None], float"),
        nan_reaches_earlier_rows=("(seen & unsound[None, :])", "(written & unsound)[None, :]"),
        one_tile_too_far=("tl.num_programs(0) - 1 - tl.program_id(0)", "tl.num_programs(0) - tl.program_id(0)"),
        rows_of_the_next_tile=("(offs_m < BLOCK_Q * GROUP) & (offs_t < length)", "offs_t < length"),
        rows_of_the_next_sequence=("(offs_m < BLOCK_Q * GROUP) & (offs_t < length)",
                                   "(offs_m < BLOCK_Q * GROUP) & (offs_t <= length)"),
        cached_row_too_many=("there = offs_t < length", "there = offs_t <= length"),
        cached_row_too_few=("there = offs_t < length", "there = offs_t < length - 1"),
        gate_forgotten=("acc / l[:, None] * tl.sigmoid(gate)[:, None]", "acc / l[:, None]"),
        gate_without_sigmoid=("tl.sigmoid(gate)[:, None]", "gate[:, None]"),
        temperature_signed=("tl.abs(tl.load(temp_ptr + heads, mask=there, other=0.0).to(tl.float32))",
                            "tl.load(temp_ptr + heads, mask=there, other=0.0).to(tl.float32)"),
        scale_forgotten=(".to(tl.float32)) * scale", ".to(tl.float32))"),
        powers_of_two_for_powers_of_e=("DH**-0.5 * LOG2E", "DH**-0.5"),
        key_not_turned=("k = turn(unit(k, DH, QK_EPS), cos, sin, BLOCK_Q, DH)", "k = unit(k, DH, QK_EPS)"),
        query_not_normed=("turn(unit(q, DH, QK_EPS) * temp", "turn(q * temp"),
        keys_from_position_zero=("there = offs_t < length\n    mask = there[:, None]\n    at = start + offs_t",
                                 "there = offs_t < length\n    mask = there[:, None]\n    at = offs_t"),
        queries_one_position_on=("(offs_t < length)\n    mask = there[:, None]\n    at = start + offs_t",
                                 "(offs_t < length)\n    mask = there[:, None]\n    at = start + offs_t - 1"),
        values_are_keys=("tl.load(qkvg_ptr + key_at + HKV * DH,", "tl.load(qkvg_ptr + key_at,"),
        values_not_written=("    tl.store(v_ptr + place, v, mask=mask)\n", ""),
        pages_of_the_first_sequence=("pages_ptr = block_table_ptr + b * W", "pages_ptr = block_table_ptr"),
        written_to_the_first_sequence=("block_table_ptr + b * W + at", "block_table_ptr + at"),
        groups_interleaved=("heads = hk * GROUP + offs_m % GROUP", "heads = hk + offs_m % GROUP * HKV"),
        sum_not_faded=("acc = mma(p, v, acc * fade[:, None])", "acc = mma(p, v, acc)"),
        weights_not_faded=("l = l * fade + tl.sum(p.to(tl.float32), axis=1)\n",
                           "l = l + tl.sum(p.to(tl.float32), axis=1)\n"),
        results_of_the_first_sequence=("    y_at = (begin + offs_t)", "    y_at = (0 * begin + offs_t)"),
    ),
    "output_projection": _TRUNCATED + _MULTIPLIED + _faults(
        "output_projection",
        **_ROW_TILES,
        one_column_too_many=("offs_n < D", "offs_n <= D"),
        residual_forgotten=("acc += tl.load(residual_ptr + at", "acc += 0.0 * tl.load(residual_ptr + at"),
        residual_added_twice=("acc += tl.load(residual_ptr + at", "acc += 2.0 * tl.load(residual_ptr + at"),
        residual_alone=("acc += tl.load(residual_ptr + at", "acc = tl.load(residual_ptr + at"),
        residual_of_the_first_row=("residual_ptr + at", "residual_ptr + at % D"),
        weight_rows_of_the_wrong_width=("offs_n.to(tl.int64) * K", "offs_n.to(tl.int64) * D"),
        columns_not_masked=("mask = mask_n[:, None] & mask_m[None, :]", "mask = mask_m[None, :]"),
    ),
    "router": _TRUNCATED + _MULTIPLIED + _NORMED + _COUNTED + _faults(
        "router",
        idle_rows_keep_their_expert=("        ids = tl.where(idle == 1, EP, ids)\n", ""),
        idle_slots_in_front=("last = tl.sum(counts, axis=0)  # the next", "last = 0  # the next"),
        idle_slots_of_the_last_part_first=("            last += tl.sum(idle, axis=0)\n", ""),
        idle_slots_in_one_place=("(last + tl.cumsum(idle, axis=0) - 1)", "last"),
        position_of_the_slot=("positions_ptr + slots // K", "positions_ptr + slots % K"),
        idle_slots_are_of_the_first_expert=("tl.where(idle == 1, EP, ids)", "tl.where(idle == 1, 0, ids)"),
        idle_slots_dropped=("place, slots, mask=slots < N)", "place, slots, mask=(slots < N) & (idle == 0))"),
    ) + _faults(
        "_numeric",
        gelu_by_tanh=("(1.0 + tl.erf(x * 0.7071067811865476))",
                      "(1.0 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))"),
    ) + _faults(
        "router",
        **_SCALED,
        **_ROW_TILES,
        down_bias_forgotten=("s += tl.load(down_bias_ptr", "s += 0.0 * tl.load(down_bias_ptr"),
        state_without_scale=("other=0.0).to(tl.float32) * scale[:, None]", "other=0.0).to(tl.float32)"),
        state_not_carried=("    if CARRY:\n", "    if CARRY and D < 0:\n"),
        state_of_the_first_rows=("tl.load(state_ptr + at,", "tl.load(state_ptr + at % (ROWS * R),"),
        state_not_stored=("    tl.store(s_ptr + at, cast(s, dtype), mask=mask)\n", ""),
        state_norm_forgotten=("h = s * tl.rsqrt(tl.sum(s * s, axis=0) / R + eps)[None, :]", "h = s"),
        state_norm_without_epsilon=("/ R + eps)", "/ R)"),
        state_norm_over_the_tile=("/ R + eps)", "/ RP + eps)"),
        first_layer_twice=("tl.load(w2_ptr + w_at", "tl.load(w1_ptr + w_at"),
        second_bias_forgotten=("h + tl.load(b2_ptr", "h + 0.0 * tl.load(b2_ptr"),
        weights_transposed=("w_at = offs_r[:, None] * R + offs_r[None, :]",
                            "w_at = offs_r[None, :] * R + offs_r[:, None]"),
        padding_among_the_experts=('    z = tl.where(mask_e[:, None], z, float("-inf"))\n', ""),
        choice_without_bias=("score = p + tl.load(biases_ptr", "score = p + 0.0 * tl.load(biases_ptr"),
        weight_with_bias=("tl.where(taken, p, 0.0)", "tl.where(taken, score, 0.0)"),
        tie_to_the_higher=("tl.min(tl.where(score == best[None, :], offs_e[:, None], EP), axis=0)",
                           "tl.max(tl.where(score == best[None, :], offs_e[:, None], 0), axis=0)"),
        same_expert_again=('        score = tl.where(taken, float("-inf"), score)\n', ""),
        choices_in_one_place=("at = offs_m.to(tl.int64) * K + j", "at = offs_m.to(tl.int64) * K"),
        nan_not_guarded=("tl.where(score == score, score, -1e30)", "score"),
        offsets_not_exclusive=("free = ends - counts  #", "free = ends  #"),
        offsets_of_the_beginnings=("offsets_ptr + 1 + offs_e, ends,", "offsets_ptr + 1 + offs_e, ends - counts,"),
        first_offset_not_stored=("    tl.store(offsets_ptr, 0)\n", ""),
        slots_in_reverse=("tl.cumsum(mine, axis=0) - 1)", "tl.sum(mine, axis=0)[None, :] - tl.cumsum(mine, axis=0))"),
        later_slots_over_earlier=("        free += tl.sum(mine, axis=0)\n", ""),
        last_slots_counted_only=("counts += tl.sum(", "counts = tl.sum("),
        padding_counted=("other=EP)\n    idle", "other=0)\n    idle"),
        rows_sorted_not_slots=("positions_ptr, M * K, E, K", "positions_ptr, M, E, K"),
        tiles_share_a_counter=("counters_ptr + 1 + tile", "counters_ptr + tile"),
        sorted_before_all_chose=("if last_to_arrive(counters_ptr, tiles_m):", "if tile == tiles_m - 1:"),
    ),
    "experts": _TRUNCATED + _MULTIPLIED + _NORMED + _COUNTED + _faults(
        "_numeric", silu_is_sigmoid=("return x / (1.0 + tl.exp(-x))", "return 1.0 / (1.0 + tl.exp(-x))")
    ) + _faults(
        "experts",
        **_SCALED,
        idle_slots_multiplied=("length = tl.where(expert < E, I, 0)", "length = tl.where(expert <= E, I, 0)"),
        weights_of_nobody=("mask=known, other=0.0)", "mask=mask_m, other=0.0)"),
        idle_rows_left_out=("mask=offs_e <= E, other=M * K)", "mask=offs_e < E, other=M * K)"),
        idle_slots_from_the_first=("mask=offs_e <= E, other=M * K)", "mask=offs_e < E, other=0)"),
        one_idle_slot_too_few=("mask=offs_e < E, other=M * K)", "mask=offs_e < E, other=M * K - 1)"),
        idle_rows_are_zero=("cast(x + term, dtype)", "cast(tl.where(expert < E, x, 0.0) + term, dtype)"),
        idle_slots_beyond_the_axis=("block(E + 1)", "block(E)"),
        room_for_the_experts_only=("_tiles_m(slots, E + routed, ", "_tiles_m(slots, E, "),
        gate_and_up_swapped=("silu(gate) * up", "silu(up) * gate"),
        gate_forgotten=("silu(gate) * up", "silu(gate)"),
        up_not_scaled=("        up = up * scale\n", ""),
        rows_read_as_if_dense=("offs_n.to(tl.int64) * stride_row", "offs_n.to(tl.int64) * D"),
        expert_read_as_if_dense=("expert * stride_expert", "expert * I * D"),
        first_expert_for_all=("return expert.to(tl.int64), slots", "return 0 * expert.to(tl.int64), slots"),
        down_rows_of_the_next_expert=("tl.minimum(expert, E - 1) * D", "tl.minimum(expert + 1, E - 1) * D"),
        down_stride_of_the_other_size=("tl.minimum(expert, E - 1) * D", "tl.minimum(expert, E - 1) * I"),
        slot_for_row=("slots // K * D", "slots * D"),
        choice_for_row=("slots // K * D", "slots % K * D"),
        expert_slots_off_by_one=("(before <= tile)", "(before < tile)"),
        ragged_tile_forgotten=("(ends - begins + BLOCK_M - 1) // BLOCK_M", "(ends - begins) // BLOCK_M"),
        slot_of_the_next_expert=("mask = first < tl.sum(", "mask = first <= tl.sum("),
        second_tile_of_an_expert=("(tile - before + counts) * BLOCK_M", "(tile - before + counts)"),
        slots_in_sequence=("slots = tl.load(order_ptr + first, mask=mask, other=0)",
                           "slots = tl.where(mask, first, 0)"),
        weight_forgotten=("term = term * tl.load(weights_ptr", "term = term + 0.0 * tl.load(weights_ptr"),
        weight_of_the_other_choice=("weights_ptr + slots,", "weights_ptr + slots // K * K + (K - 1 - slots % K),"),
        weight_of_the_row=("weights_ptr + slots,", "weights_ptr + slots // K,"),
        first_choice_only=("for j in tl.static_range(K):", "for j in tl.static_range(1):"),
        first_choice_again=("* K + j) * D + offs_n", "* K) * D + offs_n"),
        residual_forgotten=("y += tl.load(x_ptr + at", "y += 0.0 * tl.load(x_ptr + at"),
        residual_by_choice=("y += tl.load(x_ptr + at", "y += K * tl.load(x_ptr + at"),
        residual_forgotten_for_one=("cast(x + term, dtype)", "cast(term, dtype)"),
        first_tile_of_rows_only=("for start in range(0, M, BLOCK_M):", "for start in range(0, BLOCK_M, BLOCK_M):"),
        rows_not_masked=("(rows < M)[None, :]", "(rows >= 0)[None, :]"),
        columns_share_a_counter=("counters_ptr + tl.program_id(1)", "counters_ptr"),
        tiles_of_the_grid_counted=("counters_ptr + tl.program_id(1), tiles_m)",
                                   "counters_ptr + tl.program_id(1), tl.num_programs(0))"),
        columns_of_up_not_masked=("mask_n = offs_n < I", "mask_n = offs_n < I + BLOCK_N"),
        one_column_too_many=("mask_n = offs_n < D", "mask_n = offs_n <= D"),
        no_norm_in_prefill=("rows = normed(x, norm_weight, eps)", "rows = x"),
        norm_twice_in_prefill=("NORM=not prefill", "NORM=True"),
    ),
    "head": _MULTIPLIED + _NORMED + _faults(
        "_numeric",
        cap_without_sign=("tl.where(x < 0, -t, t)", "t"),
        cap_by_too_short_a_fraction=("s * (1260.0 + s * 21.0)", "s * 1260.0"),
        cap_series_too_far=("a < 0.625", "a < 6.25"),
    ) + _faults(
        "head",
        **_SCALED,
        **_ROW_TILES,
        cap_forgotten=("        acc = softcap * tanh(acc / softcap)\n", "        pass\n"),
        cap_on_the_wrong_side=("softcap * tanh(acc / softcap)", "tanh(acc * softcap) / softcap"),
        cap_within_only=("softcap * tanh(acc / softcap)", "tanh(acc / softcap)"),
        cap_before_the_norm=("acc = acc * tl.rsqrt(squares", "acc = softcap * tanh(acc / softcap) * tl.rsqrt(squares"),
        cap_of_zero=("CAP=softcap != 0", "CAP=True"),
        scale_forgotten=("acc = acc * tl.rsqrt(squares / D + eps)[None, :]", "pass"),
        one_code_too_many=("offs_n < N", "offs_n <= N"),
        one_code_too_few=("offs_n < N", "offs_n < N - 1"),
        codes_not_masked=("mask=mask_n[:, None] & mask_m[None, :]", "mask=mask_m[None, :]"),
        norm_twice=("NORM=norm_weight is not None", "NORM=True"),
        no_norm_in_prefill=("x, norm_weight = normed(x, norm_weight, eps), None", "norm_weight = None"),
        logits_rounded=("logits_ptr + at, acc,", "logits_ptr + at, acc.to(tl.float16).to(tl.float32),"),
    ),
}  # fmt: skip

# Edges that no workload of the catalogue meets.
EXTRA: Mapping[str, tuple[Workload, ...]] = {
    name: tuple(Workload(workload.replace("_", "-"), sizes, real=False) for workload, sizes in workloads.items())
    for name, workloads in {
        "qkv_projection": {"long_K": {"M": 2, "D": 136, "NQ": 16, "NKV": 16, "G": 8}},
        "decode_attention": {
            "last_round_of_one": {"B": 1, "context": 70, "HQ": 2, "HKV": 1, "DH": 16, "page_size": 8}
        },
        "output_projection": {"long_K": {"M": 2, "K": 136, "D": 16}},
        "router": {"long_D": {"M": 2, "D": 136, "R": 24, "E": 4, "k": 1}},
        "experts": {"long_K": {"M": 3, "D": 136, "I": 72, "E": 4, "k": 1}},
        "head": {"long_K": {"M": 2, "D": 136, "N": 27, "codebooks": 3}},
    }.items()
}  # fmt: skip


_numbers = itertools.count()


@functools.cache
def _folder() -> Path:
    """Triton reads the source of a kernel when it is launched: the files live as long as the process."""
    folder = tempfile.mkdtemp(prefix="faults-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def mutant(kernel: Kernel, fault: Fault) -> Callable[..., Any]:
    """The operation of a copy of its module, and of whatever stands between that and the fault's, with the fault.

    ValueError: the text to be replaced is not there exactly once.
    """
    package = f"zonos2_triton_fault_{next(_numbers)}"
    texts = {file: (SOURCES / f"{file}.py").read_text(encoding="utf-8") for file in _between(kernel.name, fault.file)}
    if (found := texts.get(fault.file, "").count(fault.old)) != 1:
        raise ValueError(f"{kernel.name}, {fault.name}: {fault.old!r} is {found} times in {fault.file}.py, not once")
    texts[fault.file] = texts[fault.file].replace(fault.old, fault.new)
    path = _folder() / package
    path.mkdir()
    (path / "__init__.py").touch()
    copied = re.compile(rf"from zonos2_triton\.kernels\.({'|'.join(texts)}) import")
    for file, text in texts.items():
        text = copied.sub(rf"from {package}.\1 import", text).replace('"zonos2_triton::', f'"{package}::')
        (path / f"{file}.py").write_text(text, encoding="utf-8")
    sys.path.insert(0, str(_folder()))
    try:
        importlib.invalidate_caches()
        module = importlib.import_module(f"{package}.{kernel.name}")
    finally:
        sys.path.remove(str(_folder()))
        for name in [name for name in sys.modules if name.split(".")[0] == package]:
            del sys.modules[name]
    return getattr(module, kernel.name)


@functools.cache
def _imports(file: str) -> frozenset[str]:
    text = (SOURCES / f"{file}.py").read_text(encoding="utf-8")
    return frozenset(re.findall(r"from zonos2_triton\.kernels\.(\w+) import", text))


def _between(op: str, file: str) -> set[str]:
    """The modules from the operation's to the fault's by which the one imports the other. None: it does not."""
    if op == file:
        return {op}
    below = {part for name in _imports(op) for part in _between(name, file)}
    return below | {op} if below else below


def small(kernel: Kernel) -> tuple[Workload, ...]:
    """The workloads that the checks run on."""
    return (*(workload for workload in kernel.workloads if not workload.real), *EXTRA.get(kernel.name, ()))


FAILURES = (AssertionError, OutOfBounds, DataRace, GuardBandTouched)  # what a check raises
# Workloads of several rows, tiles or sequences, on which the invariants say most. The first of each kernel is one too.
TILED = {"two-tiles", "prefill", "packed", "skewed", "speakers", "split-edges", "idle"}


def checks(kernel: Kernel, workloads: Sequence[Workload] | None = None) -> Iterator[tuple[str, Callable[[Op], None]]]:
    """What each of an operation's checks is called, and itself: a function of the operation. Quick ones come first."""
    given = small(kernel) if workloads is None else tuple(workloads)
    tiled = [workload for workload in given if workload.name in TILED or workloads is not None]
    rest = [workload for workload in given[1:] if workload not in tiled]
    single, half = torch.float32, torch.bfloat16

    def check(what: Callable[[Case, Op], None], workload: Workload, dtype: torch.dtype, variant: str = "") -> Any:
        subject = dict(variants(kernel)).get(variant, kernel)
        name = f"{what.__name__} {workload.name} {str(dtype).removeprefix('torch.')} {variant}".rstrip()
        return name, partial(_try, what, subject, workload, dtype, variant)

    for first in given[:1]:
        yield check(exact, first, single)
        for variant, _ in variants(kernel):
            yield check(exact, first, single, variant)
        yield check(exact, first, half)
        yield check(rounded_once, first, half)
    for workload in (*tiled, *rest):
        yield check(exact, workload, single)
    for workload in (*given[:1], *tiled):
        for invariant in INVARIANTS.values():
            yield check(invariant, workload, single)
    for workload in tiled:
        yield check(exact, workload, half)


def killed(kernel: Kernel, fault: Fault, workloads: Sequence[Workload] | None = None) -> str | None:
    """The first of the operation's checks that fails on a copy with the fault, and how. None: the fault survives.

    Other errors than a check's are raised: a copy that cannot even run says nothing about the checks.
    """
    op = mutant(kernel, fault)
    for name, check in checks(kernel, workloads):
        try:
            check(op)
        except FAILURES as failure:
            return f"{name}: {type(failure).__name__}: {failure}".splitlines()[0]
    return None


_cases: dict[tuple[str, str, torch.dtype, str], Case] = {}


def _try(
    check: Callable[[Case, Op], None], kernel: Kernel, workload: Workload, dtype: torch.dtype, variant: str, op: Op
) -> None:
    """The check, on a case that is made once: many operations are tried on each."""
    key = kernel.name, repr(workload), dtype, variant
    if key not in _cases:
        _cases[key] = Case(kernel, workload, dtype=dtype)
    check(_cases[key], op)
