"""Text to speech."""

import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, Unpack, cast, overload

import torch
from torch import Tensor

from zonos2_triton.model.audio import Audio, read_audio
from zonos2_triton.model.audio_stream import AudioStream
from zonos2_triton.model.backbone import Backbone
from zonos2_triton.model.backend import resolve_device
from zonos2_triton.model.conditioning import resolve_prompt
from zonos2_triton.model.long_speech import FRAMES_PER_BYTE, Chunk, LongSpeech
from zonos2_triton.model.normalization import Normalizer, installed, normalized
from zonos2_triton.model.nvtx import annotate
from zonos2_triton.model.prompt import PromptOptions, build_prompt
from zonos2_triton.model.runtime.request import Generation, for_each
from zonos2_triton.model.runtime.scheduler import BatchingOptions
from zonos2_triton.model.runtime.stream import Progress, Stream, read_all
from zonos2_triton.model.speaker import SpeakerEncoder
from zonos2_triton.model.speech_options import LongText, SpeechOptions, long_text, sort_options
from zonos2_triton.model.vocoder import Vocoder
from zonos2_triton.model.voice import is_voice, read_voice
from zonos2_triton.model.weights.checkpoint import ENDINGS, one_file
from zonos2_triton.model.weights.hub import CODEC_REPO, SPEAKER_REPO, resolve_path
from zonos2_triton.reference.config import Zonos2Config
from zonos2_triton.reference.delay import shear_up
from zonos2_triton.reference.numeric import isolated
from zonos2_triton.reference.sampling import Sampling
from zonos2_triton.reference.sampling_params import Default

Voice = str | Path | Tensor | tuple[Tensor, int] | None  # a recording, an embedding, (waveform, Hz)

WEIGHTS = (*(f"model{ending}" for ending in ENDINGS), "consolidated/consolidated.pth", "*.safetensors")
CODEC_FOLDERS = ("dac_44khz", "dac", "vocoder")
CODEC_FILES = ("dac*.pth", "weights*.pth")  # the official file's own name is weights.pth
SPEAKER_FOLDERS = ("speaker_encoder",)


class _Task(NamedTuple):
    """One text as a request to the backbone."""

    name: str  # of the argument, in errors
    ids: Tensor
    sampling: Sampling
    voice: Tensor | None
    long: LongText | None = None  # then ids are empty


