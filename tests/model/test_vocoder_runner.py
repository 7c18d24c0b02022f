"""The vocoder in the scheduler: samples equal those of the whole clip, whatever else runs."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from tests.model.codecs import clip, in_windows, integer_codec, random_codec
from tests.model.operations import WAITS, Operations
from zonos2_triton.bench.proof.invariants import same_bits
from zonos2_triton.model import Backbone, BatchingOptions, Sampling, Zonos2, build_prompt
from zonos2_triton.model.runtime import vocoder_runner
from zonos2_triton.model.runtime.scheduler import Scheduler
from zonos2_triton.reference.ops import REFERENCE
from zonos2_triton.reference.stopping import find_end

TEXTS = ("", "a", "hello", "ab" * 20, "xyz", "b", "c", "d")
# The frame and codebook in which a request says that it ends; beyond its limit, it does not. Two have no audio.
ENDS = torch.tensor([[99, 0], [0, 0], [99, 0], [2, 8], [5, 3], [9, 0], [14, 6], [20, 8]])


@pytest.fixture(scope="module")
def vocoder(in_steps):
    """A vocoder in steps, by the reference of the kernels, for the backbone's codes. Every sum is exact."""
    return in_steps(integer_codec((3, 2), n_codebooks=9, codebook_size=1024))


def ending(logits, settings, seeds, steps, *state):
    """A sampler with an end of audio per seed; the logits of seed 8 are not finite at frame 42."""
    sick = (seeds == 8) & (steps == 42)
    frame, codebook = ENDS[seeds % 8].T
    here = (steps == frame)[:, None] & (torch.arange(9) == codebook[:, None])
    barred = torch.where(here[..., None], torch.arange(1026) != 1024, torch.arange(1026) > 1023)
    logits = torch.where(sick[:, None, None], torch.nan, torch.where(barred, -torch.inf, logits))
    return REFERENCE.sample_codes(logits, settings, seeds, steps, *state)


@pytest.fixture
def make(golden_weights, vocoder):
    """padded: batches of graphs, with idle slots; captured after two calls in the idle context that change nothing."""

    def made(pipelined=False, padded=False, **options):
        backbone = Backbone(*golden_weights, backend="reference", options=BatchingOptions(**options))

        def captured(call):
            with backbone.scheduler._idle():
                call()
                call()
            return call

        capture, ops = captured if padded else None, replace(REFERENCE, sample_codes=ending)
        backbone._scheduler = Scheduler(backbone.model, ops, backbone.options, per_sequence=True, capture=capture)
        backbone.scheduler._pipelined = pipelined
        backbone.attach_vocoder(vocoder.decoder)
        return backbone

    return made


def requests(backbone, count):
    prompts = [build_prompt(backbone.config, TEXTS[i]) for i in range(count)]
    return prompts, [Sampling(seed=i, max_frames=(14, 30, 1, 11, 17, 40, 22, 22)[i]) for i in range(count)]


@pytest.mark.parametrize(
    ("batch_size", "sync_interval", "pipelined", "padded", "tight"),
    [
        pytest.param(1, 4, False, False, True, marks=pytest.mark.slow),
        pytest.param(2, 8, True, False, False, marks=pytest.mark.slow),
        (2, 3, False, True, False),
        (3, 4, True, True, True),
        (8, 5, False, False, False),
    ],
)
def test_what_is_spoken_is_the_clip(make, vocoder, monkeypatch, batch_size, sync_interval, pipelined, padded, tight):
    """Slots move, are reused and end anywhere in a scheduler step. If memory is tight, the vocoder takes several."""
    if tight:
        monkeypatch.setattr(vocoder_runner, "MAX_RING_BYTES", vocoder.decoder.ring_bytes(batch_size, 6))
    backbone = make(pipelined, padded, max_batch_size=batch_size, sync_interval=sync_interval)
    assert (backbone.scheduler.vocoder_runner.steps > 1) == tight
    prompts, samplings = requests(backbone, 8)
    results = backbone.generate(prompts, samplings)
    assert [result.eos_frame for result in results] == [None, 0, None, 0, 2, 9, 8, 12]
    for result, sampling in zip(results, samplings, strict=True):
        assert (len(result.frames), result.eos_frame) == find_end(result.frames, max_frames=sampling.max_frames)
        assert torch.equal(result.samples, in_windows(vocoder, result.frames, result.eos_frame))
        assert result.samples.dtype == torch.float32
        result.samples.zero_()  # it is the caller's own


def test_samples_come_while_the_clip_is_made(make, vocoder):
    """As soon as the codes of a frame and of its lookahead are there."""
    backbone, hop = make(max_batch_size=1, sync_interval=2), vocoder.config.hop
    prompt, spoken = build_prompt(backbone.config, "a"), 0
    for i, frame in enumerate(backbone.stream(prompt, Sampling(seed=0, max_frames=40)), 1):
        if frame.samples is not None:
            spoken += len(frame.samples)
            assert frame.last or spoken == max((i - 8) * hop - vocoder.decoder.delay, 0)
    assert spoken == vocoder.config.samples(40)


