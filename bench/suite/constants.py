"""The constants of the estimate, fitted to what was measured: least squares of relative errors.

Launches one after the other, and frames of them, tell START_US + GAP_US, FILL_US and the clock:

    time = launches (START_US + GAP_US) + FILL_US where a launch streams + its clocks CLOCK_SHARE / fitted share
           + floor or l2

The part that decides each launch is that of the estimate before the fit. Frames of dependent launches tell GAP_US.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from zonos2_triton.bench.compiler.estimate import (
    CLOCK_SHARE,
    FILL_US,
    GAP_US,
    START_US,
    Rates,
    Step,
    dependent_us,
    rates_of,
)
from zonos2_triton.bench.compiler.gate import COUNTED_TARGET
from zonos2_triton.bench.specs.gpus import recognised
from zonos2_triton.bench.specs.roofline import Roofline
from zonos2_triton.bench.suite.recorder import NotRun
from zonos2_triton.bench.suite.results import Result, all_passed, passed, roofline
from zonos2_triton.model.tables import text_table

LEAST = 8  # launches and frames
# These times do not tell them apart from the others.
NOT_FITTED = ("DRAIN_US", "L2_GB_PER_S", "L2_BYTES_PER_CLOCK", "CLOCKS_PER_INSTRUCTION")


def fitted(
    content: Result, launches: Mapping[str, Sequence[Step]], frames: Mapping[int, Sequence[Step]], rates: Rates | None
) -> dict[str, Any]:
    """Constants, and how far the estimate is then off each time. NotRun: too little was measured to tell them."""
    if rates is None:
        raise NotRun(f"launches are counted for {COUNTED_TARGET} and known GPUs alone")
    serial: dict[str, tuple[Sequence[Step], float]] = {}
    dependent: dict[str, tuple[Sequence[Step], float]] = {}
    for name, timed in all_passed(content, "launches").items():
        if launches.get(name) and timed["calls_per_sample"] > 1:  # one call by itself has no gap, but events
            serial[f"launches/{name}"] = launches[name], timed["median_us"]
    for batch_size, steps in frames.items():
        for name, times in ((f"B{batch_size}/no-pdl", serial), (f"B{batch_size}", dependent)):
            # Without dependent launch on this machine both are the same, and only one was timed.
            frame = passed(content, "frames", name)
            if steps and frame and passed(content, "frames", f"B{batch_size}/no-pdl"):
                times[f"frames/{name}"] = steps, frame["median_us"]
    if len(serial) < LEAST:
        raise NotRun(f"too little was measured: {len(serial)} launches and frames with estimates, at least {LEAST}")
    us = np.array([time for _, time in serial.values()])
    columns = np.array([_parts(steps) for steps, _ in serial.values()]) / us[:, None]
    solved, _, rank, _ = np.linalg.lstsq(columns[:, :3], 1 - columns[:, 3], rcond=1e-6)
    launch, fill, clocks = map(float, solved)
    if rank < 3 or min(solved) <= 0:
        raise NotRun(
            f"what was measured does not tell the constants apart: START_US + GAP_US {launch:.2f}, FILL_US {fill:.2f}, "
            f"clocks times {clocks:.2f}"
        )

    def off(gap: float) -> list[float]:
        return [dependent_us(steps, rates, gap=gap) / time - 1 for steps, time in dependent.values()]

    gaps = np.linspace(0, launch, 201) if dependent else [GAP_US]
    gap = float(min(gaps, key=lambda each: sum(error**2 for error in off(each))))
    assumed = {"START_US": START_US, "FILL_US": FILL_US, "GAP_US": GAP_US, "CLOCK_SHARE": CLOCK_SHARE}
    found = {"START_US": launch - gap, "FILL_US": fill, "GAP_US": gap, "CLOCK_SHARE": CLOCK_SHARE / clocks}
    before = columns @ [START_US + GAP_US, FILL_US, 1, 1] - 1, off(GAP_US)
    after = columns @ [launch, fill, clocks, 1] - 1, off(gap)
    names = [*serial, *dependent]
    return {
        "assumed": assumed,
        "fitted": {name: round(value, 3) for name, value in found.items()},
        "not_fitted": [*NOT_FITTED, *(() if dependent else ("GAP_US",))],
        "assumed_rms_pct": _rms_pct(*before),
        "rms_pct": _rms_pct(*after),
        "residuals_pct": dict(zip(names, np.round(100 * np.concatenate(after), 1).tolist(), strict=True)),
    }


def measured_rates(content: Result) -> Rates | None:
    """The rates of a run's GPU, as calibrated. None: its code was not counted, or it is not known."""
    gpu = recognised(str(content["environment"]["gpu"]))
    if gpu is None or content["environment"]["arch"] != COUNTED_TARGET:
        return None
    rates, (copy, product) = rates_of(gpu), roofline(content)
    measured = Roofline(copy or rates.roofline.gb_per_s, product or rates.roofline.tflop_per_s)
    return rates._replace(roofline=measured)


def _parts(steps: Sequence[Step]) -> tuple[float, float, float, float]:
    """Launches; those that stream; microseconds by the clock; and by memory, the L2 cache or the matrix rate."""
    limits = [(step.estimate.limit, step.estimate) for step in steps]
    return (
        len(steps),
        sum(limit != "chain" for limit, _ in limits),
        sum(getattr(each, limit) for limit, each in limits if limit not in ("floor", "l2")),
        sum(getattr(each, limit) for limit, each in limits if limit in ("floor", "l2")),
    )


def _rms_pct(*errors: Sequence[float]) -> float:
    return round(100 * float(np.sqrt(np.mean(np.concatenate(errors) ** 2))), 1)


def against_estimates(content: Result) -> str:
    """Measured times beside their estimates and floors, and the fitted constants, for a person to read."""
    rows: list[tuple[str, ...]] = [("", "us", "estimate us", "floor us", "limit")]
    for stage in ("frames", "launches"):
        for name, found in all_passed(content, stage).items():
            if found["estimate_us"]:
                figures = (found["median_us"], found["estimate_us"], found["floor_us"] or 0)
                rows.append((f"{stage}/{name}", *(f"{each:.1f}" for each in figures), found.get("limit") or ""))
    lines = [text_table(rows)] if rows[1:] else []
    for found in all_passed(content, "constants").values():
        told = ", ".join(f"{name} {value:g} ({found['assumed'][name]:g})" for name, value in found["fitted"].items())
        off = f"off by {found['rms_pct']:g} % RMS ({found['assumed_rms_pct']:g} %)"
        lines.append(f"constants fitted (assumed): {told}; {off}; not fitted: {', '.join(found['not_fitted'])}")
        worst = sorted(found["residuals_pct"].items(), key=lambda each: -abs(each[1]))
        lines.append("residuals: " + ", ".join(f"{name} {value:+g} %" for name, value in worst))
    return "\n".join(lines)
