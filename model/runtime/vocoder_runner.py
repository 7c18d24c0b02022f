"""What the rows of the frame loop sound like: their frames through the vocoder, on the device that makes them.

The decoder reads the codes where `advance_frame` leaves them and makes samples of them, delayed as they are. How far
each row has come, whether it is over and what is left to flush follows from the loop's own numbers, so that a step
waits for nobody and may be part of a graph. A look's steps take every row as far as its codes reach.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from zonos2_triton.model.runtime.batch_state import Slots
from zonos2_triton.model.vocoder_decoder import Decoder
from zonos2_triton.model.vocoder_schedule import Schedule, step
from zonos2_triton.reference.advance_frame import SLOT_NONFINITE

RINGS = 1 << 30  # bytes that the activations of all rows may fill; what does not fit goes in more steps


class Spoken(NamedTuple):
    """Of one look: [steps, rows, 4] spans, and [steps, rows, frames * hop] samples, as `Decoder.step` makes them."""

    spans: Tensor
    samples: Tensor


class Speech:
    """A decoder on the rows of the loop."""

    def __init__(self, decoder: Decoder, slots: Slots, look: int) -> None:
        """look: frames that a row makes at most between two calls of `advance`."""
        self.decoder, self.slots = decoder, slots
        rows, codebooks = slots.frames.shape[0], slots.frames.shape[2] - 1
        # The last frames of a clip, those whose codes were still to come, and what their samples wait for.
        most = look + codebooks - 1 + decoder.lookahead
        self.steps = next(n for n in range(1, most + 1) if n == most or decoder.room(rows, -(-most // n)) <= RINGS)
        self.frames = -(-most // self.steps)
        self.schedule = Schedule(codebooks, decoder.lookahead)
        self._rings = decoder.rings(rows, self.frames)
        self.done = torch.zeros(rows, dtype=torch.int32, device=slots.frames.device)
        self._spoken = Spoken(
            torch.zeros(self.steps, rows, 4, dtype=torch.int32, device=self.done.device),
            torch.zeros(
                self.steps, rows, self.frames * decoder.config.hop, dtype=torch.float32, device=self.done.device
            ),
        )

    def enter(self, first: int, count: int) -> None:
        """Other clips begin in so many rows."""
        self.done[first : first + count] = 0

    def leave(self, row: int, last: int) -> None:
        """Row `last` moves to the place of `row`, with all that its next samples depend on."""
        if row != last:
            self.done[row] = self.done[last]
            for ring in self._rings.tensors():
                ring[row] = ring[last]

    def advance(self, rows: int) -> None:
        """The first so many rows as far as their codes reach."""
        for spans, samples in zip(*self._spoken, strict=True):
            torch.stack(self._next(rows), 1, out=spans[:rows])
            rings = self._rings.of(rows)
            samples[:rows] = self.decoder.step(rings, self.slots.frames[:rows], spans[:rows], self.frames, True)
            self.done[:rows] += spans[:rows, 1]

    def collect(self, rows: int) -> Spoken:
        """What the last `advance` made of them."""
        return Spoken(*(part[:, :rows].clone() for part in self._spoken))

    def samples(self, spoken: Spoken, row: int) -> Tensor:
        """What a look added to a row's clip."""
        parts = []
        for spans, samples in zip(*spoken, strict=True):
            done, count, length, _ = spans[row].tolist()
            parts.append(samples[row, self.decoder.finished(done, count, length)[1]])
        return torch.cat(parts)

    def _next(self, rows: int) -> tuple[Tensor, ...]:
        """The spans of the next step of every row at once."""
        s, done = self.slots, self.done[:rows]
        positions, came = s.positions[:rows], s.steps[:rows]
        closed = positions < 0
        length = self.schedule.length(came, s.eos_frames[:rows], closed)
        goal = self.schedule.goal(done, self.schedule.complete(came, length), length, closed)
        goal = torch.where(positions == SLOT_NONFINITE, done, goal)
        return step(done, goal, self.frames, length, came, closed)
