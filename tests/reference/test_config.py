"""Zonos2Config: what it derives from params.json, and every params.json that it refuses."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from zonos2_triton.model import Backbone, Zonos2Config, build_prompt
from zonos2_triton.reference import network as reference
from zonos2_triton.reference.config import BALANCING_SIGN

LAYOUT = json.loads((Path(__file__).parents[1] / "golden" / "checkpoint_layout.json").read_text(encoding="utf-8"))
REAL: dict[str, Any] = LAYOUT["params_json"]
UNUSED = {"model_type", "moe_impl", "quality_dropout"}
DEFAULTS = {"dtype": "bfloat16", "n_heads": None, "speaker_lda_dim": None, "special_topk_layers": ()}
REQUIRED = sorted(REAL.keys() - UNUSED - DEFAULTS.keys())


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., Zonos2Config]:
    """The real params.json with some keys changed, and some left out, as from_json reads it."""

    def from_json(*without: str, **changed: Any) -> Zonos2Config:
        params = {key: value for key, value in {**REAL, **changed}.items() if key not in without}
        path = tmp_path / "params.json"
        path.write_text(json.dumps(params), encoding="utf-8")
        return Zonos2Config.from_json(path)

    return from_json


def test_real_sizes(read):
    config, derived = read(), LAYOUT["derived"]
    assert config.heads == derived["n_heads"] == 16
    assert config.kv_heads == 4
    assert config.ffn_dim == derived["intermediate_size"] == 3072
    assert list(config.moe_layers) == derived["moe_layers"] == list(range(3, 27))
    assert {str(i): config.experts_per_token(i) for i in config.moe_layers} == derived["top_k_per_moe_layer"]
    assert config.experts_per_token(26) == 2
    assert config.max_experts_per_token == 2
    assert list(config.quality_bucket_counts) == derived["quality_bucket_counts"]
    assert config.codebook_vocab == 1026
    assert (config.background_ids, config.accurate_ids) == (2, 1)
    assert config.conditioning_base == 448
    assert config.moe_balancing_strategy == "legacy"


def test_golden_sizes(golden):
    config = Zonos2Config.from_json(golden.folder / "params_b.json")
    assert (config.heads, config.kv_heads, config.ffn_dim) == (2, 2, 96)
    assert list(config.moe_layers) == [1, 2, 3]
    assert [config.experts_per_token(i) for i in config.moe_layers] == [2, 1, 1]
    assert config.conditioning_base == 448
    assert config.speaker_lda_dim is None
    assert config.dtype == "float32"


@pytest.mark.parametrize(
    ("dim", "multiplier", "multiple", "width"),
    [
        pytest.param(64, 1.5, 32, 96, id="exact multiple"),
        pytest.param(64, 1.51, 32, 96, id="96.64 is cut to 96 before it is rounded up"),
        pytest.param(64, 1.52, 32, 128, id="97.28 passes 96 also when cut"),
        pytest.param(64, 0.25, 32, 32, id="below one multiple"),
    ],
)
def test_ffn_dim_cuts_the_product_before_it_rounds_up(read, dim, multiplier, multiple, width):
    config = read(dim=dim, head_dim=16, ffn_dim_multiplier=multiplier, multiple_of=multiple)
    assert config.ffn_dim == width


@pytest.mark.parametrize(("dim", "head_dim"), [(64, 32), pytest.param(64, 24, id="dim is no multiple of head_dim")])
def test_n_heads_may_widen_the_attention_beyond_dim(golden, dim, head_dim):
    params = golden.json("params_b") | {"dim": dim, "head_dim": head_dim, "n_heads": 4}
    config = Zonos2Config.from_params(params)
    shapes = Backbone.layout(config)
    assert config.heads == 4
    assert shapes["layers.0.attention.wq.weight"] == [4 * head_dim, dim]
    assert shapes["layers.0.attention.wo.weight"] == [dim, 4 * head_dim]
    assert shapes["layers.0.attention.gater.weight"] == [4, dim]
    assert shapes["layers.0.attention.temp"] == [1, 4, 1]
    weights = {name: torch.full(shape, 0.01) for name, shape in shapes.items()}
    ids = torch.zeros(2, 10, dtype=torch.int64)
    assert reference.trace(reference.bind(config, weights), ids)["logits"].shape == (2, 9, 1026)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        pytest.param({"n_kv_heads": None}, {"kv_heads": 16}, id="no n_kv_heads: as many as heads"),
        pytest.param({"special_topk_layers": {"26": 16}}, {"max_experts_per_token": 16}, id="every expert chosen"),
        pytest.param(
            {"moe_start_from_layer": 27, "special_topk_layers": None},
            {"moe_layers": range(27, 27), "max_experts_per_token": 0},
            id="dense layers fill the model",
        ),
        pytest.param(
            {"moe_n_experts": 1, "moe_router_topk": 3, "special_topk_layers": {}},
            {"moe_layers": range(0), "max_experts_per_token": 0},
            id="one expert makes a dense model",
        ),
        pytest.param(
            {"speaker_background_token_enabled": False, "accurate_mode_token_enabled": False},
            {"conditioning_base": 451, "background_ids": 0, "accurate_ids": 0},
            id="no markers",
        ),
        pytest.param(
            {"speaking_rate_num_buckets": 0, "speaking_rate_buckets": None, "quality_num_buckets": 0,
             "quality_features": [], "quality_buckets": None},
            {"conditioning_base": 516, "quality_bucket_counts": ()},
            id="no rates and no qualities",
        ),
    ],
)  # fmt: skip
def test_limits_that_are_allowed(read, changed, expected):
    config = read(**changed)
    assert {name: getattr(config, name) for name in expected} == expected


@pytest.mark.parametrize("key", sorted(UNUSED | DEFAULTS.keys()))
def test_optional_key_may_be_missing(read, key):
    default = {key: DEFAULTS[key]} if key in DEFAULTS else {}
    assert read(key) == dataclasses.replace(read(), **default)


@pytest.mark.parametrize("key", REQUIRED)
def test_missing_key_is_named(read, key):
    with pytest.raises(ValueError, match=rf"params\.json: missing keys: {key}$"):
        read(key)


def test_missing_keys_are_all_named(read):
    with pytest.raises(ValueError, match=r"missing keys: dim, moe_n_experts, quality_buckets$"):
        read("quality_buckets", "dim", "moe_n_experts")


@pytest.mark.parametrize("key", sorted(REAL.keys() - UNUSED))
def test_mistyped_key_is_named(read, key):
    with pytest.raises(ValueError, match=key):
        read(**{key: ["x"]})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        pytest.param("n_layers", 28.0, id="float for an integer"),
        pytest.param("dim", "2048", id="text for an integer"),
        pytest.param("n_codebooks", True, id="bool for an integer"),
        pytest.param("head_dim", None, id="null for an integer"),
        pytest.param("n_heads", 0, id="zero heads"),
        pytest.param("n_kv_heads", -4, id="negative"),
        pytest.param("multiple_of", 0, id="zero divisor"),
        pytest.param("moe_start_from_layer", -1, id="below zero where zero is allowed"),
        pytest.param("norm_eps", "1e-5", id="text for a number"),
        pytest.param("norm_eps", True, id="bool for a number"),
        pytest.param("norm_eps", 0, id="eps of zero"),
        pytest.param("rope_theta", -1.0, id="negative number"),
        pytest.param("norm_eps", float("nan"), id="NaN"),
        pytest.param("loss_softcap", float("inf"), id="Infinity"),
        pytest.param("ffn_dim_multiplier", float("-inf"), id="-Infinity"),
        pytest.param("speaker_enabled", 1, id="integer for a bool"),
        pytest.param("accurate_mode_token_enabled", "true", id="text for a bool"),
        pytest.param("moe_balancing_strategy", None, id="null for text"),
        pytest.param("dtype", 16, id="integer for text"),
        pytest.param("special_topk_layers", {"x": 2}, id="layer that is no number"),
        pytest.param("special_topk_layers", [26], id="list of layers"),
        pytest.param("quality_features", 5, id="number for the features"),
        pytest.param("quality_features", [1, "lufs"], id="features of two types"),
        pytest.param("quality_buckets", 5, id="number for the buckets"),
        pytest.param("speaking_rate_buckets", 5, id="number for the rates"),
    ],
)
def test_mistyped_value_is_named(read, key, value):
    with pytest.raises(ValueError, match=key) as raised:
        read(**{key: value})
    assert repr(value) in str(raised.value)


def test_count_of_experts_that_is_no_integer_is_named(read):
    with pytest.raises(ValueError, match=r"special_topk_layers must be .* got \(\(26, '2'\),\)"):
        read(special_topk_layers={"26": "2"})


def test_quality_whose_buckets_are_a_number_is_named(read):
    with pytest.raises(ValueError, match="quality_buckets"):
        read(quality_buckets=dict.fromkeys(REAL["quality_features"], 10))


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        pytest.param({"dim": 2050}, ["dim 2050", "head_dim 128", "n_heads"], id="dim not of whole heads"),
        pytest.param({"n_kv_heads": 3}, ["n_heads 16", "n_kv_heads 3"], id="heads not of whole groups"),
        pytest.param({"n_heads": 10}, ["n_heads 10", "n_kv_heads 4"], id="n_heads not of whole groups"),
        pytest.param({"n_heads": 16, "head_dim": 127}, ["head_dim", "127"], id="odd head_dim"),
        pytest.param({"eoa_id": 1025}, ["eoa_id", "codebook_size 1024", "1025"], id="end is padding"),
        pytest.param({"codebook_size": 1000}, ["eoa_id", "codebook_size 1000", "1024"], id="codebook_size"),
        pytest.param({"audio_pad_id": 1024}, ["audio_pad_id", "1025", "1024"], id="padding is end"),
        pytest.param({"text_vocab": 518}, ["text_vocab 518", "447", "448"], id="vocabulary one too small"),
        pytest.param(
            {"moe_start_from_layer": 20, "moe_end_from_layer": 9},
            ["moe_start_from_layer 20", "moe_end_from_layer 9", "n_layers 28"],
            id="dense layers overlap",
        ),
        pytest.param({"moe_router_topk": 17}, ["moe_router_topk 17", "1..moe_n_experts = 16"], id="topk"),
        pytest.param(
            {"special_topk_layers": {"26": 17}}, ["special_topk_layers {26: 17}", "= 16"], id="topk of a layer"
        ),
        pytest.param({"special_topk_layers": {"2": 2}}, ["special_topk_layers {2: 2}", "26"], id="before the experts"),
        pytest.param({"special_topk_layers": {"27": 2}}, ["special_topk_layers {27: 2}", "26"], id="after the experts"),
        pytest.param(
            {"moe_balancing_strategy": "sum"}, ["moe_balancing_strategy", "'sum'", *BALANCING_SIGN], id="strategy"
        ),
        pytest.param({"dtype": "int8"}, ["dtype", "'int8'", "bfloat16", "float64"], id="dtype"),
        pytest.param(
            {"speaking_rate_num_buckets": 7}, ["speaking_rate_num_buckets", "7", "speaking_rate_buckets", "8"],
            id="count of rates",
        ),
        pytest.param(
            {"quality_num_buckets": 59}, ["quality_num_buckets", "59", "quality_buckets", "60"], id="count of qualities"
        ),
        pytest.param(
            {"quality_features": ["lufs"]}, ["quality_features ['lufs']", "quality_buckets", "max_pause"],
            id="qualities without features",
        ),
    ],
)  # fmt: skip
def test_contradiction_is_named(read, changed, named):
    with pytest.raises(ValueError, match=r"params\.json: ") as raised:
        read(**changed)
    assert [word for word in named if word not in str(raised.value)] == []


def test_unknown_keys_warn_once_and_are_ignored(read):
    with pytest.warns(UserWarning, match="unknown keys") as warned:
        config = read(zeta=1, alpha={"deep": True})
    assert [str(w.message) for w in warned] == ["params.json: unknown keys are ignored: alpha, zeta"]
    assert config == read()


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(json.dumps(REAL).encode()[:-1], id="cut"),
        pytest.param(b"\xff\xfe{}", id="not UTF-8"),
    ],
)
def test_corrupt_json(tmp_path, content):
    path = tmp_path / "params.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"params\.json is not valid JSON: "):
        Zonos2Config.from_json(path)


@pytest.mark.parametrize(("content", "got"), [("[]", "list"), ("null", "NoneType"), ('"dim"', "str")])
def test_json_that_is_no_object(tmp_path, content, got):
    path = tmp_path / "params.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"params\.json must hold one JSON object, got {got}"):
        Zonos2Config.from_json(path)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"params\.json"):
        Zonos2Config.from_json(tmp_path / "params.json")


def test_balancing_signs():
    adding, subtracting = ("legacy", "old", "aux", "aux_loss"), ("quantile", "current", "qbalancing")
    assert dict.fromkeys(adding, 1) | dict.fromkeys(subtracting, -1) == BALANCING_SIGN


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
    assert config == Zonos2Config.from_params({"model": REAL})


def test_the_accuracy_marker_needs_the_background_markers():
    """As the official loader counts: without them it has no id, and the ids before it move up."""
    config = Zonos2Config.from_params(REAL | {"speaker_background_token_enabled": False})
    assert config.conditioning_base == 519 - 8 - 60
    ids = build_prompt(config, "", speaker=True, accurate=True, speaking_rate=0)
    assert ids[:3, 9].tolist() == [519, 451, 2]


def test_another_kind_of_model():
    with pytest.raises(ValueError, match="model_type must be 'zonos2', got 'llama'"):
        Zonos2Config.from_params(REAL | {"model_type": "llama"})


def test_heads_that_fit_no_dimension():
    with pytest.raises(ValueError, match="dim 8 is below head_dim 128"):
        Zonos2Config.from_params(REAL | {"dim": 8, "n_kv_heads": None})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"dim": 1, "dim": 2}', "keys stand twice: dim"),
        ("[" * 100_000, "is not valid JSON"),
        (json.dumps(REAL | {"special_topk_layers": {"04": 1, "4": 2}}), "names a layer twice"),
        (json.dumps(REAL | {"quality_num_buckets": 0}), "quality_num_buckets is 0, but quality_buckets lists 60"),
    ],
    ids=["double", "deep", "layer", "count"],
)
def test_what_contradicts_itself(tmp_path, text, message):
    (tmp_path / "params.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        Zonos2Config.from_json(tmp_path / "params.json")
