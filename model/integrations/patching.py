"""Attributes of other people's objects: replaced, and put back as they were."""

from collections.abc import Callable, Iterable, MutableMapping
from functools import update_wrapper
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

MISSING = object()
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class Swaps:
    """What was replaced, in order."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []

    def attribute(self, owner: Any, name: str, value: object) -> None:
        """owner.name = value; owner is an instance, a class or a module."""
        before = vars(owner).get(name, MISSING)
        setattr(owner, name, value)
        self._undo.append(lambda: delattr(owner, name) if before is MISSING else setattr(owner, name, before))

    def undo(self) -> None:
        """Everything as it was, the last first. Nothing happens the second time."""
        while self._undo:
            self._undo.pop()()


class Replacement:
    """What is called in place of an operation of one host; looks like the original to whoever asks for its signature.

    It belongs to the object that it was made for: a copy would compute with the weights of the original, so copying and
    pickling are errors.
    """

    def __init__(self, function: Callable[..., Any], original: Callable[..., Any]) -> None:
        update_wrapper(self, original)
        self._function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._function(*args, **kwargs)

    def __deepcopy__(self, memo: object) -> NoReturn:
        raise TypeError("an accelerated object cannot be copied or saved whole: call report.restore() before it")

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        self.__deepcopy__(None)


class Unchanged:
    """The tensors that packed weights were made of; what computes with those asks first whether they still are."""

    def __init__(self, places: Iterable[tuple[str, MutableMapping[str, Any], str]]) -> None:
        """places: of each tensor its name, and the mapping and key where its owner looks it up."""
        self._places = [(name, owner, key, owner[key], _stamp(owner[key])) for name, owner, key in places]

    @classmethod
    def of(cls, module: nn.Module, prefix: str = "") -> "Unchanged":
        """Every parameter and buffer of a module."""
        places: list[tuple[str, MutableMapping[str, Any], str]] = []
        for path, part in module.named_modules(prefix=prefix):
            for owner in (part._parameters, part._buffers):
                places += [(f"{path}.{key}".lstrip("."), owner, key) for key, t in owner.items() if t is not None]
        return cls(places)

    def check(self) -> None:
        """RuntimeError: a tensor was replaced, moved, converted, written to, or takes part in training."""
        for name, owner, key, tensor, stamp in self._places:
            found = owner.get(key)
            if found is not tensor or _stamp(tensor) != stamp:
                raise RuntimeError(
                    f"{name} was changed after accelerate(), which keeps a packed copy of it; call report.restore(), "
                    "then accelerate() again"
                )


def _stamp(tensor: Any) -> tuple[object, ...]:
    """What a write, a move, a conversion or training changes; quick, for it is asked at every call."""
    return 0 if tensor.is_inference() else tensor._version, tensor.data_ptr(), tensor.requires_grad


def check_weights(host: str, tensors: Iterable[tuple[str, Tensor]], also: tuple[str, ...] = ()) -> Tensor:
    """The first of the tensors, which are all alike.

    also: ends of names whose dtype may be another. ValueError: gradients are required, or devices or dtypes differ, or
    weights that are not there yet; it names the tensors.
    """
    first: tuple[str, Tensor] | None = None
    for name, tensor in tensors:
        if tensor.requires_grad:
            raise ValueError(
                f"{host}: {name} requires gradients, which kernels do not make: call .requires_grad_(False)"
            )
        if tensor.device.type == "meta":
            raise ValueError(f"{host}: {name} is on the meta device: load the weights first")
        if first is None:
            first = name, tensor
            if tensor.dtype not in FLOATS:
                raise ValueError(f"{host}: {name} must be of a floating type up to 64 bits, got {tensor.dtype}")
        if tensor.device != first[1].device:
            raise ValueError(
                f"{host}: weights are on mixed devices, {first[0]} on {first[1].device} and {name} on {tensor.device}"
            )
        if tensor.is_floating_point() and tensor.dtype != first[1].dtype and not name.endswith(also):
            raise ValueError(
                f"{host}: weights must be of one dtype, got {first[1].dtype} of {first[0]} and {tensor.dtype} of {name}"
            )
    if first is None:
        raise ValueError(f"{host}: holds no weights")
    return first[1]


def check_module(host: str, module: nn.Module) -> None:
    """ValueError: a part of it is in training mode, or has hooks that a swap would pass by; it names the part."""
    for path, part in module.named_modules():
        name = path or type(module).__name__
        if part.training:
            raise ValueError(f"{host}: {name} is in training mode: call .eval()")
        hooks = part._forward_hooks, part._forward_pre_hooks
        plain = [hook for hook in (*hooks[0].values(), *hooks[1].values()) if not _is_weight_norm(hook)]
        if plain:
            raise ValueError(f"{host}: {name} has a forward hook, which the kernels would pass by: remove {plain[0]!r}")


def _is_weight_norm(hook: object) -> bool:
    """torch.nn.utils.weight_norm makes the weight in a hook; its g and v are read instead."""
    return type(hook).__module__ == "torch.nn.utils.weight_norm"
