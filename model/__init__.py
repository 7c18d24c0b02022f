"""The public API: the model on its checkpoints, from text to audio. Importing it does not import torch."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from zonos2_triton.model import nvtx as nvtx  # reads its environment variables at import

if TYPE_CHECKING:
    from zonos2_triton.model.audio import Audio
    from zonos2_triton.model.backbone import Backbone
    from zonos2_triton.model.integrations.accelerate import accelerate
    from zonos2_triton.model.integrations.report import Report
    from zonos2_triton.model.integrations.zonos2_engine.offline import TTSLLM, TTSSamplingParams
    from zonos2_triton.model.pipeline import Zonos2
    from zonos2_triton.model.prompt import build_prompt
    from zonos2_triton.model.runtime.request import Generation
    from zonos2_triton.model.runtime.scheduler import BatchingOptions
    from zonos2_triton.model.speaker import SpeakerEncoder
    from zonos2_triton.model.vocoder import Vocoder
    from zonos2_triton.reference.config import Zonos2Config
    from zonos2_triton.reference.sampling import Sampling
    from zonos2_triton.reference.speaker_encoder import SpeakerEncoderConfig
    from zonos2_triton.reference.vocoder import VocoderConfig

__all__ = [
    "TTSLLM",
    "Audio",
    "Backbone",
    "BatchingOptions",
    "Generation",
    "Report",
    "Sampling",
    "SpeakerEncoder",
    "SpeakerEncoderConfig",
    "TTSSamplingParams",
    "Vocoder",
    "VocoderConfig",
    "Zonos2",
    "Zonos2Config",
    "accelerate",
    "build_prompt",
]

_MODULES = {
    "accelerate": "zonos2_triton.model.integrations.accelerate",
    "Audio": "zonos2_triton.model.audio",
    "Backbone": "zonos2_triton.model.backbone",
    "build_prompt": "zonos2_triton.model.prompt",
    "Generation": "zonos2_triton.model.runtime.request",
    "BatchingOptions": "zonos2_triton.model.runtime.scheduler",
    "Report": "zonos2_triton.model.integrations.report",
    "Sampling": "zonos2_triton.reference.sampling",
    "SpeakerEncoder": "zonos2_triton.model.speaker",
    "SpeakerEncoderConfig": "zonos2_triton.reference.speaker_encoder",
    "TTSLLM": "zonos2_triton.model.integrations.zonos2_engine.offline",
    "TTSSamplingParams": "zonos2_triton.model.integrations.zonos2_engine.offline",
    "Vocoder": "zonos2_triton.model.vocoder",
    "VocoderConfig": "zonos2_triton.reference.vocoder",
    "Zonos2": "zonos2_triton.model.pipeline",
    "Zonos2Config": "zonos2_triton.reference.config",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
