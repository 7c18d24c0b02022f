"""The tests that every operator of the vocoder passes: those that go through clips a step at a time, in rings."""

import pytest
import torch

from tests.kernels.operator_suite import OperatorTests, Wrong, assert_same_bits, at, interpreted, run, wrong

STEP = {"B": 2, "frames": 8, "samples_per_frame": 8}  # of samples for accuracy
STEP_META = (
    r"frames before the step \(step_meta\[:, 0\]\) must be in 0\.\.\d+, frames of a clip; got",
    r"frames of the step \(step_meta\[:, 1\]\) must be in 0\.\.\d, at most `frames`; got",
    r"frames of the clip \(step_meta\[:, 2\]\) must be in 0\.\.2147483647, or LENGTH_UNKNOWN; got",
)
WRONG_STEPS = (
    wrong(r"step_meta must have shape \[B=\d, 4\], got \[1, 4\]", step_meta=lambda s: s[:1]),
    wrong(r"step_meta must have shape \[B=\d, 4\], got \[\d, 3\]", step_meta=lambda s: s[:, :3].clone()),
    *(wrong(rf"{what} -1", step_meta=at((1, column), -1)) for column, what in enumerate(STEP_META)),
    wrong(rf"{STEP_META[1]} 6", step_meta=at((1, 1), 6)),
    wrong(rf"{STEP_META[0]} 2147483647", step_meta=at((1, 0), 2**31 - 1)),
    wrong("frames must be at least 1, got 0", frames=0),
    wrong(r"a step makes at most 2147418112 positions, got \d slots of .*; take fewer frames", frames=2**31 - 2**16),
    wrong("tf32 is a way to multiply torch.float32, got torch.bf.*", "tiny", dtype=torch.bfloat16, tf32=True),
)
WRONG_LAYERS = (
    *WRONG_STEPS,
    wrong("samples_per_frame must be at least 1, got 0", samples_per_frame=0),
    *(wrong(f"{number} must be at least 0, got -1", **{number: -1}) for number in ("delay", "tail_trim")),
)
WRONG_OUTPUTS = (
    wrong("activated and alpha must be given together, got activated without alpha", alpha=None),
    wrong("activated and alpha must be given together, got alpha without activated", activated=None),
    wrong("y or activated must be given, got neither", y=None, activated=None, alpha=None),
)
WRONG_TAPS = tuple(
    wrong(
        rf"weight must hold an odd number of taps of \w+=20 channels, got {columns} columns",
        weight=lambda w, columns=columns: w[:, :columns].clone(),
    )
    for columns in (139, 120, 19)
)


def short_ring(ring: str, length: int, what: str) -> Wrong:
    """A ring that holds a position less than a step needs."""
    message = f"{ring} must hold {length} positions, {what}, got {length - 1}"
    return wrong(message, **{ring: lambda x: x[:, : length - 1].clone()})


class StepTests(OperatorTests):
    @interpreted
    def test_offsets_of_64_bits_are_the_same(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """As if a ring had 2^31 elements."""
        case = self.case("delayed" if self.name == "rvq_decode" else "rows")
        want = run(case)
        monkeypatch.setattr("zonos2_triton.kernels._ring_conv.INT64_FROM", 0)
        assert_same_bits(want, run(case))
