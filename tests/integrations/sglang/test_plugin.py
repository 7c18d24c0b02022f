"""The plugin for sglang-omni: the wheels' functions that it relies on, its hooks, and their processes."""

import ast
import importlib
import logging
import os
import shutil
import sys
import tomllib
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from tests.integrations.wheels import unpacked
from zonos2_triton._settings import DISABLE, SGLANG, SGLANG_COMPONENTS
from zonos2_triton.model.integrations.sglang import components, launch, plugin
from zonos2_triton.reference.attention import QK_EPS

ROOT = Path(__file__).parents[3]
HOOK_POINTS = [*plugin.STAGE_START, *(point for points in plugin.HOOK_POINTS.values() for point in points)]


def definition(folder, target):
    """The definition of a dotted name below a folder of packages."""
    names, path = target.split("."), folder
    while not path.with_suffix(".py").is_file():
        path = path / names.pop(0)
    node = ast.parse(path.with_suffix(".py").read_text(encoding="utf-8"))
    for name in names:
        found = [child for child in node.body if getattr(child, "name", None) == name]
        assert found, f"{target}: there is no {name}"
        node = found[0]
    return node


def parameters(node):
    assert (node.args.vararg, node.args.kwarg) == (None, None)
    return tuple(arg.arg for arg in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs))


@pytest.mark.parametrize("version", ["0.5.22", pytest.param("0.5.23", marks=pytest.mark.slow)])
def test_sglang_has_the_interface_for_plugins(version):
    """0.5.23 is newer than the version that sglang-omni pins."""
    wheel = unpacked("sglang", version)
    for point in plugin.REGISTRATION:
        assert parameters(definition(wheel, point.target)) == ("cls", *point.parameters)
    group = ast.unparse(ast.parse((wheel / "sglang/srt/plugins/__init__.py").read_text(encoding="utf-8")))
    assert "GENERAL_PLUGINS_GROUP = 'sglang.srt.plugins'" in group
    around = ast.unparse(definition(wheel, f"{plugin.REGISTRY}._wrap_fn"))
    assert "return hook(original_fn, *args, **kwargs)" in around
    serving = ast.unparse(definition(wheel, "sglang.cli.serve.serve"))
    assert serving.index("load_plugins()") < serving.index("registered.backend.run(request)")


def test_the_engine_is_the_one_that_this_was_written_for(omni):
    (metadata,) = omni.glob("*.dist-info/METADATA")
    assert "Requires-Dist: sglang==0.5.22" in metadata.read_text(encoding="utf-8")
    assert f"sglang-omni {plugin.VERSION} with sglang 0.5.22" == plugin.WRITTEN_FOR
    zonos2 = omni / "sglang_omni/models/zonos2"
    assert f"_QK_NORM_EPS = {QK_EPS!r}\n".replace("1e-06", "1e-6") in (zonos2 / "sglang_model.py").read_text("utf-8")
    config = (zonos2 / "config.py").read_text(encoding="utf-8")
    for factory in set(plugin.STAGES.values()):
        assert f'f"{{_PKG}}.{factory.removeprefix(f"{plugin.ZONOS2}.")}"' in config
        definition(omni, factory)
    assert set(plugin.STAGES) == set(plugin.HOOK_POINTS) == {*SGLANG_COMPONENTS}


def test_a_mixture_is_known_by_names_that_sglang_has(sglang):
    layers = sglang / "sglang/srt/layers"
    layer = (layers / "moe/fused_moe_triton/layer.py").read_text(encoding="utf-8")
    method = (layers / "quantization/unquant.py").read_text(encoding="utf-8")
    runner = (layers / "moe/moe_runner/base.py").read_text(encoding="utf-8")
    assert "class FusedMoE(torch.nn.Module):" in layer
    for name in ("moe_tp_size", "moe_ep_size", "moe_runner_config", "quant_method"):
        assert f"self.{name} = " in layer
    assert "class UnquantizedFusedMoEMethod(" in method
    for name in ("runner = ", "with_bias = ", "w13_swiglu_interleaved = ", "_aiter_runner: "):
        assert f"self.{name}" in method
    for name, usual in components.SUPPORTED_RUNNER_CONFIG.items():
        typed = {"str": "str", "bool": "bool", "NoneType": "Optional[float]"}[type(usual).__name__]
        default = f'"{usual}"' if isinstance(usual, str) else repr(usual)
        assert f"    {name}: {typed} = {default}\n" in runner


