"""What the profile command runs: equal prompts to their sound, on a model that is there or made for it."""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch

from zonos2_triton.bench.specs.roofline import Roof
from zonos2_triton.model.backbone import Backbone
from zonos2_triton.model.pipeline import Zonos2
from zonos2_triton.model.runtime.scheduler import LoopOptions
from zonos2_triton.model.vocoder import Vocoder
from zonos2_triton.model.weights.tiny import write_tiny
from zonos2_triton.reference.sampling import Sampling
from zonos2_triton.reference.vocoder import VocoderConfig

REAL = "8b"
TEXT = "A quick brown fox jumps over the lazy dog."
CPU_COPY = 64 << 20  # bytes: beyond most caches, and quick


@contextmanager
def loaded(options: argparse.Namespace) -> Iterator[Zonos2]:
    """The model to run; the tiny one lives as long as the block."""
    loop = LoopOptions(streams=options.streams, graphs=options.graphs)
    placed = {"device": options.device, "backend": options.backend, "options": loop}
    if options.model == REAL:
        yield _real(options.device, options.backend, loop)
    elif options.model is not None:
        yield Zonos2.load(options.model, **placed)
    else:
        with tempfile.TemporaryDirectory() as folder:
            yield Zonos2.load(write_tiny(Path(folder) / "tiny"), **placed)


def _real(device: torch.device, backend: str, loop: LoopOptions) -> Zonos2:
    """Random weights of the 8B model's shape, made where they are used."""
    from zonos2_triton.bench.suite.device_checks import random_codec, random_weights, whole_model

    config, codec = whole_model(), VocoderConfig()
    weights = random_weights(config, str(device), torch.bfloat16)
    state = random_codec(codec, str(device), torch.float32)
    return Zonos2(Backbone(config, weights, backend, loop), Vocoder(codec, state, backend))


def speaking(tts: Zonos2, options: argparse.Namespace) -> Callable[[], object]:
    """Equal prompts to their sound, each with a seed of its own."""
    settings = [Sampling(seed=i, max_frames=options.frames, ignore_eos=True) for i in range(options.streams)]
    return partial(tts.speak, [TEXT] * options.streams, sampling=settings)


def measured_roof(device: torch.device) -> Roof:
    """Of this machine, now."""
    from zonos2_triton.bench.timing import timer

    if device.type == "cpu":
        return Roof(timer.copy_bandwidth(timer.cpu_device(), CPU_COPY)["gb_per_s"], None)
    with torch.cuda.device(device):
        gpu = timer.cuda_device()
        return Roof(timer.copy_bandwidth(gpu)["gb_per_s"], timer.matmul_rate(gpu)["tflop_per_s"])
