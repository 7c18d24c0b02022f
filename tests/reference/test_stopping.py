import torch
from hypothesis import given
from hypothesis import strategies as st

from zonos2_triton.reference.stopping import find_end


def test_golden(golden):
    vectors = golden.json("eos")
    assert len(vectors["cases"]) == 21
    for case in vectors["cases"]:
        got = find_end(torch.tensor(case["frames"]), vectors["eoa_id"], case["max_tokens"], case["ignore_eos"])
        eos_frame = None if case["final_eos_frame"] == -1 else case["final_eos_frame"]
        assert got == (case["frames_consumed"], eos_frame), case["name"]


codes = st.integers(1020, 1025)


@given(st.lists(st.lists(codes, min_size=9, max_size=9), max_size=40), st.integers(1, 50))
def test_the_first_end_decides(frames, max_frames):
    """The rule once more, not serially: from the first frame that holds an end."""
    consumed, eos_frame = find_end(frames, max_frames=max_frames)
    ends = [i for i, frame in enumerate(frames[:max_frames]) if 1024 in frame]
    if not ends:
        assert (consumed, eos_frame) == (min(len(frames), max_frames), None)
        return
    first = ends[0]
    assert eos_frame == max(0, first - max(c for c in range(9) if frames[first][c] == 1024))
    assert consumed == min(len(frames), max_frames, first + 10)


def test_no_frames():
    assert find_end(torch.zeros(0, 9, dtype=torch.int64)) == (0, None)
