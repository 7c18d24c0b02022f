"""How many threads a command computes with on a CPU, and how they wait for one another.

Between two operations the threads of OpenMP wait by spinning. Where other programs keep the cores busy, the one that
all wait for does not run while the others spin: 100 frames of the tiny model took over 150 s with two threads on two
busy cores, 4 s where they sleep instead, and 6 s with one thread. So a command lets them sleep, and takes one thread
for a small model, which gains nothing by more.

This is for the command's own process; whoever uses the library sets torch as they like, and it stays so.
"""

import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

NUMBER = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")  # the user's own choice
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
SMALL = 2**20  # numbers of a matrix that one thread multiplies by a vector in less than a millisecond


def sleep_while_waiting() -> None:
    """OpenMP reads the environment once, when torch loads it. What the user has set stays."""
    if "torch" not in sys.modules and not any(name in os.environ for name in WAITING):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def chosen_by_user() -> str | None:
    """The variable that says how many threads there are; None: nobody said a number, or a list of them."""
    return next((name for name in NUMBER if re.match(r" *\+?0*[1-9]\d* *(,|$)", os.environ.get(name, ""))), None)


def threads_for(largest: int) -> int | None:
    """For a model on a CPU whose largest weight has so many numbers; None: as many as torch takes by itself."""
    return 1 if largest <= SMALL and chosen_by_user() is None else None


def threads_hint(threads: int, default: int) -> str:
    """What a user may want to know of another number than torch's own."""
    return (
        f"{threads} thread instead of {default}, for the model is small; {NUMBER[0]} chooses another number, and the "
        "reference's sound for a seed may depend on it"
    )


def diagnosis(default: int) -> dict[str, str | int | None]:
    """For `doctor`: how many threads `say` would take on a CPU, and why. default: torch's own number."""
    by = chosen_by_user()
    waiting = next((name for name in WAITING if name in os.environ), None)
    why = f"{by} says so" if by else f"one is enough where no weight has more than {SMALL} numbers"
    return {
        "default": default,
        "small_model": default if by else 1,
        "why": f"{why}; the reference's sound for a seed may depend on it",
        "waiting": f"as {waiting} says" if waiting else "asleep",
    }


@contextmanager
def computing(weights: Iterable["Tensor"]) -> Iterator[int]:
    """Inside, torch computes on so many threads as fit the weights, on a CPU."""
    import torch

    sizes = [weight.numel() for weight in weights if weight.device.type == "cpu"]
    before = torch.get_num_threads()
    torch.set_num_threads((threads_for(max(sizes)) if sizes else None) or before)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
