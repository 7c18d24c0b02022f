"""`accelerate(zonos2)`: what the package will build in this process, by names where it looks them up."""

import inspect
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from tests.integrations.zonos2_engine.official import Official, build, imported, random_weights, standing_in
from zonos2_triton import _settings
from zonos2_triton.model.integrations.accelerate import MARK, accelerate
from zonos2_triton.model.integrations.zonos2_engine import package as host
from zonos2_triton.model.integrations.zonos2_engine.attention import BACKEND, Backend
from zonos2_triton.model.integrations.zonos2_engine.sampler import Sampler

NAMES = [("engine.engine", "create_attention_backend"), ("engine.engine", "GraphRunner"),
         ("engine.sample", "TTSSampler"), ("tokenizer.vocoder", "_get_dac")]  # fmt: skip


@pytest.fixture(scope="module", params=["stand-in", "official"])
def official(request: pytest.FixtureRequest) -> Iterator[Official]:
    with {"stand-in": standing_in, "official": imported}[request.param]() as found, torch.inference_mode():
        yield found


@pytest.fixture
def package(official: Official) -> Iterator[ModuleType]:
    official("core")
    found = sys.modules["zonos2"]
    yield found
    if MARK in vars(found):
        vars(found)[MARK].restore()


@pytest.fixture
def model(official: Official, golden: Any) -> Any:
    params = golden.json("params_b") | {"n_layers": 2, "special_topk_layers": {}, "moe_end_from_layer": 0}
    return build(official, params, random_weights(params))


def held(official: Official, package: ModuleType) -> dict[str, int]:
    found = {name: id(getattr(official(path), name)) for path, name in NAMES}
    registry = official("attention").SUPPORTED_ATTENTION_BACKENDS
    return found | {"registry": id(registry._registry), "mark": id(vars(package).get(MARK))}


def runner(official: Official, monkeypatch: pytest.MonkeyPatch, model: Any) -> Any:
    """What the engine makes of its model; nothing is captured without a GPU."""
    made = official("engine.engine").GraphRunner
    monkeypatch.setattr(official("engine.graph").GraphRunner, "_capture_graphs", lambda *_: {}, raising=False)
    given = dict.fromkeys(inspect.signature(official("engine.graph").GraphRunner).parameters)
    return made(**given | {"model": model} | ({"cuda_graph_bs": [1]} if "cuda_graph_bs" in given else {}))


def test_what_is_replaced(official, package):
    before = held(official, package)
    report = accelerate(package, backend="reference")
    assert [swap.op for swap in report.swapped] == ["attention", "model", "sampler", "vocoder"]
    assert str(report).startswith("zonos2: 4 operations by the reference backend")
    assert not set(held(official, package).items()) & set(before.items())
    assert accelerate(package, backend="reference") is report
    report.restore()
    assert held(official, package) == before


def test_the_attention_backend(official, package):
    registry = official("attention").SUPPORTED_ATTENTION_BACKENDS
    names = registry.supported_names()
    kvcache = SimpleNamespace(k_cache=lambda layer: torch.zeros(4, 1, 2, 16))
    with accelerate(package, only="attention", backend="reference"):
        assert registry.supported_names() == [*names, BACKEND]
        for name in ("auto", BACKEND):
            made = official("engine.engine").create_attention_backend(name, None, kvcache, torch.zeros(2, 8))
            assert isinstance(made, Backend)
        wrong = SimpleNamespace(k_cache=lambda layer: torch.zeros(4, 5, 1, 2, 16)[:, layer])  # layers side by side
        with pytest.raises(
            ValueError, match=r"zonos2_triton: the cache .* contiguous, got \[4, 1, 2, 16\] with strides"
        ):
            official("engine.engine").create_attention_backend(BACKEND, None, wrong, torch.zeros(2, 8))
    assert registry.supported_names() == names


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_a_model_is_accelerated_before_its_graphs_are_captured(official, package, monkeypatch, model, backend):
    accelerate(package, only="model", backend=backend)
    made = runner(official, monkeypatch, model)
    assert isinstance(made, official("engine.graph").GraphRunner)
    report = vars(model)[MARK]
    assert (report.backend, len(report.left)) == (backend, 0)
    assert report.max_error < 1e-5
    captured = getattr(made, "captured", ({"compute_logits": None},))[0]  # the stand-in remembers what it was given
    assert "compute_logits" in captured


def test_models_are_treated_as_the_package_was(official, package, monkeypatch, model):
    accelerate(package, only="model", backend="reference", verify=False)
    runner(official, monkeypatch, model)
    assert vars(model)[MARK].asked[1:] == (True, False, "reference")
    assert vars(model)[MARK].max_error is None


