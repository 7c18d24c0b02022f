"""Attributes of other people's objects: replaced, and put back as they were."""

import zlib
from collections.abc import Callable, Iterable
from functools import update_wrapper
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

MISSING = object()
SAMPLED = 64  # numbers of each tensor on a GPU that are looked at again
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
    Where gradients are wanted, which kernels do not make, the original is called.

    It belongs to the object that it was made for: a copy would compute with the weights of the original, so copying and
    pickling are errors.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        original: Callable[..., Any],
        weights: Callable[[], Iterable[Tensor]] = tuple,
    ) -> None:
        """weights: those that the operation has at the time."""
        update_wrapper(self, original)
        self._function, self._original, self._weights = function, original, weights

    def trainable(self) -> bool:
        """Whether a weight requires gradients."""
        return any(weight.requires_grad for weight in self._weights())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled() and (self.trainable() or any(map(_requires_grad, (*args, *kwargs.values())))):
            return self._original(*args, **kwargs)
        return self._function(*args, **kwargs)

    def __deepcopy__(self, memo: object) -> NoReturn:
        raise TypeError("an accelerated object cannot be copied or saved whole: call report.restore() before it")

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        self.__deepcopy__(None)


def _requires_grad(value: object) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


class Unchanged:
    """A module as it was when something was made of it; whoever uses that asks first whether it still is."""

    def __init__(self, root: nn.Module, path: str = "", weights: bool = True, leave: str | None = None) -> None:
        """path: that of root, for messages. weights: what its tensors hold counts too, not only its parts and their
        hooks; they are of one dtype, on one device. leave: the name of parts that do not count."""
        parts = [(name, part) for name, part in root.named_modules(prefix=path) if leave not in name.split(".")]
        self._leave = leave
        self._parts = [(name, part, self._form(part)) for name, part in parts]
        self._tensors = [
            (f"{name}.{key}".lstrip("."), part, kind, key, tensor, _stamp(tensor))
            for name, part in parts
            for kind in (("_parameters", "_buffers") if weights else ())
            for key, tensor in getattr(part, kind).items()
        ]
        held = {name: tensor.detach() for name, *_, tensor, _ in self._tensors if tensor is not None}
        self._whole = {name: tensor for name, tensor in held.items() if tensor.device.type == "cpu"}
        self._samples = {
            name: tensor.flatten()[:: tensor.numel() // SAMPLED + 1]
            for name, tensor in held.items()
            if name not in self._whole and tensor.is_contiguous()
        }
        self._contents = self._read()

    def check(self) -> None:
        """RuntimeError: a part was replaced or has other hooks; a tensor was replaced, moved, converted or written."""
        for name, part, form in self._parts:
            if self._form(part) != form:
                raise _changed(name or type(part).__name__)
        for name, part, kind, key, tensor, stamp in self._tensors:
            if getattr(part, kind).get(key) is not tensor or key in vars(part) or _stamp(tensor) != stamp:
                raise _changed(name)
        for name, contents in self._read().items():
            if contents != self._contents[name]:
                raise _changed(name)

    def _form(self, part: nn.Module) -> tuple[object, ...]:
        children = [child for name, child in part._modules.items() if name != self._leave]
        own = vars(part).get("forward")
        own = None if isinstance(own, Replacement) else own
        return children, type(part), own, len(part._forward_hooks), len(part._forward_pre_hooks)

    def _read(self) -> dict[str, int]:
        """Checksums: of all numbers on a CPU, elsewhere of samples, in one copy. A write through .data, NumPy or the
        storage is seen by nothing else. While a graph is captured nothing may be read."""
        found = {name: zlib.crc32(_octets(tensor)) for name, tensor in self._whole.items()}
        if self._samples and not torch.cuda.is_current_stream_capturing():
            octets, start = _octets(torch.cat([*self._samples.values()]).cpu()), 0
            for name, sample in self._samples.items():
                found[name] = zlib.crc32(octets[start : start + sample.nbytes])
                start += sample.nbytes
        return found


def _changed(name: str) -> RuntimeError:
    return RuntimeError(
        f"{name} was changed after accelerate(), which goes by what it found there; call report.restore(), then "
        "accelerate() again"
    )


def _stamp(tensor: Tensor | None) -> tuple[object, ...]:
    """What a move, a conversion and most writes change; quick, for it is asked at every call."""
    if tensor is None:
        return ()
    return writes_to(tensor), tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def writes_to(tensor: Tensor) -> int:
    """Grows with each write in place; tensors of inference mode do not count them."""
    return 0 if tensor.is_inference() else tensor._version


def _octets(tensor: Tensor) -> Any:
    """Of a tensor on a CPU, as NumPy has them."""
    return tensor.contiguous().flatten().view(torch.uint8).numpy()


def summed_rows(op: Callable[..., Tensor], rows: Tensor) -> Tensor:
    """rows [C, M, D] -> their sums over C [M, D], by `frame_embedding`. Its own look-up wants the tables behind each
    other, which would be a copy that no later write reaches."""
    C, M, _ = rows.shape
    places = torch.arange(M, dtype=torch.int32, device=rows.device)[:, None].expand(M, C).contiguous()
    return op(places, rows.flatten(0, 1), M, 0.0, norm=False)


def check_weights(host: str, tensors: Iterable[tuple[str, Tensor]], also: tuple[str, ...] = ()) -> Tensor:
    """The first of the tensors, which are all alike.

    also: ends of names whose dtype may be another. ValueError: devices or dtypes differ, or weights are not there yet;
    it names the tensors.
    """
    first: tuple[str, Tensor] | None = None
    for name, tensor in tensors:
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
    """ValueError: a part of it is in training mode, compiled, or has hooks that a swap would pass by; it names it."""
    for path, part in module.named_modules():
        name = path or type(module).__name__
        if part.training:
            raise ValueError(f"{host}: {name} is in training mode: call .eval()")
        if is_compiled(part):
            raise ValueError(f"{host}: {name} is compiled already: accelerate first, then compile")
        hooks = part._forward_hooks, part._forward_pre_hooks
        plain = [hook for hook in (*hooks[0].values(), *hooks[1].values()) if not _is_weight_norm(hook)]
        if plain:
            raise ValueError(f"{host}: {name} has a forward hook, which the kernels would pass by: remove {plain[0]!r}")


def is_compiled(part: Any) -> bool:
    """By torch.compile or Module.compile."""
    return "_orig_mod" in getattr(part, "_modules", ()) or getattr(part, "_compiled_call_impl", None) is not None


def _is_weight_norm(hook: object) -> bool:
    """torch.nn.utils.weight_norm makes the weight in a hook; its g and v are read instead."""
    return type(hook).__module__ == "torch.nn.utils.weight_norm"
