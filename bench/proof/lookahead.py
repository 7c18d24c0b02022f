"""What early sound costs: how far a stream that does not wait for all its samples depend on is from the clip, in dB.

    python -m zonos2_triton.bench.proof.lookahead

The codec has the sizes of the 44.1 kHz one and random weights, the codes are random too: figures of the method, not of
a voice. It runs the reference on a CPU.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from zonos2_triton.model.vocoder import Vocoder
from zonos2_triton.model.weights.tiny import codec_weights
from zonos2_triton.reference.delay import shear_up
from zonos2_triton.reference.vocoder import VocoderConfig

LOOKAHEADS = (10, 9, 8, 6, 4, 2, 1, 0)
CHUNK, FRAMES = 4, 48
FRAME_MS = 512 / 44.1


def decibels(samples: Tensor, truth: Tensor) -> float:
    """Signal to error."""
    error = float((samples.double() - truth.double()).square().sum())
    return math.inf if error == 0 else 10 * math.log10(float(truth.double().square().sum()) / error)


def rows(vocoder: Vocoder, frames: Tensor) -> Iterator[tuple[str, int, float]]:
    """(kind, frames pushed at the first sample, dB); frames [n, 9], delayed, are pushed one by one."""
    truth = vocoder.decode(shear_up(frames, vocoder.config.codebook_size + 1).T[None])[0]
    kinds: list[tuple[str, dict[str, Any]]] = [(f"lookahead {n}", {"lookahead": n, "chunk": CHUNK}) for n in LOOKAHEADS]
    kinds += [("official cross-fade", {"mode": "overlap"})]
    for kind, options in kinds:
        stream = vocoder.stream(**options)
        chunks = [stream.push(frame[None], last=i == len(frames) - 1) for i, frame in enumerate(frames)]
        first = next(i for i, chunk in enumerate(chunks, 1) if len(chunk))
        yield kind, first, decibels(torch.cat(chunks), truth)


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    vocoder = Vocoder.from_state(VocoderConfig(), codec_weights(VocoderConfig(), generator), backend="reference")
    frames = torch.randint(1024, (FRAMES, 9), generator=generator)
    print("| stream | first sound after | signal to error |\n|---|---|---|")
    for kind, first, error in rows(vocoder, frames):
        print(f"| {kind} | {first} frames ({first * FRAME_MS:.0f} ms of speech) | {error:.0f} dB |")


if __name__ == "__main__":
    main()
