"""Streams in steps, as the kernels take them: samples are right and on time, and slots are independent."""

import math
from contextlib import nullcontext
from itertools import accumulate, zip_longest
from unittest.mock import patch

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from tests.model.codecs import frames_of, in_windows, integer_codec
from tests.model.operations import Operations
from tests.model.talks import one_by_one, push_all, talks
from zonos2_triton.bench.proof.lookahead import decibels
from zonos2_triton.model import Vocoder
from zonos2_triton.model import vocoder_streams as streams_module
from zonos2_triton.reference import vocoder as reference


@pytest.fixture(scope="module")
def codecs(in_steps):
    """By their rates. With (1, 3) a clip is four samples shorter than its frames, more than one frame."""
    found = {rates: in_steps(integer_codec(rates)) for rates in ((3, 2), (1, 3), (5,))}
    for vocoder in found.values():
        whole = vocoder.decode(frames_of(70).T[None])
        assert torch.equal(whole, Vocoder(vocoder.config, vocoder.state).decode(frames_of(70).T[None]))
    return found


@pytest.fixture
def five(codecs):
    return codecs[5,]


def as_if_nothing_followed(vocoder, frames, complete, eos_frame=None):
    """All samples of a clip that ended with these frames, with silence for the missing codes."""
    config, state = vocoder.config, vocoder.state
    length = complete + 2 * vocoder.decoder.right_context
    length = length if eos_frame is None else min(length, eos_frame)
    z = torch.zeros(1, config.latent_dim, length, dtype=torch.float64)
    for c in range(config.n_codebooks):
        ids = frames[c : c + length, c].clamp(max=config.codebook_size - 1)
        part = f"quantizer.quantizers.{c}"
        vectors = state[f"{part}.codebook.weight"][ids] @ state[f"{part}.out_proj.weight"][..., 0].T
        z[0, :, : len(ids)] += (vectors + state[f"{part}.out_proj.bias"]).T
    with patch.object(reference, "rvq_decode", lambda *_: z):
        return reference.decode(config, state, torch.zeros(1, 3, length))["audio"][0].float()


class Schedule:
    """The samples of a stream after each message, by the documented rule."""

    def __init__(self, vocoder, lookahead=None, chunk=16, first_chunk=1):
        self.config, self.decoder = vocoder.config, vocoder.decoder
        self.lookahead = min(self.decoder.right_context if lookahead is None else lookahead, self.decoder.right_context)
        self.chunk, self.first_chunk = chunk, first_chunk
        self.eos_frame, self.done, self.sent, self.final, self.over = None, 0, 0, 0, False

    def push(self, total, eos_frame, last):
        """-> samples so far, and how many of them are final."""
        self.eos_frame = self.eos_frame if eos_frame is None else eos_frame
        end = total if self.eos_frame is None else min(total, self.eos_frame)
        complete = max(min(total - self.config.n_codebooks + 1, end), 0)
        self.over = self.over or last or complete == self.eos_frame
        if self.over:
            self.sent = self.final = self.config.samples(end)
        elif complete - self.done >= self.chunk if self.sent else complete >= self.lookahead + self.first_chunk:
            self.done, hop = complete, self.config.hop
            known = complete if self.eos_frame is None else self.eos_frame
            self.final = min(max(complete * hop - self.decoder.delay, self.final), self.config.samples(known))
            sent = min((complete - self.lookahead) * hop, self.config.samples(complete))
            self.sent = self.final if self.lookahead == self.decoder.right_context else max(self.final, sent)
        return self.sent, self.final


waits = st.integers(1, 20), st.integers(1, 5)  # chunk, first_chunk
rates = st.sampled_from([(3, 2), (1, 3), (5,)])


def step_meta_of(vocoder):
    """(the metadata of each later step of the vocoder's decoder, the context that records them)."""
    seen, step = [], vocoder.decoder.step

    def seeing(made, codes, step_meta, frames, delayed):
        assert frames == step_meta[:, 1].max(), "more than any slot needs"
        seen.append(step_meta.tolist())
        return step(made, codes, step_meta, frames, delayed)

    return seen, patch.object(vocoder.decoder, "step", seeing)


