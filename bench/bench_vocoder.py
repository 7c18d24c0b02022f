"""What a clip costs: codes to samples, by the reference on a CPU and by the kernels.

The codec is the tiny model's: on a CPU figures show the method, not how fast the 44.1 kHz codec is, and the kernels run
once, in Triton's interpreter, as a smoke test. `make gpu` times the real sizes. Samples are checked before they are
timed.
"""

from contextlib import nullcontext

import pytest
import torch

from zonos2_triton.bench.proof.interpreter import checked
from zonos2_triton.model import Vocoder
from zonos2_triton.model.weights.tiny import CODEC, codec_weights

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"


@pytest.fixture(scope="module")
def weights():
    return codec_weights(CODEC, torch.Generator().manual_seed(0))


def codes_of(frames):
    return torch.randint(0, 1024, (1, 9, frames), generator=torch.Generator().manual_seed(0))


def bench_vocoder(benchmark, weights):
    """One clip of 256 frames, by the reference on a CPU."""
    vocoder, codes = Vocoder.from_state(CODEC, weights, backend="reference"), codes_of(256)
    torch.testing.assert_close(vocoder.decode(codes), vocoder.trace(codes)["audio"], rtol=0, atol=1e-5)
    benchmark.pedantic(vocoder.decode, (codes,), rounds=5)
    benchmark.extra_info["frames_per_second"] = 256 / benchmark.stats["median"]
    benchmark.extra_info["machine"] = f"CPU, {torch.get_num_threads()} threads, torch {torch.__version__}"


def bench_vocoder_kernels(benchmark, weights):
    """A clip by the kernels: of 256 frames on a GPU, of one in the interpreter."""
    frames = 256 if GPU else 1
    vocoder, codes = Vocoder.from_state(CODEC, weights, DEVICE, backend="triton"), codes_of(frames)
    want = Vocoder.from_state(CODEC, weights, backend="reference").decode(codes)

    def decode():
        samples = vocoder.decode(codes)
        if GPU:
            torch.cuda.synchronize()
        return samples

    with nullcontext() if GPU else checked(bounds=False, undefined=False, races=False):
        torch.testing.assert_close(decode().cpu(), want, rtol=0, atol=1e-4)
        benchmark.pedantic(decode, rounds=20 if GPU else 1)
    benchmark.extra_info["machine"] = torch.cuda.get_device_name() if GPU else "CPU: no figure of speed"
    if GPU:
        benchmark.extra_info["frames_per_second"] = frames / benchmark.stats["median"]
