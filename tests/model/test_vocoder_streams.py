"""Streams of the reference: the official cross-fade, and windows. test_exact_streams.py has streams in steps."""

import json
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from hypothesis import example, given

from tests.model.codecs import AUDIO_ATOL, clip, frames_of
from tests.model.talks import one_by_one, talks

LONGEST = 90  # frames: three windows


def stream_cases():
    """The golden cases by name; one that interleaves two streams becomes two."""
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
    return frames_of(n, seed, codebooks=9, top=1024)


def push_each(vocoder, mode, codes, case):
    """One message per frame; every message from the first that knows eos_frame repeats it."""
    official = {"overlap": case["overlap_frames"], "chunk": case["min_decode_chunk"]} if mode == "overlap" else {}
    stream, known_from = vocoder.stream(mode, **official), case.get("eos_first_reported_at_message")
    for i, frame in enumerate(codes):
        eos_frame = None if known_from is None or i < known_from else case["eos_frame"]
        yield stream.push(frame[None], eos_frame=eos_frame, last=i == len(codes) - 1)


class TestGolden:
    @pytest.mark.parametrize("way", ["windows", "steps"])
    @pytest.mark.parametrize("name", CASES)
    def test_overlap(self, codecs, in_steps, stored, name, way):
        vocoder = in_steps(codecs["even"]) if way == "steps" else codecs["even"]
        chunks = [*push_each(vocoder, "overlap", stored[f"{name}.codes"], CASES[name])]
        assert [len(chunk) for chunk in chunks] == CASES[name]["chunk_samples_per_message"]
        torch.testing.assert_close(torch.cat(chunks), stored[f"{name}.stream"], atol=AUDIO_ATOL, rtol=0)

    @pytest.mark.parametrize("name", CASES)
    def test_exact(self, codecs, in_steps, stored, name):
        codes = stored[f"{name}.codes"]
        got = torch.cat([*push_each(codecs["even"], "exact", codes, CASES[name])])
        assert torch.equal(got, clip(codecs["even"], codes, CASES[name].get("eos_frame")))
        if (want := stored.get(f"{name}.nonstream")) is not None:
            torch.testing.assert_close(got, want, atol=AUDIO_ATOL, rtol=0)
            got = torch.cat([*push_each(in_steps(codecs["even"]), "exact", codes, CASES[name])])
            torch.testing.assert_close(got, want, atol=AUDIO_ATOL, rtol=0)


