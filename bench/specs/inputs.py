"""Inputs for every operation, by size: the same for the same seed.

One function per operation, with its name; it returns the keyword arguments of the kernel and of the reference.
"""

import math
from typing import Any

import torch
from torch import Tensor

from zonos2_triton.reference.add_rms_norm import prepare_norm
from zonos2_triton.reference.moe_router import by_expert
from zonos2_triton.reference.numeric import exp_nonpositive
from zonos2_triton.reference.rotary import compute_cos_sin_cache
from zonos2_triton.reference.sampling import NEVER_SEEN, Sampling
from zonos2_triton.reference.vocoder_layers import LENGTH_UNKNOWN, packed_codebooks

Sizes = dict[str, Any]
EPS = 1e-5
Settings = dict[str, float]  # keyword arguments of `Sampling`
Numbers = tuple[int, ...]
StepMeta = tuple[int, int, int, int]  # a slot's row of `step_meta`: done, count, length, known


class Inputs:
    """Random tensors that are the same for the same seed, small ones on every device."""

    def __init__(self, device: str | torch.device, dtype: torch.dtype, seed: int) -> None:
        self.device, self.dtype = torch.device(device), dtype
        self.generator = torch.Generator().manual_seed(seed)
        self.dry = self.device.type == "cuda" and not torch.cuda.is_available()  # tensors without storage

    def randn(self, *shape: int, scale: float = 1.0, dtype: torch.dtype | None = None) -> Tensor:
        dtype = dtype or self.dtype
        if self.dry:
            return torch.empty(shape, device=self.device, dtype=dtype)
        if self.device.type == "cuda" and torch.Size(shape).numel() > 1 << 22:
            seed = int(torch.randint(1 << 30, (1,), generator=self.generator))
            generator = torch.Generator(self.device).manual_seed(seed)
            return torch.randn(shape, generator=generator, device=self.device, dtype=dtype).mul_(scale)
        return (torch.randn(shape, generator=self.generator) * scale).to(self.device, dtype)

    def weight(self, *shape: int) -> Tensor:
        """The weight of a linear map, which keeps the size of its input."""
        return self.randn(*shape, scale=shape[-1] ** -0.5)

    def gain(self, n: int) -> Tensor:
        """The weight of a norm."""
        return (1 + 0.2 * self.randn(n, dtype=torch.float32)).to(self.dtype)

    def randint(self, low: int, high: int, *shape: int) -> Tensor:
        if self.dry:
            return torch.empty(shape, device=self.device, dtype=torch.int32)
        return torch.randint(low, high, shape, generator=self.generator, dtype=torch.int32).to(self.device)

    def int32(self, numbers: list[int]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.int32, device=self.device)

    def pages(self, sequences: int, each: int) -> Tensor:
        """A block table [sequences, each] of pages that lie in no order."""
        if self.dry:
            return torch.empty(sequences, each, device=self.device, dtype=torch.int32)
        order = torch.randperm(sequences * each, generator=self.generator).int()
        return order.reshape(sequences, each).to(self.device)

    def choices(self, rows: int, k: int, experts: int, skew: bool) -> Tensor:
        """k different experts a row, [rows, k]; skew: expert 1 is every row's first."""
        if self.dry:
            return torch.empty(rows, k, device=self.device, dtype=torch.int64)
        ids = torch.rand(rows, experts, generator=self.generator).argsort(1)
        if skew:
            ids = torch.where(ids == 1, ids[:, :1], ids)
            ids[:, 0] = 1
        return ids[:, :k].to(self.device)


