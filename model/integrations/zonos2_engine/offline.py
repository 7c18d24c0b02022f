"""The offline API of the official engine, `TTSLLM` and `TTSSamplingParams`, on this package's model."""

import logging
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypedDict, Unpack

import torch
from torch import Tensor

from zonos2_triton.model.audio import Audio, write_audio
from zonos2_triton.model.backbone import Backbone
from zonos2_triton.model.backend import resolve_device
from zonos2_triton.model.files import whole_file
from zonos2_triton.model.nvtx import annotate
from zonos2_triton.model.ops import MAX_PREFILL_TOKENS
from zonos2_triton.model.pipeline import WEIGHTS, Zonos2
from zonos2_triton.model.prompt import build_prompt
from zonos2_triton.model.runtime.request import Generation, for_each
from zonos2_triton.model.runtime.scheduler import BatchingOptions
from zonos2_triton.model.vocoder import Vocoder
from zonos2_triton.model.weights.checkpoint import one_file
from zonos2_triton.model.weights.hub import resolve_path
from zonos2_triton.reference.delay import shear_up
from zonos2_triton.reference.sampling import Sampling
from zonos2_triton.reference.scalars import as_int
from zonos2_triton.reference.vocoder import VocoderConfig

LOG = logging.getLogger("zonos2_triton")
DEFAULT_QUALITY = {"trailing_silence_s": 3}  # 0.25 to 0.5 s
RENAMED = {"topk": "top_k", "max_tokens": "max_frames"}  # official names -> those of `Sampling`
OFFICIAL = {own: official for official, own in RENAMED.items()} | {  # the names in errors
    "sampling: ": "",
    "kv_cache_tokens in BatchingOptions": "num_page_override",
    "speaking_rate": "speaking_rate_bucket",
    "quality": "quality_buckets",
}

Quality = Mapping[str, int | None] | Sequence[int | None] | None


@dataclass
class TTSSamplingParams:
    """Settings of one request by their official names. `Sampling` explains them."""

    temperature: float = 1.15
    topk: int = 106
    top_p: float = 0.0
    min_p: float = 0.18
    max_tokens: int = 1024
    ignore_eos: bool = False
    repetition_window: int = 50
    repetition_penalty: float = 1.2
    repetition_codebooks: int = 8
    seed: int | None = None


class WithoutEffect(TypedDict, total=False):
    """Keywords of the official engine that have no effect here."""

    attention_backend: str
    moe_backend: str
    cache_type: str
    memory_ratio: float
    distributed_timeout: float
    use_pynccl: bool


class Options(WithoutEffect, total=False):
    """Further keywords of `TTSLLM`."""

    # As in Zonos2.load.
    device: str | int | torch.device | None
    backend: str
    vocoder: str | Path | None
    vocoder_dtype: str | torch.dtype
    # Of the official engine, with an effect here.
    max_running_req: int
    max_extend_tokens: int
    max_seq_len_override: int | None
    num_page_override: int | None
    page_size: int
    cuda_graph_bs: list[int] | None
    cuda_graph_max_bs: int | None
    use_dummy_weight: bool
    tp_info: Any


