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
from zonos2_triton.model.training.options import TrainOptions
from zonos2_triton.model.weights.checkpoint import Checkpoint, load_weights
from zonos2_triton.model.weights.lora import adapted, fingerprint, lora_layout, metadata_of
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
        self.saved = {name: t.to(device, torch.float32, copy=True) for name, t in weights.items()}  # of the state
        self.trained = {name: t.requires_grad_() for name, t in self.saved.items() if not name.endswith(BIASES)}
        self.identity = ""  # of what is not in the state

    def weights(self) -> Mapping[str, Tensor]:
        """By official name, as `network.bind` takes them."""
        return self.saved

    def balance(self, load: Tensor, size: float) -> None:
        """load [mixture layers, E]: an expert with less than its share becomes likelier, by `size`."""
        sign = BALANCING_SIGN[self.config.moe_balancing_strategy]
        for layer, shares in zip(self.config.moe_layers, load, strict=True):
            biases = self.saved[f"layers.{layer}.feed_forward.router.{BIASES}"]
            biases += sign * size * (1 / len(shares) - shares.to(biases)).sign()

    def export(self, folder: Path, params: Mapping[str, Any], dtype: str, used: Tensor | None, notice: str) -> None:
        """params.json and model.safetensors, which `Zonos2.load` reads.

        used: codes that were trained; None: all. notice: what `say` tells of the model; "": nothing.
        """
        made = {name: t.detach().to("cpu") for name, t in self.weights().items()}
        if used is not None:
            made[HEAD] = fill_unused(self.config, made[HEAD], used)
        made = {name: t.to(resolve_dtype(dtype)).contiguous() for name, t in made.items()}
        metadata = {"notice": notice} if notice else {"trained_by": f"zonos2-triton {__version__}"}
        save_tensors(folder / "model.safetensors", made, metadata)
        stated: Any = copy.deepcopy(params)
        (stated["model"] if isinstance(stated.get("model"), dict) else stated)["dtype"] = dtype
        write_whole(folder / "params.json", json.dumps(stated, indent=1) + "\n")


class LoraWeights(FullWeights):
    """The weights of a checkpoint as they are, and adapters that are trained."""

    def __init__(
        self,
        config: Zonos2Config,
        checkpoint: Checkpoint,
        options: TrainOptions,
        device: torch.device,
        merge: bool = False,
    ) -> None:
        """merge: export the model with the adapters added, too."""
        layout, generator = network.layout(config), torch.Generator().manual_seed(options.seed)
        base = load_weights(checkpoint, layout, device, torch.float32)
        adapter = {}
        for name, shape in lora_layout(layout, options.lora).items():  # B is 0, so training starts from the model
            x = torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu") / math.sqrt(shape[-1])
            adapter[name] = x if name.endswith("lora_a") else torch.zeros_like(x)
        super().__init__(config, adapter, device)
        self.base, self.identity = base, fingerprint(checkpoint, layout)
        self.rank, self.alpha, self.merge = options.lora, options.lora_alpha, merge

    def weights(self) -> Mapping[str, Tensor]:
        return adapted(self.base, self.saved, self.alpha / self.rank)

    def balance(self, load: Tensor, size: float) -> None:
        """Nothing: the biases belong to the model."""

    def export(self, folder: Path, params: Mapping[str, Any], dtype: str, used: Tensor | None, notice: str) -> None:
        """adapter.safetensors for `say --lora`; and the files of a whole model, if they are to be merged."""
        made = {name: tensor.detach().to("cpu") for name, tensor in self.saved.items()}
        about = metadata_of(self.rank, self.alpha, self.identity)
        save_tensors(folder / "adapter.safetensors", made, about)
        if self.merge:
            super().export(folder, params, dtype, used, notice)


def groups(trained: Mapping[str, Tensor], weight_decay: float) -> list[dict[str, Any]]:
    """For the optimiser: matrices decay, embeddings, norms, biases and temperatures do not."""
    decay, rest = list[Tensor](), list[Tensor]()
    for name, tensor in trained.items():
        plain = tensor.ndim < 2 or ".embedders." in name or name.endswith(".temp")
        (rest if plain else decay).append(tensor)
    kinds = ((decay, weight_decay), (rest, 0.0))
    return [{"params": tensors, "weight_decay": decayed} for tensors, decayed in kinds if tensors]
