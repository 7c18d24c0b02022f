"""What computes parts of sglang-omni's ZONOS2 in the place of its own functions, each of which comes as `original`.

A part that is not as expected, for example quantised, stays with `original`, and the log says so once.
"""

import importlib
import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zonos2_triton._settings import BACKEND, backend
from zonos2_triton.model.backend import resolve_backend
from zonos2_triton.model.integrations.accelerate import MARK, accelerate
from zonos2_triton.model.ops import SEQUENCES_AT_ONCE
from zonos2_triton.reference.attention import QK_EPS
from zonos2_triton.reference.ops import REFERENCE
from zonos2_triton.reference.sampling import LARGEST, NEVER_SEEN

LOG = logging.getLogger("zonos2_triton")
COLDEST = 1e-7  # the least that `sample_codes` takes; below it, only codes tied with the largest have a chance in fp32
EMPTY = 2.0  # a min_p that leaves no code, which makes a row one-hot at the first of its largest logits
# Of a mixture that its own kernel computes as ours does: the fields of its runner's settings.
PLAIN_EXPERTS = {
    "activation": "silu", "is_gated": True, "apply_router_weight_on_input": False, "no_combine": False,
    "routed_scaling_factor": None, "gemm1_alpha": None, "gemm1_clamp_limit": None, "swiglu_limit": None,
}  # fmt: skip


def attention(original: Callable[..., Tensor], module: Any, x: Tensor, positions: Tensor, forward_batch: Any) -> Tensor:
    """Zonos2Attention.forward: the four projections of x [T, D] as one product, and the one out of attention. The turn,
    the cache and attention itself stay the engine's, whichever backend of attention it uses."""
    rows = x.shape[0]
    if rows == 0 or not _runs("attention", x.device, x.dtype):
        return original(module, x, positions, forward_batch)
    many = rows > SEQUENCES_AT_ONCE
    heads, kv_heads, head_dim = module.nq, module.nkv, module.hd
    widths = heads * head_dim, kv_heads * head_dim, kv_heads * head_dim, heads
    project = _operation("qkv_projection", x.device, x.dtype)
    q, k, v, gate = project(x, None, module.wq, module.wkv, module.gater, 0.0, many).split(widths, 1)
    q = F.rms_norm(q.unflatten(1, (heads, head_dim)), (head_dim,), None, QK_EPS) * module.temp.abs().to(x.dtype)
    k = F.rms_norm(k.unflatten(1, (kv_heads, head_dim)), (head_dim,), None, QK_EPS)
    q, k = module.rotary(positions, q.flatten(1), k.flatten(1))
    y = module.attn(q, k, v.contiguous(), forward_batch).view(rows, heads, head_dim)
    y = (y * torch.sigmoid(gate)[..., None]).flatten(1)
    return _operation("output_projection", x.device, x.dtype)(y, module.wo, None, many)


