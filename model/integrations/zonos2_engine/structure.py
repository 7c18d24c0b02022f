"""The expected structure of the official zonos2 engine's model, on one of its tensor-parallel ranks."""

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from zonos2_triton.model.integrations.patching import check_weights
from zonos2_triton.reference import network
from zonos2_triton.reference.config import BALANCING_SIGN, Zonos2Config

NAME = "zonos2 engine model"
SAME_NAMES = (  # in the engine's config and in Zonos2Config
    *("head_dim", "n_codebooks", "codebook_size", "eoa_id", "audio_pad_id", "text_vocab", "loss_softcap"),
    *("speaker_enabled", "speaker_embedding_dim", "speaker_lda_dim", "speaker_background_token_enabled"),
    *("accurate_mode_token_enabled", "speaking_rate_num_buckets", "moe_balancing_strategy"),
    *("moe_n_experts", "moe_router_dim", "moe_start_from_layer", "moe_end_from_layer"),
)
OTHER_DTYPES = (".attention.temp", ".router.balancing_biases")  # the official loader does not convert them


def component(model: Any, path: str) -> Any:
    """The object at a path such as "layers.3.attention.wq". ValueError: the path ends early; the message says where."""
    found, passed = model, list[str]()
    for step in path.split("."):
        try:
            found = found.op_list[int(step)] if step.isdecimal() else getattr(found, step)
        except (AttributeError, IndexError):
            at = ".".join(passed) or type(model).__name__
            raise ValueError(f"{NAME}: {at} has no {step!r}, which the official class has") from None
        passed.append(step)
    return found


def ranks_of(model: Any) -> int:
    """Number of tensor-parallel ranks."""
    return int(component(model, "layers.0.attention.wo._tp_size"))


def rank_config(model: Any) -> Zonos2Config:
    """The sizes on this rank: heads and feed-forward width are divided by the number of ranks.

    ValueError: sizes are not divisible, or they contradict.
    """
    ranks = ranks_of(model)

    def size(name: str, divided: bool = False) -> Any:
        value = component(model, f"config.{name}")
        if divided and value % ranks:
            raise ValueError(f"{NAME}: config.{name} must be a multiple of the {ranks} ranks, got {value}")
        return value // ranks if divided else value

    if size("moe_n_experts") > 1 and size("moe_intermediate_size") not in (0, size("intermediate_size")):
        raise ValueError(
            f"{NAME}: config.moe_intermediate_size must be intermediate_size={size('intermediate_size')}, "
            f"got {size('moe_intermediate_size')}"
        )
    width, special = size("intermediate_size", divided=True), size("special_topk_layers") or {}
    moe = range(size("moe_start_from_layer"), size("num_layers") - size("moe_end_from_layer"))
    buckets = size("quality_buckets") or {}
    features = tuple(size("quality_features") or buckets)
    try:
        return Zonos2Config(
            n_layers=size("num_layers"),
            dim=size("hidden_size"),
            n_heads=size("num_qo_heads", divided=True),
            n_kv_heads=size("num_kv_heads", divided=True),
            ffn_dim_multiplier=width / size("hidden_size"),
            multiple_of=width,
            norm_eps=size("rms_norm_eps"),
            rope_theta=size("rotary_config").base,
            max_seqlen=size("rotary_config").max_position,
            quality_features=features,
            quality_bucket_counts=tuple(len(buckets.get(feature, ())) for feature in features),
            moe_router_topk=size("num_experts_per_tok") or 1,
            special_topk_layers=tuple((layer, k) for layer, k in sorted(special.items()) if layer in moe),
            **{name: size(name) for name in SAME_NAMES},
        )
    except ValueError as error:
        raise ValueError(f"{NAME}: config: {error}") from error


