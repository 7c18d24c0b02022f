"""The table of cards: names that torch gives are recognised, parts of cards are not, errors name what is near."""

import pytest

from zonos2_triton.bench.compiler.cubin_stats import TARGETS
from zonos2_triton.bench.specs.gpus import CARDS, card, recognised

NAMES = {
    "NVIDIA H100 80GB HBM3": "h100", "NVIDIA H100 PCIe": "h100-pcie", "A100-SXM4-40GB": "a100-40gb",
    "NVIDIA A100-PCIE-40GB": "a100-40gb", "NVIDIA A10G": "a10g", "NVIDIA GeForce RTX 4090": "rtx4090",
    "NVIDIA RTX PRO 6000 Blackwell Workstation Edition": "rtx-pro-6000", "AMD Instinct MI300X VF": "mi300x",
}  # fmt: skip
STRANGERS = (
    "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA GeForce RTX 4090 D", "Tesla T4",
    "CPU rehearsal",
)  # fmt: skip


@pytest.mark.parametrize(("device_name", "name"), NAMES.items())
def test_torchs_names(device_name, name):
    assert recognised(device_name).name == card(device_name).name == name


def test_what_is_no_whole_card_of_the_table():
    assert [recognised(name) for name in STRANGERS] == [None] * len(STRANGERS)


def test_a_name_may_be_spaced_as_people_do():
    assert {card(name).name for name in ("RTX 4090", "GeForce RTX4090", "nvidia_rtx_4090", "rtx4090")} == {"rtx4090"}


def test_an_unknown_name_is_answered_with_near_ones_and_all():
    known = ", ".join(each.name for each in CARDS)
    for wrong, hint in (("h10", r"; did you mean 'h100'.*"), ("abacus", "")):
        with pytest.raises(ValueError, match=rf"must be one of {known}, got '{wrong}'{hint}$"):
            card(wrong)


def test_the_table():
    assert len({known.name for known in CARDS}) == len(CARDS)
    assert card("h200").roof == (4800, 989.5)
    for known in CARDS:
        assert known.arch in {*TARGETS, "gfx950"}  # the last one as gfx942
        # No card reads its memory faster than in 12 ms or slower than in 100; a sparse rate would be out of line.
        assert 0.012 < known.memory_gb / known.gb_per_s < 0.1
        assert 70 <= known.tflop_per_s * 1e3 / known.gb_per_s <= 450