def experts(
    original: Callable[..., tuple[Tensor, Tensor]], block: Any, x: Tensor, router_states: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Zonos2MoEBlock.forward: the router with its order of the rows, then the experts that it chose, x [T, D]."""
    if x.shape[0] == 0 or not _runs("experts", x.device, x.dtype):
        return original(block, x, router_states)
    if fault := _experts_fault(block, x):
        _log_once("experts", fault)
        return original(block, x, router_states)
    router, w13 = block.router, block.experts.w13_weight
    if block.experts.quant_method.w13_swiglu_interleaved:
        gate, up = w13[:, 0::2], w13[:, 1::2]
    else:
        gate, up = w13.chunk(2, 1)
    carried = router.use_eda and router_states is not None
    biases = router.balancing_biases if router.bias_sign > 0 else -router.balancing_biases
    _, weights, _, state, order, offsets = _operation("router", x.device, x.dtype)(
        x, None, router_states if carried else None, router.router_states_scale if carried else None,
        router.down_proj.weight, router.down_proj.bias, router.rmsnorm_eda,
        router.router_mlp_0.weight, router.router_mlp_0.bias, router.router_mlp_2.weight, router.router_mlp_2.bias,
        router.router_mlp_4.weight, biases, router.top_k, router.eps,
    )  # fmt: skip
    y = _operation("experts", x.device, x.dtype)(
        x, None, gate, up, block.experts.w2_weight, 0.0, order, offsets, weights, x.shape[0] > SEQUENCES_AT_ONCE,
        residual=False,
    )  # fmt: skip
    return y, state


def sample(
    original: Callable[..., Tensor], logits: Tensor, *, temperature: Tensor, top_k: Tensor, top_p: Tensor,
    min_p: Tensor, repetition_penalty: Tensor, top_k_max: int, rep_token_ids: Tensor | None = None,
    any_top_p: bool = True, any_min_p: bool = True,
) -> Tensor:  # fmt: skip
    """sample_tts: logits [B, C, V] and one number of each setting for a request [B] -> codes [B, C] int64.

    The same distribution, in one launch after its settings are laid out, and without waiting for the device. A
    request's key is drawn from the device's own generator, as the original's numbers are: torch.manual_seed still
    settles the codes, and a captured graph draws anew at each replay. A temperature of 0 or below is the first of the
    largest logits.

    Three things are otherwise. The last two codes, end and padding, are never penalised: the model's runner takes them
    out of rep_token_ids [B, C, W] itself. A row with NaN or +inf in it is padding. A min_p above 1 leaves the most
    probable code.
    """
    if not _runs("sampler", logits.device, torch.float32):
        return original(
            logits, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
            repetition_penalty=repetition_penalty, top_k_max=top_k_max, rep_token_ids=rep_token_ids,
            any_top_p=any_top_p, any_min_p=any_min_p,
        )  # fmt: skip
    B, C, V = logits.shape
    numbers = (temperature, top_k, top_p, min_p, repetition_penalty)
    temperature, top_k, top_p, min_p, penalty = (t.to(logits.device, torch.float32) for t in numbers)
    greedy, k_counts = temperature <= 0, (top_k > 0) & (top_k < V)
    off, every = torch.zeros_like(temperature), torch.full_like(temperature, V)
    seen = torch.full((B, C, V), NEVER_SEEN, dtype=torch.int32, device=logits.device)
    if rep_token_ids is not None:
        known = (rep_token_ids >= 0) & (rep_token_ids < V)
        seen.scatter_(2, torch.where(known, rep_token_ids, V - 1).long(), 0)  # padding, which is spared
    settings = torch.stack(
        (
            torch.where(greedy, 1.0, temperature).clamp(COLDEST, LARGEST),
            torch.where(k_counts, top_k.clamp(max=top_k_max), every) if top_k_max > 0 else every,
            torch.where(top_p < 1, top_p.clamp(min=0), off) if any_top_p else off,
            torch.where(greedy, EMPTY, min_p.clamp(min=0) if any_min_p else off),
            torch.ones_like(penalty),  # the window, of the one frame that holds whatever was seen
            penalty.clamp(min=1),
            torch.full_like(penalty, C),
            off,
        ),
        1,
    )
    seeds = torch.empty(B, dtype=torch.int64, device=logits.device).random_()
    steps = torch.zeros(B, dtype=torch.int32, device=logits.device)
    draw = _operation("sample_codes", logits.device, torch.float32)
    codes, _ = draw(logits.float().contiguous(), settings, seeds, steps, seen)
    return codes.long()


def get_dac(original: Callable[[str], Any], device: str) -> Any:
    """get_dac: the engine's codec, accelerated; what cannot be patched is in the log."""
    codec = original(device)
    if _runs("vocoder", torch.device(device), torch.float32):
        for left in accelerate(codec, strict=False).skipped:
            _log_once("vocoder", f"{left.op}: {left.reason}")
    return codec


def decode_batch(
    original: Callable[..., list[Tensor]], vocoder: Any, audio_codes_list: list[Tensor], eos_frames: list[int | None]
) -> list[Tensor]:
    """Zonos2DACVocoder.decode_batch, clip by clip: together, a shorter clip ends in the sound of its padding. A codec
    that stays the engine's decodes them its own way."""
    if len(audio_codes_list) != len(eos_frames) or MARK not in vars(vocoder.dac):
        return original(vocoder, audio_codes_list, eos_frames)  # which says so
    clips = zip(audio_codes_list, eos_frames, strict=True)
    return [clip for codes, end in clips for clip in original(vocoder, [codes], [end])]


def _experts_fault(block: Any, x: Tensor) -> str | None:
    """Why a mixture is none that our kernels compute; None: they do."""
    layer, router = block.experts, block.router
    if type(layer).__name__ != "FusedMoE":
        return f"its layer is a {type(layer).__name__}, not a FusedMoE"
    method, config = layer.quant_method, layer.moe_runner_config
    if type(method).__name__ != "UnquantizedFusedMoEMethod":
        return f"its weights are those of {type(method).__name__}; --tts_engine.factory.fp8 false keeps them in bf16"
    if (parts := layer.moe_tp_size * layer.moe_ep_size) != 1:
        return f"it is spread over {parts} devices"
    if not method.runner.runner_backend.is_triton() or method._aiter_runner is not None:
        return f"its runner is {method.runner.runner_backend}, which may keep the weights in an order of its own"
    if method.with_bias:
        return "its experts have biases"
    for name, usual in PLAIN_EXPERTS.items():
        if (found := getattr(config, name)) != usual:
            return f"its {name} is {found!r}, not {usual!r}"
    n, (_, width), hidden = router.router_mlp_4.out_features, x.shape, layer.w2_weight.shape[-1]
    for name, shape in ("w13_weight", (n, 2 * hidden, width)), ("w2_weight", (n, width, hidden)):
        weight = getattr(layer, name)
        if weight.shape != shape or weight.dtype != x.dtype or not weight.is_contiguous():
            return f"its {name} is {list(weight.shape)} of {weight.dtype}, not {list(shape)} of {x.dtype} without gaps"
    if router.balancing_biases.dtype != x.dtype:
        return f"its balancing_biases are {router.balancing_biases.dtype}, not {x.dtype}"
    return None


def _runs(part: str, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a part runs here. The reference does on a CPU alone, if it is named: elsewhere it would wait for the
    device, which a captured graph cannot."""
    if resolve_backend("auto", device, dtype) == "triton" or (device.type == "cpu" and backend() != "auto"):
        return True
    _log_once(
        part, f"no kernels run in {dtype} on {device.type} here, or {BACKEND} asks for others; on a CPU it names one"
    )
    return False


@cache
def _operation(name: str, device: torch.device, dtype: torch.dtype) -> Callable[..., Any]:
    """By the backend of "auto". Kernels make their counters themselves: the engine has several streams of launches."""
    if resolve_backend("auto", device, dtype) == "reference":
        return getattr(REFERENCE, name)
    return getattr(importlib.import_module(f"zonos2_triton.kernels.{name}"), name)


@cache
def _log_once(part: str, reason: str) -> None:
    LOG.warning("SGLang: %s stays with the engine: %s", part, reason)
