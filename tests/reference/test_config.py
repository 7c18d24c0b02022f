"""Zonos2Config: what it derives from params.json, and every params.json that it refuses."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from zonos2_triton.model import Backbone, Zonos2Config, build_prompt
from zonos2_triton.reference import network as reference
from zonos2_triton.reference.config import BALANCING_SIGN

LAYOUT = json.loads((Path(__file__).parents[1] / "golden" / "checkpoint_layout.json").read_text(encoding="utf-8"))
REAL = LAYOUT["params_json"]
UNUSED = {"model_type", "moe_impl", "quality_dropout"}
DEFAULTS = {"dtype": "bfloat16", "n_heads": None, "speaker_lda_dim": None, "special_topk_layers": ()}
REQUIRED = sorted(REAL.keys() - UNUSED - DEFAULTS.keys())


@pytest.fixture
def read(tmp_path):
    """The real params.json with some keys changed, and some left out, as from_json reads it."""

    def from_json(*without, **changed):
        params = {key: value for key, value in {**REAL, **changed}.items() if key not in without}
        path = tmp_path / "params.json"
        path.write_text(json.dumps(params), encoding="utf-8")
        return Zonos2Config.from_json(path)

    return from_json


def test_real_sizes(read):
    config, derived = read(), LAYOUT["derived"]
    assert config.heads == derived["n_heads"] == 16
    assert config.ffn_dim == derived["intermediate_size"] == 3072
    assert list(config.moe_layers) == derived["moe_layers"] == list(range(3, 27))
    assert {str(i): config.experts_per_token(i) for i in config.moe_layers} == derived["top_k_per_moe_layer"]
    assert config.experts_per_token(26) == 2
    assert list(config.quality_bucket_counts) == derived["quality_bucket_counts"]


@pytest.mark.parametrize(("multiplier", "width"), [(1.5, 96), (1.51, 96), (1.52, 128), (0.25, 32)])
def test_ffn_dim_cuts_the_product_before_it_rounds_up(read, multiplier, width):
    """To a multiple of 32: 64 * 1.51 = 96.64 is cut to 96, 64 * 1.52 = 97.28 to 97."""
    assert read(dim=64, head_dim=16, ffn_dim_multiplier=multiplier, multiple_of=32).ffn_dim == width


@pytest.mark.parametrize(("dim", "head_dim"), [(64, 32), pytest.param(64, 24, id="dim is no multiple of head_dim")])
def test_n_heads_may_widen_the_attention_beyond_dim(golden, dim, head_dim):
    params = golden.json("params_b") | {"dim": dim, "head_dim": head_dim, "n_heads": 4}
    config = Zonos2Config.from_params(params)
    shapes = Backbone.layout(config)
    assert config.heads == 4
    wide = {"wq.weight": [4 * head_dim, dim], "wo.weight": [dim, 4 * head_dim]}
    wide |= {"gater.weight": [4, dim], "temp": [1, 4, 1]}
    assert {name: shapes[f"layers.0.attention.{name}"] for name in wide} == wide
    weights = {name: torch.full(shape, 0.01) for name, shape in shapes.items()}
    ids = torch.zeros(2, 10, dtype=torch.int64)
    assert reference.trace(reference.bind(config, weights), ids)["logits"].shape == (2, 9, 1026)


NO_RATES = {"speaking_rate_num_buckets": 0, "speaking_rate_buckets": None}
NO_QUALITIES = {"quality_num_buckets": 0, "quality_features": [], "quality_buckets": None}
NO_MARKERS = {"speaker_background_token_enabled": False, "accurate_mode_token_enabled": False}
ALL_DENSE = {"moe_start_from_layer": 27, "special_topk_layers": None}
ONE_EXPERT = {"moe_n_experts": 1, "moe_router_topk": 3, "special_topk_layers": {}}
SIZES = {"kv_heads": 4, "max_experts_per_token": 2, "codebook_vocab": 1026, "moe_balancing_strategy": "legacy"}
LIMITS = {
    "real": ({}, SIZES | {"background_ids": 2, "accurate_ids": 1, "conditioning_base": 448}),
    "no n_kv_heads: as many as heads": ({"n_kv_heads": None}, {"kv_heads": 16}),
    "every expert chosen": ({"special_topk_layers": {"26": 16}}, {"max_experts_per_token": 16}),
    "dense layers fill the model": (ALL_DENSE, {"moe_layers": range(27, 27), "max_experts_per_token": 0}),
    "one expert makes a dense model": (ONE_EXPERT, {"moe_layers": range(0), "max_experts_per_token": 0}),
    "no markers": (NO_MARKERS, {"conditioning_base": 451, "background_ids": 0, "accurate_ids": 0}),
    "no rates and qualities": (NO_RATES | NO_QUALITIES, {"conditioning_base": 516, "quality_bucket_counts": ()}),
}


@pytest.mark.parametrize(("changed", "expected"), LIMITS.values(), ids=LIMITS)
def test_limits_that_are_allowed(read, changed, expected):
    config = read(**changed)
    assert {name: getattr(config, name) for name in expected} == expected


@pytest.mark.parametrize("key", sorted(UNUSED | DEFAULTS.keys()))
def test_optional_key_may_be_missing(read, key):
    default = {key: DEFAULTS[key]} if key in DEFAULTS else {}
    assert read(key) == dataclasses.replace(read(), **default)


@pytest.mark.parametrize("keys", [*([key] for key in REQUIRED), ["dim", "moe_n_experts", "quality_buckets"]], ids=str)
def test_missing_keys_are_all_named(read, keys):
    with pytest.raises(ValueError, match=rf"params\.json: missing keys: {', '.join(keys)}$"):
        read(*reversed(keys))


@pytest.mark.parametrize("key", sorted(REAL.keys() - UNUSED))
def test_mistyped_key_is_named(read, key):
    with pytest.raises(ValueError, match=key):
        read(**{key: ["x"]})


MISTYPED = [
    ("n_layers", 28.0), ("dim", "2048"), ("n_codebooks", True), ("head_dim", None), ("n_heads", 0), ("n_kv_heads", -4),
    ("multiple_of", 0), ("moe_start_from_layer", -1), ("norm_eps", "1e-5"), ("norm_eps", True), ("norm_eps", 0),
    ("rope_theta", -1.0), ("norm_eps", float("nan")), ("loss_softcap", float("inf")),
    ("ffn_dim_multiplier", float("-inf")), ("speaker_enabled", 1), ("accurate_mode_token_enabled", "true"),
    ("moe_balancing_strategy", None), ("dtype", 16), ("special_topk_layers", {"x": 2}), ("special_topk_layers", [26]),
    ("quality_features", 5), ("quality_features", [1, "lufs"]), ("quality_buckets", 5), ("speaking_rate_buckets", 5),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), MISTYPED)
def test_mistyped_value_is_named(read, key, value):
    with pytest.raises(ValueError, match=key) as raised:
        read(**{key: value})
    assert repr(value) in str(raised.value)


CONTRADICTIONS = {
    "dim not of whole heads": ({"dim": 2050}, ["dim 2050", "head_dim 128", "n_heads"]),
    "heads that fit no dimension": ({"dim": 8, "n_kv_heads": None}, ["dim 8 is below head_dim 128"]),
    "heads not of whole groups": ({"n_kv_heads": 3}, ["n_heads 16", "n_kv_heads 3"]),
    "n_heads not of whole groups": ({"n_heads": 10}, ["n_heads 10", "n_kv_heads 4"]),
    "odd head_dim": ({"n_heads": 16, "head_dim": 127}, ["head_dim", "127"]),
    "end is padding": ({"eoa_id": 1025}, ["eoa_id", "codebook_size 1024", "1025"]),
    "padding is end": ({"audio_pad_id": 1024}, ["audio_pad_id", "1025", "1024"]),
    "vocabulary one too small": ({"text_vocab": 518}, ["text_vocab 518", "447", "448"]),
    "dense layers overlap": ({"moe_start_from_layer": 20, "moe_end_from_layer": 9}, ["moe_start_from_layer 20"]),
    "topk": ({"moe_router_topk": 17}, ["moe_router_topk 17", "1..moe_n_experts = 16"]),
    "topk of a layer": ({"special_topk_layers": {"26": 17}}, ["special_topk_layers {26: 17}", "= 16"]),
    "before the experts": ({"special_topk_layers": {"2": 2}}, ["special_topk_layers {2: 2}", "26"]),
    "a layer twice": ({"special_topk_layers": {"04": 1, "4": 2}}, ["names a layer twice"]),
    "strategy": ({"moe_balancing_strategy": "sum"}, ["moe_balancing_strategy", "'sum'", *BALANCING_SIGN]),
    "dtype": ({"dtype": "int8"}, ["dtype", "'int8'", "bfloat16", "float64"]),
    "count of rates": ({"speaking_rate_num_buckets": 7}, ["speaking_rate_num_buckets is 7", "lists 8"]),
    "count of qualities": ({"quality_num_buckets": 59}, ["quality_num_buckets is 59", "quality_buckets lists 60"]),
    "buckets as a number": ({"quality_buckets": dict.fromkeys(REAL["quality_features"], 10)}, ["quality_buckets"]),
    "another kind of model": ({"model_type": "llama"}, ["model_type must be 'zonos2', got 'llama'"]),
}  # fmt: skip


@pytest.mark.parametrize(("changed", "named"), CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_contradiction_is_named(read, changed, named):
    with pytest.raises(ValueError, match=r"params\.json: ") as raised:
        read(**changed)
    assert [word for word in named if word not in str(raised.value)] == []


def test_unknown_keys_warn_once_and_are_ignored(read):
    with pytest.warns(UserWarning, match="unknown keys") as warned:
        config = read(zeta=1, alpha={"deep": True})
    assert [str(w.message) for w in warned] == ["params.json: unknown keys are ignored: alpha, zeta"]
    assert config == read()


CORRUPT = {
    b"": "is not valid JSON: ",
    b"\xff\xfe{}": "is not valid JSON: ",
    b"[" * 100_000: "is not valid JSON: ",
    b"null": "must hold one JSON object, got NoneType",
    b'{"dim": 1, "dim": 2}': "is not valid JSON: keys stand twice: dim",
}


@pytest.mark.parametrize(("content", "message"), CORRUPT.items(), ids=["empty", "not UTF-8", "deep", "null", "double"])
def test_corrupt_json(tmp_path, content, message):
    (tmp_path / "params.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"params\.json {message}"):
        Zonos2Config.from_json(tmp_path / "params.json")


@pytest.mark.parametrize("strategy", BALANCING_SIGN)
def test_balancing_sign_reaches_the_router(golden, strategy):
    ours = golden.backbone()
    biases = {name: t for name, t in ours.weights.items() if name.endswith("balancing_biases")}
    signed = {name: BALANCING_SIGN[strategy] * t for name, t in biases.items()}
    config = dataclasses.replace(ours.config, moe_balancing_strategy=strategy)
    ids = torch.arange(80).reshape(8, 10) * 5
    legacy = Backbone(ours.config, ours.weights).trace(ids)["expert_ids"]
    assert torch.equal(Backbone(config, ours.weights | signed).trace(ids)["expert_ids"], legacy)
    same = torch.equal(Backbone(config, ours.weights).trace(ids)["expert_ids"], legacy)
    assert same == (BALANCING_SIGN[strategy] == 1)


def test_what_restates_other_keys_may_be_null():
    derived = {"speaking_rate_buckets": None, "quality_num_buckets": None, "quality_features": None}
    config = Zonos2Config.from_params(REAL | derived)
    assert config.quality_bucket_counts == (12, 12, 12, 8, 8, 8)
    assert config.speaking_rate_buckets == ()
    stated = {"speaking_rate_buckets": tuple(REAL["speaking_rate_buckets"])}
    assert dataclasses.replace(config, **stated) == Zonos2Config.from_params({"model": REAL})


def test_the_accuracy_marker_needs_the_background_markers():
    """As the official loader counts: without them it has no id, and the ids before it move up."""
    config = Zonos2Config.from_params(REAL | {"speaker_background_token_enabled": False})
    assert config.conditioning_base == 519 - 8 - 60
    ids = build_prompt(config, "", speaker=True, accurate=True, speaking_rate=0)
    assert ids[:3, 9].tolist() == [519, 451, 2]
