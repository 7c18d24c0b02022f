from tests.kernels.operator_suite import OperatorTests, at, wrong


class TestRotary(OperatorTests):
    name = "rotary"
    accuracy = [{"M": 32, "H": 20, "DH": 64, "P": 6144}]
    # 20 heads of 128 in and out; 64 cosines, 64 sines, a position
    costs = {"decode-B1": (2 * 20 * 128 * 2 + (128 + 1) * 4, 3 * 20 * 128)}
    wrong = [
        wrong(r"positions must have shape \[M=5\], got \[4\]", positions=lambda p: p[:4]),
        wrong(r"positions must be in 0\.\.39, the rows of cos_sin_cache; got 40", positions=at(1, 40)),
        wrong(r"cos_sin_cache must have shape \[P, 2, DH/2=8\], got", cos_sin_cache=lambda t: t[:, :, :4].clone()),
        wrong(r"cos_sin_cache must have shape \[P, 2, DH/2=8\], got", cos_sin_cache=lambda t: t[:, :1].clone()),
        wrong("the head dimension must be a power of two from 16, got 24", sizes={"DH": 24}),
        wrong("the head dimension must be a power of two from 16, got 8", sizes={"DH": 8}),
    ]
