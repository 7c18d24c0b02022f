from tests.kernels.operator_suite import wrong
from tests.kernels.step_suite import STEP, WRONG_LAYERS, WRONG_OUTPUTS, WRONG_TAPS, StepTests, short_ring


class TestResidualUnit(StepTests):
    name = "residual_unit"
    accuracy = [{**STEP, "C": 96, "dilation": 3}]
    # 8 squares of weights; of 16 x 512 positions 96 channels in and out, twice: activated, and in fp32
    costs = {"96-chunk-16": ((8 * 96 * 96 + 8192 * 2 * 96) * 2 + 8192 * 2 * 96 * 4, 2 * 8192 * 8 * 96 * 96)}
    wrong = [
        *WRONG_LAYERS,
        *WRONG_OUTPUTS,
        *WRONG_TAPS,
        wrong(r"activated must have shape \[B=2, Ra, C=20\], got", activated=lambda a: a[..., 1:].clone()),
        wrong(r"inner_weight must have shape \[C=20, C=20\], got \[20, 19\]", inner_weight=lambda w: w[:, 1:].clone()),
        wrong("C must be at most 192, got 193; use two of conv1d_snake", sizes={"C": 193, "taps": 1}),
        wrong("dilation must be at least 1, got 0", dilation=0),
        short_ring("x", 18, "those of a step and the taps around them"),
        *(short_ring(ring, 12, "those of a step") for ring in ("residual", "y", "activated")),
    ]