def test_an_end_is_told_from_then_on(make):
    backbone = make(max_batch_size=1, sync_interval=4)
    prompt = build_prompt(backbone.config, "a")
    frames = [*backbone.stream(prompt, Sampling(seed=5, max_frames=40))]
    assert [frame.eos_frame for frame in frames] == [None] * 9 + [9] * 10
    assert [frame.last for frame in frames] == [False] * 18 + [True]
    ignoring = backbone.generate([prompt], Sampling(seed=5, max_frames=30, ignore_eos=True))[0]
    assert (len(ignoring.frames), ignoring.eos_frame) == (30, None)


def heard(frames):
    return torch.cat([frame.samples for frame in frames if frame.samples is not None])


def test_a_cancelled_request_takes_nothing_along(make, vocoder):
    backbone = make(max_batch_size=3, sync_interval=3)
    prompts, samplings = requests(backbone, 5)
    samplings = [replace(sampling, ignore_eos=True) for sampling in samplings]
    first, given_up, second = (backbone.stream(prompts[i], samplings[i]) for i in (4, 3, 0))
    kept = {4: [next(first)], 0: [next(second)]}
    next(given_up)
    given_up.close()
    late = backbone.stream(prompts[4], samplings[4])
    kept[4] += first
    kept[0] += second
    for frames in (kept[4], kept[0], [*late]):
        assert torch.equal(heard(frames), in_windows(vocoder, torch.stack([frame.codes for frame in frames])))


def test_a_faulty_row_is_silent(make, vocoder):
    backbone = make(max_batch_size=2, sync_interval=40)
    prompt = build_prompt(backbone.config, "a")
    sick, healthy = (backbone.stream(prompt, Sampling(seed=s, max_frames=60, ignore_eos=True)) for s in (8, 0))
    frames = []
    with pytest.raises(FloatingPointError, match="frame 42"):
        frames.extend(sick)
    assert len(heard(frames)) == 33 * vocoder.config.hop - vocoder.decoder.delay  # of the first step: 41 frames
    frames = [*healthy]
    assert torch.equal(heard(frames), in_windows(vocoder, torch.stack([frame.codes for frame in frames])))


def test_who_runs_already_is_not_left_without_sound(golden_weights, vocoder):
    backbone = Backbone(*golden_weights, backend="reference", options=BatchingOptions(max_batch_size=2))
    stream = backbone.stream(build_prompt(backbone.config, "a"), Sampling(seed=0, max_frames=5, ignore_eos=True))
    next(stream)
    with pytest.raises(RuntimeError, match="1 requests are running; wait for their end"):
        backbone.attach_vocoder(vocoder.decoder)
    assert all(frame.samples is None for frame in stream)
    backbone.attach_vocoder(vocoder.decoder)
    assert backbone.has_vocoder(vocoder.decoder)


@pytest.mark.interpreter
@pytest.mark.usefixtures("quick_interpreter")
def test_the_pipeline_on_kernels(two_layers):
    vocoder = random_codec((8,), "triton", latent_dim=4, decoder_dim=4, n_codebooks=9, codebook_size=1024)
    tts = Zonos2(Backbone(*two_layers, "triton", BatchingOptions(max_batch_size=1, sync_interval=2)), vocoder)
    sampling = Sampling(seed=3, max_frames=3, ignore_eos=True)
    result = tts.backbone.generate([build_prompt(tts.backbone.config, "a")], sampling)[0]
    assert same_bits(result.samples, clip(vocoder, result.frames))


@pytest.mark.parametrize("same_device", [True, False], ids=["same-device", "by-the-host"])
def test_the_pipeline(golden_weights, vocoder, same_device, monkeypatch):
    backbone = Backbone(*golden_weights, "reference", BatchingOptions(max_batch_size=1, sync_interval=2))
    with monkeypatch.context() as patch:
        patch.setattr(backbone, "backend", "triton")
        if not same_device:
            patch.setattr(backbone, "device", torch.device("meta"))
        tts = Zonos2(backbone, vocoder)
    sampling = Sampling(seed=3, max_frames=12, ignore_eos=True)
    result = backbone.generate([build_prompt(backbone.config, "a")], sampling)[0]
    assert (result.samples is not None) == backbone.has_vocoder(vocoder.decoder) == same_device
    whole = in_windows(vocoder, result.frames)
    assert torch.equal(tts.speak("a", sampling=sampling).samples, whole)
    assert torch.equal(torch.cat([*tts.stream("a", sampling=sampling)]), whole)


def test_nothing_is_asked_of_the_device(make, vocoder, monkeypatch):
    runner = make(max_batch_size=2).scheduler.vocoder_runner
    operations = SimpleNamespace(**{name: lambda *_, **__: None for name in vocoder.decoder.ops._fields})
    operations.conv1d_tanh = lambda *_, **__: torch.zeros(2, runner.frames * vocoder.config.hop)
    with monkeypatch.context() as patch, torch.inference_mode(), Operations() as seen:
        patch.setattr(vocoder.decoder, "ops", operations)
        runner.advance(2)
    assert seen.names
    assert not WAITS & {*seen.names}
