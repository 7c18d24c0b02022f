"""Fresh memory that shows who reads it unwritten, and who writes beside it: poison between guard bands."""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

GUARD = 64  # bytes of a band: the extent starts as aligned as the buffer
GUARD_BYTE = 0xA5  # as a float of any width a small negative number, as an integer a negative one: easy to recognise


class GuardBandTouched(RuntimeError):
    """Something wrote before or after an allocation."""


def extent_bytes(tensor: Tensor) -> int:
    """From the first element to the end of the last one, gaps included."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size() if tensor.numel() else 0


class Poison:
    """The allocations of one `poisoned` block."""

    def __init__(self) -> None:
        self.allocations: list[tuple[str, Tensor]] = []  # what, and its buffer: guard band, extent, guard band
        self.empty = torch.empty

    def verify(self) -> None:
        """Raises GuardBandTouched, naming each allocation that was written outside its extent."""
        touched = []
        for what, buffer in self.allocations:
            after = buffer.numel() - GUARD
            for side, band in (("before", buffer[:GUARD]), ("after", buffer[after:])):
                if count := int((band != GUARD_BYTE).sum()):
                    touched.append(f"{count} bytes {side} the extent of {what}")
        if touched:
            raise GuardBandTouched("written: " + "; ".join(touched))

    def around(self, name: str, allocate: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """`allocate`, whose result serves as the pattern for a poisoned one."""

        def allocate_poisoned(*args: Any, **kwargs: Any) -> Tensor:
            plain = allocate(*args, **kwargs)
            ordinary = type(plain) is Tensor and plain.layout == torch.strided and not plain.is_quantized
            elsewhere = kwargs.get("out") is not None or kwargs.get("pin_memory")
            if not ordinary or elsewhere or plain.is_meta or plain.numel() == 0:
                return plain
            return self.allocate(name, plain)

        return allocate_poisoned

    def allocate(self, name: str, like: Tensor) -> Tensor:
        size = extent_bytes(like)
        buffer = self.empty(size + 2 * GUARD, dtype=torch.uint8, device=like.device).fill_(GUARD_BYTE)
        extent = buffer[GUARD : GUARD + size].view(like.dtype)
        if like.dtype.is_floating_point or like.dtype.is_complex:
            extent.fill_(math.nan)
        else:
            extent.fill_(True if like.dtype == torch.bool else torch.iinfo(like.dtype).min)
        self.allocations.append((f"{name}({list(like.shape)}, {like.dtype})", buffer))
        # Not a view: autograd and torch.library treat it as they treat what torch.empty returns.
        start = GUARD // like.element_size()
        tensor = self.empty(0, dtype=like.dtype, device=like.device)
        tensor.set_(buffer.untyped_storage(), start, like.shape, like.stride())
        return tensor.requires_grad_(like.requires_grad)


@contextmanager
def poisoned() -> Iterator[Poison]:
    """Uninitialised tensors are full of NaN, the minimum of their integer type or True, and lie between guard bands.

    That holds for torch.empty, empty_like, empty_strided and Tensor.new_empty, on any device. Left alone: fake, meta,
    sparse, quantised, pinned and empty tensors, and what is written to `out=`. Buffers live until the block ends, which
    verifies them; `verify()` does so earlier.
    """
    poison = Poison()
    owners = {torch: ("empty", "empty_like", "empty_strided"), Tensor: ("new_empty",)}
    with ExitStack() as patches:
        for owner, names in owners.items():
            members: dict[str, Any] = {name: poison.around(name, getattr(owner, name)) for name in names}
            patches.enter_context(patch.multiple(owner, **members))
        yield poison
    poison.verify()
