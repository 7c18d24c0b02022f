"""The vocoder's layers in a row: a step takes some frames of codes of many clips to their samples.

Each layer computes what its input has grown by, so every position of a clip is computed once, however the clip is cut
into steps; what later steps read again stays in the layer's ring. A step is 25 launches at the real widths in half
precision: one for a residual unit of up to 192 channels, two for a wider one. In fp32 it is 31: two for each.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from zonos2_triton.model.nvtx import annotate, ranged
from zonos2_triton.model.vocoder_schedule import same_clips
from zonos2_triton.reference.ops import VocoderOps
from zonos2_triton.reference.vocoder import DILATIONS, KERNEL, VocoderConfig
from zonos2_triton.reference.vocoder_layers import (
    LENGTH_UNKNOWN,
    LayerTiming,
    packed,
    packed_codebooks,
    packed_transposed,
    padded,
)


class Ring(NamedTuple):
    """What a layer left: y in fp32, which a later layer adds, and snake(y), which the next one reads."""

    y: Tensor | None
    activated: Tensor


@dataclass(frozen=True)
class Rings:
    """Of so many rows, for steps of up to so many frames."""

    z: Tensor
    first: Ring
    blocks: list[list[Ring]]  # behind the transposed convolution, and behind each residual unit
    between: list[Tensor | None]  # within the residual units of a block, where they are two launches
    pre_tanh: Tensor | None

    def of(self, rows: int) -> "Rings":
        """Of the first rows alone."""

        def cut(ring: Tensor | None) -> Any:
            return None if ring is None else ring[:rows]

        return Rings(
            cut(self.z), Ring(*map(cut, self.first)),
            [[Ring(*map(cut, ring)) for ring in block] for block in self.blocks], [*map(cut, self.between)],
            cut(self.pre_tanh),
        )  # fmt: skip

    def tensors(self) -> list[Tensor]:
        rings = [self.z, *self.first, *self.between, self.pre_tanh]
        rings += [tensor for block in self.blocks for ring in block for tensor in ring]
        return [ring for ring in rings if ring is not None]


class VocoderDecoder:
    """The weights of a vocoder, as its operations read them."""

    def __init__(self, config: VocoderConfig, state: Mapping[str, Tensor], ops: VocoderOps, tf32: bool = False) -> None:
        """state: tensors of `reference.vocoder.layout(config)`; tf32: fp32 may be multiplied so."""
        self.config, self.ops, self.tf32 = config, ops, tf32
        self.like = state["decoder.model.0.bias"]
        quantizers = [f"quantizer.quantizers.{i}" for i in range(config.n_codebooks)]
        self.tables = torch.stack([state[f"{name}.codebook.weight"] for name in quantizers])
        projections = [state[f"{name}.out_proj.weight"] for name in quantizers]
        self.projection = packed_codebooks(projections, [state[f"{name}.out_proj.bias"] for name in quantizers])
        last = len(config.decoder_rates) + 1

        def conv(name: str, pack: Callable[[Tensor], Tensor] = packed) -> tuple[Tensor, Tensor]:
            return pack(state[f"decoder.model.{name}.weight"]), state[f"decoder.model.{name}.bias"].clone()  # aligned

        def alpha(name: str) -> Tensor:
            return state[f"decoder.model.{name}.alpha"].flatten().clone()

        self.first, self.last = conv("0"), conv(f"{last + 1}")
        self.blocks = []
        for i in range(1, last):
            units = []
            for unit, dilation in enumerate(DILATIONS, 2):
                name = f"{i}.block.{unit}.block"
                reads = f"{i}.block.{unit + 1}.block.0"  # what reads its result
                if unit == 1 + len(DILATIONS):
                    reads = f"{last}" if i + 1 == last else f"{i + 1}.block.0"
                units.append(_Unit(dilation, *conv(f"{name}.1"), alpha(f"{name}.2"), *conv(f"{name}.3"), alpha(reads)))
            up = conv(f"{i}.block.1", packed_transposed)
            self.blocks.append(_Block(config.decoder_rates[i - 1], *up, alpha(f"{i}.block.2.block.0"), units))
        self.first_alpha = alpha("1.block.0")
        self.delay = self._delay()  # samples that are not final yet when a frame has come

    @property
    def lookahead(self) -> int:
        """Frames behind one that its samples depend on."""
        return -(-self.delay // self.config.hop)

    def finished(self, done: int, count: int, length: int) -> tuple[slice, slice]:
        """Of a row's step: which samples of its clip it made, and in which columns they lie."""
        begin = done * self.config.hop - self.delay
        end = begin + count * self.config.hop
        first, last = max(begin, 0), max(end if length == LENGTH_UNKNOWN else min(end, self.config.samples(length)), 0)
        last = max(first, last)
        return slice(first, last), slice(first - begin, last - begin)

    def ring_bytes(self, rows: int, frames: int) -> int:
        """Bytes of `rings`."""
        return sum(ring.nbytes for ring in self.rings(rows, frames, device="meta").tensors())

    def rings(self, rows: int, frames: int, keep: bool = False, device: str | None = None) -> Rings:
        """Room for steps of `rows` clips; keep: also what `trace` shows."""

        def ring(rate: int, channels: int, tail: int, dtype: torch.dtype | None = None) -> Tensor:
            return self.like.new_empty((rows, frames * rate + tail, channels), device=device, dtype=dtype)

        def stream(rate: int, channels: int, tail: int = 0) -> Tensor:
            return ring(rate, channels, tail, torch.float64 if self.like.dtype == torch.float64 else torch.float32)

        config = self.config
        width, rate, blocks, between = config.decoder_dim, 1, [], []
        first = Ring(stream(1, width) if keep else None, ring(1, width, 1))
        for block, is_last in zip(self.blocks, [*[False] * (len(self.blocks) - 1), True], strict=True):
            width, rate = width // 2, rate * block.stride
            reaches = [KERNEL // 2 * unit.dilation for unit in block.units]
            made = [Ring(stream(rate, width, reach), ring(rate, width, 2 * reach)) for reach in reaches]
            tail = KERNEL - 1 if is_last else 1
            blocks.append([*made, Ring(stream(rate, width) if keep else None, ring(rate, width, tail))])
            between.append(None if width <= self.ops.widest_unit else ring(rate, width, 0))
        z = ring(1, config.latent_dim, KERNEL - 1)
        return Rings(z, first, blocks, between, stream(rate, 1) if keep else None)

    def codebooks(self, count: int) -> tuple[Tensor, Tensor]:
        """Tables and projection of the first so many."""
        C, _, K = self.tables.shape
        if count == C:
            return self.tables, self.projection
        columns = self.projection[:, : C * (K + 1)]
        kept = torch.cat([columns[:, : count * K], columns[:, C * K :][:, :count]], 1)
        return self.tables[:count], padded(kept)

    def latents(self, codes: Tensor) -> Tensor:
        """What codes [B, T, C] int32 sum to, of the first C codebooks: [B, T, latent_dim]; T is at least 1."""
        B, T, C = codes.shape
        z = self.like.new_empty(B, T, self.config.latent_dim)
        (step_meta,) = same_clips(B, T, T, 0, z.device)
        ranged(self.ops).rvq_decode(codes, *self.codebooks(C), step_meta, T, False, z, tf32=self.tf32)
        return z

    def step(self, rings: Rings, codes: Tensor, step_meta: Tensor, frames: int, delayed: bool = False) -> Tensor:
        """Samples [slots, frames * hop] of the frames that step_meta names, at most `frames` a slot.

        Column j of a slot is its sample hop * done - delay + j, zero where that lies outside of the clip. codes and
        step_meta are those of `rvq_decode`. codes may have the first codebooks alone, or be latents
        [B, N, latent_dim]: a ring of frames of what codes sum to.
        """
        with annotate("codec/step", frames):
            return self._through_layers(rings, codes, step_meta, frames, delayed)

    def _through_layers(self, rings: Rings, codes: Tensor, step_meta: Tensor, frames: int, delayed: bool) -> Tensor:
        ops, tf32 = ranged(self.ops), {"tf32": self.tf32}
        if codes.is_floating_point():
            _take_in(codes, step_meta, frames, rings.z)
        else:
            tables, projection = self.codebooks(min(codes.shape[2], len(self.tables)))
            ops.rvq_decode(codes, tables, projection, step_meta, frames, delayed, rings.z, **tf32)
        place = LayerTiming()
        at: tuple[Any, ...] = (step_meta, frames)
        y, activated = rings.first
        ops.conv1d_snake(rings.z, *self.first, *at, *place, alpha=self.first_alpha, y=y, activated=activated, **tf32)
        place = place.convolved()
        for i, (block, (begin, *others), between) in enumerate(
            zip(self.blocks, rings.blocks, rings.between, strict=True)
        ):
            with annotate("codec/block", i):
                up = block.weight, block.bias
                ops.conv_transpose1d_snake(
                    activated,
                    *up,
                    *at,
                    *place,
                    block.stride,
                    alpha=block.alpha,
                    y=begin.y,
                    activated=begin.activated,
                    **tf32,
                )
                place, residual, activated = place.upsampled(block.stride), begin.y, begin.activated
                for unit, (y, after) in zip(block.units, others, strict=True):
                    outputs = {"alpha": unit.alpha, "y": y, "activated": after, **tf32}
                    inner = unit.inner_weight, unit.inner_bias
                    if between is None:
                        ops.residual_unit(
                            activated, residual, unit.weight, unit.bias, unit.inner_alpha, *inner, *at, *place,
                            unit.dilation, **outputs,
                        )  # fmt: skip
                    else:
                        ops.conv1d_snake(
                            activated, unit.weight, unit.bias, *at, *place, unit.dilation, alpha=unit.inner_alpha,
                            activated=between, **tf32,
                        )  # fmt: skip
                        ops.conv1d_snake(between, *inner, *at, *place.convolved(unit.dilation), 1, residual, **outputs)
                    place, residual, activated = place.convolved(unit.dilation), y, after
        return ops.conv1d_tanh(activated, *self.last, *at, *place, rings.pre_tanh, **tf32)

    def _delay(self) -> int:
        place = LayerTiming().convolved()
        for block in self.blocks:
            place = place.upsampled(block.stride)
            for unit in block.units:
                place = place.convolved(unit.dilation)
        return place.convolved().delay


def _take_in(latents: Tensor, step_meta: Tensor, frames: int, z: Tensor) -> None:
    """A step's frames of the ring latents [B, N, D] into ring z. Those that a row does not have lie outside of its clip
    or come again, where no layer reads them before."""
    at = step_meta[:, :1] + torch.arange(frames, device=z.device)
    row = torch.arange(len(z), device=z.device)[:, None]
    z[row, at % z.shape[1]] = latents[row, at % latents.shape[1]]


def checked_codes(config: VocoderConfig, name: str, codes: Tensor) -> Tensor:
    """codes as int64. TypeError: not integers; ValueError: an id that is no code, end or padding."""
    top = config.codebook_size + 1
    if codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
        raise TypeError(f"{name} must be integers, got {codes.dtype}")
    codes = codes.to(torch.int64)
    if wrong := ((codes < 0) | (codes > top)).nonzero()[:1].tolist():
        raise ValueError(f"{name}{wrong[0]} must be in 0..{top}, got {codes[tuple(wrong[0])]}")
    return codes


class _Unit(NamedTuple):
    dilation: int
    weight: Tensor
    bias: Tensor
    inner_alpha: Tensor
    inner_weight: Tensor
    inner_bias: Tensor
    alpha: Tensor  # of whatever reads its result


class _Block(NamedTuple):
    stride: int
    weight: Tensor
    bias: Tensor
    alpha: Tensor  # of its first unit
    units: list[_Unit]
