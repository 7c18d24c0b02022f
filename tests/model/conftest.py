"""What several files take from the golden backbone."""

from dataclasses import replace

import pytest
import torch


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
