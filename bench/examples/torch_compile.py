"""Use an operator under torch.compile(fullgraph=True).

    python -m zonos2_triton.bench.examples.torch_compile

The compiler sees the operator as one node between PyTorch's own, so there is no graph break. The result has the bits of
the uncompiled function.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from zonos2_triton.kernels.add_rms_norm import add_rms_norm


def gated_norm(x: Tensor, residual: Tensor, weight: Tensor) -> Tensor:
    total, normed = add_rms_norm(x, residual, weight, 1e-5)
    return normed * total.sigmoid()


def show(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
    """A backend that prints the graph and runs it as it is; for speed, take the default one."""
    print("nodes:", ", ".join(node.name for node in graph.graph.nodes if node.op.startswith("call")))
    return graph.forward


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x, residual = torch.randn(2, 4, 2048, device=device)
    weight = torch.rand(2048, device=device)

    compiled = torch.compile(gated_norm, fullgraph=True, backend=show)
    same = torch.equal(compiled(x, residual, weight), gated_norm(x, residual, weight))
    print(f"same bits: {same}")


if __name__ == "__main__":
    main()
