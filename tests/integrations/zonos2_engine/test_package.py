"""`accelerate(zonos2)` patches the names from which the package will build models, samplers and codecs."""

import inspect
import sys
from types import SimpleNamespace

import pytest
import torch

from zonos2_triton.model.integrations.accelerate import MARK, accelerate
from zonos2_triton.model.integrations.zonos2_engine.attention import BACKEND, Backend
from zonos2_triton.model.integrations.zonos2_engine.sampler import Sampler

NAMES = [("engine.engine", "create_attention_backend"), ("engine.engine", "GraphRunner"),
         ("engine.sample", "TTSSampler"), ("tokenizer.vocoder", "_get_dac")]  # fmt: skip


@pytest.fixture
def package(official):
    official("core")
    found = sys.modules["zonos2"]
    yield found
    if MARK in vars(found):
        vars(found)[MARK].restore()


def held(official, package):
    found = {name: id(getattr(official(path), name)) for path, name in NAMES}
    registry = official("attention").SUPPORTED_ATTENTION_BACKENDS
    return found | {"registry": id(registry._registry), "mark": id(vars(package).get(MARK))}


@pytest.fixture
def runner(official, monkeypatch, model):
    """() -> the engine's GraphRunner of its model; without a GPU it captures nothing."""

    def made():
        graphs = official("engine.graph").GraphRunner
        monkeypatch.setattr(graphs, "_capture_graphs", lambda *_: {}, raising=False)
        given = dict.fromkeys(inspect.signature(graphs).parameters)
        given |= {"model": model} | ({"cuda_graph_bs": [1]} if "cuda_graph_bs" in given else {})
        return official("engine.engine").GraphRunner(**given)

    return made


def test_what_is_replaced(official, package):
    before = held(official, package)
    report = accelerate(package, backend="reference")
    assert [patch.op for patch in report.patched] == ["attention", "model", "sampler", "vocoder"]
    assert str(report).startswith("zonos2: 4 operations by the reference backend")
    assert not set(held(official, package).items()) & set(before.items())
    report.restore()
    assert held(official, package) == before


def test_auto_replaces_nothing_without_a_gpu(official, package, model, monkeypatch):
    """Neither in the package nor in its model, unless ZONOS2_TRITON_BACKEND sets the meaning of auto."""
    before = held(official, package)
    for obj in (package, model):
        report = accelerate(obj)
        assert not report.patched
        assert all("on a cpu" in row.reason for row in report.skipped)
    assert held(official, package) == before
    monkeypatch.setenv("ZONOS2_TRITON_BACKEND", "reference")
    with accelerate(package) as report:
        assert (report.backend, len(report.patched)) == ("auto", 4)


def test_the_attention_backend(official, package):
    registry = official("attention").SUPPORTED_ATTENTION_BACKENDS
    names = registry.supported_names()
    kvcache = SimpleNamespace(k_cache=lambda layer: torch.zeros(4, 1, 2, 16))
    with accelerate(package, only="attention", backend="reference"):
        assert registry.supported_names() == [*names, BACKEND]
        create = official("engine.engine").create_attention_backend
        for name in ("auto", BACKEND):
            assert isinstance(create(name, None, kvcache, torch.zeros(2, 8)), Backend)
        wrong = SimpleNamespace(k_cache=lambda layer: torch.zeros(4, 5, 1, 2, 16)[:, layer])  # layers side by side
        with pytest.raises(ValueError, match=r"zonos2_triton: the cache .* contiguous, got \[4, 1, 2, 16\] with strid"):
            create(BACKEND, None, wrong, torch.zeros(2, 8))
    assert registry.supported_names() == names


