import threading

import pytest
import torch
import triton
import triton.language as tl

from zonos2_triton.kernels import _numeric
from zonos2_triton.reference.numeric import SWITCHES, decaying, exact_numerics, wide


def state():
    return [getattr(owner, name) for owner, name, _ in SWITCHES]


@pytest.fixture
def loose():
    """A process that has allowed everything."""
    before = state()
    for owner, name, value in SWITCHES:
        setattr(owner, name, "tf32" if value == "ieee" and owner is not torch.backends.mkldnn.matmul else value)
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.deterministic = False
    yield state()
    for (owner, name, _), value in zip(SWITCHES, before, strict=True):
        setattr(owner, name, value)


def test_exact_inside_and_as_before_outside(loose):
    with exact_numerics():
        assert state() == [value for _, _, value in SWITCHES]
    assert state() == loose
    with pytest.raises(KeyError), exact_numerics():
        raise KeyError
    assert state() == loose


def test_two_threads_share_the_switches(loose):
    """The first to leave does not change them for the other."""
    entered, leave, seen = threading.Event(), threading.Event(), []

    def other():
        with exact_numerics():
            entered.set()
            leave.wait(10)
            seen.append(state())

    thread = threading.Thread(target=other)
    with exact_numerics():
        thread.start()
        assert entered.wait(10)
    leave.set()
    thread.join()
    assert seen == [[value for _, _, value in SWITCHES]]
    assert state() == loose


@pytest.mark.parametrize(
    ("dtype", "wider"),
    [(torch.float64, torch.float64), (torch.float32, torch.float32), (torch.bfloat16, torch.float32)],
    ids=str,
)
def test_wide(dtype, wider):
    assert wide(torch.zeros(1, dtype=dtype)).dtype == wider


DENSE = torch.linspace(-87, 0, 2**20, dtype=torch.float64).float()  # exp of all of it is a normal number
NEAR_ZERO = -torch.logspace(-46, 1, 2**12, base=10, dtype=torch.float64).float()
HALVES = torch.log(torch.tensor(2.0)) * (torch.arange(-300, 1) / 2)  # where the power of two changes
EDGES = torch.tensor([-0.0, -87.3, -88, -95, -103.9, -104, -104.00001, -200, -1e30, -torch.inf])


def test_decaying_is_exp_to_three_quarters_of_a_last_place():
    for x in (DENSE, NEAR_ZERO, HALVES[HALVES > -87]):
        exact = x.double().exp()
        place = 2.0 ** (exact.log2().floor() - 23)
        assert ((decaying(x).double() - exact).abs() / place).max() < 0.75


def test_decaying_below_the_normal_numbers():
    """A last place is 2^-149 here, and rounding to it comes on top."""
    x = torch.linspace(-104, -87, 2**16)
    assert (decaying(x).double() - x.double().exp()).abs().max() < 0.9 * 2.0**-149


def test_decaying_never_rises_above_one_and_ends_at_zero():
    assert decaying(torch.tensor([0.0, -0.0, -1e-45])).tolist() == [1, 1, 1]
    assert (decaying(torch.cat([DENSE, NEAR_ZERO])) <= 1).all()
    assert decaying(torch.tensor([-104.00001, -105, -1e4, -3e38, -torch.inf])).tolist() == [0] * 5


@triton.jit
def _decaying_kernel(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offs, mask=offs < n, other=0.0)
    tl.store(y_ptr + offs, _numeric.decaying(x), mask=offs < n)


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are compiled here")
def test_decaying_has_the_same_bits_in_a_kernel():
    x = torch.cat([DENSE, NEAR_ZERO, HALVES, EDGES, torch.linspace(-110, -87, 2**12)])
    y = torch.empty_like(x)
    _decaying_kernel[(triton.cdiv(len(x), 2**16),)](x, y, len(x), BLOCK=2**16)
    assert torch.equal(y.view(torch.int32), decaying(x).view(torch.int32))
