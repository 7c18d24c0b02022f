"""Memory of the machine: tensors by address, banks of shared memory, sectors of global memory."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BANKS, WORD, SECTOR, LANES = 32, 4, 32, 32
UINT = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


def wavefronts(addresses: np.ndarray, active: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Wavefronts of each warp's access to shared memory, and how many would do without conflicts: [warps] each.

    addresses, active  [warps, 32], in bytes
    width              bytes a lane: 8 go in two halves of a warp, 16 in four quarters, 32 twice as often as 16

    A word that several lanes of a phase access is one access to its bank.
    """
    unit = min(max(width, WORD), 16)
    slots = BANKS * WORD // unit  # accesses that one wavefront serves
    phases = addresses.reshape(-1, slots) // unit
    on = active.reshape(-1, slots)
    bank = phases % slots
    key = np.where(on, bank * (1 << 40) + phases, -1)
    key.sort(axis=1)
    new = np.ones(key.shape, bool)
    new[:, 1:] = key[:, 1:] != key[:, :-1]
    new &= key >= 0
    place = np.arange(len(key))[:, None] * slots + (key >> 40)
    per_bank = np.bincount(place[new], minlength=len(key) * slots).reshape(len(key), slots)
    times = -(-width // 16) if width > 16 else 1
    shape = len(addresses), LANES // slots
    return times * per_bank.max(1).reshape(shape).sum(1), times * on.any(1).reshape(shape).sum(1)


def sectors(addresses: np.ndarray, active: np.ndarray | None, width: int) -> np.ndarray:
    """Sectors of 32 bytes that each warp's access to global memory touches: [warps]. None: all lanes are active."""
    first = addresses >> 5
    if active is not None:
        on = active.any(1)
        filler = np.where(on, first[np.arange(len(first)), active.argmax(1)], 0)[:, None]
        first = np.where(active, first, filler)
    if (addresses % width).any():  # narrow types may lie across sectors
        first = np.concatenate([first, (addresses + width - 1) >> 5], 1)
    change = first[:, 1:] != first[:, :-1]
    if (first[:, 1:] < first[:, :-1]).any():
        first = np.sort(first, axis=1)
        change = first[:, 1:] != first[:, :-1]
    found = change.sum(1) + 1
    return found if active is None else np.where(on, found, 0)


@dataclass
class Segment:
    """The memory of one tensor. Without data, loads give zero and stores vanish."""

    name: str
    base: int
    size: int
    data: np.ndarray | None  # bytes
    whole: bool = True  # stores count even where floats have no values: it holds integers

    @property
    def end(self) -> int:
        return self.base + self.size


class OutOfBounds(Exception):
    """An address that lies in no tensor."""


class GlobalMemory:
    """The tensors of a launch."""

    def __init__(self, segments: Sequence[Segment]) -> None:
        self.segments = list(segments)

    def owner(self, low: int, high: int) -> Segment | None:
        """A segment that holds low..high, or None."""
        return next((each for each in self.segments if each.base <= low and high <= each.end), None)

    def check(self, addresses: np.ndarray, width: int) -> Segment | None:
        """The one segment of all addresses, None: they lie in several. OutOfBounds: some lie in none."""
        low, high = int(addresses.min()), int(addresses.max())
        if (addresses & np.uint64(width - 1)).any():
            raise OutOfBounds(f"an address that is no multiple of its {width} bytes")
        if found := self.owner(low, high + width):
            return found
        left = addresses.reshape(-1)
        for each in self.segments:
            left = left[(left < each.base) | (left + np.uint64(width) > each.end)]
            if not left.size:
                return None
        raise OutOfBounds(self.describe(int(left[0]), width))

    def describe(self, address: int, width: int) -> str:
        near = min(self.segments, key=lambda each: max(each.base - address, address + width - each.end), default=None)
        if near is None:
            return f"address {address:#x}, and the launch has no tensors"
        side = f"{near.base - address} bytes before" if address < near.base else f"{address - near.base} bytes into"
        return f"{width} bytes that lie {side} {near.name}, which has {near.size} bytes"

    def load(self, addresses: np.ndarray, width: int) -> np.ndarray:
        """Values of `width` bytes at flat addresses that `check` has passed."""
        values = np.zeros(addresses.shape, UINT[width])
        for each, here in self._places(addresses, width):
            if each.data is not None:
                at = (addresses[here] - np.uint64(each.base)).astype(np.int64)
                values[here] = _typed(each.data, at, width)
        return values

    def store(self, addresses: np.ndarray, values: np.ndarray, width: int) -> None:
        """Later values win where addresses are the same."""
        for each, here in self._places(addresses, width):
            if each.data is not None:
                at = (addresses[here] - np.uint64(each.base)).astype(np.int64)
                found = values[here].astype(UINT[width])
                if _aligned(each.data, width):
                    each.data[: each.size - each.size % width].view(UINT[width])[at // width] = found
                else:
                    for byte in range(width):
                        each.data[at + byte] = (found >> UINT[width](8 * byte)).astype(np.uint8)

    def _places(self, addresses: np.ndarray, width: int):  # type: ignore[no-untyped-def]
        if not addresses.size:
            return
        if found := self.owner(int(addresses.min()), int(addresses.max()) + width):
            yield found, slice(None)
            return
        left = np.ones(addresses.shape, bool)
        for each in self.segments:
            here = left & (addresses >= each.base) & (addresses + np.uint64(width) <= each.end)
            if here.any():
                yield each, here
                left &= ~here


def _aligned(data: np.ndarray, width: int) -> bool:
    return data.ctypes.data % width == 0


def _typed(data: np.ndarray, at: np.ndarray, width: int) -> np.ndarray:
    if _aligned(data, width):
        return data[: len(data) - len(data) % width].view(UINT[width])[at // width]
    found = np.zeros(at.shape, UINT[width])
    for byte in range(width):
        found |= data[at + byte].astype(UINT[width]) << UINT[width](8 * byte)
    return found
