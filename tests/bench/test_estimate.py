"""Estimated times: the formula on counts made by hand, and a published frame."""

from dataclasses import replace

import numpy as np
import pytest

from zonos2_triton.bench.compiler import gate
from zonos2_triton.bench.compiler.cubin_stats import Stats
from zonos2_triton.bench.compiler.estimate import (
    DRAIN_US,
    FILL_US,
    GAP_US,
    REFERENCE,
    START_US,
    Bounds,
    Counted,
    Estimate,
    Held,
    Step,
    after_wait,
    crowded,
    dependent_us,
    estimate,
    fullest,
    held,
    rates_of,
    serial_us,
    steps,
    summary,
)
from zonos2_triton.bench.compiler.expected import Row, bounded
from zonos2_triton.bench.compiler.ptx.counts import Counts
from zonos2_triton.bench.specs.gpus import GPUS, find_gpu
from zonos2_triton.kernels._operator import Cost

COPY = REFERENCE.roofline.gb_per_s * 1e3  # bytes a microsecond


COUNTED = Counted(launch=0, live=264, wavefronts=3800, issued=15200, chain=9500, round_trips=2, conflict=1.0, exposed=0,
                  under_way=28_000, moved=10**6, through_l2=11 * 10**6, loaded=64_000, early_loaded=0,
                  loaded_after=64_000, wavefronts_after=3800, issued_after=15200, chain_before=0, chain_after=9500,
                  registers=72, shared=49152, warps=2, resident=4)  # fmt: skip


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
    assert found == pytest.approx((1.0, 2.0, 3800 / clock, 15200 / 4 / clock, 9500 / clock))
    assert found.us == pytest.approx(START_US + found.chain)


def test_the_l2_cache_by_hand():
    """5.5 TB/s for all; 64 bytes a clock for one multiprocessor; no slower than memory."""
    assert estimate(replace(COUNTED, loaded=640_000), 0, 0).l2 == pytest.approx(10_000 / REFERENCE.clock_ghz / 1e3)
    fast = REFERENCE._replace(roofline=REFERENCE.roofline._replace(gb_per_s=11_000))
    assert estimate(COUNTED, 0, 0, fast).l2 == pytest.approx(1.0)


def test_after_the_wait_by_hand():
    """All that was loaded before it is left out; products are not."""
    early = replace(COUNTED, early_loaded=11 * 10**6 - 5500, loaded_after=320, wavefronts_after=1900, issued_after=7600,
                    chain_after=3800)  # fmt: skip
    clock = REFERENCE.clock_ghz * 1e3
    assert after_wait(early, 989.5e6) == pytest.approx((1.0, 5 / clock, 1900 / clock, 7600 / 4 / clock, 3800 / clock))
    assert after_wait(early, 0).work == pytest.approx(3800 / clock)
    [step] = steps(Cost(4.3e6, 0), [("a", replace(early, chain_before=1900))], certain=True)
    assert step.before == pytest.approx(1900 / clock)
    assert (step.estimate, step.after) == (estimate(early, 4.3e6, 0), after_wait(early, 0))


def test_fewer_multiprocessors_have_more_programs_each():
    half = estimate(COUNTED, 0, 0, REFERENCE._replace(multiprocessors=66))
    assert half.shared == pytest.approx(2 * estimate(COUNTED, 0, 0).shared)
    full = replace(COUNTED, loaded=640_000)
    assert estimate(full, 0, 0, REFERENCE._replace(multiprocessors=66)).l2 == 2 * estimate(full, 0, 0).l2
    assert estimate(COUNTED, 0, 0, REFERENCE._replace(multiprocessors=264)) == estimate(COUNTED, 0, 0)


@pytest.mark.parametrize(
    ("parts", "limit"),
    [
        ((3, 1, 1, 1, 1), "floor"),
        ((1, 3, 1, 1, 1), "l2"),
        ((1, 1, 3, 1, 1), "shared"),
        ((1, 1, 1, 3, 1), "issue"),
        ((1, 1, 1, 1, 3), "chain"),
    ],
)
def test_the_limit_is_the_longest_part(parts, limit):
    assert Estimate(*parts).limit == limit


