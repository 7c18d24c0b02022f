"""The model of the official zonos2 engine, `Zonos2ForCausalLM`, whose layers are plain objects."""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from zonos2_triton.model.integrations.accelerate import Candidate, Integration, PatchSite
from zonos2_triton.model.integrations.patching import Call, Replacement
from zonos2_triton.model.integrations.zonos2_engine import layers
from zonos2_triton.model.integrations.zonos2_engine.attention import Backend
from zonos2_triton.model.integrations.zonos2_engine.layers import Shared
from zonos2_triton.model.integrations.zonos2_engine.structure import NAME, check_structure, rank_config
from zonos2_triton.model.ops import kernel, ops_of
from zonos2_triton.reference.ops import REFERENCE
from zonos2_triton.reference.rotary import rotary as reference_rotary

COMPONENTS = ("multi_embedder", "emb_norm", "layers", "out_norm", "multi_output", "compute_logits")
OPS = ("embedding", "norm", "rotary", "attention", "router", "experts", "dense", "head")
# Relative to the largest magnitude. Largest errors on a CPU at the real widths: fp32 5e-7, bf16 8e-3, fp16 1.3e-3. The
# bounds allow a GPU's approximations in fp32, and sums in another order in half precision.
BOUNDS = {torch.float64: 1e-4, torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 4e-3}
TOKENS = 3  # in a sample input
NO_MIXTURE = "the model has no mixture of experts"
Pair = tuple[object, object]  # results of the replacement and of the original


class Engine(Integration):
    """The official engine's model."""

    name = NAME
    package = "zonos2"
    versions = ("0.1", "0.2")
    ops = OPS

    def recognises(self, obj: object) -> bool:
        return not isinstance(obj, nn.Module | type) and all(hasattr(obj, name) for name in COMPONENTS)

    def check(self, obj: Any) -> Tensor | None:
        return check_structure(obj)

    def candidates(self, obj: Any, backend: str, ops: Collection[str]) -> list[Candidate]:
        model = EngineModel(obj, backend, ops)
        return [getattr(model, op)() for op in self.ops if op in ops]


class BuiltEngine(Engine):
    """The engine around a model. By then the CUDA graphs of the model are captured."""

    name = "zonos2 engine"

    def recognises(self, obj: object) -> bool:
        return hasattr(obj, "graph_runner") or hasattr(getattr(obj, "engine", None), "graph_runner")

    def check(self, obj: Any) -> Tensor | None:
        raise TypeError(
            f"accelerate: {type(obj).__qualname__} has captured its CUDA graphs already, and would go on replaying "
            "them; call accelerate(zonos2), with the imported package, before it is built"
        )


