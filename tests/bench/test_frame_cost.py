"""The kernels' byte counts against figures that were worked out by themselves: weights and cache of the 8B model."""

import pytest

from zonos2_triton.bench.specs.frame_cost import frame_cost
from zonos2_triton.model import Zonos2Config

# MB of a frame at one sequence, bf16, 1,000 rows of context.
PARTS = {
    ("qkv_projection", "output_projection"): 587,
    ("experts",): 944,
    ("experts (dense)",): 151,
    ("head",): 38,
    ("router",): 14,
    ("decode_attention",): 57,
}
# GB of a frame by number of sequences.
TOTALS = {1: 1.79, 4: 4.43, 16: 11.2, 64: 18.7, 256: 30.0}


def test_a_frame_and_its_parts(golden):
    config = Zonos2Config.from_params(golden.json("checkpoint_layout")["params_json"])
    costs = frame_cost(config, 1, 1000)
    found = {parts: sum(costs[part].bytes for part in parts) / 1e6 for parts in PARTS}
    assert found == pytest.approx(PARTS, rel=0.01, abs=0.5)
    totals = {n: sum(cost.bytes for cost in frame_cost(config, n, 1000).values()) / 1e9 for n in TOTALS}
    assert totals == pytest.approx(TOTALS, rel=0.01)
