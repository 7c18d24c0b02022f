"""What the device does for the frame loop: prompts into the cache, and one frame of every row after the other."""

from collections.abc import Sequence
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor

from zonos2_triton.model.nvtx import annotate, ranged
from zonos2_triton.model.runtime.batch_state import Slots, int32, upload
from zonos2_triton.model.runtime.request import Request
from zonos2_triton.reference import network as reference
from zonos2_triton.reference.embedding import speaker_row
from zonos2_triton.reference.ops import Ops

in_layer = partial(annotate, "model/layer")


class Frames:
    """A model on its operations, with the rows that it works on."""

    def __init__(self, model: reference.Model, ops: Ops, slots: Slots, alone: bool) -> None:
        """alone: the results of these operations depend on the batch, so each row is computed by itself."""
        self.model, self.ops, self.slots, self.alone = model, ops, slots, alone
        self.device = model.table.device

    def fill(self, pieces: Sequence[tuple[Request, int]]) -> None:
        """So many more rows of each prompt into the cache."""
        x = reference.forward(self.model, self._prompts(pieces), self.slots.cache, ranged(self.ops), None, in_layer)
        for (request, rows), end in zip(pieces, accumulate(rows for _, rows in pieces), strict=True):
            request.filled += rows
            request.hidden = x[end - 1]

    def start(self, requests: Sequence[Request], first: int) -> None:
        """The first frame of requests whose prompts are in the cache; the rows from `first` on are theirs."""
        groups = [[request] for request in requests] if self.alone else [requests]
        stacked = [torch.stack([request.hidden for request in group]) for group in groups]
        logits = [reference.logits(self.model, x, ranged(self.ops)) for x in stacked]
        self.draw(torch.cat(logits), slice(first, first + len(requests)))

    def frame(self, rows: int) -> None:
        """One frame of the first so many rows: forward, draw, what follows from it. The host waits for nothing."""
        if not self.alone:
            self.draw(self.logits(slice(rows)), slice(rows))
            return
        for row, position in enumerate(self.slots.positions[:rows].tolist()):
            if position >= 0:
                self.draw(self.logits(slice(row, row + 1)), slice(row, row + 1))

    def logits(self, rows: slice) -> Tensor:
        """Of the newest frame of these rows, which is fed back: [B, C, V]."""
        ops = ranged(self.ops)
        x = reference.forward(self.model, self.slots.batch(rows), self.slots.cache, ops, None, in_layer)
        return reference.logits(self.model, x, ops)

    def draw(self, logits: Tensor, rows: slice) -> None:
        """The next frame of these rows, and what follows from it."""
        s, ops = self.slots, ranged(self.ops)
        with annotate("model/draw", len(logits)):
            codes, nonfinite = ops.sample_codes(
                logits.float(), s.settings[rows], s.seeds[rows], s.steps[rows], s.last_seen[rows]
            )
            ops.advance_frame(
                codes,
                nonfinite,
                s.positions[rows],
                s.steps[rows],
                s.max_frames[rows],
                s.eoa_ids[rows],
                s.eos_frames[rows],
                s.ids[rows],
                s.last_seen[rows],
                s.frames[rows],
                self.model.config.text_vocab,
            )

    def _prompts(self, pieces: Sequence[tuple[Request, int]]) -> reference.Batch:
        cuts = [0, *accumulate(rows for _, rows in pieces)]
        ids = torch.cat([request.prompt[request.filled : request.filled + rows] for request, rows in pieces])
        pages = torch.zeros(len(pieces), self.slots.block_table.shape[1], dtype=torch.int32, device="cpu")
        index, speakers = [-1] * cuts[-1], list[Tensor]()
        for i, (request, _) in enumerate(pieces):
            pages[i, : len(request.pages)] = torch.tensor(request.pages, dtype=torch.int32, device="cpu")
            if request.speaker is not None and request.filled == 0:
                index[cuts[i]] = len(speakers)
                speakers.append(speaker_row(request.speaker, self.model.speaker))
        cache_seqlens = [request.filled for request, _ in pieces]
        return reference.Batch(
            upload(ids, self.device),
            upload(pages, self.device),
            int32(cache_seqlens, self.device),
            int32(cuts, self.device),
            max(rows for _, rows in pieces),
            *((torch.stack(speakers), int32(index, self.device)) if speakers else ()),
        )
