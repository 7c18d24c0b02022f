"""accelerate() on the ComfyUI node's model, whose experts are separate modules; needs a checkout."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.integrations.standins import held
from tests.integrations.torch_module.tiny import CONFIG, OPS, ids, logits, made, weights
from zonos2_triton.model import accelerate
from zonos2_triton.model.integrations.accelerate import difference
from zonos2_triton.model.weights.tiny import PARAMS


@pytest.fixture(scope="module")
def comfy(tmp_path_factory):
    """Its model on the weights of CONFIG; ZONOS2_COMFYUI names a checkout of Saganaki22/Zonos2_TTS-ComfyUI."""
    spec = importlib.util.spec_from_file_location("comfy_native", Path(os.environ["ZONOS2_COMFYUI"]) / "native.py")
    native = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "comfy_native", native)
        spec.loader.exec_module(native)
    params = {**PARAMS, "quality_buckets": {}, "quality_features": []}
    params |= {name: getattr(CONFIG, name) for name in PARAMS if name in CONFIG.__dataclass_fields__}
    config = native.Zonos2Config.from_dict(params | {"quality_features": [], "special_topk_layers": {1: 2}})

    def load(dtype=torch.float32):
        model = native.build_native_model(config)
        for name, tensor in weights().items():
            if name.endswith(("w13", "w2")):
                for expert, own in zip(model.get_submodule(name.rpartition(".")[0]).experts, tensor, strict=True):
                    kept = nn.Parameter(own.to(dtype, copy=True), requires_grad=False)
                    setattr(expert, "weight" if name.endswith("w13") else "bias", kept)
            else:
                native._set_parameter(model, name, tensor, torch.device("cpu"), dtype)
        model.eval().materialize_runtime_buffers(torch.device("cpu"))
        return model

    return load


def run_comfy(model, pieces=(7, 1, 1)):
    dtype = model.multi_output.weight.dtype
    caches = model.create_kv_cache(2, 12, torch.device("cpu"), dtype)
    return torch.stack([model(piece, caches, "sdpa") for piece in ids().split(pieces, 1)], 1)


def test_comfy(comfy, backend):
    model = comfy()
    before, expected = held(model), run_comfy(model)
    assert difference(expected, logits(made())[:, 6:]) < 1e-5
    report = accelerate(model, backend=backend)
    assert [(patch.op, patch.sites) for patch in report.patched] == [*zip(OPS, [1, 9, 3, 1, 2, 8, 1], strict=True)]
    assert difference(run_comfy(model), expected) < 5e-6
    report.restore()
    assert held(model) == before


def test_comfy_in_half_precision(comfy):
    assert accelerate(comfy(torch.bfloat16), backend="reference").max_error < 2e-2
