"""Which tiles a launch gets."""

import json
import logging
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import interpreter

from zonos2_triton._settings import LAUNCH_CONFIG, PDL
from zonos2_triton.bench.catalogue import KERNELS
from zonos2_triton.bench.proof.invariants import INVARIANTS, exact
from zonos2_triton.bench.proof.verify import Case
from zonos2_triton.kernels import _launch_config
from zonos2_triton.kernels._launch_config import (
    architecture,
    early_loads,
    gemm_config,
    launch_config,
    overrides,
    wanted_pdl,
)
from zonos2_triton.kernels._launch_table import ARCHITECTURES, LAUNCH_CONFIGS
from zonos2_triton.reference.ops import VOCODER_OPERATORS


class Driver:
    def __init__(self, target):
        self.get_current_target, self.get_current_device = lambda: target, lambda: 0


@pytest.fixture
def on_card(monkeypatch):
    """As if a GPU were there."""

    def choose(backend, arch):
        monkeypatch.setattr(_launch_config, "interpreted", lambda: False)
        monkeypatch.setattr(triton.runtime.driver, "_active", Driver(GPUTarget(backend, arch, 32)))

    _launch_config._nearest.cache_clear()
    yield choose
    _launch_config._nearest.cache_clear()


@pytest.fixture
def overridden(monkeypatch, tmp_path):
    """As if the environment named a file that holds this."""

    def name(entries):
        path = tmp_path / "launch.json"
        path.write_text(json.dumps(entries), encoding="utf-8")
        monkeypatch.setenv(LAUNCH_CONFIG, str(path))
        overrides.cache_clear()
        return path

    yield name
    overrides.cache_clear()


def entry(op="codebook_head", variant="decode", **numbers):
    return {"op": op, "variant": variant, **numbers}


def card(name):
    return ("cuda", int(name[3:])) if name.startswith("sm_") else ("hip", name)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_card_has_tiles_of_its_own_name(on_card, caplog, name):
    on_card(*card(name))
    assert architecture() == name
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("sm_103", "sm_100"), ("sm_121", "sm_120"), ("sm_75", "sm_86"), ("sm_130", "sm_86"), ("gfx950", "gfx942")],
)
def test_an_unknown_card_gets_the_nearest_and_the_log_says_so_once(on_card, caplog, name, nearest):
    on_card(*card(name))
    with caplog.at_level(logging.WARNING, "zonos2_triton"):
        assert [architecture(), architecture()] == [nearest, nearest]
    assert caplog.messages == [f"no tiles were chosen for {name}; it runs with those of {nearest}"]


@pytest.fixture
def switch(monkeypatch):
    """As if the environment had held this value of ZONOS2_TRITON_PDL from the start."""

    def choose(value):
        monkeypatch.setenv(PDL, value)
        wanted_pdl.cache_clear()

    yield choose
    wanted_pdl.cache_clear()


HAVE_PDL = {"sm_80": False, "sm_89": False, "sm_90": True, "sm_103": True, "sm_120": True, "gfx942": False}


@pytest.mark.parametrize(("name", "exists"), HAVE_PDL.items())
def test_a_launch_is_a_dependent_one_where_the_card_has_that_and_the_switch_allows_it(on_card, switch, name, exists):
    def flags():
        launch = launch_config("output_projection", "decode", torch.bfloat16)
        return launch["PDL"], launch.get("launch_pdl")

    on_card(*card(name))
    on, early, off = (True, True), ("early", True), (False, None)
    assert flags() == (on if exists else off)
    with early_loads():
        assert flags() == (early if exists else off)
        with early_loads(), ThreadPoolExecutor(1) as thread:
            assert thread.submit(flags).result() == (on if exists else off)
        assert flags() == (early if exists else off)
    switch("0")
    with early_loads():
        assert flags() == off
    assert flags() == off
    switch("1")
    if exists:
        assert flags() == on
    else:
        with pytest.raises(ValueError, match=f"{PDL} is '1', but {name} has no programmatic dependent launch; sm_90"):
            flags()


@pytest.mark.interpreter
def test_the_interpreter_has_no_dependent_launch(switch):
    assert launch_config("output_projection", "decode", torch.bfloat16)["PDL"] is False
    switch("1")
    with pytest.raises(ValueError, match=f"{PDL} is '1', but the interpreter has no programmatic dependent launch"):
        launch_config("output_projection", "decode", torch.bfloat16)


def test_tiles_are_as_wide_as_the_rows_need(on_card):
    on_card("cuda", 90)
    for rows, width in {1: 8, 8: 8, 9: 16, 16: 16, 17: 32, 32: 32, 33: 64, 64: 64, 256: 64}.items():
        assert gemm_config("qkv_projection", False, torch.bfloat16, rows, 2048)["BLOCK_M"] == width, rows
    on_card("hip", "gfx942")  # whose matrix instructions take 16
    assert gemm_config("qkv_projection", False, torch.bfloat16, 1, 2048)["BLOCK_M"] == 16


