"""Argument checks, before any launch: shapes, dtypes, devices, strides, alignment.

An operator's signature says what its tensors must be: `Annotated[Tensor, "M D"]` is a float tensor of the common dtype,
`Annotated[Tensor | None, "B W", torch.int32]` an optional one of int32. Several dtypes are alternatives. STRIDED marks
a tensor whose last axis alone is dense.
"""

import inspect
import math
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple, get_args, get_origin

import torch
import triton
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
ALIGNMENT = 16  # bytes: what one load instruction takes at most
MAX_BATCH = 256  # sequences that decode together


STRIDED = "strided"


class ArgSpec(NamedTuple):
    """The shape and dtype of a tensor: "M D" names its axes. An axis has one size everywhere; a number is that size.

    "D/16", rounded up, "B+1" and "M*K" follow from the sizes of other arguments.
    """

    axes: tuple[str, ...]
    dtypes: tuple[torch.dtype, ...] | None = None  # None: a float like the first argument's
    strided: bool = False  # only the last axis must be dense
    optional: bool = False  # may be None

    @property
    def is_weight(self) -> bool:
        """Whether it has no axis of tokens, slots or sequences, so that calls may share it: a weight, a cache."""
        return not any(axis[0] in "MBT" or "+" in axis or "*" in axis for axis in self.axes)


def arg_specs(signature: inspect.Signature) -> dict[str, ArgSpec]:
    """The annotated parameters' specs, in the order that binds sizes.

    Required tensors come first, then optional ones, then those with derived axes.
    """
    found = {}
    for name, parameter in signature.parameters.items():
        if get_origin(parameter.annotation) is Annotated:
            kind, axes, *more = get_args(parameter.annotation)
            dtypes = tuple(entry for entry in more if isinstance(entry, torch.dtype)) or None
            spec = ArgSpec(tuple(axes.split()), dtypes, STRIDED in more, kind is not Tensor)
            found[name] = spec, (any(c in axes for c in "/+*"), spec.optional)
    return {name: spec for name, (spec, _) in sorted(found.items(), key=lambda item: item[1][1])}


def check(op: str, specs: Mapping[str, ArgSpec], arguments: Mapping[str, Any]) -> None:
    """Holds the arguments to their specs. An optional argument may be None or left out.

    Raises before any launch: ValueError for a wrong shape, device, stride or alignment, TypeError for a wrong dtype or
    None; the message names op, argument, what came and what is accepted.
    """
    sizes: dict[str, int] = {}
    present = []
    for name, spec in specs.items():
        if (tensor := arguments.get(name)) is not None:
            present.append((name, tensor, spec))
        elif not spec.optional:  # the dispatcher lets None pass for a tensor
            raise TypeError(f"{op}: {name} must be a tensor, got None")
    like, first, _ = next((entry for entry in present if entry[2].dtypes is None), present[0])
    for name, tensor, (axes, dtypes, strided, _) in present:
        _check_shape(op, name, tensor, axes, sizes)
        _check_dtype(op, name, tensor, dtypes, first, like)
        _check_memory(op, name, tensor, strided, first, like)


def _check_shape(op: str, name: str, tensor: Tensor, axes: tuple[str, ...], sizes: dict[str, int]) -> None:
    shape = tensor.shape
    known = [_known(axis, sizes) for axis in axes]
    if len(shape) != len(axes) or any(size not in (None, n) for size, n in zip(known, shape, strict=True)):
        named = zip(axes, known, strict=True)
        want = ", ".join(axis if size is None or axis.isdecimal() else f"{axis}={size}" for axis, size in named)
        raise ValueError(f"{op}: {name} must have shape [{want}], got {list(shape)}")
    for axis, n in zip(axes, shape, strict=True):
        if n == 0:
            raise ValueError(f"{op}: {name} is empty: {axis} must be at least 1, got shape {list(shape)}")
        sizes[axis] = n


