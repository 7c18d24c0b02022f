"""The positions of the rings that one step of a vocoder operator reads and writes.

It says so apart from kernels and reference. The invariants put other values everywhere else.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

Inputs = Mapping[str, Any]  # of an operator that takes `step_meta`


def written(inputs: Inputs, slot: int) -> range:
    """The positions of this slot's clip that the step computes."""
    done, count, length, _ = inputs["step_meta"][slot].tolist()
    if "codes" in inputs:
        return range(done, min(done + count, length))
    per_frame, delay = inputs["samples_per_frame"], inputs["delay"]
    first, last, clip_len = per_frame * done - delay, per_frame * (done + count) - delay, _clip_len(inputs, length)
    if "stride" in inputs:
        stride = inputs["stride"]
        first, last = (stride * q - (stride + 1) // 2 for q in (first, last))
        clip_len = stride * clip_len - stride % 2
    else:
        first, last = first - _reach(inputs), last - _reach(inputs)
    return range(max(first, 0), min(last, clip_len))


def read(inputs: Inputs, slot: int) -> dict[str, Tensor]:
    """Masks of the ring indices that the slot's results depend on: of codes [N, W], of x and residual [R]."""
    positions = written(inputs, slot)
    _, _, length, known = inputs["step_meta"][slot].tolist()
    if "codes" in inputs:
        mask = torch.zeros(inputs["codes"].shape[1:], dtype=torch.bool)
        for codebook in range(len(inputs["tables"])):
            arrivals = (frame + codebook * inputs["delayed"] for frame in positions)
            mask[:, codebook] = index_mask(inputs["codes"], [at for at in arrivals if at < max(known, ~known)])
        return {"codes": mask}
    if "stride" in inputs:
        stride = inputs["stride"]
        sources = {(t + (stride + 1) // 2) // stride - back for t in positions for back in (0, 1)}
    else:
        dilation, reach = inputs.get("dilation", 1), _reach(inputs)
        sources = {t + ahead for t in positions for ahead in range(-reach, reach + 1, dilation)}
    clip_len = _clip_len(inputs, length)
    used = {"x": index_mask(inputs["x"], [at for at in sources if 0 <= at < clip_len])}
    if inputs.get("residual") is not None:
        used["residual"] = index_mask(inputs["residual"], positions)
    return used


def index_mask(ring: Tensor, positions: Iterable[int]) -> Tensor:
    """The mask [R] of the indices that these positions have in a ring [B, R, ...]."""
    mask = torch.zeros(ring.shape[1], dtype=torch.bool)
    mask[[at % len(mask) for at in positions]] = True
    return mask


def _clip_len(inputs: Inputs, length: int) -> int:
    return inputs["samples_per_frame"] * length - inputs["tail_trim"]


def _reach(inputs: Inputs) -> int:
    """The positions before the middle tap."""
    return inputs["weight"].shape[1] // inputs["x"].shape[2] // 2 * inputs.get("dilation", 1)
