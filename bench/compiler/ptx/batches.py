"""Batches: programs whose registers lie in the same arrays, the paths of their threads, how they part and meet."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from zonos2_triton.bench.compiler.ptx.counts import TRAFFIC
from zonos2_triton.bench.compiler.ptx.hazards import Hazards
from zonos2_triton.bench.compiler.ptx.memory import LANES

Array = npt.NDArray[Any]
_TRAFFIC = {name: i for i, name in enumerate(TRAFFIC)}


@dataclass
class Transfers:
    """Asynchronous copies between two commits."""

    bytes: int = 0  # of the program that has the most
    ready: float = 0
    copies: list[Any] = field(default_factory=list)  # (instruction, addresses, mask, bytes, values)


@dataclass
class Path:
    """Threads of a batch that are at one instruction."""

    pc: int
    mask: Array | None = None  # [1 | programs, threads]; None: all
    time: float = 0
    depth: int = 0
    waits: tuple[int, int] | None = None  # at a barrier: its number, and the threads that it needs (0: all)
    groups: list[Transfers] = field(default_factory=lambda: [Transfers()])  # the last is open
    stored: bool = False  # to global memory, since the last release
    _warps: Array | None = None

    def warps(self, threads: int) -> Array:
        """Which warps have a thread here: [1 | programs, warps]."""
        found = self._warps
        if found is None:
            mask = np.ones((1, threads), bool) if self.mask is None else self.mask
            found = self._warps = np.asarray(mask.reshape(len(mask), -1, LANES).any(2))
        return found


@dataclass
class Batch:
    """Programs whose registers lie in the same arrays."""

    programs: Array  # numbers in the grid, x fastest
    registers: list[Array | None]
    ready: list[float]  # by register: the clock at which its value is there
    depth: list[int]  # by register: global round trips behind its value
    paths: list[Path]
    classes: Array  # [1 | programs, classes, warps]
    traffic: Array  # [1 | programs, kinds]
    live: Array  # [programs]
    shared: Array  # [1 | programs, bytes]
    word_ready: Array  # [words of shared memory]
    word_depth: Array
    any_ready: float = 0  # of words whose address differs between programs
    any_depth: int = 0
    cycles: float = 0
    trips: int = 0
    hazards: Hazards | None = None  # None: not looked for

    def add(self, kind: str, n: Any) -> None:
        """Adds a number, or one for each program."""
        if isinstance(n, np.ndarray) and n.size > 1 and len(self.traffic) == 1:
            self.traffic = np.repeat(self.traffic, len(self.programs), 0)
        self.traffic[:, _TRAFFIC[kind]] += n


Handler = Callable[[Batch, Path, float, int], "tuple[float, int] | None"]
"""Runs an instruction for a path; its inputs are there at that clock, after so many round trips. Returns both for its
result, where they are not those of its class."""


def merged(a: Batch, b: Batch) -> Batch | None:
    """Both as one, or None: they are not at the same instruction in the same state."""
    if len(a.paths) != 1 or len(b.paths) != 1:
        return None
    p, q = a.paths[0], b.paths[0]
    if p.pc != q.pc or len(p.groups) != len(q.groups) or (p.mask is None) != (q.mask is None):
        return None
    if any(group.copies for group in (*p.groups, *q.groups)):
        return None
    na, nb = len(a.programs), len(b.programs)
    order = np.argsort(np.concatenate([a.programs, b.programs]), kind="stable")

    def both(x: Array, y: Array) -> Array:
        if x is y or (len(x) == 1 and len(y) == 1 and x.shape == y.shape and (x == y).all()):
            return x
        width = (max(x.shape[1], y.shape[1]), *x.shape[2:])
        return np.concatenate([np.broadcast_to(x, (na, *width)), np.broadcast_to(y, (nb, *width))])[order]

    registers = [
        x if x is y else both(_or_zero(x, y), _or_zero(y, x)) for x, y in zip(a.registers, b.registers, strict=True)
    ]
    groups = [Transfers(max(g.bytes, h.bytes), max(g.ready, h.ready)) for g, h in zip(p.groups, q.groups, strict=True)]
    mask = None if p.mask is None or q.mask is None else both(p.mask, q.mask)
    path = Path(p.pc, mask, max(p.time, q.time), max(p.depth, q.depth), None, groups, p.stored | q.stored)
    return Batch(
        np.concatenate([a.programs, b.programs])[order],
        registers,
        list(map(max, a.ready, b.ready)),
        list(map(max, a.depth, b.depth)),
        [path],
        both(a.classes, b.classes),
        both(a.traffic, b.traffic),
        np.concatenate([a.live, b.live])[order],
        both(a.shared, b.shared),
        np.maximum(a.word_ready, b.word_ready),
        np.maximum(a.word_depth, b.word_depth),
        max(a.any_ready, b.any_ready),
        max(a.any_depth, b.any_depth),
        max(a.cycles, b.cycles),
        max(a.trips, b.trips),
        a.hazards.combined(b.hazards, both) if a.hazards and b.hazards else None,
    )


def taken_from(batch: Batch, chosen: Array) -> Batch:
    """A batch of these programs."""

    def rows(x: Array) -> Array:
        return x if len(x) == 1 else x[chosen]

    paths = []
    for path in batch.paths:
        mask = None if path.mask is None else rows(path.mask)
        groups = [Transfers(g.bytes, g.ready, [_copy_of(copy, rows) for copy in g.copies]) for g in path.groups]
        paths.append(Path(path.pc, mask, path.time, path.depth, path.waits, groups, path.stored))
    return Batch(
        batch.programs[chosen],
        [None if x is None else rows(x) for x in batch.registers],
        list(batch.ready),
        list(batch.depth),
        paths,
        rows(batch.classes).copy(),
        rows(batch.traffic).copy(),
        batch.live[chosen],
        rows(batch.shared).copy(),
        batch.word_ready.copy(),
        batch.word_depth.copy(),
        batch.any_ready,
        batch.any_depth,
        batch.cycles,
        batch.trips,
        batch.hazards.mapped(rows) if batch.hazards else None,
    )


def _copy_of(copy: Any, rows: Callable[[Array], Array]) -> Any:
    pc, place, on, size, values = copy
    return (
        pc,
        rows(place),
        None if on is None else rows(on),
        size,
        None if values is None else [rows(value) for value in values],
    )


def joined_groups(a: list[Transfers], b: list[Transfers]) -> list[Transfers]:
    """The groups of two paths that become one, newest last."""
    n = max(len(a), len(b))
    a, b = ([Transfers() for _ in range(n - len(each))] + each for each in (a, b))
    return [
        g if g is h else Transfers(g.bytes + h.bytes, max(g.ready, h.ready), g.copies + h.copies)
        for g, h in zip(a, b, strict=True)
    ]


def _or_zero(found: Array | None, like: Array | None) -> Array:
    """A register that one side has not written, zero."""
    if found is not None:
        return found
    return np.zeros((1, 1), np.uint32 if like is None else like.dtype)


def predicate(found: Array | None) -> Array:
    return np.zeros((1, 1), bool) if found is None else found


def either(a: Array | None, b: Array | None) -> Array | None:
    return None if a is None or b is None else a | b


def threads_of(path: Path, threads: int) -> Array:
    return np.array([threads]) if path.mask is None else path.mask.sum(1)
