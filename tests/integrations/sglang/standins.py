"""A folder to import sglang-omni's ZONOS2 from on a CPU: files of the published wheels, and stand-ins for the rest.

From the wheels come SGLang's plugins with their HookRegistry, and of sglang-omni the model, its sampler, its codec and
the processes of its stages. Stand-ins are what those import of SGLang's layers, of platforms and of everything that
needs a GPU or a package beyond torch and transformers.
"""

import importlib
import multiprocessing
import os
import sys
from collections import namedtuple
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn

from tests.integrations.zonos2_engine import torch_ops
from zonos2_triton.model.integrations.sglang.components import SUPPORTED_RUNNER_CONFIG
from zonos2_triton.reference.attention import causal_attention
from zonos2_triton.reference.rotary import compute_cos_sin_cache, rotary

# Files from the wheels; all else that they import comes from this file.
REAL = {
    "sglang": ("srt/plugins/__init__.py", "srt/plugins/hook_registry.py"),
    "sglang_omni": (
        *(f"models/zonos2/{name}.py" for name in ("sglang_model", "sampler", "radix_hash", "hf_config")),
        *("models/zonos2/components/audio_codec.py", "pipeline/stage_workers.py", "utils/imports.py"),
    ),
}
STANDINS = {  # package: its modules
    "sglang/srt": ("environ", "utils", "runtime_context"),
    "sglang/srt/layers": ("logits_processor", "quantization/base_config"),
    "sglang_omni": ("cli", "config/runtime", "platforms", "platforms/device_graph", "proto", "scheduling/message"),
    "sglang_omni/models/zonos2": ("components/text_frontend", "model_runner", "payload_types", "stages"),
    "sglang_omni/pipeline": ("control_plane", "local_dispatch", "tp_control"),
    "sglang_omni/pipeline/stage": ("input", "runtime", "stream_queue"),
    "sglang_omni/scheduling": ("stage_kv_budget",),
    "sglang_omni/utils": ("gpu_compat", "gpu_memory", "ipc_weights", "logging", "process"),
    "sglang_omni/vendor/sglang": ("core", "layers"),
}
STANDIN = """from tests.integrations.sglang import standins

def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return getattr(standins, name, standins.Unused)
"""


def write_site(folder, **wheels):
    """The folder, as an entry of sys.path; wheels: the unpacked ones by package."""
    files = {f"{root}/{path}": STANDIN for root, paths in STANDINS.items() for path in paths}
    packages = [name for name in files if any(other.startswith(f"{name}/") for other in files)]
    files = {f"{name}/__init__.py" if name in packages else f"{name}.py": text for name, text in files.items()}
    for package, paths in REAL.items():
        files |= {f"{package}/{path}": (wheels[package] / package / path).read_text("utf-8") for path in paths}
    for name, text in files.items():
        for parent in [*Path(name).parents][:-1]:
            (folder / parent).mkdir(parents=True, exist_ok=True)
            (folder / parent / "__init__.py").touch()
        (folder / name).write_text(text, encoding="utf-8")
    return folder


class Unused:
    """A stand-in for unused names: annotations, base classes, or calls without effect."""

    def __new__(cls, *_, **__):
        return None


class RadixAttention(nn.Module):
    """Causal attention of the sequences of one prefill; their lengths are all that ForwardBatch holds here."""

    def __init__(self, num_heads, head_dim, scaling, num_kv_heads, layer_id):
        super().__init__()
        assert scaling == head_dim**-0.5
        self.heads, self.kv_heads, self.head_dim = num_heads, num_kv_heads, head_dim

    def forward(self, q, k, v, forward_batch):
        assert all(t.is_contiguous() for t in (q, k, v))
        parts = [
            t.unflatten(1, (heads, self.head_dim)).split(forward_batch.lengths)
            for t, heads in ((q, self.heads), (k, self.kv_heads), (v, self.kv_heads))
        ]
        return torch.cat([causal_attention(*sequence) for sequence in zip(*parts, strict=True)]).flatten(1).to(q.dtype)


def get_rope(head_size, rotary_dim, max_position, base, is_neox_style):
    assert (rotary_dim, is_neox_style) == (head_size, False)
    table = compute_cos_sin_cache(max_position, head_size, float(base), torch.zeros(1))

    def turned(positions, *rows):
        for x in rows:
            yield rotary(x.unflatten(1, (-1, head_size)).float(), positions, table).flatten(1).to(x.dtype)

    return turned


