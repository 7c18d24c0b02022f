"""LoRA adapters (Hu et al. 2021, arXiv:2106.09685): W + alpha / rank * B A, in a file beside the model.

For a weight W [..., out, in] the file holds `NAME.lora_a` A [..., rank, in] and `NAME.lora_b` B [..., out, rank].
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from zonos2_triton.model.weights.checkpoint import Checkpoint, check_values

TARGETS = re.compile(r"layers\.\d+\.(attention\.(wq|wkv|wo)\.weight|feed_forward\.experts\.(w13|w2))")
SAMPLED = 64  # numbers of each tensor that tell models apart


def lora_layout(layout: Mapping[str, list[int]], rank: int) -> dict[str, list[int]]:
    """{tensor name: shape} of an adapter: of every projection of attention and every expert."""
    shapes: dict[str, list[int]] = {}
    for name, shape in layout.items():
        if TARGETS.fullmatch(name):
            *batch, out, width = shape
            shapes |= {f"{name}.lora_a": [*batch, rank, width], f"{name}.lora_b": [*batch, out, rank]}
    return shapes


def adapted(weights: Mapping[str, Tensor], adapter: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """The weights with an adapter added, in their dtype. Gradients flow into the adapter."""
    made = dict(weights)
    for name in {name.rpartition(".")[0] for name in adapter}:
        delta = adapter[f"{name}.lora_b"] @ adapter[f"{name}.lora_a"]
        made[name] = (weights[name].to(delta.dtype) + scale * delta).to(weights[name].dtype)
    return made


def fingerprint(checkpoint: Checkpoint, layout: Mapping[str, list[int]]) -> str:
    """A hash of the first and last numbers of every tensor, whatever dtype they are stored in."""
    found, digest = checkpoint.tensors(layout), hashlib.sha256()
    for name in sorted(layout):
        flat = found[name].flatten()
        ends = torch.cat([flat[:SAMPLED], flat[-SAMPLED:]]).bfloat16().float()
        digest.update(name.encode() + ends.numpy().tobytes())
    return digest.hexdigest()


def metadata_of(rank: int, alpha: float, base: str) -> dict[str, str]:
    """The metadata of an adapter's file. base: the fingerprint of its model."""
    return {"lora": json.dumps({"rank": rank, "alpha": alpha, "base": base})}


def add_lora(
    path: str | Path, checkpoint: Checkpoint, layout: Mapping[str, list[int]], weights: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The weights of a checkpoint with the adapter of a file added.

    FileNotFoundError; ValueError: the file is no adapter, is damaged, or belongs to another model.
    """
    adapter = Checkpoint(path)
    try:
        about = json.loads(adapter.metadata["lora"])
        rank, alpha, base = int(about["rank"]), float(about["alpha"]), about["base"]
    except (KeyError, ValueError, TypeError) as error:
        raise ValueError(f"{path} is no LoRA adapter of zonos2-triton: its metadata lacks a rank and a base") from error
    wanted = lora_layout(layout, rank)
    wrong = [name for name in wanted.keys() | adapter.shapes.keys() if wanted.get(name) != adapter.shapes.get(name)]
    if wrong or base != fingerprint(checkpoint, layout):
        why = f"{min(wrong)} is {adapter.shapes.get(min(wrong))}, expected {wanted.get(min(wrong))}" if wrong else ""
        raise ValueError(f"{path} is a LoRA adapter of another model than {checkpoint.path}{f': {why}' * bool(why)}")
    tensors = adapter.tensors(wanted)
    check_values(path, tensors)
    like = next(iter(weights.values()))
    wide = torch.promote_types(like.dtype, torch.float32)
    return adapted(weights, {name: tensor.to(like.device, wide) for name, tensor in tensors.items()}, alpha / rank)
