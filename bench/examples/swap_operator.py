"""Find a wrong operator: replace the operators of a model by their references, one at a time.

    python -m zonos2_triton.bench.examples.swap_operator

`Backbone.ops` is a frozen dataclass of functions. Here `moe_experts` is wrong on purpose. One line per operator tells
how far the logits are from the reference's when that operator alone is replaced: the wrong one is the one with zero.
"""

from dataclasses import fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor

from zonos2_triton.model import Backbone, build_prompt
from zonos2_triton.model.weights.tiny import write_tiny
from zonos2_triton.reference.ops import REFERENCE


def wrong_experts(*args: Any, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
    x, x_scaled, sum_sq = REFERENCE.moe_experts(*args, **options)
    return 1.01 * x, x_scaled, sum_sq


def main() -> None:
    with TemporaryDirectory() as folder:  # random weights; with your own: backend="triton"
        backbone = Backbone.load(write_tiny(Path(folder, "tiny")) / "model.safetensors", backend="reference")
    prompt = build_prompt(backbone.config, "Hello.")
    expected = backbone.trace(prompt)["logits"]

    suspects = replace(backbone.ops, moe_experts=wrong_experts)
    for field in fields(suspects):
        backbone.ops = replace(suspects, **{field.name: getattr(REFERENCE, field.name)})
        off = (backbone.trace(prompt)["logits"] - expected).abs().max().item()
        print(f"{field.name:18} replaced: {off:.1e}" + "  <- wrong" * (off == 0))


if __name__ == "__main__":
    main()
