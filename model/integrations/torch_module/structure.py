"""The module that is patched: its sizes, submodules and their parameters, and sample inputs."""

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
PREFIXES = ("multi_embedder.", "layers.", "out_norm.", "multi_output.")  # of the backbone's tensor names
OTHER_DTYPES = (".balancing_biases", ".temp")  # whose dtype may differ
RESHAPED = (".wkv.weight", ".w_in.weight", ".temp")  # [2, n, D] may be held as [2 n, D], [1, H, 1] as [H]
BOUNDS = {torch.float64: 1e-5, torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 3e-2}
UNUSED: dict[str, Any] = dict.fromkeys(  # settings that no patch reads
    ("speaker_enabled", "speaker_background_token_enabled", "accurate_mode_token_enabled"), False
) | {"quality_features": (), "quality_bucket_counts": (), "speaking_rate_num_buckets": 0, "speaker_embedding_dim": 1}
UNUSED |= {"norm_eps": 1e-5, "rope_theta": 1e4, "max_seqlen": 1, "loss_softcap": 0.0, "moe_router_topk": 1}
COMPARED = 8  # sample tokens that replacement and original both get


class Mismatched(ValueError):
    """An operation is not as expected."""


class Unsupported(ValueError):
    """This integration does not cover an operation."""


