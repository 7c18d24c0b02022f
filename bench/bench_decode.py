"""What a frame costs: decoding by the reference on a CPU, over streams and over context.

The model is the tiny one, so the figures show how cost grows, not how fast ZONOS2 is. Frames are checked against a run
of one stream before they are timed.
"""

import pytest
import torch

from zonos2_triton.model import LoopOptions, Sampling, Zonos2, build_prompt
from zonos2_triton.model.tiny import write_tiny

FRAMES = 16


@pytest.fixture(scope="module")
def tts(tmp_path_factory):
    """With a cache that holds the longest context of all streams: none has to wait for another's end."""
    options = LoopOptions(streams=8, positions=8 * 2048)
    return Zonos2.load(write_tiny(tmp_path_factory.mktemp("bench") / "tiny"), device="cpu", options=options)


@pytest.mark.parametrize("context", [20, 500, 1900], ids="context-{}".format)
@pytest.mark.parametrize("streams", [1, 8], ids="streams-{}".format)
def bench_decode(benchmark, tts, streams, context):
    """Frames a second, prefill not counted."""
    prompt = build_prompt(tts.backbone.config, "x" * (context - 19))
    alone = tts.backbone.generate([prompt], Sampling(seed=0, max_frames=FRAMES + 1, ignore_eos=True))[0].frames

    def prefilled():
        sampling = Sampling(seed=0, max_frames=FRAMES + 1, ignore_eos=True)
        frames = [tts.backbone.stream(prompt, sampling) for _ in range(streams)]
        return (frames, [[next(f).codes] for f in frames]), {}

    def decode(frames, codes):
        for _ in range(FRAMES):
            for stream, kept in zip(frames, codes, strict=True):
                kept.append(next(stream).codes)
        return codes

    (frames, codes), _ = prefilled()
    assert all(torch.equal(torch.stack(kept), alone) for kept in decode(frames, codes))
    benchmark.group = f"decode, {streams} streams"
    benchmark.pedantic(decode, setup=prefilled, rounds=5)
    benchmark.extra_info["frames_per_second"] = streams * FRAMES / benchmark.stats["median"]
    benchmark.extra_info["machine"] = f"CPU, {torch.get_num_threads()} threads, torch {torch.__version__}"
