import pytest
import torch

from tests.kernels.operator_suite import DTYPES, NORM_WRONG, CountingTests, at, interpreted, odd_width, wrong
from zonos2_triton.bench.catalogue import KERNELS
from zonos2_triton.bench.proof.interpreter import checked
from zonos2_triton.bench.proof.poison import poisoned

MIXTURE = {"M": 24, "D": 256, "I": 128, "E": 4, "k": 2}
DENSE = {"M": 32, "D": 256, "I": 256, "E": 1, "k": 1, "routed": False}
SUM = {"normed": True, "residual": False, "next_norm": False}
ROUTING = ("sorted_slot_ids", "expert_offsets", "expert_weights")


class TestExperts(CountingTests):
    name = "moe_experts"
    forms = ["sum", "dense-sum", "unprepared"]
    fullest = "top2"
    counted = "top2"
    accuracy = [MIXTURE, {**MIXTURE, **SUM}, DENSE, {**MIXTURE, "M": 40, "prefill": True}]
    costs = {
        # one expert's three matrices of 3072 x 2048; x and x_scaled in and out, the norm that follows; h written and
        # read; slot, weight, 128 sums in and out
        "decode-B1": ((3 * 3072 * 2048 + 5 * 2048 + 2 * 3072) * 2 + (2 + 256) * 4, 2 * 3 * 3072 * 2048),
        # all experts; of 2048 rows x in and the sum out, h written and read; slots and weights
        "prefill-sum-2048": ((16 * 3 * 3072 + 2 * 2048 + 2 * 3072) * 2048 * 2 + 2048 * 8, 2048 * 6 * 3072 * 2048),
    }
    wrong = [
        wrong(r"gate must have shape \[E, I, D=48\], got", "normed", gate=lambda w: w[..., :44]),
        wrong(r"up must have shape \[E=4, I=40, D=48\], got \[2, ", up=lambda w: w[:2]),
        wrong(r"up must have the strides of gate, \(.*\), got \(", up=torch.Tensor.contiguous),
        wrong(
            "stride 1 of gate must be a multiple of 4 for torch.float32, got 49",
            **dict.fromkeys(("gate", "up"), lambda w: torch.nn.functional.pad(w, (0, 1))[..., :-1]),
        ),
        wrong(r"down must have shape \[E=4, D=48, I=40\], got", down=lambda w: w.mT.contiguous()),
        wrong(r"sorted_slot_ids must have shape \[M\*K=10\], got \[9\]", sorted_slot_ids=lambda o: o[:9]),
        wrong(r"expert_offsets must have shape \[E\+1=5\], got \[4\]", expert_offsets=lambda o: o[:4]),
        wrong(r"sorted_slot_ids must be in 0\.\.9, the slots; got 10", sorted_slot_ids=at(3, 10)),
        wrong(r"expert_offsets must be in 0\.\.10, places in sorted_slot_ids; got 11", expert_offsets=at(1, 11)),
        wrong(r"steps of expert_offsets must be in 0\.\.10, slots of an expert; got -", expert_offsets=at(2, 0)),
        wrong(
            r"sorted_slot_ids, expert_offsets .* got \['sorted_slot_ids', 'expert_weights'\] alone", expert_offsets=None
        ),
        wrong("without sorted_slot_ids, gate must hold one expert, got E=4", **dict.fromkeys(ROUTING)),
        wrong("at most 256 tokens decode together, got 257; prefill=True takes any", "tiny", sizes={"M": 257}),
        *NORM_WRONG,
        *odd_width("I", 42),
    ]

    @interpreted
    @pytest.mark.parametrize("residual", [True, False], ids=["added", "alone"])
    def test_no_weight_is_read_where_all_rows_are_idle(self, residual):
        """A product with a weight of NaN would be NaN, whatever else it is multiplied by."""
        kernel, sizes = KERNELS["moe_experts"], {"M": 17, "D": 64, "I": 48, "E": 4, "k": 2, "idle": tuple(range(17))}
        for dtype in DTYPES.values():
            inputs = kernel.make_inputs("cpu", dtype, residual=residual, **sizes)
            weights = {name: inputs[name].fill_(torch.nan) for name in ("norm_weight", "gate", "up", "down")}
            want = inputs["x"] if residual else torch.zeros_like(inputs["x"])
            with checked(), poisoned():
                assert torch.equal(kernel.op(**{**inputs, **weights})[0], want)