class EngineModel:
    """One model, with a method for each operation that returns its candidate."""

    def __init__(self, model: Any, backend: str, ops: Collection[str]) -> None:
        weight, config, blocks = model.out_norm.weight, rank_config(model), model.layers.op_list
        table = ops_of(backend, config, weight.device, weight.dtype)
        rotary = reference_rotary if backend == "reference" else kernel("rotary")
        self.shared = Shared(table, rotary, config, _core())
        self.model, self.layers, self.weight, self.ops = model, blocks, weight, ops
        self.mixtures = {i: blocks[i].feed_forward for i in config.moe_layers}
        self.dense_layers = {i: blocks[i].feed_forward for i in range(config.n_layers) if i not in self.mixtures}
        self.generator, self.bound = torch.Generator().manual_seed(0), BOUNDS[weight.dtype]
        self.routes = {i: layers.routing(self.shared, mixture.router) for i, mixture in self.mixtures.items()}
        routers = {i: mixture.router for i, mixture in self.mixtures.items()}
        self.routers = {i: _replacement(layers.routed(self.routes[i]), routers[i], "forward") for i in routers}

    def embedding(self) -> Candidate:
        owner = self.model.multi_embedder
        tables, forward, original = owner.embedders.op_list, layers.embedding(self.shared, owner), owner.forward

        def compare() -> Pair:
            ids = torch.stack([self._integers(table.num_embeddings) for table in tables], 1)
            return forward(ids), original(ids)

        return self._candidate("embedding", f"{len(tables)} tables", [(owner, "forward", forward)], self._both(compare))

    def norm(self) -> Candidate:
        fused = [self.model.emb_norm, self.model.out_norm]
        fused += [norm for layer in self.layers for norm in (layer.attention_norm, layer.ffn_norm)]
        forwards = [layers.fused_norm(self.shared, norm) for norm in fused]
        plain = layers.plain_norm(self.shared)
        states = [mixture.router.rmsnorm_eda for mixture in self.mixtures.values()]

        def compare() -> Pair:
            new, old = [], []
            for norm, forward in zip(fused, forwards, strict=True):
                x, residual = self._normal(norm._size), self._normal(norm._size)
                weight = norm.weight if norm.elementwise_affine else torch.ones_like(x[0])
                normed, total = x.clone(), residual.clone()
                norm.fused_add_rmsnorm(normed, total, weight, norm.eps)  # in place
                new += [*forward(x), *forward(x, residual)]
                old += [norm.rmsnorm(x, weight, norm.eps), x, normed, total]
            for norm in states:
                x = self._normal(len(norm.weight))
                new.append(plain(x, norm.weight, norm.eps))
                old.append(norm.rmsnorm(x, norm.weight, norm.eps))
            return new, old

        sites = [(norm, "forward", forward) for norm, forward in zip(fused, forwards, strict=True)]
        sites += [(norm, "rmsnorm", plain) for norm in states]
        return self._candidate("norm", f"{len(sites)} norms", sites, self._both(compare))

    def rotary(self) -> Candidate:
        attentions = [layer.attention.attn for layer in self.layers]
        shared = {id(attn.rotary): attn.rotary for attn in attentions}
        own = {key: layers.patched_rotary(self.shared, rotary) for key, rotary in shared.items()}

        def compare() -> Pair:
            new, old = [], []
            for key, rotary in shared.items():
                positions = self._integers(self.shared.config.max_seqlen)
                q, k = (self._normal(attentions[0].head_dim * heads) for heads in (4, 2))
                new += own[key].forward(positions, q, k, is_neox=False)
                old += rotary.forward(positions, q.clone(), k.clone(), is_neox=False)  # in place
            return new, old

        sites = [(attn, "rotary", own[id(attn.rotary)]) for attn in attentions]
        return self._candidate("rotary", f"{len(sites)} layers, for neox=False", sites, self._both(compare))

    def attention(self) -> Candidate:
        attentions = [layer.attention for layer in self.layers]
        forwards = [layers.attention(self.shared, attention) for attention in attentions]
        originals = [attention.forward for attention in attentions]

        def check() -> Pair:
            new, old = list[Tensor](), list[Tensor]()
            for forward, original in zip(forwards, originals, strict=True):
                prompt, frame = self._normal(self.shared.config.dim, 5), self._normal(self.shared.config.dim, 2)
                new += self._attended(forward, prompt, frame)
                old += self._attended(original, prompt, frame)
            return new, old

        sites = [(layer, "forward", forward) for layer, forward in zip(attentions, forwards, strict=True)]
        where = f"{len(attentions)} layers, where the attention backend is zonos2_triton"
        return self._candidate("attention", where, sites, check)

    def _attended(self, forward: Call, prompt: Tensor, frame: Tensor) -> list[Tensor]:
        """Outputs of two prompts of three and two tokens, and of one more token each, on a cache of their own."""
        config, device = self.shared.config, self.weight.device
        cache = self.weight.new_zeros(2, 8, 1, config.kv_heads, config.head_dim)
        kvcache = SimpleNamespace(k_cache=lambda layer: cache[0], v_cache=lambda layer: cache[1])
        pages = torch.tensor([[5, 2, 7, 0], [1, 6, 3, 4]], dtype=torch.int32, device=device)
        backend, found = Backend(REFERENCE, kvcache, pages), []
        for x, cached, lengths in ((prompt, (0, 0), (3, 2)), (frame, (3, 2), (1, 1))):
            reqs = [
                SimpleNamespace(table_idx=i, cached_len=c, extend_len=n, device_len=c + n)
                for i, (c, n) in enumerate(zip(cached, lengths, strict=True))
            ]
            batch = _batch(prefill=x is prompt, reqs=reqs)
            backend.prepare_metadata(batch)
            with _running(self.shared.core, batch, backend):
                found.append(forward(x))
        return found

    def router(self) -> Candidate:
        if not self.mixtures:
            return Candidate("router", "", unsupported=NO_MIXTURE)
        originals = {i: mixture.router.forward for i, mixture in self.mixtures.items()}

        def compare() -> Pair:
            new, old = list[Tensor](), list[Tensor]()
            for i, mixture in self.mixtures.items():
                x, state = self._normal(self.shared.config.dim), self._normal(self.shared.config.moe_router_dim)
                given = state if mixture.router.use_eda else None
                biases = layers.signed_biases(self.shared, mixture.router).float()
                for results, forward in ((new, self.routers[i]), (old, originals[i])):
                    weights, ids, following = forward(x, given)
                    # Of two experts with equal scores either may be selected, so the scores are compared.
                    results += [weights.float() + biases[ids.long()], following]
            return new, old

        sites = [(mixture.router, "forward", self.routers[i]) for i, mixture in self.mixtures.items()]
        for i, mixture in self.mixtures.items():
            given, dtype = mixture.router.balancing_biases, self.weight.dtype
            if not torch.equal(given.to(dtype).to(given.dtype), given):  # as in dummy weights
                name = f"layers.{i}.feed_forward.router.balancing_biases"
                reason = f"{name} are {given.dtype}, which {dtype} does not hold exactly"
                return Candidate("router", "", unsupported=reason)
        return self._candidate("router", _layers(self.mixtures), sites, self._both(compare))

    def experts(self) -> Candidate:
        if not self.mixtures:
            return Candidate("experts", "", unsupported=NO_MIXTURE)
        fused = [mixture.experts._fused_moe for mixture in self.mixtures.values()]
        forwards = [layers.experts(self.shared, layer) for layer in fused]
        originals = [layer.forward for layer in fused]

        def compare() -> Pair:
            new, old = [], []
            for layer, forward, original in zip(fused, forwards, originals, strict=True):
                x = self._normal(self.shared.config.dim)
                weights = self._uniform(layer.top_k).to(x.device)
                order = self._uniform(layer.num_experts).argsort(1)
                ids = order[:, : layer.top_k].int().to(x.device)
                new.append(forward(x, topk_weights=weights, topk_ids=ids))
                old.append(original(x.clone(), topk_weights=weights, topk_ids=ids))  # in place
            return new, old

        sites = [(layer, "forward", forward) for layer, forward in zip(fused, forwards, strict=True)]
        if "router" in self.ops:
            sites += [
                (mixture, "forward", layers.feed_forward(self.shared, mixture, self.routers[i], self.routes[i]))
                for i, mixture in self.mixtures.items()
            ]
        # The engine's own kernel rounds fp32 results to fp16.
        bound = max(self.bound, BOUNDS[torch.float16])
        return self._candidate("experts", _layers(self.mixtures), sites, self._both(compare), bound)

    def dense(self) -> Candidate:
        if not self.dense_layers:
            return Candidate("dense", "", unsupported="the model has no dense layers")
        forwards = {i: layers.dense(self.shared, layer) for i, layer in self.dense_layers.items()}
        originals = {i: layer.forward for i, layer in self.dense_layers.items()}

        def compare() -> Pair:
            x = self._normal(self.shared.config.dim)
            return [forward(x) for forward in forwards.values()], [original(x) for original in originals.values()]

        sites = [(layer, "forward", forwards[i]) for i, layer in self.dense_layers.items()]
        return self._candidate("dense", _layers(self.dense_layers), sites, self._both(compare))

    def head(self) -> Candidate:
        forward, original = layers.logits(self.shared, self.model), self.model.compute_logits

        def compare() -> Pair:
            x = self._normal(self.shared.config.dim)
            return forward(x), original(x).to(forward(x).dtype)

        return self._candidate("head", "fp32 logits", [(self.model, "compute_logits", forward)], self._both(compare))

    def _candidate(
        self, op: str, where: str, sites: Sequence[PatchSite], check: Callable[[], Pair], bound: float | None = None
    ) -> Candidate:
        """Wrap functions as Replacements of the attributes that they replace."""
        wrapped = list[PatchSite]()
        for owner, name, value in sites:
            new = callable(value) and not isinstance(value, Replacement)
            wrapped.append((owner, name, _replacement(value, owner, name) if new else value))
        return Candidate(op, where, wrapped, check, self.bound if bound is None else bound)

    def _both(self, compare: Callable[[], Pair]) -> Callable[[], Pair]:
        """The comparison in a prefill batch and in a decode batch."""

        def check() -> Pair:
            found = []
            for prefill in (True, False):
                with _running(self.shared.core, _batch(prefill), None):
                    found.append(compare())
            return [new for new, _ in found], [old for _, old in found]

        return check

    def _normal(self, width: int, tokens: int = TOKENS) -> Tensor:
        drawn = torch.randn(tokens, width, generator=self.generator, dtype=torch.float32, device="cpu")
        return drawn.to(self.weight)

    def _uniform(self, width: int) -> Tensor:
        return torch.rand(TOKENS, width, generator=self.generator, dtype=torch.float32, device="cpu")

    def _integers(self, end: int) -> Tensor:
        drawn = torch.randint(end, (TOKENS,), generator=self.generator, dtype=torch.int32, device="cpu")
        return drawn.to(self.weight.device)