def test_a_model_that_cannot_be_is_an_error_there(official, package, monkeypatch, model):
    accelerate(package, only="model", backend="reference")
    model.layers.op_list[0].attention.wo.weight = torch.zeros(1)
    with pytest.raises(ValueError, match=r"layers.0.attention.wo.weight must have shape"):
        runner(official, monkeypatch, model)


def test_the_sampler(official, package):
    original = official("engine.sample").TTSSampler
    report = accelerate(package, only="sampler", backend="reference")
    made = official("engine.sample").TTSSampler(torch.device("cpu"), 9, 1024, 519)
    assert isinstance(made, Sampler)
    assert isinstance(made, original)
    assert (report.swapped[0].error, report.swapped[0].bound) == (0.0, 0.0)
    assert (made.n_codebooks, made.codebook_size, made.text_vocab) == (9, 1024, 519)


def test_a_wrong_sampler_is_refused(official, package, monkeypatch):
    before = held(official, package)
    never = lambda self, logits, args: torch.full(logits.shape, -5, dtype=torch.int32)  # noqa: E731
    monkeypatch.setattr(Sampler, "_last_seen", never)
    with pytest.raises(ValueError, match="sampler cannot be swapped: differs from the original by inf"):
        accelerate(package, only="sampler", backend="reference")
    assert held(official, package) == before


def test_the_codec_is_accelerated_when_it_is_loaded(official, package, monkeypatch):
    asked = []

    def accelerated(dac: nn.Module, **options: Any) -> None:
        assert not dac.training
        assert not any(weight.requires_grad for weight in dac.parameters())
        vars(dac)[MARK] = asked.append(options)

    monkeypatch.setattr(host, "accelerate", accelerated)
    with torch.inference_mode(False):
        monkeypatch.setattr(official("tokenizer.vocoder"), "_dac_model", nn.Linear(2, 2))
    accelerate(package, only="vocoder", strict=False, backend="reference")
    first, second = (official("tokenizer.vocoder")._get_dac() for _ in range(2))
    assert first is second is official("tokenizer.vocoder")._dac_model
    assert asked == [{"strict": False, "verify": True, "backend": "reference"}]


def test_a_codec_that_is_one(official, package, monkeypatch):
    """As the detokenizer loads it: within inference mode, in training mode and with gradients."""
    transformers = pytest.importorskip("transformers")
    sizes = {
        "encoder_hidden_size": 8,
        "decoder_hidden_size": 32,
        "hidden_size": 16,
        "codebook_dim": 4,
        "n_codebooks": 9,
    }
    config = transformers.DacConfig(**sizes, downsampling_ratios=[2, 2], upsampling_ratios=[2, 2])
    monkeypatch.setattr(official("tokenizer.vocoder"), "_dac_model", transformers.DacModel(config).train())
    accelerate(package, only="vocoder", backend="reference")
    codec = official("tokenizer.vocoder")._get_dac()
    assert [swap.op for swap in vars(codec)[MARK].swapped] == ["from_codes", "decoder"]
    assert codec.decode(audio_codes=torch.zeros(1, 9, 3, dtype=torch.int64)).audio_values.shape == (1, 12)


@pytest.mark.parametrize(
    ("path", "name", "value", "op", "message"),
    [
        ("engine.engine", "GraphRunner", type("GraphRunner", (), {}), "model", r"must take \(model\), got \(\)"),
        ("engine.sample", "TTSSampler", None, "sampler", "has no attribute 'TTSSampler'"),
    ],
)
def test_another_package_is_refused(official, package, monkeypatch, path, name, value, op, message):
    if value is None:
        monkeypatch.delattr(official(path), name)
    else:
        monkeypatch.setattr(official(path), name, value)
    with pytest.raises(ValueError, match=rf"zonos2: {op} cannot be swapped: zonos2.{path}.{name} .*{message}"):
        accelerate(package, only=op, backend="reference")
    report = accelerate(package, only=op, strict=False, backend="reference")
    assert [left.op for left in report.left] == [op]


def test_a_module_that_is_missing(official, package, monkeypatch):
    official("engine.sample")
    monkeypatch.setitem(sys.modules, "zonos2.engine.sample", None)
    with pytest.raises(ValueError, match=r"zonos2.engine.sample.TTSSampler cannot be had: import of zonos2"):
        accelerate(package, only="sampler", backend="reference")


def test_disabled(official, package, monkeypatch):
    monkeypatch.setenv(_settings.DISABLE, "1")
    before = held(official, package)
    report = accelerate(package)
    assert [left.op for left in report.left] == ["attention", "model", "sampler", "vocoder"]
    assert held(official, package) == before
