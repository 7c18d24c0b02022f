"""`accelerate`: the operations of somebody else's model by ours, in place, all or nothing, and back again."""

import importlib
import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Protocol

import torch
from torch import Tensor

from zonos2_triton import _settings
from zonos2_triton.model.backend import check_backend, resolve_backend
from zonos2_triton.model.integrations.patching import Swaps
from zonos2_triton.model.integrations.report import Left, Report, Swapped

LOG = logging.getLogger("zonos2_triton")
MARK = "_zonos2_triton"  # the attribute of an accelerated object that holds its report
HOSTS = ("dac.codec", "zonos2_engine.engine", "zonos2_engine.package", "torch_module.module")  # each has `Host`s
KNOWN = (
    "transformers' DacModel, dac.DAC, the model of the official zonos2 engine, the imported package zonos2, an "
    "nn.Module with the official tensor names"
)
Place = tuple[Any, str, object]  # owner, attribute, what it becomes


@dataclass(frozen=True)
class Candidate:
    """An operation that may be swapped.

    check   both ways on the same inputs -> what ours gave, what the original gave
    bound   of their difference, over the largest magnitude of the original
    fault   why it cannot be: an error unless strict=False
    left    why it stays as it is in this configuration, which is no error
    """

    op: str
    where: str
    places: Sequence[Place] = ()
    check: Callable[[], tuple[object, object]] | None = None
    bound: float = 0.0
    fault: str | None = None
    left: str | None = None


class Host(Protocol):
    """A kind of object that can be accelerated."""

    @property
    def name(self) -> str: ...
    @property
    def package(self) -> str | None:
        """Whose version counts; None: anybody's code."""

    @property
    def versions(self) -> tuple[str, str] | None:
        """It was tested with: from the first up to, without, the second."""

    @property
    def ops(self) -> tuple[str, ...]: ...

    def recognises(self, obj: object) -> bool:
        """By its structure alone."""

    def checked(self, obj: Any) -> Tensor | None:
        """One of its weights, for their device and dtype; None: it has none yet. ValueError: it is in no state to be
        accelerated: in training, with gradients, on mixed devices, of another structure; the message names the part."""

    def candidates(self, obj: Any, backend: str, ops: Collection[str]) -> list[Candidate]:
        """Of the operations named, by the backend "triton" or "reference" (without weights also "auto")."""


def accelerate(
    obj: object, only: Collection[str] | None = None, strict: bool = True, verify: bool = True, backend: str = "auto"
) -> Report:
    """Replace the operations of `obj` by this package's, in place; `obj` is known by its structure:

    transformers' DacModel, dac.DAC, the model of the official zonos2 engine, the package zonos2 itself (everything that
    this process will build of it), or an nn.Module with the official tensor names.

    only     operations, by the names that the report has; None: all
    strict   an operation that cannot be swapped, or a version that this was not tested with, is an error; otherwise it
             is left, and the report says why
    verify   run each swapped operation once against the original, and refuse one outside its bound
    backend  "triton": kernels (on a CPU, interpreted); "reference": plain PyTorch; "auto": kernels on a GPU; where they
             do not run, as on a CPU, nothing is replaced; ZONOS2_TRITON_BACKEND may say otherwise

    All or nothing: after an error `obj` is as it was. Doing it twice is doing it once. Weights stay where they are,
    under their names, and are read there, so that a later change counts. A codec's are packed: a change is an error at
    the next call, but on a GPU neither one of a few numbers through `.data` or a storage, nor one before a captured
    graph is replayed.

    TypeError: an object of no known kind; ValueError: one that is not as expected, or out of bounds; the message says
    what was found and what is accepted.
    """
    check_backend(backend)
    host = _host_of(obj)
    ops = _chosen(host, only)
    asked = (frozenset(ops), strict, verify, backend)
    if (standing := vars(obj).get(MARK)) is not None:
        return _standing(host, standing, asked)
    host_version = _host_version(host, strict)
    disabled = f"{_settings.DISABLE}=1" if _settings.disabled() else None
    weight = None if disabled else host.checked(obj)
    if reason := disabled or (auto_leaves(weight) if backend == "auto" else None):
        kept = tuple(Left(op, reason) for op in ops)
        return Report(host.name, host_version, _own_version(), "none", (), kept, asked)
    if weight is not None:
        backend = resolve_backend(backend, weight.device, weight.dtype)
    swapped, left, places = [], [], list[Place]()
    with torch.no_grad():
        for candidate in host.candidates(obj, backend, ops):
            error, fault = _judged(candidate, verify)
            if fault is not None and strict:
                raise ValueError(f"{host.name}: {candidate.op} cannot be swapped: {fault}")
            if reason := candidate.left or fault:
                left.append(Left(candidate.op, reason))
                continue
            places += candidate.places
            swapped.append(Swapped(candidate.op, candidate.where, len(candidate.places), error, candidate.bound))
    swaps = Swaps()
    report = Report(host.name, host_version, _own_version(), backend, tuple(swapped), tuple(left), asked, swaps)
    try:
        for owner, name, value in places:
            swaps.attribute(owner, name, value)
        swaps.attribute(obj, MARK, report)
    except BaseException:
        swaps.undo()
        raise
    LOG.info("%s", report)
    return report


