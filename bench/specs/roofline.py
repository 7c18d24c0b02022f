"""The least time that a piece of work can take: bytes over the memory's bandwidth, operations over the matrix rate."""

from typing import NamedTuple


class Roofline(NamedTuple):
    """Rates of a GPU, measured or of its data sheet. None: not known."""

    gb_per_s: float | None  # of memory, reads and writes counted
    tflop_per_s: float | None  # of the matrix units, dense, half precision

    def floor_us(self, moved: float, flops: float) -> float | None:
        """Microseconds for so many bytes and operations, at the slower of the two; None: nothing is known."""
        times = [moved / self.gb_per_s / 1e3] if self.gb_per_s else []
        times += [flops / self.tflop_per_s / 1e6] if self.tflop_per_s else []
        return max(times, default=None)


UNKNOWN = Roofline(None, None)
