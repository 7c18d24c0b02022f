"""Runs the model on the device: prompts into the KV cache, then one frame of the batch after the other."""

from collections.abc import Sequence
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor

from zonos2_triton.model.nvtx import annotate, ranged
from zonos2_triton.model.ops import early_loads
from zonos2_triton.model.runtime.batch_state import BatchState, int32, upload
from zonos2_triton.model.runtime.request import Request
from zonos2_triton.reference import network as reference
from zonos2_triton.reference.frame_embedding import project_speaker
from zonos2_triton.reference.ops import Ops

in_layer = partial(annotate, "model/layer")


class ModelRunner:
    """A model, its operations and the state of the batch they work on."""

    def __init__(self, model: reference.Model, ops: Ops, state: BatchState, per_sequence: bool) -> None:
        """per_sequence: compute each sequence by itself, for operations whose results depend on the batch."""
        self.model, self.ops, self.state, self.per_sequence = model, ops, state, per_sequence
        self.device = model.table.device

    def prefill(self, chunks: Sequence[tuple[Request, int]]) -> None:
        """Take so many more tokens of each prompt into the cache."""
        batch = self._prompts(chunks)
        with early_loads():
            stream = reference.forward(self.model, batch, self.state.cache, ranged(self.ops), None, in_layer)
        for (request, tokens), end in zip(chunks, accumulate(tokens for _, tokens in chunks), strict=True):
            request.num_prefilled += tokens
            request.hidden = [part[end - 1] for part in stream]

    def warm_up(self, lengths: Sequence[int]) -> None:
        """Compiles what prompts of such lengths launch, with a voice and without. It fills the first page of the cache.

        No request may be there.
        """
        pages = torch.zeros_like(self.state.block_table[:1])
        for tokens in lengths:
            ids = torch.zeros(tokens, self.state.ids.shape[1], dtype=torch.int32, device=self.device)
            voice = self.model.table.new_zeros(1, self.model.table.shape[1]), int32([-1] * tokens, self.device)
            starts, cuts = int32([0], self.device), int32([0, tokens], self.device)
            for voices in ((), voice) if self.model.speaker else ((),):
                batch = reference.Batch(ids, pages, starts, cuts, tokens, *voices)
                with early_loads():
                    stream = reference.forward(self.model, batch, self.state.cache, self.ops)
            x, x_scaled, sum_sq = (part[-1:].clone() for part in stream)
            with early_loads():
                reference.logits(self.model, x, x_scaled, sum_sq, self.ops)

    def start(self, requests: Sequence[Request], first: int) -> None:
        """The first frame of requests whose prompts are in the cache; their slots begin at `first`."""
        groups = [[request] for request in requests] if self.per_sequence else [requests]
        logits = []
        for group in groups:
            x, x_scaled, sum_sq = map(torch.stack, zip(*(request.hidden for request in group), strict=True))
            with early_loads():
                logits.append(reference.logits(self.model, x, x_scaled, sum_sq, ranged(self.ops)))
        self.sample(torch.cat(logits), slice(first, first + len(requests)))

    def frame(self, batch_size: int) -> None:
        """One frame of the first slots: forward, sampling, update of the state. The host does not wait."""
        if not self.per_sequence:
            self.sample(self.logits(slice(batch_size)), slice(batch_size))
            return
        for slot, position in enumerate(self.state.positions[:batch_size].tolist()):
            if position >= 0:
                self.sample(self.logits(slice(slot, slot + 1)), slice(slot, slot + 1))

    def logits(self, slots: slice) -> Tensor:
        """Logits [B, C, V] after the newest frame of these slots, which is fed back."""
        ops = ranged(self.ops)
        with early_loads():
            stream = reference.forward(self.model, self.state.batch(slots), self.state.cache, ops, None, in_layer)
            return reference.logits(self.model, *stream, ops=ops)

    def sample(self, logits: Tensor, slots: slice) -> None:
        """Sample the next frame of these slots and update their state."""
        with annotate("model/sample", len(logits)), early_loads():
            drawing = self.state.drawing(slots)
            ranged(self.ops).sample_codes(logits.float(), *drawing, self.model.config.text_vocab)

    def _prompts(self, chunks: Sequence[tuple[Request, int]]) -> reference.Batch:
        cuts = [0, *accumulate(tokens for _, tokens in chunks)]
        ids = torch.cat([r.prompt[r.num_prefilled : r.num_prefilled + tokens] for r, tokens in chunks])
        pages = torch.zeros(len(chunks), self.state.block_table.shape[1], dtype=torch.int32, device="cpu")
        index, speakers = [-1] * cuts[-1], list[Tensor]()
        for i, (request, _) in enumerate(chunks):
            pages[i, : len(request.pages)] = torch.tensor(request.pages, dtype=torch.int32, device="cpu")
            if request.speaker is not None and request.num_prefilled == 0:
                index[cuts[i]] = len(speakers)
                speakers.append(project_speaker(request.speaker, self.model.speaker))
        ids, pages = upload(ids, self.device), upload(pages, self.device)
        starts = int32([request.num_prefilled for request, _ in chunks], self.device)
        voices = (torch.stack(speakers), int32(index, self.device)) if speakers else ()
        longest = max(tokens for _, tokens in chunks)
        return reference.Batch(ids, pages, starts, int32(cuts, self.device), longest, *voices)
