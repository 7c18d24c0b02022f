"""The keywords of `Zonos2.speak`."""

from typing import NamedTuple, TypedDict, cast

from zonos2_triton.model.conditioning import ValueOptions
from zonos2_triton.model.hints import did_you_mean
from zonos2_triton.model.longform import LongForm, long_form_chunks
from zonos2_triton.model.normalization import TextOptions
from zonos2_triton.model.prompt import PromptOptions
from zonos2_triton.reference.sampling_params import SamplingOptions


class LongFormOptions(TypedDict, total=False):
    """Long texts, as keywords of `Zonos2.speak`: the fields of `LongForm`, and whether a text is split."""

    long_form: bool | None
    long_form_chunk_chars: int
    long_form_window_chunks: int
    long_form_pin_anchor: bool
    long_form_split_mode: str


class SpeechOptions(PromptOptions, ValueOptions, LongFormOptions, TextOptions, SamplingOptions, total=False):
    """Further keywords of `Zonos2.speak` and `stream`."""


class LongText(NamedTuple):
    """One long text."""

    chunks: list[str]
    form: LongForm
    prompt: PromptOptions


def sort_options(
    caller: str, options: SpeechOptions
) -> tuple[SamplingOptions, PromptOptions, ValueOptions, LongFormOptions, TextOptions]:
    """Split the keywords by what takes them. TypeError: an unknown one."""
    kinds = (SamplingOptions, PromptOptions, ValueOptions, LongFormOptions, TextOptions)
    for name in options:
        if not any(name in kind.__annotations__ for kind in kinds):
            own = [name for kind in (*kinds[1:], kinds[0]) for name in kind.__annotations__]
            known = ["text", "speaker", "sampling", "progress", *own]
            hint = did_you_mean(name, known) or f"; it takes {', '.join(known)}"
            raise TypeError(f"{caller}() got an unexpected keyword argument {name!r}{hint}")
    parts = [{name: value for name, value in options.items() if name in kind.__annotations__} for kind in kinds]
    return cast(tuple[SamplingOptions, PromptOptions, ValueOptions, LongFormOptions, TextOptions], tuple(parts))


def long_text(text: str, options: LongFormOptions, prompt: PromptOptions) -> LongText | None:
    """The chunks of a text that is to be split."""
    given = {name.removeprefix("long_form_"): value for name, value in options.items() if name != "long_form"}
    form = LongForm(**given)  # type: ignore[arg-type]
    if not isinstance(text, str):
        return None  # the prompt names it
    chunks = long_form_chunks(text, options.get("long_form", False), form.chunk_chars, form.split_mode)
    return None if chunks is None else LongText(chunks, form, prompt)
