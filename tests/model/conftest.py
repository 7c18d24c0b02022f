"""What several files take from the golden backbone and the interpreter."""

from dataclasses import replace

import pytest
import torch

from zonos2_triton.bench.proof.interpreter import checked


@pytest.fixture(scope="session")
def golden_weights(golden):
    """Configuration and weights, in fp32."""
    loaded = golden.backbone(dtype=torch.float32)
    return loaded.config, loaded.weights


@pytest.fixture(scope="session")
def two_layers(golden_weights):
    """The first two: dense, and a mixture of two experts a row."""
    config, weights = golden_weights
    return replace(config, n_layers=2, moe_end_from_layer=0), weights


@pytest.fixture(scope="module")
def quick_interpreter():
    """Quicker than as it comes; the kernels' own tests check each launch."""
    with checked(bounds=False, undefined=False, races=False) as launches:
        yield launches
