"""The vocoder's layers: a step takes some frames of codes of many clips to their samples.

Each layer computes the positions that its input has grown by. So every position of a clip is computed once, for any
steps; a ring buffer keeps what later steps read again. A step is 25 launches at the real widths in half precision: one
for a residual unit of up to 192 channels, two for a wider one. In fp32 it is 31: two for each.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from zonos2_triton.model.nvtx import annotate, ranged
from zonos2_triton.model.vocoder_schedule import same_clips
from zonos2_triton.reference import vocoder_layers
from zonos2_triton.reference.ops import VocoderOps
from zonos2_triton.reference.vocoder import DILATIONS, KERNEL, VocoderConfig
from zonos2_triton.reference.vocoder_layers import LENGTH_UNKNOWN, LayerTiming, packed


class Ring(NamedTuple):
    """The output of a layer: y in fp32, which a later layer adds, and snake(y), which the next layer reads."""

    y: Tensor | None
    activated: Tensor


@dataclass(frozen=True)
class Rings:
    """The ring buffers of a number of slots, for steps of up to a number of frames."""

    z: Tensor
    first: Ring
    blocks: list[list[Ring]]  # after the transposed convolution, and after each residual unit
    between: list[Tensor | None]  # inside the residual units of a block, if they are two launches
    pre_tanh: Tensor | None

    def of(self, slots: int) -> "Rings":
        """The rings of the first slots."""

        def cut(ring: Tensor | None) -> Any:
            return None if ring is None else ring[:slots]

        first, between = Ring(*map(cut, self.first)), [*map(cut, self.between)]
        blocks = [[Ring(*map(cut, ring)) for ring in block] for block in self.blocks]
        return Rings(cut(self.z), first, blocks, between, cut(self.pre_tanh))

    def tensors(self) -> list[Tensor]:
        rings = [self.z, *self.first, *self.between, self.pre_tanh]
        rings += [tensor for block in self.blocks for ring in block for tensor in ring]
        return [ring for ring in rings if ring is not None]


class _Unit(NamedTuple):
    """The weights of a residual unit."""

    dilation: int
    weight: Tensor
    bias: Tensor
    inner_alpha: Tensor
    inner_weight: Tensor
    inner_bias: Tensor
    alpha: Tensor  # of the layer that reads the result


class _Block(NamedTuple):
    """The weights of a decoder block."""

    stride: int
    weight: Tensor
    bias: Tensor
    alpha: Tensor  # of the first unit
    units: list[_Unit]


class VocoderDecoder:
    """The weights of a vocoder, packed for its operations."""

    def __init__(self, config: VocoderConfig, state: Mapping[str, Tensor], ops: VocoderOps, tf32: bool = False) -> None:
        """state: tensors of `reference.vocoder.layout(config)`. tf32: fp32 products may use TF32."""
        self.config, self.ops, self.tf32 = config, ops, tf32
        self.like = state["decoder.model.0.bias"]
        quantizers = [f"quantizer.quantizers.{i}" for i in range(config.n_codebooks)]
        self.tables = torch.stack([state[f"{name}.codebook.weight"] for name in quantizers])
        weights, biases = ([state[f"{name}.out_proj.{part}"] for name in quantizers] for part in ("weight", "bias"))
        self.projection = vocoder_layers.packed_codebooks(weights, biases)
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
                reader = f"{i}.block.{unit + 1}.block.0"  # the next snake
                if unit == 1 + len(DILATIONS):
                    reader = f"{last}" if i + 1 == last else f"{i + 1}.block.0"
                units.append(_Unit(dilation, *conv(f"{name}.1"), alpha(f"{name}.2"), *conv(f"{name}.3"), alpha(reader)))
            up = conv(f"{i}.block.1", vocoder_layers.packed_transposed)
            self.blocks.append(_Block(config.decoder_rates[i - 1], *up, alpha(f"{i}.block.2.block.0"), units))
        self.first_alpha = alpha("1.block.0")
        self.delay = self._delay()  # samples that are not final when a frame has come

    @property
    def right_context(self) -> int:
        """Later frames that the samples of a frame depend on."""
        return -(-self.delay // self.config.hop)

    def finished(self, done: int, count: int, length: int) -> tuple[slice, slice]:
        """The samples of the clip that a step has made, and their columns in the result of the step."""
        begin = done * self.config.hop - self.delay
        end = begin + count * self.config.hop
        first, last = max(begin, 0), max(end if length == LENGTH_UNKNOWN else min(end, self.config.samples(length)), 0)
        last = max(first, last)
        return slice(first, last), slice(first - begin, last - begin)

    def ring_bytes(self, slots: int, frames: int) -> int:
        """Bytes of `rings`."""
        return sum(ring.nbytes for ring in self.rings(slots, frames, device="meta").tensors())

    def rings(self, slots: int, frames: int, keep_stages: bool = False, device: str | None = None) -> Rings:
        """Uninitialised rings for steps of up to `frames` frames. keep_stages: also the stages of `Vocoder.trace`."""

        def ring(rate: int, channels: int, tail: int, dtype: torch.dtype | None = None) -> Tensor:
            return self.like.new_empty((slots, frames * rate + tail, channels), device=device, dtype=dtype)

        def residual(rate: int, channels: int, tail: int = 0) -> Tensor:
            return ring(rate, channels, tail, torch.float64 if self.like.dtype == torch.float64 else torch.float32)

        config = self.config
        width, rate, blocks, between = config.decoder_dim, 1, [], []
        first = Ring(residual(1, width) if keep_stages else None, ring(1, width, 1))
        for block, is_last in zip(self.blocks, [*[False] * (len(self.blocks) - 1), True], strict=True):
            width, rate = width // 2, rate * block.stride
            reaches = [KERNEL // 2 * unit.dilation for unit in block.units]
            made = [Ring(residual(rate, width, reach), ring(rate, width, 2 * reach)) for reach in reaches]
            tail = KERNEL - 1 if is_last else 1
            blocks.append([*made, Ring(residual(rate, width) if keep_stages else None, ring(rate, width, tail))])
            between.append(None if width <= self.ops.widest_unit else ring(rate, width, 0))
        z = ring(1, config.latent_dim, KERNEL - 1)
        return Rings(z, first, blocks, between, residual(rate, 1) if keep_stages else None)

    def codebooks(self, count: int) -> tuple[Tensor, Tensor]:
        """Tables and projection of the first `count` codebooks."""
        C, _, K = self.tables.shape
        if count == C:
            return self.tables, self.projection
        columns = self.projection[:, : C * (K + 1)]
        kept = torch.cat([columns[:, : count * K], columns[:, C * K :][:, :count]], 1)
        return self.tables[:count], vocoder_layers.padded(kept)

    def latents(self, codes: Tensor) -> Tensor:
        """codes [B, T, C] int32 of the first C codebooks, T >= 1 -> latents [B, T, latent_dim]."""
        B, T, C = codes.shape
        z = self.like.new_empty(B, T, self.config.latent_dim)
        (step_meta,) = same_clips(B, T, T, 0, z.device)
        ranged(self.ops).rvq_decode(codes, *self.codebooks(C), step_meta, T, False, z, tf32=self.tf32)
        return z

    def step(self, rings: Rings, codes: Tensor, step_meta: Tensor, frames: int, delayed: bool = False) -> Tensor:
        """Samples [slots, frames * hop] of the frames that step_meta names, at most `frames` a slot.

        Column j of a slot is sample hop * done - delay + j of its clip, or zero outside of it. codes and step_meta are
        those of `rvq_decode`. codes may have the first codebooks only, or be latents [B, N, latent_dim], a ring of
        frames.
        """
        with annotate("codec/step", frames):
            return self._through_layers(rings, codes, step_meta, frames, delayed)

    def _through_layers(self, rings: Rings, codes: Tensor, step_meta: Tensor, frames: int, delayed: bool) -> Tensor:
        ops, tf32 = ranged(self.ops), {"tf32": self.tf32}
        if codes.is_floating_point():
            _copy_latents(codes, step_meta, frames, rings.z)
        else:
            tables, projection = self.codebooks(min(codes.shape[2], len(self.tables)))
            ops.rvq_decode(codes, tables, projection, step_meta, frames, delayed, rings.z, **tf32)
        step: tuple[Any, ...] = (step_meta, frames)
        timing, (y, x) = LayerTiming(), rings.first
        ops.conv1d_snake(rings.z, *self.first, *step, *timing, alpha=self.first_alpha, y=y, activated=x, **tf32)
        timing = timing.convolved()
        blocks = zip(self.blocks, rings.blocks, rings.between, strict=True)
        for i, (block, (first, *others), between) in enumerate(blocks):
            with annotate("codec/block", i):
                outputs = {"alpha": block.alpha, "y": first.y, "activated": first.activated, **tf32}
                ops.conv_transpose1d_snake(x, block.weight, block.bias, *step, *timing, block.stride, **outputs)
                timing, residual, x = timing.upsampled(block.stride), first.y, first.activated
                for unit, (y, activated) in zip(block.units, others, strict=True):
                    conv, inner = (unit.weight, unit.bias), (unit.inner_weight, unit.inner_bias)
                    after = timing.convolved(unit.dilation)
                    outputs = {"alpha": unit.alpha, "y": y, "activated": activated, **tf32}
                    if between is None:
                        layers = *conv, unit.inner_alpha, *inner
                        ops.residual_unit(x, residual, *layers, *step, *timing, unit.dilation, **outputs)
                    else:
                        inside = {"alpha": unit.inner_alpha, "activated": between, **tf32}
                        ops.conv1d_snake(x, *conv, *step, *timing, unit.dilation, **inside)
                        ops.conv1d_snake(between, *inner, *step, *after, 1, residual, **outputs)
                    timing, residual, x = after, y, activated
        return ops.conv1d_tanh(x, *self.last, *step, *timing, rings.pre_tanh, **tf32)

    def _delay(self) -> int:
        timing = LayerTiming().convolved()
        for block in self.blocks:
            timing = timing.upsampled(block.stride)
            for unit in block.units:
                timing = timing.convolved(unit.dilation)
        return timing.convolved().delay


def _copy_latents(latents: Tensor, step_meta: Tensor, frames: int, z: Tensor) -> None:
    """Copy a step's frames of the ring latents [B, N, D] into the ring z.

    A slot with fewer frames copies further ones, which lie outside of its clip or are copied again before they are
    read.
    """
    positions = step_meta[:, :1] + torch.arange(frames, device=z.device)
    slots = torch.arange(len(z), device=z.device)[:, None]
    z[slots, positions % z.shape[1]] = latents[slots, positions % latents.shape[1]]


def checked_codes(config: VocoderConfig, name: str, codes: Tensor) -> Tensor:
    """codes as int64. TypeError: not integers. ValueError: an id that is no code, end or padding."""
    top = config.codebook_size + 1
    if codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
        raise TypeError(f"{name} must be integers, got {codes.dtype}")
    codes = codes.to(torch.int64)
    if wrong := ((codes < 0) | (codes > top)).nonzero()[:1].tolist():
        raise ValueError(f"{name}{wrong[0]} must be in 0..{top}, got {codes[tuple(wrong[0])]}")
    return codes
