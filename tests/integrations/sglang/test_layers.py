"""The plugin for sglang-omni's ZONOS2, against the published wheels: their source, and their classes on a CPU."""

import ast
import importlib
import logging
import os
import re
import shutil
import subprocess
import sys
import tomllib
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from tests.integrations.sglang.standins import Fp8MoEMethod, FusedMoE, FusedMoEWithLoRA, write_site
from tests.integrations.standins import audiotools, importable
from tests.integrations.wheels import unpacked
from zonos2_triton._settings import BACKEND, DISABLE, PREFIX, SGLANG, SGLANG_PARTS
from zonos2_triton.bench.proof.interpreter import checked
from zonos2_triton.model.integrations.accelerate import MARK
from zonos2_triton.model.integrations.report import Left
from zonos2_triton.model.integrations.sglang import components, launch
from zonos2_triton.model.integrations.sglang import plugin as host
from zonos2_triton.reference.attention import QK_EPS
from zonos2_triton.reference.sampling import distributions

ROOT = Path(__file__).parents[3]
SEAMS = [*host.STARTING, *(seam for seams in host.SEAMS.values() for seam in seams)]
PINNED, NEWER = "0.5.22", "0.5.23"  # of sglang: what sglang-omni asks for, and what came after
# Of two results in one dtype, over the largest: several times what was seen, a tenth of what a wrong weight does.
BOUNDS = {torch.float32: 2e-6, torch.bfloat16: 1.5e-2, torch.float16: 2e-3}

CACHED = (components._operation, components._say_once, host._warn_of_another_version)


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """Nothing is set, registered or said yet."""
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(host, "_registered", set())
    for cached in CACHED:
        cached.cache_clear()
    yield
    for cached in CACHED:
        cached.cache_clear()


def omni() -> Path:
    return unpacked("sglang-omni", host.VERSION)


@pytest.fixture(scope="session")
def site(tmp_path_factory) -> Path:
    return write_site(tmp_path_factory.mktemp("sglang") / "site", omni(), unpacked("sglang", PINNED))


@pytest.fixture
def engine(site, monkeypatch) -> Iterator[SimpleNamespace]:
    """The modules that the plugin hooks, imported for this test alone."""
    monkeypatch.syspath_prepend(site)
    names = {"workers": host.WORKERS, "model": host.MODEL, "codec": host.CODEC, "sampler": f"{host.ZONOS2}.sampler"}
    names |= {"registry": host.REGISTRY, "config": f"{host.ZONOS2}.hf_config"}
    yield SimpleNamespace(**{name: importlib.import_module(module) for name, module in names.items()})
    for name in [name for name in sys.modules if name.split(".")[0] in ("sglang", "sglang_omni")]:
        del sys.modules[name]


@pytest.fixture
def interpreted(monkeypatch) -> None:
    """The kernels, in Triton's interpreter."""
    if torch.cuda.is_available():
        pytest.skip("kernels are compiled here")
    monkeypatch.setenv(BACKEND, "triton")


@pytest.fixture(params=["reference", "triton"])
def backend(request, monkeypatch) -> str:
    if request.param == "triton":
        request.getfixturevalue("interpreted")
    else:
        monkeypatch.setenv(BACKEND, request.param)
    return request.param


def apart(new: Tensor, old: Tensor) -> float:
    assert (new.shape, new.dtype) == (old.shape, old.dtype)
    return ((new.double() - old.double()).abs().max() / old.double().abs().max()).item()


# ---- what the wheels say ----


def definition(folder: Path, target: str) -> ast.FunctionDef:
    """Of a dotted name below a folder of packages."""
    parts, path = target.split("."), folder
    while not path.with_suffix(".py").is_file():
        path = path / parts.pop(0)
    node: Any = ast.parse(path.with_suffix(".py").read_text(encoding="utf-8"))
    for name in parts:
        found = [child for child in node.body if getattr(child, "name", None) == name]
        assert found, f"{target}: there is no {name}"
        node = found[0]
    return node


def parameters(node: ast.FunctionDef) -> tuple[str, ...]:
    assert (node.args.vararg, node.args.kwarg) == (None, None)
    return tuple(arg.arg for arg in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs))


@pytest.mark.parametrize("seam", SEAMS, ids=lambda seam: seam.name)
def test_the_engine_has_the_signatures_that_it_is_hooked_by(seam):
    assert parameters(definition(omni(), seam.target)) == seam.parameters


@pytest.mark.parametrize("version", [PINNED, NEWER])
def test_sglang_has_the_interface_for_plugins(version):
    wheel = unpacked("sglang", version)
    for seam in host.REGISTERING:
        assert parameters(definition(wheel, seam.target)) == ("cls", *seam.parameters)
    group = ast.unparse(ast.parse((wheel / "sglang/srt/plugins/__init__.py").read_text(encoding="utf-8")))
    assert "GENERAL_PLUGINS_GROUP = 'sglang.srt.plugins'" in group
    around = ast.unparse(definition(wheel, f"{host.REGISTRY}._wrap_fn"))
    assert "return hook(original_fn, *args, **kwargs)" in around
    serving = ast.unparse(definition(wheel, "sglang.cli.serve.serve"))
    assert serving.index("load_plugins()") < serving.index("registered.backend.run(request)")


def test_the_engine_pins_the_sglang_that_this_was_written_for():
    (metadata,) = omni().glob("*.dist-info/METADATA")
    assert f"Requires-Dist: sglang=={PINNED}" in metadata.read_text(encoding="utf-8")
    assert f"sglang-omni {host.VERSION} with sglang {PINNED}" == host.WRITTEN_FOR


