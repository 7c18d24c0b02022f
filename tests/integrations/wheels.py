"""Wheels of other projects, for tests of their integrations: downloaded once and unpacked, but not installed."""

import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest

CACHE = Path(sys.prefix) / "wheels"  # removed with the environment
PATIENCE_S = 120


def unpacked(name, version):
    """A folder with the packages of a wheel, without its dependencies. Skips the test if the download fails."""
    folder = CACHE / f"{name}-{version}"
    if not folder.is_dir():
        CACHE.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
            _install(name, version, f"{scratch}/made")
            with suppress(OSError):  # another process was first
                os.rename(f"{scratch}/made", folder)
    return folder


def _install(name, version, folder):
    options = ["--quiet", "--retries=1", "--no-deps", "--no-compile", "--only-binary=:all:", f"--target={folder}"]
    command = [sys.executable, "-m", "pip", "install", *options, f"{name}=={version}"]
    try:
        subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=True)
    except subprocess.SubprocessError as error:
        pytest.skip(f"the wheel of {name} {version} cannot be had: {error} {error.stderr}")
