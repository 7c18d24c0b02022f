from tests.kernels.operator_suite import OperatorTests, odd_width, wrong

OUT = {"M": 32, "K": 512, "D": 256}


class TestOutputProjection(OperatorTests):
    name = "output_projection"
    forms = ["no-residual"]
    accuracy = [OUT, {**OUT, "prefill": True}]
    costs = {
        # the square matrix; a row in, its residual if any, a row out; the next norm's weight, x_scaled, 128 sums
        "decode-B1": ((2048 * 2048 + 5 * 2048) * 2 + 128 * 4, 2 * 2048 * 2048),
        "no-residual-B1": ((2048 * 2048 + 2 * 2048) * 2, 2 * 2048 * 2048),
    }
    wrong = [
        wrong(r"residual must have shape \[M=3, D=48\], got \[3, 4\]", residual=lambda x: x[:, :4].clone()),
        wrong(r"weight must have shape \[D, K=64\], got \[48, 60\]", residual=None, weight=lambda w: w[:, :60].clone()),
        wrong(r"next_norm_weight must have shape \[D=48\], got \[44\]", next_norm_weight=lambda w: w[:44].clone()),
        wrong("at most 256 tokens decode together, got 257; prefill=True takes any", sizes={"M": 257}),
        *odd_width("K", 50),
    ]
