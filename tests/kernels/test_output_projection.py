from tests.kernels.operator_suite import SAME, Accuracy, OperatorTests, odd_width, wrong

OUT = {"M": 32, "K": 512, "D": 256}
TOO_MANY = "at most 256 rows decode together, got 257; prefill=True takes any"


class TestOutputProjection(OperatorTests):
    name = "output_projection"
    forms = ["no-residual"]
    accuracy = {
        "": Accuracy(OUT, SAME, (0.30, 0.78, 0.77)),
        "no-residual": Accuracy({**OUT, "residual": False}, SAME, (0.26, 1.00, 1.00)),
        "prefill": Accuracy({**OUT, "prefill": True}, SAME, (0.30, 0.78, 0.77)),
    }
    costs = {
        # the square matrix; a row in, its residual, a row out
        "decode-B1": ((2048 * 2048 + 3 * 2048) * 2, 2 * 2048 * 2048),
        # the same without the residual
        "no-residual-B1": ((2048 * 2048 + 2 * 2048) * 2, 2 * 2048 * 2048),
    }
    wrong = [
        wrong(r"residual must have shape \[M=3, D=48\], got \[3, 4\]", residual=lambda x: x[:, :4].clone()),
        wrong(r"weight must have shape \[D, K=64\], got \[48, 60\]", residual=None, weight=lambda w: w[:, :60].clone()),
        wrong(TOO_MANY, sizes={"M": 257}),
        wrong(TOO_MANY, sizes={"M": 257, "residual": False}),
        *odd_width("K", 50),
    ]
