from tests.kernels.operator_suite import OperatorTests, odd_width, wrong


class TestAddRmsNorm(OperatorTests):
    name = "add_rms_norm"
    accuracy = [{"M": 64, "D": 512}]
    # x, residual, sum and result, each 64 rows; the weight
    costs = {"decode-B64": (4 * 64 * 2048 * 2 + 2048 * 2, 5 * 64 * 2048)}
    wrong = [
        wrong(r"weight must have shape \[D=48\], got \[47\]", weight=lambda w: w[:-1]),
        wrong(r"residual must have shape \[M=3, D=48\], got", residual=lambda x: x[:2]),
        *odd_width("D", 50),
    ]
