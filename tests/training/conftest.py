"""A small model and a dataset of it."""

import pytest
import torch

from zonos2_triton.model.training.dataset import Item, write_dataset
from zonos2_triton.model.weights.tiny import PARAMS
from zonos2_triton.reference.config import Zonos2Config

TEXTS = ("One.", "Two, three.", "Is it four?", "Grüße!", "Five and six.", "Seven.")


@pytest.fixture(scope="session")
def config():
    return Zonos2Config.from_params(PARAMS)


@pytest.fixture(scope="session")
def items(config):
    """Codes that follow a rule, so that there is something to learn: each frame is one code more than the last."""
    made = []
    for i, text in enumerate(TEXTS):
        frames, spoken = 6 + 3 * i, len(text.encode())
        codes = (torch.arange(frames)[:, None] + torch.arange(config.n_codebooks) + 40 * i) % 60
        alignment = (torch.arange(frames) * spoken // frames - (torch.arange(frames) == 0).long()).short()
        made.append(Item(f"item{i}", text, codes.short(), alignment, prompt={"speaking_rate": i}))
    return made


@pytest.fixture
def dataset(tmp_path, items):
    return write_dataset(tmp_path / "train.jsonl", items)
