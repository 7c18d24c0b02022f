from tests.kernels.operator_suite import wrong
from tests.kernels.step_suite import STEP, WRONG_LAYERS, WRONG_OUTPUTS, StepTests, short_ring


class TestConvTranspose1dSnake(StepTests):
    name = "conv_transpose1d_snake"
    accuracy = [{**STEP, "samples_per_frame": 4, "Ci": 192, "Co": 48, "stride": 4}]
    # 16 taps; of 16 frames 1536 channels in, of eight times as many positions 768 out, activated and in fp32
    costs = {"1536-768-chunk-16": ((16 * 1536 * (768 + 1) + 128 * 768) * 2 + 128 * 768 * 4, 2 * 256 * 1536 * 768)}
    wrong = [
        *WRONG_LAYERS,
        *WRONG_OUTPUTS,
        wrong(r"y must have shape \[B=2, Ry, Co=12\], got \[1, 27, 12\]", y=lambda y: y[:1]),
        wrong(r"weight must have shape \[stride \* Co=36, 2 \* Ci=40\], got \[24, 40\]", stride=3),
        wrong(r"weight must have shape \[.*=24, 2 \* Ci=40\], got \[24, 39\]", weight=lambda w: w[:, 1:].clone()),
        wrong("stride must be at least 1, got 0", stride=0),
        # A step of so many inputs is small enough, but not of their outputs.
        wrong("a step makes at most .*, got 2 slots of 268427265 frames of 8", frames=2**28 - 2**13 + 1),
        short_ring("x", 13, "those of a step and the one before"),
        *(short_ring(ring, 24, "those of a step") for ring in ("y", "activated")),
    ]
