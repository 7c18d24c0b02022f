"""The specs of the kernels of a frame and of prompts, at the 8B model's sizes and at small ones."""

from dataclasses import replace
from typing import Any

import triton

from zonos2_triton.bench.compiler.estimate import MOST_TOKENS, Bounds
from zonos2_triton.bench.compiler.expected import Expected
from zonos2_triton.bench.specs import inputs, requests
from zonos2_triton.bench.specs.inputs import Sizes
from zonos2_triton.bench.specs.spec import active_experts, spec

# The 8B model's sizes.
D, HQ, HKV, DH, I, E, R, C, V, P, TEXT = 2048, 16, 4, 128, 3072, 16, 128, 9, 1026, 6144, 520
_ROWS: dict[str, Sizes] = {"decode-B1": {"M": 1}, "decode-B64": {"M": 64}, "prefill-2048": {"M": 2048}}
_DECODE: dict[str, Sizes] = {f"decode-B{B}": {"M": B} for B in (1, 4, 16, 17, 64, 256)}
_PREFILL: dict[str, Sizes] = {f"prefill-{T}": {"M": T, "prefill": True} for T in (32, 128, 2048)}
_FEW: dict[str, Sizes] = {"tiny": {"M": 3}, "one-row": {"M": 1}}
_PIECES = {**_FEW, "two-tiles": {"M": 33}, "prefill": {"M": 33, "prefill": True}}
_PIECES["prefill-row"] = {"M": 1, "prefill": True}
# Between the parts of another engine: rows that are normed already, and sums that it adds itself.
_NORMED: dict[str, Sizes] = {f"normed-B{B}": {"M": B, "normed": True} for B in (1, 64)}
_SUM: Sizes = {"normed": True, "residual": False, "next_norm": False}
_UNPREPARED: Sizes = {"prepared": False}  # the norm's first half is a launch of its own
_ALONE: Sizes = {"residual": False, "next_norm": False}
_BARE: Sizes = {"no_preamble": True}
_DENSE: Sizes = {"E": 1, "active": 1, "routed": False}
# Bounds on the counts at 1 to 64 tokens on an H200. Under way must be 4.3 TB/s x 0.9 us / 132, but for what hits L2.
# Programs must fill 0.9 of its multiprocessors.
_ALL = MOST_TOKENS
_CODE = {"conflict": _ALL, "exposed": _ALL}
_HELD = _CODE | {
    "under_way": _ALL,
    # At 64 tokens programs take 32 columns, as that halves what goes through the L2 cache, which then decides:
    "live": 16,  # 97 programs of qkv_projection, 64 of output_projection
    "shared": 16,  # 1.8 of the floor in output_projection: few multiprocessors have all the work
    "shared_dense": 16,  # likewise in a dense layer's down-projection
    "issue": 16,  # .42 to .60: each program feeds all x to its products again
}
_STREAM: dict[str, Any] = {"issue": 0.4, "under_way": 25_000, "live": 119, "held": _HELD}
_SHARED = {4: 0.8, 16: 1.0, 64: 1.7}
_WEIGHTS = Bounds(_SHARED, **_STREAM)
# Of 64 routed tokens an expert gets few; a dense layer gives it all of them, as any product.
_EXPERTS = Bounds(shared=_SHARED | {64: 0.8}, shared_dense=_SHARED, **{**_STREAM, "held": _HELD | {"shared": _ALL}})
# The last program adds the partials of two experts and the residual, by loads that nothing can overlap with.
_JOINED = replace(_EXPERTS, exposed=3)
_FEW_LOADS = Bounds(held=_CODE)
# Triton 3.7 lays warps along what the join of attention and the router add up: 8 % and 0.1 % more wavefronts.
_ADDED = 16.0 if triton.__version__.startswith("3.7.") else 2.0
# Why launches of prompts stay below half of the better roof (`Expected.reasons`).
_PROMPTS = {
    "*2048": "the L2 cache: tiles of 128 x 128, as wider ones would leave shorter prompts few programs",
    "*top2": "the L2 cache; the last program adds partials of two experts by loads that nothing overlaps with",
    "*": "K is not split, as bits must not depend on the length: 25 to 98 programs, each a chain of steps",
}
_ATTENDED = {"*": "few programs of 32 tokens in short prompts; in long ones softmax takes twice the floor"}
_WRITTEN = {"*": "little work: a page, then a key and a value of 16 tokens each"}
_PREPARE = Expected(max_instructions=1200, stream16=True)
# Narrow loads of products: in `moe_experts` the slots, once for each layout that needs them.
_PRODUCT: dict[str, Any] = {"invariant": True, "matrix": True, "stream16": True, "reasons": _PROMPTS}

