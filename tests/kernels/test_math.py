import threading
import warnings

import pytest
import torch
import triton
import triton.language as tl

from zonos2_triton.kernels import _math
from zonos2_triton.reference import vocoder_layers
from zonos2_triton.reference.numeric import SWITCHES, exact_numerics, exp_nonpositive, wide


def state():
    return [getattr(owner, name) for owner, name, _ in SWITCHES]


@pytest.fixture
def loose():
    """A process that has allowed everything."""
    before = state()
    for owner, name, value in SWITCHES:
        other = "tf32" if owner is not torch.backends.mkldnn.matmul else value
        setattr(owner, name, other if value == "ieee" else not value)
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


def test_wide():
    double, single = torch.float64, torch.float32
    for dtype, wider in {double: double, single: single, torch.bfloat16: single}.items():
        assert wide(torch.zeros(1, dtype=dtype)).dtype == wider


DENSE = torch.linspace(-87, 0, 2**20, dtype=torch.float64).float()  # exp of all of it is a normal number
NEAR_ZERO = -torch.logspace(-46, 1, 2**12, base=10, dtype=torch.float64).float()
HALVES = torch.log(torch.tensor(2.0)) * (torch.arange(-300, 1) / 2)  # where the power of two changes
EDGES = torch.tensor([-0.0, -87.3, -88, -95, -103.9, -104, -104.00001, -200, -1e30, -torch.inf])


def test_exp_nonpositive_is_exp_to_three_quarters_of_a_last_place():
    for x in (DENSE, NEAR_ZERO, HALVES[HALVES > -87]):
        exact = x.double().exp()
        place = 2.0 ** (exact.log2().floor() - 23)
        assert ((exp_nonpositive(x).double() - exact).abs() / place).max() < 0.75
    # Below the normal numbers a last place is 2^-149, and rounding to it comes on top.
    x = torch.linspace(-104, -87, 2**16)
    assert (exp_nonpositive(x).double() - x.double().exp()).abs().max() < 0.9 * 2.0**-149


def test_exp_nonpositive_never_rises_above_one_and_ends_at_zero():
    assert exp_nonpositive(torch.tensor([0.0, -0.0, -1e-45])).tolist() == [1, 1, 1]
    assert (exp_nonpositive(torch.cat([DENSE, NEAR_ZERO])) <= 1).all()
    assert exp_nonpositive(torch.tensor([-104.00001, -105, -1e4, -3e38, -torch.inf])).tolist() == [0] * 5


interpreted = pytest.mark.interpreter


@triton.jit
def _each_kernel(x_ptr, y_ptr, n, FUNCTION: tl.constexpr, BLOCK: tl.constexpr):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offs, mask=offs < n, other=0.0)
    tl.store(y_ptr + offs, FUNCTION(x), mask=offs < n)


def in_a_kernel(function, x):
    y = torch.empty_like(x)
    _each_kernel[(triton.cdiv(len(x), 2**16),)](x, y, len(x), FUNCTION=function, BLOCK=2**16)
    return y


@interpreted
def test_exp_nonpositive_has_the_same_bits_in_a_kernel():
    x = torch.cat([DENSE, NEAR_ZERO, HALVES, EDGES, torch.linspace(-110, -87, 2**12)])
    assert torch.equal(in_a_kernel(_math.exp_nonpositive, x).view(torch.int32), exp_nonpositive(x).view(torch.int32))


SMALL = torch.linspace(-30, 30, 2**18)
WIDE = torch.linspace(-(2.0**15), 2.0**15, 2**20)
MULTIPLES = (torch.arange(-(2**14), 2**14, dtype=torch.float64) * (torch.pi / 4)).float()  # zeros, peaks, the middle
TINY = torch.logspace(-45, 0, 2**12, base=10, dtype=torch.float64).float()
LARGE = torch.logspace(15, 127.99, 2**14, base=2, dtype=torch.float64).float()


@interpreted
def test_sine_squared_is_as_near_as_its_docstring_says_and_as_plain_pytorch():
    for x in (SMALL, WIDE, MULTIPLES, TINY, -TINY):
        exact = x.double().sin().square()
        ours, theirs = (y.double() - exact for y in (in_a_kernel(_math.sine_squared, x), x.sin().square()))
        assert ours.abs().max() < 1.3e-7
        if x is SMALL or x is WIDE:  # elsewhere both are nearly exact
            assert ours.square().mean() <= theirs.square().mean()


@interpreted
def test_sine_squared_stays_in_its_range():
    x = torch.cat([SMALL, WIDE, MULTIPLES, LARGE, torch.tensor([3e38, torch.finfo(torch.float32).max])])
    for got in (in_a_kernel(_math.sine_squared, x), in_a_kernel(_math.sine_squared, -x)):
        assert ((got >= 0) & (got <= 1)).all()


@triton.jit
def _snake_kernel(x_ptr, alpha_ptr, y_ptr, M: tl.constexpr, N: tl.constexpr):
    offs_n = tl.arange(0, N)
    at = tl.arange(0, M)[:, None] * N + offs_n[None, :]
    tl.store(y_ptr + at, _math.snake(tl.load(x_ptr + at), tl.load(alpha_ptr + offs_n)))


@interpreted
def test_snake_shows_what_is_not_finite(seeded):
    x = seeded(16, 16)
    x[3], x[5] = torch.nan, torch.inf
    x[7] = 3e38
    got = torch.empty_like(x)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "invalid value|overflow", RuntimeWarning)  # numpy's
        _snake_kernel[(1,)](x, torch.full((16,), 0.5), got, *x.shape)
    assert got[3].isnan().all()
    assert not got[5].isfinite().any()
    assert torch.equal(got[7], x[7])
    others = [row for row in range(16) if row not in (3, 5)]
    assert got[others].isfinite().all()


@interpreted
def test_tf32_is_rounded_as_the_reference_says(seeded):
    """Ties, both signs, what rounds up to the next power of two and to infinity, and what is no number."""
    numbers = (0x3F800FFF, 0x3F801000, 0x3F801001, 0x3F803000, 0x3FFFF000, 0x7F7FEFFF, 0x7F7FF000, 0x7FFFFFFF)
    bits = torch.tensor([*numbers, 0x7FC00000, 0x7F800000, 0x7F800001, 0xFFF, 0x1000, 0x800000, 0], dtype=torch.int32)
    special = torch.cat([bits, bits | -(2**31)]).view(torch.float32)
    x = torch.cat([special, seeded(2**16)])
    got, want = in_a_kernel(_math._ten_bits, x).view(torch.int32), vocoder_layers.operand(x, True).view(torch.int32)
    assert torch.equal(got, want)
    assert not (got[x.isfinite()] & 0x1FFF).any()
