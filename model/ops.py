"""The tables of operations by backend."""

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch

from zonos2_triton.reference.ops import REFERENCE, VOCODER_OPERATORS, Ops, VocoderOps

if TYPE_CHECKING:
    from zonos2_triton.reference.config import Zonos2Config

MAX_BATCH_SIZE = 256  # sequences that decode together
MAX_PREFILL_TOKENS = 4096  # of one launch; longer prompts come in chunks
PAGE_SIZE = 64  # positions in a page of the KV cache
COUNTING = ("decode_attention", "moe_router", "moe_experts", "sample_codes")  # operators whose programs count arrivals


def ops_of(
    backend: str, config: "Zonos2Config", device: torch.device, dtype: torch.dtype, dispatched: bool = False
) -> Ops:
    """The table of "reference" or "triton". The kernels share counters, so one table launches one frame at a time.

    dispatched: the operators of torch.ops, which torch.compile can trace; otherwise plain functions, where kernels run.
    ValueError: sizes that the kernels do not support.
    """
    if backend == "reference":
        return REFERENCE
    from zonos2_triton.kernels._args import check_rows
    from zonos2_triton.kernels._operator import direct, interpreted
    from zonos2_triton.kernels.rotary import check_head_dim

    check_head_dim("backend 'triton'", config.head_dim)
    check_rows("backend 'triton'", dtype, dim=config.dim, ffn_dim=config.ffn_dim, moe_router_dim=config.moe_router_dim)
    most = max(MAX_BATCH_SIZE * config.kv_heads, MAX_PREFILL_TOKENS // 16 + 1, config.dim)
    counters = torch.zeros(most, dtype=torch.int32, device=device)
    ops = {field.name: kernel(field.name) for field in fields(Ops)}
    if not dispatched and (device.type != "cpu" or interpreted()):
        ops = {name: direct(op) for name, op in ops.items()}
    with_counters = {name: partial(ops[name], counters=counters) for name in COUNTING}
    return Ops(**(ops | with_counters))


def early_loads() -> AbstractContextManager[None]:
    """Inside, kernels load early (`kernels/_dependent_launch.py`), for launches in the order of the model alone."""
    launch_config = sys.modules.get("zonos2_triton.kernels._launch_config")  # which each kernel has imported
    return launch_config.early_loads() if launch_config else nullcontext()


def vocoder_ops(dtype: torch.dtype) -> VocoderOps:
    """The kernels of the vocoder. In fp32 no residual unit is one launch: its sums do not fit the registers."""
    from zonos2_triton.kernels.residual_unit import MAX_CHANNELS

    widest = 0 if dtype == torch.float32 else MAX_CHANNELS
    return VocoderOps._make([*map(kernel, VOCODER_OPERATORS), widest])


def kernel(name: str) -> Callable[..., Any]:
    """The operator of a kernel file. Imported here: Triton is heavy, and the reference does without it."""
    op: Callable[..., Any] = getattr(import_module(f"zonos2_triton.kernels.{name}"), name)
    return op
