"""The weights of a run: new ones, those that are trained, and the folder that the product loads."""

import copy
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zonos2_triton import __version__
from zonos2_triton.model.backend import resolve_dtype
from zonos2_triton.model.files import write_whole
from zonos2_triton.model.training.files import save_tensors
from zonos2_triton.model.training.loss import fill_unused
from zonos2_triton.reference import network
from zonos2_triton.reference.config import BALANCING_SIGN, Zonos2Config

BIASES = "balancing_biases"
HEAD = "multi_output.weight"


def new_weights(config: Zonos2Config, seed: int) -> dict[str, Tensor]:
    """Weights to train from: matrices of variance 1 / fan-in, half of that deviation where they enter the stream."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in network.layout(config).items():
        x = torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")
        if name.endswith(("norm.weight", "rmsnorm_eda.weight")):
            x = torch.ones_like(x)
        elif name.endswith(".temp"):
            x = torch.full_like(x, 1.5)
        elif name.endswith("router_states_scale"):
            x = torch.full_like(x, 0.5)
        elif name.endswith((".bias", BIASES)):
            x = torch.zeros_like(x)
        elif ".embedders." not in name:
            narrow = name == HEAD or name.endswith((".wo.weight", ".w_out.weight", ".w2"))
            x = x * (0.5 if narrow else 1) / math.sqrt(shape[-1])
        weights[name] = x
    return weights


class FullWeights:
    """All weights, in fp32: each is trained, except for the balancing biases, which `balance` moves."""

    def __init__(self, config: Zonos2Config, weights: Mapping[str, Tensor], device: torch.device) -> None:
        self.config = config
        self.kept = {name: t.to(device, torch.float32, copy=True) for name, t in weights.items()}
        self.trained = {name: t.requires_grad_() for name, t in self.kept.items() if not name.endswith(BIASES)}

    def weights(self) -> Mapping[str, Tensor]:
        """By official name, as `network.bind` takes them."""
        return self.kept

    def balance(self, load: Tensor, size: float) -> None:
        """load [mixture layers, E]: an expert with less than its share becomes likelier, by `size`."""
        sign = BALANCING_SIGN[self.config.moe_balancing_strategy]
        for layer, shares in zip(self.config.moe_layers, load, strict=True):
            biases = self.kept[f"layers.{layer}.feed_forward.router.{BIASES}"]
            biases += sign * size * (1 / len(shares) - shares.to(biases)).sign()

    def groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """For the optimiser: matrices decay, embeddings, norms, biases and temperatures do not."""
        decay, rest = list[Tensor](), list[Tensor]()
        for name, tensor in self.trained.items():
            plain = tensor.ndim < 2 or ".embedders." in name or name.endswith(".temp")
            (rest if plain else decay).append(tensor)
        return [{"params": decay, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]

    def export(self, folder: Path, params: Mapping[str, Any], dtype: str, used: Tensor | None, notice: str) -> None:
        """params.json and model.safetensors, which `Zonos2.load` reads.

        used: codes that were trained; None: all. notice: what `say` tells of the model; "": nothing.
        """
        made = {name: t.detach().to("cpu") for name, t in self.kept.items()}
        if used is not None:
            made[HEAD] = fill_unused(self.config, made[HEAD], used)
        made = {name: t.to(resolve_dtype(dtype)).contiguous() for name, t in made.items()}
        save_tensors(
            folder / "model.safetensors",
            made,
            {"notice": notice} if notice else {"trained_by": f"zonos2-triton {__version__}"},
        )
        stated: Any = copy.deepcopy(params)
        (stated["model"] if isinstance(stated.get("model"), dict) else stated)["dtype"] = dtype
        write_whole(folder / "params.json", json.dumps(stated, indent=1) + "\n")
