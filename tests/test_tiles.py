"""Which tiles a launch gets."""

import logging
from types import SimpleNamespace

import pytest
import torch
import triton

from zonos2_triton.kernels import _tiles
from zonos2_triton.kernels._tiles import ARCHITECTURES, TABLE, architecture, product_tiles, tiles
from zonos2_triton.reference import rings


@pytest.fixture
def on_card(monkeypatch):
    """As if a GPU were there."""

    def choose(backend, arch):
        monkeypatch.setattr(_tiles, "interpreted", lambda: False)
        driver = SimpleNamespace(get_current_target=lambda: SimpleNamespace(backend=backend, arch=arch))
        monkeypatch.setattr(triton.runtime.driver, "_active", driver)

    _tiles._nearest.cache_clear()
    yield choose
    _tiles._nearest.cache_clear()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_card_has_tiles_of_its_own_name(on_card, caplog, name):
    backend, arch = ("cuda", int(name[3:])) if name.startswith("sm_") else ("hip", name)
    on_card(backend, arch)
    assert architecture() == name
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("backend", "arch", "nearest"),
    [
        ("cuda", 103, "sm_100"),
        ("cuda", 121, "sm_120"),
        ("cuda", 87, "sm_86"),
        ("cuda", 75, "sm_86"),
        ("cuda", 130, "sm_86"),
        ("hip", "gfx1100", "gfx942"),
        ("hip", "gfx950", "gfx942"),
    ],
)
def test_an_unknown_card_gets_the_nearest_and_the_log_says_so_once(on_card, caplog, backend, arch, nearest):
    on_card(backend, arch)
    with caplog.at_level(logging.WARNING, "zonos2_triton"):
        assert [architecture(), architecture()] == [nearest, nearest]
    name = f"sm_{arch}" if backend == "cuda" else arch
    assert caplog.messages == [f"no tiles were chosen for {name}; it runs with those of {nearest}"]


@pytest.mark.parametrize(("rows", "width"), [(1, 16), (16, 16), (17, 32), (32, 32), (33, 64), (64, 64), (256, 64)])
def test_tiles_are_as_wide_as_the_rows_need(on_card, rows, width):
    on_card("cuda", 90)
    assert product_tiles("qkv_projection", False, torch.bfloat16, rows, 2048)["BLOCK_M"] == width


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are compiled here, not interpreted")
def test_the_interpreter_has_tiles_of_its_own():
    assert architecture() == "interpreter"
    assert tiles("decode_attention", "split", torch.float32)["SPLIT"] == 16


def test_fp32_has_tiles_of_its_own(on_card):
    on_card("cuda", 90)
    half, single = (tiles("decode_attention", "split", dtype) for dtype in (torch.bfloat16, torch.float32))
    assert half["BLOCK_S"] > single["BLOCK_S"]


@pytest.mark.parametrize(("op", "role"), TABLE)
def test_what_decides_the_order_of_sums_is_the_same_at_every_width(op, role):
    """BLOCK_K is a step of a sum; splits and blocks of attention are places in the cache."""
    for name, choice in TABLE[op, role].items():
        widths = [launch.get("BLOCK_M", 0) for launch in choice]
        assert widths == sorted(widths), name
        for key in ("BLOCK_K", "SPLIT", "BLOCK_S"):
            assert len({launch.get(key) for launch in choice}) == 1, name
        assert not any(launch["enable_fp_fusion"] for launch in choice), name


@pytest.mark.parametrize("kind", ["bfloat16", "float16", "float32", "tf32"])
@pytest.mark.parametrize(("op", "role"), [pair for pair in TABLE if pair[0] in rings.OPERATIONS])
def test_a_step_of_clips_has_one_tile_for_every_length(on_card, op, role, kind):
    """A row may come in steps of any length, beside any others."""
    dtype = torch.float32 if kind == "tf32" else getattr(torch, kind)
    for name in ("interpreter", *ARCHITECTURES):
        if name != "interpreter":
            on_card(*("cuda", int(name[3:])) if name.startswith("sm_") else ("hip", name))
        one, *others = [tiles(op, role, dtype, rows, tf32=kind == "tf32") for rows in (1, 16, 17, 256, 10**6)]
        assert all(other == one for other in others), name


def test_products_of_few_rows_keep_one_instruction_on_sm_90():
    """64 weights in a tile would make it the warpgroup's at some widths."""
    for (_, role), choices in TABLE.items():
        if role == "decode":
            assert all(
                launch["BLOCK_N"] < 64 for name, tiles in choices.items() if name != "interpreter" for launch in tiles
            )
