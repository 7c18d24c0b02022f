"""Suggestions for an unknown name."""

from collections.abc import Iterable
from difflib import get_close_matches

# Names used elsewhere that spelling does not lead to.
OTHER_WORDS = dict.fromkeys(("max_length", "max_new_tokens", "max_tokens"), "max_frames")
OTHER_WORDS |= {"rate": "speaking_rate", "speed": "speaking_rate", "reference_audio": "speaker", "voice": "speaker"}


def did_you_mean(name: str, accepted: Iterable[str]) -> str:
    """The end of an error message: the nearest accepted names, or nothing."""
    known = {_word(option): option for option in accepted}
    ours = [OTHER_WORDS[word] for word in get_close_matches(_word(name), OTHER_WORDS, 1, 0.9)]
    near = [word for word in ours if word in known] or get_close_matches(_word(name), known, 2, 0.6)
    return f"; did you mean {' or '.join(repr(known[word]) for word in near)}?" if near else ""


def _word(option: str) -> str:
    return option.lstrip("-").replace("-", "_")
