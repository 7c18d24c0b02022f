"""The official engine's package: a stand-in always, and the package itself wherever it is importable."""

import pytest
import torch

from tests.integrations.zonos2_engine.official import SIZES, Run, build, imported, random_weights, standing_in


@pytest.fixture(scope="module", params=["stand-in", pytest.param("official", marks=pytest.mark.needs("zonos2"))])
def official(request):
    with {"stand-in": standing_in, "official": imported}[request.param]() as found, torch.inference_mode():
        yield found


@pytest.fixture(scope="session")
def params(golden):
    return golden.json("params_b") | SIZES


@pytest.fixture(scope="session")
def weights(params):
    return random_weights(params)


@pytest.fixture
def model(official, params, weights):
    return build(official, params, weights)


@pytest.fixture(scope="session")
def prompts():
    generator = torch.Generator().manual_seed(2)
    return [torch.randint(30, (rows, 10), generator=generator, dtype=torch.int32) for rows in (9, 4, 1)]


@pytest.fixture(scope="session")
def frames():
    return torch.randint(30, (2, 3, 10), generator=torch.Generator().manual_seed(3), dtype=torch.int32)


@pytest.fixture(scope="module")
def expected(official, params, weights, prompts, frames):
    """The logits of each step of the model as it is."""
    return Run(official, build(official, params, weights)).generate(prompts, frames)
