"""Replacements of sglang-omni's ZONOS2 functions. Each gets the engine's own function as `original`.

A component that is not as expected, for example quantised, runs `original`. The log says so once.
"""

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
from zonos2_triton.model.ops import MAX_BATCH_SIZE, kernel
from zonos2_triton.reference.attention import QK_EPS
from zonos2_triton.reference.ops import REFERENCE
from zonos2_triton.reference.sampling import LARGEST, NEVER_SEEN

LOG = logging.getLogger("zonos2_triton")
# The least temperature of `sample_codes`. Below it only codes tied with the largest have a chance in fp32.
MIN_TEMPERATURE = 1e-7
GREEDY_MIN_P = 2.0  # leaves no code, so that the draw is the first of the largest logits
SUPPORTED_RUNNER_CONFIG = {  # of a FusedMoE layer: the values that `moe_experts` computes
    **{"activation": "silu", "is_gated": True, "apply_router_weight_on_input": False, "no_combine": False},
    **dict.fromkeys(("routed_scaling_factor", "gemm1_alpha", "gemm1_clamp_limit", "swiglu_limit")),
}


def attention(original: Callable[..., Tensor], module: Any, x: Tensor, positions: Tensor, forward_batch: Any) -> Tensor:
    """Zonos2Attention.forward: one product for the four input projections of x [T, D], and the output projection.

    Rotary embedding, cache and attention stay with the engine and its attention backend.
    """
    n_tokens = x.shape[0]
    if n_tokens == 0 or not _runs("attention", x.device, x.dtype):
        return original(module, x, positions, forward_batch)
    prefill = n_tokens > MAX_BATCH_SIZE
    heads, kv_heads, head_dim = module.nq, module.nkv, module.hd
    widths = heads * head_dim, kv_heads * head_dim, kv_heads * head_dim, heads
    project = _operation("qkv_projection", x.device, x.dtype)
    q, k, v, gate = project(x, None, module.wq, module.wkv, module.gater, 0.0, prefill).split(widths, 1)
    q = F.rms_norm(q.unflatten(1, (heads, head_dim)), (head_dim,), None, QK_EPS) * module.temp.abs().to(x.dtype)
    k = F.rms_norm(k.unflatten(1, (kv_heads, head_dim)), (head_dim,), None, QK_EPS)
    q, k = module.rotary(positions, q.flatten(1), k.flatten(1))
    y = module.attn(q, k, v.contiguous(), forward_batch).view(n_tokens, heads, head_dim)
    y = (y * torch.sigmoid(gate)[..., None]).flatten(1)
    x, *_ = _operation("output_projection", x.device, x.dtype)(y, module.wo, None, prefill)
    return x


