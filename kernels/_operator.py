"""What every operator shares: its cost, its meta function, its CPU fallback, the sizes of a launch."""

import inspect
import warnings
from collections.abc import Callable
from functools import wraps
from importlib import import_module
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.library import CustomOpDef  # type: ignore[attr-defined]


class Cost(NamedTuple):
    """Least work of one call: DRAM bytes that must move, and floating-point operations."""

    bytes: int
    flops: int


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
        if not hasattr(CustomOpDef, "_register_mutation_version_bump"):
            _bump_versions(op)
        return on_one_device

    return register


def _bump_versions(op: CustomOpDef) -> None:
    """Marks the arguments that a call changes, in place of torch 2.11, which fails where one of them is left out.

    The dispatcher drops trailing arguments that have their default values; torch 2.13 fills them in again, as here.
    """
    from torch._library.custom_ops import increment_version
    from torch._library.utils import fill_defaults, mutated_args_kwargs

    schema = op._opoverload._schema
    if not schema.is_mutable:
        return
    places, names = mutated_args_kwargs(schema)
    below = torch._C._after_ADInplaceOrView_keyset

    def bumped(keyset: torch._C.DispatchKeySet, *args: Any, **kwargs: Any) -> Any:
        every, named = fill_defaults(schema, args, kwargs)
        for value in (*(every[place] for place in places), *(named[name] for name in names)):
            increment_version(value)
        return op._opoverload.redispatch(keyset & below, *args, **kwargs)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a kernel that replaces another
        op._lib.impl(op._name, bumped, "ADInplaceOrView", with_keyset=True, allow_override=True)


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
    from zonos2_triton.reference import vocoder_layers
    from zonos2_triton.reference.ops import REFERENCE

    if op in vocoder_layers.OPERATIONS:
        return getattr(vocoder_layers, op)
    if hasattr(REFERENCE, op):
        return getattr(REFERENCE, op)
    return getattr(import_module(f"zonos2_triton.reference.{op}"), op)  # of no model: a file of its name


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