@pytest.mark.interpreter
def test_the_interpreter_and_fp32_have_tiles_of_their_own(on_card):
    assert architecture() == "interpreter"
    assert launch_config("decode_attention", "split", torch.float32)["SPLITS"] == 4
    on_card("cuda", 90)
    half, single = (launch_config("decode_attention", "split", x)["BLOCK_KV"] for x in (torch.bfloat16, torch.float32))
    assert (half, single) == (64, 32)


@pytest.mark.parametrize(("op", "variant"), LAUNCH_CONFIGS)
def test_what_decides_the_order_of_sums_is_the_same_at_every_width(op, variant):
    """BLOCK_K is a step of a sum, but within a slice of K; splits and blocks of attention are places in the cache."""
    for name, choice in LAUNCH_CONFIGS[op, variant].items():
        widths = [launch.get("BLOCK_M", 0) for launch in choice]
        assert widths == sorted(widths), name
        steps = () if choice[0].get("K_SLICES", 1) > 1 else ("BLOCK_K",)
        for key in (*steps, "K_SLICES", "SPLITS", "BLOCK_KV"):
            assert len({launch.get(key) for launch in choice}) == 1, name
        assert not any(launch["enable_fp_fusion"] for launch in choice), name


@pytest.mark.parametrize("kind", ["bfloat16", "float16", "float32", "tf32"])
@pytest.mark.parametrize(("op", "variant"), [pair for pair in LAUNCH_CONFIGS if pair[0] in VOCODER_OPERATORS])
def test_a_step_of_clips_has_one_tile_for_every_length(on_card, op, variant, kind):
    """A row may come in steps of any length, beside any others."""
    dtype = torch.float32 if kind == "tf32" else getattr(torch, kind)
    for name in ("interpreter", *ARCHITECTURES):
        if name != "interpreter":
            on_card(*card(name))
        one, *others = [launch_config(op, variant, dtype, n, tf32=kind == "tf32") for n in (1, 16, 17, 256, 10**6)]
        assert all(other == one for other in others), name


def test_products_of_few_rows_keep_one_instruction_on_sm_90():
    """64 weights in a tile would make it the warpgroup's at some widths."""
    decode = [choices for (_, variant), choices in LAUNCH_CONFIGS.items() if variant == "decode"]
    cards = [tiles for choices in decode for name, tiles in choices.items() if name != "interpreter"]
    assert all(launch["BLOCK_N"] < 64 for tiles in cards for launch in tiles)


def numbers(op="codebook_head", variant="decode", dtype=torch.bfloat16, rows=1, **more):
    launch = launch_config(op, variant, dtype, rows, **more)
    return tuple(launch.get(key) for key in ("BLOCK_N", "BLOCK_K", "BLOCK_M", "num_warps", "num_stages"))


def test_a_file_overrides_what_it_names_for_the_dtype_and_the_rows_it_names(on_card, overridden):
    on_card("cuda", 90)
    one, many, prefill = numbers(), numbers(rows=17), numbers(variant="prefill")
    half = {"dtype": "bfloat16"}
    overridden([entry(**half, BLOCK_K=64, num_stages=3), entry(**half, rows=[17, 32], num_warps=8, num_stages=7)])
    assert (one, many) == ((16, 512, 8, 2, 3), (32, 256, 32, 4, 4))
    assert numbers() == (16, 64, 8, 2, 3)
    assert numbers(rows=16) == (16, 64, 16, 2, 3)
    assert numbers(rows=17) == numbers(rows=32) == (32, 64, 32, 8, 7)
    assert numbers(rows=33)[3:] == (4, 3)
    assert numbers(dtype=torch.float16) == one
    assert numbers(variant="prefill") == prefill
    assert launch_config("codebook_head", "decode", torch.bfloat16)["enable_fp_fusion"] is False
    assert gemm_config("codebook_head", False, torch.bfloat16, 1, 64)["EVEN_K"] is True
    assert gemm_config("codebook_head", False, torch.bfloat16, 1, 96)["EVEN_K"] is False


def test_without_a_dtype_an_override_is_for_all_and_tf32_is_one_of_them(on_card, overridden):
    on_card("cuda", 90)
    taps = [{"num_warps": 2}, {"dtype": "tf32", "num_warps": 8}, {"dtype": "float32", "num_warps": 1}]
    overridden([entry("rotary", "row", num_warps=2), *(entry("conv1d_tanh", "taps", **one) for one in taps)])
    assert launch_config("rotary", "row", torch.int32)["num_warps"] == 2
    warps = [numbers("conv1d_tanh", "taps", dtype)[3] for dtype in (torch.float16, torch.float32)]
    assert [*warps, numbers("conv1d_tanh", "taps", torch.float32, tf32=True)[3]] == [2, 1, 8]


def test_the_file_is_read_once_and_the_log_says_so(overridden, caplog):
    entries = [{"op": "rotary", "variant": "row", "num_warps": 2}]
    path = overridden(entries)
    with caplog.at_level(logging.INFO, "zonos2_triton"):
        launch_config("rotary", "row", torch.int32)
        path.unlink()
        assert launch_config("rotary", "row", torch.int32)["num_warps"] == 2
    assert caplog.messages == [f"launch parameters of {path}: {entries}"]


