"""Settings and logits of requests, by which `sample_codes` is proved. Each one takes another branch."""

from typing import Any

# Requests that differ in what their settings switch on.
SETTINGS: tuple[dict[str, float], ...] = (
    {"top_k": 5},
    {"top_k": 0, "min_p": 0.0},
    {"top_p": 0.6, "min_p": 0.0},
    {"top_p": 0.7, "top_k": 20, "min_p": 0.25},
    {"temperature": 0},
    {"min_p": 1.5},
    {"min_p": 0.3, "repetition_penalty": 2.5, "repetition_codebooks": 1},
    {"repetition_window": 3, "repetition_penalty": 5, "min_p": 0.0},
    {"repetition_window": 0, "temperature": 2.0, "top_k": 25, "min_p": 0.0},
    {"repetition_codebooks": -1, "repetition_penalty": 1e30, "temperature": 0.3, "min_p": 0.0},
    {"top_p": 1.0, "min_p": 1.0, "repetition_codebooks": 2},
    {"top_p": 0.05},
    {"temperature": 1e6, "top_k": 22, "min_p": 0.0},
)
SOFTMAX: dict[str, float] = {"temperature": 1, "top_k": 0, "min_p": 0.0, "repetition_window": 0}  # of the logits
# A half lies exactly before the fourth code, and before the third: half as likely as the first two.
HALVES = ((0.0,), (0.0, 0.0, *(-0.69314718,) * 4))
# And 5/6 in fp32, of six that tie, is less than five of them by less than fp32 holds.
HALF = tuple({**SOFTMAX, "top_p": top_p} for top_p in (1 / 2, 1 / 2, 5 / 6, 1 / 2))
# Found by search, for the keys of `make`: the target is the weight of code 0, twice, or one less.
AT_THE_TARGET = (
    (2.89957666, 0.0, -1.60822368), (2.89957666, 0.0, -1.60822368),
    (2.67657876, 0.0, -1.86647892), (0.986862123, 0.0, -1.47215581),
)  # fmt: skip
PENALISED = ({"temperature": 0, "repetition_window": 5, "repetition_penalty": 30, "repetition_codebooks": 2},)
# Where leaving out the search for the k-th largest, or zeros of two signs, would draw other codes.
SEARCHED: tuple[dict[str, float], ...] = (
    {"top_k": 1, "min_p": 0.0, "repetition_window": 0},
    {"top_k": 2, "min_p": 0.5, "repetition_window": 0},
    {"top_k": 2, "min_p": 0.9, "repetition_window": 0, "top_p": 0.4},
)
SEARCHED_LEVELS = ((0.0, -0.0), (0.3, 0.2, 0.1, -9.0, -9.0, -9.0), (2.0, 2.0, 1.8, 1.8, 1.8, 1.8))
# Slots at every place of the rule for the end.
ENDS: tuple[dict[str, Any], ...] = (
    {"ends": (1,)},
    {"ends": (0, 2)},
    {"ends": (2,), "eos_frames": 17, "max_frames": 24},
    {"ends": (1,), "eoa_ids": -1},
    {"ends": (0,), "max_frames": 22},
    {"max_frames": 21},
    {"max_frames": 22},
    {"eos_frames": 9, "max_frames": 21},
    {"ends": (2,), "max_frames": 21},
    {"eoa_ids": 0},  # what lies in lanes beyond the codebooks, too
    {"ends": (1,), "eos_frames": 0, "positions": 0},
)