def auto_leaves(like: Tensor | None) -> str | None:
    """Why "auto" replaces nothing where this tensor is, None: where this process computes; None: it does."""
    like = torch.empty(0, device="cuda" if torch.cuda.is_available() else "cpu") if like is None else like
    if _settings.backend() != "auto" or resolve_backend("auto", like.device, like.dtype) == "triton":
        return None
    return (
        f'"auto" replaces nothing in {like.dtype} on a {like.device.type}, where no kernels run and plain PyTorch '
        'gains nothing: name backend="reference" or "triton"'
    )


def _judged(candidate: Candidate, verify: bool) -> tuple[float | None, str | None]:
    """Its error, where it is verified, and why it cannot be swapped, if so."""
    if candidate.fault or candidate.left or candidate.check is None or not verify:
        return None, candidate.fault
    try:
        error = difference(*candidate.check())
    except (TypeError, ValueError, RuntimeError) as refused:
        return None, f"it fails on sample inputs: {refused}"
    if error <= candidate.bound:
        return error, None
    return error, f"differs from the original by {error:.1e}, more than the bound of {candidate.bound:.0e}"


def difference(new: object, old: object) -> float:
    """The largest difference over the largest magnitude of `old`; of integers, 0 or inf. Infinite where NaN came of a
    number. Tuples: the largest of their members'."""
    if isinstance(new, tuple | list) and isinstance(old, tuple | list) and len(new) == len(old):
        return max((difference(a, b) for a, b in zip(new, old, strict=True)), default=0.0)
    if not isinstance(new, Tensor) or not isinstance(old, Tensor):
        return 0.0 if type(new) is type(old) and new == old else float("inf")
    if new.shape != old.shape or new.dtype != old.dtype or new.device != old.device:
        return float("inf")
    if not old.is_floating_point():
        return 0.0 if torch.equal(new, old) else float("inf")
    if old.numel() == 0:
        return 0.0
    apart, most = (new.double() - old.double()).abs().amax().item(), old.double().abs().amax().item()
    if apart == 0:
        return 0.0
    return apart / most if most > 0 and apart < float("inf") else float("inf")


def known_hosts() -> list[Host]:
    """Every kind of object that `accelerate` tells apart, in the order in which it asks them."""
    found: list[Host] = []
    for name in HOSTS:
        found += importlib.import_module(f"zonos2_triton.model.integrations.{name}").HOSTS
    return found


def _host_of(obj: object) -> Host:
    for host in known_hosts():
        if hasattr(obj, "__dict__") and host.recognises(obj):
            return host
    raise TypeError(f"accelerate: {type(obj).__module__}.{type(obj).__qualname__} is of no known kind; known: {KNOWN}")


def _chosen(host: Host, only: Collection[str] | None) -> tuple[str, ...]:
    if only is None:
        return host.ops
    if isinstance(only, str):
        only = (only,)
    if unknown := sorted(set(only) - set(host.ops)):
        raise ValueError(f"only: {host.name} has no operation {unknown[0]!r}; it has {', '.join(host.ops)}")
    if not only:
        raise ValueError(f"only: names no operation; {host.name} has {', '.join(host.ops)}")
    return tuple(op for op in host.ops if op in only)


def _standing(host: Host, standing: Any, asked: tuple[Any, ...]) -> Report:
    made_by = getattr(standing, "version", None)
    if made_by != _own_version() or not isinstance(standing, Report):
        raise ValueError(
            f"{host.name} was accelerated by zonos2-triton {made_by}, this is {_own_version()}: call restore() of its "
            "report first"
        )
    if standing.asked != asked:
        raise ValueError(f"{host.name} is accelerated already, with other arguments: call report.restore() first")
    return standing


def _host_version(host: Host, strict: bool) -> str | None:
    if host.package is None:
        return None
    try:
        found = version(host.package)
    except PackageNotFoundError:  # run from a source tree
        return None
    if host.versions is not None:
        low, high = host.versions
        if not _numbers(low) <= _numbers(found) < _numbers(high):
            text = f"{host.name}: {host.package} {found} is none of the versions {low} to below {high} that this knows"
            if strict:
                raise ValueError(f"{text}; strict=False goes by its structure alone")
            LOG.warning("%s; going by its structure alone", text)
    return found


def _numbers(text: str) -> tuple[int, ...]:
    parts = []
    for part in text.split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        parts.append(int(digits))
    return tuple(parts)


def _own_version() -> str:
    try:
        return version("zonos2-triton")
    except PackageNotFoundError:
        return "unknown"