def weights_of(root: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The backbone's tensors by official name; those of OTHER_DTYPES come last."""
    parameters, buffers = (of(remove_duplicate=False) for of in (root.named_parameters, root.named_buffers))
    named = *parameters, *((name, tensor) for name, tensor in buffers if name.endswith(OTHER_DTYPES))
    found = [(name, tensor) for name, tensor in named if name.startswith(PREFIXES)]
    yield from sorted(found, key=lambda item: item[0].endswith(OTHER_DTYPES))


def config_of(root: nn.Module) -> Zonos2Config:
    """The sizes that follow from the shapes; the other settings are not used. ValueError: the sizes contradict."""
    shapes = {name: tensor.shape for name, tensor in weights_of(root)}

    def n_rows(name: str) -> int:
        if name not in shapes:
            raise ValueError(f"{NAME}: has no {name}, which the official checkpoint has")
        return shapes[name][:-1].numel()

    layers = len({name.split(".")[1] for name in shapes if name.startswith("layers.")})
    columns = sum(name.startswith("multi_embedder.embedders.") for name in shapes)
    dim, heads = shapes["multi_output.weight"][-1], n_rows("layers.0.attention.gater.weight")
    head_dim = n_rows("layers.0.attention.wq.weight") // heads
    routers = [f"layers.{i}.feed_forward.router" for i in range(layers)]
    mixtures = [i for i, router in enumerate(routers) if f"{router}.down_proj.weight" in shapes]
    router = routers[mixtures[0]] if mixtures else ""
    ends = ("feed_forward.w_out.weight", "feed_forward.experts.w2", "feed_forward.experts.experts.0.bias")  # [.., D, I]
    ffn_dim = next((shape[-1] for name, shape in shapes.items() if name.endswith(ends)), 0)
    table_rows = n_rows(FIRST_TABLE)
    try:
        return Zonos2Config(
            n_layers=layers,
            dim=dim,
            head_dim=head_dim,
            n_heads=heads,
            n_kv_heads=n_rows("layers.0.attention.wkv.weight") // 2 // head_dim,
            ffn_dim_multiplier=ffn_dim / dim,
            multiple_of=ffn_dim,
            n_codebooks=columns - 1,
            codebook_size=table_rows - 2,
            eoa_id=table_rows - 2,
            audio_pad_id=table_rows - 1,
            text_vocab=n_rows(f"multi_embedder.embedders.{columns - 1}.weight") - 1,
            moe_n_experts=n_rows(f"{router}.router_mlp.4.weight") if mixtures else 1,
            moe_router_dim=n_rows(f"{router}.down_proj.weight") if mixtures else 16,
            moe_start_from_layer=mixtures[0] if mixtures else 0,
            moe_end_from_layer=layers - 1 - mixtures[-1] if mixtures else 0,
            **UNUSED,
        )
    except ValueError as error:
        raise ValueError(f"{NAME}: its shapes are those of no ZONOS2: {error}") from error


@dataclass(frozen=True)
class Patch:
    """A new forward of a module, and its comparison with the original."""

    module: nn.Module
    forward: Callable[..., Any]
    check: Callable[[], tuple[object, object]]


@dataclass
class RoutingCache:
    """The last result of a router, sorted by expert, so that its experts need not sort it again."""

    last: tuple[Tensor, int, Tensor, Tensor] | None = None

    def store(self, ids: Tensor, sorted_slot_ids: Tensor, expert_offsets: Tensor) -> None:
        self.last = ids, writes_to(ids), sorted_slot_ids, expert_offsets

    def lookup(self, ids: Tensor, n_experts: int) -> tuple[Tensor, Tensor]:
        """sorted_slot_ids and expert_offsets of ids [..., k]."""
        if self.last is not None and ids is self.last[0] and writes_to(ids) == self.last[1]:
            return self.last[2:]
        return by_expert(ids.reshape(-1, ids.shape[-1]), n_experts)


@dataclass(frozen=True)
class TargetModel:
    """The module that is patched, and what its patches share."""

    root: nn.Module
    config: Zonos2Config
    ops: Ops
    like: Tensor  # empty, with its device and dtype
    routing_caches: dict[int, RoutingCache] = field(default_factory=lambda: defaultdict(RoutingCache))  # by layer
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """The weights by official name, while the patches are built."""
        return dict(weights_of(self.root))

    def release_weights(self) -> None:
        """Drop the references: the patches read the weights from the modules."""
        vars(self).pop("tensors", None)

    @cached_property
    def layout(self) -> dict[str, list[int]]:
        """The expected shapes by official name."""
        return layout(self.config)

    def check_shapes(self, *names: str) -> None:
        """Mismatched: a tensor is missing or has another shape."""
        for name in names:
            tensor, want = self.tensors.get(name), self.layout[name]
            if tensor is None:
                raise Mismatched(f"{name} {want} is missing")
            same = name.endswith(RESHAPED) and tensor.numel() == torch.Size(want).numel()
            if list(tensor.shape) != want and not same:
                raise Mismatched(f"{name} must have shape {want}, got {list(tensor.shape)}")
            self.check_alignment(name, tensor)

    def check_alignment(self, name: str, tensor: Tensor) -> None:
        """Mismatched: the kernels cannot read it in place. A mapped file, for example, aligns tensors as it likes."""
        if self.ops is not REFERENCE and (tensor.data_ptr() % 16 or not tensor.is_contiguous()):
            raise Mismatched(f"{name} must be contiguous and start at a multiple of 16 bytes for the kernels: clone it")

    def submodule(self, path: str) -> Any:
        return self.root.get_submodule(path)

    def module(self, path: str, *parameters: str, optional: tuple[str, ...] = ()) -> tuple[Any, list[str]]:
        """A module and the names of its forward's parameters: as many as `parameters`, then any of `optional`.

        Unsupported: it has no forward. Mismatched: it takes other parameters.
        """
        module = self.submodule(path)
        if getattr(module.forward, "__name__", "") == "_forward_unimplemented":
            raise Unsupported(f"{path} has no forward: another module computes with its weights")
        found = [*inspect.signature(module.forward).parameters.values()]
        names, n = [p.name for p in found], len(parameters)
        plain = all(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in found)
        if not plain or len(names) < n or not set(names[n:]) <= set(optional):
            raise Mismatched(f"{path}.forward takes ({', '.join(names)}), accepted is ({', '.join(parameters)})")
        return module, names

    def normal(self, n: int, width: int) -> Tensor:
        """Normal samples [n, width], with the device and dtype of the weights."""
        return torch.randn(n, width, generator=self.generator, dtype=torch.float32, device="cpu").to(self.like)

    def uniform(self, n: int, width: int) -> Tensor:
        """Uniform samples in 0..1 [n, width], fp32 on the CPU."""
        return torch.rand(n, width, generator=self.generator, dtype=torch.float32, device="cpu")

    def setting(self, module: nn.Module, *names: str) -> Any:
        """The value of one of the names in the module, the model or its configuration; None: there is none."""
        settings = [getattr(self.root, name, None) for name in ("config", "cfg", "args", "params")]
        for owner in (module, self.root, *settings):
            for name in names:
                value = owner.get(name) if isinstance(owner, Mapping) else getattr(owner, name, None)
                if value is not None:
                    return value
        return None

    def eps(self, path: str) -> float:
        module = self.submodule(path)
        if isinstance(module, nn.RMSNorm) and module.eps is None:
            return torch.finfo(self.like.dtype).eps
        eps = self.setting(module, "eps", "variance_epsilon", "norm_eps")
        if not isinstance(eps, float):
            raise Mismatched(f"{path} has no eps, variance_epsilon or norm_eps that is a float, got {eps!r}")
        return eps

    def one_expert(self, x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
        """Every token through the same expert."""
        tokens = flat(x, self.config.dim)
        y, *_ = self.ops.moe_experts(tokens, None, gate, up, down, 0.0, prefill=is_prefill(tokens), residual=False)
        return y.view(x.shape)

    def patch(self, path: str, module: nn.Module, forward: Callable[..., Any], *samples: Tensor | None) -> Patch:
        """Both get the samples, once. A router and experts must have taken them before."""

        def check() -> tuple[object, object]:
            with current(self.like.device), exact_numerics():
                try:
                    old = module.forward(*samples)
                except Exception as error:
                    shapes = [None if sample is None else list(sample.shape) for sample in samples]
                    raise ValueError(f"{NAME}: {path}.forward fails on samples of shape {shapes}: {error}") from error
                return forward(*samples), old

        return Patch(module, forward, check)


def call_with(path: str, forward: Callable[..., Any], *samples: Tensor | None) -> tuple[tuple[Tensor | None, ...], Any]:
    """Call forward with samples [n, ...] or, if it fails, [1, n, ...]; return the accepted samples and the result."""
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


def is_prefill(tokens: Tensor) -> bool:
    """Whether there are more tokens than a decode step has."""
    return len(tokens) > MAX_BATCH_SIZE