def _known(axis: str, sizes: dict[str, int]) -> int | None:
    if axis in sizes:
        return sizes[axis]
    if axis.isdecimal():
        return int(axis)
    if "/" in axis:
        name, divisor = axis.split("/")
        return -(-sizes[name] // int(divisor))
    if axis.endswith("+1"):
        return sizes[axis[:-2]] + 1
    return math.prod(sizes.get(factor, 1) for factor in axis.split("*")) if "*" in axis else sizes.get(axis)


def _check_dtype(
    op: str, name: str, tensor: Tensor, dtypes: tuple[torch.dtype, ...] | None, first: Tensor, like: str
) -> None:
    if dtypes is not None:
        if tensor.dtype not in dtypes:
            raise TypeError(f"{op}: {name} must be {' or '.join(map(str, dtypes))}, got {tensor.dtype}")
    elif tensor.dtype not in FLOATS:
        raise TypeError(f"{op}: {name} must be torch.float32, torch.float16 or torch.bfloat16, got {tensor.dtype}")
    elif tensor.dtype != first.dtype:
        raise TypeError(f"{op}: {name} must be {first.dtype} like {like}, got {tensor.dtype}")


def _check_memory(op: str, name: str, tensor: Tensor, strided: bool, first: Tensor, like: str) -> None:
    if tensor.device != first.device:
        raise ValueError(f"{op}: {name} must be on {first.device} like {like}, got {tensor.device}")
    real = not isinstance(tensor, FakeTensor)  # those have no address, and their device need not be there
    if tensor is first and real and tensor.is_cuda and tensor.device.index != torch.cuda.current_device():
        raise ValueError(
            f"{op}: {name} is on {tensor.device}, but kernels are launched on the current device, "
            f"cuda:{torch.cuda.current_device()}; call within torch.cuda.device({tensor.device.index})"
        )
    if tensor.stride(-1) != 1 or not (strided or tensor.is_contiguous()):
        raise ValueError(f"{op}: {name} must be contiguous, got strides {tensor.stride()}")
    if real and tensor.is_floating_point() and tensor.data_ptr() % ALIGNMENT:
        raise ValueError(
            f"{op}: {name} must start at a multiple of {ALIGNMENT} bytes, got an address that is "
            f"{tensor.data_ptr() % ALIGNMENT} beyond one; clone it"
        )


def check_rows(op: str, dtype: torch.dtype, **widths: int) -> None:
    """ValueError: rows of this many elements do not begin at multiples of 16 bytes, as 16-byte loads need them."""
    step = ALIGNMENT // dtype.itemsize
    for name, width in widths.items():
        if width % step:
            raise ValueError(f"{op}: {name} must be a multiple of {step} for {dtype}, got {width}")


def may_sync(values: Tensor) -> bool:
    """Whether a check may read values: on a CPU, or under TRITON_DEBUG=1. Elsewhere it would stop the host."""
    real = not isinstance(values, FakeTensor) and not values.is_meta
    return real and (values.device.type == "cpu" or bool(triton.knobs.runtime.debug))


def check_range(op: str, name: str, values: Tensor, low: int, high: int, what: str) -> None:
    """ValueError: a value outside of low .. high, where looking costs nothing: on a CPU, or under TRITON_DEBUG=1.

    On a GPU, reading a value would stop the host until the device is done.
    """
    if may_sync(values) and bool(((values < low) | (values > high)).any()):
        wrong = values[(values < low) | (values > high)][0].item()
        raise ValueError(f"{op}: {name} must be in {low}..{high}, {what}; got {wrong}")


def check_batch(op: str, tokens: int, instead: str = "prefill=True") -> None:
    """ValueError: more tokens than decode together. instead: what takes more."""
    if tokens > MAX_BATCH:
        raise ValueError(f"{op}: at most {MAX_BATCH} tokens decode together, got {tokens}; {instead} takes any number")
