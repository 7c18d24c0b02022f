"""Both attentions by the flash-attn package (version 2: `flash_attn_varlen_func`, `flash_attn_with_kvcache`).

    backbone.ops = dataclasses.replace(backbone.ops, prefill_attention=flash_attention.prefill_attention)

Its paged cache has pages of a multiple of 256 positions, this project's are smaller. So its own is a copy in such
pages, which an engine around it would have instead: the copy is not timed. The new rows are written into both, a row
of it being as nothing beside the cache that is read. Prompts that begin need no cache and use none. Rotary embedding
stays outside: its own takes cosines in half precision only, which costs more than rounding once.
"""

from types import ModuleType

import torch
from torch import Tensor

from zonos2_triton.bench.baselines import attention_adapter as adapter
from zonos2_triton.bench.baselines.attention_adapter import Call, Inputs, Twin

PAGE = 256


def prepare_decode(inputs: Inputs) -> Call:
    """The package writes its own cache in the launch that reads it."""
    package, rows = _package(), adapter.decode_rows(inputs)
    keys, values, pages = _large_pages(inputs, max(rows.lengths))
    more = {"cache_seqlens": inputs["positions"].int(), "block_table": pages, "softmax_scale": keys.shape[3] ** -0.5}

    def run() -> Tensor:
        q, k, v, gate = adapter.begin(inputs, rows)
        new = {"k": k[:, None], "v": v[:, None]}
        y = package.flash_attn_with_kvcache(q[:, None], keys, values, **new, **more, causal=True)
        return adapter.end(y[:, 0], gate)

    return run


def prepare_prefill(inputs: Inputs) -> Call:
    """Prompts packed one after the other, as they come."""
    package, rows = _package(), adapter.prefill_inputs(inputs)
    cu_seqlens, max_seqlen_q, scale = inputs["cu_seqlens"], inputs["max_seqlen_q"], inputs["k_cache"].shape[3] ** -0.5
    begins = not bool(inputs["cache_seqlens"].any())
    most = max(rows.lengths)
    lengths = torch.tensor([0, *rows.lengths], device=cu_seqlens.device)
    cu_keys = cu_seqlens if begins else lengths.cumsum(0).int()
    twin, more = None, {"softmax_scale": scale}
    if not begins:
        keys, values, pages = _large_pages(inputs, most)
        twin = Twin(keys, values, (pages.long()[rows.sequence, rows.positions // PAGE], rows.positions % PAGE))
        more["block_table"] = pages

    def run() -> Tensor:
        q, k, v, gate = adapter.begin(inputs, rows, twin)
        known = (k, v) if twin is None else twin[:2]
        y = package.flash_attn_varlen_func(q, *known, cu_seqlens, cu_keys, max_seqlen_q, most, causal=True, **more)
        return adapter.end(y, gate)

    return run


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
    """Arguments, result and what becomes of the caches: as zonos2_triton.reference.prefill_attention.prefill_attention.

    ImportError: flash-attn is not installed. It computes in fp16 and bf16.
    """
    return prepare_prefill(dict(locals()))()


def _package() -> ModuleType:
    try:
        import flash_attn
    except ImportError as error:
        raise ImportError(
            f"the flash-attn baseline needs the package flash-attn, which builds only where CUDA is: "
            f"pip install --no-build-isolation flash-attn; importing it failed: {error}"
        ) from error
    return flash_attn


def _large_pages(inputs: Inputs, positions: int) -> tuple[Tensor, Tensor, Tensor]:
    """Keys and values [pages, PAGE, HKV, DH], and the block table of those pages."""
    B, each = len(inputs["block_table"]), -(-positions // PAGE)
    keys, values = (
        adapter.unpaged(inputs[name], inputs["block_table"], each * PAGE).unflatten(1, (each, PAGE)).flatten(0, 1)
        for name in ("k_cache", "v_cache")
    )
    return keys, values, torch.arange(B * each, dtype=torch.int32, device=keys.device).view(B, each)