def test_a_matrix_rate_is_a_floor_too():
    assert estimate(COUNTED, 1, 989.5e6).floor == pytest.approx(1.0)


FITS_4 = Stats(72, 0, 0, 49152, 2, 4, 0.125, 500)


def counts(**change):
    """Two programs that ran, of six; one is live."""
    known = {
        "kernel": "_k", "target": "sm_90", "grid": (6,), "programs": 6, "ran": (0, 1), "threads": 128,
        "live": (False, True), "instructions": {"int": (5, 600), "other": (9, 900)}, "longest_warp": (4, 300),
        "longest_warp_matrix": (0, 8), "round_trips": (0, 2), "cycles": (10, 500), "bytes_under_way": 132_000,
        "traffic": {"wavefronts": (0, 400), "ideal_wavefronts": (0, 100), "load_bytes": (0, 10),
                    "store_bytes": (0, 20), "async_bytes": (0, 30), "load_sectors": (0, 1), "store_sectors": (0, 2),
                    "async_sectors": (0, 3)},
        "until_wait": (9, 90),
        "after_wait": {"cycles": (5, 450), "instructions": (4, 500), "longest_warp": (3, 250), "wavefronts": (0, 300),
                       "ideal_wavefronts": (0, 80), "loaded_sectors": (0, 1)},
    }  # fmt: skip
    return Counts(**{**known, **change})


def test_summary_of_counts():
    """Programs that did not run are like those that did; idle ones take no time; conflicts lengthen the chain."""
    assert summary(counts(), 1, FITS_4) == Counted(
        launch=1, live=3, wavefronts=400, issued=600, chain=500 + 400 - 100, round_trips=2, conflict=1.0, exposed=0,
        under_way=3000, moved=180, through_l2=3 * 6 * 32, loaded=4 * 32, early_loaded=3 * 3 * 32, loaded_after=32,
        wavefronts_after=300, issued_after=500, chain_before=90, chain_after=450 + 300 - 80, registers=72, shared=49152,
        warps=2, resident=4,
    )  # fmt: skip
    assert summary(counts(longest_warp=(4, 700)), 0, FITS_4).chain == 1400
    assert summary(counts(live=(False, False)), 0, FITS_4).wavefronts == 0


def test_more_rounds_of_programs_lengthen_the_chain():
    """Programs of the first round alone can load before the wait."""
    fits_2 = replace(FITS_4, blocks=2)
    one, three = (summary(counts(grid=(2 * n,), programs=2 * n), 0, fits_2) for n in (264, 2 * 264 + 1))
    assert (one.wavefronts, three.wavefronts) == (2 * 400, 5 * 400)
    assert three.chain == 3 * one.chain
    assert one.under_way == 2 * 132_000
    assert one.early_loaded == three.early_loaded == 264 * 3 * 32
    assert (one.wavefronts_after, three.wavefronts_after) == (2 * 300, 2 * 300 + 3 * 400)
    assert three.chain_after == 2 * one.chain + one.chain_after


BOUNDS = Bounds({4: 0.8, 16: 1.0}, issue=0.4, under_way=25_000, live=119, round_trips=5, shared_us=3.0)
FINE = {"floor": 5.0, "l2": 0.0, "shared": 4.0, "issue": 2.0, "chain": 1.0}


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
    assert set(replace(BOUNDS, shared_dense={4: 0.9}).over(COUNTED, wide, 2, is_dense=True)) == {"shared_dense"}


NOTHING = Held()


