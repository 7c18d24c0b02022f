"""Cost of a frame on a CPU, over batch size and context; of a prompt; of a clip; of text to first samples.

The model is the tiny one: a smoke test that shows how cost grows, not how fast ZONOS2 is. `make gpu` times the real
sizes. Frames are checked before they are timed.
"""

import pytest
import torch

from zonos2_triton.model import BatchingOptions, Sampling, Zonos2, build_prompt
from zonos2_triton.model.weights.tiny import write_tiny

torch.set_num_threads(1)  # so small a model gains nothing by a second one
FRAMES = 8


@pytest.fixture(scope="module")
def tts(tmp_path_factory):
    """With a cache that holds the longest context of all requests: none has to wait for another's end."""
    options = BatchingOptions(max_batch_size=8, kv_cache_tokens=8 * 2048)
    return Zonos2.load(write_tiny(tmp_path_factory.mktemp("bench") / "tiny"), device="cpu", options=options)


@pytest.mark.parametrize(("batch_size", "context"), [(1, 20), (1, 500), (1, 1900), (8, 20), (8, 500)])
def bench_decode(benchmark, tts, batch_size, context):
    """Frames a second, prefill not counted."""
    prompt = build_prompt(tts.backbone.config, "x" * (context - 19))
    alone = tts.backbone.generate([prompt], Sampling(seed=0, max_frames=FRAMES + 1, ignore_eos=True))[0].frames

    def prefilled():
        sampling = Sampling(seed=0, max_frames=FRAMES + 1, ignore_eos=True)
        frames = [tts.backbone.stream(prompt, sampling) for _ in range(batch_size)]
        return (frames, [[next(f).codes] for f in frames]), {}

    def decode(frames, codes):
        for _ in range(FRAMES):
            for stream, kept in zip(frames, codes, strict=True):
                kept.append(next(stream).codes)
        return codes

    (frames, codes), _ = prefilled()
    assert all(torch.equal(torch.stack(kept), alone) for kept in decode(frames, codes))
    benchmark.group = f"decode, {batch_size} requests"
    benchmark.pedantic(decode, setup=prefilled, rounds=3)
    benchmark.extra_info["frames_per_second"] = batch_size * FRAMES / benchmark.stats["median"]


@pytest.mark.parametrize("rows", [20, 100, 500])
def bench_prefill(benchmark, tts, rows):
    """A prompt of so many rows, up to its first frame."""
    prompt = build_prompt(tts.backbone.config, "x" * (rows - 19))
    assert len(prompt) == rows
    sampling = Sampling(seed=0, max_frames=1, ignore_eos=True)
    benchmark.group = "prefill"
    benchmark.pedantic(tts.backbone.generate, ([prompt], sampling), rounds=5, warmup_rounds=1)
    benchmark.extra_info["rows_per_second"] = rows / benchmark.stats["median"]


def bench_vocoder(benchmark, tts):
    """One clip of 256 frames, codes to samples."""
    codes = torch.randint(0, 1024, (1, 9, 256), generator=torch.Generator().manual_seed(0))
    samples = benchmark.pedantic(tts.vocoder.decode, (codes,), rounds=5)
    torch.testing.assert_close(samples, tts.vocoder.trace(codes)["audio"], rtol=0, atol=1e-5)
    benchmark.extra_info["frames_per_second"] = 256 / benchmark.stats["median"]


def bench_first_audio(benchmark, tts):
    """From a text to the first samples of its stream."""
    sampling = Sampling(seed=7, max_frames=64, ignore_eos=True)
    whole = tts.speak("Hello.", sampling=sampling).samples
    benchmark.group = "text to first samples"
    chunk = benchmark.pedantic(lambda: next(tts.stream("Hello.", sampling=sampling)), rounds=5)
    assert torch.equal(chunk, whole[: len(chunk)])
