"""Standard output and error that cannot fail, because printing a result must not decide it."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any, TextIO


class Unfailing:
    """A text stream for writing. It escapes characters that its encoding lacks, and drops output after a failure.

    error: the first failure, such as a full disk or a pipe without a reader.
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
        except (OSError, ValueError) as error:  # ValueError: closed
            self.error = error
            with suppress(OSError, ValueError):  # its buffer would fail again when Python exits
                os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())


@contextmanager
def unfailing() -> Iterator[Unfailing]:
    """Inside, printing cannot fail. Yields standard output, whose `error` is known after a flush."""
    for descriptor in range(3):  # otherwise the next opened file takes a closed descriptor and gets C's messages
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
    """Inside, all prints go to standard error, C's included. Yields a descriptor of standard output; None: closed."""
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
