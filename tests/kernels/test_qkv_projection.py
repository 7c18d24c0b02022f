from tests.kernels.operator_suite import SAME, Accuracy, OperatorTests, odd_width, wrong

QKV = {"M": 32, "D": 256, "NQ": 512, "NKV": 128, "G": 8}
TOO_MANY = "at most 256 rows decode together, got 257; prefill=True takes any"


class TestQkvProjection(OperatorTests):
    name = "qkv_projection"
    forms = ["normed"]
    accuracy = {
        "": Accuracy(QKV, SAME, (0.43, 1.00, 1.00)),
        "normed": Accuracy({**QKV, "normed": True}, SAME, (0.24, 1.00, 1.00)),
        "prefill": Accuracy({**QKV, "prefill": True}, SAME, (0.35, 1.00, 1.00)),
    }
    costs = {
        # 2048 + 2 * 512 + 16 rows of weights; the norm's; a row in and one out
        "decode-B1": ((3088 * 2048 + 2048 + 2048 + 3088) * 2, 2 * 3088 * 2048),
        # the same without the norm's
        "normed-B1": ((3088 * 2048 + 2048 + 3088) * 2, 2 * 3088 * 2048),
    }
    wrong = [
        wrong(r"wkv must have shape \[2, NKV, D=48\], got \[1, ", wkv=lambda w: w[:1]),
        wrong(r"wq must have shape \[NQ, D=48\], got \[64, 44\]", norm_weight=None, wq=lambda w: w[:, :44].clone()),
        wrong(TOO_MANY, sizes={"M": 257}),
        wrong(TOO_MANY, sizes={"M": 257, "normed": True}),
        *odd_width("D", 50),
    ]
