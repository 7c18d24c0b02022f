"""The public API: the model on its checkpoints, from text to audio. Importing it does not import torch."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from zonos2_triton.model import nvtx as nvtx  # reads its environment variables at import

if TYPE_CHECKING:
    from zonos2_triton.model.audio import Audio as Audio
    from zonos2_triton.model.backbone import Backbone as Backbone
    from zonos2_triton.model.conditioning import slerp_embeddings as slerp_embeddings
    from zonos2_triton.model.integrations.accelerate import accelerate as accelerate
    from zonos2_triton.model.integrations.report import Report as Report
    from zonos2_triton.model.integrations.zonos2_engine.offline import TTSLLM as TTSLLM
    from zonos2_triton.model.integrations.zonos2_engine.offline import TTSSamplingParams as TTSSamplingParams
    from zonos2_triton.model.pipeline import Zonos2 as Zonos2
    from zonos2_triton.model.prompt import build_prompt as build_prompt
    from zonos2_triton.model.runtime.request import Generation as Generation
    from zonos2_triton.model.runtime.scheduler import BatchingOptions as BatchingOptions
    from zonos2_triton.model.speaker import SpeakerEncoder as SpeakerEncoder
    from zonos2_triton.model.vocoder import Vocoder as Vocoder
    from zonos2_triton.reference.config import Zonos2Config as Zonos2Config
    from zonos2_triton.reference.sampling import Sampling as Sampling
    from zonos2_triton.reference.speaker_encoder import SpeakerEncoderConfig as SpeakerEncoderConfig
    from zonos2_triton.reference.vocoder import VocoderConfig as VocoderConfig

_MODULES = {
    "accelerate": "zonos2_triton.model.integrations.accelerate",
    "Audio": "zonos2_triton.model.audio",
    "Backbone": "zonos2_triton.model.backbone",
    "build_prompt": "zonos2_triton.model.prompt",
    "Generation": "zonos2_triton.model.runtime.request",
    "BatchingOptions": "zonos2_triton.model.runtime.scheduler",
    "Report": "zonos2_triton.model.integrations.report",
    "Sampling": "zonos2_triton.reference.sampling",
    "slerp_embeddings": "zonos2_triton.model.conditioning",
    "SpeakerEncoder": "zonos2_triton.model.speaker",
    "SpeakerEncoderConfig": "zonos2_triton.reference.speaker_encoder",
    "TTSLLM": "zonos2_triton.model.integrations.zonos2_engine.offline",
    "TTSSamplingParams": "zonos2_triton.model.integrations.zonos2_engine.offline",
    "Vocoder": "zonos2_triton.model.vocoder",
    "VocoderConfig": "zonos2_triton.reference.vocoder",
    "Zonos2": "zonos2_triton.model.pipeline",
    "Zonos2Config": "zonos2_triton.reference.config",
}
__all__ = [*_MODULES]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