def _tokens(new: Inputs, M: int, D: int, normed: bool, prepared: bool) -> Sizes:
    """Tokens x and the norm before a product. normed: they need none; prepared: their producer has left its half."""
    x, gain = new.randn(M, D), None if normed else new.gain(D)
    half: tuple[Tensor | None, Tensor | None] = None, None
    if prepared and gain is not None:
        sum_sq = torch.empty(M, -(-D // 16), device=new.device, dtype=torch.float32)
        half = (torch.empty_like(x), sum_sq) if new.dry else prepare_norm(x, gain)
    return {"x": x, "norm_weight": gain, "x_scaled": half[0], "sum_sq": half[1]}


def frame_embedding(
    new: Inputs, M: int, D: int, columns: int, V: int, text: int, voices: int = 0, norm: bool = True,
    next_norm: bool = True,
) -> Sizes:  # fmt: skip
    ids = torch.cat([new.randint(0, V, M, columns - 1), new.randint(0, text, M, 1)], 1)
    voiced: Sizes = {"speakers": None, "speaker_index": None}
    if voices:
        index = [row % (voices + 1) - 1 for row in range(M)]
        voiced = {"speakers": new.randn(voices, D), "speaker_index": new.int32(index)}
    table = new.randn((columns - 1) * V + text, D)
    gain = new.gain(D) if next_norm else None
    options = {"codebook_vocab": V, "eps": EPS, **voiced, "norm": norm, "next_norm_weight": gain}
    return {"ids": ids, "table": table, **options}


def add_rms_norm(new: Inputs, M: int, D: int, residual: bool = True) -> Sizes:
    x, more = new.randn(M, D), new.randn(M, D) if residual else None
    return {"x": x, "residual": more, "weight": new.gain(D), "eps": EPS}


def rotary(new: Inputs, M: int, H: int, DH: int, P: int) -> Sizes:
    positions = new.randint(0, P, M)
    positions.narrow(0, M - 1, 1).fill_(P - 1)
    cos_sin_cache = compute_cos_sin_cache(P, DH, 1e4, new.randn(1))
    return {"x": new.randn(M, H, DH), "positions": positions, "cos_sin_cache": cos_sin_cache}


def qkv_projection(
    new: Inputs, M: int, D: int, NQ: int, NKV: int, G: int, prefill: bool = False, normed: bool = False,
    prepared: bool = True,
) -> Sizes:  # fmt: skip
    tokens = _tokens(new, M, D, normed, prepared)
    weights = {"wq": new.weight(NQ, D), "wkv": new.weight(2, NKV, D), "gater": new.weight(G, D)}
    return {**tokens, **weights, "eps": EPS, "prefill": prefill}


def output_projection(
    new: Inputs, M: int, K: int, D: int, prefill: bool = False, residual: bool = True, next_norm: bool = True
) -> Sizes:
    y, weight, x = new.randn(M, K), new.weight(D, K), new.randn(M, D) if residual else None
    gain = new.gain(D) if next_norm else None
    return {"y": y, "weight": weight, "residual": x, "prefill": prefill, "next_norm_weight": gain}


def _attention(
    new: Inputs, T: int, B: int, most: int, HQ: int, HKV: int, DH: int, page_size: int = 64, no_preamble: bool = False
) -> Sizes:
    """The arguments of both attentions for T tokens, with room for `most` positions a sequence.

    no_preamble: without qk_temperature and cos_sin_cache.
    """
    each = -(-most // page_size)
    cache = B * each, page_size, HKV, DH
    return {
        "qkvg": new.randn(T, (HQ + 2 * HKV) * DH + (not no_preamble) * HQ),
        "qk_temperature": None if no_preamble else 1 + 0.2 * new.randn(HQ),
        "cos_sin_cache": None if no_preamble else compute_cos_sin_cache(each * page_size, DH, 1e4, new.randn(1)),
        "k_cache": new.randn(*cache),
        "v_cache": new.randn(*cache),
        "block_table": new.pages(B, each),
    }


def decode_attention(new: Inputs, B: int, context: int, contexts: Numbers = (), **sizes: Any) -> Sizes:
    """contexts: positions in each sequence's cache, where they are not all `context`, which is then the largest.

    sizes: of `_attention`.
    """
    numbers = [contexts[b % len(contexts)] for b in range(B)] if contexts else [context] * B
    return {**_attention(new, B, B, context + 1, **sizes), "positions": new.int32(numbers)}


def prefill_attention(
    new: Inputs, T: int, context: int, B: int, rows: Numbers = (), contexts: Numbers = (), **sizes: Any
) -> Sizes:
    """rows and contexts: new and cached positions of each sequence, where they are not T / B and `context`."""
    rows, contexts = rows or (T // B,) * B, contexts or (context,) * B
    made = _attention(new, T, B, max(row + start for row, start in zip(rows, contexts, strict=True)), **sizes)
    cuts = [sum(rows[:b]) for b in range(B + 1)]
    lengths = {"cache_seqlens": new.int32(list(contexts)), "cu_seqlens": new.int32(cuts)}
    return {**made, **lengths, "max_seqlen_q": max(rows)}


def moe_router(
    new: Inputs, M: int, D: int, R: int, E: int, k: int, carry: bool = True, idle: Numbers = (), normed: bool = False,
    prepared: bool = True,
) -> Sizes:  # fmt: skip
    """idle: rows with a negative position; none: positions are not given."""
    positions = new.int32([-1 if row in idle else row for row in range(M)]) if idle else None
    return {
        **_tokens(new, M, D, normed, prepared),
        "router_state": new.randn(M, R) if carry else None,
        "state_scale": new.gain(R) if carry else None,
        "down_weight": new.weight(R, D),
        "down_bias": 0.1 * new.randn(R),
        "state_norm": new.gain(R),
        "w1": 2 * new.weight(R, R),
        "b1": 0.1 * new.randn(R),
        "w2": 2 * new.weight(R, R),
        "b2": 0.1 * new.randn(R),
        "w3": 3 * new.weight(E, R),
        "balancing_biases": 0.1 * new.randn(E),
        **{"k": k, "eps": EPS, "positions": positions},
    }


def moe_experts(
    new: Inputs, M: int, D: int, I: int, E: int, k: int, active: float = 0, prefill: bool = False,
    routed: bool = True, skew: bool = False, idle: Numbers = (), normed: bool = False, prepared: bool = True,
    residual: bool = True, next_norm: bool = True,
) -> Sizes:  # fmt: skip
    """skew as in `Inputs.choices`; `active` is for `cost`; idle: rows that go to no expert, with weights of NaN."""
    w13 = new.weight(E, 2 * I, D)
    gate, up = (w13[:, 0::2], w13[:, 1::2]) if routed else (w13[:, I:], w13[:, :I])
    chosen: Sizes = {}
    if routed:
        ids, weights = new.choices(M, k, E, skew), new.randn(M, k, dtype=torch.float32).sigmoid()
        ids[list(idle)], weights[list(idle)] = E, float("nan")
        chosen = dict(zip(("sorted_slot_ids", "expert_offsets"), by_expert(ids, E), strict=True))
        chosen["expert_weights"] = weights
    chosen |= {"gate": gate, "up": up, "down": new.weight(E, D, I), "eps": EPS, "prefill": prefill}
    tokens, gain = _tokens(new, M, D, normed, prepared), new.gain(D) if next_norm else None
    return {**tokens, **chosen, "residual": residual, "next_norm_weight": gain}


def codebook_head(
    new: Inputs, M: int, D: int, N: int, codebooks: int, prefill: bool = False, softcap: float = 15.0,
    normed: bool = False, prepared: bool = True,
) -> Sizes:  # fmt: skip
    tokens, weight = _tokens(new, M, D, normed, prepared), 4 * new.weight(N, D)
    options = {"n_codebooks": codebooks, "eps": EPS, "softcap": softcap, "prefill": prefill}
    return {**tokens, "weight": weight, **options}


def sample_codes(
    new: Inputs, B: int, C: int, V: int, settings: tuple[Settings, ...] = ({},), step: int = 40,
    spread: float = 3.0, whole: bool = False, levels: tuple[tuple[float, ...], ...] = (), recent: int = 0,
    N: int = 4, state: bool = True, slots: tuple[Sizes, ...] = ({},),
) -> Sizes:  # fmt: skip
    """The inputs have fixed dtypes.

    settings  of the requests, in turn
    step      the least number of frames so far
    spread    standard deviation of the logits
    whole     logits are rounded to integers, so that many tie
    levels    logits of the requests, in turn, repeated over each row, instead of random ones
    recent    frames since the likeliest code of each row came last
    state     slots go on by the frame; slots: each one's steps, positions, max_frames, eoa_ids or eos_frames, in turn;
              ends: codebooks that draw the end, code V - 2; fault: a codebook whose logits are not finite"""
    logits = new.randn(B, C, V, scale=spread, dtype=torch.float32)
    if levels:
        numbers = [[kind[v % len(kind)] for v in range(V)] for kind in (levels * B)[:B]]
        logits = torch.tensor(numbers, dtype=torch.float32, device=new.device)[:, None].repeat(1, C, 1)
    came = new.randint(0, step, B, C, V)
    last_seen = torch.where(new.randint(0, 3, B, C, V) == 0, came, NEVER_SEEN)  # a third of the codes came before
    kinds = [{"steps": step + b, **slots[b % len(slots)]} for b in range(B)]
    steps = new.int32([kind["steps"] for kind in kinds])
    if recent:
        last_seen.scatter_(2, logits.argmax(2, keepdim=True), (steps - recent)[:, None, None].expand(B, C, 1))
    logits = logits.round() if whole else logits
    for b, kind in enumerate(kinds):
        logits[b, list(kind.get("ends", ())), V - 2] = 1e4
        logits[b, [kind["fault"]] if "fault" in kind else []] = math.nan
    usual = {"positions": 70, "max_frames": step + B + 40, "eoa_ids": V - 2, "eos_frames": -1}
    held: Sizes = {name: new.int32([kind.get(name, number) for kind in kinds]) for name, number in usual.items()}
    held |= {"ids": new.randint(0, V, B, C + 1), "frames": new.randint(0, V, B, N, C + 1), "text_id": 2 * V}
    rows = [Sampling(**settings[b % len(settings)]).packed() for b in range(B)]  # type: ignore[arg-type]
    seeds = [(b + 1) * 0x9E3779B97F4A7C15 % 2**64 - 2**63 for b in range(B)]  # all 64 bits
    return {
        "logits": logits,
        "settings": torch.tensor(rows, dtype=torch.float32, device=new.device),
        "seeds": torch.tensor(seeds, dtype=torch.int64, device=new.device),
        "steps": steps,
        "last_seen": last_seen,
        **(held if state else dict.fromkeys(name for name in held if name != "text_id")),
    }


def last_bits(requests: int) -> Sizes:
    """Sizes of `sample_codes` where an operation that rounds otherwise gives another code.

    The min_p of every second request is the weight of its codes that came before; that of the others is the next float.
    """
    temperature, penalty = (torch.tensor(value) for value in (1.15, 1.2))
    top = torch.tensor([0.0, 4.0]).repeat_interleave(2).repeat(requests)[:requests]
    x = top - torch.linspace(0.03, 1.5, requests)
    seen = torch.where(x > 0, x / penalty, x * penalty) / temperature
    weights = exp_nonpositive(seen - top / temperature)
    weights[1::2] = weights[1::2].nextafter(torch.tensor(1.0))
    levels = [(number,) * 28 + (high, -math.inf) for number, high in zip(x.tolist(), top.tolist(), strict=True)]
    settings = tuple({"min_p": weight} for weight in weights.tolist())
    return {"B": requests, "V": 30, "levels": tuple(levels), "settings": settings}


def _step_meta(new: Inputs, B: int, frames: int, rows: tuple[StepMeta, ...]) -> Tensor:
    """The rows in turn, one for each slot. Without any, every slot is in the middle of a clip."""
    rows = rows or ((20, frames, LENGTH_UNKNOWN, 20 + frames + 64),)
    return torch.tensor([rows[b % len(rows)] for b in range(B)], dtype=torch.int32, device=new.device)


def rvq_decode(
    new: Inputs,
    B: int,
    frames: int,
    C: int,
    V: int,
    K: int,
    D: int,
    N: int = 0,
    W: int = 0,
    delayed: bool = False,
    rows: tuple[StepMeta, ...] = (),
    spare: int = 6,
) -> Sizes:
    """Inputs of `rvq_decode`. N, W: frames and columns of the ring of codes, where it is larger than it must be.

    Codes reach V + 1: codes from V on end and pad a clip.
    """
    weights, biases = [new.weight(D, K) for _ in range(C)], [0.1 * new.randn(D) for _ in range(C)]
    return {
        "codes": new.randint(0, V + 2, B, N or frames + C, W or C),
        "tables": new.randn(C, V, K),
        "weight": packed_codebooks([weight[..., None] for weight in weights], biases),
        "step_meta": _step_meta(new, B, frames, rows),
        "frames": frames,
        "delayed": delayed,
        "z": new.randn(B, frames + spare, D),
    }


def _layer(
    new: Inputs,
    B: int,
    frames: int,
    samples_per_frame: int,
    Ci: int,
    Co: int,
    taps: int,
    reach: int,
    stride: int = 1,
    residual: bool = False,
    y: bool = False,
    activated: bool = True,
    spare: int = 0,
    tf32: bool = False,
    rows: tuple[StepMeta, ...] = (),
    **timing: Any,
) -> Sizes:
    """The inputs that all convolutions take. reach: positions of x beyond those of a step; stride: outputs of each.

    Rings are longer than they must be by multiples of `spare`; what lies there must stay.
    """
    each = stride * frames * samples_per_frame
    return {
        "x": new.randn(B, frames * samples_per_frame + reach + spare, Ci),
        "weight": new.weight(stride * Co, taps * Ci),
        "bias": 0.1 * new.randn(Co),
        "step_meta": _step_meta(new, B, frames, rows),
        "frames": frames,
        **{"samples_per_frame": samples_per_frame, "delay": 0, "tail_trim": 0, **timing},
        "tf32": tf32 and new.dtype == torch.float32,
        "residual": new.randn(B, each + 3 * spare, Co, dtype=torch.float32) if residual else None,
        "alpha": 1 + 0.3 * new.randn(Co) if activated else None,
        "y": new.randn(B, each + spare, Co, dtype=torch.float32) if y else None,
        "activated": new.randn(B, each + 2 * spare, Co) if activated else None,
    }


def conv1d_snake(new: Inputs, taps: int, dilation: int = 1, **sizes: Any) -> Sizes:
    """Inputs of `conv1d_snake`. sizes, here and below, are those of `_layer`."""
    return {**_layer(new, taps=taps, reach=(taps - 1) * dilation, **sizes), "dilation": dilation}


def conv_transpose1d_snake(new: Inputs, stride: int, y: bool = True, **sizes: Any) -> Sizes:
    made = _layer(new, taps=2, reach=1, stride=stride, y=y, **sizes)
    del made["residual"]
    return {**made, "stride": stride}


def residual_unit(new: Inputs, C: int, taps: int = 7, y: bool = True, **sizes: Any) -> Sizes:
    made = conv1d_snake(new, taps, Ci=C, Co=C, residual=True, y=y, **sizes)
    inner = {"inner_alpha": 1 + 0.3 * new.randn(C), "inner_weight": new.weight(C, C), "inner_bias": 0.1 * new.randn(C)}
    return {**made, **inner}


def conv1d_tanh(new: Inputs, taps: int = 7, **sizes: Any) -> Sizes:
    made = _layer(new, Co=1, taps=taps, reach=taps - 1, activated=False, **sizes)
    return {name: x for name, x in made.items() if name not in ("residual", "alpha", "activated")}
