"""`accelerate` replaces the operations of another project's model in place, all or none, and restores them."""

import importlib
import logging
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from zonos2_triton import __version__, _settings
from zonos2_triton.model.backend import check_backend, resolve_backend
from zonos2_triton.model.integrations.patching import PatchSet, Replacement, is_compiled
from zonos2_triton.model.integrations.report import Patched, Report, Skipped

LOG = logging.getLogger("zonos2_triton")
MARK = "_zonos2_triton"  # the attribute of an accelerated object that holds its report
INTEGRATIONS = ("dac.codec", "zonos2_engine.engine", "zonos2_engine.package", "torch_module.module")
KNOWN = (
    "transformers' DacModel, dac.DAC, the model of the official zonos2 engine, the imported package zonos2, an "
    "nn.Module with the official tensor names, or an object that holds some of these as modules"
)
PatchSite = tuple[Any, str, Any]  # owner, attribute, new value


@dataclass(frozen=True)
class Candidate:
    """An operation that may be patched.

    check        runs both on the same inputs: (result of the replacement, result of the original)
    bound        largest accepted difference, relative to the largest magnitude of the original
    mismatch     why it cannot be patched: an error, unless strict=False
    unsupported  why it stays as it is in this configuration: never an error
    """

    op: str
    where: str
    sites: Sequence[PatchSite] = ()
    check: Callable[[], tuple[object, object]] | None = None
    bound: float = 0.0
    mismatch: str | None = None
    unsupported: str | None = None


class Integration(Protocol):
    """A kind of object that can be accelerated."""

    name: str
    package: str | None  # the distribution whose version is checked; None: any code
    versions: tuple[str, str] | None  # the tested ones: from the first to below the second
    ops: tuple[str, ...]

    def recognises(self, obj: object) -> bool:
        """Decide by the structure alone."""

    def check(self, obj: Any) -> Tensor | None:
        """Return one weight, which tells device and dtype; None: there is none yet.

        ValueError: training mode, mixed devices, or another structure. The message names the module.
        """

    def candidates(self, obj: Any, backend: str, ops: Collection[str]) -> list[Candidate]:
        """Build the replacements of `ops` for the backend "triton" or "reference"; without weights also "auto"."""


def accelerate(
    obj: object, only: Collection[str] | None = None, strict: bool = True, verify: bool = True, backend: str = "auto"
) -> Report:
    """Replace operations of `obj` by this package's, in place. The structure of `obj` tells its kind:

    * transformers' DacModel or dac.DAC
    * the model of the official zonos2 engine, or the package zonos2, for all that this process will build of it
    * an nn.Module with the official tensor names
    * an object that holds some of these as modules; the report has their paths

    only     names of operations, as in the report; None: all
    strict   True: an operation that cannot be patched, or an untested version, is an error;
             False: the operation is skipped, and the report has the reason
    verify   run each replacement once beside the original, and refuse a difference above its bound
    backend  "triton": kernels (interpreted on a CPU); "reference": plain PyTorch; "auto": kernels on a GPU, and nothing
             is replaced where they do not run. ZONOS2_TRITON_BACKEND changes what "auto" means

    Weights may require gradients: in grad mode, a call whose weights or inputs require gradients runs the original.

    All or nothing: after an error `obj` is unchanged. A second call with the same arguments returns the same report.
    Weights keep their place and name, and each call reads them. A codec's weights are packed instead: the next call
    after a change is an error. Not detected on a GPU: a few values written through `.data` or a storage, and any change
    before the replay of a captured graph.

    TypeError: an object of no known kind. ValueError: an unexpected structure, or a difference above its bound; the
    message says what was found and what is accepted.
    """
    check_backend(backend)
    targets = _find_targets(obj)
    name = ", ".join(target.prefix + target.integration.name for target in targets)
    arguments = (_chosen_ops(name, targets, only), strict, verify, backend)
    if (existing := vars(obj).get(MARK)) is not None:
        return _existing_report(name, existing, arguments)
    plans = list[_Plan]()
    for target in targets:
        try:
            plans.append(_plan(target, *arguments))
        except (TypeError, ValueError) as error:
            if not target.prefix:
                raise
            raise type(error)(f"{target.prefix}{error}") from error
    versions = dict.fromkeys(plan.version for plan in plans if plan.version)
    backends = dict.fromkeys(plan.backend for plan in plans if plan.backend)
    patched = tuple(row for plan in plans for row in plan.patched)
    skipped = tuple(row for plan in plans for row in plan.skipped)
    patches, sites = PatchSet(), [site for plan in plans for site in plan.sites]
    used = ", ".join(backends) or "none"
    report = Report(name, ", ".join(versions) or None, __version__, used, patched, skipped, arguments, patches)
    if sites:
        owners = {id(owner): owner for owner in (*(target.obj for target in targets), obj)}
        sites += [(owner, MARK, report) for owner in owners.values()]
    patches.apply(sites)
    LOG.info("%s", report)
    return report


