"""The operations in plain PyTorch as a compiler and a CUDA graph can take them.

`TORCH_OPS` takes the arguments of `REFERENCE` and returns its results. Attention covers only what is timed: no idle
sequence in a decode step, and a single prompt from its beginning. Shapes follow from shapes; no value is
read on the host, and no constant is copied from there. Operations of the reference that meet this are used as they
are.
"""

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zonos2_triton.reference import sampling
from zonos2_triton.reference.add_rms_norm import prepare_norm, rms_norm
from zonos2_triton.reference.advance_frame import SLOT_FREE, SLOT_NONFINITE
from zonos2_triton.reference.attention import QK_EPS
from zonos2_triton.reference.moe_router import by_expert
from zonos2_triton.reference.numeric import wide
from zonos2_triton.reference.ops import REFERENCE
from zonos2_triton.reference.philox import philox
from zonos2_triton.reference.rotary import rotary
from zonos2_triton.reference.sampling import WEIGHT_BITS

FEW = 8  # choices of experts: up to here, reading an expert once for each costs less than sorting rows by expert


def multiply(x: Tensor, weight: Tensor) -> Tensor:
    """x [M, K], weight [N, K] -> [M, N]; one row as a sum, which a compiler fuses with what comes before and after."""
    return (wide(x) * wide(weight)).sum(-1)[None].to(x.dtype) if len(x) == 1 else x @ weight.T


# Attention.


