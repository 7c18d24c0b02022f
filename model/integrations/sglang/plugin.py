"""A plugin of SGLang (entry point group sglang.srt.plugins): components of sglang-omni's ZONOS2 on these kernels.

ZONOS2_TRITON_SGLANG names the components; without it nothing happens. `sglang serve` loads SGLang's plugins in its own
process, but sglang-omni 0.1.9 does not load them in the processes that run its stages. So the plugin hooks the start of
those processes. Each then hooks the components of its stages before it builds them.

Only SGLang's HookRegistry changes the engine. All functions that are hooked or relied on are checked first: they must
have the parameters that the plugin was written for.
"""

import importlib
import inspect
import logging
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from zonos2_triton._settings import SGLANG, SGLANG_COMPONENTS, disabled, sglang_components
from zonos2_triton.model.integrations.sglang import components

LOG = logging.getLogger("zonos2_triton")
VERSION = "0.1.9"  # of sglang-omni
WRITTEN_FOR = f"sglang-omni {VERSION} with sglang 0.5.22"
ZONOS2 = "sglang_omni.models.zonos2"
WORKERS = "sglang_omni.pipeline.stage_workers"
REGISTRY = "sglang.srt.plugins.hook_registry"


@dataclass(frozen=True)
class HookPoint:
    """A function of the engine, its parameters, and the hook around it; None: the plugin only relies on it."""

    module: str
    name: str
    parameters: tuple[str, ...]
    hook: Callable[..., Any] | None = None

    @property
    def target(self) -> str:
        return f"{self.module}.{self.name}"


def plugin() -> None:
    """Register the hooks. SGLang's load_plugins() calls it, and then applies them.

    ValueError: ZONOS2_TRITON_SGLANG names an unknown component, or a function of the engine has other parameters.
    ImportError: the engine is not installed.
    """
    if sglang_components() and not disabled():
        _register(STAGE_START)


def hook_components(names: Collection[str]) -> None:
    """Hook components of the model in this process, all or none; errors as in `plugin`."""
    names = [name for name in SGLANG_COMPONENTS if name in names]
    points = [point for name in names for point in HOOK_POINTS[name]]
    new = _register(points)
    before = [_function(point) for point in new]
    _module(REGISTRY).HookRegistry.apply_hooks()
    if passed_by := [point.target for point, function in zip(new, before, strict=True) if _function(point) is function]:
        raise RuntimeError(f"{SGLANG}: SGLang did not hook {passed_by[0]}; its log says why")
    LOG.info("SGLang: %s by zonos2-triton", ", ".join(names))


def run_stage(target: Callable[..., None], *args: Any) -> None:
    """Entry of a process that runs stages: load the plugin, then call sglang-omni's own entry."""
    plugin()
    _module(REGISTRY).HookRegistry.apply_hooks()
    target(*args)


class _Context:
    """A multiprocessing context whose processes start in `run_stage`."""

    def __init__(self, context: Any) -> None:
        self._context = context

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def Process(self, *, target: Callable[..., None], args: tuple[Any, ...] = (), **options: Any) -> Any:
        return self._context.Process(target=run_stage, args=(target, *args), **options)


def _spawn(original: Callable[..., None], group: Any, ctx: Any, process_env_overrides: Any = None) -> None:
    original(group, _Context(ctx), process_env_overrides)


def _run_process(original: Callable[..., None], spec: Any, ready_event: Any, log: Any) -> None:
    """Hook the named components whose stage runs in this process. An error here is the stage's."""
    stages = {stage.factory for stage in spec.stage_specs}
    if names := [name for name in sglang_components() if STAGES[name] in stages]:
        hook_components(names)
    original(spec, ready_event, log)


