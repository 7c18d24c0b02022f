"""A port as its operations see it: its sizes, its parts, what they take, and samples to ask them with."""

import inspect
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from zonos2_triton.model.backend import current
from zonos2_triton.model.integrations.patching import writes_to
from zonos2_triton.model.ops import MAX_BATCH_SIZE
from zonos2_triton.reference.config import Zonos2Config
from zonos2_triton.reference.moe_router import by_expert
from zonos2_triton.reference.network import layout
from zonos2_triton.reference.numeric import exact_numerics
from zonos2_triton.reference.ops import REFERENCE, Ops

NAME = "torch_module"
FIRST_TABLE = "multi_embedder.embedders.0.weight"
LANDMARKS = {FIRST_TABLE, "layers.0.attention.wq.weight", "multi_output.weight"}
TOPS = ("multi_embedder.", "layers.", "out_norm.", "multi_output.")  # where the weights of the backbone lie
OTHER_TYPES = (".balancing_biases", ".temp")  # which some keep in a type of their own
RESHAPED = (".wkv.weight", ".w_in.weight", ".temp")  # [2, n, D] may be held as [2 n, D], [1, H, 1] as [H]
BOUNDS = {torch.float64: 1e-5, torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 3e-2}
COMPARED = 8  # sample rows that ours and the original both get


class Mismatched(ValueError):
    """An operation that is not as expected."""


class Unsupported(ValueError):
    """An operation that this integration does not cover."""


