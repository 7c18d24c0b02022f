"""Requirements of the catalogue on compiled code and its counts, and the rows that are held to them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

from zonos2_triton.bench.compiler.cubin_stats import TARGETS, TENSOR_MEMORY, Stats
from zonos2_triton.bench.compiler.estimate import LEAST_SHARE, MOST_TOKENS, Bounds, Counted, Step

DECODE = "decode", "dense"  # variants that bounds are of


@dataclass(frozen=True)
class Expected:
    """The requirements on the compiled code of one jit function, on every target."""

    max_instructions: int
    matrix: bool = False  # matrix instructions, of any family
    warpgroup: bool = False  # and where the target has them, those of a whole warpgroup: HGMMA, UTC*MMA
    stream16: bool = False  # the weight stream is read 16 bytes at a time
    max_narrow: int | None = None  # with stream16: loads that are narrower; None: no more than those of 16 bytes
    invariant: bool = False  # adds in one order at every number of rows of a variant: bits do not depend on the batch
    bounds: Bounds | None = None  # on the counts of decode launches
    # Why launches of prompts and clips stay below half of the better roof, conflict, or wait for their loads: by a
    # pattern of workloads. Without a reason they fail.
    reasons: Mapping[str, str] = field(default_factory=dict)


Expectations = Mapping[str, Expected]
"""By the name of the jit function, or a pattern of fnmatch; the first that matches counts."""


@dataclass(frozen=True)
class Row:
    """One compiled kernel of one workload on one target."""

    kernel: str  # in the catalogue
    function: str  # "" where the op failed before or between its launches
    config: str  # workload-dtype, then #2, #3, ... where it launches several binaries of this function
    target: str
    failures: tuple[str, ...]
    stats: Stats | None = None
    grid: tuple[int, ...] = ()
    launches: int = 0
    counted: Counted | None = None
    step: Step | None = None  # its estimate
    counts: Mapping[str, Any] | None = None  # in words and totals, for a reader
    over: tuple[str, ...] = ()  # bounds that the counts do not keep, and that fail nothing

    @property
    def key(self) -> str:
        return f"{self.kernel}/{self.function}/{self.config}/{self.target}"


def judge(stats: Stats, target: str, expected: Expected) -> list[str]:
    """The violations of a binary, in words."""
    limits, wrong = TARGETS[target], []
    if stats.traps and stats.instructions < 64:
        wrong.append(f"a trap in place of the kernel: {stats.instructions} instructions, {stats.traps} of them traps")
    if stats.spills or stats.stack:
        wrong.append(f"spills or local arrays: {stats.spills} local accesses, {stats.stack} bytes of stack")
    if stats.shared > limits.shared:
        wrong.append(f"{stats.shared} bytes of shared memory, {target} has {limits.shared}")
    if stats.tensor_memory > TENSOR_MEMORY:
        wrong.append(f"{stats.tensor_memory} columns of tensor memory, {target} has {TENSOR_MEMORY}")
    if expected.stream16:
        allowed = stats.wide if expected.max_narrow is None else expected.max_narrow
        if not stats.wide:
            wrong.append(f"no 16-byte loads: {stats.narrow} narrower ones")
        elif stats.narrow > allowed and "tma" not in stats.loads:
            wide = f"beside {stats.wide} of 16, at most {allowed} meant"
            wrong.append(f"{stats.narrow} loads narrower than 16 bytes {wide}")
    warpgroup = expected.warpgroup and target in ("sm_90", "sm_100")
    if (expected.matrix or expected.warpgroup) and not stats.matrix:
        wrong.append("no matrix instructions")
    elif warpgroup and not any("GMMA" in family or "UTC" in family for family in stats.matrix):
        wrong.append(f"no matrix instructions of a warpgroup, only {', '.join(stats.matrix)}")
    if stats.instructions > expected.max_instructions:
        wrong.append(f"{stats.instructions} instructions, at most {expected.max_instructions} meant")
    if not wrong and not stats.blocks:
        wrong.append(f"no block fits: {stats.registers} registers, {stats.warps} warps")
    return wrong


def variant_of(config: str) -> str:
    """The variant of a workload: its name up to the first number; "dense-prefill" of "dense-prefill-2048-bfloat16"."""
    return re.sub(r"-B?\d.*|-(bfloat16|float16|float32).*", "", config)


def is_of_a_frame(workload: str) -> bool:
    """Whether a workload is a launch for one new token of each request; the others are of prompts and clips."""
    return re.search(r"^decode|-B\d", workload) is not None


def with_reason(row: Row, workload: str, expects: Expectations) -> Row:
    """The row with the catalogue's reason for a launch that is far from its roof; without a reason it has failed."""
    expected = expected_of(row.function, expects)
    if not expected or not row.counted or not row.step:
        return row
    over = Bounds().over_on_any_target(row.counted.conflict, row.counted.exposed)
    if (share := row.step.estimate.share) < LEAST_SHARE:
        over["roof"] = f"{share:.2f} of the better roof"
    if not over:
        return row
    reason = next((why for pattern, why in expected.reasons.items() if fnmatchcase(workload, pattern)), None)
    text = "; ".join(over.values())
    if reason is None:
        return replace(row, failures=(*row.failures, f"{text}: the catalogue has no reason"))
    return replace(row, over=(*row.over, f"{text}: {reason}"))


def tokens_of(workload: Any) -> int:
    return int(workload.sizes.get("M", workload.sizes.get("B", 0)))


def has_bounds(config: str, workload: Any) -> bool:
    return variant_of(config) in DECODE and tokens_of(workload) <= MOST_TOKENS


def bounds_of(function: str, expects: Expectations) -> Bounds | None:
    expected = expected_of(function, expects)
    return expected.bounds if expected else None


def bounded(row: Row, bounds: Bounds | None, over: Mapping[str, str], tokens: int) -> Row:
    """The row with the bounds that its counts do not keep: failures, or words where they do not hold yet."""
    if bounds is None:
        return row
    held = {name for name in over if tokens <= bounds.held.get(name, 0)}
    failures = [text for name, text in over.items() if name in held]
    rest = tuple(f"{name}: {text}" for name, text in over.items() if name not in held)
    return replace(row, failures=(*row.failures, *failures), over=rest)


def expected_of(function: str, expects: Expectations) -> Expected | None:
    return next((expected for pattern, expected in expects.items() if fnmatchcase(function, pattern)), None)