def test_the_processes_of_stages_load_no_plugins_of_their_own():
    """If they do one day, hooking their start is no longer needed."""
    files = (omni() / "sglang_omni").rglob("*.py")
    assert not [path for path in files if "load_plugins" in path.read_text(encoding="utf-8")]
    spawn = ast.unparse(definition(omni(), f"{host.WORKERS}.StageGroup.spawn"))
    assert "proc = ctx.Process(target=stage_process_main, args=(" in spawn
    main = ast.unparse(definition(omni(), f"{host.WORKERS}.stage_process_main"))
    assert main.index("prepare_accelerator_environment(") < main.index("run_process(spec, ready_event, log)")


def test_the_stages_are_the_engines():
    config = (omni() / "sglang_omni/models/zonos2/config.py").read_text(encoding="utf-8")
    for factory in set(host.STAGES.values()):
        assert f'f"{{_PKG}}.{factory.removeprefix(f"{host.ZONOS2}.")}"' in config
        definition(omni(), factory)
    assert set(host.STAGES) == set(host.SEAMS) == {*SGLANG_PARTS}


def test_the_constants_are_the_engines():
    text = (omni() / "sglang_omni/models/zonos2/sglang_model.py").read_text(encoding="utf-8")
    assert f"_QK_NORM_EPS = {QK_EPS!r}\n".replace("1e-06", "1e-6") in text


def test_a_mixture_is_known_by_names_that_sglang_has():
    layers = unpacked("sglang", PINNED) / "sglang/srt/layers"
    layer = (layers / "moe/fused_moe_triton/layer.py").read_text(encoding="utf-8")
    method = (layers / "quantization/unquant.py").read_text(encoding="utf-8")
    runner = (layers / "moe/moe_runner/base.py").read_text(encoding="utf-8")
    assert "class FusedMoE(torch.nn.Module):" in layer
    for name in ("moe_tp_size", "moe_ep_size", "moe_runner_config", "quant_method"):
        assert f"self.{name} = " in layer
    assert "class UnquantizedFusedMoEMethod(" in method
    for name in ("runner", "with_bias", "w13_swiglu_interleaved"):
        assert f"self.{name} = " in method
    assert "self._aiter_runner: " in method
    for name, usual in components.PLAIN_EXPERTS.items():
        typed = {"str": "str", "bool": "bool", "NoneType": "Optional[float]"}[type(usual).__name__]
        default = f'"{usual}"' if isinstance(usual, str) else repr(usual)
        assert f"    {name}: {typed} = {default}\n" in runner


def test_the_runner_takes_end_and_padding_out_of_what_is_penalised():
    """Which `sample` counts upon."""
    runner = SimpleNamespace(model=SimpleNamespace(tail_params=SimpleNamespace(repetition_codebooks=2)))
    history = torch.tensor([[[1024, 7, 3], [5, 1025, 2], [-1, 4, 1]]])  # [1, frames, codebooks]
    runner.model.decode_state_pool = SimpleNamespace(rep_hist=history)
    params = SimpleNamespace(repetition_penalty=1.2, repetition_window=3, repetition_codebooks=2)
    expected = [[[-1, 5, -1], [7, -1, 4], [-1, -1, -1]]]
    for name, arguments in ("rep_window", (0, 3, 1024, params)), ("rep_window_ring", (0, 3, 3, 1024, "cpu")):
        code = ast.unparse(definition(omni(), f"{host.RUNNER}.Zonos2ModelRunner.{name}"))
        scope: dict[str, Any] = {"torch": torch}
        exec(code, scope)
        assert scope[name](runner, [0], *arguments[1:]).tolist() == expected


