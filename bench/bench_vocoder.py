"""Codes to samples of one clip, by the reference on a CPU and by the kernels on a GPU.

The codec is the tiny model's: figures show the method, not how fast the 44.1 kHz codec is; `make gpu` times the real
sizes. On a CPU the kernels run once, in Triton's interpreter, as a smoke test. Samples are checked before they are
timed.
"""

from contextlib import nullcontext

import pytest
import torch

from zonos2_triton.bench.proof.interpreter import checked
from zonos2_triton.model import Vocoder
from zonos2_triton.model.weights.tiny import CODEC, codec_weights

GPU = torch.cuda.is_available()


@pytest.mark.parametrize("backend", ["reference", "triton"])
def bench_vocoder(benchmark, backend):
    device = "cuda" if GPU and backend == "triton" else "cpu"
    slow = backend == "triton" and not GPU
    weights = codec_weights(CODEC, torch.Generator().manual_seed(0))
    vocoder = Vocoder.from_state(CODEC, weights, device, backend=backend)
    codes = torch.randint(0, 1024, (1, 9, 1 if slow else 256), generator=torch.Generator().manual_seed(0))
    want = Vocoder.from_state(CODEC, weights, backend="reference").trace(codes)["audio"]

    def decode():
        samples = vocoder.decode(codes)
        if GPU:
            torch.cuda.synchronize()
        return samples

    with checked(bounds=False, undefined=False, races=False) if slow else nullcontext():
        torch.testing.assert_close(decode().cpu(), want, rtol=0, atol=1e-4)
        benchmark.pedantic(decode, rounds=1 if slow else 5)
    if not slow:
        benchmark.extra_info["frames_per_second"] = 256 / benchmark.stats["median"]
