"""nn.Module ports of the backbone that keep the official tensor names.

What a module does is known by its name, shapes and the parameters of its forward, the rest is found by asking it: which
of a router's results are weights, ids and state, whether balancing biases are added, in which order experts take ids
and weights, what a cache is. Weights are read where they lie, at each call; a part that was replaced is an error.
"""

import inspect
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn

from zonos2_triton.model.backend import current
from zonos2_triton.model.integrations.accelerate import Candidate, Integration
from zonos2_triton.model.integrations.patching import Replacement, WeightGuard, check_module, check_weights
from zonos2_triton.model.integrations.torch_module.attention import attention
from zonos2_triton.model.integrations.torch_module.moe import experts, router
from zonos2_triton.model.integrations.torch_module.structure import (
    BOUNDS,
    LANDMARKS,
    NAME,
    OTHER_TYPES,
    Mismatched,
    Patch,
    TargetModel,
    Unsupported,
    config_of,
    weights_of,
)
from zonos2_triton.model.integrations.torch_module.token_ops import dense, embedding, head, norm
from zonos2_triton.model.ops import ops_of
from zonos2_triton.reference.numeric import exact_numerics

OPERATIONS: dict[str, tuple[str, Callable[[TargetModel], list[Patch]]]] = {
    "embedding": ("multi_embedder", embedding),
    "norm": ("layers.N.attention_norm, .ffn_norm, .feed_forward.router.rmsnorm_eda, out_norm", norm),
    "attention": ("layers.N.attention", attention),
    "dense": ("layers.N.feed_forward", dense),
    "router": ("layers.N.feed_forward.router", router),
    "experts": ("layers.N.feed_forward.experts", experts),
    "head": ("multi_output", head),
}


class TorchModule:
    """An nn.Module whose parameters are named as in the official checkpoint."""

    name = NAME
    package: str | None = None
    versions: tuple[str, str] | None = None

    @property
    def ops(self) -> tuple[str, ...]:
        return tuple(OPERATIONS)

    def recognises(self, obj: object) -> bool:
        return isinstance(obj, nn.Module) and {name for name, _ in weights_of(obj)} >= LANDMARKS

    def check(self, obj: Any) -> Tensor | None:
        check_module(self.name, obj)
        weight = check_weights(self.name, weights_of(obj), OTHER_TYPES)
        config_of(obj)
        return weight

    def candidates(self, obj: Any, backend: str, ops: Collection[str]) -> list[Candidate]:
        config = config_of(obj)
        _, weight = next(weights_of(obj))
        model = TargetModel(obj, config, ops_of(backend, config, weight.device, weight.dtype), weight.new_empty(0))
        with current(weight.device), exact_numerics():
            found = [_candidate(model, op) for op in ops]
        model.let_go()
        return found


INTEGRATIONS: tuple[Integration, ...] = (TorchModule(),)


def _candidate(model: TargetModel, op: str) -> Candidate:
    where, builder = OPERATIONS[op]
    try:
        patches = builder(model)
    except Unsupported as reason:
        return Candidate(op, where, unsupported=str(reason))
    except Mismatched as reason:
        return Candidate(op, where, mismatch=str(reason))

    def check() -> tuple[object, object]:
        new, old = zip(*(patch.check() for patch in patches), strict=True)
        return new, old

    names = {module: name for name, module in model.root.named_modules()}
    sites = [(patch.module, "forward", _replacement(model, patch, names[patch.module])) for patch in patches]
    return Candidate(op, where, sites, check, BOUNDS[model.like.dtype])


def _replacement(model: TargetModel, patch: Patch, path: str) -> Replacement:
    """Called by position and by the original's names, on the device of the weights. Autocast to another type than
    theirs is the original's: between its operations are results of both."""
    unchanged = WeightGuard(patch.module, path, weights=False)
    original, ours, device = patch.module.forward, patch.ours, model.like.device
    names = [*inspect.signature(original).parameters]

    def forward(*args: Any, **kwargs: Any) -> Any:
        unchanged.check()
        if kwargs:
            named = [name for name in names[len(args) :] if name in kwargs]
            args += tuple(kwargs.pop(name) for name in named)
        kind = device.type
        if torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) != model.like.dtype:
            return original(*args, **kwargs)
        with current(device), torch.autocast(kind, enabled=False):
            return ours(*args, **kwargs)

    return Replacement(forward, original, patch.module.parameters)