def test_the_recipe_for_several_gpus_uses_what_the_engine_has():
    zonos2 = omni() / "sglang_omni/models/zonos2"
    config = (zonos2 / "config.py").read_text(encoding="utf-8")
    assert config.count('process="pipeline"') == 3
    assert '"multi_gpu": Zonos2MultiGPUPipelineConfig' in config
    assert '"fp8": True' in config
    schema = ast.parse((omni() / "sglang_omni/config/schema.py").read_text(encoding="utf-8"))
    fields = next(node for node in schema.body if getattr(node, "name", None) == "ProcessConfig")
    assert {"num_replicas", "replica_devices"} <= {
        node.target.id for node in fields.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    serve = parameters(definition(omni(), "sglang_omni.cli.serve.serve"))
    assert {"model_path", "variant", "port"} <= {*serve}
    factory = parameters(definition(omni(), host.ENGINE))
    assert "fp8" in factory
    assert not [name for name in factory if name.startswith("tp_")]  # it is not parallel by tensors
    workers = (omni() / "sglang_omni_router/python/launcher/local.py").read_text(encoding="utf-8")
    assert 'command: str = "sgl-omni"' in workers  # which loads no plugins
    router = (omni() / "sglang_omni_router/python/serve.py").read_text(encoding="utf-8")
    assert 'add_argument("--worker-urls", nargs="+"' in router


# ---- what happens, and when nothing does ----


def test_nothing_happens_unless_parts_are_named():
    code = f"""
import os, sys
for name in [name for name in os.environ if name.startswith({PREFIX!r})]:
    del os.environ[name]
from zonos2_triton.model.integrations.sglang.plugin import _registered, plugin
for value in ("", "0"):
    os.environ[{SGLANG!r}] = value
    plugin()
os.environ[{SGLANG!r}], os.environ[{DISABLE!r}] = "all", "1"
plugin()
assert not _registered
assert not [name for name in sys.modules if name.split(".")[0] in ("sglang", "sglang_omni", "triton")]
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_the_package_declares_the_plugin():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["entry-points"]
    module, _, name = declared["sglang.srt.plugins"]["zonos2_triton"].partition(":")
    assert getattr(importlib.import_module(module), name) is host.plugin


def test_hooks_are_seen_where_the_functions_were_imported_before(engine):
    assert engine.model.sample_tts is engine.sampler.sample_tts
    before = engine.sampler.sample_tts
    host.hook_parts(["sampler"])
    assert engine.model.sample_tts is engine.sampler.sample_tts is not before
    assert engine.model.sample_tts.__wrapped__ is before


def test_parts_that_are_not_named_are_left_alone(engine):
    before = engine.model.Zonos2Attention.forward, engine.sampler.sample_tts, engine.codec.get_dac
    host.hook_parts(["experts"])
    assert before == (engine.model.Zonos2Attention.forward, engine.sampler.sample_tts, engine.codec.get_dac)
    assert [*engine.registry.HookRegistry._patched] == [f"{host.MODEL}.Zonos2MoEBlock.forward"]


def test_twice_is_once(engine):
    for _ in range(2):
        host.hook_parts(["experts", "attention"])
    assert not hasattr(engine.model.Zonos2MoEBlock.forward.__wrapped__, "__wrapped__")


@pytest.mark.parametrize("named", ["experts", "all"])
def test_another_signature_is_refused_and_nothing_is_hooked(engine, monkeypatch, named):
    def forward(self, x, router_states, scale): ...

    monkeypatch.setattr(engine.model.Zonos2MoEBlock, "forward", forward)
    names = SGLANG_PARTS if named == "all" else [named]
    with pytest.raises(ValueError, match="takes") as refused:
        host.hook_parts(names)
    assert str(refused.value) == (
        f"ZONOS2_TRITON_SGLANG: {host.MODEL}.Zonos2MoEBlock.forward takes (self, x, router_states, scale), and this "
        "was written for (self, x, router_states) of sglang-omni 0.1.9 with sglang 0.5.22; nothing is hooked"
    )
    assert not engine.registry.HookRegistry._hooks
    assert not host._registered


def test_a_function_that_is_gone_is_refused(engine, monkeypatch):
    monkeypatch.delattr(engine.codec.Zonos2DACVocoder, "decode_batch")
    with pytest.raises(
        ValueError, match=r"there is no .*audio_codec\.Zonos2DACVocoder\.decode_batch; .* nothing is hooked"
    ):
        host.hook_parts(["vocoder"])
    assert not engine.registry.HookRegistry._hooks


def test_another_interface_for_plugins_is_refused(engine, monkeypatch):
    monkeypatch.setattr(engine.registry.HookRegistry, "register", lambda target, hook: None)
    with pytest.raises(ValueError, match=r"HookRegistry\.register takes \(target, hook\), and this was written for"):
        host.hook_parts(["experts"])


def test_hooks_that_the_registry_does_not_apply_are_an_error(engine, monkeypatch):
    monkeypatch.setattr(engine.registry.HookRegistry, "apply_hooks", lambda: None)
    with pytest.raises(RuntimeError, match=r"SGLang did not hook .*Zonos2MoEBlock\.forward; its log says why"):
        host.hook_parts(["experts"])


def test_an_unknown_part_is_refused(monkeypatch):
    monkeypatch.setenv(SGLANG, "attention,expert")
    with pytest.raises(ValueError, match=r"SGLANG is 'attention,expert'; accepted: .*experts, sampler"):
        host.plugin()


def test_an_engine_that_is_missing_is_named(monkeypatch):
    monkeypatch.setenv(SGLANG, "all")
    monkeypatch.setitem(sys.modules, "sglang", None)
    with pytest.raises(
        ImportError, match=r"^ZONOS2_TRITON_SGLANG: sglang\.srt\.plugins\.hook_registry cannot be imported"
    ):
        host.plugin()


@pytest.mark.parametrize(("found", "said"), [("0.1.9", 0), ("0.2.0", 1)])
def test_another_version_is_said_once(engine, monkeypatch, caplog, found, said):
    monkeypatch.setattr(host, "version", lambda name: found)
    with caplog.at_level(logging.WARNING, "zonos2_triton"):
        host.hook_parts(["experts"])
        host.hook_parts(["sampler"])
    assert len(caplog.messages) == said
    assert all(found in message for message in caplog.messages)


# ---- processes ----


def declared(folder: Path) -> Path:
    """The folder with metadata that declares the plugin, whatever is installed."""
    metadata = folder / "plugin-0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin\nVersion: 0\n")
    entry = "zonos2_triton = zonos2_triton.model.integrations.sglang.plugin:plugin"
    (metadata / "entry_points.txt").write_text(f"[sglang.srt.plugins]\n{entry}\n")
    return folder


SERVE = """
from sglang.srt.plugins import load_plugins

if __name__ == "__main__":
    load_plugins()
    from sglang_omni.cli import app

    app()
"""  # what `sglang serve` does


def started(site: Path, folder: Path, parts: str, *stages: str, command: bool = False) -> dict[str, str]:
    """Stages in processes that the wheel's StageGroup starts -> what each ended with: stand-ins say what is hooked.

    command: by `python -m zonos2_triton.model.integrations.sglang.launch`, else as `sglang serve` does.
    """
    script = folder / "serve.py"
    script.write_text(SERVE)
    paths = [str(site), str(declared(folder / "metadata")), str(ROOT)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), SGLANG: parts, "TRITON_INTERPRET": "1"}
    called = ["-m", launch.__name__] if command else [str(script)]
    done = subprocess.run(
        [sys.executable, *called, "serve", *stages], capture_output=True, text=True, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stderr
    ended = [line.split(maxsplit=2)[1:] for line in done.stdout.splitlines() if line.startswith("ended ")]
    assert [name for name, _ in ended] == [*stages]
    return dict(ended)


def hooked(*parts: str) -> str:
    """What a stage says of these parts."""
    seams = [*host.STARTING, *(seam for part in parts for seam in host.SEAMS[part])]
    return f"RuntimeError: hooked: {' '.join(sorted(seam.target for seam in seams if seam.hook))}"


@pytest.mark.parametrize("command", [False, True])
def test_the_processes_of_stages_hook_what_they_compute(site, tmp_path, command):
    named = "attention,experts,sampler,vocoder"
    assert started(site, tmp_path, named, host.ENGINE, host.VOCODER, command=command) == {
        host.ENGINE: hooked("attention", "experts", "sampler"),
        host.VOCODER: hooked("vocoder"),
    }


def test_without_the_variable_a_process_of_stages_is_as_it_was(site, tmp_path):
    assert started(site, tmp_path, "", host.VOCODER) == {host.VOCODER: "RuntimeError: hooked:"}


def test_a_process_of_stages_that_cannot_be_hooked_says_why_and_ends(site, tmp_path):
    other = shutil.copytree(site, tmp_path / "site")
    codec = other / "sglang_omni/models/zonos2/components/audio_codec.py"
    text = codec.read_text(encoding="utf-8")
    codec.write_text(text.replace("def get_dac(device: str):", "def get_dac(device: str, dtype: str = ''):"))
    error = started(other, tmp_path, "vocoder", host.VOCODER)[host.VOCODER]
    assert error.startswith(
        f"ValueError: ZONOS2_TRITON_SGLANG: {host.CODEC}.get_dac takes (device, dtype), and this was"
    )


# ---- what the parts compute ----


def config(engine, **changes) -> Any:
    """A tiny model: mixtures in layers 1 to 3 of 5, the third with two experts a row."""
    sizes = {
        "dim": 64,
        "head_dim": 16,
        "n_heads": 4,
        "n_kv_heads": 2,
        "multiple_of": 32,
        "n_layers": 5,
        "max_seqlen": 64,
    }
    sizes |= {"moe_n_experts": 4, "moe_router_dim": 32, "moe_start_from_layer": 1, "special_topk_layers": {3: 2}}
    return engine.config.Zonos2Config(**{**sizes, **changes})


def filled(module: nn.Module, dtype: torch.dtype, seed: int = 0) -> Any:
    """Random weights about as large as trained ones."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in (*module.parameters(), *module.buffers()):
        scale = 1.0 if tensor.ndim == 1 else tensor.shape[-1] ** -0.5
        tensor.data = (torch.randn(tensor.shape, generator=generator) * scale).to(dtype)
    return module.requires_grad_(False).eval()


def layers(engine, dtype: torch.dtype, **changes) -> list[Any]:
    settings = config(engine, **changes)
    return [filled(engine.model.Zonos2DecoderLayer(settings, i), dtype, seed=i) for i in range(settings.n_layers)]


def forward(stack: list[Any], x: Tensor, lengths: list[int]) -> Tensor:
    """The layers one after the other, as the model goes through them."""
    positions = torch.cat([torch.arange(length) for length in lengths])
    residual = states = None
    for layer in stack:
        x, residual, states = layer(x, residual, states, positions, SimpleNamespace(lengths=lengths))
    return x + residual


@pytest.mark.parametrize("parts", [("attention",), ("experts",), ("attention", "experts")], ids="+".join)
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
def test_layers_are_what_they_were(engine, backend, seeded, dtype, parts):
    stack, x = layers(engine, dtype), seeded(7, 64, dtype=dtype)
    before = forward(stack, x, [4, 3])
    host.hook_parts(parts)
    assert apart(forward(stack, x.clone(), [4, 3]), before) < BOUNDS[dtype]


@pytest.mark.parametrize(
    "changes",
    [{"moe_balancing_strategy": "quantile"}, {"moe_router_topk": 3, "special_topk_layers": {}}, {"n_kv_heads": 1}],
    ids=str,
)
def test_layers_of_other_settings_are_what_they_were(engine, backend, seeded, changes):
    stack, x = layers(engine, torch.float32, **changes), seeded(5, 64)
    before = forward(stack, x, [5])
    host.hook_parts(["attention", "experts"])
    assert apart(forward(stack, x, [5]), before) < BOUNDS[torch.float32]


@pytest.mark.parametrize("rows", [1, 257])  # one more than decode together
def test_a_mixture_takes_any_number_of_rows_and_either_order_of_gate_and_up(engine, backend, seeded, rows):
    block, x, states = layers(engine, torch.float32)[3].feed_forward, seeded(rows, 64), seeded(rows, 32)
    before = block(x, states)
    host.hook_parts(["experts"])
    apart_by_order = []
    for _ in range(2):
        after = block(x, states)
        apart_by_order.append([apart(new, old) for new, old in zip(after, before, strict=True)])
        block.experts.interleave()
    assert torch.tensor(apart_by_order).max() < BOUNDS[torch.float32]


@pytest.mark.parametrize("name", ["qkv_projection", "output_projection", "router", "experts"])
def test_an_operation_that_is_wrong_by_a_hundredth_shows(engine, monkeypatch, seeded, name):
    """In the differences above: they are of our operations, and the bounds tell."""
    right = components._operation

    def operation(asked: str, *of: Any) -> Any:
        def wrong(*args: Any, **kwargs: Any) -> Any:
            result = right(asked, *of)(*args, **kwargs)
            if asked == "router":  # its weights
                return result[0], result[1] * 1.01, *result[2:]
            return result * 1.01

        return wrong if asked == name else right(asked, *of)

    stack, x = layers(engine, torch.float32), seeded(4, 64)
    before = forward(stack, x, [4])
    host.hook_parts(["attention", "experts"])
    monkeypatch.setattr(components, "_operation", operation)
    assert apart(forward(stack, x, [4]), before) > 10 * BOUNDS[torch.float32]


def test_a_row_does_not_depend_on_the_rows_beside_it(engine, interpreted, seeded):
    layer, x, states = layers(engine, torch.bfloat16)[3], seeded(6, 64, dtype=torch.bfloat16), seeded(6, 32).bfloat16()
    host.hook_parts(["attention", "experts"])
    together = layer.feed_forward(x, states)
    attended = layer.attention(x, torch.arange(6) % 3, SimpleNamespace(lengths=[3, 3]))
    for rows in slice(0, 1), slice(3, 6):
        alone = layer.feed_forward(x[rows], states[rows])
        assert all(torch.equal(a, b[rows]) for a, b in zip(alone, together, strict=True))
    assert torch.equal(layer.attention(x[3:], torch.arange(3), SimpleNamespace(lengths=[3])), attended[3:])


def test_weights_are_read_where_they_are(engine, seeded):
    """A server that gets new ones needs nothing else."""
    stack, x = layers(engine, torch.float32), seeded(4, 64)
    host.hook_parts(["attention", "experts"])
    forward(stack, x, [4])
    for i, layer in enumerate(stack):
        filled(layer, torch.float32, seed=i + 50)
    after = forward(stack, x, [4])
    for name, forward_of in (("Zonos2Attention", "attention"), ("Zonos2MoEBlock", "experts")):
        cls = getattr(engine.model, name)
        assert forward_of in host.SEAMS
        cls.forward = cls.forward.__wrapped__
    assert apart(after, forward(stack, x, [4])) < BOUNDS[torch.float32]


def fp8(layer):
    layer.quant_method = Fp8MoEMethod()


def lora(layer):
    layer.__class__ = FusedMoEWithLoRA


def attribute(path: str, value: Any) -> Any:
    def change(layer: Any) -> None:
        *owners, name = path.split(".")
        for owner in owners:
            layer = getattr(layer, owner)
        setattr(layer, name, value)

    change.__name__ = path
    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (fp8, r"its weights are those of Fp8MoEMethod; --tts_engine\.factory\.fp8 false keeps them in bf16"),
        (lora, "its layer is a FusedMoEWithLoRA, not a FusedMoE"),
        (attribute("moe_tp_size", 2), "it is spread over 2 devices"),
        (attribute("moe_ep_size", 4), "it is spread over 4 devices"),
        (attribute("quant_method.runner.runner_backend.name", "deep_gemm"), "its runner is deep_gemm, which may keep"),
        (attribute("quant_method._aiter_runner", object()), "its runner is triton, which may keep"),
        (attribute("quant_method.with_bias", True), "its experts have biases"),
        (attribute("moe_runner_config.activation", "gelu"), "its activation is 'gelu', not 'silu'"),
        (attribute("moe_runner_config.is_gated", False), "its is_gated is False, not True"),
        (attribute("moe_runner_config.swiglu_limit", 7.0), "its swiglu_limit is 7.0, not None"),
        (attribute("w13_weight", nn.Parameter(torch.zeros(4, 64, 192), False)), r"its w13_weight is \[4, 64, 192\] of"),
        (attribute("w2_weight", nn.Parameter(torch.zeros(4, 64, 96).half(), False)), "its w2_weight is .*float16"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_mixture_of_another_kind_stays_with_the_engine(engine, monkeypatch, caplog, seeded, change, reason):
    block = layers(engine, torch.float32)[1].feed_forward
    change(block.experts)
    called = []
    monkeypatch.setattr(FusedMoE, "forward", lambda self, x, topk: called.append(x) or x)
    host.hook_parts(["experts"])
    x = seeded(2, 64)
    with caplog.at_level(logging.WARNING, "zonos2_triton"):
        for _ in range(2):
            y, _ = block(x, None)
            assert y is x
    assert len(called) == 2
    assert len(caplog.messages) == 1
    assert re.match(f"SGLang: experts stays with the engine: {reason}", caplog.messages[0])


def test_biases_of_another_dtype_stay_with_the_engine(engine, seeded, caplog):
    block, x = layers(engine, torch.bfloat16)[1].feed_forward, seeded(2, 64, dtype=torch.bfloat16)
    block.router.balancing_biases = block.router.balancing_biases.float()
    before = block(x, None)
    host.hook_parts(["experts"])
    assert all(torch.equal(new, old) for new, old in zip(block(x, None), before, strict=True))
    assert "balancing_biases are torch.float32, not torch.bfloat16" in caplog.text


def test_no_rows_stay_with_the_engine(engine):
    layer = layers(engine, torch.float32)[1]
    host.hook_parts(["attention", "experts"])
    y, state = layer.feed_forward(torch.zeros(0, 64), None)
    assert (y.shape, state.shape) == ((0, 64), (0, 32))
    assert layer.attention(torch.zeros(0, 64), torch.arange(0), SimpleNamespace(lengths=[0])).shape == (0, 64)


def test_where_there_are_no_kernels_everything_stays_with_the_engine(engine, monkeypatch, caplog, seeded):
    """The reference would wait for the device."""
    monkeypatch.setattr(components, "resolve_backend", lambda *_: "reference")
    layer = layers(engine, torch.float32)[1].to("meta")
    host.hook_parts(["attention", "experts", "sampler"])
    called = [engine.model.Zonos2MoEBlock.forward, engine.model.Zonos2Attention.forward, engine.sampler.sample_tts]
    assert not [function for function in called if not hasattr(function, "__wrapped__")]
    monkeypatch.setattr(components, "_operation", None)  # which an attempt would call
    x = torch.zeros(2, 64, device="meta")
    layer.attention.attn.forward = lambda q, k, v, forward_batch: q
    layer.attention.rotary = lambda positions, q, k: (q, k)
    assert layer.attention(x, torch.arange(2, device="meta"), None).shape == (2, 64)
    monkeypatch.setattr(FusedMoE, "forward", lambda self, x, topk: x)
    assert layer.feed_forward(x, None)[0] is x
    arguments = {
        name: value.to("meta") if isinstance(value, Tensor) else value for name, value in asked(REQUESTS).items()
    }
    assert engine.sampler.sample_tts(torch.zeros(len(REQUESTS), 3, V, device="meta"), **arguments).shape == (8, 3)
    assert [message.split(":")[1] for message in caplog.messages] == [
        f" {part} stays with the engine" for part in ("attention", "experts", "sampler")
    ]


# ---- the draw ----

V = 40  # of which the last two are end and padding
REQUESTS = [  # temperature, top_k, top_p, min_p, repetition_penalty
    (1.15, 106, 0.0, 0.18, 1.2),
    (0.7, 5, 0.0, 0.0, 1.0),
    (2.5, 0, 0.8, 0.0, 1.7),
    (1.0, -1, 1.0, 0.05, 0.5),
    (1.3, V, 0.3, 0.3, 2.0),
    (0.0, 3, 0.5, 0.1, 1.4),
    (-1.0, 0, 0.0, 0.0, 1.4),
    (1e-6, 7, 0.95, 0.0, 1.4),
]


def asked(requests: list[tuple[float, ...]], **changes: Any) -> dict[str, Any]:
    """The arguments of sample_tts as the model's runner makes them."""
    temperature, top_k, top_p, min_p, penalty = zip(*requests, strict=True)
    arguments = {
        "temperature": torch.tensor(temperature), "top_k": torch.tensor(top_k), "top_p": torch.tensor(top_p),
        "min_p": torch.tensor(min_p), "repetition_penalty": torch.tensor(penalty),
        "top_k_max": max((k for k in top_k if 0 < k < V), default=0),
        "any_top_p": any(0 < p < 1 for p in top_p), "any_min_p": any(p > 0 for p in min_p),
    }  # fmt: skip
    return {**arguments, **changes}


def window(logits: Tensor, frames: int = 6) -> Tensor:
    """What a runner has seen of each codebook, -1 where it does not count."""
    seen = torch.randint(-1, V - 2, (*logits.shape[:2], frames), generator=torch.Generator().manual_seed(1))
    seen[:, -1] = -1
    return seen


@pytest.fixture
def drawn_from(engine, monkeypatch):
    """The arguments of sample_tts -> the probabilities [B, C, V] that ours and that theirs draws from."""
    original, found = engine.sampler.sample_tts, []

    def multinomial(probs: Tensor, num_samples: int) -> Tensor:
        found.append(probs)
        return torch.zeros(len(probs), num_samples, dtype=torch.long)

    def sample(logits: Tensor, settings: Tensor, seeds: Tensor, steps: Tensor, seen: Tensor) -> tuple[Tensor, ...]:
        found.append(distributions(logits, settings, steps, seen))
        return found[-1].argmax(-1), seeds

    def run(logits: Tensor, **arguments: Any) -> tuple[Tensor, Tensor]:
        with monkeypatch.context() as patched:
            patched.setattr(torch, "multinomial", multinomial)
            patched.setattr(components, "_operation", lambda *_: sample)
            original(logits, **arguments)
            components.sample(original, logits, **arguments)
        theirs, ours = found[-2:]
        return ours, theirs.view(ours.shape)

    return run


@pytest.mark.parametrize("changes", [{}, {"any_top_p": False}, {"any_min_p": False}, {"top_k_max": 0}], ids=str)
def test_every_request_is_drawn_from_its_own_distribution(drawn_from, seeded, changes):
    logits = seeded(len(REQUESTS), 3, V) * 4
    ours, theirs = drawn_from(logits, **asked(REQUESTS, rep_token_ids=window(logits), **changes))
    assert torch.equal(ours > 0, theirs > 0)
    assert (ours - theirs).abs().max() < 1e-6


@pytest.mark.parametrize("requests", [REQUESTS[:1], REQUESTS[5:]], ids=["default", "greedy"])
def test_without_a_window_nothing_is_penalised(drawn_from, seeded, requests):
    logits = seeded(len(requests), 2, V) * 4
    for seen in None, torch.zeros(len(requests), 2, 0, dtype=torch.long), torch.full((len(requests), 2, 5), -1):
        ours, theirs = drawn_from(logits, **asked(requests, rep_token_ids=seen))
        assert (ours - theirs).abs().max() < 1e-6


def test_logits_that_tie_are_theirs_too(drawn_from, engine):
    """As those of a bf16 head often do; and a code that the runner has forbidden."""
    logits = torch.tensor([3.0, 1, 3, -float("inf"), 2, 2, 1, 3, 0, 0]).expand(4, 2, 10).clone()
    requests = [(1.0, 2, 0.0, 0.0, 1.0), (1.0, 4, 0.0, 0.5, 1.0), (0.0, 0, 0.0, 0.0, 1.0), (1.0, 0, 0.0, 0.0, 1.0)]
    ours, theirs = drawn_from(logits, **asked(requests))
    assert torch.equal(ours > 0, theirs > 0)
    assert (ours - theirs).abs().max() < 1e-6
    assert ours[2, :, 0].eq(1).all()


def test_draws_fit_the_engines_distribution(drawn_from, engine, monkeypatch, seeded):
    """Chi-square of 4,000 draws for each request and codebook."""
    monkeypatch.setenv(BACKEND, "reference")
    logits, draws = seeded(len(REQUESTS), 3, V) * 4, 4000
    arguments = asked(REQUESTS, rep_token_ids=window(logits))
    _, probs = drawn_from(logits, **arguments)
    host.hook_parts(["sampler"])
    many = {
        key: value.repeat_interleave(draws, 0) if isinstance(value, Tensor) else value
        for key, value in arguments.items()
    }
    torch.manual_seed(0)
    codes = engine.sampler.sample_tts(logits.repeat_interleave(draws, 0), **many).unflatten(0, (-1, draws))
    counts = torch.nn.functional.one_hot(codes, V).sum(1)  # [requests, codebooks, V]
    expected = probs.double() * draws
    assert not counts[expected == 0].any()
    rare = expected < 5  # are one cell
    cells = [
        torch.cat([torch.where(rare, 0.0, x), torch.where(rare, x, 0.0).sum(-1, True)], -1) for x in (counts, expected)
    ]
    terms = torch.where(cells[1] > 0, (cells[0] - cells[1]).square() / cells[1], 0.0)
    freedom = ((cells[1] > 0).sum(-1) - 1).double()
    p = torch.special.gammaincc(freedom / 2, terms.sum(-1) / 2)[freedom > 0]
    assert p.min() > 1e-3 / len(p)


def test_codes_are_the_same_by_either_backend_and_settled_by_the_generator(engine, interpreted, monkeypatch, seeded):
    logits = seeded(3, 9, 1026) * 4
    arguments = asked(REQUESTS[:3], rep_token_ids=window(logits))
    host.hook_parts(["sampler"])
    found = {}
    for name in "reference", "triton":
        monkeypatch.setenv(BACKEND, name)
        components._operation.cache_clear()
        torch.manual_seed(5)
        found[name] = [engine.sampler.sample_tts(logits, **arguments) for _ in range(2)]
    first, second = found["reference"]
    assert (first.shape, first.dtype) == ((3, 9), torch.int64)
    assert not torch.equal(first, second)
    assert all(torch.equal(a, b) for a, b in zip(found["triton"], found["reference"], strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_greedy_requests_get_the_codes_that_they_got(engine, backend, seeded, dtype):
    logits = (seeded(2, 4, 1026) * 4).to(dtype)
    logits[0, 0, [3, 700]] = 20.0
    requests = [(0.0, 106, 0.0, 0.18, 1.2), (-0.5, 0, 0.9, 0.0, 1.5)]
    arguments = asked(requests, rep_token_ids=window(logits))
    before = engine.sampler.sample_tts(logits, **arguments)
    host.hook_parts(["sampler"])
    assert torch.equal(engine.sampler.sample_tts(logits, **arguments), before)


def test_a_row_that_is_no_distribution_is_padding_and_its_neighbours_are_not_touched(engine, backend, seeded):
    logits = seeded(2, 3, V)
    arguments = asked(REQUESTS[:2])
    host.hook_parts(["sampler"])
    torch.manual_seed(1)
    sound = engine.sampler.sample_tts(logits, **arguments)
    logits[0, 0, 5], logits[0, 1, 5], logits[1, 2] = float("nan"), float("inf"), -float("inf")
    torch.manual_seed(1)
    found = engine.sampler.sample_tts(logits, **arguments)
    broken = torch.tensor([[True, True, False], [False, False, True]])
    assert found[broken].tolist() == [V - 1] * 3
    assert torch.equal(found[~broken], sound[~broken])


def test_the_engine_may_compile_its_sampler(engine, interpreted, seeded):
    """Its runner does so by default."""
    logits, arguments = seeded(2, 2, V), asked(REQUESTS[:2])
    host.hook_parts(["sampler"])
    torch.manual_seed(2)
    eager = engine.sampler.sample_tts(logits, **arguments)
    torch.manual_seed(2)
    assert torch.equal(
        torch.compile(engine.sampler.sample_tts, dynamic=True, backend="eager")(logits, **arguments), eager
    )


@pytest.mark.parametrize("rows", [1, 8, 300])
def test_nothing_waits_for_a_device(engine, interpreted, rows):
    """As in a captured graph: fake tensors have no values, and a look at one is an error."""
    host.hook_parts(["attention", "experts", "sampler"])
    with FakeTensorMode():
        layer = engine.model.Zonos2DecoderLayer(config(engine), 3).requires_grad_(False)
        layer.attention.rotary = lambda positions, q, k: (q, k)
        layer.attention.attn.forward = lambda q, k, v, forward_batch: torch.empty_like(q)
        x, positions = torch.empty(rows, 64), torch.arange(rows)
        h, residual, states = layer(x, None, torch.empty(rows, 32), positions, None)
        assert (h.shape, residual.shape, states.shape) == ((rows, 64), (rows, 64), (rows, 32))
        numbers = {name: torch.ones(rows) for name in host.SAMPLING[:5]}
        seen = torch.zeros(rows, 9, 50, dtype=torch.long)
        codes = engine.sampler.sample_tts(torch.empty(rows, 9, V), **numbers, top_k_max=5, rep_token_ids=seen)
        assert (codes.shape, codes.dtype) == ((rows, 9), torch.int64)


# ---- the codec ----

HOP = 8


@pytest.fixture
def codec(engine, monkeypatch) -> Any:
    """The module of the engine's codec, which loads a small dac.DAC."""
    with importable(unpacked("descript-audio-codec", "1.0.0"), *audiotools()), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # weight_norm and torch.jit are old
        torch.manual_seed(0)
        sizes = {
            "encoder_dim": 4,
            "encoder_rates": [2, 4],
            "latent_dim": 16,
            "decoder_dim": 32,
            "decoder_rates": [4, 2],
        }
        small = importlib.import_module("dac.model.dac").DAC(**sizes, codebook_size=1024)
    package = ModuleType("dac")
    package.DAC = SimpleNamespace(load=lambda path: small)
    package.utils = SimpleNamespace(download=lambda model_type: model_type)
    monkeypatch.setitem(sys.modules, "dac", package)
    monkeypatch.setattr(engine.codec, "DAC_HOP_LENGTH", HOP)
    return engine.codec


def clip(rows: int, seed: int) -> Tensor:
    """Delayed codes [rows, 9], 8 of which are none of their own."""
    return torch.randint(1024, (rows, 9), generator=torch.Generator().manual_seed(seed))


def test_the_codec_decodes_as_it_did(codec, backend):
    with checked(bounds=False, undefined=False, races=False):
        codes = clip(13, 1)
        before = codec.Zonos2DACVocoder("cpu").decode(codes, 4)
        original = codec.get_dac("cpu")
        host.hook_parts(["vocoder"])
        vocoder = codec.Zonos2DACVocoder("cpu")
        assert vocoder.dac is codec.get_dac("cpu") is original
        assert {swap.op for swap in vars(original)[MARK].swapped} == {"from_codes", "decoder"}
        assert vars(original)[MARK].backend == backend
        after = vocoder.decode(codes, 4)
    assert after.shape == (4 * HOP,)
    assert apart(after, before) < 1e-5


def test_a_batch_of_clips_is_each_clip_alone(codec, monkeypatch):
    """Which it was not: a shorter one ended in what its padding sounds like."""
    monkeypatch.setenv(BACKEND, "reference")
    clips, ends = [clip(22, 1), clip(12, 2), clip(8, 3), clip(18, 4)], [None, 9, None, 3]
    vocoder = codec.Zonos2DACVocoder("cpu")
    before = vocoder.decode_batch(clips, ends)
    host.hook_parts(["vocoder"])
    vocoder = codec.Zonos2DACVocoder("cpu")
    alone = [vocoder.decode(codes, end) for codes, end in zip(clips, ends, strict=True)]
    together = vocoder.decode_batch(clips, ends)
    assert [len(samples) for samples in together] == [14 * HOP, 4 * HOP, 0, 3 * HOP]
    assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))
    assert apart(together[0], before[0]) < 1e-5
    assert apart(together[1], before[1]) > 1e-2
    assert vocoder.decode_batch([], []) == []


@pytest.mark.parametrize(
    ("codes", "ends", "error"),
    [([clip(9, 1)], [], "audio_codes_list and eos_frames length mismatch"),
     ([clip(9, 1), clip(9, 2)[None]], [None, None], r"each audio_codes entry must be \[T, 9\], got shape \(1, 9, 9\)")],
)  # fmt: skip
def test_wrong_batches_are_the_engines_errors(codec, codes, ends, error):
    host.hook_parts(["vocoder"])
    with pytest.raises(ValueError, match=error):
        codec.Zonos2DACVocoder("cpu").decode_batch(codes, ends)


def test_what_is_left_of_the_codec_is_in_the_log(codec, monkeypatch, caplog):
    report = SimpleNamespace(left=[Left("decoder", "differs from the original")])
    monkeypatch.setattr(components, "accelerate", lambda codec, strict: report)
    host.hook_parts(["vocoder"])
    codec.get_dac("cpu")
    assert "SGLang: vocoder stays with the engine: decoder: differs from the original" in caplog.text


# ---- the command ----


@pytest.fixture
def command(monkeypatch) -> list[str]:
    """What is called, in order, of an engine that is a stand-in."""
    called: list[str] = []
    for name, members in {
        "sglang.srt.plugins": {"load_plugins": lambda: called.append("plugins")},
        "sglang_omni.cli": {"app": lambda: called.append("app")},
    }.items():
        module = ModuleType(name)
        vars(module).update(members)
        for package in ("sglang", "sglang.srt", "sglang_omni"):
            monkeypatch.setitem(sys.modules, package, ModuleType(package))
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(launch, "plugin", lambda: called.append("plugin"))
    return called


def test_the_command_loads_plugins_before_the_engine(command, monkeypatch, caplog):
    monkeypatch.setenv(SGLANG, "experts")
    assert launch.main() == 0
    assert command == ["plugin", "plugins", "app"]
    assert not caplog.messages


def test_the_command_says_when_no_part_is_named(command, caplog):
    assert launch.main() == 0
    assert command == ["plugin", "plugins", "app"]
    assert "ZONOS2_TRITON_SGLANG names no part: sgl-omni runs as it is" in caplog.text


@pytest.mark.parametrize("error", [ImportError, ValueError])
def test_the_command_starts_nothing_where_the_plugin_cannot_take_its_place(command, monkeypatch, capsys, error):
    def refused() -> None:
        raise error("why")

    monkeypatch.setattr(launch, "plugin", refused)
    assert launch.main() == 1
    assert capsys.readouterr().err == "zonos2-triton: why\n"
    assert not command


def test_the_command_needs_the_engine():
    command = [sys.executable, "-m", launch.__name__, "serve"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, SGLANG: "all"})
    assert done.returncode == 1
    assert re.match(r"zonos2-triton: ZONOS2_TRITON_SGLANG: sglang\S* cannot be imported", done.stderr)
