"""How long a frame takes with everything in it in one graph, and the share of the draw, at any batch size.

And how long a prompt takes, up to the logits from which its first frame is drawn.

Weights are random; so are logits, and with them the experts. The time of a frame does not depend on their values
otherwise.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from zonos2_triton.bench.specs.frame_cost import frame_cost, prompt_cost, total
from zonos2_triton.bench.specs.roofline import UNKNOWN, Roofline
from zonos2_triton.bench.timing import timer
from zonos2_triton.kernels._operator import Cost
from zonos2_triton.model.ops import PAGE_SIZE, ops_of
from zonos2_triton.model.runtime.batch_state import BatchState, pages_of
from zonos2_triton.model.runtime.model_runner import ModelRunner
from zonos2_triton.reference import network as reference
from zonos2_triton.reference.numeric import exact_numerics
from zonos2_triton.reference.sampling import Sampling

FOREVER = 2**30  # frames
ROOM = 64  # rows: the frames of one sample, and those that warm up


class FrameTimer:
    """A model on its kernels."""

    def __init__(self, model: reference.Model) -> None:
        self.model, self.config, self.dtype = model, model.config, model.table.dtype
        self.ops = ops_of("triton", self.config, model.table.device, self.dtype)

    @torch.inference_mode()
    def time(
        self, batch_size: int, context: int, device: timer.Device, roofline: Roofline = UNKNOWN, seconds: float = 1.0,
        **more: Any,
    ) -> dict[str, Any]:  # fmt: skip
        """Microseconds of a frame, of its forward and head alone, and of its draw alone.

        `context` rows are in the cache of each stream before every sample. more: arguments of `timing.measure`.
        """
        slots = state_at(self.model, batch_size, context)
        frames = ModelRunner(self.model, self.ops, slots, per_sequence=False)

        def rewind() -> None:
            device.clear()
            slots.positions.fill_(context)

        rewound = replace(device, clear=rewind)
        logits = frames.logits(slice(batch_size))

        def of(call: timer.Call) -> dict[str, Any]:
            rewind()
            with exact_numerics():
                return timer.measure([call], rewound, seconds, **more)

        frame = of(lambda: frames.frame(batch_size))
        forward = of(lambda: frames.logits(slice(batch_size)))
        draw = of(lambda: frames.sample(logits, slice(batch_size)))
        if bool((slots.positions < 0).any()):
            raise FloatingPointError("a stream ended while it was timed: logits were not finite")
        rewind()
        cost = total(frame_cost(self.config, batch_size, context, self.dtype.itemsize))
        return frame | {
            "batch_size": batch_size, "context": context, **floor(cost, frame["median_us"], roofline),
            "forward_us": forward["median_us"], "sampling_us": draw["median_us"],
            "sampling_share": 1 - forward["median_us"] / frame["median_us"],
            "peak_bytes": timer.peak(device, lambda: frames.frame(batch_size)),
        }  # fmt: skip

    @torch.inference_mode()
    def time_prompt(
        self, rows: int, device: timer.Device, roofline: Roofline = UNKNOWN, seconds: float = 1.0, **more: Any
    ) -> dict[str, Any]:
        """Microseconds from the ids of one prompt to the logits of its last row, launched by the host as it is."""
        config, page = self.config, torch.arange(pages_of(rows), dtype=torch.int32, device=self.model.table.device)
        cache = reference.Cache(config, len(page), PAGE_SIZE, self.model.table)
        ids = torch.zeros(rows, config.n_codebooks + 1, dtype=torch.int32, device=page.device)
        ids[:, :-1], ids[:, -1] = config.audio_pad_id, torch.arange(rows) % 256
        batch = reference.Batch.single(ids, 0, page)

        def prefill() -> Tensor:
            stream = reference.forward(self.model, batch, cache, self.ops)
            x, x_scaled, sum_sq = (part[-1:].clone() for part in stream)
            return reference.logits(self.model, x, x_scaled, sum_sq, self.ops)

        if not bool(prefill().isfinite().all()):
            raise FloatingPointError("the logits of a prompt are not finite")
        with exact_numerics():
            found = timer.measure([prefill], device, seconds, "flushed", **more | {"graph": False})
        cost = total(prompt_cost(config, rows, self.dtype.itemsize))
        return found | {"rows": rows} | floor(cost, found["median_us"], roofline)


def floor(cost: Cost, microseconds: float, roofline: Roofline) -> dict[str, Any]:
    """The least bytes and FLOPs, and the share of the least time that a time reaches."""
    rates = timer.rates(cost.bytes, cost.flops, microseconds, roofline)
    return {name: rates[name] for name in ("bytes", "flops", "gb_per_s", "floor_us", "pct_floor")}


def state_at(model: reference.Model, batch_size: int, context: int) -> BatchState:
    """Streams with so many rows in the cache, and room for as many frames as a measurement may take."""
    pages = pages_of(context + ROOM)
    slots = BatchState(model.config, batch_size, batch_size * pages, model.config.n_codebooks, model.table)
    settings = Sampling().packed()
    for row in range(batch_size):
        slots.add(row, list(range(row * pages, (row + 1) * pages)), context, FOREVER, -1, settings, row)
    return slots
