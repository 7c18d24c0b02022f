"""Estimated times: the formula on counts made by hand, a published frame, and judged times of older kernels."""

from dataclasses import replace

import numpy as np
import pytest

from zonos2_triton.bench.compiler.estimate import (
    GAP_US,
    REFERENCE,
    ROUND_TRIP_US,
    START_US,
    Estimate,
    Load,
    Step,
    dependent_us,
    estimate,
    fullest,
    rates_of,
    serial_us,
)
from zonos2_triton.bench.specs.gpus import GPUS

COPY = REFERENCE.roofline.gb_per_s * 1e3  # bytes a microsecond


def even(programs, wavefronts=0.0, instructions=0.0, **more):
    return Load(np.full(programs, wavefronts), np.full(programs, instructions), **{"round_trips": 1, **more})


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
    assert fullest(np.array(programs, float), 132) == most


def test_each_part_by_hand():
    found = estimate(even(193, 1900, 7600, round_trips=3, products=128, barriers=40), 4.3e6, 0)
    clock = REFERENCE.clock_ghz * 1e3
    assert found.floor == pytest.approx(1.0)
    assert found.shared == pytest.approx(2 * 1900 / clock)
    assert found.issue == pytest.approx(2 * 7600 / 4 / clock)
    assert found.chain == pytest.approx(3 * ROUND_TRIP_US + (128 * 33 + 40 * 30) / clock)
    assert found.us == pytest.approx(START_US + found.chain)


@pytest.mark.parametrize(
    ("parts", "limit"),
    [((3, 1, 1, 1), "floor"), ((1, 3, 1, 1), "shared"), ((1, 1, 3, 1), "issue"), ((1, 1, 1, 3), "chain")],
)
def test_the_limit_is_the_longest_part(parts, limit):
    assert Estimate(*parts).limit == limit


def test_more_rounds_of_programs_lengthen_the_chain():
    one, three = (estimate(even(n, 100, products=1000, resident=2), 0, 0).chain for n in (264, 265 + 264))
    assert three == pytest.approx(3 * one)


def test_a_matrix_rate_is_a_floor_too():
    assert estimate(even(1), 1, 989.5e6).floor == pytest.approx(1.0)


# Counts of the kernels at one token before x was prepared by its producer, and the times that were judged from them.
# Shared memory in microseconds of the fullest multiprocessor, programs, round trips, products in order.
JUDGED = {
    "qkv_projection": (15.5, 2.9, 14.0, 193, 1, 128, 42),
    "decode_attention": (15.0, 0.5, 10.9, 32, 8, 0, 0),
    "output_projection": (4.7, 2.0, 2.4, 128, 1, 128, 40),
    "moe_experts up": (27.0, 5.9, 25.4, 192, 2, 128, 42),
    "moe_experts down": (7.0, 2.9, 3.5, 128, 2, 192, 60),
    "codebook_head": (23.5, 8.8, 22.0, 289, 1, 128, 42),
}


@pytest.mark.parametrize("name", JUDGED)
def test_judged_times_of_older_kernels(name):
    us, floor, shared, programs, trips, products, barriers = JUDGED[name]
    each = shared * REFERENCE.clock_ghz * 1e3 / -(-programs // 132)
    load = even(programs, each, round_trips=trips, products=products, barriers=barriers)
    assert estimate(load, floor * COPY, 0).us == pytest.approx(us, rel=0.12)


def step(megabytes, chain=ROUND_TRIP_US, certain=1.0):
    floor = megabytes * 1e6 / COPY
    return Step("", Estimate(floor, 0, 0, chain), megabytes * 1e6, certain * megabytes * 1e6)


def test_launches_one_after_the_other():
    assert serial_us([step(43)] * 3) == pytest.approx(3 * (10 + ROUND_TRIP_US + START_US + GAP_US))


def test_a_published_frame():
    """Llama-1B at one token on an H200 with a graph and dependent launches: 100 launches in 794.7 us, measured.

    Its kernels hold what is under way in registers: 28 KB a multiprocessor.
    """
    layer = [step(12.58), step(0.1, 2.3), step(8.39), step(0, 1.2), step(67.1), step(33.55)]
    steps = [*layer * 16, step(525.3), *[step(0, 1.5)] * 3]
    assert len(steps) == 100
    assert dependent_us(steps, ahead=28 * 1024 * 132) == pytest.approx(794.7, rel=0.05)
    assert serial_us(steps) == pytest.approx(794.7, rel=0.12)


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


def test_a_launch_without_live_programs():
    found = estimate(replace(even(1), wavefronts=np.array([]), instructions=np.array([])), 0, 0)
    assert found.us == pytest.approx(START_US + ROUND_TRIP_US)