WRONG_NUMBERS = {
    "BLOCK_N": ("a power of two in 16..1024", (48, 8, 32.0)),
    "BLOCK_M": ("a power of two in 8..1024", (4, 24)),
    "BLOCK_K": ("a power of two in 64..1024", (32,)),  # 16 for each slice
    "num_warps": ("a power of two in 1..32", (3, True)),
    "num_stages": ("an integer in 1..16", (0, "3")),
    "rows": ("[least, most], both at least 1", ([1], [0, 4], [4, 2])),
    "dtype": ("one of float32, tf32, float16, bfloat16", ("fp16", None)),
}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({}, ": must be a list of objects, got dict"),
        ([3], ": [0]: must be an object, got 3"),
        ([entry(num_warps=4), {"variant": "row"}], ": [1].op: must be one of add_rms_norm, codebook_head, "),
        ([entry("heads")], f", {max(LAUNCH_CONFIGS)[0]}, got 'heads'"),
        ([entry(variant="row")], ": [0].variant: must be one of decode, prefill of codebook_head, got 'row'"),
        ([entry()], ": [0]: must have at least one of BLOCK_K, BLOCK_M, BLOCK_N, num_stages, num_warps"),
        (
            [entry(BLOCK_Z=16)],
            ".BLOCK_Z: codebook_head decode has no such number; it has BLOCK_K, BLOCK_M, BLOCK_N, num_s",
        ),
        ([entry(enable_fp_fusion=True)], ".enable_fp_fusion: codebook_head decode has no such number"),
        ([entry(K_SLICES=2)], ".K_SLICES: codebook_head decode has no such number"),
        ([entry(variant="prefill", BLOCK_M=8)], ".BLOCK_M: must be a power of two in 16..1024, got 8"),
        ([entry(rows=[1, 4], BLOCK_K=64)], ".BLOCK_K: cannot be had for some rows alone: bits would depend on"),
        ([entry("conv1d_tanh", "taps", rows=[1, 4], BLOCK_M=64)], "[0].rows: variant taps has the same tiles for any"),
        *(
            ([entry(**{"num_warps": 4, key: value})], f": [0].{key}: must be {accepted}, got {value!r}")
            for key, (accepted, values) in WRONG_NUMBERS.items()
            for value in values
        ),
    ],
)
def test_a_wrong_file_is_refused_by_name_and_place(overridden, entries, message):
    path = overridden(entries)
    for _ in range(2):
        with pytest.raises(ValueError, match=rf"^{LAUNCH_CONFIG}: {re.escape(str(path))}.*{re.escape(message)}"):
            launch_config("codebook_head", "decode", torch.float32)


def test_a_file_cannot_ask_amd_for_tiles_of_8_tokens(on_card, overridden):
    overridden([entry(BLOCK_M=8)])
    on_card("cuda", 80)
    assert numbers(rows=64)[2] == 8
    on_card("hip", "gfx942")
    with pytest.raises(
        ValueError, match=rf"^{LAUNCH_CONFIG}: BLOCK_M of codebook_head decode must be at least 16 on g"
    ):
        numbers()


def test_all_numbers_of_the_table_might_be_in_a_file():
    for (op, variant), choices in LAUNCH_CONFIGS.items():
        for launch in (launch for name in choices if name != "interpreter" for launch in choices[name]):
            numbers = {key: launch[key] for key in launch if key not in _launch_config.FIXED}
            pair, override = _launch_config._override("", entry(op, variant, **numbers))
            assert (pair, override.numbers) == ((op, variant), numbers)


@pytest.mark.interpreter
@pytest.mark.parametrize(
    ("name", "variant", "workload", "launched"),
    [
        ("codebook_head", "decode", "two-tiles", {"BLOCK_K": 128, "BLOCK_N": 64, "BLOCK_M": 8}),
        ("output_projection", "decode", "two-tiles", {"BLOCK_M": 64}),  # tokens without a mask
        ("decode_attention", "split", "split-edges", {"SPLITS": 16, "BLOCK_KV": 16}),
        pytest.param("conv1d_snake", "taps", "rows", {"BLOCK_M": 16, "BLOCK_K": 16}, marks=pytest.mark.slow),
    ],
)
def test_other_tiles_are_as_exact_for_every_batch(overridden, monkeypatch, name, variant, workload, launched):
    kernel = KERNELS[name]
    case = Case(kernel, next(entry for entry in kernel.workloads if entry.name == workload))
    overridden([entry(name, variant, **launched)])
    launches, real = [], interpreter.GridExecutor.__call__

    def spying(self, *args, **kwargs):
        launches.append({key: kwargs[key] for key in launched})
        return real(self, *args, **kwargs)

    monkeypatch.setattr(interpreter.GridExecutor, "__call__", spying)
    case.compare(case.run())
    assert launches == [launched]
    exact(case)
    INVARIANTS["batch_invariant"](case, None)
