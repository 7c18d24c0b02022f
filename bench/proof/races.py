"""Races between the programs and threads of one launch, found while they run one after another.

Atomics order two programs of one launch. One with release semantics publishes everything that its program did before
its last `tl.debug_barrier()`, and had learned itself. Later work may belong to threads that have not got there yet.
One with acquire semantics on the same address learns what was published there. A scalar learns it at once, because
Triton hands its result to all threads through a barrier; a block learns it after the next barrier.
`sem="relaxed"` and `scope="cta"` order nothing. Scalar atomics of a program count as made by one thread.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Addresses = NDArray[np.uint64]


class DataRace(RuntimeError):
    """A kernel's result depends on which of its programs or threads comes first."""


# Accesses by what they conflict with. A scalar atomic is made by one thread, a block of them by all threads of a
# program: only the latter needs a barrier before another atomic can publish it.
LOAD, STORE, ATOMIC, ATOMIC_BLOCK = range(4)
CONFLICTS = {
    LOAD: (STORE, ATOMIC, ATOMIC_BLOCK),
    STORE: (STORE, LOAD, ATOMIC, ATOMIC_BLOCK),
    ATOMIC: (STORE, LOAD),
    ATOMIC_BLOCK: (STORE, LOAD),
}
DOES = {LOAD: "loads", STORE: "stores", ATOMIC: "atomically updates", ATOMIC_BLOCK: "atomically updates"}
DID = {LOAD: "loaded", STORE: "stored", ATOMIC: "atomically updated", ATOMIC_BLOCK: "atomically updated"}

# A stamp is who << EVENT_BITS | event: program + 1 (0: no program), and its barriers or scalar atomics until then.
EVENT_BITS = 32
EVENT = (1 << EVENT_BITS) - 1
ALL = 1 << EVENT_BITS  # more than any event


@dataclass(eq=False)
class Memory:
    """The extent of a tensor argument, or of several that overlap, with the last access of each kind to each element.

    Stamps cost nothing until touched, as the system zeroes pages on demand. `displaced` holds the loads and atomics
    that a later one replaced without being ordered after it: a store has to be ordered after all of them.
    """

    start: int
    end: int
    itemsize: int
    names: str
    stamps: dict[int, Ints] = field(default_factory=dict)
    displaced: dict[int, list[tuple[Ints, Ints]]] = field(default_factory=dict)

    def elements(self, addresses: Addresses) -> Ints:
        return ((addresses - np.uint64(self.start)) // np.uint64(self.itemsize)).view(np.int64)

    def stamps_of(self, kind: int) -> Ints:
        if kind not in self.stamps:
            self.stamps[kind] = np.zeros(-(-(self.end - self.start) // self.itemsize), np.int64)
        return self.stamps[kind]

    def displaced_at(self, kind: int, elements: Ints) -> tuple[Ints, Ints]:
        where, stamps = (np.concatenate(parts) for parts in zip(*self.displaced[kind], strict=True))
        self.displaced[kind] = [(where, stamps)]
        hit = np.isin(where, elements)
        return where[hit], stamps[hit]


class History:
    """Who did what in one launch, and what the program that runs now knows of it.

    Programs run one after another, so an earlier access is never ordered after a later one, and two accesses race
    unless the later program knows of the earlier event. `clock[kind is ATOMIC, who]` counts the events known.
    """

    def __init__(self, kernel: str, grid: tuple[int, ...]) -> None:
        self.kernel, self.grid = kernel, grid
        self.published: dict[int, Ints] = {}  # clocks by address, never changed in place

    def begin(self, program: int) -> None:
        self.who, self.segment, self.atomics = program + 1, 0, 0
        self.clock = np.zeros((2, math.prod(self.grid) + 1), np.int64)
        self.clock[:, [0, self.who]] = ALL
        self.pending: list[Ints] = []

    def barrier(self) -> None:
        self.segment += 1
        self._learn(self.pending)
        self.pending = []

    def _learn(self, clocks: Iterable[Ints]) -> None:
        for clock in clocks:
            np.maximum(self.clock, clock, out=self.clock)

    def acquire(self, addresses: list[int], scalar: bool) -> None:
        found = {id(clock): clock for a in addresses if (clock := self.published.get(a)) is not None}
        if scalar:
            self._learn(found.values())
        else:
            self.pending.extend(found.values())

    def release(self, addresses: list[int]) -> None:
        mine = self.clock.copy()
        mine[:, self.who] = self.segment, self.atomics
        merged: dict[int, tuple[Ints, Ints]] = {}  # many lanes share few clocks; the old ones are kept for their ids
        for a in addresses:
            old = self.published.get(a, mine)
            if id(old) not in merged:
                merged[id(old)] = old, np.maximum(old, mine)
            self.published[a] = merged[id(old)][1]

    def access(self, kind: int, memory: Memory, elements: Ints) -> None:
        for other in CONFLICTS[kind]:
            if other not in memory.stamps:
                continue
            last = memory.stamps[other][elements]
            if not last.any():
                continue
            self._compare(kind, other, memory, elements, last)
            if kind == STORE and other in memory.displaced:
                self._compare(kind, other, memory, *memory.displaced_at(other, elements))
        stamps = memory.stamps_of(kind)
        if kind != STORE:
            last = stamps[elements]
            late = self._unordered(kind, last)
            if late.any():
                memory.displaced.setdefault(kind, []).append((elements[late], last[late]))
        stamps[elements] = self._stamp(kind)
        self.atomics += kind == ATOMIC

    def _stamp(self, kind: int) -> int:
        return self.who << EVENT_BITS | (self.atomics if kind == ATOMIC else self.segment)

    def _unordered(self, kind: int, stamps: Ints) -> NDArray[np.bool_]:
        return (stamps & EVENT) >= self.clock[int(kind == ATOMIC)][stamps >> EVENT_BITS]

    def _compare(self, kind: int, other: int, memory: Memory, elements: Ints, stamps: Ints) -> None:
        """Raises where an access of this kind, now, meets one of the other kind that nothing orders before it."""
        late = self._unordered(other, stamps)
        if late.any():
            whose = f"{self._program(int(stamps[late][0]) >> EVENT_BITS)} {DID[other]}"
            both = f"{DOES[kind]} {self._elements(memory, elements[late])} that {whose}"
            raise DataRace(f"{self.kernel}: {self._program(self.who)} {both}, and nothing orders the two")
        if kind in (LOAD, ATOMIC_BLOCK) and other in (STORE, ATOMIC_BLOCK):
            own = stamps == self._stamp(other)
            if own.any():
                both = f"{DOES[kind]} {self._elements(memory, elements[own])} that it {DID[other]}"
                raise DataRace(f"{self.kernel}: {self._program(self.who)} {both}, with no tl.debug_barrier() between")

    def _elements(self, memory: Memory, elements: Ints) -> str:
        distinct = np.unique(elements)
        return f"{distinct.size} elements of {memory.names} (the first is {distinct[0]})"

    def _program(self, who: int) -> str:
        return f"program {tuple(int(i) for i in np.unravel_index(who - 1, self.grid))}"