class Zonos2:
    """Backbone, vocoder and speaker encoder. Without the last, a voice is given as an embedding."""

    def __init__(
        self,
        backbone: Backbone,
        vocoder: Vocoder,
        speaker_encoder: SpeakerEncoder | None = None,
        normalizer: Normalizer | None = None,
    ) -> None:
        """normalizer: normalizer(text, language) -> the text that is spoken; None: the installed one, if any."""
        ours, theirs = backbone.config.n_codebooks, vocoder.config.n_codebooks
        if ours != theirs:
            raise ValueError(f"the backbone has {ours} codebooks, the vocoder {theirs}")
        if speaker_encoder is not None and backbone.config.speaker_enabled:
            wanted, got = backbone.config.speaker_embedding_dim, speaker_encoder.config.enc_dim
            if wanted != got:
                raise ValueError(f"the speaker encoder makes {got} numbers, the backbone takes {wanted}")
        self.backbone, self.vocoder, self.speaker_encoder = backbone, vocoder, speaker_encoder
        self.normalizer = installed() if normalizer is None else normalizer
        # On one device the scheduler runs the vocoder; otherwise the codes pass through the host.
        if backbone.backend == vocoder.backend == "triton" and backbone.device == vocoder.device:
            backbone.attach_vocoder(vocoder.decoder)

    @classmethod
    def load(
        cls,
        model: str | Path,
        device: str | int | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        backend: str = "auto",
        vocoder: str | Path | None = None,
        speaker_encoder: str | Path | None = None,
        options: BatchingOptions = BatchingOptions(),  # noqa: B008  frozen
        vocoder_dtype: str | torch.dtype = torch.float32,
        lora: str | Path | None = None,
        normalizer: Normalizer | None = None,
    ) -> "Zonos2":
        """model: a folder with params.json and weights, or its file of weights, or a hub id "owner/name".

        vocoder and speaker_encoder are looked for in that folder, or named in the same ways. device None: a GPU if
        there is one; a number: that GPU. dtype: of the backbone; None: as stored. The speaker encoder runs in fp32.
        options: of the scheduler. vocoder_dtype "tf32": fp32 whose products may use TF32.
        lora: an adapter of the model. normalizer: as of the constructor.

        FileNotFoundError, ValueError: something is missing or wrong.
        """
        named = resolve_path(model)
        folder = named.parent if named.is_file() and named.name.endswith(ENDINGS) else named
        if not folder.is_dir():
            raise FileNotFoundError(f"model must be a folder with params.json and weights, or its weights, got {model}")
        device = resolve_device(device)
        config, weights = Zonos2Config.from_json(folder / "params.json"), one_file(named, "weights", WEIGHTS)
        codec = resolve_path(vocoder) if vocoder is not None else _find(folder, CODEC_FOLDERS, CODEC_FILES)
        if codec is None:
            raise FileNotFoundError(
                f"{folder} holds no vocoder; put the codec into {folder / CODEC_FOLDERS[0]}, or name its file or "
                f"folder by vocoder= or --vocoder, such as {CODEC_REPO} from the hub"
            )
        voices = resolve_path(speaker_encoder) if speaker_encoder is not None else _find(folder, SPEAKER_FOLDERS, ())
        tf32 = vocoder_dtype == "tf32"
        return cls(
            Backbone.load(weights, config, device, dtype, backend, options, lora),
            Vocoder.load(codec, device, torch.float32 if tf32 else vocoder_dtype, backend, tf32),
            SpeakerEncoder.load(voices, device=device) if voices else None,
            normalizer,
        )

    from_pretrained = load  # the name in transformers

    @property
    def notice(self) -> str:
        """Notices in the metadata of the checkpoints; empty for most."""
        parts = (self.backbone, self.vocoder, self.speaker_encoder)
        notices = [part.metadata.get("notice", "") for part in parts if part is not None]
        return "; ".join(dict.fromkeys(filter(None, notices)))

    @property
    def comment(self) -> str:
        """The comment for audio files of this model."""
        return "; ".join(filter(None, ["synthetic speech by zonos2-triton", self.notice]))

    @overload
    def speak(
        self,
        text: str,
        speaker: Voice = None,
        sampling: Sampling = ...,
        progress: Progress | None = None,
        **options: Unpack[SpeechOptions],
    ) -> Audio: ...
    @overload
    def speak(
        self,
        text: list[str],
        speaker: Voice = None,
        sampling: Sampling | list[Sampling] = ...,
        progress: Progress | None = None,
        **options: Unpack[SpeechOptions],
    ) -> list[Audio]: ...
    def speak(
        self,
        text: str | list[str],
        speaker: Voice = None,
        sampling: Sampling | list[Sampling] = Sampling(),  # noqa: B008  frozen
        progress: Progress | None = None,
        **options: Unpack[SpeechOptions],
    ) -> Audio | list[Audio]:
        """One text to one Audio, several to several. A text's audio does not depend on the others.

        speaker   a file with a recording, a saved voice (.safetensors), (waveform, Hz), or an embedding
                  [speaker_embedding_dim] as the speaker encoder makes it, not normalised
        sampling  one for all or one each
        progress  called as progress(i, frame) after each frame of text i
        options   clean_background, accurate, speaking_rate and quality, as in `build_prompt`; in place of its
                  buckets bytes_per_second or speed, and quality_values in the features' units; and the fields of
                  `Sampling`, such as seed=7, which win over those in sampling

        long_form=True splits a text into chunks of long_form_chunk_chars characters, None only a longer text. A chunk
        continues the first one and those of its window, so its voice stays. max_frames and the seed are those of each
        chunk, progress gets the number of the chunk, and texts are spoken one after another.

        Written text becomes spoken words first, in `language`, if a normaliser is installed or was given; not with
        text_normalization=False.

        By default max_frames is 1024 plus 16 for each byte of UTF-8, as far as the context and the cache have room. A
        text that is cut off raises a warning, and has `Audio.ended` "max_frames".

        ValueError, TypeError: a text is too long for the model, or an argument is wrong; raised before any work.
        """
        texts, many = (list(text), True) if isinstance(text, list | tuple) else ([text], False)
        tasks = self._tasks("speak", texts, many, speaker, sampling, options)
        if any(task.long for task in tasks):
            audios = [self._speak_long(task, progress) for task in tasks]
            return audios if many else audios[0]
        with annotate("model/generate", len(tasks)):
            results = read_all(self._streams(tasks), progress)
        audios = []
        for task, result in zip(tasks, results, strict=True):
            self._warn_if_cut(task, result.ended, len(result.frames))
            audios.append(self._decode(result))
        return audios if many else audios[0]

    def stream(
        self,
        text: str,
        speaker: Voice = None,
        sampling: Sampling = Sampling(),  # noqa: B008  frozen
        progress: Progress | None = None,
        **options: Unpack[SpeechOptions],
    ) -> AudioStream:
        """Iterator of fp32 chunks [m] as soon as they are final. Joined, they are the samples of speak() bit for bit.

        Its `ended` tells afterwards whether the end was reached.
        """
        (task,) = self._tasks("stream", [text], False, speaker, sampling, options)
        if task.long:
            return self._stream_long(task, progress)
        (frames,) = self._streams([task])
        return AudioStream(self._chunks(task, frames, progress), frames)

    def _tasks(
        self,
        caller: str,
        texts: Sequence[str],
        many: bool,
        speaker: Voice,
        sampling: Sampling | Sequence[Sampling],
        options: SpeechOptions,
    ) -> list[_Task]:
        settings, given, values, splitting, words = sort_options(caller, options)
        texts = [normalized(text, self.normalizer, words) for text in texts]
        prompt = resolve_prompt(self.backbone.config, given, values)
        samplings = for_each("sampling", sampling, len(texts), "texts")
        if not all(isinstance(own, Sampling) for own in samplings):
            raise TypeError(f"sampling must be a Sampling, or a list of one for each text, got {sampling!r}")
        voice, tasks = self.embedding(speaker), []
        for i, (text, own) in enumerate(zip(texts, samplings, strict=True)):
            name = f"text[{i}]" if many else "text"
            if (long := long_text(text, splitting, prompt)) is not None:
                tasks.append(
                    _Task(name, torch.zeros(0, dtype=torch.int32, device="cpu"), replace(own, **settings), voice, long)
                )
                continue
            ids, own = self._prompt(name, text, voice, **prompt), replace(own, **settings)
            if isinstance(own.max_frames, Default):
                needed = own.max_frames + FRAMES_PER_BYTE * len(text.encode())
                own = replace(own, max_frames=min(needed, self.backbone.max_frames_after(len(ids))))
            tasks.append(_Task(name, ids, own, voice))
        return tasks

    def _streams(self, tasks: Sequence[_Task]) -> list[Stream]:
        names, prompts, samplings, voices, _ = zip(*tasks, strict=True) if tasks else ((),) * 5
        return self.backbone.streams(prompts, samplings, voices, names)

    def _speak_long(self, task: _Task, progress: Progress | None) -> Audio:
        if task.long is None:
            (result,) = read_all(self._streams([task]), progress)
            self._warn_if_cut(task, result.ended, len(result.frames))
            return self._decode(result)
        with self._stream_long(task, progress) as stream:
            parts = [torch.zeros(0, dtype=torch.float32, device="cpu"), *stream]
        return Audio(torch.cat(parts), self.vocoder.config.sample_rate, self.comment, stream.ended)

    def resume(
        self,
        text: str,
        done: Iterable[Chunk],
        finished: Callable[[Chunk], None],
        speaker: Voice = None,
        sampling: Sampling = Sampling(),  # noqa: B008  frozen
        progress: Progress | None = None,
        **options: Unpack[SpeechOptions],
    ) -> AudioStream:
        """`stream` of a long text, behind chunks of an earlier run with the same arguments and seed.

        done      those chunks, the first of the text; their sound comes again
        finished  called with every other chunk as soon as its frames are complete

        The samples are those of an uninterrupted run, bit for bit. ValueError: the text is not split, so there is
        nothing to resume; others as of `stream`.
        """
        (task,) = self._tasks("resume", [text], False, speaker, sampling, options)
        if task.long is None:
            raise ValueError("text is a single chunk or long_form is off: use stream()")
        return self._stream_long(task, progress, done, finished)

    def _stream_long(
        self,
        task: _Task,
        progress: Progress | None,
        done: Iterable[Chunk] = (),
        finished: Callable[[Chunk], None] | None = None,
    ) -> AudioStream:
        chunks, form, prompt = cast(LongText, task.long)
        own = (task.sampling, task.voice, prompt, form)
        speech = LongSpeech(self.backbone, chunks, *own, progress, done, task.name)
        return AudioStream(self._sound(speech, finished), speech)

    def _sound(self, speech: LongSpeech, finished: Callable[[Chunk], None] | None) -> Iterator[Tensor]:
        vocoder = self.vocoder.stream()
        for piece in speech:
            if piece.chunk is not None and not piece.resumed and finished is not None:
                finished(piece.chunk)
            with isolated():
                samples = vocoder.push(piece.codes, piece.eos_frame, piece.last).cpu()
            if len(samples):
                yield samples

    def _warn_if_cut(self, task: _Task, ended: str | None, frames: int, stacklevel: int = 3) -> None:
        if ended != "max_frames" or task.sampling.ignore_eos:
            return
        tokens, context = len(task.ids), self.backbone.config.max_seqlen
        remedy = "raise max_frames (--max-frames)"
        if tokens + frames >= context:
            remedy = f"the model's context of {context} tokens is full: split the text"
        elif frames >= self.backbone.max_frames_after(tokens):
            remedy = "the cache is full: raise kv_cache_tokens in BatchingOptions"
        seconds = self.vocoder.config.samples(frames) / self.vocoder.config.sample_rate
        warnings.warn(
            f"{task.name} did not come to its end: it was cut off after {frames} frames, {seconds:.2f} s; {remedy}",
            stacklevel=stacklevel,
        )

    @property
    def _has_vocoder(self) -> bool:
        """Whether the scheduler makes the samples of a frame."""
        return "decoder" in vars(self.vocoder) and self.backbone.has_vocoder(self.vocoder.decoder)

    def _chunks(self, task: _Task, frames: Stream, progress: Progress | None) -> Iterator[Tensor]:
        vocoder, count = None if self._has_vocoder else self.vocoder.stream(), 0
        with frames:
            for frame in frames:
                count += 1
                if progress is not None:
                    progress(0, frame)
                chunk = frame.samples
                if vocoder is not None:
                    chunk = vocoder.push(frame.codes[None], frame.eos_frame, frame.last)
                if chunk is not None and len(chunk):
                    with isolated():
                        chunk = chunk.cpu()
                    yield chunk
        self._warn_if_cut(task, frames.ended, count, stacklevel=4)  # the reader of the AudioStream

    @isolated()
    def _decode(self, result: Generation) -> Audio:
        samples = result.samples if self._has_vocoder else None
        if samples is None:
            aligned = shear_up(result.frames, self.backbone.config.audio_pad_id)[: result.eos_frame]
            with annotate("codec/decode", len(aligned)):
                samples = self.vocoder.decode(aligned.T[None])[0].cpu()
        return Audio(samples, self.vocoder.config.sample_rate, self.comment, result.ended)

    def _prompt(self, name: str, text: str, embedding: Tensor | None, **prompt: Unpack[PromptOptions]) -> Tensor:
        config = self.backbone.config
        try:
            ids = build_prompt(config, text, speaker=embedding is not None, **prompt)
        except (TypeError, ValueError) as error:
            raise type(error)(re.sub(r"^text\b", name, str(error))) from error
        if len(ids) >= config.max_seqlen:
            excess = len(ids) - config.max_seqlen + 1
            raise ValueError(
                f"{name} is too long: its prompt has {len(ids)} tokens, the model takes {config.max_seqlen - 1}; "
                f"shorten it by at least {excess} bytes of UTF-8"
            )
        return ids

    def count_chunks(self, text: str, **options: Unpack[SpeechOptions]) -> int:
        """The number of chunks that `speak` would make of a text; 0: it is spoken as a whole."""
        *_, splitting, words = sort_options("count_chunks", options)
        long = long_text(normalized(text, self.normalizer, words), splitting, {})
        return 0 if long is None else len(long.chunks)

    def embedding(self, speaker: Voice) -> Tensor | None:
        """The embedding of a voice, as `speak` takes it. ValueError: it cannot be had here."""
        if speaker is None or isinstance(speaker, Tensor):
            return self.backbone.checked_speaker("speaker", speaker)
        if not self.backbone.config.speaker_enabled:
            raise ValueError("speaker was given, but this model takes no speaker embedding")
        if is_voice(speaker):
            size = self.backbone.config.speaker_embedding_dim
            voice = read_voice(cast(str | Path, speaker), size, self.speaker_encoder)
            return self.backbone.checked_speaker("speaker", voice)
        if self.speaker_encoder is None:
            raise ValueError(
                "speaker is a recording, but no speaker encoder was found; put it into speaker_encoder/ in the model's "
                f"folder, or name it by speaker_encoder= or --speaker-encoder, such as {SPEAKER_REPO} from the hub"
            )
        if isinstance(speaker, str | Path):
            speaker = read_audio(speaker)
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
        return one_file(folder, "vocoder", files, "by vocoder= or --vocoder") if files else None
    return None