def _replacement(function: Call, owner: Any, name: str) -> Replacement:
    return Replacement(function, getattr(owner, name), lambda: owner.state_dict().values())


def _layers(by_index: dict[int, Any]) -> str:
    found = sorted(by_index)
    contiguous = found == [*range(found[0], found[-1] + 1)]
    return f"layers {found[0]} to {found[-1]}" if contiguous else f"layers {', '.join(map(str, found))}"


def _batch(prefill: bool, reqs: Sequence[object] = ()) -> SimpleNamespace:
    """A batch with the attributes that the layers read."""
    size = len(reqs)
    sizes = {"reqs": reqs, "padded_reqs": reqs, "size": size, "padded_size": size}
    return SimpleNamespace(is_prefill=prefill, is_decode=not prefill, attn_metadata=None, **sizes)


@contextmanager
def _running(core: Any, batch: object, backend: object) -> Iterator[None]:
    """Make this batch the current one; the engine's own context is restored afterwards."""
    before = core._GLOBAL_CTX
    core._GLOBAL_CTX = SimpleNamespace(batch=batch, _batch=batch, attn_backend=backend, page_size=1)
    try:
        yield
    finally:
        core._GLOBAL_CTX = before


def _core() -> Any:
    """The module that holds the current batch. ValueError: it cannot be imported, or has no context."""
    try:
        core = import_module("zonos2.core")
    except ImportError as error:
        what = "zonos2.core, which holds the batch that runs"
        raise ValueError(f"{NAME}: {what}, cannot be imported: {error}") from error
    if not hasattr(core, "_GLOBAL_CTX"):
        raise ValueError(f"{NAME}: zonos2.core has no '_GLOBAL_CTX', which the official module has")
    return core


INTEGRATIONS: tuple[Integration, ...] = (Engine(), BuiltEngine())
