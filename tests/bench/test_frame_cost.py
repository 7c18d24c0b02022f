"""The kernels' byte counts against figures that were worked out by themselves: weights and cache of the 8B model."""

import pytest

from zonos2_triton.bench.specs.frame_cost import frame_cost
from zonos2_triton.model import Zonos2Config


@pytest.fixture(scope="module")
def config(golden):
    return Zonos2Config.from_params(golden.json("checkpoint_layout")["params_json"])


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


@pytest.mark.parametrize(
    ("parts", "megabytes"), PARTS.items(), ids=lambda value: "+".join(value) if isinstance(value, tuple) else str(value)
)
def test_parts_of_a_frame(config, parts, megabytes):
    costs = frame_cost(config, 1, 1000)
    assert sum(costs[part].bytes for part in parts) / 1e6 == pytest.approx(megabytes, rel=0.01, abs=0.5)


@pytest.mark.parametrize(("sequences", "gigabytes"), TOTALS.items())
def test_a_frame(config, sequences, gigabytes):
    total = sum(cost.bytes for cost in frame_cost(config, sequences, 1000).values())
    assert total / 1e9 == pytest.approx(gigabytes, rel=0.01)
