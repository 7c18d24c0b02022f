from tests.kernels.operator_suite import wrong
from tests.kernels.step_suite import STEP, WRONG_LAYERS, WRONG_TAPS, StepTests, short_ring


class TestConv1dTanh(StepTests):
    name = "conv1d_tanh"
    fullest = "rows"
    # in half precision plain PyTorch alone rounds
    accuracy = [{**STEP, "samples_per_frame": 32, "Ci": 96, "y": True}]
    # 7 x 96 weights; of 16 x 512 positions 96 channels in, a sample in fp32 out
    costs = {"chunk-16": ((7 * 96 + 8192 * 96) * 2 + 8192 * 4, 2 * 8192 * 7 * 96)}
    wrong = [
        *WRONG_LAYERS,
        *WRONG_TAPS,
        wrong(r"weight must have shape \[1, K\], got \[2, 140\]", weight=lambda w: w.repeat(2, 1)),
        wrong(r"y must have shape \[B=7, Ry, 1\], got \[7, 83, 2\]", y=lambda y: y.repeat(1, 1, 2)),
        short_ring("x", 86, "those of a step and the taps around them"),
        short_ring("y", 80, "those of a step"),
    ]
