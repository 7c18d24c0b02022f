"""The settings of a training run. They need no torch, so the command's help is quick."""

import math
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class TrainOptions:
    """Settings by name; a value out of range is a ValueError."""

    steps: int = 3600
    batch_tokens: int = 2048
    lr: float = 2e-3
    final_lr: float = 0.03
    warmup: int = 40
    weight_decay: float = 0.05
    beta1: float = 0.9
    beta2: float = 0.95
    clip: float = 1.0
    bf16: bool = False
    seed: int = 0
    codebook_weights: tuple[float, ...] = ()
    z_loss: float = 1e-3
    balance_loss: float = 0.01
    balance_update: float = 0.004
    guide_layers: tuple[int, ...] = ()
    guide_weight: float = 0.5
    final_guide_weight: float = 0.05
    used_codes: bool = False
    lora: int = 0
    lora_alpha: float = 16.0
    conditioning_dropout: float = 0.1
    log_every: int = 10
    eval_every: int = 200
    save_every: int = 200

    def __post_init__(self) -> None:
        for field in fields(self):
            name, value = field.name, getattr(self, field.name)
            low, high = RANGES.get(name, (0, math.inf))
            numbers = value if isinstance(value, tuple) else (value,)
            if not all(low <= number <= high for number in numbers):  # NaN is refused, too
                accepted = f"at least {low}" if high == math.inf else f"from {low} to {high}"
                raise ValueError(f"{name} must be {accepted}, got {value}")
        if self.lora and self.used_codes:
            raise ValueError("used_codes trains the head, which lora leaves as it is; give one of them")


# Ranges other than from 0.
RANGES = dict.fromkeys(("steps", "batch_tokens", "log_every", "eval_every", "save_every"), (1, math.inf))
RANGES |= dict.fromkeys(("final_lr", "beta1", "beta2", "conditioning_dropout"), (0, 1))
RANGES |= {"seed": (0, 2**63 - 1)}
MEANING = {
    "steps": "steps of the optimiser",
    "batch_tokens": "tokens of a batch, of each process; sequences are packed, not padded",
    "lr": "learning rate of AdamW after the warm-up",
    "final_lr": "share of it at the end of the cosine",
    "warmup": "steps in which it rises",
    "weight_decay": "of matrices; not of embeddings, norms and biases",
    "beta1": "decay of AdamW's first moment",
    "beta2": "decay of its second moment",
    "clip": "largest norm of the gradient",
    "bf16": "products in bfloat16 (autocast)",
    "seed": "of new weights, of the order of the data and of dropout",
    "codebook_weights": "weights of the codebooks' losses, such as 1,.8,.6; the last is repeated; default: 1",
    "z_loss": "weight of the squared logarithm of the softmax's sum",
    "balance_loss": "weight of the routers' balance loss",
    "balance_update": "step of the routers' balancing biases; it falls to 0",
    "guide_layers": "layers whose first head is guided by the alignment of the data",
    "guide_weight": "weight of guided attention at the start",
    "final_guide_weight": "and at the end",
    "used_codes": "train the head on codes of the data alone; at export, padding's weights fill the others",
    "lora": "rank of adapters of attention and experts, which are trained instead of all weights; 0: off",
    "lora_alpha": "they are scaled by this / rank",
    "conditioning_dropout": "share of sequences without their speaking rate, and without each quality",
    "log_every": "steps between points of the learning curves",
    "eval_every": "steps between losses of the held-out set",
    "save_every": "steps between checkpoints",
}


def schedule(options: TrainOptions, step: int) -> dict[str, float]:
    """The learning rate and weights of a step, counted from 0."""
    done = step / options.steps
    cosine = options.final_lr + (1 - options.final_lr) * 0.5 * (1 + math.cos(math.pi * done))
    rise = min(1.0, (step + 1) / max(options.warmup, 1))
    return {
        "lr": options.lr * rise * cosine,
        "guide_weight": options.guide_weight + (options.final_guide_weight - options.guide_weight) * done,
        "balance_update": options.balance_update * (1 - done),
    }


def weights_of(options: TrainOptions, n_codebooks: int) -> list[float]:
    """One weight for each codebook."""
    given: list[Any] = list(options.codebook_weights) or [1.0]
    if len(given) > n_codebooks:
        raise ValueError(f"codebook_weights must name at most {n_codebooks} weights, got {len(given)}")
    return given + [given[-1]] * (n_codebooks - len(given))
