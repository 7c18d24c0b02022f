"""One launch a frame: the frame of each size of batch, captured once and replayed."""

import logging
from collections.abc import Callable
from typing import Any

import torch

LOG = logging.getLogger("zonos2_triton")

Call = Callable[[], None]
Capture = Callable[[Call], Call]  # what was called -> what calls it again


def buckets(most: int) -> list[int]:
    """Sizes of batches: 1, 2, 4, 8, then multiples of 8; the last holds `most`."""
    sizes = [1, 2, 4, *range(8, most + 8, 8)]
    return [size for i, size in enumerate(sizes) if i == 0 or sizes[i - 1] < most]


class Graphs:
    """Calls frame(rows) by a graph of the smallest bucket that holds the rows; frame(rows) itself where that fails.

    The rows that a bucket has beyond those asked for must be idle.
    """

    def __init__(self, frame: Callable[[int], None], most: int, capture: Capture | None) -> None:
        """capture None: there are no graphs here."""
        self.frame, self.buckets, self._capture = frame, buckets(most), capture
        self.captured: dict[int, Call] = {}

    def run(self, rows: int) -> None:
        if self._capture is None:
            self.frame(rows)
            return
        size = next(bucket for bucket in self.buckets if bucket >= rows)
        if size not in self.captured:
            self._add(size, self._capture)
        self.captured.get(size, lambda: self.frame(rows))()

    def capture_all(self) -> None:
        """Now, the largest first: the others find room in its memory."""
        for size in reversed(self.buckets):
            if self._capture is not None and size not in self.captured:
                self._add(size, self._capture)

    def forget(self) -> None:
        """What was captured is out of date."""
        self.captured.clear()

    def _add(self, size: int, capture: Capture) -> None:
        try:
            self.captured[size] = capture(lambda: self.frame(size))
        except Exception as error:  # whatever it is, a frame can be run without
            LOG.warning(
                "CUDA graphs are off: capturing the frame of %d rows failed (%s: %s); frames are launched one kernel "
                "after the other", size, type(error).__name__, error,
            )  # fmt: skip
            self._capture = None
            self.captured.clear()


class CudaCapture:
    """Captures with one pool of memory for all graphs: they never run at the same time."""

    def __init__(self, idle: Callable[[], Any]) -> None:
        """idle: a context in which all rows are idle, so that a call changes nothing."""
        self._idle, self._pool = idle, torch.cuda.graph_pool_handle()

    def __call__(self, call: Call) -> Call:
        with self._idle():
            for _ in range(2):  # kernels are compiled and loaded by their first launch, which no graph can hold
                call()
        torch.cuda.current_stream().synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=torch.cuda.current_stream(),
                              capture_error_mode="thread_local"):  # fmt: skip
            call()
        return graph.replay
