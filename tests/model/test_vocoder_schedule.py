"""The schedule of vocoder steps: equal on host and device, and as in the docstring's example."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zonos2_triton.model.vocoder_schedule import NO_END, Schedule, clip_steps, plan_step, same_clips
from zonos2_triton.reference.vocoder_layers import LENGTH_UNKNOWN

EXAMPLE = Schedule(codebooks=3, right_context=2, lookahead=2, chunk=4)


def planned(schedule, done, received, eos_frame, closed, begun, frames=100):
    length = schedule.length(received, eos_frame, closed)
    target = schedule.target(done, schedule.complete(received, length), length, closed, begun)
    return plan_step(done, target, frames, length, received, closed)


@pytest.mark.parametrize(
    ("state", "step_meta"),
    [
        ((0, 2, NO_END, False, False), (0, 0, LENGTH_UNKNOWN, 2)),
        ((0, 5, NO_END, False, False), (0, 3, LENGTH_UNKNOWN, 5)),
        ((3, 8, NO_END, False, True), (3, 0, LENGTH_UNKNOWN, 8)),
        ((3, 9, 6, False, True), (3, 5, 6, 9)),
        ((8, 9, 6, True, True), (8, 0, 6, ~9)),
        ((3, 8, NO_END, True, True), (3, 7, 8, ~8)),  # closed without an end: what has come is the clip
        ((0, 0, NO_END, True, False), (0, 0, 0, ~0)),  # no frames are not flushed
        ((0, 9, 0, False, False), (0, 0, 0, 9)),
    ],
)
def test_the_example(state, step_meta):
    assert planned(EXAMPLE, *state) == step_meta


ints = st.integers
# done, received, eos_frame, closed, begun
STATES = st.tuples(ints(0, 30), ints(0, 40), ints(NO_END, 40), st.booleans(), st.booleans())
SCHEDULES = st.builds(Schedule, ints(1, 9), ints(0, 10), ints(0, 10), ints(1, 16), ints(1, 5))


@given(SCHEDULES, st.lists(STATES, min_size=1, max_size=8), st.integers(1, 20))
def test_the_device_plans_every_slot_as_the_host_plans_one(schedule, states, frames):
    done, received, eos_frame, closed, begun = zip(*states, strict=True)
    numbers = (torch.tensor(values, dtype=torch.int32) for values in (done, received, eos_frame))
    step_meta = planned(schedule, *numbers, torch.tensor(closed), torch.tensor(begun), frames)
    assert all(part.dtype == torch.int32 for part in step_meta)
    assert torch.stack(step_meta, 1).tolist() == [[*planned(schedule, *state, frames)] for state in states]


@given(SCHEDULES, st.integers(0, 30), st.booleans(), st.integers(1, 20), st.integers(1, 7))
def test_a_clip_goes_through_once_from_its_first_frame_to_the_last_of_its_context(schedule, n, ends, frames, message):
    delayed = n + schedule.codebooks - 1
    done, received, closed = 0, 0, False
    while not closed:
        received, closed = min(received + message, delayed), received + message >= delayed
        eos_frame = n if ends and received >= n else NO_END
        begun = done > 0
        while (step_meta := planned(schedule, done, received, eos_frame, closed, begun, frames))[1]:
            assert step_meta[0] == done
            assert step_meta[1] <= frames
            done += step_meta[1]
            assert done <= received - schedule.codebooks + 1 or step_meta[2] == (n if ends else delayed)
    length = n if ends else delayed
    assert done == (length + schedule.right_context if length else 0)


@given(st.lists(st.integers(0, 20), min_size=1, max_size=4), st.integers(1, 9), st.integers(0, 10), st.integers(1, 9))
def test_whole_clips(lengths, frames, right_context, codebooks):
    plan = clip_steps(torch.tensor(lengths, dtype=torch.int32), max(lengths), frames, right_context, codebooks)
    assert plan.dtype == torch.int32
    for slot, length in enumerate(lengths):
        done, counts, lengths_said, known = plan[:, slot].T.tolist()
        assert done == [*range(0, max(lengths) + right_context, frames)]
        assert sum(counts) == (length + right_context if length else 0)
        assert all(count == frames for count, after in pairwise(counts) if after)
        assert {*lengths_said, length} == {length}
        assert {*known, ~(length + codebooks - 1)} == {~(length + codebooks - 1)}
    if len({*lengths}) == codebooks == 1:
        assert torch.equal(plan, same_clips(len(lengths), lengths[0], frames, right_context, plan.device))


def test_a_preview_is_of_slots_that_moved_and_are_not_flushed():
    schedule = Schedule(codebooks=3, right_context=10, lookahead=4)
    cases = (True, 20, LENGTH_UNKNOWN), (True, 20, 20), (True, 30, 20), (False, 20, LENGTH_UNKNOWN)
    assert [schedule.preview(*case) for case in cases] == [6, 6, 0, 0]
