"""The report of `accelerate`: which operations were patched or skipped."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from zonos2_triton.model.integrations.patching import PatchSet
from zonos2_triton.model.tables import fitted, text_table


@dataclass(frozen=True)
class Patched:
    """An operation that was replaced."""

    op: str
    where: str
    sites: int  # number of attributes that were replaced
    error: float | None  # largest difference over the largest magnitude of the original; None: not verified
    bound: float


@dataclass(frozen=True)
class Skipped:
    """An operation that stays as it was, and why."""

    op: str
    reason: str


@dataclass(frozen=True, eq=False)
class Report:
    """The patched and the skipped operations. `restore()` undoes all; a `with` block calls it at its end."""

    integration: str
    package_version: str | None
    version: str  # of zonos2-triton
    backend: str
    patched: Sequence[Patched]
    skipped: Sequence[Skipped]
    arguments: tuple[Any, ...] = field(repr=False, default=())  # of the call that made it
    patches: PatchSet = field(repr=False, default_factory=PatchSet)

    @property
    def max_error(self) -> float | None:
        """The largest error of the verified operations; None: nothing was verified."""
        return max((patch.error for patch in self.patched if patch.error is not None), default=None)

    def restore(self) -> None:
        """Put the original attributes back, the same objects. A second call does nothing."""
        self.patches.undo()

    def __enter__(self) -> "Report":
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()

    def as_dict(self) -> dict[str, Any]:
        names = ("integration", "package_version", "version", "backend", "max_error")
        rows = {"patched": [asdict(row) for row in self.patched], "skipped": [asdict(row) for row in self.skipped]}
        return {name: getattr(self, name) for name in names} | rows

    def json(self) -> str:
        return json.dumps(self.as_dict(), indent=2)

    def __str__(self) -> str:
        rows = [("operation", "where", "sites", "error", "bound")]
        for patch in self.patched:
            error = "not verified" if patch.error is None else f"{patch.error:.1e}"
            rows.append((patch.op, patch.where, str(patch.sites), error, f"{patch.bound:.0e}"))
        skipped = [(row.op, f"skipped: {row.reason}") for row in self.skipped]
        least = [max(len(row[0]) for row in [*rows, *skipped])]
        tables = text_table(rows, least=least), *([text_table(skipped, heads=False, least=least)] if skipped else ())
        title, n = " ".join(filter(None, (self.integration, self.package_version))), len(self.patched)
        error = "not verified" if self.max_error is None else f"largest error {self.max_error:.1e}"
        counted = f"{n} operation{'s' * (n != 1)} by the {self.backend} backend, {error}"
        return fitted("\n".join([f"{title}: {counted if n else 'nothing is replaced'}", *tables]))
