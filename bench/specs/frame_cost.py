"""Least bytes and FLOPs of a decoded frame or a prompt: the kernels' own costs, summed over the layers of a model."""

from collections.abc import Callable, Mapping
from typing import Any

from zonos2_triton.bench.catalogue import KERNELS
from zonos2_triton.bench.specs.spec import active_experts
from zonos2_triton.kernels._operator import Cost
from zonos2_triton.reference.config import Zonos2Config


def frame_cost(config: Zonos2Config, sequences: int, context: int, itemsize: int = 2) -> Mapping[str, Cost]:
    """By operation, of one frame of so many sequences with `context` rows in the cache of each.

    Bytes are weights and cache: rows of activations go from launch to launch through the GPU's own cache. Every expert
    is taken to be equally likely for every row.
    """
    c, ks = config, [config.experts_per_token(i) for i in config.moe_layers]
    q_dim, kv_dim = c.heads * c.head_dim, c.kv_heads * c.head_dim

    def one(op: str, **sizes: Any) -> Cost:
        return _streamed(KERNELS[op].cost, sequences, itemsize=itemsize, **sizes)

    def experts(k: int, active: float, **more: Any) -> Cost:
        return one("moe_experts", D=c.dim, I=c.ffn_dim, active=active, k=k, **more)

    cached = {"B": sequences, "HQ": c.heads, "HKV": c.kv_heads, "DH": c.head_dim, "itemsize": itemsize}
    attention, rows = (KERNELS["decode_attention"].cost(context=n, **cached) for n in (context, -1))
    codes = {"B": sequences, "C": c.n_codebooks, "itemsize": itemsize}
    return {
        "frame_embedding": one("frame_embedding", D=c.dim, columns=c.n_codebooks + 1),
        "qkv_projection": _times(c.n_layers, one("qkv_projection", D=c.dim, NQ=q_dim, NKV=kv_dim, G=c.heads)),
        "decode_attention": _times(c.n_layers, Cost(attention.bytes - rows.bytes, attention.flops)),
        "output_projection": _times(c.n_layers, one("output_projection", K=q_dim, D=c.dim)),
        "moe_router": _sum([one("moe_router", D=c.dim, R=c.moe_router_dim, E=c.moe_n_experts, k=k) for k in ks]),
        "moe_experts": _sum([experts(k, active_experts(sequences, c.moe_n_experts, k)) for k in ks]),
        "moe_experts (dense)": _times(c.n_layers - len(ks), experts(1, 1, routed=False)),
        "codebook_head": one("codebook_head", D=c.dim, N=c.n_codebooks * c.codebook_vocab),
        "sample_codes": KERNELS["sample_codes"].cost(**codes, V=c.codebook_vocab),
    }


def prompt_cost(config: Zonos2Config, rows: int, itemsize: int = 2) -> Mapping[str, Cost]:
    """Likewise, of one prompt of so many rows up to its logits, which are those of the last row."""
    c, costs = config, dict(frame_cost(config, rows, 0, itemsize))
    for name in ("decode_attention", "sample_codes"):
        del costs[name]
    sizes = {"HQ": c.heads, "HKV": c.kv_heads, "DH": c.head_dim, "itemsize": itemsize}
    flops = KERNELS["prefill_attention"].cost(T=rows, context=0, B=1, **sizes).flops
    costs["prefill_attention"] = _times(c.n_layers, Cost(2 * rows * c.kv_heads * c.head_dim * itemsize, flops))
    return costs | {"codebook_head": frame_cost(config, 1, 0, itemsize)["codebook_head"]}


def total(costs: Mapping[str, Cost]) -> Cost:
    """The sum of all of them."""
    return _sum([*costs.values()])


def _streamed(cost: Callable[..., Cost], rows: int, **sizes: Any) -> Cost:
    """`cost` of so many rows, without the bytes of the rows themselves: the share that grows with their number."""
    here, more = (cost(M=m, **sizes) for m in (rows, rows + 1))
    return Cost(here.bytes - rows * (more.bytes - here.bytes), here.flops)


def _times(n: int, cost: Cost) -> Cost:
    return Cost(n * cost.bytes, n * cost.flops)


def _sum(costs: list[Cost]) -> Cost:
    return Cost(sum(cost.bytes for cost in costs), sum(cost.flops for cost in costs))
