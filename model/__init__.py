"""What a user imports: the model on its checkpoints, from text to a file of sound."""

from zonos2_triton.model.audio import Audio
from zonos2_triton.model.backbone import Backbone
from zonos2_triton.model.integrations.accelerate import accelerate
from zonos2_triton.model.integrations.report import Report
from zonos2_triton.model.integrations.zonos2_engine.offline import TTSLLM, TTSSamplingParams
from zonos2_triton.model.pipeline import Zonos2
from zonos2_triton.model.prompt import build_prompt
from zonos2_triton.model.runtime.request import Generation
from zonos2_triton.model.runtime.scheduler import LoopOptions
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
    "Generation",
    "LoopOptions",
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
