"""Files that appear whole or not at all."""

import errno
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from zonos2_triton._settings import local_path


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A file to write to. It becomes `path` if the block succeeds and vanishes if not, on Ctrl-C too.

    An older file keeps its mode and owner, and a symbolic link stays a link. A file that cannot be replaced is
    overwritten once the block has succeeded: a mounted file, or one in a folder without write permission. OSError:
    `path` cannot be written, raised before the block begins.
    """
    path = local_path(path)
    target = Path(os.path.realpath(path)) if path.is_symlink() else path
    part = target.with_name(f".{secrets.token_hex(4)}.part")
    with _named(path):
        if older := target.exists() or target.is_symlink():  # still a link: one of a cycle
            _check(target)
        try:
            part.touch(exist_ok=False)
        except OSError:
            if not older:
                raise
            handle, name = tempfile.mkstemp(".part")
            os.close(handle)
            part = Path(name)
    try:
        with _named(path):
            yield part
            _replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def write_whole(path: str | Path, text: str) -> None:
    """A `whole_file` of this text, in UTF-8."""
    with whole_file(path) as part:
        part.write_text(text, encoding="utf-8")


@contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno is None:  # has a message already
            raise
        raise type(error)(f"cannot write {path}: {error.strerror}") from error


def check_writable(path: str | Path) -> None:
    """OSError: `whole_file` would fail. Nothing is left behind."""

    class Tried(Exception):
        pass

    with suppress(Tried), whole_file(path):
        raise Tried


def _check(target: Path) -> None:
    mode = target.stat().st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it exists and is no regular file")
    os.close(os.open(target, os.O_WRONLY))  # a read-only file stays, even in a writable folder


def _replace(part: Path, target: Path) -> None:
    if not target.exists():
        part.replace(target)
        return
    old = target.stat()
    try:
        os.chown(part, old.st_uid, old.st_gid)
        part.chmod(stat.S_IMODE(old.st_mode))
        part.replace(target)
    except OSError:
        with part.open("rb") as new, target.open("r+b") as file:
            shutil.copyfileobj(new, file)
            file.truncate()
