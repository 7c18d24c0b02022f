"""The frame loop speaks: samples made beside the codes are those of the whole clip, whoever else runs."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from tests.model.codecs import clip, frames_of, in_windows, integer_codec, random_codec
from zonos2_triton.bench.proof.interpreter import checked
from zonos2_triton.bench.proof.invariants import same_bits
from zonos2_triton.model import Backbone, LoopOptions, Sampling, Zonos2, build_prompt
from zonos2_triton.model.runtime import vocoder_runner as module
from zonos2_triton.model.runtime.scheduler import Loop
from zonos2_triton.model.runtime.vocoder_runner import Speech
from zonos2_triton.reference.advance import FAULTY, OUT

TEXTS = ("", "a", "hello", "ab" * 20, "xyz")


@pytest.fixture(scope="module")
def vocoder(in_steps):
    """In steps as the kernels take them, by their reference; every sum is exact, so that each sample is right or wrong.
    The backbone's codes."""
    return in_steps(integer_codec((3, 2), n_codebooks=9, codebook_size=1024))


@pytest.fixture(scope="module")
def small(in_steps):
    """Of three codebooks; a clip is one sample shorter than its frames."""
    return in_steps(integer_codec((5,)))


@pytest.fixture(scope="module")
def weights(golden):
    loaded = golden.backbone(dtype=torch.float32)
    return loaded.config, loaded.weights


@pytest.fixture
def make(weights, vocoder):
    """A backbone whose loop speaks; padded: its batches are those of graphs, with idle rows, and captured as they are:
    after two calls that must change nothing, in the middle of whatever runs."""

    def made(ahead=False, padded=False, **options):
        backbone = Backbone(*weights, backend="reference", options=LoopOptions(**options))

        def captured(call):
            with backbone.loop._idle():
                call()
                call()
            return call

        capture = captured if padded else None
        backbone._loop = Loop(backbone.model, backbone.ops, backbone.options, alone=True, capture=capture)
        backbone.loop._ahead = ahead
        backbone.speak(vocoder.decoder)
        return backbone

    return made


def requests(backbone, count):
    prompts = [build_prompt(backbone.config, TEXTS[i % len(TEXTS)]) for i in range(count)]
    return prompts, [Sampling(seed=i, max_frames=(14, 3, 1, 11, 17)[i % 5], ignore_eos=True) for i in range(count)]


@pytest.mark.parametrize(
    ("streams", "look", "ahead", "padded"),
    [(1, 4, False, False), (2, 8, True, False), (2, 3, False, True), (3, 4, True, True)],
)
def test_what_is_spoken_is_the_clip(make, vocoder, streams, look, ahead, padded):
    """Rows move, are taken again, and end at any place of a look."""
    backbone = make(ahead, padded, streams=streams, look=look)
    for result in backbone.generate(*requests(backbone, 5)):
        assert torch.equal(result.samples, in_windows(vocoder, result.frames))
        assert result.samples.dtype == torch.float32
        result.samples.zero_()  # it is the caller's own


def test_samples_come_while_the_clip_is_made(make, vocoder):
    """As soon as the codes of a frame, and of those it depends on, are there."""
    backbone, hop = make(streams=1, look=2), vocoder.config.hop
    prompt, spoken = build_prompt(backbone.config, "a"), 0
    for i, frame in enumerate(backbone.stream(prompt, Sampling(seed=1, max_frames=40, ignore_eos=True)), 1):
        if frame.samples is not None:
            spoken += len(frame.samples)
            assert frame.last or spoken == max((i - 8) * hop - vocoder.decoder.lag, 0)
    assert spoken == vocoder.config.samples(40)


def test_a_cancelled_request_takes_nothing_along(make, vocoder):
    backbone = make(streams=3, look=3)
    prompts, samplings = requests(backbone, 5)
    first, given_up, second = (backbone.stream(prompts[i], samplings[i]) for i in (4, 3, 0))
    kept = {4: [next(first)], 0: [next(second)]}
    next(given_up)
    given_up.close()
    late = backbone.stream(prompts[4], samplings[4])
    kept[4] += first
    kept[0] += second
    for frames in (kept[4], kept[0], [*late]):
        samples = torch.cat([frame.samples for frame in frames if frame.samples is not None])
        assert torch.equal(samples, in_windows(vocoder, torch.stack([frame.codes for frame in frames])))


def test_who_runs_already_is_not_left_without_sound(weights, vocoder):
    backbone = Backbone(*weights, backend="reference", options=LoopOptions(streams=2))
    stream = backbone.stream(build_prompt(backbone.config, "a"), Sampling(seed=0, max_frames=5, ignore_eos=True))
    next(stream)
    with pytest.raises(RuntimeError, match="1 requests are running; wait for their end"):
        backbone.speak(vocoder.decoder)
    assert all(frame.samples is None for frame in stream)
    backbone.speak(vocoder.decoder)
    assert backbone.speaks(vocoder.decoder)


@pytest.mark.interpreter
def test_the_pipeline_on_kernels(golden):
    """Those of the backbone pass the codes on to those of the vocoder."""
    loaded = golden.backbone(dtype=torch.float32)
    config = replace(loaded.config, n_layers=2, moe_end_from_layer=0)
    with checked(bounds=False, undefined=False, races=False):
        vocoder = random_codec((8,), "triton", latent_dim=4, decoder_dim=4, n_codebooks=9, codebook_size=1024)
        tts = Zonos2(Backbone(config, loaded.weights, "triton", LoopOptions(streams=1, look=2)), vocoder)
        sampling = Sampling(seed=3, max_frames=3, ignore_eos=True)
        result = tts.backbone.generate([build_prompt(config, "a")], sampling)[0]
        assert same_bits(result.samples, clip(vocoder, result.frames))


