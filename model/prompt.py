"""Text and conditioning to the tokens that start a sequence."""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import torch
from torch import Tensor

from zonos2_triton.model.hints import did_you_mean
from zonos2_triton.reference.config import Zonos2Config
from zonos2_triton.reference.delay import shear
from zonos2_triton.reference.numeric import isolated
from zonos2_triton.reference.scalars import as_int

Quality = Sequence[int | None] | Mapping[str, int | None] | None


class PromptOptions(TypedDict, total=False):
    """Keywords of `build_prompt` that `Zonos2.speak` accepts."""

    clean_background: bool
    accurate: bool
    speaking_rate: int | None
    quality: Quality


BEGIN, END = 2, 3  # ids around the text
BYTE_OFFSET = 192

# 0.2 s of silence in the codes of the 44.1 kHz codec, which ended every prompt in training.
SILENCE = [
    [568, 778, 338, 524, 967, 360, 728, 550, 90],
    [568, 778, 10, 674, 364, 981, 741, 378, 731],
    *[[568, 804, 10, 674, 364, 981, 568, 378, 731]] * 14,
    [568, 778, 721, 842, 264, 974, 989, 507, 308],
]


@isolated()
def build_prompt(
    config: Zonos2Config,
    text: str,
    speaker: bool = False,
    clean_background: bool = False,
    accurate: bool = True,
    speaking_rate: int | None = None,
    quality: Quality = None,
) -> Tensor:
    """int32 [T, 10]: nine audio columns and a text column, as the official builder makes them.

    speaker           the first token is replaced by the speaker embedding; the background and accuracy markers follow
    clean_background  the recording of the speaker was clean
    accurate          False: expressive
    speaking_rate     bucket 0 .. config.speaking_rate_num_buckets - 1
    quality           one bucket or None per feature of config.quality_features, in order, or {feature: bucket};
                      a feature without a bucket has no token

    The text is used as its raw UTF-8 bytes and may be empty. ValueError: a bucket out of range, a lone surrogate in the
    text, a speaker for a model without speakers, or codebooks that do not hold the codes of the final silence.
    """
    if config.n_codebooks > len(SILENCE[0]) or config.codebook_size <= max(map(max, SILENCE)):
        raise ValueError(
            f"the silence that ends a prompt takes up to {len(SILENCE[0])} codebooks of 1024, this model has "
            f"{config.n_codebooks} of {config.codebook_size}"
        )
    front = prompt_tokens(config, text, speaker, clean_background, accurate, speaking_rate, quality)
    C = config.n_codebooks
    silence = torch.full((len(SILENCE), C + 1), config.text_vocab, dtype=torch.int32, device="cpu")
    silence[:, :C] = shear(torch.tensor(SILENCE, dtype=torch.int32, device="cpu")[:, :C], config.audio_pad_id)
    return torch.cat([front, silence])


def prompt_tokens(
    config: Zonos2Config,
    text: str,
    speaker: bool,
    clean_background: bool,
    accurate: bool,
    speaking_rate: int | None,
    quality: Quality,
) -> Tensor:
    """int32 [T, 10]: the conditioning and the text of a prompt, without its frames. Errors as of `build_prompt`."""
    column: list[int] = []
    if speaker:
        if not config.speaker_enabled:
            raise ValueError("build_prompt: speaker is True, but this model takes no speaker embedding")
        column += [config.text_vocab, *_markers(config, clean_background, accurate)]
    if speaking_rate is not None:
        rates = config.speaking_rate_num_buckets
        column.append(config.conditioning_base + _bucket("speaking_rate", speaking_rate, rates))
    column += _quality(config, quality)
    column += [BEGIN, *(byte + BYTE_OFFSET for byte in _utf8(text)), END]
    C = config.n_codebooks
    ids = torch.full((len(column), C + 1), config.audio_pad_id, dtype=torch.int32, device="cpu")
    ids[:, C] = torch.tensor(column, dtype=torch.int32, device="cpu")
    return ids


def _markers(config: Zonos2Config, clean_background: bool, accurate: bool) -> list[int]:
    base = config.conditioning_base + config.speaking_rate_num_buckets + sum(config.quality_bucket_counts)
    if not config.background_ids:
        return []
    background = base if clean_background else base + 1
    return [background, base + config.background_ids] if accurate and config.accurate_ids else [background]


def checked_quality(name: str, config: Zonos2Config, quality: Any) -> list[Any]:
    """A list of one item per feature, at most, from a list or a mapping. name: of the argument, in errors."""
    counts, features = config.quality_bucket_counts, config.quality_features
    what = "values" if name == "quality_values" else "buckets"
    if quality is not None and (isinstance(quality, str) or not isinstance(quality, Sequence | Mapping)):
        raise TypeError(f"{name} must be a list of {what}, a mapping of features to {what} or None, got {quality!r}")
    if isinstance(quality, Mapping):
        if unknown := sorted(str(feature) for feature in quality.keys() - set(features)):
            hint = did_you_mean(unknown[0], features)
            raise ValueError(f"{name} must name features of {', '.join(features)}, got {', '.join(unknown)}{hint}")
        quality = [quality.get(feature) for feature in features]
    quality = list(quality or ())
    if len(quality) > len(counts):
        raise ValueError(f"{name} must name at most {len(counts)} {what} ({', '.join(features)}), got {len(quality)}")
    return quality


def _quality(config: Zonos2Config, quality: Quality) -> list[int]:
    counts, features = config.quality_bucket_counts, config.quality_features
    quality = checked_quality("quality", config, quality)
    first = config.conditioning_base + config.speaking_rate_num_buckets
    given = [(i, bucket) for i, bucket in enumerate(quality) if bucket is not None]
    return [first + sum(counts[:i]) + _bucket(f"quality[{i}] ({features[i]})", b, counts[i]) for i, b in given]


def _bucket(name: str, bucket: int, count: int) -> int:
    number = as_int(bucket)
    if number is None or not 0 <= number < count:
        accepted = f"0..{count - 1} or None" if count else "None: this model has no such buckets"
        raise ValueError(f"{name} must be in {accepted}, got {bucket!r}")
    return number


def _utf8(text: str) -> bytes:
    if not isinstance(text, str):
        raise TypeError(f"text must be a string, got {type(text).__name__}")
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        at, lone = error.start, text[error.start]
        raise ValueError(f"text cannot be encoded: character {at} is the lone surrogate {lone!a}") from error
