import torch

from tests.kernels.operator_suite import interpreted, wrong
from tests.kernels.step_suite import STEP, WRONG_LAYERS, WRONG_OUTPUTS, WRONG_TAPS, StepTests, short_ring
from zonos2_triton.bench.catalogue import KERNELS
from zonos2_triton.bench.proof.interpreter import checked
from zonos2_triton.reference.vocoder_layers import LENGTH_UNKNOWN

TAPS = {**STEP, "Ci": 96, "Co": 96, "taps": 7, "dilation": 3, "y": True}


class TestConv1dSnake(StepTests):
    name = "conv1d_snake"
    fullest = "rows"
    accuracy = [{**TAPS, "residual": True}, {**TAPS, "tf32": True}]
    costs = {
        # 7 x 1024 x 1536 weights; of 16 frames 1024 channels in, 1536 activated out
        "first-chunk-16": ((7 * 1024 * 1536 + 16 * (1024 + 1536)) * 2, 2 * 16 * 7 * 1024 * 1536),
        # 768 x 768 weights; of 128 positions 768 channels in and activated out, in fp32 what is added and the sum
        "point-768-chunk-16": ((768 * 768 + 128 * 2 * 768) * 2 + 128 * 2 * 768 * 4, 2 * 128 * 768 * 768),
    }
    wrong = [
        *WRONG_LAYERS,
        *WRONG_OUTPUTS,
        *WRONG_TAPS,
        wrong(r"alpha must have shape \[Co=24\], got \[23\]", alpha=lambda a: a[:23]),
        wrong(r"residual must have shape \[B=7, Rr, Co=24\], got \[7, 89, 23\]", residual=lambda x: x[..., 1:].clone()),
        wrong("dilation must be at least 1, got 0", dilation=0),
        short_ring("x", 98, "those of a step and the taps around them"),
        *(short_ring(ring, 80, "those of a step") for ring in ("residual", "y", "activated")),
    ]

    @interpreted
    def test_a_ring_of_more_than_31_bits(self):
        """4 GiB of untouched memory, but for the last places of a ring."""
        kernel, size = (
            KERNELS["conv1d_snake"],
            {"B": 1, "frames": 2, "samples_per_frame": 4, "Ci": 16, "Co": 16, "taps": 3},
        )
        long = 2**27 + 64
        done = long // 4 - 4
        inputs = kernel.make_inputs("cpu", torch.float16, **size, rows=((done, 2, LENGTH_UNKNOWN, 0),))
        at = torch.arange(4 * done - 2, 4 * done + 8)
        ring, count = torch.empty(1, long, 16, dtype=torch.float16), inputs["x"].shape[1]
        ring[:, at] = inputs["x"][:, at % count]
        got = {**inputs, "x": ring, "activated": inputs["activated"].clone()}
        with checked(races=False):
            kernel.op(**inputs)
            kernel.op(**got)
        assert torch.equal(got["activated"], inputs["activated"])