def layout(config: Zonos2Config, ranks: int = 1) -> dict[str, list[int]]:
    """{name in the model's state_dict: shape} on one rank, with the config of `rank_config`.

    Gates come first in gate_up_proj. Each rank has a slice of every embedding table, and the whole head.
    """
    shapes = network.layout(config)
    for name, shape in list(shapes.items()):
        if name.startswith("multi_embedder."):
            shape[0] = -(-shape[0] // ranks)
        for old, new in ((".experts.w13", ".experts.gate_up_proj"), (".experts.w2", ".experts.down_proj")):
            if name.endswith(old):
                shapes[name.removesuffix(old) + new] = shapes.pop(name)
    return shapes


def check_structure(model: Any) -> Tensor:
    """One of its weights. ValueError: the structure is not the official one, or the weights are not usable."""
    config, ranks = rank_config(model), ranks_of(model)
    if (n := len(component(model, "layers.op_list"))) != config.n_layers:
        raise ValueError(f"{NAME}: layers must hold config.num_layers={config.n_layers}, got {n}")
    for path, found, expected in _settings(model, config):
        if found != expected:
            raise ValueError(f"{NAME}: {path} must be {expected!r}, got {found!r}")
    for path, hook_point, parameters in hook_points(config):
        _check_hook_point(path, component(model, path) if path else model, hook_point, parameters)
    tensors = component(model, "state_dict")()
    _check_layout(tensors, layout(config, ranks))
    first = check_weights(NAME, tensors.items(), OTHER_DTYPES)
    for i in config.moe_layers:
        for name in ("gate_up_proj", "down_proj"):
            at = f"layers.{i}.feed_forward.experts"
            if component(model, f"{at}._fused_moe.{name}") is not component(model, f"{at}.{name}"):
                raise ValueError(f"{NAME}: {at}._fused_moe.{name} must be the tensor of {at}.{name}, got another")
    return first


def hook_points(config: Zonos2Config) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Path, name and parameters of every method that may be replaced."""
    yield "", "compute_logits", ("hidden_states",)
    yield "multi_embedder", "forward", ("codes",)
    for norm in ("emb_norm", "out_norm"):
        yield norm, "forward", ("x", "residual")
    for i in range(config.n_layers):
        for norm in ("attention_norm", "ffn_norm"):
            yield f"layers.{i}.{norm}", "forward", ("x", "residual")
        yield f"layers.{i}.attention", "forward", ("x",)
        yield f"layers.{i}.attention.attn.rotary", "forward", ("positions", "query", "key", "is_neox")
        if i not in config.moe_layers:
            yield f"layers.{i}.feed_forward", "forward", ("x",)
            continue
        routed = ("hidden_states", "router_logits", "topk_weights", "topk_ids")
        yield f"layers.{i}.feed_forward", "forward", ("x", "router_states")
        yield f"layers.{i}.feed_forward.router", "forward", ("hidden_states", "router_states")
        yield f"layers.{i}.feed_forward.router.rmsnorm_eda", "forward", ("x",)
        yield f"layers.{i}.feed_forward.experts._fused_moe", "forward", routed


def _check_hook_point(path: str, owner: Any, hook_point: str, parameters: tuple[str, ...]) -> None:
    name = f"{path}.{hook_point}".lstrip(".")
    if hook_point in vars(owner):
        raise ValueError(f"{NAME}: {name} is not its class's: somebody else has replaced it")
    found = tuple(inspect.signature(component(owner, hook_point)).parameters)
    if found != parameters:
        raise ValueError(f"{NAME}: {name} must take ({', '.join(parameters)}), got ({', '.join(found)})")


def _settings(model: Any, config: Zonos2Config) -> Iterator[tuple[str, object, object]]:
    """Path, found value and expected value of the settings that the operations rely on."""

    def same(expected: object, *paths: str) -> Iterator[tuple[str, object, object]]:
        for path in paths:
            yield path, component(model, path), expected

    ranks, eps = ranks_of(model), config.norm_eps
    yield from same("silu", "config.hidden_act")
    yield from same(None, "config.rotary_config.scaling")
    yield from same(eps, "emb_norm.eps", "out_norm.eps")
    yield from same(False, "emb_norm.elementwise_affine")
    tables = config.n_codebooks + 1
    yield "the number of multi_embedder.embedders", len(component(model, "multi_embedder.embedders.op_list")), tables
    for i in range(tables):
        yield from same(ranks, f"multi_embedder.embedders.{i}.tp_size")
    cache_shape = [config.max_seqlen, config.head_dim]
    for i in range(config.n_layers):
        at, ff = f"layers.{i}.attention", f"layers.{i}.feed_forward"
        yield from same(eps, f"layers.{i}.attention_norm.eps", f"layers.{i}.ffn_norm.eps")
        yield from same(i, f"{at}.attn.layer_id")
        yield from same(None, f"{at}.attn.q_norm", f"{at}.attn.k_norm")
        yield from same(ranks, f"{at}.wo._tp_size")
        cos_sin_cache = component(model, f"{at}.attn.rotary._cos_sin_cache")
        yield f"the shape of {at}.attn.rotary._cos_sin_cache", list(cos_sin_cache.shape), cache_shape
        yield f"the dtype of {at}.attn.rotary._cos_sin_cache", cos_sin_cache.dtype, torch.float32
        if i not in config.moe_layers:
            yield from same(ranks, f"{ff}.w_out._tp_size")
            continue
        yield from same(config.experts_per_token(i), f"{ff}.router.top_k", f"{ff}.experts._fused_moe.top_k")
        yield from same(BALANCING_SIGN[config.moe_balancing_strategy] > 0, f"{ff}.router.use_legacy_balancing")
        yield from same(i != config.moe_start_from_layer, f"{ff}.router.use_eda")
        yield from same(eps, f"{ff}.router.rmsnorm_eda.eps")
        fused = f"{ff}.experts._fused_moe"
        yield from same(ranks, f"{fused}.tp_size")
        yield from same("silu", f"{fused}.activation")
        yield from same(False, *(f"{fused}.{name}" for name in NOT_SUPPORTED))


NOT_SUPPORTED = ("renormalize", "apply_router_weight_on_input", "no_combine")  # of FusedMoE; off in the official model


def _check_layout(tensors: dict[str, Tensor], expected: dict[str, list[int]]) -> None:
    if missing := sorted(expected.keys() - tensors.keys()):
        raise ValueError(f"{NAME}: {missing[0]} is missing, one of {len(missing)} tensors that the official class has")
    if surplus := sorted(tensors.keys() - expected.keys()):
        raise ValueError(f"{NAME}: {surplus[0]} is unexpected, one of {len(surplus)} tensors more than expected")
    for name, shape in expected.items():
        if list(tensors[name].shape) != shape:
            raise ValueError(f"{NAME}: {name} must have shape {shape}, got {list(tensors[name].shape)}")
        if not tensors[name].is_contiguous():
            raise ValueError(f"{NAME}: {name} must be contiguous, got strides {tensors[name].stride()}")
