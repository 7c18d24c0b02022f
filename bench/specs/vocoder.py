"""The specs of the vocoder's five kernels, at the 44.1 kHz codec's sizes and at small ones."""

from collections.abc import Mapping
from typing import Any

from zonos2_triton.bench.compiler.expected import Expected
from zonos2_triton.bench.specs.inputs import Sizes
from zonos2_triton.bench.specs.spec import spec
from zonos2_triton.reference.vocoder_layers import LENGTH_UNKNOWN

# Of the vocoder: steps of one clip, and of many.
_CHUNKS = {"chunk-16": {"frames": 16}, "clip-128": {"frames": 128}, "streams-64": {"B": 64, "frames": 2}}


def _layers(name: str, at: Mapping[str, Sizes], **sizes: Any) -> dict[str, Sizes]:
    """One layer's workloads."""
    return {f"{name}-{key}": {**sizes, **more} for key, more in at.items()}


_UNKNOWN = LENGTH_UNKNOWN
# Slots anywhere in a clip, as `step_meta`. The frames of codes that have come matter to `rvq_decode` alone.
_CLIPS = (
    (0, 4, _UNKNOWN, 40),  # at its begin
    (11, 4, _UNKNOWN, 13),  # in its middle
    (6, 4, 8, ~7),  # it ends in the step
    (9, 4, 9, 9),  # it has ended before
    (2, 1, _UNKNOWN, 40),  # fewer frames than the step
    (3, 0, _UNKNOWN, 40),  # sits out
    (2**29, 4, 2**29 + 2, 2**29 + 2),  # positions beyond 32 bits
)
_ANY_SLOTS: Sizes = {"B": 7, "frames": 4, "samples_per_frame": 20, "delay": 9, "tail_trim": 2, "rows": _CLIPS}
_FRAMES = (
    (0, 5, _UNKNOWN, 3),
    (11, 5, _UNKNOWN, 40),
    (6, 5, 8, ~9),
    (2, 1, _UNKNOWN, 40),
    (3, 0, _UNKNOWN, 40),
    (7, 5, 12, 10),
)
# Why steps stay below half of the better roof (`Expected.reasons`).
_TILES = {
    "*chunk-16": "16 frames fill few multiprocessors; clips and steps have the same tiles, hence the same bits",
    "*": "the L2 cache: larger tiles spill, or leave multiprocessors idle in short steps",
}
_THREE_TAPS = {"even-K": {"Ci": 64, "taps": 3}, "long-K": {"Ci": 72, "taps": 3}, "tf32": {"tf32": True, "taps": 3}}
VOCODER = (
    spec(
        "rvq_decode",
        "nine gathers and projections of code vectors, their sum",
        {
            "_rvq_decode_kernel": Expected(
                max_instructions=2500, matrix=True, reasons={"*": "gathers that depend on each other, of few bytes"}
            )
        },
        real={"B": 1, "C": 9, "V": 1024, "K": 8, "D": 1024},
        at={**_CHUNKS, "delayed-1": {"frames": 1, "delayed": True, "N": 17, "W": 10}},
        small={"B": 2, "frames": 3, "C": 3, "V": 11, "K": 4, "D": 20},
        edges={
            "tiny": {},
            "one-row": {"B": 1, "frames": 1},
            "delayed": {"B": 6, "frames": 5, "delayed": True, "N": 9, "W": 4, "rows": _FRAMES},
            "aligned": {"B": 6, "frames": 5, "N": 9, "rows": _FRAMES},
            "two-tiles": {"B": 1, "frames": 33, "D": 40},
        },
        mutates=("z",),
    ),
    spec(
        "conv1d_snake",
        "convolution (dilated or of one tap), residual add, snake",
        {
            "_conv1d_snake_kernel": Expected(
                max_instructions=6000, matrix=True, stream16=True, max_narrow=80, reasons=_TILES
            )
        },
        real={"B": 1},
        at={
            **_layers("first", _CHUNKS, samples_per_frame=1, Ci=1024, Co=1536, taps=7),
            **_layers("unit-768", _CHUNKS, samples_per_frame=8, Ci=768, Co=768, taps=7, dilation=9),
            **_layers("point-768", _CHUNKS, samples_per_frame=8, Ci=768, Co=768, taps=1, residual=True, y=True),
            **_layers("unit-384", _CHUNKS, samples_per_frame=64, Ci=384, Co=384, taps=7, dilation=9),
            **_layers("point-384", _CHUNKS, samples_per_frame=64, Ci=384, Co=384, taps=1, residual=True, y=True),
        },
        small={"B": 2, "frames": 3, "samples_per_frame": 4, "Ci": 20, "Co": 24, "taps": 7, "spare": 3},
        edges={
            "tiny": {},
            "one-row": {"B": 1, "frames": 1, "samples_per_frame": 1, "taps": 1},
            "dilated": {"dilation": 9, "delay": 5, "y": True},
            "residual": {"taps": 1, "delay": 7, "residual": True, "y": True},
            "no-act": {"taps": 3, "y": True, "activated": False},
            "rows": {**_ANY_SLOTS, "dilation": 3, "residual": True, "y": True},
            "many-tiles": {"B": 1, "frames": 16, "samples_per_frame": 33, "Ci": 6, "Co": 70, "taps": 3},
            **_THREE_TAPS,
        },
        mutates=("y", "activated"),
    ),
    spec(
        "conv_transpose1d_snake",
        "strided transposed convolution, snake",
        {
            "_conv_transpose1d_snake_kernel": Expected(
                max_instructions=6000, matrix=True, stream16=True, max_narrow=80, reasons=_TILES
            )
        },
        real={"B": 1},
        at={
            **_layers("1536-768", _CHUNKS, samples_per_frame=1, Ci=1536, Co=768, stride=8),
            **_layers("768-384", _CHUNKS, samples_per_frame=8, Ci=768, Co=384, stride=8),
            **_layers("384-192", _CHUNKS, samples_per_frame=64, Ci=384, Co=192, stride=4),
            **_layers("192-96", _CHUNKS, samples_per_frame=256, Ci=192, Co=96, stride=2),
        },
        small={"B": 2, "frames": 3, "samples_per_frame": 4, "Ci": 20, "Co": 12, "stride": 2, "spare": 3},
        edges={
            "tiny": {},
            "one-row": {"B": 1, "frames": 1, "samples_per_frame": 1},
            "odd-stride": {"stride": 3, "delay": 4, "tail_trim": 1},
            "wide-stride": {"stride": 8, "delay": 3, "Co": 10},
            "no-act": {"activated": False},
            "act-alone": {"y": False},
            "rows": _ANY_SLOTS,
            "odd-rows": {"B": 7, "frames": 4, "delay": 9, "tail_trim": 1, "stride": 5, "rows": _CLIPS},
            "many-tiles": {"B": 1, "frames": 16, "samples_per_frame": 33, "Ci": 6, "Co": 40},
            "even-K": {"Ci": 64},
            "long-K": {"Ci": 72},
            "tf32": {"tf32": True},
        },
        mutates=("y", "activated"),
    ),
    spec(
        "residual_unit",
        "snake, dilated convolution, snake, convolution of one tap, add",
        {
            "_residual_unit_kernel": Expected(
                max_instructions=9000, matrix=True, stream16=True, max_narrow=120, reasons=_TILES
            )
        },
        real={"B": 1},
        at={
            **_layers("192", _CHUNKS, samples_per_frame=256, C=192, taps=7, dilation=9),
            **_layers("96", _CHUNKS, samples_per_frame=512, C=96, taps=7, dilation=9),
        },
        small={"B": 2, "frames": 3, "samples_per_frame": 4, "C": 20, "taps": 7, "spare": 3},
        edges={
            "tiny": {},
            "one-row": {"B": 1, "frames": 1, "samples_per_frame": 1, "C": 6},
            "dilated": {"dilation": 9, "delay": 5},
            "three-tiles": {"C": 132, "taps": 3, "dilation": 3},
            "no-act": {"taps": 3, "activated": False},
            "act-alone": {"taps": 3, "y": False},
            "rows": {**_ANY_SLOTS, "dilation": 3},
            "many-tiles": {"B": 1, "frames": 16, "samples_per_frame": 33, "C": 10, "taps": 3},
            "tf32": {"tf32": True, "taps": 3},
        },
        mutates=("y", "activated"),
    ),
    spec(
        "conv1d_tanh",
        "last convolution, tanh",
        {
            "_conv1d_tanh_kernel": Expected(
                max_instructions=2500,
                matrix=True,
                stream16=True,
                max_narrow=40,
                reasons={"*": "one of an instruction's 16 outputs is real; each tap comes through the L2 cache again"},
            )
        },
        real={"B": 1, "samples_per_frame": 512, "Ci": 96, "taps": 7},
        at=_CHUNKS,
        small={"B": 2, "frames": 3, "samples_per_frame": 4, "Ci": 20, "taps": 7, "spare": 3},
        edges={
            "tiny": {},
            "one-row": {"B": 1, "frames": 1, "samples_per_frame": 1},
            "kept": {"delay": 6, "y": True},
            "rows": {**_ANY_SLOTS, "y": True},
            "many-tiles": {"B": 1, "frames": 16, "samples_per_frame": 33, "Ci": 6, "taps": 3},
            **_THREE_TAPS,
        },
        mutates=("y",),
    ),
)
