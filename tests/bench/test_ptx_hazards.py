"""Hazards in shared memory, by hand: two warps of one program, and two programs."""

import numpy as np
import pytest

from zonos2_triton.bench.compiler.ptx.hazards import Hazard, Hazards

WORDS = 4 * np.arange(64)[None]  # two warps, a word for each thread
TURNED = np.roll(WORDS, 32, 1)  # each warp at the other's words
FIRST = np.arange(64)[None] < 32


@pytest.fixture
def hazards():
    return Hazards(512, 4, 2)


def test_a_barrier_is_needed_between_warps(hazards):
    hazards.write(3, WORDS, None, 4)
    hazards.read(4, WORDS, None, 4)  # its own
    with pytest.raises(Hazard, match="reads what another warp wrote since") as raised:
        hazards.read(5, TURNED, None, 4)
    assert raised.value.args[1] == 3
    hazards.barrier()
    hazards.read(6, TURNED, None, 4)
    with pytest.raises(Hazard, match="writes what another warp may still read") as raised:
        hazards.write(7, WORDS, FIRST, 4)
    assert raised.value.args[1] == 6
    hazards.barrier()
    hazards.write(8, WORDS, FIRST, 4)


def test_two_readers_are_remembered(hazards):
    hazards.read(1, np.zeros((1, 64), np.int64), None, 4)  # all read word 0
    for warp in (FIRST, ~FIRST):
        with pytest.raises(Hazard, match="may still read"):
            hazards.write(2, np.zeros((1, 64), np.int64), warp, 4)
    hazards.write(3, WORDS + 4, FIRST, 4)


def test_a_copy_is_under_way_until_its_wait(hazards):
    wide = 16 * np.arange(64)[None] % 512
    hazards.write(1, wide, FIRST, 16, copy=True)
    for access in (hazards.read, hazards.write):
        with pytest.raises(Hazard, match=r"under way|not brought yet") as raised:
            access(2, WORDS + 128, FIRST, 4)
        assert raised.value.args[1] == 1
    hazards.arrive(wide, FIRST, 16)
    hazards.read(3, wide, FIRST, 16)
    with pytest.raises(Hazard, match="another warp wrote since"):
        hazards.read(4, WORDS, ~FIRST, 4)
    hazards.barrier()
    hazards.read(5, WORDS, ~FIRST, 4)


def test_programs_part_and_meet(hazards):
    hazards.write(1, WORDS, np.concatenate([FIRST, FIRST & False]), 4)  # of two programs, the first
    parts = [hazards.taken(lambda x, i=i: x[[i]]) for i in (0, 1)]
    parts[1].read(2, TURNED, None, 4)
    with pytest.raises(Hazard):
        parts[0].read(2, TURNED, None, 4)
    parts[1].barrier()
    together = parts[0].merged(parts[1], lambda x, y: np.concatenate([x, y]))
    assert together.epoch == 2
    together.read(3, TURNED, np.concatenate([FIRST & False, FIRST | True]), 4)
    with pytest.raises(Hazard, match="another warp wrote since"):
        together.read(3, TURNED, np.concatenate([FIRST | True, FIRST & False]), 4)
