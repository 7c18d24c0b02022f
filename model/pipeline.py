"""Text to sound."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Unpack, overload

import torch
from torch import Tensor

from zonos2_triton.model.audio import Audio, read_audio
from zonos2_triton.model.backbone import Backbone
from zonos2_triton.model.backend import resolve_device
from zonos2_triton.model.nvtx import annotate
from zonos2_triton.model.prompt import PromptOptions, build_prompt
from zonos2_triton.model.runtime.request import Generation
from zonos2_triton.model.runtime.scheduler import LoopOptions
from zonos2_triton.model.runtime.stream import Progress, Stream
from zonos2_triton.model.speaker import SpeakerEncoder
from zonos2_triton.model.vocoder import Vocoder
from zonos2_triton.model.weights.checkpoint import one_file
from zonos2_triton.model.weights.hub import CODEC_REPO, SPEAKER_REPO, resolve_path
from zonos2_triton.reference.delay import shear_up
from zonos2_triton.reference.sampling import Sampling

Voice = str | Path | Tensor | tuple[Tensor, int] | None  # a recording, an embedding, (waveform, Hz)

WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "model.pth",
    "model.pt",
    "consolidated/consolidated.pth",
    "*.safetensors",
)
CODEC_FOLDERS = ("dac_44khz", "dac", "vocoder")
CODEC_FILES = ("dac*.pth", "weights*.pth")  # the official file's own name is weights.pth
SPEAKER_FOLDERS = ("speaker_encoder",)


class Zonos2:
    """Backbone, vocoder and speaker encoder together. The last may be missing: then voices are embeddings."""

    def __init__(self, backbone: Backbone, vocoder: Vocoder, speaker_encoder: SpeakerEncoder | None = None) -> None:
        if backbone.config.n_codebooks != vocoder.config.n_codebooks:
            raise ValueError(
                f"the backbone has {backbone.config.n_codebooks} codebooks, the vocoder {vocoder.config.n_codebooks}"
            )
        if speaker_encoder and backbone.config.speaker_enabled:
            wanted, got = backbone.config.speaker_embedding_dim, speaker_encoder.config.enc_dim
            if wanted != got:
                raise ValueError(f"the speaker encoder makes {got} numbers, the backbone takes {wanted}")
        self.backbone, self.vocoder, self.speaker_encoder = backbone, vocoder, speaker_encoder
        # Kernels on one device pass the codes on there; otherwise they go by the host.
        if backbone.backend == vocoder.backend == "triton" and backbone.device == vocoder.device:
            backbone.speak(vocoder.decoder)

    @classmethod
    def load(
        cls,
        model: str | Path,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        backend: str = "auto",
        vocoder: str | Path | None = None,
        speaker_encoder: str | Path | None = None,
        options: LoopOptions = LoopOptions(),  # noqa: B008  frozen
        vocoder_dtype: str | torch.dtype = torch.float32,
    ) -> "Zonos2":
        """A folder with params.json and weights, and in it, or named apart, a vocoder and a speaker encoder.

        Each may also be a hub id, "owner/name". device None: a GPU if there is one; dtype None: the stored one (of the
        backbone; the speaker encoder runs in fp32). options: of the frame loop. vocoder_dtype: "tf32" is float32 that
        the kernels may multiply so. FileNotFoundError, ValueError: what is missing or wrong.
        """
        folder = resolve_path(model)
        if not folder.is_dir():
            raise FileNotFoundError(f"model must be a folder with params.json and weights, got {model}")
        device = resolve_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if not (folder / "params.json").is_file():
            raise FileNotFoundError(f"{folder} holds no params.json; it comes with the weights")
        weights = one_file(folder, "weights", WEIGHTS)
        codec = resolve_path(vocoder) if vocoder else _find(folder, CODEC_FOLDERS, CODEC_FILES)
        if codec is None:
            raise FileNotFoundError(
                f"{folder} holds no vocoder; put the codec into {folder / CODEC_FOLDERS[0]}, or name its file or "
                f"folder, such as vocoder={CODEC_REPO!r} from the hub"
            )
        voices = resolve_path(speaker_encoder) if speaker_encoder else _find(folder, SPEAKER_FOLDERS, ())
        return cls(
            Backbone.load(weights, device=device, dtype=dtype, backend=backend, options=options),
            Vocoder.load(
                codec,
                device,
                torch.float32 if vocoder_dtype == "tf32" else vocoder_dtype,
                backend,
                tf32=vocoder_dtype == "tf32",
            ),
            SpeakerEncoder.load(voices, device=device) if voices else None,
        )

    @property
    def notice(self) -> str:
        """What the checkpoint's own metadata wants users to know; empty for most."""
        parts = (self.backbone, self.vocoder, self.speaker_encoder)
        notices = [part.metadata.get("notice", "") for part in parts if part is not None]
        return "; ".join(dict.fromkeys(filter(None, notices)))

    @property
    def comment(self) -> str:
        """What a file with this model's sound should say."""
        return "; ".join(filter(None, ["synthetic speech by zonos2-triton", self.notice]))

    @overload
    def speak(
        self,
        text: str,
        speaker: Voice = None,
        sampling: Sampling = ...,
        progress: Progress | None = None,
        **prompt: Unpack[PromptOptions],
    ) -> Audio: ...
    @overload
    def speak(
        self,
        text: list[str],
        speaker: Voice = None,
        sampling: Sampling | list[Sampling] = ...,
        progress: Progress | None = None,
        **prompt: Unpack[PromptOptions],
    ) -> list[Audio]: ...
    def speak(
        self,
        text: str | list[str],
        speaker: Voice = None,
        sampling: Sampling | list[Sampling] = Sampling(),  # noqa: B008  frozen
        progress: Progress | None = None,
        **prompt: Unpack[PromptOptions],
    ) -> Audio | list[Audio]:
        """One text to one Audio, several to several; each is the same alone and together.

        speaker   a file with a recording, (waveform, Hz), or an embedding [speaker_embedding_dim]
        sampling  one for all or one each
        progress  called as progress(i, frame) after each frame of text i
        prompt    keywords of `build_prompt`: clean_background, accurate, speaking_rate, quality

        ValueError, TypeError: the text is too long for the model, or an argument is wrong; raised before any work.
        """
        texts = list(text) if isinstance(text, list | tuple) else [text]
        embedding = self._embedding(speaker)
        prompts = [self._prompt(t, embedding, **prompt) for t in texts]
        with annotate("model/generate", len(prompts)):
            results = self.backbone.generate(prompts, sampling, [embedding] * len(prompts), progress)
        audios = [self._decode(result) for result in results]
        return audios if isinstance(text, list | tuple) else audios[0]

    def stream(
        self,
        text: str,
        speaker: Voice = None,
        sampling: Sampling = Sampling(),  # noqa: B008  frozen
        progress: Progress | None = None,
        **prompt: Unpack[PromptOptions],
    ) -> Iterator[Tensor]:
        """The same, fp32 chunks [m] as soon as they are final; joined, they are speak()'s samples bit for bit."""
        embedding = self._embedding(speaker)
        ids = self._prompt(text, embedding, **prompt)
        return self._chunks(self.backbone.stream(ids, sampling, embedding), progress)

    @property
    def _spoken(self) -> bool:
        """Whether frames come with their samples."""
        return "decoder" in vars(self.vocoder) and self.backbone.speaks(self.vocoder.decoder)

    def _chunks(self, frames: Stream, progress: Progress | None) -> Iterator[Tensor]:
        vocoder = None if self._spoken else self.vocoder.stream()
        with frames:
            for frame in frames:
                if progress is not None:
                    progress(0, frame)
                chunk = frame.samples
                if vocoder is not None:
                    chunk = vocoder.push(frame.codes[None], frame.eos_frame, frame.last)
                if chunk is not None and len(chunk):
                    yield chunk.cpu()

    def _decode(self, result: Generation) -> Audio:
        samples = result.samples if self._spoken else None
        if samples is None:
            aligned = shear_up(result.frames, self.backbone.config.audio_pad_id)[: result.eos_frame]
            with annotate("codec/decode", len(aligned)):
                samples = self.vocoder.decode(aligned.T[None])[0].cpu()
        return Audio(samples, self.vocoder.config.sample_rate, self.comment)

    def _prompt(self, text: str, embedding: Tensor | None, **prompt: Unpack[PromptOptions]) -> Tensor:
        config = self.backbone.config
        ids = build_prompt(config, text, speaker=embedding is not None, **prompt)
        if len(ids) >= config.max_seqlen:
            excess = len(ids) - config.max_seqlen + 1
            raise ValueError(
                f"text is too long: its prompt has {len(ids)} rows, the model takes {config.max_seqlen - 1}; shorten "
                f"it by at least {excess} bytes of UTF-8"
            )
        return ids

    def _embedding(self, speaker: Voice) -> Tensor | None:
        if speaker is None or isinstance(speaker, Tensor):
            return self.backbone.checked_speaker("speaker", speaker)
        if not self.backbone.config.speaker_enabled:
            raise ValueError("speaker was given, but this model takes no speaker embedding")
        if self.speaker_encoder is None:
            raise ValueError(
                "speaker is a recording, but no speaker encoder was found; put it into speaker_encoder/ in the model's "
                f"folder, or name it at loading, such as speaker_encoder={SPEAKER_REPO!r}"
            )
        if isinstance(speaker, str | Path):
            return self.speaker_encoder.embed(*read_audio(speaker))
        try:
            waveform, rate = speaker
        except (TypeError, ValueError) as error:
            raise TypeError(f"speaker must be a file, (waveform, Hz) or an embedding, got {speaker!r}") from error
        return self.speaker_encoder.embed(waveform, rate)


def _find(folder: Path, folders: Sequence[str], files: Sequence[str]) -> Path | None:
    for name in folders:
        if (folder / name).is_dir():
            return folder / name
    with suppress(FileNotFoundError):
        return one_file(folder, "vocoder", files) if files else None
    return None
