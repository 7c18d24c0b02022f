from tests.kernels.operator_suite import NORM_WRONG, CountingTests, odd_width, wrong

CHOICE = {"M": 64, "D": 256, "R": 64, "E": 16, "k": 2}


class TestRouter(CountingTests):
    name = "moe_router"
    forms = ["normed", "unprepared"]
    fullest = "idle"
    counted = "two-tiles"
    accuracy = [CHOICE]
    costs = {
        # 128 x 2048, twice 128 x 128, 16 x 128 weights; three biases, the state's scale and norm, the balance; x, old
        # and new state; 128 sums, 16 probabilities, id, weight and slot in 4 bytes each, 17 offsets
        "decode-B1": (
            (262144 + 2 * 16384 + 2048 + 5 * 128 + 16 + 2048 + 2 * 128) * 2 + 4 * (128 + 16 + 3 + 17),
            2 * (262144 + 2 * 16384 + 2048),
        ),
        # the weights once, without the norm's; 16 of everything that is a row's
        "normed-B16": (
            (262144 + 2 * 16384 + 2048 + 5 * 128 + 16 + 16 * (2048 + 2 * 128)) * 2 + 4 * (16 * (16 + 3) + 17),
            16 * 2 * (262144 + 2 * 16384 + 2048),
        ),
    }
    wrong = [
        wrong(r"w2 must have shape \[R=24, R=24\], got \[16, 24\]", w2=lambda w: w[:16]),
        wrong(r"balancing_biases must have shape \[E=4\], got \[3\]", balancing_biases=lambda b: b[:3]),
        wrong(r"positions must have shape \[M=70\], got \[69\]", positions=lambda p: p[1:]),
        wrong(r"down_weight must have .* D=48\], got", "normed", down_weight=lambda w: w[:, :44].clone()),
        wrong(r"k must be in 1\.\.E=4, got 0", k=0),
        wrong(r"k must be in 1\.\.E=4, got 5", k=5),
        wrong("w3 must have at most 256 rows, one for each expert, got 257", sizes={"E": 257}),
        wrong("router_state and state_scale must be given together", router_state=None),
        wrong("router_state and state_scale must be given together", state_scale=None),
        *NORM_WRONG,
        *odd_width("R", 34),
    ]
