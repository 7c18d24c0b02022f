"""Streams: the official cross-fade sample for sample, and exact streams that equal whole clips bit for bit."""

import json
import math
from contextlib import nullcontext
from itertools import accumulate, pairwise, zip_longest
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from zonos2_triton.model import Vocoder, VocoderConfig
from zonos2_triton.model import vocoder_streams as streams_module
from zonos2_triton.reference import vocoder as reference
from zonos2_triton.reference.delay import shear_up
from zonos2_triton.reference.stopping import EndDetector

ATOL = 1e-4  # of the golden vectors
END, PAD = 1024, 1025
LONGEST = 90  # frames: three windows


def stream_cases():
    """The golden cases by name; the one that interleaves two streams becomes two."""
    path = Path(__file__).parents[1] / "golden" / "vocoder_stream.json"
    cases = {case["name"]: case for case in json.loads(path.read_text(encoding="utf-8"))["cases"]}
    pair = cases.pop("interleaved_1/2")
    rounds = pair["chunk_samples_per_message_pair"]  # the first stream ends first
    cases["interleaved_1"] = {**pair, "chunk_samples_per_message": [both[0] for both in rounds if len(both) == 2]}
    cases["interleaved_2"] = {**pair, "chunk_samples_per_message": [both[-1] for both in rounds]}
    return cases


CASES = stream_cases()


@pytest.fixture(scope="module")
def codecs(golden):
    return {name: golden.vocoder(name) for name in ("even", "odd")}


@pytest.fixture(scope="module")
def stored(golden):
    return golden.tensors("vocoder_stream")


def random_frames(n, seed=0):
    return torch.randint(1024, (n, 9), generator=torch.Generator().manual_seed(seed))


def clip(vocoder, frames, eos_frame=None):
    """The whole clip at once."""
    return vocoder.decode(shear_up(frames, PAD)[:eos_frame].T[None])[0]


def open_stream(vocoder, mode, case):
    official = {"overlap": case["overlap_frames"], "chunk": case["min_decode_chunk"]} if mode == "overlap" else {}
    return vocoder.stream(mode, **official)


def push_each(stream, codes, case):
    """One message per frame; eos_frame goes with every message from the one that first reports it."""
    known_from = case.get("eos_first_reported_at_message")
    for i, frame in enumerate(codes):
        eos_frame = None if known_from is None or i < known_from else case["eos_frame"]
        yield stream.push(frame[None], eos_frame=eos_frame, last=i == len(codes) - 1)


class TestGolden:
    @pytest.mark.parametrize("name", CASES)
    def test_overlap(self, codecs, stored, name):
        chunks = [*push_each(open_stream(codecs["even"], "overlap", CASES[name]), stored[f"{name}.codes"], CASES[name])]
        assert [len(chunk) for chunk in chunks] == CASES[name]["chunk_samples_per_message"]
        torch.testing.assert_close(torch.cat(chunks), stored[f"{name}.stream"], atol=ATOL, rtol=0)

    @pytest.mark.parametrize("name", CASES)
    def test_exact(self, codecs, stored, name):
        chunks = push_each(codecs["even"].stream(), stored[f"{name}.codes"], CASES[name])
        whole = clip(codecs["even"], stored[f"{name}.codes"], CASES[name].get("eos_frame"))
        assert torch.equal(torch.cat([*chunks]), whole)
        if f"{name}.nonstream" in stored:
            torch.testing.assert_close(whole, stored[f"{name}.nonstream"], atol=ATOL, rtol=0)

    @pytest.mark.parametrize("name", CASES)
    def test_in_steps(self, codecs, in_steps, stored, name):
        """Both kinds of stream, as the kernels take them."""
        vocoder, case = in_steps(codecs["even"]), CASES[name]
        for mode, wanted in (("overlap", "stream"), ("exact", "nonstream")):
            if f"{name}.{wanted}" in stored:
                chunks = [*push_each(open_stream(vocoder, mode, case), stored[f"{name}.codes"], case)]
                torch.testing.assert_close(torch.cat(chunks), stored[f"{name}.{wanted}"], atol=ATOL, rtol=0)

    @pytest.mark.parametrize("mode", ["exact", "overlap"])
    def test_all_at_once(self, codecs, stored, mode):
        """Streams of one vocoder, pushed in turn, do not touch each other."""

        def feeds():
            return [
                push_each(open_stream(codecs["odd"], mode, case), stored[f"{name}.codes"], case)
                for name, case in CASES.items()
            ]

        in_turn = [
            [chunk for chunk in chunks if chunk is not None] for chunks in zip(*zip_longest(*feeds()), strict=True)
        ]
        for name, together, feed in zip(CASES, in_turn, feeds(), strict=True):
            assert all(map(torch.equal, together, feed)), name
            assert len(together) == len(stored[f"{name}.codes"])


