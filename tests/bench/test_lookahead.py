"""The table of latency and quality, on a codec that is quick."""

import re
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from zonos2_triton.bench.proof.lookahead import CHUNK, LOOKAHEADS, decibels, real, rows, told
from zonos2_triton.model import Vocoder, VocoderConfig
from zonos2_triton.model.weights.tiny import codec_weights

README = (Path(__file__).parents[2] / "model" / "README.md").read_text(encoding="utf-8")
TABLE = [re.findall(r" (.*?) \|", row) for row in README.splitlines() if row.startswith(("| `lookahead=", "| `mode="))]


def test_less_lookahead_is_earlier_and_further_off():
    config = VocoderConfig(latent_dim=8, decoder_dim=16, decoder_rates=(8, 8, 4, 2), codebook_dim=2)
    vocoder = Vocoder.from_state(config, codec_weights(config, torch.Generator().manual_seed(0)), backend="reference")
    found = [*rows(vocoder, torch.randint(1024, (40, 9), generator=torch.Generator().manual_seed(1)))]
    assert [row[:2] for row in found] == [tuple(row[:2]) for row in TABLE]
    assert [first.split()[0] for _, first, _ in found] == [f"{8 + n + 1}" for n in LOOKAHEADS] + [f"{8 + 16}"]
    assert found[0][2] == "above 100 dB"  # the reference adds up in another order
    errors = [100 if told.startswith("above") else int(told.split()[0]) for *_, told in found[:-1]]
    assert all(later <= before + 1 for before, later in pairwise(errors))
    assert errors[-1] < 40
    assert CHUNK > 1


@pytest.mark.slow
def test_the_readme_says_how_far_off_the_real_sizes_are():
    for row in rows(*real(), lookaheads=(10, 4)):
        [stated] = [line for line in TABLE if line[0] == row[0]]
        if row[2].startswith("above"):
            assert stated[2] == row[2]
        else:
            assert int(stated[2].split()[0]) == pytest.approx(int(row[2].split()[0]), abs=1)


def test_exact_are_equal_bits_alone():
    assert [told(x) for x in (float("inf"), 114.3, 27.4)] == ["exact", "above 100 dB", "27 dB"]


def test_decibels():
    truth = torch.tensor([3.0, 4.0])
    assert decibels(truth, truth) == float("inf")
    assert decibels(truth + torch.tensor([0.3, 0.4]), truth) == pytest.approx(20, abs=1e-4)
