from tests.kernels.operator_suite import at, wrong
from tests.kernels.step_suite import WRONG_STEPS, StepTests, short_ring


class TestRvqDecode(StepTests):
    name = "rvq_decode"
    fullest = "delayed"
    accuracy = [{"B": 2, "frames": 32, "C": 9, "V": 64, "K": 8, "D": 128}]
    # 9 projections of 8 and their biases, to 1024; of 16 frames 9 codes, as many vectors of 8, a row of 1024
    costs = {"chunk-16": ((81 * 1024 + 16 * (72 + 1024)) * 2 + 16 * 9 * 4, 2 * 16 * 81 * 1024)}
    wrong = [
        *WRONG_STEPS,
        wrong(r"z must have shape \[B=6, R, D=20\], got \[6, 11, 19\]", z=lambda z: z[..., 1:].clone()),
        wrong("weight must have P=16 columns, got 32", weight=lambda w: w.repeat(1, 2)),
        wrong("weight must have P=16 columns, got 15", weight=lambda w: w[:, 1:].clone()),
        wrong("codes must have at least C=3 columns, got 2", codes=lambda c: c[..., :2].clone()),
        wrong(r"codes must be in 0\.\.2147483647, codes; got -1", codes=at((1, 2, 2), -1)),
        short_ring("z", 5, "those of a step"),
        short_ring("codes", 7, "those that came of a step"),
    ]
