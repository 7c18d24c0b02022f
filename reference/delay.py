"""The delay pattern: codebook j lags the first by j frames."""

from torch import Tensor


def shear(x: Tensor, pad: int) -> Tensor:
    """x [F, C] -> [F, C]: codebook j moves j frames later behind `pad`; its last j codes are lost."""
    return _shift(x, pad, 1)


def shear_up(x: Tensor, pad: int) -> Tensor:
    """x [F, C] -> [F, C]: codebook j moves j frames earlier before `pad`. Undoes `shear` up to the lost codes."""
    return _shift(x, pad, -1)


def _shift(x: Tensor, pad: int, sign: int) -> Tensor:
    y = x.new_full(x.shape, pad)
    for j in range(x.shape[1]):
        n = max(len(x) - j, 0)  # codes that stay in the block
        source, target = (0, len(x) - n) if sign > 0 else (len(x) - n, 0)
        y[target : target + n, j] = x[source : source + n, j]
    return y
