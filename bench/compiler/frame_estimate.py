"""Estimated times of operations, of a frame and of a prompt, from the counts in a snapshot of the compile gate."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import cache

from zonos2_triton.bench.catalogue import KERNELS
from zonos2_triton.bench.compiler.estimate import REFERENCE, Counted, Rates, Step, dependent_us, serial_us, steps
from zonos2_triton.bench.compiler.gate import COUNTED_DTYPE, COUNTED_TARGET, SNAPSHOTS
from zonos2_triton.bench.specs.spec import Workload
from zonos2_triton.reference.config import Zonos2Config

Snapshot = Mapping[str, Mapping[str, float]]
Operation = tuple[str, str]  # operator, workload
NAMES = [field.name for field in fields(Counted)]
BATCH_SIZES = (1, 4, 16, 64)  # of frames that are estimated, at 1,000 positions
MOST_MS = {1: 1.05, 16: 3.8, 64: 6.4}  # of a frame by batch size, one launch after the other
PROMPT = 128  # tokens of the prompt that is estimated
# Host time of a launch of a prompt, which no graph replays: 20 us of this project's Python and 14 of Triton's
# `JITFunction.run`, both measured on one core of an AMD EPYC with the driver's call left out; 5 for that, assumed.
HOST_US = 39.0


TRITON = "3.6"  # whose counts are taken: that of the machine that `make gpu` is for


@cache
def estimated_snapshot() -> Snapshot:
    """The snapshot that estimates are made from."""
    found: Snapshot = json.loads((SNAPSHOTS / f"triton-{TRITON}.json").read_text(encoding="utf-8"))
    return found


def estimates(snapshot: Snapshot, rates: Rates = REFERENCE) -> dict[Operation, list[Step]]:
    """The launches of each workload whose counts the snapshot holds, in order."""
    launches: dict[Operation, list[tuple[str, Counted]]] = {}
    for key, values in snapshot.items():
        op, function, config, target = key.split("/")
        name, _, dtype = config.split("#")[0].rpartition("-")
        if (target, dtype) == (COUNTED_TARGET, COUNTED_DTYPE) and "launch" in values:
            counted = Counted(**{each: values[each] for each in NAMES})  # type: ignore[arg-type]
            launches.setdefault((op, name), []).append((f"{op}/{function}", counted))
    found = {}
    for kernel in KERNELS.values():
        for workload in kernel.workloads:
            ordered = sorted(launches.get((kernel.name, workload.name), ()), key=lambda launch: launch[1].launch)
            if ordered:
                cost = kernel.cost_of(workload, itemsize=2)
                found[kernel.name, workload.name] = steps(cost, ordered, is_certain(workload), rates)
    return found


def is_certain(workload: Workload) -> bool:
    """Whether a launch knows what it reads before the launch before it has ended: all but weights of routed experts."""
    return not ("active" in workload.sizes and workload.sizes.get("routed", True))


def frame_places(config: Zonos2Config, batch_size: int) -> list[Operation]:
    """The operations of a frame, in order, and their workloads. The router of two experts is taken for that of one."""
    name = f"decode-B{batch_size}"
    places = [("frame_embedding", name)]
    for i in range(config.n_layers):
        places += [(op, name) for op in ("qkv_projection", "decode_attention", "output_projection")]
        if i in config.moe_layers:
            experts = name if config.experts_per_token(i) == 1 else f"{name}-top{config.experts_per_token(i)}"
            places += [("moe_router", name), ("moe_experts", experts)]
        else:
            places += [("moe_experts", f"dense-B{batch_size}")]
    return [*places, *((op, name) for op in ("codebook_head", "sample_codes"))]


def frame_launches(
    config: Zonos2Config, batch_size: int, found: Mapping[Operation, Sequence[Step]]
) -> list[Step] | None:
    """The launches of a frame. None: a count is missing."""
    places = frame_places(config, batch_size)
    if any(place not in found for place in places):
        return None
    return [step for place in places for step in found[place]]


def frame_us(
    config: Zonos2Config, batch_size: int, found: Mapping[Operation, Sequence[Step]], rates: Rates = REFERENCE
) -> tuple[float, float] | None:
    """Microseconds of a frame: its launches one after the other, and dependent ones. None: a count is missing."""
    launches = frame_launches(config, batch_size, found)
    return None if launches is None else (serial_us(launches), dependent_us(launches, rates))


def prompt_us(config: Zonos2Config, found: Mapping[Operation, Sequence[Step]]) -> float | None:
    """Microseconds of a prompt of `PROMPT` tokens up to its logits: of its launches, or of the host that makes them."""
    name, places = f"prefill-{PROMPT}", []
    for op, workload in frame_places(config, 1)[:-1]:  # nothing is sampled
        if op == "codebook_head":
            places.append((op, workload))
        else:
            dense = "dense-" if workload.startswith("dense") else ""
            places.append((op.replace("decode_attention", "prefill_attention"), dense + name))
    if any(place not in found for place in places):
        return None
    launches = [step for place in places for step in found[place]]
    return max(serial_us(launches), HOST_US * len(launches))
