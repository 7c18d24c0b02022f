import pytest
import torch

from tests.kernels.operator_suite import NORM_WRONG, OperatorTests, odd_width, wrong
from zonos2_triton.kernels import _launch_config
from zonos2_triton.kernels._launch_config import gemm_config
from zonos2_triton.kernels._launch_table import LAUNCH_CONFIGS
from zonos2_triton.kernels.qkv_projection import qkv_projection

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


@pytest.mark.parametrize("parts", [1, 3, 4])
def test_weights_that_are_loaded_early_change_no_bit(parts, monkeypatch):
    D = 64 * parts
    sizes = ((5, D), (D,), (64, D), (2, 16, D), (4, D))
    tensors = [torch.randn(size, generator=torch.Generator().manual_seed(i)) for i, size in enumerate(sizes)]
    assert gemm_config("qkv_projection", False, torch.float32, 5, D)["K_PARTS"] == parts
    early = qkv_projection(*tensors, eps=1e-6)
    tiles = LAUNCH_CONFIGS["qkv_projection", "decode"]
    no_parts = [{**launch, "EARLY_PARTS": 0} for launch in tiles["interpreter"]]
    monkeypatch.setitem(tiles, "interpreter", tuple(no_parts))
    monkeypatch.setattr(_launch_config, "_kept", {})
    assert gemm_config("qkv_projection", False, torch.float32, 5, D)["K_PARTS"] == 0
    torch.testing.assert_close(qkv_projection(*tensors, eps=1e-6), early, rtol=0, atol=0)