StandardTopKOutput = namedtuple("StandardTopKOutput", "topk_weights topk_ids router_logits")


class Backend(str):
    def is_triton(self):
        return self == "triton"


class UnquantizedFusedMoEMethod:
    """The attributes that describe the storage of a mixture, with SGLang's names."""

    def __init__(self):
        self.with_bias = self.w13_swiglu_interleaved = False
        self.runner, self._aiter_runner = SimpleNamespace(runner_backend=Backend("triton")), None


class Fp8MoEMethod(UnquantizedFusedMoEMethod):
    pass


class FusedMoE(nn.Module):
    """Experts with gate and up concatenated or, in SGLang's other layout, with interleaved rows."""

    def __init__(self, *, num_experts, hidden_size, intermediate_size, **_):
        super().__init__()
        self.w13_weight = nn.Parameter(torch.empty(num_experts, 2 * intermediate_size, hidden_size))
        self.w2_weight = nn.Parameter(torch.empty(num_experts, hidden_size, intermediate_size))
        self.moe_tp_size = self.moe_ep_size = 1
        self.quant_method = UnquantizedFusedMoEMethod()
        self.moe_runner_config = SimpleNamespace(**SUPPORTED_RUNNER_CONFIG)

    def interleave(self):
        halves = self.w13_weight.chunk(2, 1)
        self.w13_weight = nn.Parameter(torch.stack(halves, 2).flatten(1, 2).contiguous(), requires_grad=False)
        self.quant_method.w13_swiglu_interleaved = True

    def forward(self, x, topk):
        w13 = self.w13_weight
        if self.quant_method.w13_swiglu_interleaved:
            w13 = torch.cat([w13[:, 0::2], w13[:, 1::2]], 1)
        return torch_ops.fused_experts(x, w13, self.w2_weight, topk.topk_weights, topk.topk_ids)


class FusedMoEWithLoRA(FusedMoE):
    pass


def get_moe_impl_class(quant_config):
    return FusedMoE


class Zonos2ModelRunner:
    """Only the parameters; tests read the functions from the wheel."""

    def rep_window(self, row_t, n, cb_size, params): ...

    def rep_window_ring(self, row_t, n, w, cb_size, device): ...


def app():
    """`serve STAGE ...`: start each stage in a process as the engine does, and print how it ended."""
    workers = importlib.import_module("sglang_omni.pipeline.stage_workers")
    names, arguments = sys.argv[2:], {"model_path": "none"}
    stages = [workers.StageLaunchConfig(stage_name=name, factory=name, factory_kwargs=arguments) for name in names]
    group = workers.StageGroup("group", [workers.StageWorkerProcessSpec(stage.stage_name, [stage]) for stage in stages])
    group.spawn(multiprocessing.get_context("spawn"))
    for process in group.processes:
        process.join()
    for name, channel in zip(names, group.startup_error_channels, strict=True):
        print("ended", name, channel.get(timeout=10).strip().splitlines()[-1])


def create_vocoder_executor(model_path):
    """A stage that ends its process with a list of the hooked functions."""
    hooked = importlib.import_module("sglang.srt.plugins.hook_registry").HookRegistry._patched
    raise RuntimeError(f"hooked: {' '.join(sorted(hooked))}")


create_sglang_omni_tts_engine_executor = create_vocoder_executor
N_CODEBOOKS, ZONOS2_SAMPLE_RATE = 9, 44100
variables = {name: SimpleNamespace(get=partial(os.environ.get, name)) for name in ("SGLANG_PLUGINS", "SGLANG_PLATFORM")}
envs = SimpleNamespace(**variables)
current_platform = SimpleNamespace(
    is_cuda_alike=lambda: False, get_stage_process_env=lambda spec: {}, set_device=lambda device: None
)


def apply_typed_stage_kwargs(factory, kwargs, *_, **__):
    return dict(kwargs)


resolve_factory_signature_args, exit_without_teardown = apply_typed_stage_kwargs, sys.exit
get_platform_spec, get_gpu_compat_env_defaults = lambda platform: "cpu", lambda environment: {}
