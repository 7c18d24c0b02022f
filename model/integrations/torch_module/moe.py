"""The mixtures of a port: routers that differ in what they return, experts that differ in what they take and hold."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from zonos2_triton.model.integrations.accelerate import difference
from zonos2_triton.model.integrations.torch_module.structure import (
    BOUNDS,
    COMPARED,
    Mismatched,
    Patch,
    TargetModel,
    Unsupported,
    accepted,
    flat,
    many,
    swiglu,
)
from zonos2_triton.model.ops import MAX_PREFILL_TOKENS
from zonos2_triton.reference.config import BALANCING_SIGN
from zonos2_triton.reference.moe_router import Routing
from zonos2_triton.reference.numeric import wide
from zonos2_triton.reference.ops import REFERENCE

ASKED = 256  # sample rows that a router is asked for
CASTS = ("weight_function", "bias_function", "_v")  # ComfyUI's, of a module whose weights it patches or moves at use


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
        raise Unsupported("no layer is a mixture of experts")
    return model.config.moe_layers


class _Router:
    """The weights of a router, read where they lie."""

    def __init__(self, model: TargetModel, i: int) -> None:
        self.path = path = f"layers.{i}.feed_forward.router"
        model.need(*(name for name in model.layout if name.startswith(f"{path}.")))
        self.module, _ = model.module(path, "x", "state")
        self.eps = model.eps(f"{path}.rmsnorm_eda")
        self.carries = f"{path}.router_states_scale" in model.layout  # all but the first take a state
        names = ("down_proj", "rmsnorm_eda", "router_mlp.0", "router_mlp.2", "router_mlp.4")
        self._parts = [model.part(f"{path}.{name}") for name in names]

    def __call__(self, op: Callable[..., Any], x: Tensor, state: Tensor | None, biases: Tensor, k: int) -> Routing:
        down, norm, first, second, third = self._parts
        scale = None if state is None else self.module.router_states_scale
        weights = down.weight, down.bias, norm.weight, first.weight, first.bias, second.weight, second.bias
        return Routing(*op(x, None, state, scale, *weights, third.weight, biases, k, self.eps))


class RouterConvention(NamedTuple):
    """How a router chooses, and what it returns."""

    sign: int  # of the balancing biases
    k: int
    form: list[tuple[str, torch.dtype]]  # fields of Routing
    made: Callable[..., Any]  # of those
    samples: list[Tensor | None]  # as it takes them, a few rows whose choice is clear


def _one_router(model: TargetModel, i: int) -> Patch:
    config, routing_cache, own = model.config, model.routing_cache[i], _Router(model, i)
    convention = _router_convention(model, own)

    def ours(x: Tensor, state: Tensor | None = None) -> Any:
        pieces = flat(x, config.dim).split(MAX_PREFILL_TOKENS)
        states: Sequence[Tensor | None] = [None] * len(pieces)
        if own.carries and state is not None:
            states = flat(state, config.moe_router_dim).to(x.dtype).split(MAX_PREFILL_TOKENS)
        biases = own.module.balancing_biases
        signed = (biases if convention.sign > 0 else -biases).to(x.dtype)
        routings = [
            own(model.ops.moe_router, *piece, signed, convention.k) for piece in zip(pieces, states, strict=True)
        ]
        whole = routings[0] if len(routings) == 1 else Routing(*map(torch.cat, zip(*routings, strict=True)))
        made = {kind: getattr(whole, kind).to(dtype).view(*x.shape[:-1], -1) for kind, dtype in convention.form}
        if len(routings) == 1:  # the slots of several pieces are counted from the begin of each
            routing_cache.keep(made["expert_ids"], whole.sorted_slot_ids, whole.expert_offsets)
        return convention.made(made.values())

    return model.patch(own.path, own.module, ours, *convention.samples)


def _router_convention(model: TargetModel, own: _Router) -> RouterConvention:
    """Found by asking it for many rows, beside the reference."""
    x = model.rows(ASKED, model.config.dim)
    state = model.rows(ASKED, model.config.moe_router_dim) if own.carries else None
    taken, result = accepted(own.path, own.module.forward, x, state)
    results = _parts(own.path, result)
    chosen = next(part for part in results if not part.is_floating_point())
    k = chosen.shape[-1]
    if chosen.numel() != ASKED * k:
        raise Mismatched(
            f"{own.path}.forward returns ids {list(chosen.shape)} for {ASKED} rows, accepted is [{ASKED}, k]"
        )

    def ask(biases: Tensor) -> Routing:
        return own(REFERENCE.moe_router, x, state, biases, k)

    sign, routing, clear = _signed(model, own, ask, chosen.view(ASKED, k))
    few = clear.nonzero().flatten()[:COMPARED]
    form = [_kind(own.path, part.flatten(0, -2)[few], routing, few) for part in results]
    if len({kind for kind, _ in form}) < len(form):
        raise Mismatched(f"{own.path}.forward returns {', '.join(kind for kind, _ in form)}: one of them twice")
    made = getattr(type(result), "_make", type(result))  # a named tuple is made otherwise
    return RouterConvention(sign, k, form, made, [None if part is None else part[..., few, :] for part in taken])


def _parts(path: str, result: object) -> Sequence[Tensor]:
    """The results of a router, ids among them."""
    if not isinstance(result, tuple | list) or not all(isinstance(part, Tensor) for part in result):
        raise Mismatched(f"{path}.forward returns {type(result).__name__}, accepted is a tuple of tensors")
    if all(part.is_floating_point() for part in result):
        raise Mismatched(f"{path}.forward returns no ids: {len(result)} tensors, none of them of integers")
    return result


def _signed(
    model: TargetModel, own: _Router, ask: Callable[[Tensor], Routing], chosen: Tensor
) -> tuple[int, Routing, Tensor]:
    """Whether biases are added (1) or subtracted (-1), what the reference then chooses of the sample rows, and which of
    those are clear: where no two scores that the choice is between are so close that rounding could patch them."""
    biases, signs, fits = model.tensors[f"{own.path}.balancing_biases"], _signs(model, own), []
    for sign in signs:
        signed = (sign * biases).to(model.like.dtype)
        routing = ask(signed)
        scores = (routing.probs + wide(signed)).sort(descending=True).values
        gaps = (scores[:, :-1] - scores[:, 1:])[:, : chosen.shape[1]]
        clear = (gaps > 2 * BOUNDS[model.like.dtype] * scores.abs().amax(1, keepdim=True)).all(1)
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


def _signs(model: TargetModel, own: _Router) -> tuple[int, ...]:
    """Of the balancing biases: the one that the port names, or what there is to be tried."""
    strategy = model.said(own.module, "moe_balancing_strategy", "balancing_strategy")
    if strategy is None:
        return (1, -1) if bool(model.tensors[f"{own.path}.balancing_biases"].any()) else (1,)
    known = str(strategy).strip().lower().replace("-", "_")
    if known not in BALANCING_SIGN:
        ways = ", ".join(BALANCING_SIGN)
        raise Mismatched(f"{own.path}: moe_balancing_strategy must be one of {ways}, got {strategy!r}")
    return (BALANCING_SIGN[known],)


def _kind(path: str, part: Tensor, routing: Routing, rows: Tensor) -> tuple[str, torch.dtype]:
    """What a result of a router is, as a field of Routing, and its type."""
    fields = {name: getattr(routing, name)[rows] for name in ("expert_ids", "expert_weights", "probs", "router_state")}
    errors = {
        name: difference(ours.to(part.dtype), part)
        for name, ours in fields.items()
        if ours.is_floating_point() == part.is_floating_point() and ours.shape == part.shape
    }
    if not errors:
        raise Mismatched(f"{path}.forward returns {list(part.shape)} of {part.dtype}, which is no part of a routing")
    return min(errors, key=errors.__getitem__), part.dtype


def _one_mixture(model: TargetModel, i: int, path: str) -> Patch:
    """All experts in one module, w13 with its rows in turns; forward takes weights and ids in an order of its own."""
    config, routing_cache = model.config, model.routing_cache[i]
    model.need(f"{path}.w13", f"{path}.w2")
    module, _ = model.module(path, "x", "weights", "ids")

    def mixed(op: Callable[..., Tensor], x: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
        rows, w13 = flat(x, config.dim), module.w13
        lists = *routing_cache.of(ids, config.moe_n_experts), flat(wide(weights), weights.shape[-1])
        y = op(rows, None, w13[:, 0::2], w13[:, 1::2], module.w2, 0.0, *lists, prefill=many(rows), residual=False)
        return y.view(x.shape)

    x, weights, ids = _routed_samples(model, i)
    expected, found, failures = mixed(REFERENCE.moe_experts, x, weights, ids), [], []
    for weights_first in (True, False):
        try:
            samples, y = accepted(path, module.forward, x, *_ordered(weights_first, weights, ids))
            found.append((difference(y.view(x.shape), expected), weights_first, samples))
        except Mismatched as failure:
            failures.append(failure)
    if not found:
        raise failures[0]
    _, weights_first, samples = min(found, key=lambda tried: tried[0])

    def ours(x: Tensor, second: Tensor, third: Tensor) -> Tensor:
        return mixed(model.ops.moe_experts, x, *_ordered(weights_first, second, third))

    return model.patch(path, module, ours, *samples)


def _ordered(kept: bool, second: Tensor, third: Tensor) -> tuple[Tensor, Tensor]:
    return (second, third) if kept else (third, second)


def _routed_samples(model: TargetModel, i: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, and weights and ids of as many experts as the router of the layer chooses."""
    config, path = model.config, f"layers.{i}.feed_forward.router"
    module, _ = model.module(path, "x", "state")
    state = model.rows(1, config.moe_router_dim) if i != config.moe_start_from_layer else None
    _, result = accepted(path, module.forward, model.rows(1, config.dim), state)
    k = next(part.shape[-1] for part in _parts(path, result) if not part.is_floating_point())
    weights = model.uniform(COMPARED, k) + 0.1
    ids = model.uniform(COMPARED, config.moe_n_experts).argsort(1)[:, :k]
    return model.rows(COMPARED, config.dim), weights.to(model.like.device), ids.to(model.like.device)


def _one_expert(model: TargetModel, path: str) -> Patch:
    """One module for each expert, its w2 under the name of a bias, as the ComfyUI node has them."""
    I, D = model.config.ffn_dim, model.config.dim
    for name, want in ((f"{path}.weight", [2 * I, D]), (f"{path}.bias", [D, I])):
        tensor = model.tensors.get(name)
        if tensor is None or list(tensor.shape) != want:
            raise Mismatched(f"{name} must have shape {want}, got {'none' if tensor is None else list(tensor.shape)}")
        model.readable(name, tensor)
    module, _ = model.module(path, "x")
    original = module.forward

    def ours(x: Tensor) -> Tensor:
        if module.weight.device != x.device or any(getattr(module, name, None) for name in CASTS):
            return original(x)
        gate, up = module.weight[0::2], module.weight[1::2]
        return swiglu(model, x, gate[None], up[None], module.bias[None])

    return model.patch(path, module, ours, model.rows(COMPARED, D))
