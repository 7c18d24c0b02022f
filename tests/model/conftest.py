"""Fixtures from the golden backbone."""

from dataclasses import replace

import pytest
import torch

from zonos2_triton.model.cli import main


@pytest.fixture(scope="session")
def golden_weights(golden):
    """Configuration and weights, in fp32."""
    loaded = golden.backbone(dtype=torch.float32)
    return loaded.config, loaded.weights


@pytest.fixture(scope="session")
def two_layers(golden_weights):
    """The first two layers: a dense one, and a mixture of two experts per token."""
    config, weights = golden_weights
    return replace(config, n_layers=2, moe_end_from_layer=0), weights


@pytest.fixture
def say(tiny_folder, tmp_path, capsys):
    """Run `say` of 12 frames in this process: (exit status, standard output, standard error)."""

    def run(*arguments, text="Hello.", out="out.wav", model=tiny_folder):
        command = ["say", text, "--model", str(model), "--out", str(tmp_path / out), "--seed", "7"]
        status = main([*command, "--max-frames", "12", "--ignore-eos", *map(str, arguments)])
        return status, *capsys.readouterr()

    return run
