"""Standard output and error that cannot fail: the telling of a result does not decide it."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any, TextIO


class Unfailing:
    """A text stream for writing. What its encoding lacks is escaped; after a failure, or where none is, all is lost.

    error: what failed first, such as a full disk or a pipe that nobody reads.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self.encoding = getattr(stream, "encoding", None) or "utf-8"
        self.error: OSError | ValueError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        self._try("write", text.encode(self.encoding, "backslashreplace").decode(self.encoding))
        return len(text)

    def flush(self) -> None:
        self._try("flush")

    def isatty(self) -> bool:
        return self._stream is not None and self._stream.isatty()

    def _try(self, method: str, *text: str) -> None:
        if self._stream is None or self.error is not None:
            return
        try:
            getattr(self._stream, method)(*text)
        except (OSError, ValueError) as error:  # ValueError: it is closed
            self.error = error
            with suppress(OSError, ValueError):  # what is still in its buffer would fail once more when Python ends
                os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())


@contextmanager
def unfailing() -> Iterator[Unfailing]:
    """Inside, printing cannot fail. Gives standard output, whose `error` is known after its flush."""
    for descriptor in range(3):  # else the next file that is opened takes a closed one's place, and gets C's messages
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    out: Any = Unfailing(sys.stdout)
    err: Any = Unfailing(sys.stderr)
    with redirect_stdout(out), redirect_stderr(err):
        try:
            yield out
        finally:
            out.flush()
            err.flush()


@contextmanager
def aside() -> Iterator[int | None]:
    """Inside, what anyone prints goes to standard error, C's messages too. Gives a descriptor of standard output, None
    where it is closed."""
    place = None
    with suppress(AttributeError, OSError, ValueError):
        place = sys.stdout.fileno()
    with redirect_stdout(sys.stderr):
        if place is None:
            yield None
            return
        kept = os.dup(place)
        os.dup2(2, place)
        try:
            yield kept
        finally:
            os.dup2(kept, place)
            os.close(kept)
