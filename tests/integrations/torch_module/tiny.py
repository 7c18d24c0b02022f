"""A small TorchModel, its variants, and its logits."""

import dataclasses

import torch

from tests.integrations.torch_model import TorchModel
from zonos2_triton.model.weights.tiny import PARAMS, backbone_weights
from zonos2_triton.reference.config import Zonos2Config

OPS = ["embedding", "norm", "attention", "dense", "router", "experts", "head"]
SITES = [1, 9, 3, 1, 2, 2, 1]
# A dense layer, a mixture with two experts per token, and one with one expert and a router state.
CONFIG = dataclasses.replace(
    Zonos2Config.from_params(PARAMS), n_layers=3, dim=32, head_dim=16, n_heads=4, n_kv_heads=2, multiple_of=16,
    rope_theta=5000.0, n_codebooks=3, codebook_size=30, eoa_id=30, audio_pad_id=31, speaker_enabled=False,
    moe_start_from_layer=1, moe_end_from_layer=0, special_topk_layers=((1, 2),),
)  # fmt: skip


def weights(config=CONFIG):
    return backbone_weights(config, torch.Generator().manual_seed(3))


def made(dtype=torch.float32, config=CONFIG):
    model = TorchModel(config)
    model.load_state_dict(weights(config))
    return model.to(dtype).eval().requires_grad_(False)


def each(model, path):
    """The modules at a path in each mixture layer."""
    return [layer.get_submodule(path) for layer in model.layers if hasattr(layer.feed_forward, "router")]


def variant(model, path, forward):
    for module in each(model, path):
        module.__class__ = type("Variant", (type(module),), {"forward": forward})
    return model


def ids(rows=2, length=9):
    most = torch.tensor([CONFIG.codebook_vocab] * CONFIG.n_codebooks + [CONFIG.text_vocab + 1])
    return (torch.rand(rows, length, len(most), generator=torch.Generator().manual_seed(4)) * most).long()


def logits(model, pieces=(7, 1, 1), tokens=None, room=12):
    """Logits [B, T, C, V] of a prompt and the tokens after it."""
    tokens = ids(length=sum(pieces)) if tokens is None else tokens
    caches = model.caches(len(tokens), room)
    return torch.cat([model(piece, caches) for piece in tokens.split(pieces, 1)], 1)


def rows(count=5):
    return torch.randn(1, count, CONFIG.dim, generator=torch.Generator().manual_seed(1))
