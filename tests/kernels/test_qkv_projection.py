from tests.kernels.operator_suite import NORM_WRONG, OperatorTests, odd_width, wrong

QKV = {"M": 32, "D": 256, "NQ": 512, "NKV": 128, "G": 8}


class TestQkvProjection(OperatorTests):
    name = "qkv_projection"
    forms = ["normed", "unprepared"]
    accuracy = [QKV, {**QKV, "prefill": True}]
    costs = {
        # 2048 + 2 * 512 + 16 rows of weights; a row in and one out; 128 sums, but for normed
        "decode-B1": ((3088 * 2048 + 2048 + 3088) * 2 + 128 * 4, 2 * 3088 * 2048),
        "normed-B1": ((3088 * 2048 + 2048 + 3088) * 2, 2 * 3088 * 2048),
        # x and the norm's weight come to it, and x_scaled and the sums are written and read
        "unprepared-B16": (
            (3088 * 2048 + 2048 + 16 * (3 * 2048 + 3088)) * 2 + 2 * 16 * 128 * 4,
            16 * 2 * 3088 * 2048,
        ),
    }
    wrong = [
        wrong(r"wkv must have shape \[2, NKV, D=48\], got \[1, ", wkv=lambda w: w[:1]),
        wrong(r"wq must have shape \[NQ, D=48\], got \[64, 44\]", "normed", wq=lambda w: w[:, :44].clone()),
        wrong("at most 256 tokens decode together, got 257; prefill=True takes any", sizes={"M": 257}),
        *NORM_WRONG,
        *odd_width("D", 50),
    ]
