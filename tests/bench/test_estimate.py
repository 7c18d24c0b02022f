"""Estimated times: the formula on counts made by hand, and a published frame."""

from dataclasses import replace

import numpy as np
import pytest

from zonos2_triton.bench.compiler import gate
from zonos2_triton.bench.compiler.estimate import (
    FILL_US,
    GAP_US,
    REFERENCE,
    START_US,
    Bounds,
    Counted,
    Estimate,
    Step,
    dependent_us,
    estimate,
    fullest,
    rates_of,
    serial_us,
    summary,
)
from zonos2_triton.bench.compiler.ptx.counts import Counts
from zonos2_triton.bench.specs.gpus import GPUS, find_gpu

COPY = REFERENCE.roofline.gb_per_s * 1e3  # bytes a microsecond


COUNTED = Counted(launch=0, live=264, wavefronts=3800, issued=15200, chain=9500, round_trips=2, conflict=1.0, exposed=0,
                  under_way=28_000, moved=10**6)  # fmt: skip


def test_an_h200_is_the_reference():
    assert REFERENCE.multiprocessors == 132
    assert REFERENCE.clock_ghz == pytest.approx(1.9, abs=0.001)
    assert REFERENCE.roofline.gb_per_s == pytest.approx(4300)


def test_every_gpu_has_rates():
    """The clock and the number of multiprocessors agree with the matrix rate: a whole power of two a clock."""
    for gpu in GPUS:
        each = gpu.tflop_per_s * 1e3 / gpu.multiprocessors / gpu.clock_ghz
        nearest = 2 ** round(np.log2(each))
        assert each == pytest.approx(nearest, rel=0.11), gpu.name
        assert rates_of(gpu).multiprocessors == gpu.multiprocessors


@pytest.mark.parametrize(
    ("programs", "most"), [([7], 7), ([1] * 132, 1), ([1] * 133, 2), ([1] * 264, 2), ([5, *[1] * 131, 5], 10), ([], 0)]
)
def test_programs_are_dealt_in_turn(programs, most):
    assert fullest(np.array(programs, int), 132) == most


def test_each_part_by_hand():
    found, clock = estimate(COUNTED, 4.3e6, 0), REFERENCE.clock_ghz * 1e3
    assert found == pytest.approx((1.0, 3800 / clock, 15200 / 4 / clock, 9500 / clock))
    assert found.us == pytest.approx(START_US + found.chain)


def test_fewer_multiprocessors_have_more_programs_each():
    half = estimate(COUNTED, 0, 0, REFERENCE._replace(multiprocessors=66))
    assert half.shared == pytest.approx(2 * estimate(COUNTED, 0, 0).shared)
    assert estimate(COUNTED, 0, 0, REFERENCE._replace(multiprocessors=264)) == estimate(COUNTED, 0, 0)


@pytest.mark.parametrize(
    ("parts", "limit"),
    [((3, 1, 1, 1), "floor"), ((1, 3, 1, 1), "shared"), ((1, 1, 3, 1), "issue"), ((1, 1, 1, 3), "chain")],
)
def test_the_limit_is_the_longest_part(parts, limit):
    assert Estimate(*parts).limit == limit


def test_a_matrix_rate_is_a_floor_too():
    assert estimate(COUNTED, 1, 989.5e6).floor == pytest.approx(1.0)


def counts(**change):
    """Two programs that ran, of six; one is live."""
    known = {
        "kernel": "_k", "target": "sm_90", "grid": (6,), "programs": 6, "ran": (0, 1), "threads": 128,
        "live": (False, True), "instructions": {"int": (5, 600), "other": (9, 900)}, "longest_warp": (4, 300),
        "longest_warp_matrix": (0, 8), "round_trips": (0, 2), "cycles": (10, 500), "bytes_under_way": 132_000,
        "traffic": {"wavefronts": (0, 400), "ideal_wavefronts": (0, 100), "load_bytes": (0, 10),
                    "store_bytes": (0, 20), "async_bytes": (0, 30)},
    }  # fmt: skip
    return Counts(**{**known, **change})


def test_summary_of_counts():
    """Programs that did not run are like those that did; idle ones take no time; conflicts lengthen the chain."""
    assert summary(counts(), 1, 4) == Counted(
        launch=1, live=3, wavefronts=400, issued=600, chain=500 + 400 - 100, round_trips=2, conflict=1.0, exposed=0,
        under_way=3000, moved=180,
    )  # fmt: skip
    assert summary(counts(longest_warp=(4, 700)), 0, 4).chain == 1400
    assert summary(counts(live=(False, False)), 0, 4).wavefronts == 0


def test_more_rounds_of_programs_lengthen_the_chain():
    one, three = (summary(counts(grid=(2 * n,), programs=2 * n), 0, 2) for n in (264, 2 * 264 + 1))
    assert (one.wavefronts, three.wavefronts) == (2 * 400, 5 * 400)
    assert three.chain == 3 * one.chain
    assert one.under_way == 2 * 132_000


