"""The consequences of a frame's codes: the next ids, the end, the history."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.kernels.operator_suite import EXACT, OperatorTests, at, interpreted, wrong
from zonos2_triton.kernels.advance_frame import advance_frame
from zonos2_triton.model import Sampling
from zonos2_triton.reference.advance_frame import SLOT_FREE, SLOT_NONFINITE
from zonos2_triton.reference.advance_frame import advance_frame as reference
from zonos2_triton.reference.sampling import NEVER_SEEN, distributions, probabilities
from zonos2_triton.reference.stopping import EndDetector


class TestAdvanceFrame(OperatorTests):
    name = "advance_frame"
    accuracy = EXACT
    # 9 codes and nonfinite and 5 numbers in; 4 numbers, 9 entries of the history, and two rows of 10 out
    costs = {"decode-B1": (4 * (18 + 5 + 4 + 9 + 20), 18)}
    wrong = [
        wrong(r"nonfinite must have shape \[B=2, C=5\], got \[2, 4\]", nonfinite=lambda f: f[:, :4].clone()),
        wrong(r"eos_frames must have shape \[B=2\], got \[1\]", eos_frames=lambda e: e[:1]),
        wrong(r"ids must have shape \[B=2, C\+1=6\], got \[2, 5\]", ids=lambda i: i[:, :5].clone()),
        wrong(r"frames must have shape \[B=2, N, C\+1=6\], got", frames=lambda f: f[..., :5].clone()),
        wrong("codes must have fewer than 32 codebooks, got 32", sizes={"C": 32}),
        wrong(r"codes must be in 0\.\.10, the codes that last_seen has room for; got 11", codes=at((1, 1), 11)),
        wrong(r"codes must be in 0\.\.10, .*; got -1", codes=at((1, 0), -1)),
    ]


def int32(numbers):
    return torch.tensor(numbers, dtype=torch.int32)


def before(max_frames, eoa_ids, C=9, V=1026, N=4):
    """Arguments of `advance_frame` but the first two: requests whose prompts are of 3, 4, ... rows."""
    B = len(max_frames)
    return {
        "positions": torch.arange(3, 3 + B, dtype=torch.int32),
        "steps": int32([0] * B),
        "max_frames": int32(max_frames),
        "eoa_ids": int32(eoa_ids),
        "eos_frames": int32([-1] * B),
        "ids": int32([[7] * (C + 1)] * B),
        "last_seen": torch.full((B, C, V), NEVER_SEEN, dtype=torch.int32),
        "frames": torch.full((B, N, C + 1), -9, dtype=torch.int32),
        "text_id": 519,
    }


def copied(state):
    return {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in state.items()}


def differ(a, b):
    """The names of what is not the same in two states."""
    return [name for name in a if name != "text_id" and not torch.equal(a[name], b[name])]


def push(state, codes, nonfinite=None):
    """One frame, by kernel and reference; state is changed."""
    codes, twin = int32(codes), copied(state)
    nonfinite = torch.zeros_like(codes) if nonfinite is None else nonfinite
    advance_frame(codes, nonfinite, **state)
    reference(codes, nonfinite, **twin)
    assert differ(state, twin) == []


some_frames = st.integers(1, 5).flatmap(
    lambda C: st.lists(st.lists(st.integers(0, 3), min_size=C, max_size=C), min_size=1, max_size=16)
)


@given(some_frames, st.integers(1, 16), st.booleans())
def test_the_reference_ends_where_the_serial_rule_does(frames, limit, ignore_eos):
    detector, C = EndDetector(3, limit, ignore_eos), len(frames[0])
    state = before([limit], [-1 if ignore_eos else 3], C, V=4)
    for frame in frames:
        last = detector.push(frame)
        reference(int32([frame]), int32([[0] * C]), **state)
        assert state["steps"].item() == detector.step
        assert state["eos_frames"].item() == (-1 if detector.eos_frame is None else detector.eos_frame)
        assert (state["positions"].item() == SLOT_FREE) == last
        if last:
            return
    assert state["positions"].item() == 3 + len(frames)


@interpreted
@pytest.mark.usefixtures("quick_interpreter")
class TestEnds:
    def test_what_a_frame_leaves(self):
        """The row that is fed back, and the newest four frames with the end as known by each."""
        state = before([50], [3], C=3, V=9)
        frames = [[s % 3, 4 + s % 4, 8] for s in range(6)]
        frames[4][1] = 3
        for frame in frames:
            push(state, [frame])
        assert state["ids"].tolist() == [[*frames[5], 519]]
        assert state["frames"].tolist() == [[[*frames[4], 3], [*frames[5], 3], [*frames[2], -1], [*frames[3], -1]]]
        assert (state["positions"].item(), state["steps"].item(), state["max_frames"].item()) == (9, 6, 8)
        last_seen = torch.full((3, 9), NEVER_SEEN)
        for step, frame in enumerate(frames):
            last_seen[range(3), frame] = step
        assert torch.equal(state["last_seen"][0], last_seen)

    def test_the_code_that_ends_may_be_zero(self):
        """Which is what lanes beyond the codebooks hold."""
        state = before([50], [0], C=3, V=9)
        for code in (8, 8, 0):
            assert state["eos_frames"].item() == -1
            push(state, [[1, code, 2]])
        assert state["eos_frames"].item() == 1

    def test_idle_and_faulty_rows_stay_as_they_are(self):
        state = before([50] * 4, [3] * 4, C=3, V=9)
        push(state, [[0, 1, 2]] * 4)
        state["positions"][1], state["positions"][2] = SLOT_FREE, SLOT_NONFINITE
        old, nonfinite = copied(state), torch.zeros(4, 3, dtype=torch.int32)
        nonfinite[0, 2] = nonfinite[2, 0] = 1
        push(state, [[3, 3, 8]] * 4, nonfinite)
        assert state["positions"].tolist() == [SLOT_NONFINITE, SLOT_FREE, SLOT_NONFINITE, 8]
        for name in ("steps", "max_frames", "eos_frames", "ids", "last_seen", "frames"):
            assert torch.equal(state[name][:3], old[name][:3])
            assert not torch.equal(state[name][3], old[name][3])

    def test_rows_of_whole_numbers_may_begin_anywhere(self):
        """As those of some requests among others do: behind another, at no multiple of 16 bytes."""
        codes, state = int32([[1, 4, 8]] * 3), before([9] * 3, [4] * 3, C=3, V=9)
        shifted = {name: x if name == "text_id" else torch.cat([x[:1], x])[1:] for name, x in state.items()}
        for each in (state, shifted):
            advance_frame(codes, torch.zeros_like(codes), **each)
        assert differ(state, shifted) == []

    def test_last_seen_stands_for_the_whole_history(self, seeded):
        """After 0, 1, 2 and 60 frames; and the window of it is all that counts."""
        windows, V, lengths = (0, 1, 50, 1000), 40, (0, 1, 2, 60)
        off = Sampling(temperature=1, top_k=1026, min_p=0, repetition_penalty=3, repetition_codebooks=9)
        samplings = [replace(off, repetition_window=w) for w in windows]
        history = torch.randint(0, V, (60, 4, 9), generator=torch.Generator().manual_seed(1))
        history[20:, :, 0] = 5  # others came long ago
        state, logits = before([99] * 4, [-1] * 4, V=V), 4 * seeded(4, 9, V)
        numbers = torch.tensor([s.packed() for s in samplings])
        for n in range(61):
            if n in lengths:
                got = distributions(logits, numbers, state["steps"], state["last_seen"])
                for b, (sampling, w) in enumerate(zip(samplings, windows, strict=True)):
                    past = history[:n, b]
                    assert torch.equal(got[b], probabilities(logits[b], sampling, past))
                    recent = past[max(n - w, 0) :]
                    assert torch.equal(got[b], probabilities(logits[b], samplings[-1], recent))
                    penalised = not torch.equal(got[b], probabilities(logits[b], sampling, past[:0]))
                    assert penalised == (min(n, w) > 0)
            if n < 60:
                push(state, history[n].tolist())
