"""The package zonos2 itself: everything that this process will build of it.

Names are replaced where the engine looks them up. Importing its modules makes a context on the current GPU: whoever has
several sets the device first.
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
from zonos2_triton.model.integrations.zonos2_engine.sampler import Sampler

NAME = "zonos2"
# Of each operation: the module and the name where it is looked up, and parameters that this must have.
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


class Package:
    """The imported package, as a module."""

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
    """The registry with one entry more, and what the engine calls, for which "auto" is that one."""
    registry = import_module(f"{NAME}.attention").SUPPORTED_ATTENTION_BACKENDS

    def create_attention_backend(backend: str, config: Any, kvcache: Any, page_table: Tensor) -> Any:
        return original(BACKEND if backend == "auto" else backend, config, kvcache, page_table)

    return [
        (registry, "_registry", registry._registry | {BACKEND: creator(backend)}),
        (module, original.__name__, Replacement(create_attention_backend, original)),
    ]


def _runner(package: ModuleType, original: type, backend: str) -> type:
    """The class that captures a model's graphs, which accelerates it before."""
    parameters = inspect.signature(original)

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        _accelerate(package, parameters.bind(*args, **kwargs).arguments["model"], backend)
        original.__init__(self, *args, **kwargs)  # type: ignore[misc]

    return type(original.__name__, (original,), {"__init__": __init__, "__module__": original.__module__})


def _codec(package: ModuleType, original: Callable[[], Any], backend: str) -> Callable[[], Any]:
    """What loads the codec, and accelerates it the first time."""
    known = list[Any]()

    def _get_dac() -> Any:
        dac = original()
        if not any(dac is other for other in known):
            _accelerate(package, dac.eval(), backend)
            known.append(dac)
        return dac

    return _get_dac


def _accelerate(package: ModuleType, obj: Any, backend: str) -> None:
    """As the package was asked to be."""
    _, strict, verify, _ = vars(package)[MARK].arguments
    accelerate(obj, strict=strict, verify=verify, backend=backend)


def _greedy(sampler: Callable[..., Any], sample_tts: Callable[..., Any]) -> tuple[Tensor, Tensor]:
    """The one code that top_k=1 leaves, by ours and by the original. In the history lie the codes that would be drawn
    without a penalty."""
    device, requests, codes = "cuda" if torch.cuda.is_available() else "cpu", 2, 1026
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(requests, 9, codes, generator=generator, dtype=torch.float32, device="cpu").to(device)
    best = logits[..., :-2].argmax(-1)  # the last two are no codes
    params = SimpleNamespace(
        temperature=1.0, topk=1, top_p=0.0, min_p=0.0, repetition_window=1, repetition_penalty=8.0,
        repetition_codebooks=8, seed=0,
    )  # fmt: skip
    pool = torch.zeros(requests, 4, 10, dtype=torch.int32, device=device)
    pool[:, 2, :9] = best.int()
    reqs = [Request(params, row) for row in range(requests)]
    ours = sampler(torch.device(device), n_codebooks=9, codebook_size=codes - 2, text_vocab=0)
    new = ours.sample(logits, ours.prepare(SimpleNamespace(reqs=reqs), pool))
    seen = best[..., None].clone()
    seen[:, 8] = -1
    ones = torch.ones(requests, dtype=torch.float32, device=device)
    old = sample_tts(
        logits, ones, ones.int(), 0 * ones, 0 * ones, seen, params.repetition_penalty * ones,
        generators=[torch.Generator(device) for _ in reqs],
    )  # fmt: skip
    numbers = partial(torch.tensor, dtype=torch.int64, device="cpu")
    return numbers(new), numbers(old)


class Request:
    """What the sampler looks at of a request: one that has generated a frame, at position 2."""

    total_generated, device_len = 1, 3

    def __init__(self, sampling_params: object, table_idx: int) -> None:
        self.sampling_params, self.table_idx = sampling_params, table_idx


INTEGRATIONS: tuple[Integration, ...] = (Package(),)
