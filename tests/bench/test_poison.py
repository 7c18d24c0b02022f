"""Poisoned allocations between guard bands."""

import ctypes

import pytest
import torch
import triton
import triton.language as tl
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from zonos2_triton.bench.proof.interpreter import checked
from zonos2_triton.bench.proof.poison import GuardBandTouched, poisoned


@triton.jit
def _head_kernel(y_ptr, n, BLOCK: tl.constexpr):
    """Stores whole blocks only: the tail of y stays as it was."""
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + offs, tl.zeros((BLOCK,), tl.float32), mask=offs - offs % BLOCK + BLOCK <= n)


@pytest.mark.parametrize(
    ("allocate", "dtype"),
    [
        (lambda: torch.empty(3, 5), torch.float32),
        (lambda: torch.empty((7,), dtype=torch.bfloat16), torch.bfloat16),
        (lambda: torch.empty_like(torch.zeros(4, 6).t(), dtype=torch.float8_e4m3fn), torch.float8_e4m3fn),
        (lambda: torch.zeros(2).new_empty(3, dtype=torch.complex64), torch.complex64),
        (lambda: torch.empty_strided((2, 3), (8, 2)), torch.float32),
        (lambda: torch.empty(5, dtype=torch.int32), torch.int32),
        (lambda: torch.empty(5, dtype=torch.bool), torch.bool),
    ],
    ids=["empty", "bfloat16", "empty_like", "new_empty", "empty_strided", "int32", "bool"],
)
def test_poison(allocate, dtype):
    plain = allocate()
    with poisoned() as poison:
        x = allocate()
        assert (x.shape, x.stride(), x.dtype) == (plain.shape, plain.stride(), dtype)
        assert x.data_ptr() % 16 == 0
        assert x._base is None
        if dtype == torch.int32:
            assert (x == torch.iinfo(dtype).min).all()
        else:
            assert x.all() if dtype == torch.bool else x.to(torch.complex64).isnan().all()
        x.zero_()
        poison.verify()


def test_poison_leaves_alone_what_has_no_memory():
    out = torch.zeros(2)
    with poisoned() as poison:
        assert torch.empty(3, device="meta").is_meta
        with FakeTensorMode():
            assert type(torch.empty(3)) is FakeTensor
        assert torch.empty(0).numel() == 0
        assert torch.empty(2, out=out) is out
        assert torch.empty(2, requires_grad=True).requires_grad
        assert len(poison.allocations) == 1


@pytest.mark.interpreter
def test_poison_keeps_a_forgotten_tail():
    with poisoned(), checked():
        y = torch.empty(40)
        _head_kernel[(3,)](y, 40, BLOCK=16)
    assert y.isnan().tolist() == [False] * 32 + [True] * 8


@pytest.mark.parametrize(("offset", "side"), [(-1, "before"), (24, "after")])
def test_guard_bands(offset, side):
    def touch():
        with poisoned() as poison:
            torch.empty(8)
            x = torch.empty(2, 3)
            ctypes.memset(x.data_ptr(), 0, 24)
            poison.verify()
            ctypes.memset(x.data_ptr() + offset, 0, 1)

    with pytest.raises(GuardBandTouched, match=rf"1 bytes {side} the extent of empty\(\[2, 3\], torch.float32\)"):
        touch()