def test_the_runner_takes_end_and_padding_out_of_what_is_penalised(omni):
    """`components.sample` relies on it."""
    runner = SimpleNamespace(model=SimpleNamespace(tail_params=SimpleNamespace(repetition_codebooks=2)))
    history = torch.tensor([[[1024, 7, 3], [5, 1025, 2], [-1, 4, 1]]])  # [1, frames, codebooks]
    runner.model.decode_state_pool = SimpleNamespace(rep_hist=history)
    params = SimpleNamespace(repetition_penalty=1.2, repetition_window=3, repetition_codebooks=2)
    expected = [[[-1, 5, -1], [7, -1, 4], [-1, -1, -1]]]
    for name, arguments in ("rep_window", (3, 1024, params)), ("rep_window_ring", (3, 3, 1024, "cpu")):
        scope = {"torch": torch}
        node = definition(omni, f"{plugin.RUNNER}.Zonos2ModelRunner.{name}")
        assert parameters(node) in [point.parameters for point in plugin.HOOK_POINTS["sampler"]]
        exec(ast.unparse(node), scope)
        assert scope[name](runner, [0], *arguments).tolist() == expected


@pytest.mark.parametrize("settings", [{SGLANG: ""}, {SGLANG: "0"}, {SGLANG: "all", DISABLE: "1"}], ids=str)
def test_nothing_happens_unless_components_are_named(monkeypatch, settings):
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(sys.modules, "sglang", None)  # an import would fail
    plugin.plugin()
    assert not plugin._registered


def test_the_package_declares_the_plugin():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["entry-points"]
    module, _, name = declared["sglang.srt.plugins"]["zonos2_triton"].partition(":")
    assert getattr(importlib.import_module(module), name) is plugin.plugin


def test_hooks_are_seen_where_the_functions_were_imported_before(engine):
    assert engine.model.sample_tts is engine.sampler.sample_tts
    before = engine.sampler.sample_tts
    plugin.hook_components(["sampler"])
    assert engine.model.sample_tts is engine.sampler.sample_tts is not before
    assert engine.model.sample_tts.__wrapped__ is before


def test_components_are_hooked_once_and_unnamed_ones_stay(engine):
    before = engine.model.Zonos2Attention.forward, engine.sampler.sample_tts, engine.codec.get_dac
    for _ in range(2):
        plugin.hook_components(["experts"])
    assert before == (engine.model.Zonos2Attention.forward, engine.sampler.sample_tts, engine.codec.get_dac)
    assert [*engine.registry.HookRegistry._patched] == [f"{plugin.MODEL}.Zonos2MoEBlock.forward"]
    assert not hasattr(engine.model.Zonos2MoEBlock.forward.__wrapped__, "__wrapped__")


@pytest.mark.parametrize("names", [["experts"], SGLANG_COMPONENTS], ids=["experts", "all"])
def test_another_signature_is_refused_and_nothing_is_hooked(engine, monkeypatch, names):
    def forward(self, x, router_states, scale): ...

    monkeypatch.setattr(engine.model.Zonos2MoEBlock, "forward", forward)
    with pytest.raises(ValueError, match="takes") as refused:
        plugin.hook_components(names)
    assert str(refused.value) == (
        f"ZONOS2_TRITON_SGLANG: {plugin.MODEL}.Zonos2MoEBlock.forward takes (self, x, router_states, scale), and this "
        "was written for (self, x, router_states) of sglang-omni 0.1.9 with sglang 0.5.22; nothing is hooked"
    )
    assert not engine.registry.HookRegistry._hooks
    assert not plugin._registered


def test_a_function_that_is_gone_is_refused(engine, monkeypatch):
    monkeypatch.delattr(engine.codec.Zonos2DACVocoder, "decode_batch")
    gone = r"there is no .*audio_codec\.Zonos2DACVocoder\.decode_batch; .* nothing is hooked"
    with pytest.raises(ValueError, match=gone):
        plugin.hook_components(["vocoder"])
    assert not engine.registry.HookRegistry._hooks


