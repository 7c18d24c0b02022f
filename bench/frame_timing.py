"""How long a frame takes with everything in it in one graph, and the share of the draw, at any number of streams.

Weights are random; so are logits, and with them the experts. The time of a frame does not depend on their values
otherwise.
"""

from dataclasses import replace
from typing import Any

import torch

from zonos2_triton.bench import timing
from zonos2_triton.bench.device_checks import random_weights
from zonos2_triton.bench.frame import frame_cost
from zonos2_triton.model.frames import Frames
from zonos2_triton.model.ops import ops_of
from zonos2_triton.model.slots import Slots, pages_of
from zonos2_triton.reference import backbone as reference
from zonos2_triton.reference.config import Zonos2Config
from zonos2_triton.reference.numeric import exact_numerics
from zonos2_triton.reference.sampling import Sampling

FOREVER = 2**30  # frames


class FrameTimer:
    """A model of random weights on its kernels."""

    def __init__(self, config: Zonos2Config, device: str, dtype: torch.dtype = torch.bfloat16) -> None:
        self.config, self.dtype = config, dtype
        self.model = reference.bind(config, random_weights(config, device, dtype))
        self.ops = ops_of("triton", config, torch.device(device), dtype)

    @torch.inference_mode()
    def time(
        self, streams: int, context: int, device: timing.Device, seconds: float = 2.0, **more: Any
    ) -> dict[str, Any]:  # fmt: skip
        """Microseconds of a frame, of its forward and head alone, and of its draw alone.

        `context` rows are in the cache of each stream before every sample. more: arguments of `timing.measure`.
        """
        slots = self._slots(streams, context)
        frames = Frames(self.model, self.ops, slots, alone=False)

        def rewind() -> None:
            device.clear()
            slots.positions.fill_(context)

        rewound = replace(device, clear=rewind)
        logits = frames.logits(slice(streams))

        def of(call: timing.Call) -> dict[str, Any]:
            rewind()
            with exact_numerics():
                return timing.measure([call], rewound, seconds, **more)

        frame = of(lambda: frames.frame(streams))
        forward = of(lambda: frames.logits(slice(streams)))
        draw = of(lambda: frames.draw(logits, slice(streams)))
        if bool((slots.positions < 0).any()):
            raise FloatingPointError("a stream ended while it was timed: logits were not finite")
        moved = sum(cost.bytes for cost in frame_cost(self.config, streams, context, self.dtype.itemsize).values())
        return frame | {
            "streams": streams, "context": context, "bytes": moved, "gb_per_s": moved / frame["median_us"] / 1e3,
            "forward_us": forward["median_us"], "draw_us": draw["median_us"],
            "draw_share": 1 - forward["median_us"] / frame["median_us"],
        }  # fmt: skip

    def _slots(self, streams: int, context: int) -> Slots:
        """Each stream with room for as many frames as a measurement may take."""
        pages = pages_of(self.config.max_seqlen)
        slots = Slots(self.config, streams, streams * pages, 9, self.model.table)
        settings = Sampling().row()
        for row in range(streams):
            slots.enter(row, list(range(row * pages, (row + 1) * pages)), context, FOREVER, -1, settings, row)
        return slots
