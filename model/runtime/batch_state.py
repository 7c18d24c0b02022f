"""Device state of the batch: one slot for each running request, and the pages of the KV cache.

Everything is allocated before the first frame. Slots 0 .. n - 1 are in use. The others are idle, which a negative
position marks, so a batch may be padded beyond its requests.
"""

import torch
from torch import Tensor

from zonos2_triton.model.ops import PAGE_SIZE
from zonos2_triton.reference.advance_frame import SLOT_FREE
from zonos2_triton.reference.config import Zonos2Config
from zonos2_triton.reference.network import Batch, Cache
from zonos2_triton.reference.sampling import NEVER_SEEN, Sampling


class BatchState:
    """The state of the requests as `sample_codes` takes it, and their KV cache."""

    def __init__(self, config: Zonos2Config, slots: int, pages: int, ring: int, like: Tensor) -> None:
        """ring: newest frames kept for each slot, for `drain` and the vocoder. like: dtype and device of the cache."""
        C, V, device = config.n_codebooks, config.codebook_vocab, like.device
        self.cache = Cache(config, pages, PAGE_SIZE, like)
        self.free_pages = list(range(pages))
        self.scalars = torch.zeros(6, slots, dtype=torch.int32, device=device)
        self.positions, self.steps, self.max_frames, self.eoa_ids, self.eos_frames, self.drained = self.scalars
        self.positions.fill_(SLOT_FREE)
        width = pages_of(config.max_seqlen)
        self.block_table = torch.zeros(slots, width, dtype=torch.int32, device=device)
        self.ids = torch.zeros(slots, C + 1, dtype=torch.int32, device=device)
        self.settings = torch.tensor([Sampling().packed()], dtype=torch.float32, device=device).repeat(slots, 1)
        self.seeds = torch.zeros(slots, dtype=torch.int64, device=device)
        self.last_seen = torch.full((slots, C, V), NEVER_SEEN, dtype=torch.int32, device=device)
        self.frames = torch.zeros(slots, ring, C + 1, dtype=torch.int32, device=device)

    def alloc_pages(self, tokens: int) -> list[int] | None:
        """Pages for `tokens` cache positions, or None while fewer are free."""
        count = pages_of(tokens)
        if count > len(self.free_pages):
            return None
        pages, self.free_pages = self.free_pages[:count], self.free_pages[count:]
        return pages

    def add(
        self, slot: int, pages: list[int], position: int, max_frames: int, eoa_id: int, settings: list[float], seed: int
    ) -> None:
        """Put a request into a slot. Its prompt lies in `pages` up to `position`; it has no frame yet."""
        device = self.scalars.device
        self.scalars[:, slot] = int32([position, 0, max_frames, eoa_id, -1, 0], device)
        self.block_table[slot, : len(pages)] = int32(pages, device)
        self.settings[slot] = upload(torch.tensor(settings, dtype=torch.float32, device="cpu"), device)
        self.seeds[slot] = seed - 2**64 if seed >= 2**63 else seed  # the same bits
        self.last_seen[slot] = NEVER_SEEN

    def remove(self, slot: int, last: int) -> None:
        """Free a slot: the request of slot `last`, the last in use, moves there."""
        if slot != last:
            s = self
            for state in (s.scalars.T, s.block_table, s.ids, s.settings, s.seeds, s.last_seen, s.frames):
                state[slot] = state[last]
        self.positions[last] = SLOT_FREE

    def batch(self, slots: slice) -> Batch:
        """The next token of each request."""
        return Batch(self.ids[slots], self.block_table[slots], self.positions[slots])

    def drawing(self, slots: slice) -> tuple[Tensor, ...]:
        """The arguments of `sample_codes` between the logits and text_id."""
        s = self
        state = s.positions, s.max_frames, s.eoa_ids, s.eos_frames, s.ids, s.frames
        return tuple(each[slots] for each in (s.settings, s.seeds, s.steps, s.last_seen, *state))

    def drain(self, batch_size: int, most: int) -> tuple[Tensor, Tensor]:
        """Scalars [6, batch_size] and the first `most` undrained frames [batch_size, most, C + 1] of each slot.

        A slot with fewer undrained frames has undefined values behind them. The host does not wait.
        """
        first = self.drained[:batch_size, None].long()
        ring_index = (first + torch.arange(most, device=first.device)) % self.frames.shape[1]
        frames = self.frames[:batch_size].gather(1, ring_index[..., None].expand(-1, -1, self.frames.shape[2]))
        scalars = self.scalars[:, :batch_size].clone()
        self.drained[:batch_size] = self.steps[:batch_size]
        return scalars, frames


def int32(values: list[int], device: torch.device) -> Tensor:
    return upload(torch.tensor(values, dtype=torch.int32, device="cpu"), device)


def upload(values: Tensor, device: torch.device) -> Tensor:
    """Copy from the host to the device. Pinned, because a copy from pageable memory waits for earlier launches."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


def pages_of(tokens: int) -> int:
    """Pages that `tokens` cache positions fill."""
    return -(-tokens // PAGE_SIZE)


def cache_pages(config: Zonos2Config, max_batch_size: int, kv_cache_tokens: int | None) -> int:
    """Pages of the whole cache. kv_cache_tokens None: four contexts, or one for each request if fewer may run."""
    return pages_of(kv_cache_tokens) if kv_cache_tokens else min(max_batch_size, 4) * pages_of(config.max_seqlen)
