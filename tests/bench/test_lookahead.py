"""The table of early sound, on a codec that is quick."""

from itertools import pairwise

import pytest
import torch

from zonos2_triton.bench.proof.lookahead import CHUNK, LOOKAHEADS, decibels, rows
from zonos2_triton.model import Vocoder, VocoderConfig
from zonos2_triton.model.weights.tiny import codec_weights


def test_less_lookahead_is_earlier_and_further_off():
    config = VocoderConfig(latent_dim=8, decoder_dim=16, decoder_rates=(8, 8, 4, 2), codebook_dim=2)
    vocoder = Vocoder.from_state(config, codec_weights(config, torch.Generator().manual_seed(0)), backend="reference")
    frames = torch.randint(1024, (40, 9), generator=torch.Generator().manual_seed(1))
    *early, (kind, first, _) = rows(vocoder, frames)
    assert [kind for kind, _, _ in early] == [f"lookahead {n}" for n in LOOKAHEADS]
    assert [first for _, first, _ in early] == [8 + n + 1 for n in LOOKAHEADS]
    errors = [error for _, _, error in early]
    assert errors[0] > 100
    assert all(later < before + 1 for before, later in pairwise(errors))
    assert errors[-1] < 40
    assert (kind, first) == ("official cross-fade", 8 + 16)
    assert CHUNK > 1


def test_decibels():
    truth = torch.tensor([3.0, 4.0])
    assert decibels(truth, truth) == float("inf")
    assert decibels(truth + torch.tensor([0.3, 0.4]), truth) == pytest.approx(20, abs=1e-4)