@pytest.mark.parametrize("verify", [True, False])
def test_a_model_is_accelerated_before_its_graphs_are_captured(official, package, model, runner, verify):
    """With the package's arguments."""
    accelerate(package, only="model", backend="reference", verify=verify)
    made = runner()
    assert isinstance(made, official("engine.graph").GraphRunner)
    report = vars(model)[MARK]
    assert report.arguments[1:] == (True, verify, "reference")
    assert not report.skipped
    assert report.max_error < 1e-5 if verify else report.max_error is None
    captured = getattr(made, "captured", ({"compute_logits": None},))[0]  # the stand-in keeps its arguments
    assert "compute_logits" in captured


def test_a_model_that_cannot_be_is_an_error_there(package, model, runner):
    accelerate(package, only="model", backend="reference")
    model.layers.op_list[0].attention.wo.weight = torch.zeros(1)
    with pytest.raises(ValueError, match=r"layers.0.attention.wo.weight must have shape"):
        runner()


def test_the_sampler(official, package):
    original = official("engine.sample").TTSSampler
    report = accelerate(package, only="sampler", backend="reference")
    made = official("engine.sample").TTSSampler(torch.device("cpu"), 9, 1024, 519)
    assert isinstance(made, Sampler)
    assert isinstance(made, original)
    assert (report.patched[0].error, report.patched[0].bound) == (0.0, 0.0)
    assert (made.n_codebooks, made.codebook_size, made.text_vocab) == (9, 1024, 519)


def test_a_wrong_sampler_is_refused(official, package, monkeypatch):
    before = held(official, package)
    never = lambda self, logits, args: torch.full(logits.shape, -5, dtype=torch.int32)  # noqa: E731
    monkeypatch.setattr(Sampler, "_last_seen", never)
    with pytest.raises(ValueError, match="sampler cannot be patched: differs from the original by inf"):
        accelerate(package, only="sampler", backend="reference")
    assert held(official, package) == before


@pytest.mark.needs("transformers")
def test_the_codec_is_accelerated_when_it_is_loaded(official, package, monkeypatch):
    """With the package's arguments; the detokenizer loads it in inference mode, in training mode and with gradients."""
    from transformers import DacConfig, DacModel

    sizes = {"encoder_hidden_size": 8, "decoder_hidden_size": 32, "hidden_size": 16, "codebook_dim": 4}
    config = DacConfig(**sizes, n_codebooks=9, downsampling_ratios=[2, 2], upsampling_ratios=[2, 2])
    monkeypatch.setattr(official("tokenizer.vocoder"), "_dac_model", DacModel(config).train())
    accelerate(package, only="vocoder", strict=False, backend="reference")
    codec, again = (official("tokenizer.vocoder")._get_dac() for _ in range(2))
    assert codec is again is official("tokenizer.vocoder")._dac_model
    assert vars(codec)[MARK].arguments[1:] == (False, True, "reference")
    assert [patch.op for patch in vars(codec)[MARK].patched] == ["from_codes", "decoder"]
    assert codec.decode(audio_codes=torch.zeros(1, 9, 3, dtype=torch.int64)).audio_values.shape == (1, 12)


@pytest.mark.parametrize(
    ("spoil", "op", "message"),
    [
        (lambda patch, core, _: patch.setattr(core, "GraphRunner", object), "model", "engine.GraphRunner .*must take"),
        (lambda patch, _, sample: patch.delattr(sample, "TTSSampler"), "sampler", "sample.TTSSampler .*no attribute"),
        (lambda patch, _, sample: patch.setitem(sys.modules, sample.__name__, None), "sampler", "sample.* import of"),
    ],
    ids=["signature", "name", "module"],
)
def test_another_package_is_refused(official, package, monkeypatch, spoil, op, message):
    spoil(monkeypatch, official("engine.engine"), official("engine.sample"))
    with pytest.raises(ValueError, match=rf"zonos2: {op} cannot be patched: zonos2.engine.{message}"):
        accelerate(package, only=op, backend="reference")
    assert [row.op for row in accelerate(package, only=op, strict=False, backend="reference").skipped] == [op]
