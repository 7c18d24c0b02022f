"""What the frame loop keeps on the device: a row for each request that runs, and the pages of the cache.

Everything is allocated before the first frame. Rows 0 .. n - 1 are taken; the others are idle and say so by a negative
position, so that a batch may be longer than its requests.
"""

import torch
from torch import Tensor

from zonos2_triton.model.ops import PAGE_SIZE
from zonos2_triton.reference.advance_frame import SLOT_FREE
from zonos2_triton.reference.config import Zonos2Config
from zonos2_triton.reference.network import Batch, Cache
from zonos2_triton.reference.sampling import NEVER_SEEN, Sampling


class Slots:
    """The state of the requests, as `sample_codes` and `advance_frame` take it, and of what they have in the cache."""

    def __init__(self, config: Zonos2Config, rows: int, pages: int, ring: int, like: Tensor) -> None:
        """ring: frames that are kept, for the host to collect and for `Speech`, which waits for their last codes.

        like: the dtype and device of the cache.
        """
        C, V, device = config.n_codebooks, config.codebook_vocab, like.device
        self.cache = Cache(config, pages, PAGE_SIZE, like)
        self.free = list(range(pages))
        self.numbers = torch.zeros(6, rows, dtype=torch.int32, device=device)
        self.positions, self.steps, self.max_frames, self.eoa_ids, self.eos_frames, self.collected = self.numbers
        self.positions.fill_(SLOT_FREE)
        width = pages_of(config.max_seqlen)
        self.block_table = torch.zeros(rows, width, dtype=torch.int32, device=device)
        self.ids = torch.zeros(rows, C + 1, dtype=torch.int32, device=device)
        self.settings = torch.tensor([Sampling().row()], dtype=torch.float32, device=device).repeat(rows, 1)
        self.seeds = torch.zeros(rows, dtype=torch.int64, device=device)
        self.last_seen = torch.full((rows, C, V), NEVER_SEEN, dtype=torch.int32, device=device)
        self.frames = torch.zeros(rows, ring, C + 1, dtype=torch.int32, device=device)

    def take(self, rows: int) -> list[int] | None:
        """Pages for so many rows of the cache; None: there are not as many free."""
        count = pages_of(rows)
        if count > len(self.free):
            return None
        taken, self.free = self.free[:count], self.free[count:]
        return taken

    def enter(
        self, row: int, pages: list[int], position: int, limit: int, eoa_id: int, settings: list[float], seed: int
    ) -> None:
        """A request whose prompt lies in `pages` up to `position`, before its first frame."""
        device = self.numbers.device
        self.numbers[:, row] = int32([position, 0, limit, eoa_id, -1, 0], device)
        self.block_table[row, : len(pages)] = int32(pages, device)
        self.settings[row] = upload(torch.tensor(settings, dtype=torch.float32, device="cpu"), device)
        self.seeds[row] = seed - 2**64 if seed >= 2**63 else seed  # the same bits
        self.last_seen[row] = NEVER_SEEN

    def leave(self, row: int, last: int) -> None:
        """The row becomes free, and `last`, the last that is taken, moves to its place."""
        if row != last:
            numbers, s = self.numbers.T, self
            for state in (numbers, s.block_table, s.ids, s.settings, s.seeds, s.last_seen, s.frames):
                state[row] = state[last]
        self.positions[last] = SLOT_FREE

    def batch(self, rows: slice) -> Batch:
        """The next row of each request."""
        return Batch(self.ids[rows], self.block_table[rows], self.positions[rows])

    def collect(self, rows: int, most: int) -> tuple[Tensor, Tensor]:
        """Of the first rows: their numbers [6, rows], and of the frames that nobody collected yet the first `most`.

        Frames [rows, most, C + 1] behind a row's last are of no meaning. Nothing waits for the device.
        """
        first = self.collected[:rows, None].long()
        at = (first + torch.arange(most, device=first.device)) % self.frames.shape[1]
        found = self.frames[:rows].gather(1, at[..., None].expand(-1, -1, self.frames.shape[2]))
        numbers = self.numbers[:, :rows].clone()
        self.collected[:rows] = self.steps[:rows]
        return numbers, found


def int32(numbers: list[int], device: torch.device) -> Tensor:
    return upload(torch.tensor(numbers, dtype=torch.int32, device="cpu"), device)


def upload(values: Tensor, device: torch.device) -> Tensor:
    """Host memory, copied to the device. Were it not pinned, the host would wait for all that was launched before."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


def pages_of(rows: int) -> int:
    """How many pages so many rows of the cache fill."""
    return -(-rows // PAGE_SIZE)


def cache_pages(config: Zonos2Config, streams: int, positions: int | None) -> int:
    """Of the whole cache. positions: rows for all streams; None: four contexts, or one for each of fewer streams."""
    return pages_of(positions) if positions else min(streams, 4) * pages_of(config.max_seqlen)