class TestOneClip:
    @given(rates, talks(), *waits, st.none() | st.integers(0, 60))
    @example((3, 2), one_by_one(frames_of(70)), 1, 1, None)
    @example((3, 2), (frames_of(70), [(0, 70, None, True)]), 1, 1, None)
    @example((1, 3), one_by_one(frames_of(70)), 1, 1, 0)
    @example((1, 3), (frames_of(70), [(0, 30, None, False), (30, 32, 28, True)]), 1, 1, 0)
    def test_each_sample(self, codecs, rates, talk, chunk, first_chunk, lookahead):
        """Samples are on time. Early samples are those of a clip that ended there, and the error is the difference.
        With the whole lookahead nothing is early, and each frame goes through the layers once."""
        vocoder, (frames, messages), emitted = codecs[rates], talk, torch.zeros(0)
        options = {"lookahead": lookahead, "chunk": chunk, "first_chunk": first_chunk}
        stream, schedule = vocoder.stream(**options), Schedule(vocoder, **options)
        eos_frame = next((eos for *_, eos, _ in messages if eos is not None), None)
        true, early = in_windows(vocoder, frames, eos_frame), []
        seen, watched = step_meta_of(vocoder)
        for begin, end, eos, last in messages:
            with watched:
                got, start = stream.push(frames[begin:end], eos, last), len(emitted)
            sent, final = schedule.push(end, eos, last)
            assert (start + len(got), got.dtype) == (sent, torch.float32)
            emitted = torch.cat([emitted, got])
            assert torch.equal(emitted[start:final], true[start:final])
            if sent > max(start, final):
                early.append(range(max(start, final), sent))
                guess = as_if_nothing_followed(vocoder, frames[:end], schedule.done, schedule.eos_frame)
                assert torch.equal(emitted[early[-1]], guess[early[-1]])
            known = [i for at in early for i in at if i < final]
            assert stream.signal_to_error == pytest.approx(decibels(emitted[known], true[known]), rel=1e-9)
        assert len(emitted) == len(true)
        if schedule.lookahead == vocoder.decoder.right_context:
            assert not early
            assert stream.signal_to_error == math.inf
            counts, length = [count for ((_, count, *_),) in seen], len(frames) if eos_frame is None else eos_frame
            assert [done for ((done, *_),) in seen] == [0, *accumulate(counts)][:-1]
            assert sum(counts) == (length + vocoder.decoder.right_context if length else 0)

    def test_what_is_emitted_early_is_one_step_more(self, five):
        """No samples when none are due, and none at the end."""
        stream, steps = five.stream(lookahead=3, chunk=4), []
        seen, watched = step_meta_of(five)
        with watched:
            for count, eos_frame in ((5, None), (1, None), (2, None), (3, None), (4, None), (4, 14), (1, None)):
                stream.push(frames_of(count), eos_frame)
                steps.append([slot[:2] for (slot,) in seen])
                seen.clear()
        ahead = 12 - 3
        early = [[0, 4], [4, ahead]], [[4, 5], [9, ahead]], [[9, 4], [13, ahead]]
        assert steps == [[], early[0], [], early[1], early[2], [[13, 12], [25, 1]], []]

    def test_the_reference_looks_ahead_in_steps_too(self, five):
        """Its windows emit final samples only."""
        plain, talk = Vocoder(five.config, five.state), (frames_of(30), [(0, 9, None, False), (9, 30, None, True)])
        assert torch.equal(push_all(plain.stream(lookahead=2), talk), push_all(five.stream(lookahead=2), talk))


@st.composite
def rounds(draw):
    """(frames, eos_frame) of the clips of three slots, one after the other, and rounds of messages to all slots.

    An entry of a round is None, or (restart, begin, end, eos_frame, last) for the current clip of the slot.
    """
    rows = []
    for slot in range(3):
        entries = []
        for number in range(draw(st.integers(1, 2))):
            frames, messages = draw(talks(most=40))
            finished = messages if draw(st.booleans()) else messages[:-1]  # the next clip may begin in the midst of it
            entries += [(slot, number, frames, i == 0, *message) for i, message in enumerate(finished)]
        for _ in range(draw(st.integers(0, 4))):
            entries.insert(draw(st.integers(0, len(entries))), None)
        rows.append(entries)
    return [[*entries] for entries in zip_longest(*rows)]


TWO = frames_of(2)
WRONG_ROUNDS = {
    "no-slots": ({"frames": []}, ValueError, "frames must hold one entry for each of the 3 slots, got 0"),
    "fewer-ends": ({"eos_frames": [31]}, ValueError, "eos_frames must hold one entry for each of the 3 slots, got 1"),
    "width": ({"frames": [TWO, TWO[:, :2], None]}, ValueError, r"slot 1: frames must be .* \[n, 3\], got \[2, 2\]"),
    "closed": ({"frames": [TWO, TWO, TWO[:0]]}, ValueError, "slot 2: this .* was closed by last=True; open another"),
    "end-decoded": ({"eos_frames": [30, 17, None]}, ValueError, "slot 1: eos_frame must be at least 18, which are"),
    "end-not-pushed": ({"last": [True, True, False]}, ValueError, "slot 0: eos_frame must be at most the 29 .* got 30"),
}


