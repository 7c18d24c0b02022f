"""Other people's wheels, for the tests of what is built upon them: downloaded once, unpacked, and not installed."""

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest

CACHE = Path(sys.prefix) / "wheels"  # beside what is installed: it goes when the environment goes
PATIENCE_S = 120


def unpacked(name, version):
    """A folder that holds the packages of a wheel, not what it depends on. Skips the test where it cannot be had."""
    folder = CACHE / f"{name}-{version}"
    if not folder.is_dir():
        CACHE.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
            made = Path(scratch) / "unpacked"
            zipfile.ZipFile(_download(name, version, Path(scratch))).extractall(made)
            try:
                os.rename(made, folder)
            except OSError:  # another process was first
                if not folder.is_dir():
                    raise
    return folder


def _download(name, version, folder):
    options = ["--quiet", "--retries=1", "--no-deps", "--only-binary=:all:", f"--dest={folder}"]
    command = [sys.executable, "-m", "pip", "download", *options, f"{name}=={version}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        pytest.skip(f"the wheel of {name} {version} did not come within {PATIENCE_S} s")
    found = [*folder.glob("*.whl")]
    if done.returncode or not found:
        pytest.skip(f"the wheel of {name} {version} cannot be had: {done.stderr.strip().splitlines()[-1:]}")
    return found[0]
