"""The frame loop speaks: samples made beside the codes are those of the whole clip, whoever else runs."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from zonos2_triton.bench.proof.interpreter import checked
from zonos2_triton.model import Backbone, LoopOptions, Sampling, Vocoder, VocoderConfig, Zonos2, build_prompt
from zonos2_triton.model.runtime import vocoder_runner as module
from zonos2_triton.model.runtime.scheduler import Loop
from zonos2_triton.model.runtime.vocoder_runner import Speech
from zonos2_triton.model.weights.tiny import codec_weights
from zonos2_triton.reference.advance import FAULTY, OUT
from zonos2_triton.reference.delay import shear_up

pytestmark = pytest.mark.interpreter
CODEC = VocoderConfig(latent_dim=4, decoder_dim=4, decoder_rates=(8,), codebook_dim=2)
TEXTS = ("", "a", "hello", "ab" * 20, "xyz")


@pytest.fixture(autouse=True)
def interpreter():
    with checked(bounds=False, undefined=False, races=False) as launches:
        yield launches


@pytest.fixture(scope="module")
def vocoder():
    return Vocoder.from_state(CODEC, codec_weights(CODEC, torch.Generator().manual_seed(3)), backend="triton")


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


def clip(vocoder, frames, eos_frame=None):
    return vocoder.decode(shear_up(frames, 1025)[:eos_frame].T[None])[0]


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
        assert torch.equal(result.samples, clip(vocoder, result.frames))
        assert result.samples.dtype == torch.float32
        result.samples.zero_()  # it is the caller's own


def test_samples_come_while_the_clip_is_made(make, vocoder):
    """As soon as the codes of a frame, and of those it depends on, are there."""
    backbone = make(streams=1, look=2)
    prompt = build_prompt(backbone.config, "a")
    frames = [*backbone.stream(prompt, Sampling(seed=1, max_frames=24, ignore_eos=True))]
    spoken = 0
    for i, frame in enumerate(frames, 1):
        if frame.samples is not None:
            spoken += len(frame.samples)
            assert frame.last or spoken == max((i - 8) * CODEC.hop - vocoder.decoder.lag, 0)
    assert spoken == CODEC.samples(24)


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
        assert torch.equal(samples, clip(vocoder, torch.stack([frame.codes for frame in frames])))


def test_who_runs_already_is_not_left_without_sound(weights, vocoder):
    backbone = Backbone(*weights, backend="reference", options=LoopOptions(streams=2))
    stream = backbone.stream(build_prompt(backbone.config, "a"), Sampling(seed=0, max_frames=5, ignore_eos=True))
    next(stream)
    with pytest.raises(RuntimeError, match="1 requests are running; wait for their end"):
        backbone.speak(vocoder.decoder)
    assert all(frame.samples is None for frame in stream)
    backbone.speak(vocoder.decoder)
    assert backbone.speaks(vocoder.decoder)


@pytest.mark.parametrize("same_device", [True, False], ids=["", "by-the-host"])
def test_the_pipeline(golden, vocoder, same_device, monkeypatch):
    """Kernels pass the codes on; where they cannot, the host does, to the same samples."""
    loaded = golden.backbone(dtype=torch.float32)
    config = replace(loaded.config, n_layers=2, moe_end_from_layer=0)
    backbone = Backbone(config, loaded.weights, "triton", LoopOptions(streams=1, look=2))
    if not same_device:
        monkeypatch.setattr(backbone, "device", torch.device("meta"))
    tts = Zonos2(backbone, vocoder)
    monkeypatch.undo()
    sampling = Sampling(seed=3, max_frames=4, ignore_eos=True)
    result = backbone.generate([build_prompt(config, "a")], sampling)[0]
    assert (result.samples is not None) == backbone.speaks(vocoder.decoder) == same_device
    whole = clip(vocoder, result.frames)
    assert torch.equal(tts.speak("a", sampling=sampling).samples, whole)
    assert torch.equal(torch.cat([*tts.stream("a", sampling=sampling)]), whole)


# The plan of a step.


class Rows:
    """The numbers of a loop, without one."""

    def __init__(self, rows, look):
        self.frames = torch.zeros(rows, look + 9, 10, dtype=torch.int32)
        self.positions = torch.full((rows,), OUT, dtype=torch.int32)
        self.steps = torch.zeros(rows, dtype=torch.int32)
        self.eos_frames = torch.full((rows,), -1, dtype=torch.int32)

    def put(self, row, frames, begin, end, eos_frame, over):
        ring = self.frames.shape[1]
        self.frames[row, torch.arange(begin, end) % ring, :9] = frames[begin:end].int()
        self.steps[row], self.eos_frames[row] = end, eos_frame
        self.positions[row] = OUT if over else 100 + end


@st.composite
def clips(draw):
    """(frames, where it ends, the frame that shows it) of a clip: an end in frame s, codebook c lies at s - c, and nine
    more frames follow unless the limit is reached."""
    limit, eos_frame, known = draw(st.integers(1, 26)), -1, 27
    if draw(st.booleans()):
        known = draw(st.integers(0, limit - 1))
        eos_frame = max(known - draw(st.integers(0, 8)), 0)
        limit = min(limit, known + 10)
    return limit, eos_frame, known


@settings(deadline=None, max_examples=12, derandomize=True)
@given(plans=st.lists(clips(), min_size=2, max_size=3), look=st.sampled_from((2, 5, 8)), tight=st.booleans())
def test_every_row_as_far_as_its_codes_reach(vocoder, plans, look, tight):
    """Clips of any length and end side by side, in one step a look, or in several where memory is tight."""
    rows = Rows(len(plans), look)
    patch = pytest.MonkeyPatch()
    patch.setattr(module, "RINGS", vocoder.decoder.room(len(plans), 9) if tight else module.RINGS)
    speech = Speech(vocoder.decoder, rows, look + 1)
    patch.undo()
    assert (speech.steps > 1) == tight
    generator = torch.Generator().manual_seed(len(plans))
    frames = [torch.randint(1024, (limit, 9), generator=generator) for limit, _, _ in plans]
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
        whole = clip(vocoder, all_frames, None if eos_frame < 0 else eos_frame)
        assert torch.equal(torch.cat(parts), whole)


def test_a_faulty_row_is_silent(vocoder):
    rows = Rows(2, 4)
    speech = Speech(vocoder.decoder, rows, 5)
    frames = torch.randint(1024, (20, 9), generator=torch.Generator().manual_seed(0))
    for row in (0, 1):
        rows.put(row, frames, 0, 13, -1, over=row == 1)
    rows.positions[0] = FAULTY
    speech.advance(2)
    assert len(speech.samples(speech.collect(2), 0)) == 0
    assert torch.equal(speech.samples(speech.collect(2), 1), clip(vocoder, frames[:13]))


def test_nothing_is_asked_of_the_device(vocoder):
    """No operation of a step reads a value back, or makes a shape of one."""
    rows, names = Rows(2, 4), []
    speech = Speech(vocoder.decoder, rows, 5)
    operations = SimpleNamespace(**{name: lambda *_, **__: None for name in vocoder.decoder.ops._fields})
    operations.waveform = lambda *_, **__: speech._spoken.samples[0]

    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            names.append(func._schema.name)
            return func(*args, **(kwargs or {}))

    patch = pytest.MonkeyPatch()
    patch.setattr(vocoder.decoder, "ops", operations)
    with Seen():
        speech.advance(2)
    patch.undo()
    assert names
    assert not {*names} & {"aten::_local_scalar_dense", "aten::nonzero", "aten::item", "aten::_to_copy"}
