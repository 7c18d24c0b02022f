"""sglang-omni's ZONOS2 on a CPU: classes of the published wheels on stand-ins for SGLang's layers."""

import importlib
import sys
from types import SimpleNamespace

import pytest
import torch

from tests.integrations.sglang.standins import write_site
from tests.integrations.wheels import unpacked
from zonos2_triton._settings import BACKEND
from zonos2_triton.model.integrations.sglang import components, plugin

CACHED = (components._operation, components._log_once, plugin._warn_of_another_version)


@pytest.fixture(autouse=True)
def fresh(unset, monkeypatch):
    """No other setting, no registered hook, and no line in the log yet."""
    monkeypatch.setenv(BACKEND, "reference")  # on a CPU a backend must be named
    monkeypatch.setattr(plugin, "_registered", set())
    for cached in CACHED:
        cached.cache_clear()
    yield
    for cached in CACHED:
        cached.cache_clear()


@pytest.fixture(scope="session")
def omni():
    return unpacked("sglang-omni", plugin.VERSION)


@pytest.fixture(scope="session")
def sglang():
    """The version that sglang-omni pins."""
    return unpacked("sglang", "0.5.22")


@pytest.fixture(scope="session")
def site(omni, sglang, tmp_path_factory):
    return write_site(tmp_path_factory.mktemp("sglang") / "site", sglang_omni=omni, sglang=sglang)


@pytest.fixture
def engine(site, monkeypatch):
    """The modules that the plugin hooks, imported for this test alone."""
    monkeypatch.syspath_prepend(site)
    names = {"model": plugin.MODEL, "codec": plugin.CODEC, "sampler": f"{plugin.ZONOS2}.sampler"}
    names |= {"registry": plugin.REGISTRY, "config": f"{plugin.ZONOS2}.hf_config"}
    yield SimpleNamespace(**{name: importlib.import_module(module) for name, module in names.items()})
    for name in [name for name in sys.modules if name.split(".")[0] in ("sglang", "sglang_omni")]:
        del sys.modules[name]


@pytest.fixture(params=["reference", pytest.param("triton", marks=pytest.mark.interpreter)])
def backend(request, monkeypatch):
    monkeypatch.setenv(BACKEND, request.param)
    return request.param


@pytest.fixture
def stack(engine):
    """(dtype, further settings) -> the layers of a tiny model: mixtures in 1 to 3 of 5, the third with two experts."""
    sizes = {
        "dim": 64, "head_dim": 16, "n_heads": 4, "n_kv_heads": 2, "multiple_of": 32, "n_layers": 5, "max_seqlen": 64,
        "moe_n_experts": 4, "moe_router_dim": 32, "moe_start_from_layer": 1, "special_topk_layers": {3: 2},
    }  # fmt: skip

    def made(dtype=torch.float32, **changes):
        settings = engine.config.Zonos2Config(**sizes | changes)
        layers = [engine.model.Zonos2DecoderLayer(settings, i) for i in range(settings.n_layers)]
        return [fill(layer, dtype, seed=i) for i, layer in enumerate(layers)]

    made.sizes = sizes
    return made


def fill(module, dtype, seed):
    """Random weights of about the size of trained ones."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in (*module.parameters(), *module.buffers()):
        scale = 1.0 if tensor.ndim == 1 else tensor.shape[-1] ** -0.5
        tensor.data = (torch.randn(tensor.shape, generator=generator) * scale).to(dtype)
    return module.requires_grad_(False).eval()