@pytest.mark.parametrize(
    ("name", "function", "kind", "message"),
    [
        ("register", lambda target, hook: None, ValueError, r"HookRegistry\.register takes \(target, hook\), and this"),
        ("apply_hooks", lambda: None, RuntimeError, r"SGLang did not hook .*MoEBlock\.forward; its log says why"),
    ],
)
def test_a_registry_that_does_otherwise_is_an_error(engine, monkeypatch, name, function, kind, message):
    monkeypatch.setattr(engine.registry.HookRegistry, name, function)
    with pytest.raises(kind, match=message):
        plugin.hook_components(["experts"])


def test_an_unknown_component_or_a_missing_engine_is_refused(monkeypatch):
    monkeypatch.setenv(SGLANG, "attention,expert")
    with pytest.raises(ValueError, match=r"SGLANG is 'attention,expert'; accepted: .*experts, sampler"):
        plugin.plugin()
    monkeypatch.setenv(SGLANG, "all")
    monkeypatch.setitem(sys.modules, "sglang", None)
    with pytest.raises(ImportError, match=r"^ZONOS2_TRITON_SGLANG: sglang\.srt\.plugins\.hook_registry cannot be imp"):
        plugin.plugin()


@pytest.mark.parametrize(("found", "said"), [("0.1.9", 0), ("0.2.0", 1)])
def test_another_version_is_said_once(engine, monkeypatch, caplog, found, said):
    monkeypatch.setattr(plugin, "version", lambda name: found)
    with caplog.at_level(logging.WARNING, "zonos2_triton"):
        plugin.hook_components(["experts"])
        plugin.hook_components(["sampler"])
    assert len(caplog.messages) == said
    assert all(found in message for message in caplog.messages)


def test_the_processes_of_stages_hook_what_they_compute_or_say_why_not(site, tmp_path, spawn):
    """The wheel's StageGroup starts them. The codec's stage has a function with one more argument, and refuses."""
    other = shutil.copytree(site, tmp_path / "site")
    codec = other / "sglang_omni/models/zonos2/components/audio_codec.py"
    text = codec.read_text(encoding="utf-8")
    codec.write_text(text.replace("def get_dac(device: str):", "def get_dac(device: str, dtype: str = ''):"))
    path = os.pathsep.join(map(str, (other, ROOT)))
    environment = {**os.environ, "PYTHONPATH": path, SGLANG: "all", "TRITON_INTERPRET": "1"}
    process = spawn([sys.executable, "-m", launch.__name__, "serve", plugin.ENGINE, plugin.VOCODER], env=environment)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    hooked = sorted(point.target for point in HOOK_POINTS if point.hook and point not in plugin.HOOK_POINTS["vocoder"])
    refused = f"ValueError: ZONOS2_TRITON_SGLANG: {plugin.CODEC}.get_dac takes (device, dtype), and this was"
    sound, broken = [line for line in out.splitlines() if line.startswith("ended ")]
    assert sound == f"ended {plugin.ENGINE} RuntimeError: hooked: {' '.join(hooked)}"
    assert broken.startswith(f"ended {plugin.VOCODER} {refused}")


@pytest.fixture
def command(monkeypatch):
    """The calls of a stand-in engine, in order."""
    called = []
    for name in ("sglang", "sglang.srt", "sglang.srt.plugins", "sglang_omni", "sglang_omni.cli"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["sglang.srt.plugins"].load_plugins = lambda: called.append("plugins")
    sys.modules["sglang_omni.cli"].app = lambda: called.append("app")
    monkeypatch.setattr(launch, "plugin", lambda: called.append("plugin"))
    return called


@pytest.mark.parametrize("named", ["experts", ""])
def test_the_command_loads_plugins_before_the_engine(command, monkeypatch, caplog, named):
    monkeypatch.setenv(SGLANG, named)
    assert launch.main() == 0
    assert command == ["plugin", "plugins", "app"]
    assert caplog.text.count("names no component: sgl-omni runs as it is") == (0 if named else 1)


@pytest.mark.parametrize("error", [ImportError, ValueError])
def test_the_command_starts_nothing_where_the_plugin_cannot_take_its_place(command, monkeypatch, capsys, error):
    def refused():
        raise error("why")

    monkeypatch.setattr(launch, "plugin", refused)
    assert launch.main() == 1
    assert capsys.readouterr().err == "zonos2-triton: why\n"
    assert not command