class TestWindows:
    @given(talk=talks(LONGEST, 9, 1026))
    @example(talk=(random_frames(0), [(0, 0, None, True)]))
    @example(talk=(random_frames(LONGEST), [(0, LONGEST, None, True)]))
    @example(talk=one_by_one(random_frames(LONGEST)))
    def test_joined_they_are_the_clip(self, codecs, talk):
        """No window comes later than the frames that it needs."""
        vocoder, (frames, messages), known = codecs["odd"], talk, None
        stream, emitted = vocoder.stream(), [torch.zeros(0)]
        windows = [vocoder.windows.at(i) for i in range(LONGEST // 32 + 1)]
        for begin, end, eos_frame, last in messages:
            known = known if eos_frame is None else eos_frame
            emitted.append(stream.push(frames[begin:end], eos_frame, last))
            assert (emitted[-1].ndim, emitted[-1].dtype) == (1, torch.float32)
            complete = min(end - 8, LONGEST if known is None else known)
            due = sum(vocoder.config.hop * (w.stop - w.start) for w in windows if w.end <= complete)
            assert sum(map(len, emitted)) >= due, f"after {end} frames"
        assert torch.equal(torch.cat(emitted), clip(vocoder, frames, known))

    @pytest.mark.parametrize(("name", "needed"), [("even", 50), ("odd", 59)])
    def test_the_first_sound(self, codecs, name, needed):
        """32 frames, the 10 or 19 that their last samples depend on, and 8 for the delay."""
        stream = codecs[name].stream()
        assert len(stream.push(random_frames(needed - 1))) == 0
        assert len(stream.push(random_frames(1))) == 32 * codecs[name].config.hop

    def test_work_is_linear(self, codecs, monkeypatch):
        """2,000 frames, one by one: each window is decoded once, and the caller reuses its buffer."""
        vocoder, frames = codecs["odd"], random_frames(2000)
        decode = Mock(wraps=vocoder.windows.decode)
        monkeypatch.setattr(vocoder.windows, "decode", decode)
        stream, buffer, chunks = vocoder.stream(), torch.zeros(1, 9, dtype=torch.int64), []
        for i, frame in enumerate(frames):
            buffer[0] = frame
            chunks.append(stream.push(buffer, last=i == 1999))
        decoded, window = [call.args for call in decode.call_args_list], vocoder.windows.at(1)
        assert [here.start for here, _, _ in decoded] == [*range(0, 2000, 32)]
        assert max(len(aligned) for _, aligned, _ in decoded) <= window.end - window.first
        monkeypatch.undo()
        assert torch.equal(torch.cat(chunks), clip(vocoder, frames))

    def test_what_is_final_does_not_wait_for_the_last_message(self, codecs):
        """The nine frames after the end are not part of the audio."""
        vocoder, frames = codecs["odd"], random_frames(60)
        stream = vocoder.stream()
        chunks = [stream.push(frames[:48]), stream.push(frames[48:50], eos_frame=42)]
        assert torch.equal(torch.cat(chunks), clip(vocoder, frames, 42))
        assert len(stream.push(frames[50:55], eos_frame=42)) == 0
        assert len(stream.push(frames[55:], eos_frame=42, last=True)) == 0


FRAME = torch.zeros(1, 9, dtype=torch.int64)
BEFORE = {"open": (60, None, False), "closed": (12, None, True), "ended": (20, 12, False), "ending": (10, 19, False)}
REFUSED = {  # what came before: frames, their end, whether that was all; then a push, what it raises and says
    "too-narrow": ("open", {"frames": FRAME[:, :8]}, ValueError, r"frames must be a tensor \[n, 9\], got \[1, 8\]"),
    "rank-1": ("open", {"frames": FRAME[0]}, ValueError, r"frames must be a tensor \[n, 9\], got \[9\]"),
    "no-tensor": ("open", {"frames": FRAME.tolist()}, ValueError, "got list"),
    "float": ("open", {"frames": FRAME.float()}, TypeError, "frames must be integers, got torch.float32"),
    "negative": ("open", {"frames": FRAME - 1}, ValueError, r"frames\[0, 0\] must be in 0..1025, got -1"),
    "too-large": ("open", {"frames": FRAME + 1026}, ValueError, r"frames\[0, 0\] must be in 0..1025, got 1026"),
    "end-negative": ("open", {"eos_frame": -1}, ValueError, "eos_frame must be at least .*got -1"),
    "end-decoded": ("open", {"eos_frame": 31}, ValueError, r"at least \d+, which are decoded, got 31"),
    "end-float": ("open", {"eos_frame": 60.0}, ValueError, "eos_frame must be .*got 60.0"),
    "end-bool": ("open", {"eos_frame": True}, ValueError, "eos_frame must be .*got True"),
    "end-not-pushed": ("open", {"eos_frame": 62, "last": True}, ValueError, "at most the 61 frames .* pushed, got 62"),
    "closed": ("closed", {}, ValueError, "closed by last=True; open another"),
    "closed-again": ("closed", {"last": True}, ValueError, "closed by last=True; open another"),
    "end-moved-back": ("ended", {"eos_frame": 11}, ValueError, "eos_frame was 12 in an earlier message, got 11"),
    "end-moved-on": ("ended", {"eos_frame": 13, "last": True}, ValueError, "eos_frame was 12 .* message, got 13"),
    "end-said-not-pushed": ("ending", {"last": True}, ValueError, "at most the 11 frames that were pushed, got 19"),
}


@pytest.mark.parametrize("mode", ["exact", "overlap"])
@pytest.mark.parametrize("case", REFUSED)
def test_a_refused_push_changes_nothing(codecs, mode, case):
    """eos_frame need not be repeated."""
    before, message, error, text = REFUSED[case]
    count, end, last = BEFORE[before]
    frames = random_frames(80)
    stream, untouched = (codecs["odd"].stream(mode) for _ in range(2))
    chunks, wanted = ([s.push(frames[:count], end, last)] for s in (stream, untouched))
    with pytest.raises(error, match=text):
        stream.push(**{"frames": FRAME, **message})
    if not last:
        for s, parts in ((stream, chunks), (untouched, wanted)):
            parts += [s.push(frames[count:70]), s.push(frames[70:], eos_frame=None if end else 72, last=True)]
        if mode == "exact":
            assert torch.equal(torch.cat(wanted), clip(codecs["odd"], frames, end or 72))
    assert all(map(torch.equal, chunks, wanted))