def experts(
    original: Callable[..., tuple[Tensor, Tensor]], block: Any, x: Tensor, router_states: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Zonos2MoEBlock.forward: the router with its sort by expert, then the chosen experts of x [T, D]."""
    if x.shape[0] == 0 or not _runs("experts", x.device, x.dtype):
        return original(block, x, router_states)
    if reason := _unsupported_experts(block, x):
        _log_once("experts", reason)
        return original(block, x, router_states)
    router, w13 = block.router, block.experts.w13_weight
    if block.experts.quant_method.w13_swiglu_interleaved:
        gate, up = w13[:, 0::2], w13[:, 1::2]
    else:
        gate, up = w13.chunk(2, 1)
    carried = router.use_eda and router_states is not None
    state, scale = (router_states, router.router_states_scale) if carried else (None, None)
    down, first, second, third = router.down_proj, router.router_mlp_0, router.router_mlp_2, router.router_mlp_4
    mlp = first.weight, first.bias, second.weight, second.bias, third.weight
    biases = router.balancing_biases if router.bias_sign > 0 else -router.balancing_biases
    network = down.weight, down.bias, router.rmsnorm_eda, *mlp, biases
    route, compute = (_operation(name, x.device, x.dtype) for name in ("moe_router", "moe_experts"))
    _, weights, _, state, *order = route(x, None, state, scale, *network, router.top_k, router.eps)
    prefill = x.shape[0] > MAX_BATCH_SIZE
    y, *_ = compute(x, None, gate, up, block.experts.w2_weight, 0.0, *order, weights, prefill, residual=False)
    return y, state


def sample(original: Callable[..., Tensor], logits: Tensor, **settings: Any) -> Tensor:
    """sample_tts: logits [B, C, V] and settings of each request [B] -> codes [B, C] int64.

    The distribution is the same. The draw is one launch after the settings are packed, and never waits for the device.
    A request's key comes from the device's generator, as the original's random numbers do: torch.manual_seed determines
    the codes, and each replay of a captured graph draws new ones. A temperature of 0 or below takes the first of the
    largest logits.

    Three differences. The last two codes, end and padding, are never penalised; the model's runner removes them from
    rep_token_ids [B, C, W] anyway. Logits with NaN or +inf give padding. A min_p above 1 leaves the most probable code.
    """
    run = _draw if _runs("sampler", logits.device, torch.float32) else original
    return run(logits, **settings)


def _draw(
    logits: Tensor,
    *,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    repetition_penalty: Tensor,
    top_k_max: int,
    rep_token_ids: Tensor | None = None,
    any_top_p: bool = True,
    any_min_p: bool = True,
) -> Tensor:
    B, C, V = logits.shape
    scalars = (temperature, top_k, top_p, min_p, repetition_penalty)
    temperature, top_k, top_p, min_p, penalty = (t.to(logits.device, torch.float32) for t in scalars)
    greedy, k_counts = temperature <= 0, (top_k > 0) & (top_k < V)
    off, all_codes = torch.zeros_like(temperature), torch.full_like(temperature, V)
    seen = torch.full((B, C, V), NEVER_SEEN, dtype=torch.int32, device=logits.device)
    if rep_token_ids is not None:
        known = (rep_token_ids >= 0) & (rep_token_ids < V)
        seen.scatter_(2, torch.where(known, rep_token_ids, V - 1).long(), 0)  # padding, which has no penalty
    columns = (
        torch.where(greedy, 1.0, temperature).clamp(MIN_TEMPERATURE, LARGEST),
        torch.where(k_counts, top_k.clamp(max=top_k_max), all_codes) if top_k_max > 0 else all_codes,
        torch.where(top_p < 1, top_p.clamp(min=0), off) if any_top_p else off,
        torch.where(greedy, GREEDY_MIN_P, min_p.clamp(min=0) if any_min_p else off),
        torch.ones_like(penalty),  # the window: one frame, in which all seen codes lie
        penalty.clamp(min=1),
        torch.full_like(penalty, C),
        off,
    )
    settings = torch.stack(columns, 1)
    seeds = torch.empty(B, dtype=torch.int64, device=logits.device).random_()
    steps = torch.zeros(B, dtype=torch.int32, device=logits.device)
    draw = _operation("sample_codes", logits.device, torch.float32)
    codes, _ = draw(logits.float().contiguous(), settings, seeds, steps, seen)
    return codes.long()


def get_dac(original: Callable[[str], Any], device: str) -> Any:
    """get_dac: the engine's codec, accelerated. The log has the operations that cannot be patched."""
    codec = original(device)
    if _runs("vocoder", torch.device(device), torch.float32):
        for skipped in accelerate(codec, strict=False).skipped:
            _log_once("vocoder", f"{skipped.op}: {skipped.reason}")
    return codec


def decode_batch(
    original: Callable[..., list[Tensor]], vocoder: Any, audio_codes_list: list[Tensor], eos_frames: list[int | None]
) -> list[Tensor]:
    """Zonos2DACVocoder.decode_batch, clip by clip: in one batch a shorter clip ends in the sound of its padding.

    A codec that was not accelerated decodes the batch as before.
    """
    if len(audio_codes_list) != len(eos_frames) or MARK not in vars(vocoder.dac):
        return original(vocoder, audio_codes_list, eos_frames)  # raises, if the lengths differ
    clips = zip(audio_codes_list, eos_frames, strict=True)
    return [clip for codes, end in clips for clip in original(vocoder, [codes], [end])]


def _unsupported_experts(block: Any, x: Tensor) -> str | None:
    """Why the kernels do not compute this mixture of experts; None: they do."""
    layer, router = block.experts, block.router
    if type(layer).__name__ != "FusedMoE":
        return f"its layer is a {type(layer).__name__}, not a FusedMoE"
    method, config = layer.quant_method, layer.moe_runner_config
    if type(method).__name__ != "UnquantizedFusedMoEMethod":
        return f"its weights are those of {type(method).__name__}; --tts_engine.factory.fp8 false keeps them in bf16"
    if (ranks := layer.moe_tp_size * layer.moe_ep_size) != 1:
        return f"it is spread over {ranks} devices"
    if not method.runner.runner_backend.is_triton() or method._aiter_runner is not None:
        return f"its runner is {method.runner.runner_backend}, which may keep the weights in an order of its own"
    if method.with_bias:
        return "its experts have biases"
    for name, supported in SUPPORTED_RUNNER_CONFIG.items():
        if (found := getattr(config, name)) != supported:
            return f"its {name} is {found!r}, not {supported!r}"
    n, (_, width), hidden = router.router_mlp_4.out_features, x.shape, layer.w2_weight.shape[-1]
    for name, shape in ("w13_weight", (n, 2 * hidden, width)), ("w2_weight", (n, width, hidden)):
        weight = getattr(layer, name)
        if weight.shape != shape or weight.dtype != x.dtype or not weight.is_contiguous():
            return f"its {name} is {list(weight.shape)} of {weight.dtype}, not {list(shape)} of {x.dtype} without gaps"
    if router.balancing_biases.dtype != x.dtype:
        return f"its balancing_biases are {router.balancing_biases.dtype}, not {x.dtype}"
    return None


def _runs(component: str, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a component is replaced here. The reference runs on a CPU alone, where ZONOS2_TRITON_BACKEND names it:
    on a GPU it would wait for the device, which a captured graph cannot."""
    if resolve_backend("auto", device, dtype) == "triton" or (device.type == "cpu" and backend() != "auto"):
        return True
    reason = f"no kernels run in {dtype} on {device.type} here, or {BACKEND} asks for others; on a CPU it names one"
    _log_once(component, reason)
    return False


@cache
def _operation(name: str, device: torch.device, dtype: torch.dtype) -> Callable[..., Any]:
    """The operator of the backend "auto". It allocates its counters: the engine launches on several CUDA streams."""
    if resolve_backend("auto", device, dtype) == "reference":
        return getattr(REFERENCE, name)
    return kernel(name)


@cache
def _log_once(component: str, reason: str) -> None:
    LOG.warning("SGLang: %s stays with the engine: %s", component, reason)
