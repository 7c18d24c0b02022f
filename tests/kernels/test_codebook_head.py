from tests.kernels.operator_suite import NORM_WRONG, OperatorTests, odd_width, wrong

LOGITS = {"M": 32, "D": 256, "N": 513, "codebooks": 9}


class TestHead(OperatorTests):
    name = "codebook_head"
    accuracy = [LOGITS, {**LOGITS, "prefill": True}]
    # 9234 rows of weights, a row and its 128 sums; fp32 logits
    costs = {"decode-B1": ((9234 * 2048 + 2048) * 2 + (128 + 9234) * 4, 2 * 9234 * 2048)}
    wrong = [
        wrong(r"weight must have shape \[N, D=48\], got \[27, 44\]", weight=lambda w: w[:, :44].clone()),
        wrong("weight must have a multiple of n_codebooks=4 rows, got 27", n_codebooks=4),
        wrong("weight must have a multiple of n_codebooks=0 rows, got 27", n_codebooks=0),
        wrong("at most 256 tokens decode together, got 257; prefill=True takes any", sizes={"M": 257}),
        *NORM_WRONG,
        *odd_width("D", 50),
    ]