STAGE_START = (
    HookPoint(WORKERS, "StageGroup.spawn", ("self", "ctx", "process_env_overrides"), _spawn),
    HookPoint(WORKERS, "run_process", ("spec", "ready_event", "log"), _run_process),
    HookPoint(WORKERS, "stage_process_main", ("spec", "ready_event", "startup_error_channel")),
)
MODEL, RUNNER, CODEC = (f"{ZONOS2}.{name}" for name in ("sglang_model", "model_runner", "components.audio_codec"))
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "top_k_max", "rep_token_ids")
HOOK_POINTS = {
    "attention": (
        HookPoint(MODEL, "Zonos2Attention.forward", ("self", "x", "positions", "forward_batch"), components.attention),
    ),
    "experts": (
        HookPoint(MODEL, "Zonos2MoEBlock.forward", ("self", "x", "router_states"), components.experts),
        HookPoint(MODEL, "Zonos2SonicRouter.forward", ("self", "h", "router_states")),
    ),
    "sampler": (
        HookPoint(
            f"{ZONOS2}.sampler", "sample_tts", ("logits", *SAMPLING, "any_top_p", "any_min_p"), components.sample
        ),
        # Both exclude end and padding from the penalty.
        HookPoint(RUNNER, "Zonos2ModelRunner.rep_window", ("self", "row_t", "n", "cb_size", "params")),
        HookPoint(RUNNER, "Zonos2ModelRunner.rep_window_ring", ("self", "row_t", "n", "w", "cb_size", "device")),
    ),
    "vocoder": (
        HookPoint(CODEC, "get_dac", ("device",), components.get_dac),
        HookPoint(
            CODEC, "Zonos2DACVocoder.decode_batch", ("self", "audio_codes_list", "eos_frames"), components.decode_batch
        ),
    ),
}
ENGINE, VOCODER = (f"{ZONOS2}.stages.create_{name}_executor" for name in ("sglang_omni_tts_engine", "vocoder"))
STAGES = {"attention": ENGINE, "experts": ENGINE, "sampler": ENGINE, "vocoder": VOCODER}  # of each component
REGISTRATION = (  # SGLang's plugin interface
    HookPoint(REGISTRY, "HookRegistry.register", ("target", "hook", "hook_type", "source")),
    HookPoint(REGISTRY, "HookRegistry.apply_hooks", ()),
)
_registered: set[str] = set()


def _register(points: Iterable[HookPoint]) -> list[HookPoint]:
    """Check all, then register those that have a hook and are new. Returns the registered ones."""
    for point in (*REGISTRATION, *points):
        _check(point)
    _warn_of_another_version()
    registry = _module(REGISTRY)
    new = [point for point in points if point.hook and point.target not in _registered]
    for point in new:
        _registered.add(point.target)
        hook = torch.compiler.disable(point.hook)  # the engine compiles its sampler; kernels gain nothing by it
        registry.HookRegistry.register(point.target, hook, registry.HookType.AROUND)
    return new


def _check(point: HookPoint) -> None:
    found, expected = ", ".join(inspect.signature(_function(point)).parameters), ", ".join(point.parameters)
    if found != expected:
        raise ValueError(
            f"{SGLANG}: {point.target} takes ({found}), and this was written for ({expected}) of {WRITTEN_FOR}; "
            "nothing is hooked"
        )


def _function(point: HookPoint) -> Callable[..., Any]:
    function: Any = _module(point.module)
    for name in point.name.split("."):
        function = getattr(function, name, None)
    if not callable(function):
        raise ValueError(f"{SGLANG}: there is no {point.target}; this was written for {WRITTEN_FOR}; nothing is hooked")
    return function


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"{SGLANG}: {name} cannot be imported ({error}); nothing is hooked") from error


@cache  # one line in the log
def _warn_of_another_version() -> None:
    try:
        found = version("sglang-omni")
    except PackageNotFoundError:  # run from a source tree
        return
    if found != VERSION:
        LOG.warning("SGLang: sglang-omni is %s; this was written for %s and goes by the signatures", found, WRITTEN_FOR)