FRAME = (
    spec(
        "frame_embedding",
        "ten gathers, their sum, the speaker's row, the norm",
        {"_frame_embedding_kernel": Expected(max_instructions=1200, stream16=True, max_narrow=24, bounds=_FEW_LOADS)},
        real={"D": D, "columns": C + 1, "V": V, "text": TEXT},
        at={
            **{f"decode-B{B}": {"M": B} for B in (1, 4, 16, 64)},
            "prefill-128": {"M": 128, "voices": 1},
            "prefill-2048": {"M": 2048, "voices": 2},
            "no-norm-B64": {"M": 64, "norm": False, "next_norm": False},
        },
        small={"D": 48, "columns": 10, "V": 11, "text": 7},
        edges={
            **_FEW,
            "speakers": {"M": 5, "voices": 2},
            "no-norm": {"M": 5, "voices": 2, "norm": False, "next_norm": False},
            "wide-D": {"M": 2, "D": 264},
        },
    ),
    spec(
        "add_rms_norm",
        "residual add, norm",
        {"_add_rms_norm_kernel": Expected(max_instructions=600, stream16=True)},
        real={"D": D},
        at=_ROWS,
        small={"D": 48},
        edges={**_FEW, "no-residual": {"M": 4, "residual": False}, "wide-D": {"M": 2, "D": 264}},
    ),
    spec(
        "rotary",
        "rotary embedding, by itself",
        {"_rotary_kernel": Expected(max_instructions=900)},
        real={"H": HQ + HKV, "DH": DH, "P": P},
        at=_ROWS,
        small={"H": 3, "DH": 16, "P": 40},
        edges={"tiny": {"M": 5}, "one-row": {"M": 1}, "one-head": {"M": 3, "H": 1}},
    ),
    spec(
        "qkv_projection",
        "attention norm; query, key, value and gate projections",
        {
            "_qkv_projection_kernel": Expected(max_instructions=6000, max_narrow=80, bounds=_WEIGHTS, **_PRODUCT),
            "_prepare_norm_kernel": _PREPARE,
        },
        real={"D": D, "NQ": HQ * DH, "NKV": HKV * DH, "G": HQ},
        at={**_DECODE, **_PREFILL, **_NORMED, "unprepared-B16": {"M": 16, **_UNPREPARED}},
        small={"D": 48, "NQ": 64, "NKV": 32, "G": 4},
        edges={
            **_PIECES,
            "even-K": {"M": 2, "D": 64},
            "early": {"M": 17, "D": 192, "NQ": 16, "NKV": 16},  # for a token alone; here the product is a loop
            "narrow": {"M": 5, "NQ": 16, "NKV": 16, "G": 1},
            "normed": {"M": 33, "normed": True},
            "prefill-normed": {"M": 33, "normed": True, "prefill": True},
            "unprepared": {"M": 33, **_UNPREPARED},
            "prefill-unprepared": {"M": 33, **_UNPREPARED, "prefill": True},
            "long-K": {"M": 2, "D": 136, "NQ": 16, "NKV": 16, "G": 8},
        },
    ),
    spec(
        "decode_attention",
        "head norms, temperature, rotary, cache write, attention, head gate",
        {
            "_decode_attention_kernel": Expected(
                max_instructions=4000,
                matrix=True,
                stream16=True,
                max_narrow=160,
                bounds=Bounds(shared_us=3.0, conflict=_ADDED, held=_CODE | {"shared_us": _ALL}),
            )
        },
        real={"HQ": HQ, "HKV": HKV, "DH": DH},
        at={
            "decode-B1-first": {"B": 1, "context": 0},
            "decode-B1": {"B": 1, "context": 1000},
            "decode-B1-full": {"B": 1, "context": P - 1},
            "decode-B4": {"B": 4, "context": 1000},
            "decode-B16": {"B": 16, "context": 1000},
            "decode-B16-4000": {"B": 16, "context": 4000},
            **{f"decode-B{B}": {"B": B, "context": 1000} for B in (64, 256)},
            "no-preamble-B16": {"B": 16, "context": 1000, **_BARE, "page_size": 1},
        },
        small={"HQ": 4, "HKV": 2, "DH": 16, "page_size": 8},
        edges={
            "tiny": {"B": 2, "context": 20, "contexts": (20, 3)},
            "idle": {"B": 3, "context": 20, "contexts": (20, -1, 3)},
            "first": {"B": 1, "context": 0},
            "split-edges": {"B": 5, "context": 33, "contexts": (8, 9, 32, 31, 33)},
            "joins": {"B": 2, "context": 150, "contexts": (150, 127)},
            "contiguous": {"B": 2, "context": 19, "page_size": 20},
            "blocks-in-a-page": {"B": 2, "context": 40, "contexts": (40, 21), "page_size": 16},
            "page-of-one": {"B": 1, "context": 18, "page_size": 1},
            "no-preamble": {"B": 4, "context": 33, "contexts": (33, -1, 15, 0), **_BARE},
            "no-preamble-page-of-one": {"B": 2, "context": 70, "contexts": (70, 16), **_BARE, "page_size": 1},
            "one-group": {"B": 1, "context": 18, "HQ": 2},
            "all-heads": {"B": 1, "context": 9, "HQ": 20, "HKV": 1},
        },
        mutates=("k_cache", "v_cache"),
    ),
    spec(
        "prefill_attention",
        "the same, causal, for packed sequences",
        {
            "_prefill_attention_kernel": Expected(9000, matrix=True, warpgroup=True, reasons=_ATTENDED),
            "_write_cache_kernel": Expected(1500, reasons=_WRITTEN),
        },
        real={"HQ": HQ, "HKV": HKV, "DH": DH},
        at={
            "prefill-32": {"B": 1, "T": 32, "context": 0},
            "prefill-128": {"B": 1, "T": 128, "context": 0},
            "prefill-2048": {"B": 1, "T": 2048, "context": 0},
            "prefill-8-of-128": {"B": 8, "T": 1024, "context": 0},
            "chunk-512-after-1024": {"B": 1, "T": 512, "context": 1024},
            "no-preamble-2048": {"B": 1, "T": 2048, "context": 0, **_BARE, "page_size": 1},
        },
        small={"HQ": 4, "HKV": 2, "DH": 16, "page_size": 8},
        edges={
            "tiny": {"B": 1, "T": 20, "context": 0},
            "packed": {"B": 3, "T": 40, "context": 0, "rows": (17, 1, 22), "contexts": (0, 5, 16)},
            "one-row": {"B": 1, "T": 1, "context": 7},
            "block-edge": {"B": 2, "T": 32, "context": 16},
            "contiguous": {"B": 1, "T": 18, "context": 3, "page_size": 21},
            "blocks-in-a-page": {"B": 1, "T": 20, "context": 40, "page_size": 32},
            "page-of-one": {"B": 1, "T": 18, "context": 0, "page_size": 1},
            "no-preamble": {"B": 3, "T": 40, "context": 0, "rows": (17, 1, 22), "contexts": (0, 5, 16), **_BARE},
            "no-preamble-page-of-one": {"B": 1, "T": 18, "context": 3, **_BARE, "page_size": 1},
            "odd-group": {"B": 1, "T": 13, "context": 4, "HQ": 6},
        },
        mutates=("k_cache", "v_cache"),
    ),
    spec(
        "output_projection",
        "output projection, residual add",
        {"_output_projection_kernel": Expected(max_instructions=5000, max_narrow=40, bounds=_WEIGHTS, **_PRODUCT)},
        real={"K": HQ * DH, "D": D},
        at={**_DECODE, **_PREFILL, **{f"no-residual-B{B}": {"M": B, **_ALONE} for B in (1, 64)}},
        small={"K": 64, "D": 48},
        edges={
            **_PIECES,
            "odd-K": {"M": 2, "K": 40},
            "early": {"M": 17, "K": 192, "D": 24},
            "no-residual": {"M": 33, **_ALONE},
            "prefill-no-residual": {"M": 33, "residual": False, "prefill": True},
            "long-K": {"M": 2, "K": 136, "D": 16},
            "ragged-groups": {"M": 17, "D": 40},
        },
    ),
    spec(
        "moe_router",
        "feed-forward norm, down-projection, carried state, norm, 3 layers, softmax, choice, slots by expert",
        {
            "_moe_router_kernel": Expected(
                max_instructions=12000,
                max_narrow=400,
                bounds=Bounds(round_trips=5, conflict=_ADDED, held=_CODE | {"round_trips": _ALL}),
                **_PRODUCT | {"reasons": {"*": "few bytes, in a chain of layers for each tile of 16 tokens"}},
            ),
            "_prepare_norm_kernel": _PREPARE,
        },
        real={"D": D, "R": R, "E": E, "k": 1},
        at={
            **{f"decode-B{B}": {"M": B} for B in (1, 4, 16, 64, 256)},
            "decode-top2": {"M": 16, "k": 2},
            "decode-B16-idle": {"M": 16, "idle": (15,)},
            "first-layer": {"M": 1, "carry": False},
            "normed-B16": {"M": 16, "normed": True},
            "unprepared-B16": {"M": 16, **_UNPREPARED},
            **{f"prefill-{T}": {"M": T} for T in (128, 2048)},
        },
        small={"D": 48, "R": 24, "E": 4, "k": 1},
        edges={
            **_FEW,
            "two-tiles": {"M": 17, "k": 2},
            "first-layer-tiny": {"M": 2, "carry": False},
            "all-experts": {"M": 2, "k": 4},
            "many-experts": {"M": 5, "E": 20, "k": 2},
            "sorted-in-parts": {"M": 70, "k": 2},
            "idle": {"M": 70, "k": 2, "idle": (1, 5, 68)},
            "idle-tile": {"M": 7, "k": 2, "idle": (1, 4)},
            "normed": {"M": 17, "normed": True},
            "unprepared": {"M": 17, **_UNPREPARED},
            "long-D": {"M": 2, "D": 136},
        },
    ),
    spec(
        "moe_experts",
        "feed-forward norm, SwiGLU of each token's experts, weights, residual add",
        {
            "_moe_experts_up_kernel": Expected(max_instructions=9000, max_narrow=80, bounds=_EXPERTS, **_PRODUCT),
            "_moe_experts_down_kernel": Expected(max_instructions=6000, max_narrow=160, bounds=_JOINED, **_PRODUCT),
            "_prepare_norm_kernel": _PREPARE,
        },
        real={"D": D, "I": I, "E": E, "k": 1},
        at={
            **{f"decode-B{B}": {"M": B, "active": active_experts(B, E, 1)} for B in (1, 4, 16, 64, 256)},
            **{f"decode-B{B}-top2": {"M": B, "k": 2, "active": active_experts(B, E, 2)} for B in (1, 4, 16, 64)},
            "prefill-128": {"M": 128, "active": E, "prefill": True},
            "prefill-2048": {"M": 2048, "active": E, "prefill": True},
            "prefill-top2": {"M": 2048, "k": 2, "active": E, "prefill": True},
            **{f"dense-B{B}": {"M": B, **_DENSE} for B in (1, 4, 16, 64)},
            **{f"dense-prefill-{T}": {"M": T, **_DENSE, "prefill": True} for T in (128, 2048)},
            **{f"sum-B{B}": {"M": B, "active": active_experts(B, E, 1), **_SUM} for B in (16, 256)},
            "unprepared-B16": {"M": 16, "active": active_experts(16, E, 1), **_UNPREPARED},
            "sum-B16-top2": {"M": 16, "k": 2, "active": active_experts(16, E, 2), **_SUM},
            "prefill-sum-2048": {"M": 2048, "active": E, "prefill": True, **_SUM},
            "dense-sum-B64": {"M": 64, **_DENSE, **_SUM},
            "dense-prefill-sum-2048": {"M": 2048, **_DENSE, "prefill": True, **_SUM},
        },
        small={"D": 48, "I": 40, "E": 4, "k": 1, "active": 4},
        edges={
            "tiny": {"M": 3, "active": 3},
            "one-row": {"M": 1, "active": 1},
            "top2": {"M": 5, "k": 2},
            "skewed": {"M": 35, "k": 2, "skew": True},
            "idle": {"M": 5, "E": 2, "active": 2, "idle": (1, 3)},
            "idle-top2": {"M": 41, "k": 2, "skew": True, "idle": (*range(1, 36, 2),)},
            "few-slots": {"M": 20, "E": 20, "active": 20, "skew": True, "idle": (1, 4)},
            "empty-experts": {"M": 2, "E": 6, "active": 2},
            "even-K": {"M": 3, "D": 64, "I": 64, "active": 3},
            "early": {"M": 17, "D": 24, "I": 192, "E": 2, "active": 2, "idle": (8,)},
            "dense": {"M": 5, **_DENSE},
            "dense-two-tiles": {"M": 33, **_DENSE},
            "prefill": {"M": 40, "k": 2, "prefill": True},
            "dense-prefill": {"M": 33, **_DENSE, "prefill": True},
            "normed": {"M": 35, "k": 2, "skew": True, "normed": True},
            "unprepared": {"M": 35, "k": 2, "skew": True, **_UNPREPARED},
            "dense-prefill-unprepared": {"M": 33, **_DENSE, **_UNPREPARED, "prefill": True},
            "sum": {"M": 35, "skew": True, "idle": (1, 33), **_SUM},
            "sum-top2": {"M": 5, "k": 2, "idle": (1, 3), **_SUM},
            "dense-sum": {"M": 33, **_DENSE, **_SUM},
            "prefill-sum": {"M": 40, "k": 2, "prefill": True, **_SUM},
            "prefill-no-residual": {"M": 40, "prefill": True, "residual": False},
            "long-K": {"M": 3, "D": 136, "I": 72, "active": 3},
        },
    ),
    spec(
        "codebook_head",
        "output norm, 9 x 1026 logits, soft-cap",
        {
            "_codebook_head_kernel": Expected(max_instructions=6000, max_narrow=80, bounds=_WEIGHTS, **_PRODUCT),
            "_prepare_norm_kernel": _PREPARE,
        },
        real={"D": D, "N": C * V, "codebooks": C},
        at={
            **_DECODE,
            "prefill-128": {"M": 128, "prefill": True},
            "prefill-normed": {"M": 128, "prefill": True, "normed": True},
            "unprepared-B16": {"M": 16, **_UNPREPARED},
        },
        small={"D": 48, "N": 27, "codebooks": 3},
        edges={
            **_FEW,
            "two-tiles": {"M": 33},
            "no-cap": {"M": 2, "softcap": 0.0},
            "normed": {"M": 3, "normed": True},
            "unprepared": {"M": 3, **_UNPREPARED},
            "prefill": {"M": 33, "prefill": True},
            "wide": {"M": 2, "N": 1026, "codebooks": 1},
            "long-K": {"M": 2, "D": 136},
        },
    ),
    spec(
        "sample_codes",
        "penalty, temperature, top-k, softmax, top-p, min-p, draw; history, end of audio, next ids",
        {"_sample_codes_kernel": Expected(max_instructions=3900, bounds=_FEW_LOADS)},
        real={"C": C, "V": V, "N": 16},
        at={
            **{f"decode-B{B}": {"B": B} for B in (1, 4, 16, 64, 256)},
            "decode-B16-top-p": {"B": 16, "settings": ({"top_p": 0.9},)},
        },
        small={"C": 3, "V": 30},
        edges={
            "tiny": {"B": 2, "settings": ({"top_k": 12, "min_p": 0.05},)},
            "one-row": {"B": 1, "C": 1},
            "settings": {"B": 13, "settings": requests.SETTINGS},
            "ties": {"B": 13, "settings": requests.SETTINGS, "whole": True, "spread": 0.8},
            "end-of-the-window": {"B": 2, "settings": requests.PENALISED, "recent": 5},
            "before-the-window": {"B": 2, "settings": requests.PENALISED, "recent": 6},
            "first-frame": {"B": 4, "settings": requests.SETTINGS, "step": 1},
            "flat": {"B": 13, "settings": requests.SETTINGS, "spread": 0.3},
            "half": {"B": 8, "V": 6, "settings": requests.HALF, "levels": requests.HALVES},
            "at-the-target": {
                "B": 4,
                "C": 1,
                "V": 3,
                "settings": (requests.SOFTMAX,),
                "levels": requests.AT_THE_TARGET,
            },
            "last-bits": inputs.last_bits(48),
            "wide": {"B": 1, "C": 1, "V": 1026},
            "search": {"B": 12, "V": 6, "settings": requests.SEARCHED, "levels": requests.SEARCHED_LEVELS},
            "no-state": {"B": 2, "state": False},
            "ends": {"B": 11, "slots": tuple({**slot, "steps": 20} for slot in requests.ENDS)},
            "ends-first": {"B": 11, "slots": tuple({**slot, "steps": 1, "max_frames": 60} for slot in requests.ENDS)},
            "idle": {
                "B": 5,
                "slots": (
                    *({}, {"positions": -1}, {"fault": 2}, {"positions": -2, "ends": (0,)}),
                    {"positions": -1, "fault": 0},
                ),
            },
            "no-ring": {"B": 3, "C": 5, "N": 1},
        },
        mutates=("steps", "last_seen", "positions", "max_frames", "eos_frames", "ids", "frames"),
        branches_on_values=True,
    ),
)
