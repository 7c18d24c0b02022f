"""Written text to spoken words, before the prompt: "$5" to "five dollars".

The optional package `kitten-text-processing` holds NeMo's grammars, which the official engine uses. The rules around
them are those of its python/zonos2/tokenizer/textnorm.py.
"""

import logging
import re
from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, TypedDict

from zonos2_triton.model.hints import did_you_mean

LOG = logging.getLogger("zonos2_triton")
PACKAGE = "kitten_text_processing"
# The model's languages, and those of the package. The grammars do not tell regions apart.
LANGUAGES = {"en_us": "en", "en_gb": "en", "fr_fr": "fr", "de": "de", "es": "es", "it": "it", "pt_br": "pt"}
LANGUAGES |= {"ja": "ja", "cmn": "zh", "ko": "ko"}
REPAIRED = ("en", "zh", "ja", "ko")  # languages whose punctuation is repaired afterwards
LONGEST = 300  # characters; a longer text is normalised by its sentences, because grammars slow down with length
DIGIT_MARK = re.compile(r"(?<=\d)([.!?,;:])(?=\s|$)")  # the grammars would read "5." as an ordinal or a fraction
SPACED_MARK = re.compile(r"\s+([.!?,;:])(?=\s|$)")
LINES = re.compile(r"(\n+)")
SENTENCES = re.compile(r"((?<=[.!?…。！？])\s+|\n+)")

Normalizer = Callable[[str, str], str]  # (text, one of LANGUAGES) -> text


class TextOptions(TypedDict, total=False):
    """Text normalisation, as keywords of `Zonos2.speak`."""

    text_normalization: bool
    language: str


def checked_language(language: str) -> str:
    """A key of LANGUAGES; case, "-" and "_" do not matter. ValueError: another language."""
    name = str(language).lower().replace("-", "_")
    if not isinstance(language, str) or name not in LANGUAGES:
        hint = did_you_mean(name, LANGUAGES)
        raise ValueError(f"language must be one of {', '.join(LANGUAGES)}, got {language!r}{hint}")
    return name


def installed() -> Normalizer | None:
    """The normaliser of the optional package; None, said once in the log: it is not installed."""
    if find_spec(PACKAGE) is None:
        _say_once()
        return None
    return normalize


def normalized(text: str, normalizer: Normalizer | None, options: TextOptions) -> str:
    """The text as it is spoken. After a failure, or of a blank text: the text as it is.

    ValueError: an unknown language. TypeError: text_normalization is no bool, or the normaliser returns no string.
    """
    wanted = options.get("text_normalization", True)
    if not isinstance(wanted, bool):
        raise TypeError(f"text_normalization must be True or False, got {wanted!r}")
    if not wanted:
        return text
    language = checked_language(options.get("language", "en_us"))
    if normalizer is None or not isinstance(text, str) or not text.strip():
        return text
    try:
        spoken = normalizer(text, language)
    except Exception as error:
        LOG.warning("the text is not normalised: %s: %s", type(error).__name__, error)
        return text
    if not isinstance(spoken, str):
        raise TypeError(f"the normalizer must return a string, got {type(spoken).__name__}")
    return spoken if spoken.strip() else text


def normalize(text: str, language: str) -> str:
    """The text by the grammars of a language, line by line; sentence by sentence if it is longer than LONGEST."""
    code = LANGUAGES[language]
    parts = (LINES if len(text) <= LONGEST else SENTENCES).split(text)  # every second one is white space
    return "".join(part if i % 2 else _sentence(part, code) for i, part in enumerate(parts))


def _sentence(text: str, code: str) -> str:
    """Grammars drop white space at either end; it stays here."""
    body = text.strip()
    if not body:
        return text
    spoken = _grammars(code).normalize(DIGIT_MARK.sub(r" \1", body), punct_post_process=code in REPAIRED)
    begin = text.index(body)
    return text[:begin] + SPACED_MARK.sub(r"\1", spoken) + text[begin + len(body) :]


@lru_cache(maxsize=2)
def _grammars(code: str) -> Any:
    """About 20 MB each."""
    from kitten_text_processing import Normalizer as Grammars

    return Grammars(input_case="lower_cased" if code == "ko" else "cased", lang=code)


@lru_cache(maxsize=1)
def _say_once() -> None:
    LOG.info("texts are not normalised: pip install zonos2-triton[normalize]")
