"""Text normalisation before the prompt."""

import logging

import pytest
import torch

from zonos2_triton.model import Zonos2, normalization
from zonos2_triton.model.normalization import checked_language, installed, normalize, normalized

BRIEF = {"seed": 3, "max_frames": 3}


@pytest.fixture
def voices(tts):
    """The tiny model with a normaliser that spells one number."""
    asked = []

    def spell(text, language):
        asked.append((text, language))
        return text.replace("5", "five")

    made = Zonos2(tts.backbone, tts.vocoder, normalizer=spell)
    made.asked = asked
    return made


def test_texts_are_spoken_as_the_normaliser_has_them(voices, tts):
    spoken = voices.speak("At 5.", language="de", **BRIEF)
    assert voices.asked == [("At 5.", "de")]
    assert torch.equal(spoken.samples, tts.speak("At five.", **BRIEF).samples)
    assert torch.equal(torch.cat([*voices.stream("At 5.", **BRIEF)]), spoken.samples)
    asis = voices.speak("At 5.", text_normalization=False, language="unknown", **BRIEF)
    assert torch.equal(asis.samples, tts.speak("At 5.", text_normalization=False, **BRIEF).samples)


@pytest.mark.parametrize("text", ["", " \n"])
def test_blank_texts_are_left_alone(text):
    assert normalized(text, lambda *_: 1 / 0, {}) == text


def test_a_failure_leaves_the_text_and_is_logged(caplog):
    with caplog.at_level(logging.WARNING, "zonos2_triton"):
        assert normalized("At 5.", lambda *_: 1 / 0, {}) == "At 5."
    assert "the text is not normalised: ZeroDivisionError: division by zero" in caplog.text
    assert normalized("At 5.", lambda *_: " ", {}) == "At 5."


@pytest.mark.parametrize(("given", "name"), [("EN-us", "en_us"), ("pt_BR", "pt_br"), ("cmn", "cmn")])
def test_languages_are_told_by_their_letters(given, name):
    assert checked_language(given) == name


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"language": "fr_f"}, ValueError, "language must be one of en_us, .*, got 'fr_f'; did you mean 'fr_fr'"),
        ({"text_normalization": 1}, TypeError, "text_normalization must be True or False, got 1"),
    ],
)
def test_bad_options_are_named(tts, options, kind, message):
    with pytest.raises(kind, match=message):
        tts.speak("Hello.", **options)


def test_a_normaliser_returns_text():
    with pytest.raises(TypeError, match="the normalizer must return a string, got bytes"):
        normalized("Hello.", lambda *_: b"Hello.", {})


def test_a_missing_package_is_said_once(monkeypatch, caplog):
    monkeypatch.setattr(normalization, "find_spec", lambda name: None)
    normalization._say_once.cache_clear()
    with caplog.at_level(logging.INFO, "zonos2_triton"):
        assert installed() is installed() is None
    assert caplog.text.count("pip install zonos2-triton[normalize]") == 1


def test_long_texts_are_normalised_by_sentences(monkeypatch):
    """The white space between sentences stays, and marks behind digits are kept from the grammars."""
    seen = []

    class Grammars:
        def normalize(self, text, punct_post_process):
            seen.append((text, punct_post_process))
            return text

    monkeypatch.setattr(normalization, "_grammars", lambda code: Grammars())
    text = "It is 5. " + "All is well.\n\n" * 30
    assert normalize(text, "fr_fr") == text
    assert len(seen) == 31
    assert seen[0] == ("It is 5 .", False)


@pytest.mark.needs("kitten_text_processing")
def test_the_package_speaks_numbers():
    spoken = normalize("Dr. Ames paid $12.50 at 5:30.", "en_us")
    assert spoken == "doctor Ames paid twelve dollars fifty cents at five thirty."
    assert normalize(" It is 5.\n\nAll is 1.\n", "en_us") == " It is five.\n\nAll is one.\n"
