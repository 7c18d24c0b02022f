"""A sampler for settings that leave one code."""

from dataclasses import dataclass

import torch


def sample_tts(
    logits, temperatures, top_ks, top_ps, min_ps, repetition_token_ids=None, repetition_penalties=None, text_vocab=0,
    generators=None,
):  # fmt: skip
    assert set(top_ks.tolist()) == {1}, "this stand-in takes the largest"
    seen = torch.zeros(logits.shape, dtype=torch.bool)
    valid = repetition_token_ids >= 0
    seen.scatter_(-1, repetition_token_ids.clamp(min=0), valid)
    penalty = repetition_penalties[:, None, None]
    logits = torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)
    return [[*row, text_vocab] for row in logits.argmax(-1).tolist()]


@dataclass
class TTSSampler:
    device: object
    n_codebooks: int
    codebook_size: int
    text_vocab: int
