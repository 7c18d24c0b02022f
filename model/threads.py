"""CPU threads of a command: how many, and how they wait for one another.

OpenMP threads spin between two operations. On busy cores the spinning threads keep the one they wait for from running.
100 frames of the tiny model took over 150 s with two threads on two busy cores. They took 4 s with threads that sleep,
and 6 s with one thread. So a command lets its threads sleep, and uses one thread for a small model, which gains nothing
from more. The library itself changes no setting of torch.
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
SMALL = 2**20  # elements; one thread multiplies such a matrix by a vector in under a millisecond


def sleep_while_waiting() -> None:
    """Set OMP_WAIT_POLICY before torch loads OpenMP, unless the user has set a policy."""
    if "torch" not in sys.modules and not any(name in os.environ for name in WAITING):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def chosen_by_user() -> str | None:
    """The variable in which the user has set a number of threads, or a list of them; None: neither."""
    return next((name for name in NUMBER if re.match(r" *\+?0*[1-9]\d* *(,|$)", os.environ.get(name, ""))), None)


def threads_hint(threads: int, default: int) -> str:
    """The note about a number of threads that is not torch's default."""
    return (
        f"{threads} thread instead of {default}, for the model is small; {NUMBER[0]} chooses another number, and the "
        "reference's sound for a seed may depend on it"
    )


def diagnosis(default: int) -> dict[str, str | int | None]:
    """For `doctor`: the threads that `say` uses on a CPU, and why. default: torch's number."""
    by = chosen_by_user()
    waiting = next((name for name in WAITING if name in os.environ), None)
    why = f"{by} says so" if by else f"one is enough where no weight has more than {SMALL} numbers"
    why = f"{why}; the reference's sound for a seed may depend on it"
    wait = f"as {waiting} says" if waiting else "asleep"
    return {"default": default, "small_model": default if by else 1, "why": why, "waiting": wait}


@contextmanager
def computing(weights: Iterable["Tensor"]) -> Iterator[int]:
    """Inside, torch uses one CPU thread if the weights are small and the user has not chosen a number."""
    import torch

    sizes = [weight.numel() for weight in weights if weight.device.type == "cpu"]
    before = torch.get_num_threads()
    torch.set_num_threads(1 if sizes and max(sizes) <= SMALL and chosen_by_user() is None else before)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
