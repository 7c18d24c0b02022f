"""The vocoder's layers a few frames at a time, for many clips at once: what its kernels compute, in plain PyTorch.

Between two layers lies a ring [B, R, channels] for each of B rows: position p of a row's clip lies at p mod R. A layer
at `rate` positions a frame that lags by `lag` has been computed up to position rate * n - lag after n frames; its clip
has rate * length - short positions. What lies outside of the clip is never read: it counts as zero, whatever the ring
holds. So a row starts again by its numbers alone, and what a step has written it may write again.

spans [B, 4] int32 says where each row is: frames before this step, frames of this step (0: the row sits out), frames
of the clip (OPEN: not known yet), and frames of codes that have come, as ~n where no more will. tf32 is of fp32 alone:
products may read it so.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from zonos2_triton.reference.numeric import wide
from zonos2_triton.reference.vocoder import KERNEL, snake

OPEN = 2**31 - 1


class Place(NamedTuple):
    """Where the positions of a layer lie."""

    rate: int = 1
    lag: int = 0
    short: int = 0

    def convolved(self, dilation: int = 1, taps: int = KERNEL) -> "Place":
        return self._replace(lag=self.lag + taps // 2 * dilation)

    def upsampled(self, stride: int) -> "Place":
        """Behind a transposed convolution of 2 * stride taps."""
        lag = stride * self.lag + (stride + 1) // 2
        return Place(stride * self.rate, lag, stride * self.short + stride % 2)


def rvq_decode(
    codes: Tensor, tables: Tensor, weight: Tensor, spans: Tensor, frames: int, delayed: bool, z: Tensor,
    tf32: bool = False,
) -> None:  # fmt: skip
    """Into z [B, R, D]: each frame's code vectors through weight [D, P], as `packed_codebooks` makes it.

    codes [B, N, W] int32 is a ring of frames, of which the first C columns are codes of tables [C, V, K]; delayed: code
    c of a frame comes c frames later. A code that has not come adds nothing; one that will not come is the last of its
    codebook, as are those above.
    """
    (C, V, K), N = tables.shape, codes.shape[1]
    for b, (done, count, length, known) in enumerate(spans.tolist()):
        at = torch.arange(done, done + count, device=codes.device)[:, None]
        came = at + torch.arange(C, device=codes.device) * delayed
        closed, known = known < 0, ~known if known < 0 else known
        ids = codes[b, came % N, torch.arange(C, device=codes.device)].clamp(0, V - 1)
        ids, used = ids.where(came < known, V - 1).long(), (came < known) | closed  # [count, C]
        vectors = tables[torch.arange(C, device=codes.device), ids] * used[..., None]
        operand = _read(torch.cat([vectors.flatten(1), used.to(vectors.dtype)], 1), tf32)
        _store(z[b], done, F.linear(operand, _read(weight, tf32)[:, : C * (K + 1)]), length)


def conv1d_snake(
    x: Tensor, weight: Tensor, bias: Tensor, spans: Tensor, frames: int, rate: int, lag: int, short: int,
    dilation: int = 1, residual: Tensor | None = None, alpha: Tensor | None = None, y: Tensor | None = None,
    act: Tensor | None = None, tf32: bool = False,
) -> None:  # fmt: skip
    """y = conv(x) + residual into ring y, and snake(y) into ring act; rate, lag and short are those of x. In half
    precision too, y and residual are fp32.

    weight [Co, taps * Ci] as `packed` makes it, taps odd: what is computed lags by taps // 2 * dilation more.
    """
    Ci, Co = x.shape[2], len(weight)
    kernel = _read(weight, tf32).view(Co, -1, Ci).mT
    reach = kernel.shape[2] // 2 * dilation
    for b, (done, count, length, _) in enumerate(spans.tolist()):
        first, last, size = (rate * done - lag - reach), rate * (done + count) - lag - reach, rate * length - short
        if count == 0:
            continue
        source = _read(_window(x[b], first - reach, last + reach, size), tf32)
        out = F.conv1d(source.mT[None], kernel, bias, dilation=dilation)[0].mT
        if residual is not None:
            out = out + _window(residual[b], first, last, size)
        _emit(out, first, size, alpha, None if y is None else y[b], None if act is None else act[b])


def conv_transpose1d_snake(
    x: Tensor, weight: Tensor, bias: Tensor, spans: Tensor, frames: int, rate: int, lag: int, short: int,
    stride: int, alpha: Tensor | None = None, y: Tensor | None = None, act: Tensor | None = None, tf32: bool = False,
) -> None:  # fmt: skip
    """y = the transposed convolution of x by 2 * stride taps, into ring y, and snake(y) into ring act.

    weight [stride * Co, 2 * Ci] as `packed_transposed` makes it; rate, lag and short are those of x. Of the result they
    are stride * rate, stride * lag + ceil(stride / 2) and stride * short + stride % 2.
    """
    Ci, Co, padding = x.shape[2], len(weight) // stride, (stride + 1) // 2
    phases = _read(weight, tf32).view(stride, Co, 2, Ci)
    kernel = torch.cat([phases[:, :, 1], phases[:, :, 0]]).permute(2, 1, 0)  # [Ci, Co, 2 * stride]
    for b, (done, count, length, _) in enumerate(spans.tolist()):
        first, last, size = rate * done - lag, rate * (done + count) - lag, rate * length - short
        if count == 0:
            continue
        source = _read(_window(x[b], first - 1, last, size), tf32)
        out = F.conv_transpose1d(source.mT[None], kernel, bias, stride=stride)[0].mT
        out = out[stride : stride * (last - first + 1)]
        at, size = stride * first - padding, stride * size - stride % 2
        _emit(out, at, size, alpha, None if y is None else y[b], None if act is None else act[b])


def residual_unit(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, inner_alpha: Tensor, inner_weight: Tensor,
    inner_bias: Tensor, spans: Tensor, frames: int, rate: int, lag: int, short: int, dilation: int = 1,
    alpha: Tensor | None = None, y: Tensor | None = None, act: Tensor | None = None, tf32: bool = False,
) -> None:  # fmt: skip
    """y = residual + point(snake(conv(x))): `conv1d_snake` by weight [C, 7 * C], then by inner_weight [C, C]."""
    inner = torch.zeros_like(x)  # a ring that holds at least as much
    conv1d_snake(
        x, weight, bias, spans, frames, rate, lag, short, dilation, alpha=inner_alpha, act=inner, tf32=tf32
    )  # fmt: skip
    lag += weight.shape[1] // x.shape[2] // 2 * dilation
    conv1d_snake(inner, inner_weight, inner_bias, spans, frames, rate, lag, short, 1, residual, alpha, y, act, tf32)


def conv1d_tanh(
    x: Tensor, weight: Tensor, bias: Tensor, spans: Tensor, frames: int, rate: int, lag: int, short: int,
    y: Tensor | None = None, tf32: bool = False,
) -> Tensor:  # fmt: skip
    """tanh of the last convolution, weight [1, taps * C] -> samples, fp32 [B, frames * rate].

    Column j is position rate * done - lag - taps // 2 + j of a row; those outside of the clip, and of frames that the
    row does not have, are zero. y [B, R, 1]: the same before the tanh, into a ring.
    """
    B, reach = len(x), weight.shape[1] // x.shape[2] // 2
    inner = wide(x).new_zeros(B, max(x.shape[1], frames * rate), 1) if y is None else y
    conv1d_snake(x, weight, bias, spans, frames, rate, lag, short, y=inner, tf32=tf32)
    samples = wide(x).new_zeros(B, frames * rate)
    for b, (done, count, length, _) in enumerate(spans.tolist()):
        first, size = rate * done - lag - reach, rate * length - short
        got = wide(_window(inner[b], first, first + rate * count, size))[:, 0]
        samples[b, : rate * count] = torch.tanh(got)
    return samples


def packed(weight: Tensor) -> Tensor:
    """The weight of a convolution [Co, Ci, taps] -> [Co, taps * Ci], channels last."""
    return weight.mT.flatten(1).contiguous()


def packed_transposed(weight: Tensor) -> Tensor:
    """That of a transposed one [Ci, Co, 2 * stride] -> [stride * Co, 2 * Ci].

    Output stride * q - padding + r is made of inputs q - 1 and q: row r * Co + o holds what they count for channel o.
    """
    late, early = weight.permute(2, 1, 0).chunk(2)  # each [stride, Co, Ci]: of input q, of input q - 1
    return torch.cat([early, late], 2).flatten(0, 1).contiguous()


def packed_codebooks(weights: list[Tensor], biases: list[Tensor]) -> Tensor:
    """C projections [D, K, 1] and biases [D] -> [D, P]: K columns each, then a column for each bias, then zeros."""
    return padded(torch.cat([*(w[..., 0] for w in weights), torch.stack(biases, 1)], 1))


def padded(columns: Tensor) -> Tensor:
    """With columns of zeros behind them, up to a power of two, at least 16."""
    wanted = max(16, 1 << (columns.shape[1] - 1).bit_length())
    return F.pad(columns, (0, wanted - columns.shape[1]))


def _read(x: Tensor, tf32: bool) -> Tensor:
    """As a product reads it: in tf32, fp32 has ten bits of its fraction."""
    if not tf32 or x.dtype != torch.float32:
        return x
    bits = (x.view(torch.int32) + 0x1000) & ~0x1FFF  # to nearest, ties away from zero
    return torch.where(x.isfinite(), bits.view(torch.float32), x)


def _window(ring: Tensor, first: int, last: int, size: int) -> Tensor:
    """Positions first .. last - 1 of a clip of `size`, zero outside of it."""
    at = torch.arange(first, last, device=ring.device)
    return torch.where(((at >= 0) & (at < size))[:, None], ring[at % len(ring)], 0)


def _store(ring: Tensor, first: int, values: Tensor, size: int) -> None:
    at = torch.arange(first, first + len(values), device=ring.device)
    inside = (at >= 0) & (at < size)
    ring[at[inside] % len(ring)] = values[inside].to(ring.dtype)


def _emit(out: Tensor, first: int, size: int, alpha: Tensor | None, y: Tensor | None, act: Tensor | None) -> None:
    if y is not None:
        _store(y, first, out, size)
    if act is not None:
        if alpha is None:
            raise ValueError("act and alpha must be given together, got act without alpha")
        _store(act, first, snake(out.mT[None], alpha[:, None])[0].mT, size)


OPERATIONS = ("rvq_decode", "conv1d_snake", "conv_transpose1d_snake", "residual_unit", "conv1d_tanh")
