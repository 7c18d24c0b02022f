"""Mixtures of experts: routers with different results, experts with different parameters and weights."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from zonos2_triton.model.integrations.accelerate import difference
from zonos2_triton.model.integrations.torch_module import structure
from zonos2_triton.model.integrations.torch_module.structure import COMPARED, Mismatched, Patch, TargetModel, flat
from zonos2_triton.model.ops import MAX_PREFILL_TOKENS
from zonos2_triton.reference.config import BALANCING_SIGN
from zonos2_triton.reference.moe_router import Routing
from zonos2_triton.reference.numeric import wide
from zonos2_triton.reference.ops import REFERENCE

PROBED = 256  # sample tokens in the probe of a router
COMFY_CASTS = ("weight_function", "bias_function", "_v")  # ComfyUI's marks of weights that it patches at use


def router(model: TargetModel) -> list[Patch]:
    return [_one_router(model, i) for i in _mixtures(model)]


def experts(model: TargetModel) -> list[Patch]:
    patches = []
    for i in _mixtures(model):
        path = f"layers.{i}.feed_forward.experts"
        if f"{path}.w13" in model.tensors:
            patches.append(_one_mixture(model, i, path))
        elif f"{path}.experts.0.weight" in model.tensors:
            patches += [_one_expert(model, f"{path}.experts.{e}") for e in range(model.config.moe_n_experts)]
        else:
            raise Mismatched(f"{path} holds neither w13 and w2 nor a weight and a bias of each of its experts")
    return patches


def _mixtures(model: TargetModel) -> range:
    if not model.config.moe_layers:
        raise structure.Unsupported("no layer is a mixture of experts")
    return model.config.moe_layers


class _Router:
    """The weights of a router, read in place."""

    def __init__(self, model: TargetModel, i: int) -> None:
        self.path = path = f"layers.{i}.feed_forward.router"
        model.check_shapes(*(name for name in model.layout if name.startswith(f"{path}.")))
        self.module, _ = model.module(path, "x", "state")
        self.eps = model.eps(f"{path}.rmsnorm_eda")
        self.carries = f"{path}.router_states_scale" in model.layout  # all but the first take a state
        names = ("down_proj", "rmsnorm_eda", "router_mlp.0", "router_mlp.2", "router_mlp.4")
        self._modules = [model.submodule(f"{path}.{name}") for name in names]

    def __call__(self, op: Callable[..., Any], x: Tensor, state: Tensor | None, biases: Tensor, k: int) -> Routing:
        down, norm, first, second, third = self._modules
        scale = None if state is None else self.module.router_states_scale
        weights = down.weight, down.bias, norm.weight, first.weight, first.bias, second.weight, second.bias
        return Routing(*op(x, None, state, scale, *weights, third.weight, biases, k, self.eps))


class RouterConvention(NamedTuple):
    """How a router selects experts, and what it returns."""

    sign: int  # of the balancing biases
    k: int
    fields: list[tuple[str, torch.dtype]]  # of Routing, in the order of the results
    make: Callable[..., Any]  # the container of the results
    samples: list[Tensor | None]  # accepted inputs: a few tokens with an unambiguous choice


def _one_router(model: TargetModel, i: int) -> Patch:
    config, routing_cache, own = model.config, model.routing_caches[i], _Router(model, i)
    convention = _router_convention(model, own)

    def forward(x: Tensor, state: Tensor | None = None) -> Any:
        chunks = flat(x, config.dim).split(MAX_PREFILL_TOKENS)
        states: Sequence[Tensor | None] = [None] * len(chunks)
        if own.carries and state is not None:
            states = flat(state, config.moe_router_dim).to(x.dtype).split(MAX_PREFILL_TOKENS)
        biases = own.module.balancing_biases
        signed = (biases if convention.sign > 0 else -biases).to(x.dtype)
        inputs = zip(chunks, states, strict=True)
        routings = [own(model.ops.moe_router, *chunk, signed, convention.k) for chunk in inputs]
        whole = routings[0] if len(routings) == 1 else Routing(*map(torch.cat, zip(*routings, strict=True)))
        results = {name: getattr(whole, name).to(dtype).view(*x.shape[:-1], -1) for name, dtype in convention.fields}
        if len(routings) == 1:  # the slots of a chunk count from its own start
            routing_cache.store(results["expert_ids"], whole.sorted_slot_ids, whole.expert_offsets)
        return convention.make(results.values())

    return model.patch(own.path, own.module, forward, *convention.samples)


def _router_convention(model: TargetModel, own: _Router) -> RouterConvention:
    """Find the convention by a comparison with the reference on many tokens."""
    x = model.normal(PROBED, model.config.dim)
    state = model.normal(PROBED, model.config.moe_router_dim) if own.carries else None
    accepted, result = structure.call_with(own.path, own.module.forward, x, state)
    results = _checked_results(own.path, result)
    chosen = next(tensor for tensor in results if not tensor.is_floating_point())
    k = chosen.shape[-1]
    if chosen.numel() != PROBED * k:
        wanted = f"for {PROBED} rows, accepted is [{PROBED}, k]"
        raise Mismatched(f"{own.path}.forward returns ids {list(chosen.shape)} {wanted}")

    def route(biases: Tensor) -> Routing:
        return own(REFERENCE.moe_router, x, state, biases, k)

    sign, routing, clear = _bias_sign(model, own, route, chosen.view(PROBED, k))
    few = clear.nonzero().flatten()[:COMPARED]
    fields = [_field(own.path, tensor.flatten(0, -2)[few], routing, few) for tensor in results]
    if len({name for name, _ in fields}) < len(fields):
        raise Mismatched(f"{own.path}.forward returns {', '.join(name for name, _ in fields)}: one of them twice")
    make = getattr(type(result), "_make", type(result))  # a named tuple has another constructor
    samples = [None if tensor is None else tensor[..., few, :] for tensor in accepted]
    return RouterConvention(sign, k, fields, make, samples)


def _checked_results(path: str, result: object) -> Sequence[Tensor]:
    """Check the results of a router; one of them must be ids."""
    if not isinstance(result, tuple | list) or not all(isinstance(each, Tensor) for each in result):
        raise Mismatched(f"{path}.forward returns {type(result).__name__}, accepted is a tuple of tensors")
    if all(tensor.is_floating_point() for tensor in result):
        raise Mismatched(f"{path}.forward returns no ids: {len(result)} tensors, none of them of integers")
    return result


def _bias_sign(
    model: TargetModel, own: _Router, route: Callable[[Tensor], Routing], chosen: Tensor
) -> tuple[int, Routing, Tensor]:
    """Find the sign of the biases: 1 if they are added, -1 if they are subtracted.

    Also returns the reference's routing of the samples, and which of them are clear: no two scores around the choice
    are so close that rounding could swap them.
    """
    biases, signs, fits = model.tensors[f"{own.path}.balancing_biases"], _possible_signs(model, own), []
    for sign in signs:
        signed = (sign * biases).to(model.like.dtype)
        routing = route(signed)
        scores = (routing.probs + wide(signed)).sort(descending=True).values
        gaps = (scores[:, :-1] - scores[:, 1:])[:, : chosen.shape[1]]
        clear = (gaps > 2 * structure.BOUNDS[model.like.dtype] * scores.abs().amax(1, keepdim=True)).all(1)
        if bool(clear.any()) and torch.equal(routing.expert_ids[clear].long(), chosen[clear].long()):
            fits.append((sign, routing, clear))
    if len(fits) == 1:
        return fits[0]
    if fits:
        raise Mismatched(
            f"{own.path}: on {len(chosen)} samples it makes no difference whether balancing_biases are added or "
            "subtracted: name moe_balancing_strategy in the model's config"
        )
    ways = " or ".join("added" if sign == 1 else "subtracted" for sign in signs)
    raise Mismatched(f"{own.path} chooses other experts than the official router with its balancing_biases {ways}")


def _possible_signs(model: TargetModel, own: _Router) -> tuple[int, ...]:
    """Signs of the balancing biases to try: the configured one, or both."""
    strategy = model.setting(own.module, "moe_balancing_strategy", "balancing_strategy")
    if strategy is None:
        return (1, -1) if bool(model.tensors[f"{own.path}.balancing_biases"].any()) else (1,)
    known = str(strategy).strip().lower().replace("-", "_")
    if known not in BALANCING_SIGN:
        ways = ", ".join(BALANCING_SIGN)
        raise Mismatched(f"{own.path}: moe_balancing_strategy must be one of {ways}, got {strategy!r}")
    return (BALANCING_SIGN[known],)


def _field(path: str, found: Tensor, routing: Routing, tokens: Tensor) -> tuple[str, torch.dtype]:
    """The field of Routing that a result of a router is, and its dtype."""
    names = "expert_ids", "expert_weights", "probs", "router_state"
    fields = {name: getattr(routing, name)[tokens] for name in names}
    errors = {
        name: difference(value.to(found.dtype), found)
        for name, value in fields.items()
        if value.is_floating_point() == found.is_floating_point() and value.shape == found.shape
    }
    if not errors:
        raise Mismatched(f"{path}.forward returns {list(found.shape)} of {found.dtype}, which is no part of a routing")
    return min(errors, key=errors.__getitem__), found.dtype


def _one_mixture(model: TargetModel, i: int, path: str) -> Patch:
    """All experts in one module, w13 with interleaved rows; forward takes weights and ids in either order."""
    config, routing_cache = model.config, model.routing_caches[i]
    model.check_shapes(f"{path}.w13", f"{path}.w2")
    module, _ = model.module(path, "x", "weights", "ids")

    def compute(op: Callable[..., tuple[Tensor, ...]], x: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
        tokens, w13 = flat(x, config.dim), module.w13
        routing = *routing_cache.lookup(ids, config.moe_n_experts), flat(wide(weights), weights.shape[-1])
        prefill = structure.is_prefill(tokens)
        y, *_ = op(tokens, None, w13[:, 0::2], w13[:, 1::2], module.w2, 0.0, *routing, prefill=prefill, residual=False)
        return y.view(x.shape)

    x, weights, ids = _routed_samples(model, i)
    expected, found, failures = compute(REFERENCE.moe_experts, x, weights, ids), [], []
    for weights_first in (True, False):
        try:
            samples, y = structure.call_with(path, module.forward, x, *_ordered(weights_first, weights, ids))
            found.append((difference(y.view(x.shape), expected), weights_first, samples))
        except Mismatched as failure:
            failures.append(failure)
    if not found:
        raise failures[0]
    _, weights_first, samples = min(found, key=lambda tried: tried[0])

    def forward(x: Tensor, second: Tensor, third: Tensor) -> Tensor:
        return compute(model.ops.moe_experts, x, *_ordered(weights_first, second, third))

    return model.patch(path, module, forward, *samples)


def _ordered(weights_first: bool, second: Tensor, third: Tensor) -> tuple[Tensor, Tensor]:
    return (second, third) if weights_first else (third, second)


def _routed_samples(model: TargetModel, i: int) -> tuple[Tensor, Tensor, Tensor]:
    """Samples: x, and weights and ids of as many experts as the layer's router selects."""
    config, path = model.config, f"layers.{i}.feed_forward.router"
    module, _ = model.module(path, "x", "state")
    state = model.normal(1, config.moe_router_dim) if i != config.moe_start_from_layer else None
    _, result = structure.call_with(path, module.forward, model.normal(1, config.dim), state)
    k = next(each.shape[-1] for each in _checked_results(path, result) if not each.is_floating_point())
    weights = model.uniform(COMPARED, k) + 0.1
    ids = model.uniform(COMPARED, config.moe_n_experts).argsort(1)[:, :k]
    return model.normal(COMPARED, config.dim), weights.to(model.like.device), ids.to(model.like.device)


def _one_expert(model: TargetModel, path: str) -> Patch:
    """One module for each expert, with w2 in the name of a bias, as in the ComfyUI node."""
    I, D = model.config.ffn_dim, model.config.dim
    for name, want in ((f"{path}.weight", [2 * I, D]), (f"{path}.bias", [D, I])):
        tensor = model.tensors.get(name)
        if tensor is None or list(tensor.shape) != want:
            raise Mismatched(f"{name} must have shape {want}, got {'none' if tensor is None else list(tensor.shape)}")
        model.check_alignment(name, tensor)
    module, _ = model.module(path, "x")
    original = module.forward

    def forward(x: Tensor) -> Tensor:
        if module.weight.device != x.device or any(getattr(module, name, None) for name in COMFY_CASTS):
            return original(x)
        gate, up = module.weight[0::2], module.weight[1::2]
        return model.one_expert(x, gate[None], up[None], module.bias[None])

    return model.patch(path, module, forward, model.normal(COMPARED, D))
