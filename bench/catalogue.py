"""Every kernel, once: its operation, reference, cost, workloads, and what a compiler must make of it.

Tests, benches, the compile gate and the README's table iterate over KERNELS; one that is not here does not exist.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.library import CustomOpDef  # type: ignore[attr-defined]

from zonos2_triton.bench.compile_gate import Expectations, Expected
from zonos2_triton.kernels import (
    add_rms_norm,
    decode_attention,
    experts,
    frame_embedding,
    head,
    output_projection,
    prefill_attention,
    qkv_projection,
    rotary,
    router,
)
from zonos2_triton.kernels._common import Cost
from zonos2_triton.reference import attention, embedding, norm, projection
from zonos2_triton.reference import experts as reference_experts
from zonos2_triton.reference import head as reference_head
from zonos2_triton.reference import rotary as reference_rotary
from zonos2_triton.reference import router as reference_router

Sizes = dict[str, Any]

# The 8B model's sizes.
D, HQ, HKV, DH, I, E, R, C, V, P, TEXT = 2048, 16, 4, 128, 3072, 16, 128, 9, 1026, 6144, 520
EPS = 1e-5


@dataclass(frozen=True)
class Workload:
    """Arguments of `Kernel.make` and, by the same names, of `cost`."""

    name: str
    sizes: Sizes
    real: bool = True  # at the 8B model's shapes; the others are small and say in their name which edge they meet


@dataclass(frozen=True)
class Kernel:
    """One operation."""

    name: str
    op: CustomOpDef
    reference: Callable[..., Any]
    cost: Callable[..., Cost]
    make: Callable[..., dict[str, Any]]  # make(device, dtype, seed=0, **sizes) -> keyword arguments of op and reference
    workloads: tuple[Workload, ...]
    expects: Expectations
    replaces: str  # in words, for the README
    mutates: tuple[str, ...] = field(default=())  # arguments that a call changes

    def cost_of(self, workload: Workload, itemsize: int) -> Cost:
        """`cost` at the workload's sizes."""
        names = inspect.signature(self.cost).parameters.keys() & workload.sizes.keys()
        return self.cost(**{name: workload.sizes[name] for name in names}, itemsize=itemsize)


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
        if self.device.type == "cuda" and torch.cuda.is_available() and torch.Size(shape).numel() > 1 << 22:
            seed = int(torch.randint(1 << 30, (1,), generator=self.generator))
            generator = torch.Generator(self.device).manual_seed(seed)
            return torch.randn(shape, generator=generator, device=self.device, dtype=dtype).mul_(scale)
        return (torch.randn(shape, generator=self.generator) * scale).to(self.device, dtype)

    def weight(self, *shape: int) -> Tensor:
        """Of a linear map: keeps the size of what it is applied to."""
        return self.randn(*shape, scale=shape[-1] ** -0.5)

    def gain(self, n: int) -> Tensor:
        """Of a norm."""
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


def _frame_embedding(
    device: str, dtype: torch.dtype, M: int, D: int, columns: int, V: int, text: int, voices: int = 0, seed: int = 0
) -> dict[str, Any]:
    new = Inputs(device, dtype, seed)
    ids = torch.cat([new.randint(0, V, M, columns - 1), new.randint(0, text, M, 1)], 1)
    voiced: dict[str, Any] = {"speakers": None, "speaker_index": None}
    if voices:
        index = [row % (voices + 1) - 1 for row in range(M)]
        voiced = {"speakers": new.randn(voices, D), "speaker_index": new.int32(index)}
    return {"ids": ids, "table": new.randn((columns - 1) * V + text, D), "codebook_vocab": V, "eps": EPS, **voiced}


def _add_rms_norm(
    device: str, dtype: torch.dtype, M: int, D: int, residual: bool = True, seed: int = 0
) -> dict[str, Any]:
    new = Inputs(device, dtype, seed)
    return {
        "x": new.randn(M, D),
        "residual": new.randn(M, D) if residual else None,
        "weight": new.gain(D),
        "eps": EPS,
    }  # fmt: skip


def _rotary(device: str, dtype: torch.dtype, M: int, H: int, DH: int, P: int, seed: int = 0) -> dict[str, Any]:
    new = Inputs(device, dtype, seed)
    positions = new.randint(0, P, M)
    positions.narrow(0, M - 1, 1).fill_(P - 1)
    table = reference_rotary.rotary_table(P, DH, 1e4, new.randn(1))
    return {"x": new.randn(M, H, DH), "positions": positions, "table": table}


