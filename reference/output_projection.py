"""The projection out of attention, with the residual add."""

from torch import Tensor

from zonos2_triton.reference.add_rms_norm import prepare_norm
from zonos2_triton.reference.numeric import wide


def output_projection(
    y: Tensor, weight: Tensor, residual: Tensor | None, prefill: bool = False, next_norm_weight: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """y [M, HQ * DH], weight [D, HQ * DH], residual [M, D] -> x = residual + weight y, [M, D], the sum rounded once.

    Then x_scaled and sum_sq, as `prepare_norm` makes them of x for the norm that follows. A residual of None adds
    nothing. `prefill` is for kernels.
    """
    x = y @ weight.T
    if residual is not None:
        x = (wide(residual) + wide(x)).to(residual.dtype)
    return x, *prepare_norm(x, next_norm_weight)
