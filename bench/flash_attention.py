"""`prefill_attention` by the flash-attn package: a baseline to compare the kernel with, in one table of operations.

    backbone.ops = dataclasses.replace(backbone.ops, prefill_attention=flash_attention.prefill_attention)

Norms, rotary embedding, cache and gate are plain PyTorch. The package's paged form wants pages of 256 positions; so the
keys and values of a batch are gathered first, for which the host reads how many there are.
"""

from types import ModuleType

import torch
from einops import rearrange
from torch import Tensor

from zonos2_triton.reference.attention import QK_EPS
from zonos2_triton.reference.norm import rms_norm
from zonos2_triton.reference.numeric import wide
from zonos2_triton.reference.rotary import rotary


def prefill_attention(
    qkvg: Tensor, temp: Tensor, table: Tensor, k_cache: Tensor, v_cache: Tensor, block_table: Tensor, starts: Tensor,
    cu_seqlens: Tensor, longest: int,
) -> Tensor:  # fmt: skip
    """Arguments, result and what becomes of the caches: as zonos2_triton.reference.attention.prefill_attention.

    ImportError: flash-attn is not installed. TypeError: it computes in neither fp16 nor bf16.
    """
    package = _package()
    if qkvg.dtype not in (torch.float16, torch.bfloat16):
        raise TypeError(f"flash_attention: qkvg must be torch.float16 or torch.bfloat16, got {qkvg.dtype}")
    heads, (kv_heads, head_dim) = len(temp), k_cache.shape[2:]
    widths = [heads * head_dim, kv_heads * head_dim, kv_heads * head_dim, heads]
    *qkv, gate = qkvg.split(widths, 1)
    q, k, v = (rearrange(part, "t (h d) -> t h d", d=head_dim) for part in qkv)

    rows = cu_seqlens[1:] - cu_seqlens[:-1]
    sequence, positions = _places(rows)
    positions += starts[sequence]
    at = _slots(block_table, sequence, positions, k_cache.shape[1])
    k_cache[at] = rotary(rms_norm(wide(k), None, QK_EPS), positions, table).to(k_cache.dtype)
    v_cache[at] = v
    q = rotary(rms_norm(wide(q), None, QK_EPS) * wide(temp)[:, None].abs(), positions, table).to(q.dtype)

    lengths = starts + rows
    seen = _slots(block_table, *_places(lengths), k_cache.shape[1])
    cu_keys = torch.cat([lengths.new_zeros(1), lengths.cumsum(0, dtype=torch.int32)])
    y = package.flash_attn_varlen_func(
        q, k_cache[seen], v_cache[seen], cu_seqlens, cu_keys, longest, int(lengths.max()),
        softmax_scale=head_dim**-0.5, causal=True,
    )  # fmt: skip
    return rearrange(wide(y) * torch.sigmoid(wide(gate))[..., None], "t h d -> t (h d)").to(qkvg.dtype)


def _package() -> ModuleType:
    try:
        import flash_attn
    except ImportError as error:
        raise ImportError(
            f"the flash-attn baseline needs the package flash-attn, which builds only where CUDA is: "
            f"pip install 'zonos2-triton[flash-attn]'; importing it failed: {error}"
        ) from error
    return flash_attn


def _places(lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Of packed rows: each one's sequence and its number in it."""
    sequence = torch.repeat_interleave(lengths)
    before = lengths.cumsum(0) - lengths
    return sequence, torch.arange(len(sequence), device=lengths.device) - before[sequence]


def _slots(block_table: Tensor, sequence: Tensor, positions: Tensor, page_size: int) -> tuple[Tensor, Tensor]:
    return block_table[sequence, positions // page_size].long(), positions % page_size