BOUNDS = Bounds({4: 0.8, 16: 1.0}, issue=0.4, under_way=25_000, live=119, round_trips=5, shared_us=3.0)
FINE = {"floor": 5.0, "shared": 4.0, "issue": 2.0, "chain": 1.0}


@pytest.mark.parametrize(
    ("name", "counts", "parts", "words"),
    [
        ("shared", {}, {"shared": 4.1}, "shared memory takes 0.82 of the floor, at most 0.8"),
        ("issue", {}, {"issue": 2.1}, "instructions take 0.42 of the floor, at most 0.4"),
        ("under_way", {"under_way": 24_999}, {}, "24999 bytes under way a multiprocessor, at least 25000"),
        ("live", {"live": 97}, {}, "97 programs, at least 119"),
        ("conflict", {"conflict": 2.5}, {}, "2.5 wavefronts for one, at most 2"),
        ("exposed", {"exposed": 1}, {}, "1 loads in loops that wait where they are issued, at most 0"),
        ("round_trips", {"round_trips": 6}, {}, "6 dependent round trips, at most 5"),
        ("shared_us", {}, {"shared": 3.9}, "shared memory takes 3.9 us, at most 3"),
    ],
)
def test_bounds_name(name, counts, parts, words):
    assert BOUNDS.over(replace(COUNTED, **counts), Estimate(**(FINE | parts)), 1 if name == "shared_us" else 4) == {
        name: words
    }


def test_bounds_follow_the_number_of_tokens():
    assert BOUNDS.over(COUNTED, Estimate(**FINE), 4) == {}
    wide = Estimate(**(FINE | {"shared": 5.0}))
    assert set(BOUNDS.over(COUNTED, wide, 2)) == {"shared"}
    assert BOUNDS.over(COUNTED, wide, 16) == BOUNDS.over(COUNTED, wide, 64) == {}
    assert replace(BOUNDS, shared_dense={4: 1.7}).over(COUNTED, wide, 2, is_dense=True) == {}


def step(megabytes, chain=FILL_US, certain=1.0):
    floor = megabytes * 1e6 / COPY
    return Step("", Estimate(floor, 0, 0, chain), megabytes * 1e6, certain * megabytes * 1e6)


def test_launches_one_after_the_other():
    assert serial_us([step(43)] * 3) == pytest.approx(3 * (10 + FILL_US + START_US + GAP_US))


@pytest.mark.parametrize(("name", "measured"), [("h200", 794.7), ("h100", 979.5)])
def test_a_published_frame(name, measured):
    """Llama-1B at one token with a graph and dependent launches: 100 launches.

    Its kernels hold what is under way in registers: 28 KB a multiprocessor.
    """
    rates = rates_of(find_gpu(name))

    def launch(megabytes, chain=FILL_US):
        floor = rates.roofline.floor_us(megabytes * 1e6, 0)
        return Step("", Estimate(floor, 0, 0, chain), megabytes * 1e6, megabytes * 1e6)

    layer = [launch(12.58), launch(0.1, 2.3), launch(8.39), launch(0, 1.2), launch(67.1), launch(33.55)]
    steps = [*layer * 16, launch(525.3), *[launch(0, 1.5)] * 3]
    assert len(steps) == 100
    assert dependent_us(steps, rates, ahead=28 * 1024 * 132) == pytest.approx(measured, rel=0.05)


def test_what_dependent_launches_gain():
    """Bytes that are requested early; not those of routed experts."""
    alone = serial_us([step(43)] * 20)
    certain, late = (dependent_us([step(43, certain=share)] * 20) for share in (1.0, 0.0))
    assert 20 * 10 < certain < late < alone
    # Memory is busy all the time, but at the first launch and the last.
    assert dependent_us([step(430)] * 20) == pytest.approx(20 * 100, rel=0.01)
    assert dependent_us([step(43)] * 20, ahead=0) == pytest.approx(late)


def test_a_chain_is_not_hidden_by_dependent_launches():
    assert dependent_us([step(4.3, chain=20)] * 10) > 10 * 20


ROW = gate.Row("op", "_op_kernel", "decode-B1-bfloat16", "sm_90", ())


def test_a_launch_that_cannot_be_counted_has_failed(monkeypatch):
    def refuse(*_):
        raise ValueError("_k: `bfi.b32 %r1` (PTX line 7) is not known")

    monkeypatch.setattr(gate, "count", refuse)
    [found] = gate._with_counts([ROW], [None], None, None)
    assert found.failures == ("cannot be counted: ValueError: _k: `bfi.b32 %r1` (PTX line 7) is not known",)


def test_bounds_fail_where_they_are_held():
    bounds = Bounds(held=("conflict",))
    over = bounds.over_on_any_target(8.0, 1)
    found = gate._bounded(ROW, bounds, over)
    assert found.failures == ("8 wavefronts for one, at most 2",)
    assert found.over == ("exposed: 1 loads in loops that wait where they are issued, at most 0",)