class _Target(NamedTuple):
    """An object of a known kind."""

    prefix: str  # its paths within the given object, and a colon; "": it is the given object
    obj: Any
    integration: Integration


class _Plan(NamedTuple):
    """The patches of one target."""

    patched: list[Patched]
    skipped: list[Skipped]
    sites: list[PatchSite]
    version: str | None
    backend: str | None = None


def _plan(target: _Target, chosen: Collection[str], strict: bool, verify: bool, backend: str) -> _Plan:
    prefix, obj, integration = target
    ops = [op for op in integration.ops if op in chosen]
    if MARK in vars(obj):
        raise ValueError(f"{integration.name} is accelerated by itself: call restore() of that report first")
    version = _package_version(integration, strict)
    disabled = f"{_settings.DISABLE}=1" if _settings.disabled() else None
    weight = None if disabled else integration.check(obj)
    if reason := disabled or (auto_skips(weight) if backend == "auto" else None):
        return _Plan([], [Skipped(op, prefix + reason) for op in ops], [], version)
    if weight is not None:
        backend = resolve_backend(backend, weight.device, weight.dtype)
    plan = _Plan([], [], [], version, backend)
    with torch.no_grad():
        for candidate in integration.candidates(obj, backend, ops):
            error, mismatch = _verified(candidate, verify)
            if mismatch is not None and strict:
                raise ValueError(f"{integration.name}: {candidate.op} cannot be patched: {mismatch}")
            if reason := candidate.unsupported or mismatch:
                plan.skipped.append(Skipped(candidate.op, prefix + reason))
                continue
            sites = list(candidate.sites)
            trains = any(isinstance(value, Replacement) and value.trainable() for _, _, value in sites)
            where = prefix + candidate.where + ", under torch.no_grad()" * trains
            plan.sites.extend(sites)
            plan.patched.append(Patched(candidate.op, where, len(sites), error, candidate.bound))
    return plan


