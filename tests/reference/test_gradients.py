"""The backbone of the reference differentiates a batch of sequences."""

import pytest
import torch

from zonos2_triton.model.weights.tiny import PARAMS, backbone_weights
from zonos2_triton.reference import network
from zonos2_triton.reference.config import Zonos2Config

LENGTHS = (5, 9, 1, 7)


@pytest.fixture(scope="module")
def config():
    return Zonos2Config.from_params(PARAMS)


def weights(config, dtype):
    made = backbone_weights(config, torch.Generator().manual_seed(0))
    return {name: tensor.to(dtype).requires_grad_() for name, tensor in made.items()}


def logits(config, weights, sequences):
    """One forward of all sequences, each in a page of its own."""
    ends = torch.tensor([0, *map(len, sequences)]).cumsum(0).int()
    longest, pages = max(map(len, sequences)), torch.arange(len(sequences), dtype=torch.int32)
    batch = network.Batch(torch.cat(sequences), pages[:, None], torch.zeros_like(pages), ends, longest)
    model = network.bind(config, weights)
    x, *_ = network.forward(model, batch, network.Cache(config, len(sequences), longest, model.table))
    return network.logits(model, x)


def gradients(config, weights, sequences):
    loss = logits(config, weights, sequences).square().sum()
    names = [name for name in weights if "balancing" not in name and "speaker" not in name]
    return dict(zip(names, torch.autograd.grad(loss, [weights[name] for name in names]), strict=True))


def test_a_batch_has_the_gradients_of_its_sequences(config):
    """In fp64, where one wrong position would show. All weights but those of speakers and the balance take part."""
    parameters = weights(config, torch.float64)
    sequences = [torch.randint(448, (n, config.n_codebooks + 1)) for n in LENGTHS]
    together = gradients(config, parameters, sequences)
    apart = [gradients(config, parameters, [sequence]) for sequence in sequences]
    for name, gradient in together.items():
        torch.testing.assert_close(gradient, sum(each[name] for each in apart), rtol=1e-9, atol=1e-9)
        assert gradient.abs().max() > 0, name


def test_a_batch_has_the_logits_that_are_spoken(config):
    parameters = weights(config, torch.float64)
    sequences = [torch.randint(448, (n, config.n_codebooks + 1)) for n in LENGTHS]
    plain = network.bind(config, {name: tensor.detach() for name, tensor in parameters.items()})
    spoken = torch.cat([network.trace(plain, sequence)["logits"] for sequence in sequences])
    torch.testing.assert_close(logits(config, parameters, sequences).detach(), spoken, rtol=0, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_change_no_bit_of_the_logits(config, dtype):
    parameters = weights(config, dtype)
    sequence = torch.randint(448, (9, config.n_codebooks + 1))
    differentiated = logits(config, parameters, [sequence])
    assert differentiated.requires_grad
    with torch.no_grad():
        assert torch.equal(differentiated, logits(config, parameters, [sequence]))
