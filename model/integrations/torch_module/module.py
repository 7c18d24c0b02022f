"""nn.Module implementations of the backbone that keep the official tensor names.

The name of a module, its shapes and the parameters of its forward tell most of what it does. A call with sample inputs
tells the rest: the order of a router's results, the sign of the balancing biases, the order in which experts take ids
and weights, and the kind of cache. Each call reads the weights where they lie. A submodule that was replaced is an
error.
"""

import inspect
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn

from zonos2_triton.model.backend import current
from zonos2_triton.model.integrations.accelerate import Candidate, Integration
from zonos2_triton.model.integrations.patching import Replacement, WeightGuard, check_module, check_weights
from zonos2_triton.model.integrations.torch_module import structure
from zonos2_triton.model.integrations.torch_module.attention import attention
from zonos2_triton.model.integrations.torch_module.moe import experts, router
from zonos2_triton.model.integrations.torch_module.structure import Mismatched, Patch, TargetModel, Unsupported
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


class TorchModule(Integration):
    """An nn.Module whose parameters are named as in the official checkpoint."""

    name, package, versions = structure.NAME, None, None
    ops = tuple(OPERATIONS)

    def recognises(self, obj: object) -> bool:
        return isinstance(obj, nn.Module) and {name for name, _ in structure.weights_of(obj)} >= structure.LANDMARKS

    def check(self, obj: Any) -> Tensor | None:
        check_module(self.name, obj)
        weight = check_weights(self.name, structure.weights_of(obj), structure.OTHER_DTYPES)
        structure.config_of(obj)
        return weight

    def candidates(self, obj: Any, backend: str, ops: Collection[str]) -> list[Candidate]:
        config = structure.config_of(obj)
        _, weight = next(structure.weights_of(obj))
        model = TargetModel(
            obj, config, ops_of(backend, config, weight.device, weight.dtype, True), weight.new_empty(0)
        )
        with current(weight.device), exact_numerics():
            found = [_candidate(model, op) for op in ops]
        model.release_weights()
        return found


INTEGRATIONS: tuple[Integration, ...] = (TorchModule(),)


def _candidate(model: TargetModel, op: str) -> Candidate:
    where, build = OPERATIONS[op]
    try:
        patches = build(model)
    except Unsupported as reason:
        return Candidate(op, where, unsupported=str(reason))
    except Mismatched as reason:
        return Candidate(op, where, mismatch=str(reason))

    def check() -> tuple[object, object]:
        new, old = zip(*(patch.check() for patch in patches), strict=True)
        return new, old

    names = {module: name for name, module in model.root.named_modules()}
    sites = [(patch.module, "forward", _replacement(model, patch, names[patch.module])) for patch in patches]
    return Candidate(op, where, sites, check, structure.BOUNDS[model.like.dtype])


def _replacement(model: TargetModel, patch: Patch, path: str) -> Replacement:
    """Call the patch with positional or named arguments, on the device of the weights.

    Under autocast to another dtype than the weights', the original runs: its intermediate results have both dtypes.
    """
    guard = WeightGuard(patch.module, path, weights=False)
    original, forward, device = patch.module.forward, patch.forward, model.like.device
    names = [*inspect.signature(original).parameters]

    def call(*args: Any, **kwargs: Any) -> Any:
        guard.check()
        if kwargs:
            named = [name for name in names[len(args) :] if name in kwargs]
            args += tuple(kwargs.pop(name) for name in named)
        kind = device.type
        if torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) != model.like.dtype:
            return original(*args, **kwargs)
        with current(device), torch.autocast(kind, enabled=False):
            return forward(*args, **kwargs)

    return Replacement(call, original, patch.module.parameters)
