"""Files that replace others: what is kept of the old one, and files that cannot be replaced."""

import errno
import os
import shutil
import stat
import tempfile
from pathlib import Path
from unittest.mock import Mock

import pytest

from zonos2_triton.bench.suite.recorder import Recorder
from zonos2_triton.model.files import check_writable, whole_file
from zonos2_triton.model.weights.tiny import write_tiny


def write(path, text="new"):
    with whole_file(path) as part:
        part.write_text(text)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def old(tmp_path):
    (tmp_path / "x.wav").write_text("something old")
    yield tmp_path / "x.wav"
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".part")] == []


@pytest.fixture
def unprivileged():
    """A folder of one's own and no other rights, because root may write read-only files."""
    root = os.geteuid() == 0
    folder = Path(tempfile.mkdtemp())
    if root:
        shutil.chown(folder, 65534)
        os.seteuid(65534)
    yield folder
    folder.chmod(0o700)
    shutil.rmtree(folder)
    if root:
        os.seteuid(0)


@pytest.mark.parametrize("kept", [0o600, 0o640, 0o755], ids=oct)
def test_the_mode_is_kept(old, kept):
    old.chmod(kept)
    write(old)
    assert (old.read_text(), mode(old)) == ("new", kept)


def test_a_new_file_has_the_mode_of_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write(tmp_path / "x")
        recorder = Recorder.open(tmp_path, {"gpu": "c", "commit": "d"})
        folder = write_tiny(tmp_path / "tiny")
    finally:
        os.umask(before)
    assert [mode(path) for path in (tmp_path / "x", recorder.path, folder)] == [0o640, 0o640, 0o750]
    assert {mode(path) for path in folder.rglob("*") if path.is_file()} == {0o640}  # save_file makes files of 0600


@pytest.mark.parametrize("owner", [os, Path], ids=["owner", "place"])
@pytest.mark.parametrize("number", [errno.EBUSY, errno.EXDEV, errno.EPERM], ids=errno.errorcode.get)
def test_what_cannot_be_given_away_or_taken_is_written_over(old, monkeypatch, owner, number):
    fail = Mock(side_effect=OSError(number, os.strerror(number)))
    monkeypatch.setattr(owner, "chown" if owner is os else "replace", fail)
    inode = old.stat().st_ino
    write(old)
    assert (old.read_text(), old.stat().st_ino) == ("new", inode)
    check_writable(old)  # which ends its block by an error
    assert old.read_text() == "new"


def test_a_link_stays_and_other_hard_links_keep_the_old(old, tmp_path):
    (tmp_path / "link").symlink_to(old)
    (tmp_path / "other").hardlink_to(old)
    write(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (old.read_text(), (tmp_path / "other").read_text()) == ("new", "something old")


def test_a_ring_of_links(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(OSError, match=r"cannot write .*a: Too many levels of symbolic links"):
        check_writable(tmp_path / "a")


def test_a_full_disk_names_the_file(old):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(OSError, match=r"cannot write .*x\.wav: No space left on device"), whole_file(old):
        raise full


def test_a_folder_and_a_file_that_cannot_be_written(unprivileged):
    file = unprivileged / "x.wav"
    file.write_text("something old")
    unprivileged.chmod(0o500)
    write(file)
    assert file.read_text() == "new"
    with pytest.raises(PermissionError, match=r"cannot write .*y\.wav: Permission denied"):
        check_writable(unprivileged / "y.wav")
    unprivileged.chmod(0o700)
    file.chmod(0o400)
    with pytest.raises(PermissionError, match=r"cannot write .*x\.wav: Permission denied"):
        check_writable(file)
    assert [path.name for path in unprivileged.iterdir()] == ["x.wav"]


def test_tiny_fills_an_empty_folder_that_stays(tmp_path):
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to("real")
    write_tiny(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert mode(tmp_path / "real") == 0o700
    assert {path.name for path in (tmp_path / "real").iterdir()} > {"params.json", "model.safetensors"}
    assert not list(tmp_path.rglob(".*"))
