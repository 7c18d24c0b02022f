"""Teacher forcing: the tokens that the product would have fed and sampled, had it spoken the data."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from zonos2_triton.model.prompt import BEGIN, PromptOptions
from zonos2_triton.model.training.dataset import Item
from zonos2_triton.reference.config import Zonos2Config


@dataclass(frozen=True)
class Sequences:
    """Some sequences, one after the other, without padding."""

    ids: Tensor  # [M, C + 1] int64: inputs
    cu_seqlens: list[int]  # B + 1: the first token of each
    firsts: list[int]  # B: the token of each, counted from its own first, whose target is frame 0
    targets: Tensor  # [N, C] int64: the frames, delayed
    at: Tensor  # [N] int64: the token of each target
    alignment: list[Tensor | None]  # of each: [F] token of the byte that a frame speaks, or -1
    speakers: list[Tensor | None]

    @property
    def longest(self) -> int:
        return max(b - a for a, b in zip(self.cu_seqlens[:-1], self.cu_seqlens[1:], strict=True))


def delayed_frames(config: Zonos2Config, codes: Tensor, before: Tensor) -> Tensor:
    """codes [F, C] -> the frames [F + C, C] that are sampled, from the first to the end of the last codebook.

    Codebook j is j frames late. Until its first code comes it repeats `before` [C], its last code of the prompt. After
    its last code it says eoa_id: the product ends at the first of these, in codebook 0.
    """
    F, C = codes.shape
    frames = codes.new_full((F + C, C), config.eoa_id, dtype=torch.int64)
    for j in range(C):
        frames[:j, j] = before[j]
        frames[j : j + F, j] = codes[:, j]
    return frames


def teacher_forced(config: Zonos2Config, items: Sequence[Item], prompts: Sequence[PromptOptions]) -> Sequences:
    """The sequences of some items with these prompt options, packed."""
    C, ids, targets = config.n_codebooks, list[Tensor](), list[Tensor]()
    alignment, firsts, at, cuts = list[Tensor | None](), list[int](), list[Tensor](), [0]
    for item, options in zip(items, prompts, strict=True):
        prompt = item.prompt_ids(config, options).long()
        frames = delayed_frames(config, item.codes, prompt[-1, :C])
        fed = torch.nn.functional.pad(frames[:-1], (0, 1), value=config.text_vocab)  # the last one is not fed
        ids += [prompt, fed]
        targets.append(frames)
        first = len(prompt) - 1
        firsts.append(first)
        at.append(torch.arange(len(frames), device="cpu") + cuts[-1] + first)
        cuts.append(cuts[-1] + len(prompt) + len(fed))
        begin = int((prompt[:, C] == BEGIN).nonzero()[0]) + 1
        spoken = None if item.alignment is None else item.alignment.long()
        alignment.append(None if spoken is None else torch.where(spoken < 0, -1, spoken + begin))
    speakers = [item.speaker for item in items]
    return Sequences(torch.cat(ids), cuts, firsts, torch.cat(targets), torch.cat(at), alignment, speakers)


def packed(lengths: Sequence[int], batch_tokens: int, seed: int, epoch: int) -> list[list[int]]:
    """The batches of an epoch: items in an order that seed and epoch determine, up to batch_tokens a batch."""
    order = np.random.default_rng([seed, epoch]).permutation(len(lengths)).tolist()
    batches: list[list[int]] = []
    room = 0
    for i in order:
        if lengths[i] > room:
            batches.append([])
            room = batch_tokens
        batches[-1].append(i)
        room -= lengths[i]
    return batches


def dropped(items: Sequence[Item], share: float, seed: int, step: int, rank: int) -> list[PromptOptions]:
    """Their prompt options; a share of speaking rates, and of each quality, is left out. The step determines which."""
    random = np.random.default_rng([seed, step, rank])
    kept: list[PromptOptions] = []
    for item in items:
        options: PromptOptions = {**item.prompt}
        if random.random() < share:
            options.pop("speaking_rate", None)
        quality = options.get("quality")
        if isinstance(quality, dict):
            options["quality"] = {name: bucket for name, bucket in quality.items() if random.random() >= share}
        kept.append(options)
    return kept
