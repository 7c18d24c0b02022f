"""Hazards in shared memory: what is read before it has arrived, or while another warp may write it.

Between two barriers of the whole program, one warp must not read what another writes, in either order. A copy by
cp.async is under way from its issue to its wait: meanwhile nothing may read or write its place. Then it counts as a
write by the warp that waited, so that other warps need a barrier. Two warps may write the same place: Triton lets them
store copies of one value.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
LANES = 32


class Hazard(Exception):
    """(message, index of the earlier instruction)"""


class Hazards:
    """The accesses of some programs since their last barrier. Arrays are [1 | programs, granules].

    granule  bytes that are told apart: the narrowest access
    """

    def __init__(self, size: int, granule: int, warps: int) -> None:
        self.granule, self.warps, self.epoch = granule, warps, 1
        # writer and reader: epoch * (warps + 1) + warp; `warps` stands for several. under_way: pc + 1 of a copy.
        self.state = {
            name: np.zeros((1, size // granule + 1), np.int64)
            for name in ("writer", "writer_pc", "reader", "reader_pc", "under_way")
        }

    def barrier(self) -> None:
        self.epoch += 1

    def taken(self, rows: Callable[[Array], Array]) -> "Hazards":
        """Those of some of the programs."""
        return self._with({name: rows(x).copy() for name, x in self.state.items()})

    def merged(self, other: "Hazards", both: Callable[[Array, Array], Array]) -> "Hazards":
        """Those of these programs and others, which are at the same instruction."""
        later = max(self.epoch, other.epoch)
        mine, theirs = self._at(later), other._at(later)
        state = {name: both(mine[name], theirs[name]) for name in mine}
        rows = max(map(len, state.values()))
        merged = self._with({name: np.repeat(x, rows // len(x), 0) for name, x in state.items()})
        merged.epoch = later
        return merged

    def _at(self, epoch: int) -> dict[str, Array]:
        """The state with its epochs counted on, so that the current one is `epoch`."""
        state, behind = dict(self.state), (epoch - self.epoch) * (self.warps + 1)
        for name in ("writer", "reader"):
            state[name] = state[name] + behind
        return state

    def _with(self, state: dict[str, Array]) -> "Hazards":
        found = Hazards(0, self.granule, self.warps)
        found.epoch, found.state = self.epoch, state
        return found

    def _places(self, address: Array, on: Array | None, width: int) -> tuple[Any, Array]:
        """Index of the granules of an access, and the warp that each belongs to."""
        rows = max(len(address), 1 if on is None else len(on))
        if rows > len(self.state["writer"]):
            self.state = {name: np.repeat(x, rows, 0) for name, x in self.state.items()}
        shape = (len(self.state["writer"]), address.shape[1])
        address = np.broadcast_to(address, shape)
        row, thread = np.nonzero(np.broadcast_to(np.True_ if on is None else on, shape))
        each = np.arange(max(1, width // self.granule))
        granules = address[row, thread][:, None] // self.granule + each
        return (np.repeat(row, len(each)), granules.reshape(-1)), np.repeat(thread // LANES, len(each))

    def read(self, pc: int, address: Array, on: Array | None, width: int) -> None:
        """Hazard: a copy to it is under way, or another warp wrote it since the last barrier."""
        index, warp = self._places(address, on, width)
        self._nothing_under_way(index, "reads what this copy has not brought yet")
        key = self.epoch * (self.warps + 1)
        writer = self.state["writer"][index]
        self._none((writer >= key) & (writer != key + warp), "writer_pc", index, "reads what another warp wrote since")
        reader = self.state["reader"]
        before = reader[index]
        reader[index] = key + warp
        several = (before >= key) & (before != key + warp) | (reader[index] != key + warp)
        reader[index[0][several], index[1][several]] = key + self.warps
        self.state["reader_pc"][index] = pc

    def write(self, pc: int, address: Array, on: Array | None, width: int, copy: bool = False) -> None:
        """Hazard: a copy to it is under way, or another warp read it since the last barrier. copy: this starts one."""
        index, warp = self._places(address, on, width)
        self._nothing_under_way(index, "writes where this copy is under way")
        key = self.epoch * (self.warps + 1)
        reader = self.state["reader"][index]
        self._none(
            (reader >= key) & (reader != key + warp), "reader_pc", index, "writes what another warp may still read"
        )
        if copy:
            self.state["under_way"][index] = pc + 1
        else:
            self._note(index, warp, pc)

    def arrive(self, address: Array, on: Array | None, width: int) -> None:
        """A copy has been waited for."""
        index, warp = self._places(address, on, width)
        pc = self.state["under_way"][index] - 1
        self.state["under_way"][index] = 0
        self._note(index, warp, pc)

    def _note(self, index: Any, warp: Array, pc: Any) -> None:
        self.state["writer"][index] = self.epoch * (self.warps + 1) + warp
        self.state["writer_pc"][index] = pc

    def _nothing_under_way(self, index: Any, what: str) -> None:
        copy = self.state["under_way"][index]
        if copy.any():
            raise Hazard(what, int(copy[copy.argmax()]) - 1)

    def _none(self, wrong: Array, earlier: str, index: Any, what: str) -> None:
        if wrong.any():
            raise Hazard(what, int(self.state[earlier][index][wrong.argmax()]))