def _qkv_projection(
    device: str, dtype: torch.dtype, M: int, D: int, NQ: int, NKV: int, G: int, prefill: bool = False, seed: int = 0
) -> dict[str, Any]:
    new = Inputs(device, dtype, seed)
    return {
        "x": new.randn(M, D),
        "norm_weight": new.gain(D),
        "wq": new.weight(NQ, D),
        "wkv": new.weight(2, NKV, D),
        "gater": new.weight(G, D),
        "eps": EPS,
        "prefill": prefill,
    }


def _output_projection(
    device: str, dtype: torch.dtype, M: int, K: int, D: int, prefill: bool = False, seed: int = 0
) -> dict[str, Any]:
    new = Inputs(device, dtype, seed)
    return {"y": new.randn(M, K), "weight": new.weight(D, K), "residual": new.randn(M, D), "prefill": prefill}


def _attention(new: Inputs, rows: int, B: int, context: int, HQ: int, HKV: int, DH: int, page_size: int) -> Sizes:
    """What both attentions take; room for `context` positions a sequence."""
    each = -(-context // page_size)
    cache = B * each, page_size, HKV, DH
    return {
        "qkvg": new.randn(rows, (HQ + 2 * HKV) * DH + HQ),
        "temp": 1 + 0.2 * new.randn(HQ),
        "table": reference_rotary.rotary_table(each * page_size, DH, 1e4, new.randn(1)),
        "k_cache": new.randn(*cache),
        "v_cache": new.randn(*cache),
        "block_table": new.pages(B, each),
    }


def _decode_attention(
    device: str, dtype: torch.dtype, B: int, context: int, HQ: int, HKV: int, DH: int, page_size: int = 64,
    contexts: tuple[int, ...] = (), seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """contexts: positions in each sequence's cache, where they are not all `context`, which is then the largest."""
    new = Inputs(device, dtype, seed)
    numbers = [contexts[b % len(contexts)] for b in range(B)] if contexts else [context] * B
    return {**_attention(new, B, B, context + 1, HQ, HKV, DH, page_size), "positions": new.int32(numbers)}


def _prefill_attention(
    device: str, dtype: torch.dtype, T: int, context: int, B: int, HQ: int, HKV: int, DH: int, page_size: int = 64,
    rows: tuple[int, ...] = (), contexts: tuple[int, ...] = (), seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """rows and contexts: new and cached positions of each sequence, where they are not T / B and `context`."""
    new = Inputs(device, dtype, seed)
    rows, contexts = rows or (T // B,) * B, contexts or (context,) * B
    cuts = [sum(rows[:b]) for b in range(B + 1)]
    most = max(row + start for row, start in zip(rows, contexts, strict=True))
    return {
        **_attention(new, T, B, most, HQ, HKV, DH, page_size),
        "starts": new.int32(list(contexts)),
        "cu_seqlens": new.int32(cuts),
        "longest": max(rows),
    }


def _router(
    device: str, dtype: torch.dtype, M: int, D: int, R: int, E: int, k: int, carry: bool = True, seed: int = 0
) -> dict[str, Any]:
    new = Inputs(device, dtype, seed)
    return {
        "x": new.randn(M, D),
        "norm_weight": new.gain(D),
        "state": new.randn(M, R) if carry else None,
        "scale": new.gain(R) if carry else None,
        "down_weight": new.weight(R, D),
        "down_bias": 0.1 * new.randn(R),
        "state_norm": new.gain(R),
        "w1": 2 * new.weight(R, R),
        "b1": 0.1 * new.randn(R),
        "w2": 2 * new.weight(R, R),
        "b2": 0.1 * new.randn(R),
        "w3": 3 * new.weight(E, R),
        "biases": 0.1 * new.randn(E),
        "k": k,
        "eps": EPS,
    }


def _experts(
    device: str, dtype: torch.dtype, M: int, D: int, I: int, E: int, k: int, active: float = 0, prefill: bool = False,
    routed: bool = True, skew: bool = False, seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """skew as in `Inputs.choices`; `active` is for `cost`."""
    new = Inputs(device, dtype, seed)
    w13 = new.weight(E, 2 * I, D)
    gate, up = (w13[:, 0::2], w13[:, 1::2]) if routed else (w13[:, I:], w13[:, :I])
    chosen: dict[str, Any] = {}
    if routed:
        order, offsets = reference_router.by_expert(new.choices(M, k, E, skew), E)
        weights = new.randn(M, k, dtype=torch.float32).sigmoid()
        chosen = {"order": order, "offsets": offsets, "expert_weights": weights}
    norm_weight, down = new.gain(D), new.weight(E, D, I)
    return {
        "x": new.randn(M, D), "norm_weight": norm_weight, "gate": gate, "up": up, "down": down, "eps": EPS, **chosen,
        "prefill": prefill,
    }  # fmt: skip


def _head(
    device: str, dtype: torch.dtype, M: int, D: int, N: int, codebooks: int, prefill: bool = False,
    softcap: float = 15.0, normed: bool = False, seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    new = Inputs(device, dtype, seed)
    return {
        "x": new.randn(M, D), "norm_weight": None if normed else new.gain(D), "weight": 4 * new.weight(N, D),
        "n_codebooks": codebooks, "eps": EPS, "softcap": softcap, "prefill": prefill,
    }  # fmt: skip


def _real(sizes: Sizes, **by_name: Sizes) -> list[Workload]:
    return [Workload(name.replace("_", "-"), {**sizes, **more}) for name, more in by_name.items()]


def _edges(sizes: Sizes, **by_name: Sizes) -> list[Workload]:
    return [Workload(name.replace("_", "-"), {**sizes, **more}, real=False) for name, more in by_name.items()]


def distinct(rows: int, experts: int, k: int) -> float:
    """How many experts so many rows touch, on average, when all are equally likely."""
    return experts * (1 - (1 - k / experts) ** rows)


_BATCHES = {f"decode_B{B}": {"M": B} for B in (1, 4, 16, 17, 64, 256)}
_PREFILLS: Sizes = {f"prefill_{T}": {"M": T, "prefill": True} for T in (32, 128, 2048)}
_MIXTURE = {"D": D, "I": I, "E": E}
_HEADS = {"HQ": HQ, "HKV": HKV, "DH": DH}
_SMALL_HEADS = {"HQ": 4, "HKV": 2, "DH": 16, "page_size": 8}
_SMALL_QKV = {"D": 48, "NQ": 64, "NKV": 32, "G": 4}
_SMALL_EXPERTS = {"D": 48, "I": 40, "E": 4}


def _kernel(
    module: Any, reference: Callable[..., Any], make: Callable[..., dict[str, Any]], workloads: list[Workload],
    expects: Mapping[str, Expected], replaces: str, mutates: tuple[str, ...] = (),
) -> Kernel:  # fmt: skip
    name = module.__name__.rsplit(".", 1)[1]
    op = getattr(module, name)
    return Kernel(name, op, reference, module.cost, make, tuple(workloads), expects, replaces, mutates)


_ALL = [
    _kernel(
        frame_embedding,
        embedding.frame_embedding,
        _frame_embedding,
        _real({"D": D, "columns": C + 1, "V": V, "text": TEXT}, decode_B1={"M": 1}, decode_B64={"M": 64},
              prefill_2048={"M": 2048, "voices": 2})
        + _edges({"D": 48, "columns": 10, "V": 11, "text": 7}, tiny={"M": 3}, one_row={"M": 1},
                 speakers={"M": 5, "voices": 2}, wide_D={"M": 2, "D": 264}),
        {"_frame_embedding_kernel": Expected(max_instructions=1200, stream16=True, max_narrow=24)},
        "ten gathers, their sum, the speaker's row, the norm",
    ),
    _kernel(
        add_rms_norm,
        norm.add_rms_norm,
        _add_rms_norm,
        _real({"D": D}, decode_B1={"M": 1}, decode_B64={"M": 64}, prefill_2048={"M": 2048})
        + _edges({"D": 48}, tiny={"M": 3}, one_row={"M": 1}, no_residual={"M": 4, "residual": False},
                 wide_D={"M": 2, "D": 264}),
        {"_add_rms_norm_kernel": Expected(max_instructions=600, stream16=True)},
        "residual add, norm",
    ),
    _kernel(
        rotary,
        reference_rotary.rotary,
        _rotary,
        _real({"H": HQ + HKV, "DH": DH, "P": P}, decode_B1={"M": 1}, decode_B64={"M": 64}, prefill_2048={"M": 2048})
        + _edges({"H": 3, "DH": 16, "P": 40}, tiny={"M": 5}, one_row={"M": 1}, one_head={"M": 3, "H": 1}),
        {"_rotary_kernel": Expected(max_instructions=900)},
        "rotary embedding, by itself",
    ),
    _kernel(
        qkv_projection,
        projection.qkv_projection,
        _qkv_projection,
        _real({"D": D, "NQ": HQ * DH, "NKV": HKV * DH, "G": HQ}, **_BATCHES, **_PREFILLS)
        + _edges(_SMALL_QKV, tiny={"M": 3}, one_row={"M": 1}, two_tiles={"M": 33}, even_K={"M": 2, "D": 64},
                 narrow={"M": 5, "NQ": 16, "NKV": 16, "G": 1}, prefill={"M": 33, "prefill": True},
                 prefill_row={"M": 1, "prefill": True}),
        {"_qkv_projection_kernel": Expected(invariant=True, max_instructions=6000, matrix=True, stream16=True, max_narrow=80),
         "_add_rms_norm_kernel": Expected(max_instructions=600, stream16=True)},
        "attention norm; query, key, value and gate projections",
    ),
    _kernel(
        decode_attention,
        attention.decode_attention,
        _decode_attention,
        _real(_HEADS, decode_B1_first={"B": 1, "context": 0}, decode_B1={"B": 1, "context": 1000},
              decode_B1_full={"B": 1, "context": P - 1}, decode_B16={"B": 16, "context": 1000},
              decode_B64={"B": 64, "context": 1000}, decode_B256={"B": 256, "context": 1000})
        + _edges(_SMALL_HEADS, tiny={"B": 2, "context": 20, "contexts": (20, 3)},
                 first={"B": 1, "context": 0},
                 split_edges={"B": 5, "context": 33, "contexts": (15, 16, 17, 31, 33)},
                 joins={"B": 2, "context": 150, "contexts": (150, 127)},
                 contiguous={"B": 2, "context": 19, "page_size": 20}, page_of_one={"B": 1, "context": 18, "page_size": 1},
                 one_group={"B": 1, "context": 18, "HQ": 2}, all_heads={"B": 1, "context": 9, "HQ": 20, "HKV": 1}),
        {"_decode_attention_kernel": Expected(max_instructions=4000, matrix=True, stream16=True, max_narrow=160)},
        "head norms, temperature, rotary, cache write, attention, head gate",
        ("k_cache", "v_cache"),
    ),
    _kernel(
        prefill_attention,
        attention.prefill_attention,
        _prefill_attention,
        _real(_HEADS, prefill_32={"B": 1, "T": 32, "context": 0}, prefill_2048={"B": 1, "T": 2048, "context": 0},
              prefill_8_of_128={"B": 8, "T": 1024, "context": 0}, chunk_512_after_1024={"B": 1, "T": 512, "context": 1024})
        + _edges(_SMALL_HEADS, tiny={"B": 1, "T": 20, "context": 0},
                 packed={"B": 3, "T": 40, "context": 0, "rows": (17, 1, 22), "contexts": (0, 5, 16)},
                 one_row={"B": 1, "T": 1, "context": 7}, block_edge={"B": 2, "T": 32, "context": 16},
                 contiguous={"B": 1, "T": 18, "context": 3, "page_size": 21}, page_of_one={"B": 1, "T": 18, "context": 0, "page_size": 1},
                 odd_group={"B": 1, "T": 13, "context": 4, "HQ": 6}),
        {"_prefill_attention_kernel": Expected(max_instructions=9000, matrix=True, warpgroup=True),
         "_write_cache_kernel": Expected(max_instructions=1500)},
        "the same, causal, for packed sequences",
        ("k_cache", "v_cache"),
    ),
    _kernel(
        output_projection,
        projection.output_projection,
        _output_projection,
        _real({"K": HQ * DH, "D": D}, **_BATCHES, **_PREFILLS)
        + _edges({"K": 64, "D": 48}, tiny={"M": 3}, one_row={"M": 1}, two_tiles={"M": 33}, odd_K={"M": 2, "K": 40},
                 prefill={"M": 33, "prefill": True}, prefill_row={"M": 1, "prefill": True}),
        {"_output_projection_kernel": Expected(invariant=True, max_instructions=5000, matrix=True, stream16=True, max_narrow=40)},
        "output projection, residual add",
    ),
    _kernel(
        router,
        reference_router.router,
        _router,
        _real({"D": D, "R": R, "E": E, "k": 1}, decode_B1={"M": 1}, decode_B16={"M": 16}, decode_B64={"M": 64},
              decode_B256={"M": 256}, decode_top2={"M": 16, "k": 2}, first_layer={"M": 1, "carry": False},
              prefill_2048={"M": 2048})
        + _edges({"D": 48, "R": 24, "E": 4, "k": 1}, tiny={"M": 3}, one_row={"M": 1}, two_tiles={"M": 17, "k": 2},
                 first_layer_tiny={"M": 2, "carry": False}, all_experts={"M": 2, "k": 4}, many_experts={"M": 5, "E": 20, "k": 2},
                 sorted_in_parts={"M": 70, "k": 2}),
        {"_router_kernel": Expected(invariant=True, max_instructions=12000, matrix=True, stream16=True, max_narrow=400)},
        "router: down-projection, carried state, norm, 3 layers, softmax, choice, rows by expert",
    ),
    _kernel(
        experts,
        reference_experts.experts,
        _experts,
        _real({**_MIXTURE, "k": 1}, **{
                  f"decode_B{B}": {"M": B, "active": distinct(B, E, 1)} for B in (1, 4, 16, 64, 256)},
              decode_top2={"M": 1, "k": 2, "active": 2}, decode_B64_top2={"M": 64, "k": 2, "active": distinct(64, E, 2)},
              prefill_128={"M": 128, "active": E, "prefill": True}, prefill_2048={"M": 2048, "active": E, "prefill": True},
              prefill_top2={"M": 2048, "k": 2, "active": E, "prefill": True},
              dense_B1={"M": 1, "E": 1, "active": 1, "routed": False}, dense_B64={"M": 64, "E": 1, "active": 1, "routed": False},
              dense_prefill_2048={"M": 2048, "E": 1, "active": 1, "routed": False, "prefill": True})
        + _edges({**_SMALL_EXPERTS, "k": 1}, tiny={"M": 3, "active": 3}, one_row={"M": 1, "active": 1},
                 top2={"M": 5, "k": 2, "active": 4}, skewed={"M": 35, "k": 2, "active": 4, "skew": True},
                 empty_experts={"M": 2, "E": 6, "active": 2}, even_K={"M": 3, "D": 64, "I": 64, "active": 3},
                 dense={"M": 5, "E": 1, "active": 1, "routed": False}, dense_two_tiles={"M": 33, "E": 1, "active": 1, "routed": False},
                 prefill={"M": 40, "k": 2, "active": 4, "prefill": True},
                 dense_prefill={"M": 33, "E": 1, "active": 1, "routed": False, "prefill": True}),
        {"_experts_up_kernel": Expected(invariant=True, max_instructions=9000, matrix=True, stream16=True, max_narrow=80),
         # Narrow ones: the slots, once for each layout that needs them.
         "_experts_down_kernel": Expected(invariant=True, max_instructions=6000, matrix=True, stream16=True, max_narrow=160),
         "_add_rms_norm_kernel": Expected(max_instructions=600, stream16=True)},
        "feed-forward norm, SwiGLU of each row's experts, weights, residual add",
    ),
    _kernel(
        head,
        reference_head.head,
        _head,
        _real({"D": D, "N": C * V, "codebooks": C}, **_BATCHES, prefill_128={"M": 128, "prefill": True},
              prefill_normed={"M": 128, "prefill": True, "normed": True})
        + _edges({"D": 48, "N": 27, "codebooks": 3}, tiny={"M": 3}, one_row={"M": 1}, two_tiles={"M": 33}, no_cap={"M": 2, "softcap": 0.0},
                 normed={"M": 3, "normed": True}, prefill={"M": 33, "prefill": True}, wide={"M": 2, "N": 1026, "codebooks": 1}),
        {"_head_kernel": Expected(invariant=True, max_instructions=6000, matrix=True, stream16=True, max_narrow=80),
         "_add_rms_norm_kernel": Expected(max_instructions=600, stream16=True)},
        "output norm, 9 x 1026 logits, soft-cap",
    ),
]  # fmt: skip

KERNELS: Mapping[str, Kernel] = {kernel.name: kernel for kernel in _ALL}
