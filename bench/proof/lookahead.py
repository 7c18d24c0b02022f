"""Latency and quality: the error of a stream with less lookahead, against the whole clip, in dB.

    python -m zonos2_triton.bench.proof.lookahead

The codec has the sizes of the 44.1 kHz one. Weights and codes are random: the figures describe the method, not a voice.
It runs the reference on a CPU for some minutes. The reference sums a step of a stream in another order than a clip.
So with the whole lookahead it differs by the rounding of fp32, where the kernels give the bits of the clip.
"""

import math
from collections.abc import Iterator, Sequence
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


def told(error: float) -> str:
    """Decibels, for the table. Above 100 there is nothing but rounding, which differs from machine to machine."""
    return "exact" if error == math.inf else "above 100 dB" if error > 100 else f"{error:.0f} dB"


def rows(vocoder: Vocoder, frames: Tensor, lookaheads: Sequence[int] = LOOKAHEADS) -> Iterator[tuple[str, str, str]]:
    """Lines of the table: stream, frames pushed at the first sample, dB; frames [n, 9], delayed, are pushed singly."""
    truth = vocoder.decode(shear_up(frames, vocoder.config.codebook_size + 1).T[None])[0]
    kinds: list[tuple[str, Any]] = [(f"`lookahead={n}`", {"lookahead": n, "chunk": CHUNK}) for n in lookaheads]
    kinds += [('`mode="overlap"`, the official cross-fade', {"mode": "overlap"})]
    for kind, options in kinds:
        stream = vocoder.stream(**options)
        chunks = [stream.push(frame[None], last=i == len(frames) - 1) for i, frame in enumerate(frames)]
        first = next(i for i, chunk in enumerate(chunks, 1) if len(chunk))
        yield kind, f"{first} frames, {first * FRAME_MS:.0f} ms", told(decibels(torch.cat(chunks), truth))


def real() -> tuple[Vocoder, Tensor]:
    """The vocoder and the frames of the table."""
    generator = torch.Generator().manual_seed(0)
    vocoder = Vocoder.from_state(VocoderConfig(), codec_weights(VocoderConfig(), generator), backend="reference")
    return vocoder, torch.randint(1024, (FRAMES, 9), generator=generator)


def main() -> None:
    print("| stream | first sound after | signal to error |\n|---|---|---|")
    for row in rows(*real()):
        print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