def entering(
    qkvg: Tensor, qk_temperature: Tensor | None, cos_sin_cache: Tensor | None, positions: Tensor, k_cache: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """qkvg [T, ...] -> q [T, HQ, DH] and k [T, HKV, DH], normed and turned, v [T, HKV, DH], gate [T, HQ].

    Without qk_temperature and cos_sin_cache the rows are as they come, and there is no gate.
    """
    kv_heads, head_dim = k_cache.shape[2:]
    gates = 0 if qk_temperature is None else len(qk_temperature)
    rows, gate = qkvg.split([qkvg.shape[1] - gates, gates], 1)
    q, k, v = rows.unflatten(1, (-1, head_dim)).tensor_split([-2 * kv_heads, -kv_heads], 1)
    if qk_temperature is None or cos_sin_cache is None:
        return q, k, v, None
    q = rotary(rms_norm(wide(q), None, QK_EPS) * wide(qk_temperature)[:, None].abs(), positions, cos_sin_cache).to(
        qkvg.dtype
    )
    k = rotary(rms_norm(wide(k), None, QK_EPS), positions, cos_sin_cache).to(qkvg.dtype)
    return q, k, v, gate


def gated(y: Tensor, gate: Tensor | None) -> Tensor:
    """y [T, HQ, DH], gate [T, HQ] -> [T, HQ * DH], each head scaled by sigmoid(gate), where there is one."""
    return (y if gate is None else (wide(y) * torch.sigmoid(wide(gate))[..., None]).to(y.dtype)).flatten(1)


def by_products(q: Tensor, keys: Tensor, values: Tensor, positions: Tensor) -> Tensor:
    """One query a sequence: q [B, HQ, DH], keys and values [B, S, HKV, DH] up to positions [B] -> [B, HQ, DH].

    Two matrix products over the key/value heads, so that the heads of a group read them once.
    """
    _, S, kv_heads, head_dim = keys.shape
    grouped = q.unflatten(1, (kv_heads, -1))  # [B, HKV, G, DH]
    scores = wide(grouped @ keys.permute(0, 2, 3, 1)) * head_dim**-0.5
    future = torch.arange(S, device=q.device) > positions[:, None]
    weights = scores.masked_fill(future[:, None, None], float("-inf")).softmax(-1)
    return (weights.to(q.dtype) @ values.transpose(1, 2)).flatten(1, 2)


def decode_attention(
    qkvg: Tensor,
    qk_temperature: Tensor | None,
    cos_sin_cache: Tensor | None,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    positions: Tensor,
) -> Tensor:
    """All sequences at once, none of them idle, over every position that the block table has room for."""
    at, page_size = positions.long(), k_cache.shape[1]
    q, k, v, gate = entering(qkvg, qk_temperature, cos_sin_cache, at, k_cache)
    place = block_table[torch.arange(len(at), device=at.device), at // page_size].long(), at % page_size
    k_cache[place], v_cache[place] = k, v
    keys, values = (cache[block_table.long()].flatten(1, 2) for cache in (k_cache, v_cache))
    seen = torch.arange(keys.shape[1], device=at.device) <= at[:, None]
    return gated(by_products(q, keys, values.masked_fill(~seen[..., None, None], 0), at), gate)


def prefill_attention(
    qkvg: Tensor,
    qk_temperature: Tensor | None,
    cos_sin_cache: Tensor | None,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    cache_seqlens: Tensor,
    cu_seqlens: Tensor,
    max_seqlen_q: int,
) -> Tensor:
    """One prompt, from its first token."""
    at, page_size = torch.arange(max_seqlen_q, device=qkvg.device), k_cache.shape[1]
    q, k, v, gate = entering(qkvg, qk_temperature, cos_sin_cache, at, k_cache)
    place = block_table[0, at // page_size].long(), at % page_size
    k_cache[place], v_cache[place] = k, v
    q, k, v = (part.transpose(0, 1)[None] for part in (q, k, v))
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    return gated(y[0].transpose(0, 1), gate)


# Feed-forward.


def swiglu(h: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """h [M, D], gate and up [I, D], down [D, I] -> [M, D]."""
    return multiply(_joined(multiply(h, gate), multiply(h, up)), down)


def mixture(
    h: Tensor, gate: Tensor, up: Tensor, down: Tensor, ids: Tensor, weights: Tensor, both: Tensor | None = None
) -> Tensor:
    """h [M, D], ids [M, K] of experts, E for none, weights [M, K] -> wide [M, D], the weighted sum of their `swiglu`.

    both [E, 2 * I, D]: gate and up in one tensor, rows taking turns. A few choices gather the weights that they need.
    More go through grouped products, sorted by expert; where a device has none, through all experts.
    """
    weights = torch.where(ids < len(gate), weights, 0)
    if ids.numel() <= FEW:
        return _gathered(h, gate, up, down, ids, weights)
    if has_grouped(h.device.type, h.dtype):
        return grouped(h, gate, up, down, ids, weights, both)
    return _through_all(h, gate, up, down, ids, weights)


def _gathered(h: Tensor, gate: Tensor, up: Tensor, down: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    (M, K), expert = ids.shape, ids.flatten().clamp(max=len(gate) - 1)
    rows = h[:, None].expand(-1, K, -1).flatten(0, 1)

    def each(x: Tensor, of: Tensor) -> Tensor:
        return (wide(x)[:, None] * wide(of[expert])).sum(-1).to(x.dtype)

    y = each(_joined(each(rows, gate), each(rows, up)), down)
    return (wide(y).unflatten(0, (M, K)) * weights[..., None]).sum(1)


def grouped(
    h: Tensor, gate: Tensor, up: Tensor, down: Tensor, ids: Tensor, weights: Tensor, both: Tensor | None = None
) -> Tensor:
    """`mixture` by grouped products."""
    (M, K), (sorted_slot_ids, expert_offsets) = ids.shape, by_expert(ids, len(gate))
    rows, ends, slots = h[sorted_slot_ids // K], expert_offsets[1:], sorted_slot_ids.long()
    if both is None:
        inner = _joined(*(torch._grouped_mm(rows, part.mT, offs=ends) for part in (gate, up)))
    else:
        product = torch._grouped_mm(rows, both.mT, offs=ends)
        inner = _joined(product[:, 0::2], product[:, 1::2])
    y = torch.zeros_like(rows).index_copy(0, slots, torch._grouped_mm(inner, down.mT, offs=ends))
    chosen = torch.where((ids < len(gate))[..., None], wide(y.unflatten(0, (M, K))), 0)  # others are not written
    return (chosen * weights[..., None]).sum(1)


def _through_all(h: Tensor, gate: Tensor, up: Tensor, down: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    E, shape = len(gate), gate.shape[:2]
    share = weights.new_zeros(len(h), E + 1).scatter(1, ids.long(), weights)[:, :E]
    inner = _joined(*(multiply(h, part.flatten(0, 1)) for part in (gate, up))).unflatten(1, shape)
    y = torch.bmm(inner.transpose(0, 1), down.mT)  # [E, M, D]
    return (wide(y) * share.T[..., None]).sum(0)


def _joined(gate: Tensor, up: Tensor) -> Tensor:
    return (F.silu(wide(gate)) * wide(up)).to(gate.dtype)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def has_grouped(device: str, dtype: torch.dtype) -> bool:
    """Whether grouped products run on the current device without reading on the host where groups end."""
    if device != "cuda" or dtype != torch.bfloat16 or torch.version.hip is not None:
        return False
    # On Blackwell they came with 2.13, elsewhere they are a loop of the host.
    major, minor = torch.cuda.get_device_capability()
    return (major, minor) == (9, 0) or (major == 10 and torch.__version__ >= "2.13")


def moe_experts(
    x: Tensor,
    norm_weight: Tensor | None,
    gate: Tensor,
    up: Tensor,
    down: Tensor,
    eps: float,
    sorted_slot_ids: Tensor | None = None,
    expert_offsets: Tensor | None = None,
    expert_weights: Tensor | None = None,
    prefill: bool = False,
    residual: bool = True,
    x_scaled: Tensor | None = None,
    sum_sq: Tensor | None = None,
    next_norm_weight: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    h = x if norm_weight is None else rms_norm(x, norm_weight, eps)
    if sorted_slot_ids is None or expert_offsets is None or expert_weights is None:
        y = swiglu(h, gate[0], up[0], down[0])
        y = (wide(x) + wide(y)).to(x.dtype) if residual else y
        return y, *prepare_norm(y, next_norm_weight)
    sorted_ids = torch.searchsorted(
        expert_offsets[1:], torch.arange(len(sorted_slot_ids), device=x.device, dtype=expert_offsets.dtype), right=True
    )
    ids = torch.zeros_like(sorted_ids).scatter(0, sorted_slot_ids.long(), sorted_ids).view(expert_weights.shape)
    y = mixture(h, gate, up, down, ids, expert_weights)
    y = (wide(x) + y if residual else y).to(x.dtype)
    return y, *prepare_norm(y, next_norm_weight)


def choose(
    x: Tensor,
    norm_weight: Tensor,
    router_state: Tensor | None,
    state_scale: Tensor | None,
    down_weight: Tensor,
    down_bias: Tensor,
    state_norm: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    w3: Tensor,
    balancing_biases: Tensor,
    k: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The arguments of `moe_router` -> expert_ids and expert_weights [M, K], router_state [M, R]; nothing is sorted."""

    def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return (wide(multiply(x, weight)) + wide(bias)).to(x.dtype)

    s = linear(rms_norm(x, norm_weight, eps), down_weight, down_bias)
    if router_state is not None and state_scale is not None:
        s = s + router_state * state_scale
    h = F.gelu(linear(rms_norm(s, state_norm, eps), w1, b1))
    probs = wide(multiply(F.gelu(linear(h, w2, b2)), w3)).softmax(-1)
    scores, found = probs + wide(balancing_biases), []
    for _ in range(k):  # of the largest the first
        found.append(scores.argmax(-1, keepdim=True))
        scores = scores.scatter(-1, found[-1], float("-inf"))
    ids = torch.cat(found, -1)
    return ids, probs.gather(-1, ids), s


# Logits and draw.


def codebook_head(
    x: Tensor, norm_weight: Tensor, weight: Tensor, n_codebooks: int, eps: float, softcap: float
) -> Tensor:
    """`reference.codebook_head.codebook_head` by `multiply`."""
    logits = wide(multiply(rms_norm(x, norm_weight, eps), weight))
    return (softcap * torch.tanh(logits / softcap) if softcap else logits).unflatten(1, (n_codebooks, -1))


def sample_codes(
    logits: Tensor,
    settings: Tensor,
    seeds: Tensor,
    steps: Tensor,
    last_seen: Tensor,
    positions: Tensor | None = None,
    *state: Any,
    **more: Any,
) -> tuple[Tensor, Tensor]:
    """`reference.sample_codes.sample_codes` with its counter on the device."""
    sound = logits.float().amax(-1, keepdim=True).isfinite()
    probs = sampling.distributions(torch.where(sound, logits.float(), 0.0), settings, steps, last_seen)
    weights = (probs * 2**WEIGHT_BITS).to(torch.int64)
    codebooks = torch.arange(logits.shape[1], device=logits.device)
    nothing = torch.zeros_like(codebooks)
    word = philox(seeds[:, None], (steps[:, None], codebooks, nothing, nothing))[..., :1]
    target = word * weights.sum(-1, keepdim=True) >> 32
    codes = (weights.cumsum(-1) <= target).sum(-1)
    codes, nonfinite = torch.where(sound[..., 0], codes, logits.shape[2] - 1).int(), (~sound[..., 0]).int()
    if positions is not None:
        _advance(codes, nonfinite, steps, last_seen, positions, *state, **more)
    return codes, nonfinite


def _advance(
    codes: Tensor,
    nonfinite: Tensor,
    steps: Tensor,
    last_seen: Tensor,
    positions: Tensor,
    max_frames: Tensor,
    eoa_ids: Tensor,
    eos_frames: Tensor,
    ids: Tensor,
    frames: Tensor,
    text_id: int,
) -> None:
    C = codes.shape[1]
    live = positions >= 0
    faulty = live & (nonfinite != 0).any(1)
    counts = live & ~faulty
    codebooks = torch.arange(C, device=codes.device)
    last_end = torch.where(codes == eoa_ids[:, None], codebooks, -1).amax(1).int()
    ends = counts & (last_end >= 0) & (eos_frames < 0)
    eos_frames.copy_(torch.where(ends, (steps - last_end).clamp(min=0), eos_frames))
    max_frames.copy_(torch.where(ends, torch.minimum(max_frames, steps + C + 1), max_frames))
    counted, at = counts[:, None], codes.long()[..., None]
    last_seen.scatter_(2, at, torch.where(counted[..., None], steps[:, None, None], last_seen.gather(2, at)))
    ids[:, :C] = torch.where(counted, codes, ids[:, :C])
    ids[:, C] = torch.where(counts, text_id, ids[:, C])
    place = torch.arange(len(codes), device=codes.device), (steps % frames.shape[1]).long()
    frames[place] = torch.where(counted, torch.cat([codes, eos_frames[:, None]], 1), frames[place])
    following = torch.where(steps + 1 < max_frames, positions + 1, SLOT_FREE)
    positions.copy_(torch.where(counts, following, torch.where(faulty, SLOT_NONFINITE, positions)))
    steps.add_(counts)


TORCH_OPS = replace(
    REFERENCE,
    decode_attention=decode_attention,
    prefill_attention=prefill_attention,
    moe_experts=moe_experts,
    sample_codes=sample_codes,
)
