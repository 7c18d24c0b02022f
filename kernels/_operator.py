"""The declaration of an operator: custom op, schema, meta function, CPU fallback, argument checks, cost."""

import inspect
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from importlib import import_module
from typing import Annotated, Any, NamedTuple, ParamSpec, TypeVar, get_args, get_origin

import torch
import triton
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.library import CustomOpDef  # type: ignore[attr-defined]

from zonos2_triton.kernels._args import arg_specs, check


class Cost(NamedTuple):
    """Least work of one call: DRAM bytes that must move, and floating-point operations."""

    bytes: int
    flops: int


P = ParamSpec("P")
R = TypeVar("R")


def operator(mutates_args: Sequence[str] = ()) -> Callable[[Callable[P, Iterator[R]]], Callable[P, R]]:
    """Declares an operator once: custom op, schema, meta function, CPU fallback and argument checks.

    The decorated generator is named as its file. Its annotations say what `check` holds tensors to, before anything
    else. It runs in two parts:

    * up to `yield`: further checks, and the results, allocated. This is the meta function.
    * after it: the launches. On a CPU without the interpreter `reference/<operator>.py` computes the results instead.

    A bare `yield` is for an operator that only changes `mutates_args`. The reference has the same arguments by name,
    without those that it does not need, such as `counters`.
    """

    def register(function: Callable[P, Iterator[R]]) -> Callable[P, R]:
        name, signature = function.__name__, inspect.signature(function)
        specs, parameters = arg_specs(signature), tuple(signature.parameters)

        def start(args: Any, kwargs: Any) -> tuple[dict[str, Any], Iterator[R]]:
            arguments = dict(zip(parameters, args, strict=False), **kwargs)
            check(name, specs, arguments)
            return arguments, function(*args, **kwargs)

        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            arguments, body = start(args, kwargs)
            results = next(body)
            if runs_kernel(next(value for value in arguments.values() if isinstance(value, Tensor))):
                next(body, None)
                return results
            return cpu_fallback(name, **arguments)

        def meta(*args: P.args, **kwargs: P.kwargs) -> R:
            return next(start(args, kwargs)[1])

        run.__name__, run.__doc__ = name, function.__doc__
        run.__signature__ = _schema_signature(signature)  # type: ignore[attr-defined]
        run.__wrapped__ = function  # type: ignore[attr-defined]
        namespace = function.__module__.split(".")[0]
        op = torch.library.custom_op(f"{namespace}::{name}", run, mutates_args=mutates_args)
        op.register_fake(meta)
        if not hasattr(CustomOpDef, "_register_mutation_version_bump"):
            _bump_versions(op)
        return op

    return register


MOST_WEIGHTS = 4096  # sets of weights of one operator that are known to be right


def direct(op: Callable[P, R]) -> Callable[P, R]:
    """The operator as a plain function, for a model that calls it again and again where the kernels run.

    It saves the host the dispatcher, which only gradients and tracing need. Arguments are checked when the operator
    first gets these weights: the tensors that have no axis of tokens, slots or sequences.

    A launch still takes the host 34 us on one core of an AMD EPYC, 14 of them in Triton's `JITFunction.run`. It chooses
    the binary by each argument's alignment and divisibility; only private parts of Triton could skip that, so it stays.
    """
    function: Callable[P, Iterator[R]] = op._init_fn.__wrapped__  # type: ignore[attr-defined]
    signature = inspect.signature(function)
    name, specs, parameters = function.__name__, arg_specs(signature), tuple(signature.parameters)
    weights = [(i, each) for i, each in enumerate(parameters) if each in specs and specs[each].is_weight]
    known: dict[tuple[int, ...], list[Any]] = {}  # the tensors by their ids, which stay theirs as they are kept

    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        given = len(args)
        held = [args[i] if i < given else kwargs.get(each) for i, each in weights]
        key = tuple(map(id, held))
        if key not in known:
            check(name, specs, dict(zip(parameters, args, strict=False), **kwargs))
            if len(known) == MOST_WEIGHTS:
                known.clear()
            known[key] = held
        body = function(*args, **kwargs)
        results = next(body)
        next(body, None)
        return results

    call.__name__ = name
    return call


def _schema_signature(signature: inspect.Signature) -> inspect.Signature:
    """The signature that PyTorch infers the schema from: `Annotated[T, ...]` is T, `Iterator[T]` is T."""
    parameters = [
        parameter.replace(annotation=get_args(parameter.annotation)[0])
        if get_origin(parameter.annotation) is Annotated
        else parameter
        for parameter in signature.parameters.values()
    ]
    [result] = get_args(signature.return_annotation)
    return signature.replace(parameters=parameters, return_annotation=result)


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


@cache
def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, which is settled when triton is imported."""
    return bool(triton.knobs.runtime.interpret)


def runs_kernel(x: Tensor) -> bool:
    """Whether the kernel runs on x: on a GPU, in the interpreter, or compiled for fake tensors.

    Otherwise, on a CPU, the reference computes the result.
    """
    return x.device.type != "cpu" or interpreted() or isinstance(x, FakeTensor)


def cpu_fallback(op: str, *args: Any, **arguments: Any) -> Any:
    """The reference's results as an operator may return them: contiguous, and in memory that they share with nothing.

    Arguments in `mutates_args` are changed.
    """
    from zonos2_triton.reference.numeric import exact_numerics  # here: a GPU needs no reference

    reference = _reference(op)
    parameters = inspect.signature(reference).parameters
    arguments = {**dict(zip(parameters, args, strict=False)), **arguments}
    with exact_numerics(), torch.no_grad():
        results = reference(**{name: value for name, value in arguments.items() if name in parameters})
    taken = {_memory(value) for value in arguments.values() if isinstance(value, Tensor)}
    if results is None or isinstance(results, Tensor):
        return None if results is None else _own(results, taken)
    return tuple(_own(result, taken) for result in results)


def _reference(op: str) -> Callable[..., Any]:
    return getattr(import_module(f"zonos2_triton.reference.{op}"), op)


def _own(result: Tensor, taken: set[int]) -> Tensor:
    """The result, copied where its memory is in `taken`."""
    result = result.contiguous()
    if _memory(result) in taken:
        result = result.clone()
    taken.add(_memory(result))
    return result


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def zeroed_counters(like: Tensor, n: int, counters: Tensor | None, op: str) -> Tensor:
    """n int32 zeros, from `counters` where the caller keeps some (a launch less than making them)."""
    if counters is None:
        return torch.zeros(n, dtype=torch.int32, device=like.device)
    if counters.dtype != torch.int32 or counters.ndim != 1 or counters.device != like.device:
        raise ValueError(f"{op}: counters must be one axis of int32 on {like.device}, got {_describe(counters)}")
    if not counters.is_contiguous():
        raise ValueError(f"{op}: counters must be contiguous, got strides {counters.stride()}")
    if counters.shape[0] < n:
        raise ValueError(f"{op}: counters must hold at least {n} numbers, got {counters.shape[0]}")
    return counters


def _describe(tensor: Tensor) -> str:
    return f"{list(tensor.shape)} of {tensor.dtype} on {tensor.device}"


Launch = dict[str, Any]  # keyword arguments of a launch: tile sizes, num_warps, num_stages
