"""Triton kernels for ZONOS2: `from zonos2_triton import Zonos2, accelerate`. Importing it imports no torch."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zonos2_triton.model import (
        Audio,
        Backbone,
        BatchingOptions,
        Sampling,
        SpeakerEncoder,
        Vocoder,
        Zonos2,
        accelerate,
        build_prompt,
    )

__version__ = "0.2.0"
__all__ = [
    "Audio",
    "Backbone",
    "BatchingOptions",
    "Sampling",
    "SpeakerEncoder",
    "Vocoder",
    "Zonos2",
    "__version__",
    "accelerate",
    "build_prompt",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module("zonos2_triton.model"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
