"""The vocoder on a GPU: half precision; clips equal bit for bit whole, streamed, batched and in the scheduler."""

import pytest
import torch

from tests.model.codecs import SMALL, aligned, clip, frames_of
from zonos2_triton.bench.proof.invariants import same_bits
from zonos2_triton.bench.proof.lookahead import decibels
from zonos2_triton.bench.suite import device_checks
from zonos2_triton.model import Backbone, BatchingOptions, Sampling, Vocoder, VocoderConfig, Zonos2, build_prompt

pytestmark = pytest.mark.gpu

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
HALF_DB = {torch.bfloat16: 34, torch.float16: 50}  # by the kernels' reference on a CPU: 36.2 and 52.3
WIDEST = 24  # channels of a residual unit in one launch: the codec has wider ones, and narrower
FRAMES = 44


@pytest.fixture(scope="module", params=DTYPES, ids=str)
def vocoder(request, golden):
    """A vocoder of the golden codec, with residual units of both kinds."""
    made = golden.vocoder("even", device="cuda", dtype=request.param, backend="triton")
    made.decoder.ops = made.decoder.ops._replace(widest_unit=WIDEST)
    return made


def random_frames(n, seed=0):
    return frames_of(n, seed, codebooks=9, top=1024)


@pytest.mark.parametrize("vocoder", [torch.bfloat16, torch.float16], indirect=True, ids=str)
def test_half_precision(golden, vocoder):
    """Against fp32 of the same rounded weights, on the CPU."""
    rounded = {name: tensor.float().cpu() for name, tensor in vocoder.state.items()}
    codes = golden.tensors("dac_tiny")["even.codes"]
    want = Vocoder(vocoder.config, rounded, "reference").decode(codes)
    assert decibels(vocoder.decode(codes).cpu(), want) > HALF_DB[vocoder.dtype]


@pytest.mark.parametrize("chunk", [1, 7, 16])
def test_a_stream_is_its_clip(vocoder, chunk):
    frames, stream = random_frames(FRAMES), vocoder.stream(chunk=chunk)
    parts = [stream.push(part) for part in frames.split((5, 1, 26, 12))]
    parts.append(stream.push(frames[:0], FRAMES - 3, last=True))
    assert same_bits(torch.cat(parts), clip(vocoder, frames, FRAMES - 3))


def test_a_batch_is_its_clips(vocoder):
    frames = [random_frames(n, seed=n) for n in (FRAMES, 0, 3, 17, FRAMES + 5)]
    wanted = [clip(vocoder, each) for each in frames]
    assert all(map(same_bits, vocoder.decode([aligned(vocoder, each) for each in frames]), wanted))
    streams = vocoder.streams(len(frames), chunk=5)
    first = streams.push([each[:16] for each in frames], last=[len(each) <= 16 for each in frames])
    rest = [each[16:] if len(each) > 16 else None for each in frames]
    second = streams.push(rest, last=[each is not None for each in rest])
    assert all(map(same_bits, map(torch.cat, zip(first, second, strict=True)), wanted))


def test_steps_and_graphs():
    """Rings full of NaN, rows of other lengths; and a captured step. `make gpu` does so at the real sizes."""
    for check in (device_checks.vocoder_steps, device_checks.vocoder_graph):
        check(VocoderConfig(**SMALL, decoder_rates=(3, 2)), "cuda", torch.float32)


def test_a_step_neither_waits_nor_allocates(vocoder):
    """But for its samples."""
    decoder = vocoder.decoder
    rings = device_checks.blank_rings(decoder, 2, 16)
    codes = torch.zeros(2, 64, 9, dtype=torch.int32, device="cuda")
    plan = device_checks.clip_step_meta(decoder, [40, 12], 16, "cuda", delayed=True)
    made = [decoder.step(rings, codes, plan[0], 16, True)]  # compiles
    torch.cuda.synchronize()
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    torch.cuda.set_sync_debug_mode("error")
    try:
        made += [decoder.step(rings, codes, step_meta, 16, True) for step_meta in plan]
        after = torch.cuda.memory_stats()["allocation.all.allocated"]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert after - before == len(plan)
    assert same_bits(made[0], made[1])


# In the scheduler.


def speaking(tiny_folder, decoder, **options):
    weights, options = tiny_folder / "model.safetensors", BatchingOptions(**options)
    backbone = Backbone.load(weights, None, "cuda", torch.bfloat16, "triton", options)
    backbone.attach_vocoder(decoder)
    return backbone


def requests(backbone, count):
    """Lengths from 1 to 39 frames; every third may end by itself."""
    prompts = [build_prompt(backbone.config, "ab" * (i % 7)) for i in range(count)]
    return prompts, [Sampling(seed=i, max_frames=1 + 7 * i % 39, ignore_eos=i % 3 > 0) for i in range(count)]


@pytest.mark.parametrize(
    ("graphs", "size", "every"), [("off", 8, 3), ("lazy", 1, 8), ("lazy", 8, 3), ("at_load", 4, 8)]
)
def test_samples_of_the_scheduler_are_the_clip(tiny_folder, vocoder, caplog, graphs, size, every):
    options = {"cuda_graphs": graphs, "max_batch_size": size, "sync_interval": every}
    backbone = speaking(tiny_folder, vocoder.decoder, **options)
    addresses = [ring.data_ptr() for ring in backbone.scheduler.vocoder_runner._rings.tensors()]
    for result in backbone.generate(*requests(backbone, 11)):
        assert same_bits(result.samples.cpu(), clip(vocoder, result.frames, result.eos_frame).cpu())
    assert not caplog.records, "capture failed"
    assert bool(backbone.scheduler._vocoder_graphs.captured) == (graphs != "off")
    assert addresses == [ring.data_ptr() for ring in backbone.scheduler.vocoder_runner._rings.tensors()]


def test_speaking_neither_waits_nor_allocates(tiny_folder, vocoder):
    backbone = speaking(tiny_folder, vocoder.decoder, max_batch_size=4)
    prompts, _ = requests(backbone, 3)
    streams = [backbone.stream(prompt, Sampling(seed=1, max_frames=100, ignore_eos=True)) for prompt in prompts]
    for stream in streams:
        next(stream)
    scheduler = backbone.scheduler
    with scheduler.exclusive():
        before = torch.cuda.memory_stats()["allocation.all.allocated"]
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(8):
                scheduler._graphs.run(3)
                scheduler._vocoder_graphs.run(3)
            assert torch.cuda.memory_stats()["allocation.all.allocated"] == before
            scheduler._advance()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    for stream in streams:
        stream.close()


def test_the_whole_speaks_what_it_streams(tiny_folder, vocoder):
    backbone = Backbone.load(tiny_folder / "model.safetensors", None, "cuda", torch.bfloat16, "triton")
    tts = Zonos2(backbone, vocoder)
    sampling = Sampling(seed=3, max_frames=40, ignore_eos=True)
    audio = tts.speak("hello", sampling=sampling)
    assert tts._has_vocoder
    assert same_bits(torch.cat([*tts.stream("hello", sampling=sampling)]), audio.samples)
    frames = tts.backbone.generate([build_prompt(tts.backbone.config, "hello")], sampling)[0].frames
    assert same_bits(clip(vocoder, frames).cpu(), audio.samples)
