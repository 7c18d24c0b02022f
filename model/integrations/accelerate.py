"""`accelerate`: the operations of somebody else's model by ours, in place, all or nothing, and back again."""

import importlib
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from zonos2_triton import __version__, _settings
from zonos2_triton.model.backend import check_backend, resolve_backend
from zonos2_triton.model.integrations.patching import Replacement, Swaps, is_compiled
from zonos2_triton.model.integrations.report import Left, Report, Swapped

LOG = logging.getLogger("zonos2_triton")
MARK = "_zonos2_triton"  # the attribute of an accelerated object that holds its report
HOSTS = ("dac.codec", "zonos2_engine.engine", "zonos2_engine.package", "torch_module.module")  # each has `Host`s
KNOWN = (
    "transformers' DacModel, dac.DAC, the model of the official zonos2 engine, the imported package zonos2, an "
    "nn.Module with the official tensor names, or an object that holds some of these as modules"
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
        accelerated: in training, on mixed devices, of another structure; the message names the part."""

    def candidates(self, obj: Any, backend: str, ops: Collection[str]) -> list[Candidate]:
        """Of the operations named, by the backend "triton" or "reference" (without weights also "auto")."""


def accelerate(
    obj: object, only: Collection[str] | None = None, strict: bool = True, verify: bool = True, backend: str = "auto"
) -> Report:
    """Replace the operations of `obj` by this package's, in place; `obj` is known by its structure:

    transformers' DacModel, dac.DAC, the model of the official zonos2 engine, the package zonos2 itself (everything that
    this process will build of it), an nn.Module with the official tensor names, or an object, mostly an nn.Module,
    that holds some of these as modules: the report has their paths.

    only     operations, by the names that the report has; None: all
    strict   an operation that cannot be swapped, or a version that this was not tested with, is an error; otherwise it
             is left, and the report says why
    verify   run each swapped operation once against the original, and refuse one outside its bound
    backend  "triton": kernels (on a CPU, interpreted); "reference": plain PyTorch; "auto": kernels on a GPU; where they
             do not run, as on a CPU, nothing is replaced; ZONOS2_TRITON_BACKEND may say otherwise

    Weights may require gradients: with grad mode on, a call whose weights or inputs require some goes to the original.

    All or nothing: after an error `obj` is as it was. Doing it twice is doing it once. Weights stay where they are,
    under their names, and are read there, so that a later change counts. A codec's are packed: a change is an error at
    the next call; not seen on a GPU are a few numbers written through `.data` or a storage, and any change before a
    captured graph is replayed.

    TypeError: an object of no known kind; ValueError: one that is not as expected, or out of bounds; the message says
    what was found and what is accepted.
    """
    check_backend(backend)
    parts = _parts(obj)
    name = ", ".join(part.at + part.host.name for part in parts)
    asked = (_chosen(name, parts, only), strict, verify, backend)
    if (standing := vars(obj).get(MARK)) is not None:
        return _standing(name, standing, asked)
    plans = list[_Plan]()
    for part in parts:
        try:
            plans.append(_plan(part, *asked))
        except (TypeError, ValueError) as error:
            if not part.at:
                raise
            raise type(error)(f"{part.at}{error}") from error
    versions = dict.fromkeys(plan.version for plan in plans if plan.version)
    backends = dict.fromkeys(plan.backend for plan in plans if plan.backend)
    swapped = tuple(row for plan in plans for row in plan.swapped)
    left = tuple(row for plan in plans for row in plan.left)
    swaps, places = Swaps(), [place for plan in plans for place in plan.places]
    report = Report(
        name, ", ".join(versions) or None, __version__, ", ".join(backends) or "none", swapped, left, asked, swaps
    )
    if places:
        places += [
            (owner, MARK, report) for owner in {id(at): at for at in (*(part.obj for part in parts), obj)}.values()
        ]
    try:
        for owner, attribute, value in places:
            swaps.attribute(owner, attribute, value)
    except BaseException:
        swaps.undo()
        raise
    LOG.info("%s", report)
    return report


class _Part(NamedTuple):
    """An object of a known kind."""

    at: str  # its paths within what was given, and a colon; "": it is that
    obj: Any
    host: Host


class _Plan(NamedTuple):
    """What becomes of a part."""

    swapped: list[Swapped]
    left: list[Left]
    places: list[Place]
    version: str | None
    backend: str | None = None


def _plan(part: _Part, chosen: Collection[str], strict: bool, verify: bool, backend: str) -> _Plan:
    host, ops = part.host, [op for op in part.host.ops if op in chosen]
    if MARK in vars(part.obj):
        raise ValueError(f"{host.name} is accelerated by itself: call restore() of that report first")
    version = _host_version(host, strict)
    disabled = f"{_settings.DISABLE}=1" if _settings.disabled() else None
    weight = None if disabled else host.checked(part.obj)
    if reason := disabled or (auto_leaves(weight) if backend == "auto" else None):
        return _Plan([], [Left(op, part.at + reason) for op in ops], [], version)
    if weight is not None:
        backend = resolve_backend(backend, weight.device, weight.dtype)
    plan = _Plan([], [], [], version, backend)
    with torch.no_grad():
        for candidate in host.candidates(part.obj, backend, ops):
            error, fault = _judged(candidate, verify)
            if fault is not None and strict:
                raise ValueError(f"{host.name}: {candidate.op} cannot be swapped: {fault}")
            if reason := candidate.left or fault:
                plan.left.append(Left(candidate.op, part.at + reason))
                continue
            places = list(candidate.places)
            trains = any(isinstance(value, Replacement) and value.trainable() for _, _, value in places)
            where = part.at + candidate.where + ", under torch.no_grad()" * trains
            plan.places.extend(places)
            plan.swapped.append(Swapped(candidate.op, where, len(places), error, candidate.bound))
    return plan


def auto_leaves(like: Tensor | None) -> str | None:
    """Why "auto" replaces nothing where this tensor is, None: where this process computes; None: it does."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu") if like is None else like.device
    dtype = torch.float32 if like is None else like.dtype
    if _settings.backend() != "auto" or resolve_backend("auto", device, dtype) == "triton":
        return None
    return (
        f'"auto" replaces nothing in {dtype} on a {device.type}, where no kernels run and plain PyTorch gains nothing: '
        'name backend="reference" or "triton"'
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


def _parts(obj: object) -> list[_Part]:
    """The object itself, or those modules within it that are of a known kind. TypeError: there are none."""
    hosts, found = known_hosts(), dict[int, tuple[list[str], Any, Host]]()

    def look(path: str, at: Any, around: tuple[Any, ...]) -> None:
        around = (*around, at)
        host = next((host for host in hosts if hasattr(at, "__dict__") and host.recognises(at)), None)
        if host is not None:
            for owner in around:
                _check_owner(f"{path}: " * bool(path), owner)
            found.setdefault(id(at), ([], at, host))[0].append(path)
            return
        for name, child in _modules(at).items():
            if child is not None and child not in around:
                look(f"{path}.{name}".lstrip("."), child, around)

    look("", obj, ())
    if not found:
        kind = f"{type(obj).__module__}.{type(obj).__qualname__}"
        raise TypeError(f"accelerate: {kind} is of no known kind; known: {KNOWN}")
    return [_Part(", ".join(paths) + ": " * any(paths), at, host) for paths, at, host in found.values()]


def _modules(at: Any) -> Mapping[str, nn.Module | None]:
    """Those directly within a module, or within an object that is none, as a pipeline holds its model."""
    if isinstance(at, nn.Module):
        return at._modules
    attributes = {} if isinstance(at, ModuleType | type) else getattr(at, "__dict__", {})
    return {name: value for name, value in attributes.items() if isinstance(value, nn.Module)}


def _check_owner(at: str, owner: Any) -> None:
    """ValueError: what runs is not what it holds."""
    if is_compiled(owner):
        raise ValueError(f"{at}{type(owner).__name__} is compiled already: accelerate first, then compile")
    if isinstance(owner, nn.DataParallel) and len(owner.device_ids) > 1:
        raise ValueError(f"{at}DataParallel copies it to other devices at each call: accelerate and call its .module")


def _chosen(name: str, parts: Sequence[_Part], only: Collection[str] | None) -> frozenset[str]:
    ops = dict.fromkeys(op for part in parts for op in part.host.ops)
    if only is None:
        return frozenset(ops)
    if isinstance(only, str):
        only = (only,)
    if unknown := sorted(set(only) - set(ops)):
        raise ValueError(f"only: {name} has no operation {unknown[0]!r}; it has {', '.join(ops)}")
    if not only:
        raise ValueError(f"only: names no operation; {name} has {', '.join(ops)}")
    return frozenset(only)


def _standing(name: str, standing: Any, asked: tuple[Any, ...]) -> Report:
    made_by = getattr(standing, "version", None)
    if made_by != __version__ or not isinstance(standing, Report):
        raise ValueError(
            f"{name} was accelerated by zonos2-triton {made_by}, this is {__version__}: call restore() of its "
            "report first"
        )
    if standing.asked != asked:
        raise ValueError(f"{name} is accelerated already, with other arguments: call report.restore() first")
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
