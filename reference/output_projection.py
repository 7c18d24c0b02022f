"""The projection out of attention, with the residual add."""

from torch import Tensor

from zonos2_triton.reference.numeric import wide


def output_projection(y: Tensor, weight: Tensor, residual: Tensor | None, prefill: bool = False) -> Tensor:
    """y [M, HQ * DH], weight [D, HQ * DH], residual [M, D] -> residual + weight y, [M, D], the sum rounded once.

    A residual of None adds nothing. `prefill` is for kernels.
    """
    x = y @ weight.T
    return x if residual is None else (wide(residual) + wide(x)).to(residual.dtype)