class TTSLLM:
    """Texts to audio tokens and sound, in batches. A result does not depend on the other requests."""

    def __init__(
        self,
        model_path: str,
        dtype: torch.dtype = torch.bfloat16,
        n_codebooks: int | None = None,
        codebook_size: int | None = None,
        text_vocab: int | None = None,
        eoa_id: int | None = None,
        audio_pad_id: int | None = None,
        decode_audio: bool = True,
        **kwargs: Unpack[Options],
    ) -> None:
        """model_path: a folder with params.json, weights and codec, or a hub id. decode_audio=False needs no codec.

        n_codebooks .. audio_pad_id  None, or what the model has
        device, backend, vocoder, vocoder_dtype  as in `Zonos2.load`
        max_running_req        requests that decode together, 1..256; 16 by default
        max_extend_tokens      prompt tokens of one prefill step
        max_seq_len_override   a shorter context than the model's
        num_page_override      times page_size: tokens in the KV cache, for all requests
        cuda_graph_bs, cuda_graph_max_bs  an empty list, or 0: no graphs; other values have no effect

        The other arguments of the official engine are accepted without effect, which the log says.

        ValueError: tensor parallelism, dummy weights, or a size that is not the model's. TypeError: an unknown
        argument. FileNotFoundError: a file of the folder is missing.
        """
        _check(kwargs)
        options = _batching_options(kwargs)
        loaded, self.vocoder, self._comment = _load(model_path, dtype, decode_audio, kwargs)
        config = loaded.config
        if (length := kwargs.get("max_seq_len_override")) is not None:
            config = replace(config, max_seqlen=_count("max_seq_len_override", length, config.max_seqlen))
        names = ("n_codebooks", "codebook_size", "text_vocab", "eoa_id", "audio_pad_id")
        for name, given in zip(names, (n_codebooks, codebook_size, text_vocab, eoa_id, audio_pad_id), strict=True):
            if given is not None and given != getattr(config, name):
                raise ValueError(f"{name} is {given!r}, but the model has {getattr(config, name)}")
        self._hold(Backbone(config, loaded.weights, loaded.backend, options), decode_audio)

    @classmethod
    def of(cls, tts: Zonos2) -> "TTSLLM":
        """The same API for a loaded model."""
        made = cls.__new__(cls)
        made.vocoder, made._comment = tts.vocoder, tts.comment
        made._hold(tts.backbone, decode_audio=True)
        return made

    def _hold(self, backbone: Backbone, decode_audio: bool) -> None:
        config = backbone.config
        self.n_codebooks, self.codebook_size = config.n_codebooks, config.codebook_size
        self.text_vocab, self.eoa_id, self.audio_pad_id = config.text_vocab, config.eoa_id, config.audio_pad_id
        self.decode_audio, self.backbone = decode_audio, backbone

    def generate(
        self,
        prompts: list[str] | list[list[list[int]]],
        sampling_params: TTSSamplingParams | list[TTSSamplingParams],
        decode_audio: bool | None = None,
        speaking_rate_bucket: int | list[int | None] | None = None,
        quality_buckets: dict[str, int | None] | list[int | None] | None = None,
    ) -> list[dict[str, Any]]:
        """A dict per prompt, with the keys audio_tokens, eos_frame, audio and sample_rate.

        audio_tokens          [[cb0, .., cb8], ..]: the frames as generated, still delayed
        audio                 bytes of fp32 samples up to eos_frame, b"" if there are none; None without decode_audio
        sample_rate           Hz

        prompts               texts, used as raw UTF-8, or lists of ids [cb0, .., cb8, text], used as they are
        sampling_params       one for all or one each; `Sampling` is accepted too
        decode_audio          None: as in the constructor
        speaking_rate_bucket  for texts: one for all or one each
        quality_buckets       for all texts: by feature or in the model's order; {} or []: none;
                              None: a trailing silence of 0.25 to 0.5 s

        A prompt that max_tokens cut off has eos_frame None and a warning. ValueError, TypeError: an argument is wrong;
        all are checked first, and the message names the prompt.
        """
        decode = self.decode_audio if decode_audio is None else decode_audio
        vocoder = self.vocoder if decode else None
        if decode and vocoder is None:
            raise ValueError("decode_audio is True, but this TTSLLM was made with decode_audio=False and has no codec")
        if isinstance(prompts, str) or not isinstance(prompts, Sequence):
            raise TypeError(f"prompts must be a list of texts or of rows of ids, got {type(prompts).__name__}")
        rates = for_each("speaking_rate_bucket", speaking_rate_bucket, len(prompts))
        params = for_each("sampling_params", sampling_params, len(prompts))
        samplings = [_sampling(f"sampling_params[{i}]", own) for i, own in enumerate(params)]
        quality = self._quality(quality_buckets)
        asked = zip(prompts, rates, strict=True)
        ids = [self._ids(f"prompts[{i}]", prompt, rate, quality) for i, (prompt, rate) in enumerate(asked)]
        with annotate("model/generate", len(ids)):
            try:
                results = self.backbone.generate(ids, samplings)
            except ValueError as error:
                raise ValueError(_official(error)) from error
        for i, (result, own) in enumerate(zip(results, samplings, strict=True)):
            if result.ended == "max_frames" and not own.ignore_eos:
                cut = f"it was cut off after {len(result.frames)} frames; raise max_tokens, or split the text"
                warnings.warn(f"prompts[{i}] did not come to its end: {cut}", stacklevel=2)
        sounds = [None] * len(results) if vocoder is None else self._decoded(vocoder, results)
        rate = (self.vocoder.config if self.vocoder else VocoderConfig()).sample_rate
        return [
            {"audio_tokens": own.frames.tolist(), "eos_frame": own.eos_frame, "audio": sound, "sample_rate": rate}
            for own, sound in zip(results, sounds, strict=True)
        ]

    def generate_one(
        self,
        prompt: str | list[list[int]],
        sampling_params: TTSSamplingParams | None = None,
        decode_audio: bool | None = None,
        speaking_rate_bucket: int | None = None,
        quality_buckets: dict[str, int | None] | list[int | None] | None = None,
    ) -> dict[str, Any]:
        """`generate` for one prompt."""
        params = TTSSamplingParams() if sampling_params is None else sampling_params
        prompts: Any = [prompt]
        return self.generate(prompts, params, decode_audio, speaking_rate_bucket, quality_buckets)[0]

    def save_audio(self, audio_bytes: bytes, path: str, sample_rate: int = 44100) -> None:
        """Write fp32 samples as a 16-bit .wav, for any file name. Samples are clipped to -1..1.

        The file appears whole or not at all. TypeError, ValueError: audio_bytes are no finite fp32 samples.
        """
        if not isinstance(audio_bytes, bytes | bytearray | memoryview):
            raise TypeError(f"audio_bytes must be the bytes of fp32 samples, got {type(audio_bytes).__name__}")
        if len(audio_bytes) % 4:
            raise ValueError(f"audio_bytes must hold samples of 4 bytes each, got {len(audio_bytes)} bytes")
        samples = torch.zeros(0, dtype=torch.float32, device="cpu")
        if audio_bytes:
            samples = torch.frombuffer(bytearray(audio_bytes), dtype=torch.float32)
        with whole_file(path) as part:
            write_audio(part, ".wav", Audio(samples, sample_rate, self._comment))

    def _quality(self, quality: Quality) -> Quality:
        """The given buckets, or the default ones of features that the model has."""
        if quality is None:
            features = self.backbone.config.quality_features
            return {feature: bucket for feature, bucket in DEFAULT_QUALITY.items() if feature in features}
        return quality

    def _ids(self, name: str, prompt: Any, rate: int | None, quality: Quality) -> Tensor:
        """Ids [T, C + 1]."""
        if isinstance(prompt, str):
            try:
                return build_prompt(self.backbone.config, prompt, speaking_rate=rate, quality=quality)
            except (TypeError, ValueError) as error:
                raise type(error)(f"{name}: {_official(error)}") from error
        try:
            return torch.as_tensor(prompt, device="cpu")
        except (TypeError, ValueError, RuntimeError) as error:
            width = self.n_codebooks + 1
            raise ValueError(f"{name} must be a text or rows of {width} ids each, got {prompt!r:.80}") from error

    def _decoded(self, vocoder: Vocoder, results: list[Generation]) -> list[bytes]:
        """The audio of each result, decoded in one batch."""
        clips = [shear_up(result.frames, self.audio_pad_id)[: result.eos_frame].T for result in results]
        with annotate("codec/decode", sum(clip.shape[1] for clip in clips)):
            return [samples.cpu().numpy().tobytes() for samples in vocoder.decode(clips)]


