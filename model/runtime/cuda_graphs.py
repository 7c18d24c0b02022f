"""One launch a frame: a CUDA graph for each batch size, captured once and replayed."""

import logging
from collections.abc import Callable
from typing import Any

import torch

LOG = logging.getLogger("zonos2_triton")

Call = Callable[[], None]
Capture = Callable[[Call], Call]  # a call -> a call that replays it


def buckets(most: int) -> list[int]:
    """Batch sizes that graphs are captured for: 1, 2, 4, 8, then multiples of 8, up to the first that holds `most`."""
    sizes = [1, 2, 4, *range(8, most + 8, 8)]
    return [size for i, size in enumerate(sizes) if i == 0 or sizes[i - 1] < most]


class Graphs:
    """Runs frame(batch_size) by the graph of the smallest bucket that holds the batch.

    The slots that a bucket adds must be idle. Where capture fails, frame(batch_size) is called itself.
    """

    def __init__(self, frame: Callable[[int], None], most: int, capture: Capture | None) -> None:
        """capture None: no graphs."""
        self.frame, self.buckets, self._capture = frame, buckets(most), capture
        self.captured: dict[int, Call] = {}

    def run(self, batch_size: int) -> None:
        if self._capture is None:
            self.frame(batch_size)
            return
        size = next(bucket for bucket in self.buckets if bucket >= batch_size)
        if size not in self.captured:
            self._add(size, self._capture)
        self.captured.get(size, lambda: self.frame(batch_size))()

    def capture_all(self) -> None:
        """Capture now. The largest comes first: the others fit into its memory."""
        for size in reversed(self.buckets):
            if self._capture is not None and size not in self.captured:
                self._add(size, self._capture)

    def forget(self) -> None:
        """Drop the captured graphs, which are out of date."""
        self.captured.clear()

    def _add(self, size: int, capture: Capture) -> None:
        try:
            self.captured[size] = capture(lambda: self.frame(size))
        except Exception as error:  # a frame runs without a graph, whatever the reason
            why = f"capturing the frame of a batch of {size} failed ({type(error).__name__}: {error})"
            LOG.warning("CUDA graphs are off: %s; frames are launched one kernel after the other", why)
            self._capture = None
            self.captured.clear()


class CudaCapture:
    """Captures CUDA graphs that share one memory pool, because they never run at the same time."""

    def __init__(self, idle: Callable[[], Any]) -> None:
        """idle: a context in which all slots are idle, so that a call changes nothing."""
        self._idle, self._pool = idle, torch.cuda.graph_pool_handle()

    def __call__(self, call: Call) -> Call:
        with self._idle():
            for _ in range(2):  # the first launch compiles and loads kernels, which no graph can hold
                call()
        stream = torch.cuda.current_stream()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"):
            call()
        return graph.replay
