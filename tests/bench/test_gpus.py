"""The table of cards: names that torch gives are recognised, parts of cards are not, errors name what is near."""

import re

import pytest

from zonos2_triton.bench.compiler.cubin_stats import TARGETS
from zonos2_triton.bench.specs.gpus import CARDS, card, recognised

NAMES = {
    "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA H100 PCIe": "h100-pcie",
    "NVIDIA H200": "h200",
    "NVIDIA A100-SXM4-80GB": "a100",
    "A100-SXM4-40GB": "a100-40gb",
    "NVIDIA A100-PCIE-40GB": "a100-40gb",
    "NVIDIA A10": "a10",
    "NVIDIA L4": "l4",
    "NVIDIA GeForce RTX 4090": "rtx4090",
    "NVIDIA RTX PRO 6000 Blackwell Workstation Edition": "rtx-pro-6000",
    "AMD Instinct MI300X": "mi300x",
    "AMD Instinct MI300X VF": "mi300x",
}
STRANGERS = (
    "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA GeForce RTX 4090 D", "Tesla T4",
    "CPU rehearsal", "",
)  # fmt: skip


@pytest.mark.parametrize(("device_name", "name"), NAMES.items())
def test_torchs_names(device_name, name):
    assert recognised(device_name).name == name
    assert card(device_name).name == name


@pytest.mark.parametrize("device_name", STRANGERS)
def test_what_is_no_whole_card_of_the_table(device_name):
    assert recognised(device_name) is None


@pytest.mark.parametrize("spelled", ["RTX 4090", "rtx-4090", "GeForce RTX4090", "nvidia_rtx_4090", "rtx4090"])
def test_a_name_may_be_spaced_as_people_do(spelled):
    assert card(spelled).name == "rtx4090"


@pytest.mark.parametrize(("wrong", "near"), [("h10", "h100"), ("a100-30gb", "a100-40gb"), ("mi300", "mi300x")])
def test_an_unknown_name_is_answered_with_near_ones_and_all(wrong, near):
    with pytest.raises(ValueError, match=rf"did you mean .*{re.escape(repr(near))}") as error:
        card(wrong)
    assert all(known.name in str(error.value) for known in CARDS)
    assert repr(wrong) in str(error.value)


def test_a_name_that_is_like_none_has_no_hint():
    with pytest.raises(ValueError, match=r"got 'abacus'$"):
        card("abacus")


def test_the_table():
    assert len({known.name for known in CARDS}) == len(CARDS)
    assert card("h200").roof == (4800, 989.5)
    served = {*TARGETS, "gfx950"}  # the last one as gfx942
    for known in CARDS:
        assert known.arch in served
        assert known.source
        assert 24 <= known.memory_gb <= 288
        # No card reads its memory faster than in 12 ms or slower than in 100; a sparse rate would be out of line.
        assert 0.012 < known.memory_gb / known.gb_per_s < 0.1
        if known.tflop_per_s:
            assert 70 <= known.tflop_per_s * 1e3 / known.gb_per_s <= 450