def step(megabytes, chain=FILL_US, certain=1.0, before=0.0, holds=NOTHING, **after):
    """after: parts of the estimate of what comes after the wait; by default as they are without one."""
    found = Estimate(megabytes * 1e6 / COPY, megabytes / 5.5, 0, 0, chain)
    moved = megabytes * 1e6
    return Step("", found, moved, certain * moved, before, found._replace(floor=0, **after), holds, holds)


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
        found, moved = Estimate(floor, 0, 0, 0, chain), megabytes * 1e6
        return Step("", found, moved, moved, 0.0, found._replace(floor=0), NOTHING, NOTHING)

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


def test_what_comes_before_the_wait_is_hidden():
    """By the launch before, where that is long enough: it becomes resident as that one passes its own wait."""
    each = GAP_US + 20 + DRAIN_US
    assert dependent_us([step(4.3, chain=20)] * 10) == pytest.approx(10 * each)
    halved = [step(4.3, chain=20, before=10)._replace(after=Estimate(0, 0, 0, 0, 10))] * 10
    first = GAP_US + 10  # is hidden by none
    assert dependent_us(halved) == pytest.approx(first + 10 * (10 + DRAIN_US) + 9 * GAP_US)
    # It takes longer than the launch before: what is left over is waited for.
    longer = [step(0, chain=30, before=20)._replace(after=Estimate(0, 0, 0, 0, 10))] * 10
    assert dependent_us(longer) == pytest.approx(10 * (GAP_US + 20) + 10 + DRAIN_US)
    # Bytes that are in registers are not read through the L2 cache again.
    again, not_again = (dependent_us([step(0, chain=20), step(43, l2=us)] * 5) for us in (43 / 5.5, 0))
    assert again - not_again == pytest.approx(5 * 43 / 5.5)


def test_launches_that_have_no_room_beside_each_other_do_not_overlap():
    """Two of 120 KB; of 40,000 registers; of 40 warps."""
    assert dependent_us([step(43, holds=Held(32_768, 114 * 1024, 32))] * 10) == dependent_us([step(43)] * 10)
    for holds in (Held(shared=120 * 1024), Held(registers=40_000), Held(warps=40)):
        crowd = [step(43, holds=holds)._replace(name=name) for name in "abab"]
        assert dependent_us(crowd) == pytest.approx(4 * (GAP_US + 10 + DRAIN_US))
        assert crowded(crowd) == ["b after a", "a after b"]
    full = step(43, holds=Held(shared=228 * 1024))
    assert crowded([full, step(43)]) == []
    several = full._replace(program=Held(shared=76 * 1024), name="c")
    one = step(43, holds=Held(shared=152 * 1024))
    assert crowded([one, several]) == [] != crowded([several, one])


def test_what_a_launch_holds():
    """Registers come in units of 256 for a warp, and 1 KB of shared memory is the system's."""
    assert held(COUNTED) == Held(2 * 2 * 72 * 32, 2 * 49 * 1024, 2 * 2)  # 264 programs on 132 multiprocessors
    assert held(replace(COUNTED, live=9, registers=73)) == Held(2 * 80 * 32, 49 * 1024, 2)
    assert held(replace(COUNTED, live=9999)).warps == 4 * 2


ROW = Row("op", "_op_kernel", "decode-B1-bfloat16", "sm_90", ())


def test_a_launch_that_cannot_be_counted_has_failed(monkeypatch):
    def refuse(*_):
        raise ValueError("_k: `bfi.b32 %r1` (PTX line 7) is not known")

    monkeypatch.setattr(gate, "count", refuse)
    [found] = gate._with_counts([ROW], [None], None, None)
    assert found.failures == ("cannot be counted: ValueError: _k: `bfi.b32 %r1` (PTX line 7) is not known",)


def test_bounds_fail_where_they_are_held():
    bounds = Bounds(held={"conflict": 16})
    over = bounds.over_on_any_target(8.0, 1)
    wide = bounded(ROW, bounds, over, 17)
    assert (wide.failures, len(wide.over)) == ((), 2)
    found = bounded(ROW, bounds, over, 16)
    assert found.failures == ("8 wavefronts for one, at most 2",)
    assert found.over == ("exposed: 1 loads in loops that wait where they are issued, at most 0",)
