"""What every kernel module shares on the host: argument checks, the cost record, and the size of a launch."""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.library import CustomOpDef  # type: ignore[attr-defined]

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
ALIGNMENT = 16  # bytes: what one load instruction takes at most
MAX_BATCH = 256  # sequences that decode together


class Cost(NamedTuple):
    """Least work of one call: DRAM bytes that must move, and floating-point operations."""

    bytes: int
    flops: int


class Arg(NamedTuple):
    """What an argument must be: "M D" names its axes; the same name is the same size everywhere, a number that size.

    "D/2", "B+1" and a name that stands twice, "R R", follow from a size that an argument before has settled.
    """

    tensor: Tensor | None
    axes: str
    dtype: torch.dtype | None = None  # None: a float like the first argument's
    strided: bool = False  # only the last axis must be dense


def check(op: str, /, **arguments: Arg) -> dict[str, int]:
    """The sizes that the axes of `arguments` are bound to. Arguments whose tensor is None are left out.

    Raises before any launch: ValueError for a wrong shape, device, stride or alignment, TypeError for a wrong dtype;
    the message names op, argument, what came and what is accepted.
    """
    sizes: dict[str, int] = {}
    present = {name: arg for name, arg in arguments.items() if arg.tensor is not None}
    like = next((name for name, arg in present.items() if arg.dtype is None), next(iter(present)))
    first = present[like].tensor
    assert first is not None
    for name, (tensor, axes, dtype, strided) in present.items():
        assert tensor is not None
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{op}: {name} must be a tensor, got {type(tensor).__name__}")
        _check_shape(op, name, tensor, axes.split(), sizes)
        _check_dtype(op, name, tensor, dtype, first, like)
        _check_memory(op, name, tensor, strided, first, like)
    return sizes


def _check_shape(op: str, name: str, tensor: Tensor, axes: list[str], sizes: dict[str, int]) -> None:
    got = dict(zip(axes, tensor.shape, strict=False))
    known = {axis: _known(axis, sizes) for axis in axes}
    fits = all(known[axis] in (None, n) for axis, n in zip(axes, tensor.shape, strict=False))
    if tensor.ndim != len(axes) or not fits:
        want = ", ".join(axis if known[axis] is None or axis.isdecimal() else f"{axis}={known[axis]}" for axis in axes)
        raise ValueError(f"{op}: {name} must have shape [{want}], got {list(tensor.shape)}")
    if empty := [axis for axis, n in got.items() if n == 0]:
        raise ValueError(f"{op}: {name} is empty: {empty[0]} must be at least 1, got shape {list(tensor.shape)}")
    sizes.update(got)


def _known(axis: str, sizes: dict[str, int]) -> int | None:
    if axis.isdecimal():
        return int(axis)
    if axis.endswith("/2"):
        return sizes[axis[:-2]] // 2
    return sizes[axis[:-2]] + 1 if axis.endswith("+1") else sizes.get(axis)


def _check_dtype(op: str, name: str, tensor: Tensor, dtype: torch.dtype | None, first: Tensor, like: str) -> None:
    if dtype is not None:
        if tensor.dtype != dtype:
            raise TypeError(f"{op}: {name} must be {dtype}, got {tensor.dtype}")
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


def readable(values: Tensor) -> bool:
    """Whether looking at values is meant: on a CPU, or under TRITON_DEBUG=1."""
    return not isinstance(values, FakeTensor) and (values.device.type == "cpu" or bool(triton.knobs.runtime.debug))


def check_range(op: str, name: str, values: Tensor, low: int, high: int, what: str) -> None:
    """ValueError: a value outside of low .. high, where looking costs nothing: on a CPU, or under TRITON_DEBUG=1.

    On a GPU, reading a value would stop the host until the device is done.
    """
    if readable(values) and bool(((values < low) | (values > high)).any()):
        wrong = values[(values < low) | (values > high)][0].item()
        raise ValueError(f"{op}: {name} must be in {low}..{high}, {what}; got {wrong}")


