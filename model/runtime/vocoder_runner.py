"""Runs the vocoder on the scheduler's batch, on the device.

The decoder reads the delayed codes where `sample_codes` leaves them. The scalars of the batch tell how many frames a
slot has, whether it has ended and what is left to flush. So a step waits for no host, and a CUDA graph may hold it. The
steps of one `advance` take every slot as far as its codes reach.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from zonos2_triton.model.runtime.batch_state import BatchState
from zonos2_triton.model.vocoder_decoder import VocoderDecoder
from zonos2_triton.model.vocoder_schedule import Schedule, plan_step
from zonos2_triton.reference.advance_frame import SLOT_NONFINITE

MAX_RING_BYTES = 1 << 30  # activations of all slots; a larger batch takes more steps


class VocoderOutput(NamedTuple):
    """step_meta [steps, B, 4] int32 and samples [steps, B, frames * hop] of one `advance`, as `VocoderDecoder.step`
    has them."""

    step_meta: Tensor
    samples: Tensor


class VocoderRunner:
    """A vocoder decoder with one ring of activations for each slot of the batch."""

    def __init__(self, decoder: VocoderDecoder, state: BatchState, max_new_frames: int) -> None:
        """max_new_frames: frames that a slot makes at most between two calls of `advance`."""
        self.decoder, self.state = decoder, state
        slots, codebooks = state.frames.shape[0], state.frames.shape[2] - 1
        # The last frames of a clip, those whose codes were still to come, and what their samples wait for.
        most = max_new_frames + codebooks - 1 + decoder.right_context
        fits = (n for n in range(1, most + 1) if decoder.ring_bytes(slots, -(-most // n)) <= MAX_RING_BYTES)
        self.steps = next(fits, most)
        self.frames = -(-most // self.steps)
        self.schedule = Schedule(codebooks, decoder.right_context)
        self._rings = decoder.rings(slots, self.frames)
        shape, device = (self.steps, slots), state.frames.device
        self.done = torch.zeros(slots, dtype=torch.int32, device=device)
        self._output = VocoderOutput(
            torch.zeros(*shape, 4, dtype=torch.int32, device=device),
            torch.zeros(*shape, self.frames * decoder.config.hop, dtype=torch.float32, device=device),
        )

    def add(self, first: int, count: int) -> None:
        """New clips begin in `count` slots from `first` on."""
        self.done[first : first + count] = 0

    def remove(self, slot: int, last: int) -> None:
        """Move the clip of slot `last` to `slot`, with all that its next samples depend on."""
        if slot != last:
            self.done[slot] = self.done[last]
            for ring in self._rings.tensors():
                ring[slot] = ring[last]

    def advance(self, batch_size: int) -> None:
        """Take the first slots as far as their codes reach."""
        for step_meta, samples in zip(*self._output, strict=True):
            torch.stack(self._next(batch_size), 1, out=step_meta[:batch_size])
            rings, frames = self._rings.of(batch_size), self.state.frames[:batch_size]
            samples[:batch_size] = self.decoder.step(rings, frames, step_meta[:batch_size], self.frames, True)
            self.done[:batch_size] += step_meta[:batch_size, 1]

    def drain(self, batch_size: int) -> VocoderOutput:
        """A copy of the output of the last `advance`."""
        return VocoderOutput(*(each[:, :batch_size].clone() for each in self._output))

    def samples(self, output: VocoderOutput, slot: int) -> Tensor:
        """The samples that one `advance` added to the clip of a slot."""
        parts = []
        for step_meta, samples in zip(*output, strict=True):
            done, count, length, _ = step_meta[slot].tolist()
            parts.append(samples[slot, self.decoder.finished(done, count, length)[1]])
        return torch.cat(parts)

    def _next(self, batch_size: int) -> tuple[Tensor, ...]:
        """The columns of the next step's `step_meta`."""
        s, done = self.state, self.done[:batch_size]
        positions, received = s.positions[:batch_size], s.steps[:batch_size]
        closed = positions < 0
        length = self.schedule.length(received, s.eos_frames[:batch_size], closed)
        target = self.schedule.target(done, self.schedule.complete(received, length), length, closed)
        target = torch.where(positions == SLOT_NONFINITE, done, target)
        return plan_step(done, target, self.frames, length, received, closed)
