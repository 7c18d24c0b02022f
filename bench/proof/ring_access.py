"""What one step of the vocoder's layers may touch, position by position: of the rings that it writes and reads.

Said a second time, and apart from kernels and reference, for the invariants that put something else everywhere else.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

Inputs = Mapping[str, Any]  # of one of the operations that take `spans`


def written(inputs: Inputs, row: int) -> range:
    """The positions that the step makes of this row's clip."""
    done, count, length, _ = inputs["spans"][row].tolist()
    first, last, size = done, done + count, length
    if "rate" in inputs:
        rate, lag = inputs["rate"], inputs["lag"]
        first, last, size = rate * first - lag, rate * last - lag, rate * size - inputs["short"]
    if "stride" in inputs:
        stride = inputs["stride"]
        first, last = (stride * q - (stride + 1) // 2 for q in (first, last))
        size = stride * size - stride % 2
    elif "rate" in inputs:
        first, last = first - _reach(inputs), last - _reach(inputs)
    return range(max(first, 0), min(last, size))


def read(inputs: Inputs, row: int) -> dict[str, Tensor]:
    """Which places of the row's rings count for that: of codes [N, W], of x and residual [R]."""
    positions = written(inputs, row)
    _, _, length, known = inputs["spans"][row].tolist()
    if "codes" in inputs:
        places = torch.zeros(inputs["codes"].shape[1:], dtype=torch.bool)
        for codebook in range(len(inputs["tables"])):
            came = (frame + codebook * inputs["delayed"] for frame in positions)
            places[:, codebook] = places_of(inputs["codes"], [at for at in came if at < max(known, ~known)])
        return {"codes": places}
    size = inputs["rate"] * length - inputs["short"]
    if "stride" in inputs:
        stride = inputs["stride"]
        sources = {(t + (stride + 1) // 2) // stride - back for t in positions for back in (0, 1)}
    else:
        step, reach = inputs.get("dilation", 1), _reach(inputs)
        sources = {t + ahead for t in positions for ahead in range(-reach, reach + 1, step)}
    used = {"x": places_of(inputs["x"], [at for at in sources if 0 <= at < size])}
    if inputs.get("residual") is not None:
        used["residual"] = places_of(inputs["residual"], positions)
    return used


def places_of(ring: Tensor, positions: Iterable[int]) -> Tensor:
    """Which places of a ring [B, R, ...] these positions have, [R]."""
    places = torch.zeros(ring.shape[1], dtype=torch.bool)
    places[[at % len(places) for at in positions]] = True
    return places


def _reach(inputs: Inputs) -> int:
    """How many positions lie before the middle one."""
    return inputs["weight"].shape[1] // inputs["x"].shape[2] // 2 * inputs.get("dilation", 1)