def _check(given: Mapping[str, Any]) -> None:
    """TypeError: an unknown argument; ValueError: an unsupported one. The log names those without effect."""
    for name in given:
        if name not in Options.__annotations__:
            raise TypeError(f"TTSLLM.__init__() got an unexpected keyword argument '{name}'")
    if given.get("use_dummy_weight"):
        raise ValueError("use_dummy_weight must be False: there are no dummy weights here")
    tp = given.get("tp_info")
    if tp is not None and getattr(tp, "size", None) != 1:
        raise ValueError(f"tp_info must have the size 1, for there is no tensor parallelism here, got {tp!r}")
    if unused := [f"{name}={given[name]!r}" for name in WithoutEffect.__annotations__ if name in given]:
        LOG.info("TTSLLM: without a meaning here: %s", ", ".join(unused))


def _batching_options(kwargs: Options) -> BatchingOptions:
    """The scheduler's options for the arguments of the official engine. ValueError: values out of range."""
    chosen: dict[str, Any] = {}
    if "max_running_req" in kwargs:
        chosen["max_batch_size"] = _count("max_running_req", kwargs["max_running_req"], 256)
    if "max_extend_tokens" in kwargs:
        chosen["max_prefill_tokens"] = min(_count("max_extend_tokens", kwargs["max_extend_tokens"]), MAX_PREFILL_TOKENS)
    if (pages := kwargs.get("num_page_override")) is not None:
        size = _count("page_size", kwargs.get("page_size", 1))
        chosen["kv_cache_tokens"] = _count("num_page_override", pages) * size
    if kwargs.get("cuda_graph_bs") == [] or kwargs.get("cuda_graph_max_bs") == 0:
        chosen["cuda_graphs"] = "off"
    return BatchingOptions(**chosen)


def _count(name: str, value: object, most: int = 2**31 - 1) -> int:
    number = as_int(value)
    if number is None or not 1 <= number <= most:
        raise ValueError(f"{name} must be an integer in 1..{most}, got {value!r}")
    return number


def _load(path: str, dtype: torch.dtype, decode_audio: bool, kwargs: Options) -> tuple[Backbone, Vocoder | None, str]:
    """The backbone, the codec if it is needed, and the comment for audio files."""
    device, backend = kwargs.get("device"), kwargs.get("backend", "auto")
    if decode_audio:
        codec, codec_dtype = kwargs.get("vocoder"), kwargs.get("vocoder_dtype", torch.float32)
        tts = Zonos2.load(path, device, dtype, backend, codec, vocoder_dtype=codec_dtype)
        return tts.backbone, tts.vocoder, tts.comment
    weights = one_file(resolve_path(path), "weights", WEIGHTS)
    return Backbone.load(weights, device=resolve_device(device), dtype=dtype, backend=backend), None, ""


def _sampling(name: str, params: object) -> Sampling:
    """`Sampling` from any object with the official names as attributes."""
    if isinstance(params, Sampling):
        return params
    names = [field.name for field in fields(TTSSamplingParams)]
    if missing := [field for field in names if not hasattr(params, field)]:
        raise TypeError(f"{name} must be TTSSamplingParams, got {type(params).__name__}, which has no {missing[0]}")
    try:
        return Sampling(**{RENAMED.get(field, field): getattr(params, field) for field in names})
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}: {_official(error)}") from error


def _official(error: Exception) -> str:
    """The text of an error, with the official names."""
    text = str(error)
    for own, official in OFFICIAL.items():
        text = re.sub(rf"\b{own}\b" if official else own, official, text)
    return text
