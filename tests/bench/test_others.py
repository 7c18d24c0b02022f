"""Other people's kernels: folders that hold none, and checkouts of another state."""

import re

import pytest

from zonos2_triton.bench.catalogue import KERNELS
from zonos2_triton.bench.compiler.others import OTHERS, compare, loaded


def test_a_folder_without_a_checkout(tmp_path):
    words = f"--compare must name a folder that holds a checkout of {' or '.join(OTHERS)}, got {tmp_path}"
    with pytest.raises(ValueError, match=re.escape(words)):
        compare(tmp_path, KERNELS)


def test_a_checkout_without_the_kernel(tmp_path):
    (tmp_path / "ZONOS2").mkdir()
    with pytest.raises(ValueError, match=r"the checkout has no .*fused_moe.py; a kernel moved"):
        compare(tmp_path, KERNELS)


def test_a_file_is_loaded_with_stand_ins(tmp_path):
    path = tmp_path / "kernel.py"
    path.write_text("from absent.package import value\nfound = value + 1\n")
    assert loaded(path, absent__package=type("stub", (), {"value": 1})).found == 2
    with pytest.raises(ImportError):
        loaded(path)


def test_what_is_compared_is_in_the_catalogue():
    assert {operator for others in OTHERS.values() for operator, _ in others} <= KERNELS.keys()
