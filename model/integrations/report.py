"""What became of an object that was accelerated."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from zonos2_triton.model.integrations.patching import Swaps
from zonos2_triton.model.tables import fitted, text_table


@dataclass(frozen=True)
class Swapped:
    """An operation that kernels compute now: where, in how many places, and how far it was from the original."""

    op: str
    where: str
    places: int
    error: float | None  # largest difference over the largest magnitude of the original; None: not verified
    bound: float


@dataclass(frozen=True)
class Left:
    """An operation that stayed as it was, and why."""

    op: str
    reason: str


@dataclass(frozen=True, eq=False)
class Report:
    """What was swapped and what was left. `restore()` puts every attribute back; a `with` block does so at its end."""

    host: str
    host_version: str | None
    version: str  # of this package
    backend: str
    swapped: Sequence[Swapped]
    left: Sequence[Left]
    asked: tuple[Any, ...] = field(repr=False, default=())  # the arguments that made it
    swaps: Swaps = field(repr=False, default_factory=Swaps)

    @property
    def max_error(self) -> float | None:
        """The largest error of the verified operations; None: nothing was verified."""
        return max((swap.error for swap in self.swapped if swap.error is not None), default=None)

    def restore(self) -> None:
        """Every attribute as it was, the very same objects. Nothing happens the second time."""
        self.swaps.undo()

    def __enter__(self) -> "Report":
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()

    def as_dict(self) -> dict[str, Any]:
        names = ("host", "host_version", "version", "backend", "max_error")
        rows = {"swapped": [asdict(swap) for swap in self.swapped], "left": [asdict(left) for left in self.left]}
        return {name: getattr(self, name) for name in names} | rows

    def json(self) -> str:
        return json.dumps(self.as_dict(), indent=2)

    def __str__(self) -> str:
        rows = [("operation", "where", "places", "error", "bound")]
        for swap in self.swapped:
            error = "not verified" if swap.error is None else f"{swap.error:.1e}"
            rows.append((swap.op, swap.where, str(swap.places), error, f"{swap.bound:.0e}"))
        left = [(left.op, f"left: {left.reason}") for left in self.left]
        least = [max(len(row[0]) for row in [*rows, *left])]
        tables = text_table(rows, least=least), *([text_table(left, heads=False, least=least)] if left else ())
        title, n = " ".join(filter(None, (self.host, self.host_version))), len(self.swapped)
        error = "not verified" if self.max_error is None else f"largest error {self.max_error:.1e}"
        counted = (
            f"{n} operation{'s' * (n != 1)} by the {self.backend} backend, {error}" if n else "nothing is replaced"
        )
        return fitted("\n".join([f"{title}: {counted}", *tables]))
