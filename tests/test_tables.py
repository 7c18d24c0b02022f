import pytest

from zonos2_triton.bench.fault_texts import FAULTS
from zonos2_triton.bench.tables import README, kernel_table, with_tables


def test_the_readme_holds_what_the_catalogue_and_the_gate_say():
    """Made by `python -m zonos2_triton.bench.tables`."""
    text = README.read_text(encoding="utf-8")
    assert with_tables(text) == text


def test_every_kernel_has_a_line_with_its_binary():
    lines = kernel_table().splitlines()[2:]
    assert len(lines) == 17
    assert all("KiB" in line for line in lines)


def test_a_readme_without_the_marks_is_refused():
    with pytest.raises(ValueError, match="must hold"):
        with_tables("# title")


def test_the_readme_counts_the_faults():
    count = sum(len(faults) for faults in FAULTS.values())
    assert f"{count} realistic faults" in README.read_text(encoding="utf-8")