def auto_skips(like: Tensor | None) -> str | None:
    """Why "auto" replaces nothing on the device and in the dtype of this tensor; None: it replaces.

    Without a tensor the device is the one that this process computes on.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu") if like is None else like.device
    dtype = torch.float32 if like is None else like.dtype
    if _settings.backend() != "auto" or resolve_backend("auto", device, dtype) == "triton":
        return None
    return (
        f'"auto" replaces nothing in {dtype} on a {device.type}, where no kernels run and plain PyTorch gains nothing: '
        'name backend="reference" or "triton"'
    )


def _verified(candidate: Candidate, verify: bool) -> tuple[float | None, str | None]:
    """The error of a candidate, None where it is not verified; and why it cannot be patched, or None."""
    if candidate.mismatch or candidate.unsupported or candidate.check is None or not verify:
        return None, candidate.mismatch
    try:
        error = difference(*candidate.check())
    except (TypeError, ValueError, RuntimeError) as refused:
        return None, f"it fails on sample inputs: {refused}"
    if error <= candidate.bound:
        return error, None
    return error, f"differs from the original by {error:.1e}, more than the bound of {candidate.bound:.0e}"


def difference(new: object, old: object) -> float:
    """The largest difference, relative to the largest magnitude of `old`.

    Integers: 0 or inf. NaN in one of them alone: inf. Tuples and lists: the largest of their members.
    """
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
    error, largest = (new.double() - old.double()).abs().amax().item(), old.double().abs().amax().item()
    if error == 0:
        return 0.0
    return error / largest if largest > 0 and error < float("inf") else float("inf")


def known_integrations() -> list[Integration]:
    """Every integration, in the order in which `accelerate` asks them."""
    found: list[Integration] = []
    for name in INTEGRATIONS:
        found += importlib.import_module(f"zonos2_triton.model.integrations.{name}").INTEGRATIONS
    return found


def _find_targets(obj: object) -> list[_Target]:
    """The object itself, or the modules within it that are of a known kind. TypeError: there are none."""
    integrations, found = known_integrations(), dict[int, tuple[list[str], Any, Integration]]()

    def visit(path: str, at: Any, parents: tuple[Any, ...]) -> None:
        parents = (*parents, at)
        known = next((each for each in integrations if hasattr(at, "__dict__") and each.recognises(at)), None)
        if known is not None:
            for owner in parents:
                _check_owner(f"{path}: " * bool(path), owner)
            found.setdefault(id(at), ([], at, known))[0].append(path)
            return
        for name, child in _modules(at).items():
            if child is not None and child not in parents:
                visit(f"{path}.{name}".lstrip("."), child, parents)

    visit("", obj, ())
    if not found:
        kind = f"{type(obj).__module__}.{type(obj).__qualname__}"
        raise TypeError(f"accelerate: {kind} is of no known kind; known: {KNOWN}")
    return [_Target(", ".join(paths) + ": " * any(paths), at, known) for paths, at, known in found.values()]


def _modules(at: Any) -> Mapping[str, nn.Module | None]:
    """The direct children of a module, or the modules that another object, such as a pipeline, has as attributes."""
    if isinstance(at, nn.Module):
        return at._modules
    attributes = {} if isinstance(at, ModuleType | type) else getattr(at, "__dict__", {})
    return {name: value for name, value in attributes.items() if isinstance(value, nn.Module)}


def _check_owner(at: str, owner: Any) -> None:
    """ValueError: the owner runs something else than the modules that it holds."""
    if is_compiled(owner):
        raise ValueError(f"{at}{type(owner).__name__} is compiled already: accelerate first, then compile")
    if isinstance(owner, nn.DataParallel) and len(owner.device_ids) > 1:
        raise ValueError(f"{at}DataParallel copies it to other devices at each call: accelerate and call its .module")


def _chosen_ops(name: str, targets: Sequence[_Target], only: Collection[str] | None) -> frozenset[str]:
    ops = dict.fromkeys(op for target in targets for op in target.integration.ops)
    if only is None:
        return frozenset(ops)
    if isinstance(only, str):
        only = (only,)
    if unknown := sorted(set(only) - set(ops)):
        raise ValueError(f"only: {name} has no operation {unknown[0]!r}; it has {', '.join(ops)}")
    if not only:
        raise ValueError(f"only: names no operation; {name} has {', '.join(ops)}")
    return frozenset(only)


def _existing_report(name: str, existing: Any, arguments: tuple[Any, ...]) -> Report:
    made_by = getattr(existing, "version", None)
    if made_by != __version__ or not isinstance(existing, Report):
        versions = f"zonos2-triton {made_by}, this is {__version__}"
        raise ValueError(f"{name} was accelerated by {versions}: call restore() of its report first")
    if existing.arguments != arguments:
        raise ValueError(f"{name} is accelerated already, with other arguments: call report.restore() first")
    return existing


def _package_version(integration: Integration, strict: bool) -> str | None:
    if integration.package is None:
        return None
    try:
        found = version(integration.package)
    except PackageNotFoundError:  # run from a source tree
        return None
    if integration.versions is not None:
        low, high = integration.versions
        if not _numbers(low) <= _numbers(found) < _numbers(high):
            what = f"{integration.name}: {integration.package} {found}"
            text = f"{what} is none of the versions {low} to below {high} that this knows"
            if strict:
                raise ValueError(f"{text}; strict=False goes by its structure alone")
            LOG.warning("%s; going by its structure alone", text)
    return found


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"(?:^|\.)(\d+)", text)))
