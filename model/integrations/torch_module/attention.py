"""Attention over the module's own cache. To the kernels each of its sequences is one page."""

import inspect
from collections.abc import Callable, Sequence
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from zonos2_triton.model.backend import current
from zonos2_triton.model.integrations.torch_module.structure import Mismatched, Patch, TargetModel, Unsupported, flat
from zonos2_triton.model.ops import MAX_BATCH_SIZE
from zonos2_triton.reference.numeric import exact_numerics
from zonos2_triton.reference.rotary import compute_cos_sin_cache

CACHE_LENGTH = 32  # positions in the cache of a sample
TABLE_STEP = 1024  # positions by which the rotary table grows


def attention(model: TargetModel) -> list[Patch]:
    step_tensors = _StepTensors(model)
    return [_one_attention(model, step_tensors, f"layers.{i}.attention") for i in range(model.config.n_layers)]


class _StepTensors:
    """Tensors that the layers of a step share: the block table, the lengths, and the rotary table."""

    def __init__(self, model: TargetModel) -> None:
        config, device = model.config, model.like.device
        theta = model.setting(model.submodule("layers.0.attention"), "rope_theta", "rope_base", "theta")

        def int32(values: Sequence[int]) -> Tensor:
            return torch.tensor(values, dtype=torch.int32, device=device)

        self.pages = lru_cache(8)(lambda B: int32(range(B))[:, None])
        self.cu_seqlens = lru_cache(8)(lambda B, T: int32(range(0, B * T + 1, T)))
        self.cache_seqlens = lru_cache(2)(lambda B, start: torch.full_like(self.pages(B)[:, 0], start))
        self._table = lru_cache(1)(lambda n: compute_cos_sin_cache(n, config.head_dim, float(theta or 1e4), model.like))

    def cos_sin_cache(self, positions: int) -> Tensor:
        return self._table(-(-positions // TABLE_STEP) * TABLE_STEP)


def _one_attention(model: TargetModel, step_tensors: _StepTensors, path: str) -> Patch:
    """forward(x [B, T, D], cache): the cache has key and value [B, L, HKV, DH] and length, a page per sequence."""
    config, ops = model.config, model.ops
    model.check_shapes(*(name for name in model.layout if name.startswith(f"{path}.")))
    try:
        module, names = model.module(path, "x", "cache", optional=("attention_backend", "backend"))
    except Mismatched as reason:
        raise Unsupported(f"{reason}: how it keeps its cache is not known here") from reason
    wq, wkv, gater, wo = (model.submodule(f"{path}.{name}") for name in ("wq", "wkv", "gater", "wo"))
    original = module.forward

    def forward(x: Tensor, cache: Any, *rest: Any) -> Tensor:
        (B, T, _), start, capacity = x.shape, cache.length, cache.key.shape[1]
        if start + T > capacity or (start > 0 and T > 1):  # the original decides what happens then
            return original(x, cache, *rest)
        tokens, prefill = flat(x, config.dim), T > 1 or B > MAX_BATCH_SIZE
        kv = wkv.weight.view(2, -1, config.dim)
        qkvg = ops.qkv_projection(tokens, None, wq.weight, kv, gater.weight, 0.0, prefill)
        qk_temperature = module.temp.flatten().to(x.dtype)
        pages = cache.key, cache.value, step_tensors.pages(B), step_tensors.cache_seqlens(B, start)
        cos_sin_cache = step_tensors.cos_sin_cache(capacity)
        if prefill:
            y = ops.prefill_attention(qkvg, qk_temperature, cos_sin_cache, *pages, step_tensors.cu_seqlens(B, T), T)
        else:
            y = ops.decode_attention(qkvg, qk_temperature, cos_sin_cache, *pages)
        cache.length = start + T
        return ops.output_projection(y, wo.weight, None, prefill)[0].view(x.shape)

    samples = [model.normal(2 * n, config.dim).view(2, n, config.dim) for n in (5, 1, 1)]
    parameters = inspect.signature(original).parameters
    rest = ["sdpa" for name in names[2:] if parameters[name].default is inspect.Parameter.empty]

    def run(function: Callable[..., Tensor]) -> object:
        """Outputs of a prompt and two more tokens, the cache and its length."""
        key, value = model.like.new_zeros(2, 2, CACHE_LENGTH, config.kv_heads, config.head_dim)
        cache = SimpleNamespace(key=key, value=value, length=0)
        return [*(function(x, cache, *rest) for x in samples), cache.key, cache.value, cache.length]

    try:
        run(original)
    except Exception as error:
        raise Unsupported(
            f"{path}.forward does not take a cache with key, value [B, L, HKV, DH] and length: {error!r}"
        ) from error

    def check() -> tuple[object, object]:
        with current(model.like.device), exact_numerics():
            return run(forward), run(original)

    return Patch(module, forward, check)