@st.composite
def messages(draw):
    """(frames, the cuts between messages, eos_frame or None, the message that first knows it) of a generated clip."""
    frames = random_frames(draw(st.integers(0, LONGEST)), seed=draw(st.integers(0, 3)))
    if len(frames) and draw(st.booleans()):
        frames[draw(st.integers(0, len(frames) - 1)), draw(st.integers(0, 8))] = END
    detector, known_at = EndDetector(END, max_frames=LONGEST), None
    for frame in frames.tolist():
        over = detector.push(frame)
        if known_at is None and detector.eos_frame is not None:
            known_at = detector.step  # frames that must have come
        if over:
            break
    frames = frames[: detector.step]
    inner = draw(st.lists(st.integers(0, len(frames)), max_size=12))
    return frames, [0, *sorted(inner), len(frames)], detector.eos_frame, known_at


ONE_BY_ONE = [*range(LONGEST + 1)]


class TestExact:
    @settings(deadline=None, max_examples=150, derandomize=True)
    @given(clip_messages=messages())
    @example(clip_messages=(random_frames(0), [0, 0], None, None))
    @example(clip_messages=(random_frames(LONGEST), [0, LONGEST], None, None))
    @example(clip_messages=(random_frames(LONGEST), ONE_BY_ONE, None, None))
    def test_odd(self, codecs, clip_messages):
        self.check(codecs["odd"], *clip_messages)

    @settings(deadline=None, max_examples=15, derandomize=True)
    @given(clip_messages=messages())
    @example(clip_messages=(random_frames(LONGEST), ONE_BY_ONE, None, None))
    def test_even(self, codecs, clip_messages):
        self.check(codecs["even"], *clip_messages)

    @staticmethod
    def check(vocoder, frames, cuts, eos_frame, known_at):
        """Joined it is the clip; and no window comes later than the frames that it needs."""
        stream, emitted = vocoder.stream(), [torch.zeros(0)]
        windows = [vocoder.window(i) for i in range(LONGEST // 32 + 1)]
        for i, (start, end) in enumerate(pairwise(cuts)):
            known = eos_frame if known_at is not None and end >= known_at else None
            last = i == len(cuts) - 2
            chunk = stream.push(frames[start:end], known, last)
            assert chunk.ndim == 1
            assert chunk.dtype == torch.float32
            emitted.append(chunk)
            complete = min(end - 8, LONGEST if known is None else known)
            due = sum(vocoder.config.hop * (w.stop - w.start) for w in windows if w.end <= complete)
            assert sum(map(len, emitted)) >= due, f"after {end} frames"
        assert torch.equal(torch.cat(emitted), clip(vocoder, frames, eos_frame))

    @pytest.mark.parametrize(("name", "needed"), [("even", 50), ("odd", 59)])
    def test_the_first_sound(self, codecs, name, needed):
        """32 frames, the 10 or 19 that their last samples depend on, and 8 for the delay."""
        stream = codecs[name].stream()
        assert len(stream.push(random_frames(needed - 1))) == 0
        assert len(stream.push(random_frames(1))) == 32 * codecs[name].config.hop

    def test_work_is_linear(self, codecs, monkeypatch):
        """2,000 frames, one by one: each window is decoded once, with the frames around it."""
        vocoder, frames, decoded = codecs["odd"], random_frames(2000), []
        decode_window = vocoder.decode_window

        def counting(window, aligned, total):
            decoded.append((window.start, len(aligned)))
            return decode_window(window, aligned, total)

        monkeypatch.setattr(vocoder, "decode_window", counting)
        stream = vocoder.stream()
        chunks = [stream.push(frame[None], last=i == 1999) for i, frame in enumerate(frames)]
        assert [start for start, _ in decoded] == [*range(0, 2000, 32)]
        window = vocoder.window(1)
        assert max(n for _, n in decoded) <= window.end - window.first
        monkeypatch.undo()
        assert torch.equal(torch.cat(chunks), clip(vocoder, frames))

    def test_frames_are_copied(self, codecs):
        """A caller may reuse its buffer."""
        frames, stream, buffer = random_frames(20), codecs["odd"].stream(), torch.zeros(1, 9, dtype=torch.int64)
        chunks = []
        for i, frame in enumerate(frames):
            buffer[0] = frame
            chunks.append(stream.push(buffer, last=i == 19))
        assert torch.equal(torch.cat(chunks), clip(codecs["odd"], frames))

    def test_what_is_final_does_not_wait_for_the_last_message(self, codecs):
        """The countdown of nine more frames is no part of the audio."""
        vocoder, frames = codecs["odd"], random_frames(60)
        stream = vocoder.stream()
        chunks = [stream.push(frames[:48]), stream.push(frames[48:50], eos_frame=42)]
        assert torch.equal(torch.cat(chunks), clip(vocoder, frames, 42))
        assert len(stream.push(frames[50:55], eos_frame=42)) == 0
        assert len(stream.push(frames[55:], eos_frame=42, last=True)) == 0


class TestOverlap:
    def test_one_message_has_no_borders(self, codecs):
        frames = random_frames(50)
        assert torch.equal(codecs["odd"].stream("overlap").push(frames, last=True), clip(codecs["odd"], frames))

    def test_an_overlap_longer_than_all_withholds_all(self, codecs):
        frames, stream = random_frames(40), codecs["odd"].stream("overlap", overlap=40, chunk=3)
        chunks = [stream.push(frame[None], last=i == 39) for i, frame in enumerate(frames)]
        assert [*map(len, chunks)] == [0] * 39 + [codecs["odd"].config.samples(40)]

    def test_settings_reach_the_stream(self, codecs):
        """Sixteen complete frames, four of them withheld."""
        stream = codecs["even"].stream("overlap")
        assert len(stream.push(random_frames(23))) == 0
        assert len(stream.push(random_frames(1))) == 12 * 512


FRAME = torch.zeros(1, 9, dtype=torch.int64)
REFUSED = {  # after 60 frames without an end: the last argument of a push, what it raises and says
    "too-narrow": ({"frames": FRAME[:, :8]}, ValueError, r"frames must be a tensor \[n, 9\], got \[1, 8\]"),
    "rank-1": ({"frames": FRAME[0]}, ValueError, r"frames must be a tensor \[n, 9\], got \[9\]"),
    "no-tensor": ({"frames": FRAME.tolist()}, ValueError, "got list"),
    "float": ({"frames": FRAME.float()}, TypeError, "frames must be integers, got torch.float32"),
    "bool": ({"frames": FRAME.bool()}, TypeError, "frames must be integers, got torch.bool"),
    "negative": ({"frames": FRAME - 1}, ValueError, r"frames\[0, 0\] must be in 0..1025, got -1"),
    "too-large": ({"frames": FRAME + 1026}, ValueError, r"frames\[0, 0\] must be in 0..1025, got 1026"),
    "end-negative": ({"eos_frame": -1}, ValueError, "eos_frame must be at least"),
    "end-decoded": ({"eos_frame": 31}, ValueError, r"eos_frame must be at least \d+, which are decoded, got 31"),
    "end-float": ({"eos_frame": 60.0}, ValueError, "eos_frame must be .*got 60.0"),
    "end-not-pushed": ({"eos_frame": 62, "last": True}, ValueError, "at most the 61 frames that were pushed, got 62"),
}


@pytest.mark.parametrize("mode", ["exact", "overlap"])
class TestRejects:
    @pytest.mark.parametrize("case", REFUSED)
    def test_a_refused_push_changes_nothing(self, codecs, mode, case):
        message, error, text = REFUSED[case]
        frames = random_frames(80)
        stream, untouched = (codecs["odd"].stream(mode) for _ in range(2))
        chunks, wanted = ([s.push(frames[:60])] for s in (stream, untouched))
        assert len(chunks[0]), "60 frames decode something"
        with pytest.raises(error, match=text):
            stream.push(**{"frames": FRAME, **message})
        for s, parts in ((stream, chunks), (untouched, wanted)):
            parts += [s.push(frames[60:70]), s.push(frames[70:], eos_frame=72, last=True)]
        assert all(map(torch.equal, chunks, wanted))

    @pytest.mark.parametrize("end", [True, 1.0, "1", -1], ids=repr)
    def test_the_end_is_a_number_of_frames(self, codecs, mode, end):
        with pytest.raises(ValueError, match=f"eos_frame must be .*got {end!r}"):
            codecs["odd"].stream(mode).push(FRAME, eos_frame=end)

    def test_after_the_last(self, codecs, mode):
        stream = codecs["odd"].stream(mode)
        stream.push(random_frames(12), last=True)
        for last in (False, True):
            with pytest.raises(ValueError, match="closed by last=True; open another"):
                stream.push(FRAME, last=last)

    @pytest.mark.parametrize("moved", [11, 13])
    def test_the_end_moves(self, codecs, mode, moved):
        stream, frames = codecs["odd"].stream(mode), random_frames(22)
        chunks = [stream.push(frames[:20], eos_frame=12)]
        with pytest.raises(ValueError, match=f"eos_frame was 12 in an earlier message, got {moved}"):
            stream.push(frames[20:], eos_frame=moved, last=True)
        chunks.append(stream.push(frames[20:], last=True))  # it need not be said again
        assert torch.equal(torch.cat(chunks), clip(codecs["odd"], frames, 12))

    def test_an_end_said_earlier_is_not_pushed(self, codecs, mode):
        stream, frames = codecs["odd"].stream(mode), random_frames(20)
        stream.push(frames[:10], eos_frame=19)
        with pytest.raises(ValueError, match="at most the 15 frames that were pushed, got 19"):
            stream.push(frames[10:15], last=True)


# In steps, as the kernels take clips. Here every sum is exact in any order, so that each sample is right or wrong.


def integers(rates):
    """A codec in fp64: small whole numbers, a snake that changes nothing, and a power of two before the tanh."""
    config = VocoderConfig(
        latent_dim=6, decoder_dim=8, decoder_rates=rates, n_codebooks=3, codebook_size=16, codebook_dim=2
    )
    generator = torch.Generator().manual_seed(0)
    state = {n: torch.randint(-1, 2, shape, generator=generator) for n, shape in reference.layout(config).items()}
    state = {n: t.double() * (not n.endswith("alpha")) for n, t in state.items()}
    stages = Vocoder(config, state).trace(torch.randint(18, (1, 3, 60), generator=generator))
    assert all(stages[name].abs().max() < 2**40 for name in stages), "or fp64 rounds"
    scale = 2.0 ** -round(math.log2(stages["pre_tanh"].std()))
    last = f"decoder.model.{len(rates) + 2}."
    return Vocoder(config, {n: t * scale if n.startswith(last) else t for n, t in state.items()})


@pytest.fixture(scope="module")
def exact_codecs(in_steps):
    """By their rates. With (1, 3) a clip is four samples shorter than its frames, more than one frame."""
    found = {rates: in_steps(integers(rates)) for rates in ((3, 2), (1, 3), (5,))}
    for vocoder in found.values():
        decode, codes = Vocoder(vocoder.config, vocoder.state).decode, torch.randint(18, (1, 3, 70))
        assert torch.equal(vocoder.decode(codes), decode(codes)), "in windows it is the same"
        assert 0.2 < vocoder.decode(codes).std() < 0.9
    return found


def small_frames(n, seed=0):
    return torch.randint(18, (n, 3), generator=torch.Generator().manual_seed(seed))


def whole(vocoder, frames, eos_frame=None):
    """The clip at once, in windows."""
    return Vocoder(vocoder.config, vocoder.state).decode(shear_up(frames, 17)[:eos_frame].T[None])[0]


def as_if_nothing_followed(vocoder, frames, complete, eos_frame=None):
    """All samples that there would be if the codes of these frames were all, and those that lack were silence."""
    config, state = vocoder.config, vocoder.state
    length = complete + 2 * vocoder.decoder.lookahead
    length = length if eos_frame is None else min(length, eos_frame)
    z = torch.zeros(1, config.latent_dim, length, dtype=torch.float64)
    for c in range(config.n_codebooks):
        ids = frames[c : c + length, c].clamp(max=config.codebook_size - 1)
        part = f"quantizer.quantizers.{c}"
        vectors = state[f"{part}.codebook.weight"][ids] @ state[f"{part}.out_proj.weight"][..., 0].T
        z[0, :, : len(ids)] += (vectors + state[f"{part}.out_proj.bias"]).T
    with patch.object(reference, "codebook_sum", lambda *_: z):
        return reference.decode(config, state, torch.zeros(1, 3, length))["audio"][0].float()


def decibels(true, got):
    signal, error = (float(x.square().sum()) for x in (true.double(), got.double() - true.double()))
    return 10 * math.log10(signal / error) if error else math.inf


@st.composite
def talks(draw, most=70):
    """Frames, and messages (begin, end, eos_frame, last) that push them."""
    frames = small_frames(draw(st.integers(0, most)), seed=draw(st.integers(0, 9)))
    n = len(frames)
    cuts = [0, *sorted(draw(st.lists(st.integers(0, n), max_size=8))), n]
    told = draw(st.none() | st.integers(1, len(cuts) - 1))  # the message that says where the audio ends
    eos_frame = None if told is None else draw(st.integers(max(cuts[told - 1] - 2, 0), n))
    again = draw(st.booleans())
    said = [None if told is None or i < told or (i > told and not again) else eos_frame for i in range(1, len(cuts))]
    return frames, [(*cuts[i : i + 2], eos, i == len(cuts) - 2) for i, eos in enumerate(said)]


class Schedule:
    """What a stream has emitted after each message, by the rule that users read."""

    def __init__(self, vocoder, lookahead=None, chunk=16, first_chunk=1):
        self.config, self.decoder = vocoder.config, vocoder.decoder
        self.lookahead = min(self.decoder.lookahead if lookahead is None else lookahead, self.decoder.lookahead)
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
            self.final = min(max(complete * hop - self.decoder.lag, self.final), self.config.samples(known))
            sent = min((complete - self.lookahead) * hop, self.config.samples(complete))
            self.sent = self.final if self.lookahead == self.decoder.lookahead else max(self.final, sent)
        return self.sent, self.final


waits = st.integers(1, 20), st.integers(1, 5)  # chunk, first_chunk
rates = st.sampled_from([(3, 2), (1, 3), (5,)])


def spans_of(vocoder):
    """(the spans of each step that the vocoder's decoder takes from here on, the context in which they are kept)."""
    seen, step = [], vocoder.decoder.step

    def seeing(made, codes, spans, frames, delayed):
        assert frames == spans[:, 1].max(), "more than any row needs"
        seen.append(spans.tolist())
        return step(made, codes, spans, frames, delayed)

    return seen, patch.object(vocoder.decoder, "step", seeing)


class TestSteps:
    @settings(deadline=None, max_examples=150, derandomize=True)
    @given(rates, talks(), *waits)
    @example((3, 2), (small_frames(70), [(i, i + 1, None, i == 69) for i in range(70)]), 1, 1)
    @example((3, 2), (small_frames(70), [(0, 70, None, True)]), 1, 1)
    def test_exact(self, exact_codecs, rates, talk, chunk, first_chunk):
        """Joined it is the clip, each sample comes when it is due, and each frame goes through the layers once."""
        vocoder, (frames, messages), emitted = exact_codecs[rates], talk, [torch.zeros(0)]
        stream = vocoder.stream(chunk=chunk, first_chunk=first_chunk)
        schedule = Schedule(vocoder, None, chunk, first_chunk)
        seen, watched = spans_of(vocoder)
        with watched:
            for begin, end, eos_frame, last in messages:
                emitted.append(stream.push(frames[begin:end], eos_frame, last))
                assert emitted[-1].dtype == torch.float32
                assert sum(map(len, emitted)) == schedule.push(end, eos_frame, last)[0]
        assert torch.equal(torch.cat(emitted), whole(vocoder, frames, schedule.eos_frame))
        assert stream.signal_to_error == math.inf
        assert [done for ((done, *_),) in seen] == [0, *accumulate(count for ((_, count, *_),) in seen)][:-1]
        length = len(frames) if schedule.eos_frame is None else schedule.eos_frame
        assert sum(count for ((_, count, *_),) in seen) == (length + vocoder.decoder.lookahead if length else 0)

    @settings(deadline=None, max_examples=150, derandomize=True)
    @given(rates, talks(), *waits, st.integers(0, 60))
    @example((1, 3), (small_frames(70), [(i, i + 1, None, i == 69) for i in range(70)]), 1, 1, 0)
    @example((1, 3), (small_frames(70), [(0, 30, None, False), (30, 32, 28, True)]), 1, 1, 0)
    def test_lookahead(self, exact_codecs, rates, talk, chunk, first_chunk, lookahead):
        """What comes early is the clip as if nothing followed, what comes late the clip; and the error is between."""
        vocoder, (frames, messages), emitted = exact_codecs[rates], talk, torch.zeros(0)
        options = {"lookahead": lookahead, "chunk": chunk, "first_chunk": first_chunk}
        stream, schedule = vocoder.stream(**options), Schedule(vocoder, **options)
        eos_frame = next((eos for *_, eos, _ in messages if eos is not None), None)
        true, early = whole(vocoder, frames, eos_frame), []
        for begin, end, eos, last in messages:
            got, start = stream.push(frames[begin:end], eos, last), len(emitted)
            sent, final = schedule.push(end, eos, last)
            assert start + len(got) == sent
            emitted = torch.cat([emitted, got])
            assert torch.equal(emitted[start:final], true[start:final])
            if sent > max(start, final):
                early.append(range(max(start, final), sent))
                guess = as_if_nothing_followed(vocoder, frames[:end], schedule.done, schedule.eos_frame)
                assert torch.equal(emitted[early[-1]], guess[early[-1]])
            known = [i for at in early for i in at if i < final]
            assert stream.signal_to_error == pytest.approx(decibels(true[known], emitted[known]), rel=1e-9)
        assert len(emitted) == len(true)

    def test_what_is_emitted_early_is_one_step_more(self, exact_codecs):
        """None where nothing is due, and none at the end."""
        stream, steps = exact_codecs[5,].stream(lookahead=3, chunk=4), []
        seen, watched = spans_of(exact_codecs[5,])
        with watched:
            for count, eos_frame in ((5, None), (1, None), (2, None), (3, None), (4, None), (4, 14), (1, None)):
                stream.push(small_frames(count), eos_frame)
                steps.append([span[:2] for (span,) in seen])
                seen.clear()
        ahead = 12 - 3
        early = [[0, 4], [4, ahead]], [[4, 5], [9, ahead]], [[9, 4], [13, ahead]]
        assert steps == [[], early[0], [], early[1], early[2], [[13, 12], [25, 1]], []]

    def test_the_reference_looks_ahead_in_steps_too(self, exact_codecs):
        """Its windows emit what is final alone."""
        vocoder = exact_codecs[5,]
        plain, frames = Vocoder(vocoder.config, vocoder.state), small_frames(30)
        streams = plain.stream(lookahead=2), vocoder.stream(lookahead=2)
        for part, last in ((frames[:9], False), (frames[9:], True)):
            got, wanted = (stream.push(part, last=last) for stream in streams)
            assert len(got)
            assert torch.equal(got, wanted)

    @pytest.mark.parametrize("rates", [(3, 2), (5,)], ids=str)
    def test_more_lookahead_is_no_worse(self, exact_codecs, rates):
        frames, heard = small_frames(150), []
        needed = exact_codecs[rates].decoder.lookahead
        for lookahead in (0, needed // 4, needed // 2, needed - 1, needed, needed + 9):
            stream = exact_codecs[rates].stream(lookahead=lookahead, chunk=4)
            for i, frame in enumerate(frames):
                stream.push(frame[None], last=i == len(frames) - 1)
            heard.append(stream.signal_to_error)
        assert heard == sorted(heard)
        assert heard[0] < 10 < heard[-3]
        assert heard[-2:] == [math.inf, math.inf]


@st.composite
def rounds(draw):
    """(frames, eos_frame) of the clips of each of three rows, one after the other, and rounds of messages to all rows.

    An entry of a round is None, or (restart, begin, end, eos_frame, last) for the clip that the row is at.
    """
    rows = []
    for row in range(3):
        entries = []
        for number in range(draw(st.integers(1, 2))):
            frames, messages = draw(talks(most=40))
            finished = messages if draw(st.booleans()) else messages[:-1]  # the next clip may begin in the midst of it
            entries += [(row, number, frames, i == 0, *message) for i, message in enumerate(finished)]
        for _ in range(draw(st.integers(0, 4))):
            entries.insert(draw(st.integers(0, len(entries))), None)
        rows.append(entries)
    return [[*turn] for turn in zip_longest(*rows)]


TWO = small_frames(2)
WRONG_ROUNDS = {
    "no-rows": ({"frames": []}, ValueError, "frames must hold one entry for each of the 3 rows, got 0"),
    "more-rows": ({"frames": [None] * 4}, ValueError, "frames must hold one entry for each of the 3 rows, got 4"),
    "fewer-ends": ({"eos_frames": [31]}, ValueError, "eos_frames must hold one entry for each of the 3 rows, got 1"),
    "fewer-last": ({"last": [True] * 2}, ValueError, "last must hold one entry for each of the 3 rows, got 2"),
    "width": ({"frames": [TWO, TWO[:, :2], None]}, ValueError, r"row 1: frames must be .* \[n, 3\], got \[2, 2\]"),
    "float": ({"frames": [TWO, TWO.float(), None]}, TypeError, "row 1: frames must be integers, got torch.float32"),
    "negative": ({"frames": [TWO, TWO - 18, None]}, ValueError, r"row 1: frames\[0, 0\] must be in 0..17, got"),
    "too-large": ({"frames": [TWO + 18, TWO, None]}, ValueError, r"row 0: frames\[0, 0\] must be in 0..17, got"),
    "closed": ({"frames": [TWO, TWO, TWO[:0]]}, ValueError, "row 2: this stream was closed by last=True; open another"),
    "closed-again": ({"last": [False, True, True]}, ValueError, "row 2: this stream was closed by last=True"),
    "end-decoded": ({"eos_frames": [30, 17, None]}, ValueError, "row 1: eos_frame must be at least 18, which are"),
    "end-moved": ({"eos_frames": [31, None, None]}, ValueError, "row 0: eos_frame was 30 in an earlier .* got 31"),
    "end-not-pushed": ({"last": [True, True, False]}, ValueError, "row 0: eos_frame must be at most the 29 .* got 30"),
}


class TestRows:
    @settings(deadline=None, max_examples=60, derandomize=True)
    @given(rounds(), *waits, st.none() | st.integers(0, 30))
    def test_each_row_is_a_stream_of_its_own(self, exact_codecs, turns, chunk, first_chunk, lookahead):
        """Rows that begin late, sit out, end early, and begin again."""
        vocoder, options = exact_codecs[3, 2], {"chunk": chunk, "first_chunk": first_chunk, "lookahead": lookahead}
        streams, alone = vocoder.streams(3, **options), [vocoder.streams(1, **options) for _ in range(3)]
        for turn in turns:
            messages = [(None, None, False)] * 3
            for entry in filter(None, turn):
                row, number, frames, first, begin, end, eos_frame, last = entry
                if first and number:
                    streams.restart(row)
                    alone[row] = vocoder.streams(1, **options)
                messages[row] = frames[begin:end], eos_frame, last
            got = streams.push(*zip(*messages, strict=True))
            for row, message in enumerate(messages):
                assert torch.equal(got[row], alone[row].push(*([part] for part in message))[0])
                assert streams.signal_to_error(row) == alone[row].signal_to_error()

    def test_one_step_for_all(self, exact_codecs):
        """However many rows have something to do; none if none has. A row without is no part of it."""
        streams = exact_codecs[5,].streams(3)
        seen, watched = spans_of(exact_codecs[5,])
        with watched:
            streams.push([small_frames(20), small_frames(18), None])
            streams.push([small_frames(3), small_frames(3), small_frames(13)])
            streams.push([small_frames(13), None, small_frames(2)], eos_frames=[None, 16, None])
            streams.push([None, None, None])
        assert [[span[:2] for span in spans] for spans in seen] == [
            [[0, 16], [0, 16], [0, 0]],
            [[16, 2], [16, 0], [0, 0]],
            [[18, 16], [16, 12], [0, 13]],
        ]

    def test_a_row_that_begins_again_forgets(self, exact_codecs):
        vocoder = exact_codecs[3, 2]
        streams = vocoder.streams(2, lookahead=0)
        streams.push([small_frames(30)] * 2, last=[True, False])
        streams.push([None, small_frames(40, seed=1)])
        assert streams.signal_to_error(1) < math.inf
        streams.restart(0)
        streams.restart(1)
        assert streams.signal_to_error(1) == math.inf
        got = streams.push([small_frames(12, seed=2), small_frames(12, seed=3)], last=[True, True])
        assert all(map(torch.equal, got, [whole(vocoder, small_frames(12, seed=seed)) for seed in (2, 3)]))

    @pytest.mark.parametrize("case", WRONG_ROUNDS)
    def test_a_refused_push_changes_no_row(self, exact_codecs, case):
        """The first row ends at frame 30, of which 20 have come; the second is open; the third is closed."""
        vocoder, frames, emitted = exact_codecs[5,], small_frames(60), []
        messages, error, text = WRONG_ROUNDS[case]
        for refused in (True, False):
            streams = vocoder.streams(3, lookahead=2)
            out = [streams.push([frames[:20]] * 3, [30, None, None], [False, False, True])]
            if refused:
                with pytest.raises(error, match=text):
                    streams.push(**{"frames": [frames[20:29], frames[20:29], None], **messages})
            out.append(streams.push([frames[20:40], frames[20:], None]))
            out.append(streams.push([None, None, None], last=[True, True, False]))
            emitted.append([torch.cat(parts) for parts in zip(*out, strict=True)])
        assert all(map(torch.equal, *emitted))
        assert [*map(len, emitted[0])] == [vocoder.config.samples(n) for n in (30, 60, 20)]

    @pytest.mark.parametrize("row", [-1, 3, True, 1.0, None], ids=repr)
    def test_a_row_that_is_not_there(self, exact_codecs, row):
        with pytest.raises(ValueError, match=rf"row must be in 0..2, got {row}"):
            exact_codecs[5,].streams(3).restart(row)

    @pytest.mark.parametrize("value", [-1, True, 2.0, "2"], ids=repr)
    @pytest.mark.parametrize(("name", "least"), [("rows", 1), ("chunk", 1), ("first_chunk", 1), ("lookahead", 0)])
    def test_settings(self, exact_codecs, name, least, value):
        """Also one less than the least of each."""
        for wrong in (value, least - 1):
            with pytest.raises(ValueError, match=f"{name} must be an integer from {least}, got {wrong!r}"):
                exact_codecs[5,].streams(**{"rows": 1, name: wrong})

    def test_what_a_message_holds_is_copied(self, exact_codecs):
        """A caller may reuse its buffer, though what it said is decoded later."""
        frames, buffer = small_frames(20), torch.zeros(1, 3, dtype=torch.int64)
        streams, chunks = exact_codecs[5,].streams(1), []
        for i, frame in enumerate(frames):
            buffer[0] = frame
            chunks += streams.push([buffer], last=[i == 19])
        assert torch.equal(torch.cat(chunks), whole(exact_codecs[5,], frames))

    def test_a_long_clip_is_not_kept(self, exact_codecs):
        """A message costs what it brings, not what came before it."""
        streams = exact_codecs[5,].streams(1)
        for _ in range(60):
            streams.push([small_frames(10)])
            kept = streams.rows[0].frames
            assert len(kept) <= 16 + exact_codecs[5,].decoder.lookahead + 2
        assert streams.rows[0].done > 550

    def test_kernels_run_where_the_weights_are(self, exact_codecs, monkeypatch):
        """On the second of two GPUs too, whichever is the current one."""
        entered = []
        monkeypatch.setattr(streams_module, "current", lambda device: entered.append(device) or nullcontext())
        exact_codecs[5,].stream().push(small_frames(20), last=True)
        assert entered
        assert {*entered} == {exact_codecs[5,].device}