class TestSlots:
    @given(rounds(), *waits, st.none() | st.integers(0, 30))
    def test_each_slot_is_a_stream_of_its_own(self, codecs, rounds, chunk, first_chunk, lookahead):
        vocoder, options = codecs[3, 2], {"chunk": chunk, "first_chunk": first_chunk, "lookahead": lookahead}
        streams, alone = vocoder.streams(3, **options), [vocoder.streams(1, **options) for _ in range(3)]
        for entries in rounds:
            messages = [(None, None, False)] * 3
            for entry in filter(None, entries):
                slot, number, frames, first, begin, end, eos_frame, last = entry
                if first and number:
                    streams.restart(slot)
                    alone[slot] = vocoder.streams(1, **options)
                messages[slot] = frames[begin:end], eos_frame, last
            got = streams.push(*zip(*messages, strict=True))
            for slot, message in enumerate(messages):
                assert torch.equal(got[slot], alone[slot].push(*([part] for part in message))[0])
                assert streams.signal_to_error(slot) == alone[slot].signal_to_error()

    def test_one_step_for_all(self, five):
        streams = five.streams(3)
        seen, watched = step_meta_of(five)
        with watched:
            streams.push([frames_of(20), frames_of(18), None])
            streams.push([frames_of(3), frames_of(3), frames_of(13)])
            streams.push([frames_of(13), None, frames_of(2)], eos_frames=[None, 16, None])
            streams.push([None, None, None])
        steps = [[slot[:2] for slot in step_meta] for step_meta in seen]
        assert steps == [[[0, 16], [0, 16], [0, 0]], [[16, 2], [16, 0], [0, 0]], [[18, 16], [16, 12], [0, 13]]]

    @pytest.mark.parametrize("case", WRONG_ROUNDS)
    def test_a_refused_push_changes_no_slot(self, five, case):
        """The first slot ends at frame 30, of which 20 have come; the second is open; the third is closed."""
        frames, emitted = frames_of(60), []
        messages, error, text = WRONG_ROUNDS[case]
        for refused in (True, False):
            streams = five.streams(3, lookahead=2)
            out = [streams.push([frames[:20]] * 3, [30, None, None], [False, False, True])]
            if refused:
                with pytest.raises(error, match=text):
                    streams.push(**{"frames": [frames[20:29], frames[20:29], None], **messages})
            out.append(streams.push([frames[20:40], frames[20:], None]))
            out.append(streams.push([None, None, None], last=[True, True, False]))
            emitted.append([torch.cat(parts) for parts in zip(*out, strict=True)])
        assert all(map(torch.equal, *emitted))
        assert [*map(len, emitted[0])] == [five.config.samples(n) for n in (30, 60, 20)]

    def test_a_slot_that_is_not_there(self, five):
        for slot in (-1, 3, True, 1.0):
            with pytest.raises(ValueError, match=rf"slot must be in 0..2, got {slot}"):
                five.streams(3).restart(slot)

    @pytest.mark.parametrize(("name", "least"), [("batch_size", 1), ("chunk", 1), ("first_chunk", 1), ("lookahead", 0)])
    def test_settings(self, five, name, least):
        for wrong in (least - 1, True, 2.0, "2"):
            with pytest.raises(ValueError, match=f"{name} must be an integer from {least}, got {wrong!r}"):
                five.streams(**{"batch_size": 1, name: wrong})

    def test_a_long_clip_is_not_kept(self, five):
        """A caller may reuse its buffer, though the frames are decoded later."""
        streams, frames, buffer = five.streams(1), frames_of(360), torch.zeros(18, 3, dtype=torch.int64)
        sizes, chunks = [], []
        for i, part in enumerate(frames.split(18)):
            buffer.copy_(part)
            with Operations() as seen:
                chunks += streams.push([buffer], last=[i == 19])
            sizes.append(max(seen.bytes))
        assert max(sizes[5:]) == max(sizes[:5]) < frames.nbytes
        assert torch.equal(torch.cat(chunks), in_windows(five, frames))

    def test_kernels_run_where_the_weights_are(self, five, monkeypatch):
        """On the second of two GPUs too, whichever is the current one."""
        entered = []
        monkeypatch.setattr(streams_module, "current", lambda device: entered.append(device) or nullcontext())
        five.stream().push(frames_of(20), last=True)
        assert {*entered} == {five.device}
