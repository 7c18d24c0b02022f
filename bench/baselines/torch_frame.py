"""A whole frame, and a prompt, in plain PyTorch compiled as an expert would: what the kernels' frame is timed beside.

One layer is compiled at a time, so that layers of a kind share their code; embedding and what follows the last layer
are two more. What is multiplied by the same rows is one product. Every stream owns a contiguous cache that is as long
as the timed context needs. A frame is captured in one CUDA graph, as that of the kernels is.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from zonos2_triton.bench.baselines import torch_ops
from zonos2_triton.bench.suite.recorder import NotRun, Withheld, lacking
from zonos2_triton.bench.timing import timer
from zonos2_triton.bench.timing.frame import FOREVER
from zonos2_triton.model.runtime.batch_state import BatchState
from zonos2_triton.reference import network as reference
from zonos2_triton.reference.add_rms_norm import rms_norm
from zonos2_triton.reference.frame_embedding import frame_embedding
from zonos2_triton.reference.numeric import exact_numerics, wide
from zonos2_triton.reference.ops import REFERENCE
from zonos2_triton.reference.sampling import Sampling

ROUND = 64  # positions: room for a context comes in these
# How far a row may be off, in RMS, from the same layer of the reference on the same row; and the share of rows that may
# be further off, of which two experts were nearly as good. On a CPU, 8 layers of width 512, at most: 4.1e-3, 4.8e-4,
# 2.8e-7; one row of 224 had another expert.
AGREE = {torch.bfloat16: 1.2e-2, torch.float16: 1.5e-3, torch.float32: 1e-5, torch.float64: 1e-10}
MAY_CHOOSE_OTHERWISE = 0.05
COMPILER: dict[str, Any] = {"options": {"max_autotune_pointwise": True}}  # reductions try a few shapes of tile

Attention = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
Layered = Callable[..., tuple[Tensor, Tensor | None]]


@dataclass(frozen=True)
class Pieces:
    """The functions of a frame, each compiled or eager."""

    enter: Callable[[Tensor], Tensor]
    layer: Layered
    leave: Callable[[Tensor], tuple[Tensor, Tensor]]


def flexible(q: Tensor, keys: Tensor, values: Tensor, positions: Tensor) -> Tensor:
    """`torch_ops.by_products` by FlexAttention, which splits the keys and reads them once for a group of heads."""
    from torch.nn.attention.flex_attention import flex_attention

    def until(score: Tensor, b: Tensor, h: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return torch.where(column <= positions[b], score, float("-inf"))

    keys, values = keys.transpose(1, 2), values.transpose(1, 2)
    y: Any = flex_attention(q[:, :, None], keys, values, score_mod=until, enable_gqa=True)  # a tensor, if asked so
    return y[:, :, 0]


class TorchFrame:
    """A model in plain PyTorch, on the weights of `model`; none is copied but those of queries, keys, values and gates.

    attention: of decode steps; compiled for a GPU, FlexAttention is the quickest.
    """

    def __init__(self, model: reference.Model, compile: bool = True) -> None:
        self.model, self.config, self.device = model, model.config, model.table.device
        self.layers = [_join(layer) for layer in model.layers]
        self.compile = compile
        self.attention = flexible if compile and self.device.type == "cuda" else torch_ops.by_products

    @torch.inference_mode()
    def time(
        self, batch_size: int, context: int, device: timer.Device, seconds: float = 1.0, **more: Any
    ) -> dict[str, Any]:
        """Microseconds of a frame: forward, head, draw and what follows from it. more: arguments of `timing.measure`.

        Each stream has `context` rows in its cache before every sample.
        Withheld: a layer, the logits or the draw are not the reference's. NotRun: there is no compiler here.
        """
        state = State(self.model, batch_size, context)

        def rewind() -> None:
            device.clear()
            state.batch_state.positions.fill_(context)

        with _compiling(), exact_numerics():
            pieces = self.pieces(state)
            self.check(state, pieces)
            rewind()
            rewound = replace(device, clear=rewind)
            found = timer.measure([lambda: self.frame(state, pieces)], rewound, seconds, **more)
        if bool((state.batch_state.positions < 0).any()):
            raise Withheld("a stream ended while it was timed: logits were not finite")
        return found | {"method": f"attention {self.attention.__name__}"}

    def pieces(self, state: "State") -> Pieces:
        """The functions of a frame over `state`, in which every slot is live."""
        config, model, s = self.config, self.model, state.batch_state
        rows = torch.arange(len(s.positions), device=self.device)

        def attend(qkvg: Tensor, qk_temperature: Tensor, k_cache: Tensor, v_cache: Tensor) -> Tensor:
            q, k, v, gate = torch_ops.entering(qkvg, qk_temperature, model.cos_sin_cache, s.positions, k_cache)
            at = rows, s.positions.long()
            k_cache[at], v_cache[at] = k, v
            return torch_ops.gated(self.attention(q, k_cache, v_cache, s.positions), gate)

        def leave(x: Tensor) -> tuple[Tensor, Tensor]:
            logits = self._logits(x)
            return logits, torch_ops.sample_codes(logits, *s.drawing(slice(None)), config.text_vocab)[0]

        # Philox counts on products that wrap, which C++, the compiler's language for a CPU, leaves undefined.
        drawing = self._compiled(leave) if self.device.type == "cuda" or "backend" in COMPILER else leave
        return Pieces(self._compiled(self._enter), self._compiled(self._layer(attend)), drawing)

    def frame(self, state: "State", pieces: Pieces) -> None:
        """One frame of every stream."""
        x, carried = pieces.enter(state.batch_state.ids), None
        for i, weights in enumerate(self.layers):
            x, carried = pieces.layer(x, carried, weights, state.cache.k[i], state.cache.v[i])
        pieces.leave(x)

    def check(self, state: "State", pieces: Pieces) -> None:
        """Withheld unless each piece makes of the reference's rows what the reference makes of them. Draws a frame."""
        s, most = state.batch_state, AGREE[self.model.table.dtype]
        state.randomise()
        hidden, off = self._layers_off(state.batch(), state.cache, pieces.layer)
        self._judge([_off(pieces.enter(s.ids), hidden[0]), *off])
        before = s.settings, s.seeds, s.steps.clone(), s.last_seen.clone()
        want = reference.logits(self.model, hidden[-1])
        logits, codes = pieces.leave(hidden[-1])
        if not float(_off(logits.flatten(1), want.flatten(1)).max()) <= most:
            raise Withheld(f"logits are more than {most:g} from the reference's")
        drawn = REFERENCE.sample_codes(logits, *before)[0]
        if not float((drawn == codes).float().mean()) >= 1 - MAY_CHOOSE_OTHERWISE:
            raise Withheld(f"{int((drawn != codes).sum())} of {codes.numel()} codes are not what the reference draws")
        for part in (*state.cache.k, *state.cache.v):
            part.zero_()  # as that of the kernels' frame is when it is timed

    @torch.inference_mode()
    def time_prefill(self, rows: int, device: timer.Device, seconds: float = 1.0, **more: Any) -> dict[str, Any]:
        """Microseconds from the ids of one prompt to the logits of its last row; arguments and errors as of `time`."""
        with _compiling(), exact_numerics():
            found = timer.measure([self.prefill(rows)], device, seconds, "flushed", **more)
        return found | {"method": "attention scaled_dot_product_attention"}

    def prefill(self, rows: int) -> Callable[[], Tensor]:
        """A call that takes one prompt of so many rows to logits [1, C, V], checked as `check` does."""
        config, numbers = self.config, torch.arange(rows, dtype=torch.int32, device=self.device)
        ids = torch.full((rows, config.n_codebooks + 1), config.audio_pad_id, dtype=torch.int32, device=self.device)
        ids[:, -1] = numbers % 256
        cache = reference.Cache(config, 1, rows, self.model.table)
        page = torch.zeros(1, dtype=torch.int32, device=self.device)

        def attend(qkvg: Tensor, qk_temperature: Tensor, k_cache: Tensor, v_cache: Tensor) -> Tensor:
            first = qkvg, qk_temperature, self.model.cos_sin_cache, k_cache, v_cache
            return torch_ops.prefill_attention(*first, page[None], page, page, rows)

        enter, layer = self._compiled(self._enter), self._compiled(self._layer(attend))
        leave = self._compiled(lambda x: self._logits(x[-1:]))

        def run() -> Tensor:
            x, carried = enter(ids), None
            for i, weights in enumerate(self.layers):
                x, carried = layer(x, carried, weights, cache.k[i], cache.v[i])
            return leave(x)

        self._judge(self._layers_off(reference.Batch.single(ids, 0, page), cache, layer)[1])
        if not bool(run().isfinite().all()):
            raise Withheld("the logits of a prompt are not finite")
        return run

    def _layers_off(
        self, batch: reference.Batch, cache: reference.Cache, layer: Layered
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The reference's rows before and after each layer, and how far off each layer makes them of one another."""
        stages, carried, off = reference.Stages(), None, list[Tensor]()
        reference.forward(self.model, batch, cache, stages=stages)
        hidden, routings = stages.hidden_states, iter(stages.routings)
        for i, weights in enumerate(self.layers):
            x, own = layer(hidden[i], carried, weights, cache.k[i], cache.v[i])
            off.append(_off(x, hidden[i + 1]))
            carried = None if weights["router"] is None else next(routings).router_state
            if own is not None and carried is not None:
                off.append(_off(own, carried))
        return hidden, off

    def _judge(self, found: list[Tensor]) -> None:
        """Withheld where more rows are off than may be."""
        off, most = torch.stack(found), AGREE[self.model.table.dtype]
        wrong = ~(off <= most)  # so that NaN counts
        if not float(wrong.float().mean()) <= MAY_CHOOSE_OTHERWISE:
            made, furthest = f"{int(wrong.sum())} of {wrong.numel()} rows that a layer made", f"{float(off.max()):.3g}"
            raise Withheld(f"{made} are more than {most:g} from the reference's, the furthest {furthest}")

    def _enter(self, ids: Tensor) -> Tensor:
        return frame_embedding(ids, self.model.table, self.config.codebook_vocab, self.config.norm_eps)[0]

    def _layer(self, attend: Attention) -> Layered:
        eps = self.config.norm_eps

        def layer(
            x: Tensor, carried: Tensor | None, w: dict[str, Any], k_cache: Tensor, v_cache: Tensor
        ) -> tuple[Tensor, Tensor | None]:
            qkvg = torch_ops.multiply(rms_norm(x, w["attention_norm"], eps), w["qkvg"])
            y = torch_ops.multiply(attend(qkvg, w["qk_temperature"], k_cache, v_cache), w["output"])
            x = (wide(x) + wide(y)).to(x.dtype)
            h = rms_norm(x, w["ffn_norm"], eps)
            gate, up, down = w["ffn"]
            if w["router"] is None:
                return (wide(x) + wide(torch_ops.swiglu(h, gate[0], up[0], down[0]))).to(x.dtype), None
            ids, shares, carried = torch_ops.choose(x, router_state=carried, **w["router"], eps=eps)
            return (wide(x) + torch_ops.mixture(h, gate, up, down, ids, shares, w["both"])).to(x.dtype), carried

        return layer

    def _logits(self, x: Tensor) -> Tensor:
        model, c = self.model, self.config
        return torch_ops.codebook_head(x, model.out_norm, model.head, c.n_codebooks, c.norm_eps, c.loss_softcap)

    def _compiled(self, piece: Callable[..., Any]) -> Callable[..., Any]:
        return torch.compile(piece, fullgraph=True, dynamic=False, **COMPILER) if self.compile else piece


class State:
    """Streams with `context` rows in a contiguous cache, [B, HKV, S, DH] seen as [B, S, HKV, DH]."""

    def __init__(self, model: reference.Model, batch_size: int, context: int) -> None:
        config, like = model.config, model.table
        self.batch_state = BatchState(config, batch_size, 0, config.n_codebooks, like)
        for row in range(batch_size):
            self.batch_state.add(row, [], context, FOREVER, -1, Sampling().packed(), row)
        capacity = -(-(context + timer.ENOUGH_CALLS + 1) // ROUND) * ROUND
        self.cache = reference.Cache(config, 0, capacity, like)
        shape = batch_size, config.kv_heads, capacity, config.head_dim
        self.cache.k, self.cache.v = (
            [like.new_zeros(shape).transpose(1, 2) for _ in range(config.n_layers)] for _ in range(2)
        )

    def batch(self) -> reference.Batch:
        """The next row of each stream, as the reference takes it."""
        pages = torch.arange(len(self.batch_state.ids), dtype=torch.int32, device=self.batch_state.ids.device)
        return reference.Batch(self.batch_state.ids, pages[:, None], self.batch_state.positions)

    def randomise(self) -> None:
        """Cache and newest row, the same every time."""
        generator = torch.Generator(self.batch_state.ids.device).manual_seed(1)
        for part in (*self.cache.k, *self.cache.v):
            part.normal_(generator=generator)
        self.batch_state.ids.random_(0, 448, generator=generator)  # both a code and a byte


def _join(layer: reference.Layer) -> dict[str, Any]:
    """One layer's weights, those that meet the same rows in one tensor: qkvg is a copy, of the 8B model 12.6 MB."""
    p, e = layer.projection, layer.experts
    qkvg = torch.cat([p["wq"], *p["wkv"], p["gater"]])
    E, I, D = e["gate"].shape
    # Of a mixture, `reference.bind` has the rows of gate and up take turns in one tensor.
    both = None if layer.router is None else e["gate"].as_strided((E, 2 * I, D), (2 * I * D, D, 1))
    return {
        "attention_norm": p["norm_weight"], "qkvg": qkvg, "qk_temperature": layer.qk_temperature,
        "output": layer.output, "router": layer.router, "ffn_norm": e["norm_weight"],
        "ffn": (e["gate"], e["up"], e["down"]), "both": both,
    }  # fmt: skip


def _off(got: Tensor, want: Tensor) -> Tensor:
    """RMS of the difference over that of what is wanted, row by row."""
    difference, scale = (x.double().square().mean(-1).sqrt() for x in (got.double() - want.double(), want))
    return difference / scale


@contextmanager
def _compiling() -> Iterator[None]:
    """Forgets compiled code at the end. NotRun: there is no compiler here."""
    try:
        yield
    except RuntimeError as error:
        if lacking(error):
            raise NotRun(timer.first_line(error)) from error
        raise
    finally:
        torch.compiler.reset()
