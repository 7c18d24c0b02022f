from tests.kernels.operator_suite import OperatorTests, odd_width, wrong

QKV = {"M": 32, "D": 256, "NQ": 512, "NKV": 128, "G": 8}


class TestQkvProjection(OperatorTests):
    name = "qkv_projection"
    forms = ["normed"]
    accuracy = [QKV, {**QKV, "prefill": True}]
    costs = {
        # 2048 + 2 * 512 + 16 rows of weights; the norm's, but for normed; a row in and one out
        "decode-B1": ((3088 * 2048 + 2048 + 2048 + 3088) * 2, 2 * 3088 * 2048),
        "normed-B1": ((3088 * 2048 + 2048 + 3088) * 2, 2 * 3088 * 2048),
    }
    wrong = [
        wrong(r"wkv must have shape \[2, NKV, D=48\], got \[1, ", wkv=lambda w: w[:1]),
        wrong(r"wq must have shape \[NQ, D=48\], got \[64, 44\]", norm_weight=None, wq=lambda w: w[:, :44].clone()),
        wrong("at most 256 tokens decode together, got 257; prefill=True takes any", sizes={"M": 257}),
        *odd_width("D", 50),
    ]
