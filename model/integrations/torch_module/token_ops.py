"""Modules that compute each token by itself: embedding, norms, dense layers, head."""

import torch
import torch.nn.functional as F
from torch import Tensor

from zonos2_triton.model.integrations.patching import sum_embeddings
from zonos2_triton.model.integrations.torch_module import structure
from zonos2_triton.model.integrations.torch_module.structure import COMPARED, Patch, TargetModel, flat, is_prefill


def norm(model: TargetModel) -> list[Patch]:
    paths = [f"layers.{i}.{name}" for i in range(model.config.n_layers) for name in ("attention_norm", "ffn_norm")]
    paths += [f"layers.{i}.feed_forward.router.rmsnorm_eda" for i in model.config.moe_layers]
    return [_one_norm(model, path) for path in [*paths, "out_norm"]]


def _one_norm(model: TargetModel, path: str) -> Patch:
    model.check_shapes(f"{path}.weight")
    module, _ = model.module(path, "x")
    eps, (width,) = model.eps(path), model.layout[f"{path}.weight"]

    def forward(x: Tensor) -> Tensor:
        return model.ops.add_rms_norm(flat(x, width), None, module.weight, eps)[1].view(x.shape)

    sizes = model.like.new_tensor([1e-3, 1.0, 30.0])[:, None]  # the smallest size shows a wrong eps
    return model.patch(path, module, forward, model.normal(3, width) * sizes)


def embedding(model: TargetModel) -> list[Patch]:
    config, path = model.config, "multi_embedder"
    tables = [f"{path}.embedders.{i}.weight" for i in range(config.n_codebooks + 1)]
    model.check_shapes(*tables)
    module, _ = model.module(path, "codes")
    embedders = [model.submodule(name.removesuffix(".weight")) for name in tables]
    largest = [config.codebook_vocab - 1] * config.n_codebooks + [config.text_vocab]
    largest_ids = torch.tensor(largest, dtype=torch.int64, device="cpu")

    def forward(codes: Tensor) -> Tensor:
        columns = zip(codes.reshape(-1, codes.shape[-1]).long().unbind(1), embedders, strict=True)
        found = [F.embedding(ids, embedder.weight) for ids, embedder in columns]
        return sum_embeddings(model.ops.frame_embedding, torch.stack(found)).view(*codes.shape[:-1], config.dim)

    drawn = (model.uniform(COMPARED, len(largest)) * (largest_ids + 1)).long()
    codes = torch.cat([drawn, largest_ids[None]])  # the largest ids are padding
    return [model.patch(path, module, forward, codes.to(model.like.device))]


def dense(model: TargetModel) -> list[Patch]:
    layers = [i for i in range(model.config.n_layers) if i not in model.config.moe_layers]
    if not layers:
        raise structure.Unsupported("no layer is dense")
    return [_one_dense(model, f"layers.{i}.feed_forward") for i in layers]


def _one_dense(model: TargetModel, path: str) -> Patch:
    model.check_shapes(f"{path}.w_in.weight", f"{path}.w_out.weight")
    module, _ = model.module(path, "x")
    w_in, w_out = (model.submodule(f"{path}.{name}") for name in ("w_in", "w_out"))
    dim = model.config.dim

    def forward(x: Tensor) -> Tensor:
        up, gate = w_in.weight.view(2, 1, -1, dim)
        return model.one_expert(x, gate, up, w_out.weight[None])

    return model.patch(path, module, forward, model.normal(COMPARED, dim))


def head(model: TargetModel) -> list[Patch]:
    config, path = model.config, "multi_output"
    model.check_shapes(f"{path}.weight")
    module, _ = model.module(path, "x")

    def forward(x: Tensor) -> Tensor:
        tokens = flat(x, config.dim)
        logits = model.ops.codebook_head(tokens, None, module.weight, config.n_codebooks, 0.0, 0.0, is_prefill(tokens))
        return logits.to(x.dtype).view(*x.shape[:-1], -1)  # a linear layer returns the dtype of its input

    return [model.patch(path, module, forward, model.normal(COMPARED, config.dim))]