@pytest.mark.parametrize("same_device", [True, False], ids=["same-device", "by-the-host"])
def test_the_pipeline(weights, vocoder, same_device, monkeypatch):
    """Where the codes cannot be passed on, the host does it, to the same samples."""
    backbone = Backbone(*weights, backend="reference", options=LoopOptions(streams=1, look=2))
    with monkeypatch.context() as patch:
        patch.setattr(backbone, "backend", "triton")
        if not same_device:
            patch.setattr(backbone, "device", torch.device("meta"))
        tts = Zonos2(backbone, vocoder)
    sampling = Sampling(seed=3, max_frames=12, ignore_eos=True)
    result = backbone.generate([build_prompt(backbone.config, "a")], sampling)[0]
    assert (result.samples is not None) == backbone.speaks(vocoder.decoder) == same_device
    whole = in_windows(vocoder, result.frames)
    assert torch.equal(tts.speak("a", sampling=sampling).samples, whole)
    assert torch.equal(torch.cat([*tts.stream("a", sampling=sampling)]), whole)


# The plan of a step.


class Rows:
    """The numbers of a loop, without one: of three codebooks."""

    def __init__(self, rows, look):
        self.frames = torch.zeros(rows, look + 3, 4, dtype=torch.int32)
        self.positions = torch.full((rows,), OUT, dtype=torch.int32)
        self.steps = torch.zeros(rows, dtype=torch.int32)
        self.eos_frames = torch.full((rows,), -1, dtype=torch.int32)

    def put(self, row, frames, begin, end, eos_frame, over):
        ring = self.frames.shape[1]
        self.frames[row, torch.arange(begin, end) % ring, :3] = frames[begin:end].int()
        self.steps[row], self.eos_frames[row] = end, eos_frame
        self.positions[row] = OUT if over else 100 + end


@st.composite
def clips(draw):
    """(frames, where it ends, the frame that shows it) of a clip: an end in frame s, codebook c lies at s - c, and as
    many more frames as there are codebooks follow unless the limit is reached."""
    limit, eos_frame, known = draw(st.integers(1, 40)), -1, 41
    if draw(st.booleans()):
        known = draw(st.integers(0, limit - 1))
        eos_frame = max(known - draw(st.integers(0, 2)), 0)
        limit = min(limit, known + 4)
    return limit, eos_frame, known


@given(plans=st.lists(clips(), min_size=2, max_size=3), look=st.sampled_from((2, 5, 8)), tight=st.booleans())
@example(plans=[(40, -1, 41), (22, 19, 20)], look=5, tight=True)
def test_every_row_as_far_as_its_codes_reach(small, plans, look, tight):
    """Clips of any length and end side by side, in one step a look, or in several where memory is tight."""
    rows = Rows(len(plans), look)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "RINGS", small.decoder.room(len(plans), 6) if tight else module.RINGS)
        speech = Speech(small.decoder, rows, look + 1)
    assert (speech.steps > 1) == tight
    frames = [frames_of(limit, seed) for seed, (limit, _, _) in enumerate(plans)]
    spoken, done = [[] for _ in plans], 0
    while done < max(limit for limit, _, _ in plans):
        begin, done = done, done + look + (done == 0)
        for row, (limit, eos_frame, known) in enumerate(plans):
            end = min(done, limit)
            rows.put(row, frames[row], min(begin, end), end, eos_frame if end > known else -1, end == limit)
        speech.advance(len(plans))
        look_at = speech.collect(len(plans))
        for row, parts in enumerate(spoken):
            parts.append(speech.samples(look_at, row))
    for parts, all_frames, (_, eos_frame, _) in zip(spoken, frames, plans, strict=True):
        assert torch.equal(torch.cat(parts), in_windows(small, all_frames, None if eos_frame < 0 else eos_frame))


def test_a_faulty_row_is_silent(small):
    rows, frames = Rows(2, 10), frames_of(13)
    speech = Speech(small.decoder, rows, 11)
    for row in (0, 1):
        rows.put(row, frames, 0, 13, -1, over=row == 1)
    rows.positions[0] = FAULTY
    speech.advance(2)
    assert len(speech.samples(speech.collect(2), 0)) == 0
    assert torch.equal(speech.samples(speech.collect(2), 1), in_windows(small, frames))


def test_nothing_is_asked_of_the_device(small, monkeypatch):
    """No operation of a step reads a value back, or makes a shape of one."""
    rows, names = Rows(2, 4), []
    speech = Speech(small.decoder, rows, 5)
    operations = SimpleNamespace(**{name: lambda *_, **__: None for name in small.decoder.ops._fields})
    operations.waveform = lambda *_, **__: torch.zeros(2, speech.frames * small.config.hop)

    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            names.append(func._schema.name)
            return func(*args, **(kwargs or {}))

    with monkeypatch.context() as patch, Seen():
        patch.setattr(small.decoder, "ops", operations)
        speech.advance(2)
    assert names
    assert not {*names} & {"aten::_local_scalar_dense", "aten::nonzero", "aten::item", "aten::_to_copy"}