def check_batch(op: str, rows: int) -> None:
    """ValueError: more rows than decode together."""
    if rows > MAX_BATCH:
        raise ValueError(f"{op}: at most {MAX_BATCH} rows decode together, got {rows}; prefill=True takes any number")


def fake(op: CustomOpDef) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`op.register_fake`; ValueError where only some of the tensors are on the meta device.

    One of them is enough for the dispatcher to take the fake for the kernel: its result is memory that nobody wrote.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        signature, name = inspect.signature(function), op._init_fn.__name__

        @wraps(function)
        def on_one_device(*args: Any, **kwargs: Any) -> Any:
            arguments = signature.bind(*args, **kwargs).arguments
            devices = {argument: value.device for argument, value in arguments.items() if isinstance(value, Tensor)}
            like, first = next(iter(devices.items()))
            for argument, device in devices.items():
                if device != first:
                    raise ValueError(f"{name}: {argument} must be on {first} like {like}, got {device}")
            return function(*args, **kwargs)

        op.register_fake(on_one_device)
        return on_one_device

    return register


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, which is settled when triton is imported."""
    return bool(triton.knobs.runtime.interpret)


def on_chip(x: Tensor) -> bool:
    """Whether the kernel itself runs on x: on a GPU, in the interpreter, or dry, on fake tensors.

    Elsewhere, on a CPU, an operation is its reference.
    """
    return x.device.type != "cpu" or interpreted() or isinstance(x, FakeTensor)


def by_reference(op: str, *args: Any, **kwargs: Any) -> Any:
    """What the reference makes of the arguments, as an operator may return it: contiguous tensors, none of whose
    memory belongs to an argument or to another result. Arguments that the operation changes are changed."""
    from zonos2_triton.reference.numeric import exact_numerics  # here: who has a GPU need not load the reference

    with exact_numerics(), torch.no_grad():
        results = _reference(op)(*args, **kwargs)
    taken = {_memory(value) for value in (*args, *kwargs.values()) if isinstance(value, Tensor)}
    if results is None or isinstance(results, Tensor):
        return None if results is None else _own(results, taken)
    return tuple(_own(result, taken) for result in results)


def _reference(op: str) -> Callable[..., Any]:
    from zonos2_triton.reference import rotary, vocoder_layers
    from zonos2_triton.reference.ops import REFERENCE

    if op in vocoder_layers.OPERATIONS:
        return getattr(vocoder_layers, op)
    return rotary.rotary if op == "rotary" else getattr(REFERENCE, op)


def _own(result: Tensor, taken: set[int]) -> Tensor:
    """The result in memory that is nobody else's; takes it."""
    result = result.contiguous()
    if _memory(result) in taken:
        result = result.clone()
    taken.add(_memory(result))
    return result


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def fresh_counters(like: Tensor, n: int, counters: Tensor | None, op: str) -> Tensor:
    """n int32 zeros, from `counters` where the caller keeps some (a launch less than making them)."""
    if counters is None:
        return torch.zeros(n, dtype=torch.int32, device=like.device)
    if counters.dtype != torch.int32 or counters.ndim != 1 or counters.device != like.device:
        raise ValueError(f"{op}: counters must be one axis of int32 on {like.device}, got {_describe(counters)}")
    if not counters.is_contiguous():
        raise ValueError(f"{op}: counters must be contiguous, got strides {counters.stride()}")
    if len(counters) < n:
        raise ValueError(f"{op}: counters must hold at least {n} numbers, got {len(counters)}")
    return counters


def _describe(tensor: Tensor) -> str:
    return f"{list(tensor.shape)} of {tensor.dtype} on {tensor.device}"


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def block(n: int, least: int = 1) -> int:
    """The smallest power of two that holds n, and at least `least`: an axis of a tile."""
    return max(least, 1 << (n - 1).bit_length())


Launch = dict[str, Any]  # keyword arguments of a launch: tile sizes, num_warps, num_stages
