"""How a caller reads frames: one stream for each request. Whoever waits for a frame drives the loop, for all."""

import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import overload

from zonos2_triton.model.runtime.request import Frame, Generation, Request, collected
from zonos2_triton.model.runtime.scheduler import Loop

Progress = Callable[[int, Frame], None]  # called with the number of the prompt, for each frame


class Stream(Iterator[Frame]):
    """The frames of one request of the loop, as they come.

    close(), the end of a `with` block and the disappearance of the object cancel the request. Frames that nobody reads
    are kept; they are few, and hold no place of the loop.
    """

    def __init__(self, loop: Loop, request: Request) -> None:
        """request: submitted to the loop."""
        self._loop, self._request = loop, request
        self.seed = request.seed
        self.ended: str | None = None  # once the last frame is read: "end_of_audio" or "max_frames"
        weakref.finalize(self, setattr, request, "cancelled", True)  # the loop finds it at its next look

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
        """Until there is a frame to read, or none will come."""
        while not self._request.frames and not self._request.over:
            self._loop.turn(self._request)

    def ready(self) -> Iterator[Frame]:
        """Those that have come already."""
        while self._request.frames:
            yield self._read()

    @property
    def error(self) -> BaseException | None:
        """What ended the request before its time."""
        return self._request.error

    @property
    def over(self) -> bool:
        """Whether every frame has been read, and no more will come."""
        return self._request.over and not self._request.frames

    def close(self) -> None:
        """No more frames are wanted: the place and the pages are free for others."""
        self._request.cancelled = True
        self._request.frames.clear()
        self._loop.sweep()

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
    """Every stream to its end, and closed. return_exceptions: in the list, in place of the first one being raised."""
    frames: list[list[Frame]] = [[] for _ in streams]
    errors: list[BaseException | None] = [None] * len(streams)
    try:
        while waiting := [stream for stream in streams if not stream.over]:
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
    return [failed or collected(mine, stream.seed) for failed, mine, stream in results]
