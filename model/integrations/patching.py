"""Attributes of other projects' objects: replace them, guard them and restore them."""

import zlib
from collections.abc import Callable, Iterable
from functools import partial, update_wrapper
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

Call = Callable[..., Any]
MISSING = object()
SAMPLED = 64  # values of each tensor on a GPU that the guard compares
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class PatchSet:
    """Attributes that were set, in order, and how to undo that."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []

    def apply(self, sites: Iterable[tuple[Any, str, object]]) -> None:
        """owner.name = value for each (owner, name, value), all or none. Owners are instances, classes or modules."""
        try:
            for owner, name, value in sites:
                before = vars(owner).get(name, MISSING)
                setattr(owner, name, value)
                undo = partial(delattr, owner, name) if before is MISSING else partial(setattr, owner, name, before)
                self._undo.append(undo)
        except BaseException:
            self.undo()
            raise

    def undo(self) -> None:
        """Restore all attributes, the last one first. A second call does nothing."""
        while self._undo:
            self._undo.pop()()


class Replacement:
    """A callable in place of an original, with the original's signature.

    In grad mode, a call whose weights or inputs require gradients runs the original: the kernels have no backward.

    It reads the weights of the object that it was made for, so that a copy would compute with the wrong weights.
    Copying and pickling are errors.
    """

    def __init__(self, function: Call, original: Call, weights: Callable[[], Iterable[Tensor]] = tuple) -> None:
        """weights: returns the current weights of the operation."""
        update_wrapper(self, original)
        self._function, self._original, self._weights = function, original, weights

    def trainable(self) -> bool:
        """Whether a weight requires gradients."""
        return any(weight.requires_grad for weight in self._weights())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        given = (value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        if torch.is_grad_enabled() and (self.trainable() or any(tensor.requires_grad for tensor in given)):
            return self._original(*args, **kwargs)
        return self._function(*args, **kwargs)

    def __deepcopy__(self, memo: object) -> NoReturn:
        raise TypeError("an accelerated object cannot be copied or saved whole: call report.restore() before it")

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        self.__deepcopy__(None)


class WeightGuard:
    """Detects changes of a module after something was derived from it."""

    def __init__(self, root: nn.Module, path: str = "", weights: bool = True, ignore: str | None = None) -> None:
        """path     of root, for messages
        weights  guard the tensors as well as the modules and their hooks; tensors share one dtype and one device
        ignore   name of submodules that may change
        """
        modules = [(name, module) for name, module in root.named_modules(prefix=path) if ignore not in name.split(".")]
        self._ignore = ignore
        self._modules = [(name, module, self._form(module)) for name, module in modules]
        self._tensors = [
            (f"{name}.{key}".lstrip("."), module, kind, key, tensor, _stamp(tensor))
            for name, module in modules
            for kind in (("_parameters", "_buffers") if weights else ())
            for key, tensor in getattr(module, kind).items()
        ]
        held = {name: tensor.detach() for name, *_, tensor, _ in self._tensors if tensor is not None}
        self._on_cpu = {name: tensor for name, tensor in held.items() if tensor.device.type == "cpu"}
        self._samples = {
            name: tensor.flatten()[:: tensor.numel() // SAMPLED + 1]
            for name, tensor in held.items()
            if name not in self._on_cpu and tensor.is_contiguous()
        }
        self._found = self._checksums()

    def check(self) -> None:
        """RuntimeError: a module or its hooks were replaced, or a tensor was replaced, moved, converted or written."""
        for name, module, form in self._modules:
            if self._form(module) != form:
                raise _changed(name or type(module).__name__)
        for name, module, kind, key, tensor, stamp in self._tensors:
            if getattr(module, kind).get(key) is not tensor or key in vars(module) or _stamp(tensor) != stamp:
                raise _changed(name)
        for name, checksum in self._checksums().items():
            if checksum != self._found[name]:
                raise _changed(name)

    def _form(self, module: nn.Module) -> tuple[object, ...]:
        children = [child for name, child in module._modules.items() if name != self._ignore]
        own = vars(module).get("forward")
        own = None if isinstance(own, Replacement) else own
        return children, type(module), own, len(module._forward_hooks), len(module._forward_pre_hooks)

    def _checksums(self) -> dict[str, int]:
        """Checksums of all values on a CPU, and of samples elsewhere, read in one copy.

        Only they detect a write through .data, NumPy or the storage. Nothing may be read while a graph is captured.
        """
        found = {name: zlib.crc32(_as_bytes(tensor)) for name, tensor in self._on_cpu.items()}
        if self._samples and not torch.cuda.is_current_stream_capturing():
            values, start = _as_bytes(torch.cat([*self._samples.values()]).cpu()), 0
            for name, sample in self._samples.items():
                found[name] = zlib.crc32(values[start : start + sample.nbytes])
                start += sample.nbytes
        return found


def _changed(name: str) -> RuntimeError:
    return RuntimeError(
        f"{name} was changed after accelerate(), which goes by what it found there; call report.restore(), then "
        "accelerate() again"
    )


def _stamp(tensor: Tensor | None) -> tuple[object, ...]:
    """Properties that a move, a conversion and most writes change; cheap enough to compare at every call."""
    if tensor is None:
        return ()
    return writes_to(tensor), tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def writes_to(tensor: Tensor) -> int:
    """The number of in-place writes; tensors of inference mode do not count them."""
    return 0 if tensor.is_inference() else tensor._version


def _as_bytes(tensor: Tensor) -> Any:
    """The bytes of a CPU tensor, as a NumPy array."""
    return tensor.contiguous().flatten().view(torch.uint8).numpy()


def sum_embeddings(op: Callable[..., tuple[Tensor, Tensor, Tensor]], embeddings: Tensor) -> Tensor:
    """embeddings [C, M, D] -> their sum over C [M, D], by the operator `frame_embedding`.

    The operator could look them up itself only in one joined table, a copy that misses later writes to the weights.
    """
    C, M, _ = embeddings.shape
    ids = torch.arange(M, dtype=torch.int32, device=embeddings.device)[:, None].expand(M, C).contiguous()
    total: Tensor = op(ids, embeddings.flatten(0, 1), M, 0.0, norm=False)[0]
    return total


def check_weights(owner: str, tensors: Iterable[tuple[str, Tensor]], other_dtypes: tuple[str, ...] = ()) -> Tensor:
    """The first of the tensors, which share a device and a dtype.

    other_dtypes: endings of names whose dtype may differ. ValueError: devices or dtypes differ, or the weights are not
    loaded; the message names the tensors.
    """
    first: tuple[str, Tensor] | None = None
    for name, tensor in tensors:
        if tensor.device.type == "meta":
            raise ValueError(f"{owner}: {name} is on the meta device: load the weights first")
        if first is None:
            first = name, tensor
            if tensor.dtype not in FLOATS:
                raise ValueError(f"{owner}: {name} must be of a floating type up to 64 bits, got {tensor.dtype}")
        if tensor.device != first[1].device:
            raise ValueError(
                f"{owner}: weights are on mixed devices, {first[0]} on {first[1].device} and {name} on {tensor.device}"
            )
        if tensor.is_floating_point() and tensor.dtype != first[1].dtype and not name.endswith(other_dtypes):
            found = f"{first[1].dtype} of {first[0]} and {tensor.dtype} of {name}"
            raise ValueError(f"{owner}: weights must be of one dtype, got {found}")
    if first is None:
        raise ValueError(f"{owner}: holds no weights")
    return first[1]


def check_module(owner: str, root: nn.Module) -> None:
    """ValueError: a module is in training mode, is compiled, or has hooks that a patch would bypass; it is named."""
    for path, module in root.named_modules():
        name = path or type(root).__name__
        if module.training:
            raise ValueError(f"{owner}: {name} is in training mode: call .eval()")
        if is_compiled(module):
            raise ValueError(f"{owner}: {name} is compiled already: accelerate first, then compile")
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values()):
            # torch.nn.utils.weight_norm makes the weight in a hook; its g and v are read instead.
            if type(hook).__module__ != "torch.nn.utils.weight_norm":
                raise ValueError(
                    f"{owner}: {name} has a forward hook, which the kernels would pass by: remove {hook!r}"
                )


def is_compiled(module: Any) -> bool:
    """By torch.compile or Module.compile."""
    return "_orig_mod" in getattr(module, "_modules", ()) or getattr(module, "_compiled_call_impl", None) is not None
