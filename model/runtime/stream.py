"""How a caller reads frames: one stream per request.

A consumer that blocks on a frame runs the scheduler step for all requests.
"""

import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import overload

from zonos2_triton.model.runtime.request import Frame, Generation, Request, to_generation
from zonos2_triton.model.runtime.scheduler import Scheduler

Progress = Callable[[int, Frame], None]  # (index of the prompt, frame)


class Stream(Iterator[Frame]):
    """The frames of one request as they come.

    close(), the end of a `with` block and garbage collection cancel the request. Unread frames are kept; they occupy
    no slot.
    """

    def __init__(self, scheduler: Scheduler, request: Request) -> None:
        """request: submitted to the scheduler."""
        self._scheduler, self._request = scheduler, request
        self.seed = request.seed
        self.ended: str | None = None  # once the last frame is read: "end_of_audio" or "max_frames"
        weakref.finalize(self, setattr, request, "cancelled", True)  # the scheduler finds it at its next step

    def __next__(self) -> Frame:
        self.wait()
        if self._request.frames:
            return self._read()
        raise self._request.error or StopIteration

    def _read(self) -> Frame:
        frame = self._request.frames.popleft()
        self.ended = frame.ended
        return frame

    def wait(self) -> None:
        """Block until there is a frame to read, or none will come."""
        while not self._request.frames and not self._request.finished:
            self._scheduler.step(self._request)

    def ready(self) -> Iterator[Frame]:
        """The frames that have come already."""
        while self._request.frames:
            yield self._read()

    @property
    def error(self) -> BaseException | None:
        """The exception that ended the request."""
        return self._request.error

    @property
    def finished(self) -> bool:
        """Whether every frame has been read and no more will come."""
        return self._request.finished and not self._request.frames

    def close(self) -> None:
        """Cancel the request: its slot and pages become free."""
        self._request.cancelled = True
        self._request.frames.clear()
        self._scheduler.sweep()

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@overload
def read_all(streams: Sequence[Stream], progress: Progress | None) -> list[Generation]: ...
@overload
def read_all(
    streams: Sequence[Stream], progress: Progress | None, return_exceptions: bool
) -> list[Generation | BaseException]: ...
def read_all(
    streams: Sequence[Stream], progress: Progress | None, return_exceptions: bool = False
) -> Sequence[Generation | BaseException]:
    """Read every stream to its end and close it. return_exceptions: return exceptions instead of raising the first."""
    frames: list[list[Frame]] = [[] for _ in streams]
    errors: list[BaseException | None] = [None] * len(streams)
    try:
        while waiting := [stream for stream in streams if not stream.finished]:
            waiting[0].wait()
            for i, stream in enumerate(streams):
                try:
                    for frame in stream.ready():
                        frames[i].append(frame)
                        if progress is not None:
                            progress(i, frame)
                except Exception as error:
                    stream.close()
                    errors[i] = error
                errors[i] = errors[i] or stream.error
            if not return_exceptions and (first := next(filter(None, errors), None)):
                raise first
    finally:
        for stream in streams:
            stream.close()
    results = zip(errors, frames, streams, strict=True)
    return [failed or to_generation(mine, stream.seed) for failed, mine, stream in results]
