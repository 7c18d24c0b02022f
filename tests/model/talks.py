"""Frames and the messages that push them into a stream, drawn by hypothesis."""

import torch
from hypothesis import strategies as st

from tests.model.codecs import frames_of


@st.composite
def talks(draw, most=70, codebooks=3, top=18):
    """Frames, and messages (begin, end, eos_frame, last) that push them."""
    frames = frames_of(draw(st.integers(0, most)), draw(st.integers(0, 9)), codebooks, top)
    n = len(frames)
    cuts = [0, *sorted(draw(st.lists(st.integers(0, n), max_size=8))), n]
    told = draw(st.none() | st.integers(1, len(cuts) - 1))  # the message that says where the audio ends
    eos_frame = None if told is None else draw(st.integers(max(cuts[told - 1] - codebooks + 1, 0), n))
    again = draw(st.booleans())
    said = [None if told is None or i < told or (i > told and not again) else eos_frame for i in range(1, len(cuts))]
    return frames, [(*cuts[i : i + 2], eos, i == len(cuts) - 2) for i, eos in enumerate(said)]


def one_by_one(frames):
    return frames, [(i, i + 1, None, i == len(frames) - 1) for i in range(len(frames))]


def push_all(stream, talk):
    """Joined samples of all messages of a talk."""
    frames, messages = talk
    return torch.cat([stream.push(frames[begin:end], eos_frame, last) for begin, end, eos_frame, last in messages])