def weights_of(root: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The backbone's tensors by official name, those whose type tells nothing last."""
    parameters, buffers = (of(remove_duplicate=False) for of in (root.named_parameters, root.named_buffers))
    named = *parameters, *((name, tensor) for name, tensor in buffers if name.endswith(OTHER_TYPES))
    found = [(name, tensor) for name, tensor in named if name.startswith(TOPS)]
    yield from sorted(found, key=lambda item: item[0].endswith(OTHER_TYPES))


def config_of(root: nn.Module) -> Zonos2Config:
    """The sizes that the shapes tell; nothing here goes by the rest. ValueError: they contradict each other."""
    shapes = {name: tensor.shape for name, tensor in weights_of(root)}

    def rows(name: str) -> int:
        if name not in shapes:
            raise ValueError(f"{NAME}: has no {name}, which the official checkpoint has")
        return shapes[name][:-1].numel()

    layers = len({name.split(".")[1] for name in shapes if name.startswith("layers.")})
    columns = sum(name.startswith("multi_embedder.embedders.") for name in shapes)
    dim, heads = shapes["multi_output.weight"][-1], rows("layers.0.attention.gater.weight")
    head_dim = rows("layers.0.attention.wq.weight") // heads
    routers = [f"layers.{i}.feed_forward.router" for i in range(layers)]
    mixtures = [i for i, router in enumerate(routers) if f"{router}.down_proj.weight" in shapes]
    router = routers[mixtures[0]] if mixtures else ""
    ends = ("feed_forward.w_out.weight", "feed_forward.experts.w2", "feed_forward.experts.experts.0.bias")  # [.., D, I]
    ffn_dim = next((shape[-1] for name, shape in shapes.items() if name.endswith(ends)), 0)
    first_rows = rows(FIRST_TABLE)
    try:
        return Zonos2Config(
            n_layers=layers, dim=dim, head_dim=head_dim, n_heads=heads,
            n_kv_heads=rows("layers.0.attention.wkv.weight") // 2 // head_dim,
            ffn_dim_multiplier=ffn_dim / dim, multiple_of=ffn_dim, norm_eps=1e-5, rope_theta=1e4, max_seqlen=1,
            n_codebooks=columns - 1, codebook_size=first_rows - 2, eoa_id=first_rows - 2, audio_pad_id=first_rows - 1,
            text_vocab=rows(f"multi_embedder.embedders.{columns - 1}.weight") - 1, loss_softcap=0.0,
            speaker_enabled=False, speaker_embedding_dim=1, speaker_background_token_enabled=False,
            accurate_mode_token_enabled=False, speaking_rate_num_buckets=0, quality_features=(),
            quality_bucket_counts=(), moe_router_topk=1,
            moe_n_experts=rows(f"{router}.router_mlp.4.weight") if mixtures else 1,
            moe_router_dim=rows(f"{router}.down_proj.weight") if mixtures else 16,
            moe_start_from_layer=mixtures[0] if mixtures else 0,
            moe_end_from_layer=layers - 1 - mixtures[-1] if mixtures else 0,
        )  # fmt: skip
    except ValueError as error:
        raise ValueError(f"{NAME}: its shapes are those of no ZONOS2: {error}") from error


@dataclass(frozen=True)
class Patch:
    """One forward, ours beside the original, and the comparison of both."""

    module: nn.Module
    ours: Callable[..., Any]
    check: Callable[[], tuple[object, object]]


@dataclass
class RoutingCache:
    """The last choice of a router, sorted by expert: its experts need not sort it again."""

    last: tuple[Tensor, int, Tensor, Tensor] | None = None

    def keep(self, ids: Tensor, sorted_slot_ids: Tensor, expert_offsets: Tensor) -> None:
        self.last = ids, writes_to(ids), sorted_slot_ids, expert_offsets

    def of(self, ids: Tensor, n_experts: int) -> tuple[Tensor, Tensor]:
        """sorted_slot_ids and expert_offsets of ids [.., k]."""
        if self.last is not None and ids is self.last[0] and writes_to(ids) == self.last[1]:
            return self.last[2:]
        return by_expert(ids.reshape(-1, ids.shape[-1]), n_experts)


@dataclass(frozen=True)
class TargetModel:
    """A port, and what its operations become."""

    root: nn.Module
    config: Zonos2Config
    ops: Ops
    like: Tensor  # empty, of its device and dtype
    routing_cache: dict[int, RoutingCache] = field(default_factory=lambda: defaultdict(RoutingCache))  # by layer
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """The weights by official name, while the operations are made."""
        return dict(weights_of(self.root))

    def let_go(self) -> None:
        """Of the weights: what was made reads them where they then lie."""
        vars(self).pop("tensors", None)

    @cached_property
    def layout(self) -> dict[str, list[int]]:
        """The shapes that they should have."""
        return layout(self.config)

    def need(self, *names: str) -> None:
        """Mismatched: a tensor is missing or misshapen."""
        for name in names:
            tensor, want = self.tensors.get(name), self.layout[name]
            if tensor is None:
                raise Mismatched(f"{name} {want} is missing")
            same = name.endswith(RESHAPED) and tensor.numel() == torch.Size(want).numel()
            if list(tensor.shape) != want and not same:
                raise Mismatched(f"{name} must have shape {want}, got {list(tensor.shape)}")
            self.readable(name, tensor)

    def readable(self, name: str, tensor: Tensor) -> None:
        """Mismatched: kernels cannot read it where it lies, as in a mapped file, which aligns tensors as it likes."""
        if self.ops is not REFERENCE and (tensor.data_ptr() % 16 or not tensor.is_contiguous()):
            raise Mismatched(f"{name} must be contiguous and start at a multiple of 16 bytes for the kernels: clone it")

    def part(self, path: str) -> Any:
        return self.root.get_submodule(path)

    def module(self, path: str, *parameters: str, optional: tuple[str, ...] = ()) -> tuple[Any, list[str]]:
        """A module and the names of what its forward takes: as many as `parameters`, and of `optional` what it likes.

        Unsupported: it has no forward; Mismatched: it takes something else.
        """
        module = self.part(path)
        if getattr(module.forward, "__name__", "") == "_forward_unimplemented":
            raise Unsupported(f"{path} has no forward: whoever holds its weights computes with them")
        found = [*inspect.signature(module.forward).parameters.values()]
        names, n = [p.name for p in found], len(parameters)
        plain = all(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in found)
        if not plain or len(names) < n or not set(names[n:]) <= set(optional):
            raise Mismatched(f"{path}.forward takes ({', '.join(names)}), accepted is ({', '.join(parameters)})")
        return module, names

    def rows(self, n: int, width: int) -> Tensor:
        """Sample rows [n, width]."""
        return torch.randn(n, width, generator=self.generator, dtype=torch.float32, device="cpu").to(self.like)

    def uniform(self, n: int, width: int) -> Tensor:
        """Numbers in 0..1 [n, width], fp32 on the CPU."""
        return torch.rand(n, width, generator=self.generator, dtype=torch.float32, device="cpu")

    def said(self, module: nn.Module, *names: str) -> Any:
        """What the module, the model or its configuration has under one of the names; None: nothing."""
        settings = [getattr(self.root, name, None) for name in ("config", "cfg", "args", "params")]
        for owner in (module, self.root, *settings):
            for name in names:
                value = owner.get(name) if isinstance(owner, Mapping) else getattr(owner, name, None)
                if value is not None:
                    return value
        return None

    def eps(self, path: str) -> float:
        """That of a norm."""
        module = self.part(path)
        if isinstance(module, nn.RMSNorm) and module.eps is None:
            return torch.finfo(self.like.dtype).eps
        eps = self.said(module, "eps", "variance_epsilon", "norm_eps")
        if not isinstance(eps, float):
            raise Mismatched(f"{path} has no eps, variance_epsilon or norm_eps that is a float, got {eps!r}")
        return eps

    def patch(self, path: str, module: nn.Module, ours: Callable[..., Any], *samples: Tensor | None) -> Patch:
        """Both get the samples, once; a router and experts need to have been asked with them before."""

        def check() -> tuple[object, object]:
            with current(self.like.device), exact_numerics():
                try:
                    old = module.forward(*samples)
                except Exception as error:
                    shapes = [None if sample is None else list(sample.shape) for sample in samples]
                    raise ValueError(f"{NAME}: {path}.forward fails on samples of shape {shapes}: {error}") from error
                return ours(*samples), old

        return Patch(module, ours, check)


def accepted(path: str, forward: Callable[..., Any], *samples: Tensor | None) -> tuple[tuple[Tensor | None, ...], Any]:
    """The samples [n, ...] as forward takes them, if need be as a batch [1, n, ...], and what it makes of them."""
    batch = tuple(None if sample is None else sample[None] for sample in samples)
    failure: Exception | None = None
    for taken in (samples, batch):
        try:
            return taken, forward(*taken)
        except Exception as error:
            failure = failure or error
    raise Mismatched(f"{path}.forward fails on samples: {failure}")


def flat(x: Tensor, width: int) -> Tensor:
    return x.reshape(-1, width).contiguous()


def many(rows: Tensor) -> bool:
    """Whether there are more rows than decode together."""
    return len(rows) > MAX_BATCH_SIZE


def swiglu(model: TargetModel, x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """Every row through the one expert."""
    rows = flat(x, model.config.dim)
    return model.ops.moe_experts(rows, None, gate, up, down, 0.0, prefill=many(rows), residual=False).view(x.shape)
