"""The package zonos2 itself: all models, samplers and codecs that this process will build of it.

Names are replaced in the modules that look them up. The import of these modules creates a context on the current GPU,
so a process with several GPUs sets the device first.
"""

import inspect
from collections.abc import Callable, Collection
from functools import partial, partialmethod
from importlib import import_module
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from zonos2_triton.model.integrations.accelerate import MARK, Candidate, Integration, PatchSite, accelerate
from zonos2_triton.model.integrations.patching import Replacement
from zonos2_triton.model.integrations.zonos2_engine.attention import BACKEND, creator
from zonos2_triton.model.integrations.zonos2_engine.offline import TTSSamplingParams
from zonos2_triton.model.integrations.zonos2_engine.sampler import Sampler

NAME = "zonos2"
# operation: module, name in it, required parameters
PATCH_POINTS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "attention": ("engine.engine", "create_attention_backend", ("backend", "config", "kvcache", "page_table")),
    "model": ("engine.engine", "GraphRunner", ("model",)),
    "sampler": ("engine.sample", "TTSSampler", ("device", "n_codebooks", "codebook_size", "text_vocab")),
    "vocoder": ("tokenizer.vocoder", "_get_dac", ()),
}
DESCRIPTIONS = {
    "attention": f"backend {BACKEND}, which auto means",
    "model": "of each engine, before its graphs are captured",
    "sampler": "of each scheduler",
    "vocoder": "the codec, when it is loaded",
}


class Package(Integration):
    """The imported package, a module."""

    name = NAME
    package = "zonos2"
    versions = ("0.1", "0.2")
    ops = tuple(PATCH_POINTS)

    def recognises(self, obj: object) -> bool:
        return isinstance(obj, ModuleType) and obj.__name__ == NAME

    def check(self, obj: Any) -> Tensor | None:
        return None

    def candidates(self, obj: Any, backend: str, ops: Collection[str]) -> list[Candidate]:
        return [_candidate(obj, backend, op) for op in self.ops if op in ops]


def _candidate(package: ModuleType, backend: str, op: str) -> Candidate:
    path, name, parameters = PATCH_POINTS[op]
    try:
        module = import_module(f"{NAME}.{path}")
        original = getattr(module, name)
        found = tuple(inspect.signature(original).parameters)
    except (ImportError, AttributeError) as error:
        return Candidate(op, "", mismatch=f"{NAME}.{path}.{name} cannot be had: {error}")
    if not {*parameters} <= {*found}:
        fault = f"{NAME}.{path}.{name} must take ({', '.join(parameters)}), got ({', '.join(found)})"
        return Candidate(op, "", mismatch=fault)
    where = f"{path}.{name}: {DESCRIPTIONS[op]}"
    if op == "attention":
        return Candidate(op, where, _attention(module, original, backend))
    if op == "model":
        return Candidate(op, where, [(module, name, _runner(package, original, backend))])
    if op == "vocoder":
        return Candidate(op, where, [(module, name, Replacement(_codec(package, original, backend), original))])
    sampler = type(name, (Sampler, original), {"__init__": partialmethod(Sampler.__init__, backend=backend)})
    return Candidate(op, where, [(module, name, sampler)], lambda: _greedy(sampler, module.sample_tts))


def _attention(module: ModuleType, original: Callable[..., Any], backend: str) -> list[PatchSite]:
    """Add the backend to the registry, and make it the meaning of "auto"."""
    registry = import_module(f"{NAME}.attention").SUPPORTED_ATTENTION_BACKENDS

    def create_attention_backend(backend: str, config: Any, kvcache: Any, page_table: Tensor) -> Any:
        return original(BACKEND if backend == "auto" else backend, config, kvcache, page_table)

    return [
        (registry, "_registry", registry._registry | {BACKEND: creator(backend)}),
        (module, original.__name__, Replacement(create_attention_backend, original)),
    ]


def _runner(package: ModuleType, original: type, backend: str) -> type:
    """A subclass of GraphRunner that accelerates the model before it captures the graphs."""
    parameters = inspect.signature(original)

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        _accelerate(package, parameters.bind(*args, **kwargs).arguments["model"], backend)
        original.__init__(self, *args, **kwargs)  # type: ignore[misc]

    return type(original.__name__, (original,), {"__init__": __init__, "__module__": original.__module__})


def _codec(package: ModuleType, original: Callable[[], Any], backend: str) -> Callable[[], Any]:
    """A loader of the codec that accelerates it the first time."""
    known = list[Any]()

    def _get_dac() -> Any:
        dac = original()
        if not any(dac is other for other in known):
            _accelerate(package, dac.eval(), backend)
            known.append(dac)
        return dac

    return _get_dac


def _accelerate(package: ModuleType, obj: Any, backend: str) -> None:
    """Accelerate with the arguments of the package."""
    _, strict, verify, _ = vars(package)[MARK].arguments
    accelerate(obj, strict=strict, verify=verify, backend=backend)


def _greedy(sampler: Callable[..., Any], sample_tts: Callable[..., Any]) -> tuple[Tensor, Tensor]:
    """The codes that top_k=1 leaves, by the new sampler and by the original.

    The history holds the codes that would be drawn without the penalty.
    """
    device, requests, codes = "cuda" if torch.cuda.is_available() else "cpu", 2, 1026
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(requests, 9, codes, generator=generator, dtype=torch.float32, device="cpu").to(device)
    best = logits[..., :-2].argmax(-1)  # the last two are no codes
    params = TTSSamplingParams(1.0, topk=1, min_p=0.0, repetition_window=1, repetition_penalty=8.0, seed=0)
    pool = torch.zeros(requests, 4, 10, dtype=torch.int32, device=device)
    pool[:, 2, :9] = best.int()
    reqs = [Request(params, i) for i in range(requests)]
    patched = sampler(torch.device(device), n_codebooks=9, codebook_size=codes - 2, text_vocab=0)
    new = patched.sample(logits, patched.prepare(SimpleNamespace(reqs=reqs), pool))
    seen = best[..., None].clone()
    seen[:, 8] = -1
    ones = torch.ones(requests, dtype=torch.float32, device=device)
    settings = ones, ones.int(), 0 * ones, 0 * ones, seen, params.repetition_penalty * ones
    old = sample_tts(logits, *settings, generators=[torch.Generator(device) for _ in reqs])
    codes_of = partial(torch.tensor, dtype=torch.int64, device="cpu")
    return codes_of(new), codes_of(old)


class Request:
    """A request with the attributes that the sampler reads; it has generated one frame, at position 2."""

    total_generated, device_len = 1, 3

    def __init__(self, sampling_params: object, table_idx: int) -> None:
        self.sampling_params, self.table_idx = sampling_params, table_idx


INTEGRATIONS: tuple[Integration, ...] = (Package(),)
