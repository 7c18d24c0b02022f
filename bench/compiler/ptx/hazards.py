"""Hazards of shared memory: accesses of two warps that no barrier orders, and copies that are read before they arrive.

A warp's own accesses are in order. A barrier orders all threads; of a named one that some threads wait at, too, so that
hazards between other threads around it are not found. An asynchronous copy arrives when the thread that issued it has
waited for it; another warp sees it after a barrier more.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from zonos2_triton.bench.compiler.ptx.memory import LANES
from zonos2_triton.bench.compiler.ptx.parse import Instruction, PtxError

Array = npt.NDArray[Any]
SEVERAL = -1


class Hazard(PtxError):
    """Two accesses to shared memory whose order is open; the message names both instructions."""


class Hazards:
    """Who accessed each byte since the last barrier. Arrays are [1 | programs, bytes]; instructions count from 1."""

    def __init__(self, kernel: str, code: Sequence[Instruction], size: int) -> None:
        self._kernel, self._code = kernel, code
        self.writer, self.reader, self.arriving = (np.zeros((1, size), np.int32) for _ in range(3))
        self.writer_warp, self.reader_warp = (np.zeros((1, size), np.int16) for _ in range(2))

    def mapped(self, change: Callable[[Array], Array]) -> "Hazards":
        """A copy whose arrays are changed so."""
        return self.combined(self, lambda mine, _: change(mine).copy())

    def combined(self, other: "Hazards", change: Callable[[Array, Array], Array]) -> "Hazards":
        """Both as one."""
        found = Hazards(self._kernel, self._code, 0)
        for name in ("writer", "reader", "arriving", "writer_warp", "reader_warp"):
            setattr(found, name, change(getattr(self, name), getattr(other, name)))
        return found

    def barrier(self) -> None:
        """All threads have reached a barrier."""
        self.writer[:] = 0
        self.reader[:] = 0

    def read(self, pc: int, place: Array, on: Array | None, width: int) -> None:
        """place, on: first bytes and active threads, [1 | programs, threads]. Hazard: see the class."""
        at, warp = self._bytes(place, on, width)
        self._check(pc, self.arriving[at] > 0, self.arriving, at, "reads what", "copies and what has not arrived")
        other = (self.writer[at] > 0) & (self.writer_warp[at] != warp)
        self._check(pc, other, self.writer, at, "reads what", "writes in another warp, with no barrier between")
        fresh = self.reader[at] == 0
        self.reader_warp[at] = np.where(fresh | (self.reader_warp[at] == warp), warp, SEVERAL)
        mixed = self.reader_warp[at] != warp
        self.reader_warp[tuple(axis[mixed] for axis in at)] = SEVERAL
        self.reader[at] = pc + 1

    def write(self, pc: int, place: Array, on: Array | None, width: int, arrives: bool = True) -> None:
        """arrives: at once; otherwise an asynchronous copy, which `arrive` ends."""
        at, warp = self._bytes(place, on, width)
        self._check(pc, self.arriving[at] > 0, self.arriving, at, "overwrites what", "copies and what has not arrived")
        for who, whose, verb in ((self.reader, self.reader_warp, "reads"), (self.writer, self.writer_warp, "writes")):
            other = (who[at] > 0) & (whose[at] != warp)
            self._check(pc, other, who, at, "overwrites what", f"{verb} in another warp, with no barrier between")
        self.writer[at], self.writer_warp[at] = pc + 1, warp
        if not arrives:
            self.arriving[at] = pc + 1

    def arrive(self, pc: int, place: Array, on: Array | None, width: int) -> None:
        """A copy that instruction pc issued has arrived."""
        at, warp = self._bytes(place, on, width)
        self.arriving[at] = 0
        self.writer[at], self.writer_warp[at] = pc + 1, warp

    def _bytes(self, place: Array, on: Array | None, width: int) -> tuple[tuple[Array, Array], Array]:
        """Index of each byte, and the warp that accesses it."""
        if len(place) > len(self.writer):
            for name in ("writer", "reader", "arriving", "writer_warp", "reader_warp"):
                setattr(self, name, np.repeat(getattr(self, name), len(place), 0))
        rows = len(self.writer)
        shape = (rows, place.shape[1])
        lanes = np.broadcast_to(place, shape)
        active = np.ones(shape, bool) if on is None else np.broadcast_to(on, shape)
        row, thread = np.nonzero(active)
        first = lanes[row, thread]
        columns = first[:, None] + np.arange(width)
        return (np.broadcast_to(row[:, None], columns.shape), columns), np.broadcast_to(
            (thread // LANES).astype(np.int16)[:, None], columns.shape
        )

    def _check(self, pc: int, wrong: Array, who: Array, at: tuple[Array, Array], verb: str, how: str) -> None:
        if wrong.any():
            other = self._code[int(who[at][wrong][0]) - 1]
            byte = int(at[1][wrong][0])
            here = self._code[pc]
            raise Hazard(f"{self._kernel}: {here.where()} {verb} {other.where()} {how} (byte {byte} of shared memory)")
