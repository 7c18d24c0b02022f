"""Windows in which the reference decodes a clip: at fixed frames, each with the context that it needs.

Libraries add up in an order that depends on the length of their input. A window has the same frames in a whole clip and
in a stream, so both have the same bits.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from zonos2_triton.reference import vocoder as reference
from zonos2_triton.reference.numeric import isolated
from zonos2_triton.reference.vocoder import VocoderConfig

WINDOW = 32  # frames of a window


class Window(NamedTuple):
    """Frames start .. stop - 1, decoded from frames first .. end - 1 as far as the clip has them."""

    start: int
    stop: int
    first: int
    end: int


class Windows:
    """The windows of a codec's clips."""

    def __init__(self, config: VocoderConfig, state: Mapping[str, Tensor], device: torch.device) -> None:
        self.config, self.state, self.device = config, state, device

    def at(self, index: int) -> Window:
        """Window `index` with its context."""
        start, stop = index * WINDOW, (index + 1) * WINDOW
        first, end = self.config.receptive_field(start * self.config.hop, stop * self.config.hop)
        return Window(start, stop, max(first, 0), end)

    @isolated()
    def decode(self, window: Window, frames: Tensor, total: int) -> Tensor:
        """Samples of a window of a clip of `total` frames. frames [n, 9]: first .. min(end, total) - 1 of the clip."""
        hop = self.config.hop
        stop = window.stop * hop if window.stop < total else self.config.samples(total)
        if stop == 0:  # with a rate of 1, a few frames may have no samples
            return torch.zeros(0, dtype=torch.float32, device=self.device)
        audio = reference.decode(self.config, self.state, frames.T[None].to(self.device))["audio"][0]
        return audio[(window.start - window.first) * hop : stop - window.first * hop].float()

    def clip(self, codes: Tensor) -> Tensor:
        """Samples of codes [C, T]."""
        total = codes.shape[1]
        windows = [self.at(i) for i in range(-(-total // WINDOW))]
        parts = [self.decode(w, codes.T[w.first : min(w.end, total)], total) for w in windows]
        return torch.cat([torch.zeros(0, dtype=torch.float32, device=self.device), *parts])
