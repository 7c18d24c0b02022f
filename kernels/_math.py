"""On-chip functions that mean the same on a GPU and in Triton's interpreter."""

import triton
import triton.language as tl
from triton.language.target_info import is_hip

INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))
if INTERPRETED:
    from zonos2_triton.kernels._interpreter import repair

    repair()


@triton.jit
def dot_fp32(a, b, acc, TF32: tl.constexpr = False):
    """acc + a @ b, accumulated in fp32; fp32 operands are multiplied as IEEE fp32, or as tf32."""
    if INTERPRETED:
        if TF32:
            a = _ten_bits(a)
            b = _ten_bits(b)
        # The interpreter holds bf16 as integers, and tl.dot would multiply those. And it leaves the sum to a library
        # whose order depends on the shape of a tile and on the CPU; in fp64 that does not reach the fp32 result.
        exact = tl.dot(a.to(tl.float64), b.to(tl.float64), out_dtype=tl.float64)
        return acc + exact.to(tl.float32)
    elif TF32:
        return tl.dot(a, b, acc, input_precision="tf32")
    else:
        return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def _ten_bits(x):
    """fp32 x as tf32: ten bits of its fraction, rounded to nearest, ties away from zero."""
    bits = x.to(tl.uint32, bitcast=True)
    near = ((bits + 0x1000) & 0xFFFFE000).to(tl.float32, bitcast=True)
    return tl.where(finite(x), near, x)


@triton.jit
def round_to(x, dtype: tl.constexpr):
    """fp32 x rounded to nearest even."""
    if INTERPRETED and dtype == tl.bfloat16:  # whose own cast cuts the low bits off
        bits = x.to(tl.uint32, bitcast=True)
        even = ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).to(tl.float32, bitcast=True)
        x = tl.where(x == x, even, x)
    return x.to(dtype)


LOG2E = tl.constexpr(1.4426950408889634)
LN2_HIGH = tl.constexpr(0.693359375)  # 9 bits: its product with a whole number is exact
LN2_LOW = tl.constexpr(-2.12194440e-4)


@triton.jit
def exp_nonpositive(x):
    """exp(x) of fp32 x <= 0, within 0.75 of a last place; 0 below -104. The same bits on every machine.

    Sums, products and powers of two alone, as in `reference.numeric.exp_nonpositive`. No launch fuses a product and a
    sum.
    """
    c = tl.maximum(x, -104.0)
    n = tl.floor(c * LOG2E + 0.5)
    high = c - n * LN2_HIGH
    low = n * -LN2_LOW
    r = high + low
    p = r * 1.9875691500e-4 + 1.3981999507e-3
    p = p * r + 8.3334519073e-3
    p = p * r + 4.1665795894e-2
    p = p * r + 1.6666665459e-1
    p = p * r + 5.0000001201e-1
    one = 1.0 + high
    y = one + ((high - (one - 1.0)) + (low + r * r * p))  # what 1 + high lost is added back
    half = n.to(tl.int32) >> 1  # in two steps: 2^n alone may be no normal number
    y = y * ((half + 127) << 23).to(tl.float32, bitcast=True)
    y = y * ((n.to(tl.int32) - half + 127) << 23).to(tl.float32, bitcast=True)
    return tl.where(x < -104.0, 0.0, y)


@triton.jit
def silu(x):
    """x * sigmoid(x)."""
    return x / (1.0 + tl.exp(-x))


@triton.jit
def gelu(x):
    """The exact one, x * (1 + erf(x / sqrt(2))) / 2, within 1e-7 max(1, |x|). NaN gives NaN.

    max(x, 0) - |x| q exp(-x^2 / 2): q, a polynomial in t = 1 / (1 + 0.37 |x| / sqrt(2)), is erfcx(|x| / sqrt(2)) / 2.
    Its coefficients are a minimax fit, 2e-8 off. Unlike that of libdevice, this erf has no branch.
    """
    a = tl.abs(x)
    a = tl.where(a > 20.0, 20.0, a)
    t = 1.0 / (1.0 + 0.26162952184677124 * a)
    q = t * 0.03069366328418255 - 0.15033414959907532
    q = q * t + 0.24072666466236115
    q = q * t - 0.13956479728221893
    q = q * t + 0.153254434466362
    q = q * t + 0.05418212339282036
    q = q * t + 0.10288829356431961
    q = q * t + 0.10374893993139267
    q = q * t + 0.10440482944250107
    return tl.maximum(x, 0.0) - a * (t * q) * tl.exp(-0.5 * a * a)


@triton.jit
def tanh(x):
    """Relative error below 4e-7: near zero a rational approximation, elsewhere 1 - 2 / (exp(2 |x|) + 1)."""
    a = tl.abs(x)
    large = 1.0 - 2.0 / (tl.exp(2.0 * a) + 1.0)
    # The continued fraction of tanh, cut after x^2 / 11: 2e-9 off at 0.625. Both terms are positive: nothing cancels.
    s = x * x
    num = a * (10395.0 + s * (1260.0 + s * 21.0))
    den = 10395.0 + s * (4725.0 + s * (210.0 + s))
    t = tl.where(a < 0.625, num / den, large)
    return tl.where(x < 0, -t, t)


TWO_OVER_PI = tl.constexpr(0.6366197723675814)
# pi / 2 in four parts; the first two are so short that n times them is exact for n < 2^16.
HALF_PI_1 = tl.constexpr(1.5703125)
HALF_PI_2 = tl.constexpr(0.00048351287841796875)
HALF_PI_3 = tl.constexpr(3.1385570764541626e-07)
HALF_PI_4 = tl.constexpr(6.07710062827671e-11)


@triton.jit
def sine_squared(x):
    """sin(x)^2 of fp32 x: within 1.3e-7 for |x| <= 2^15; from there the error grows, the result stays in 0..1.

    x is r from the nearest multiple n of pi / 2. For even n it is sin(r)^2, by a polynomial; for odd ones 1 - that.
    """
    n = tl.floor(x * TWO_OVER_PI + 0.5)
    r = ((x - n * HALF_PI_1) - n * HALF_PI_2) - (n * HALF_PI_3 + n * HALF_PI_4)
    r = tl.minimum(tl.maximum(r, -0.8), 0.8)  # it is, but for an x of no use
    s = r * r
    p = s * -0.00019514963787514716 + 0.00833215843886137
    p = p * s - 0.16666655242443085
    r = r + r * (s * p)
    s = r * r
    half = n * 0.5
    return tl.where(half == tl.floor(half), s, 1.0 - s)


@triton.jit
def snake(x, alpha):
    """x + sin(alpha x)^2 / (alpha + 1e-9), alpha [N] of the columns of x [M, N]."""
    return x + sine_squared(x * alpha[None, :]) * (1.0 / (alpha + 1e-9))[None, :]


@triton.jit
def finite(x):
    """Neither NaN nor infinite: the exponent is not all ones."""
    if x.dtype == tl.float32:
        return (x.to(tl.uint32, bitcast=True) & 0x7F800000) != 0x7F800000
    elif x.dtype == tl.bfloat16:
        return (x.to(tl.uint16, bitcast=True) & 0x7F80) != 0x7F80
    else:
        return (x.to(tl.uint16, bitcast=True) & 0x7C00) != 0x7C00


@triton.jit
def apply_rotary(x, cos, sin, ROWS: tl.constexpr, DH: tl.constexpr):
    """x [ROWS, DH] with each pair (2i, 2i + 1) turned; cos and sin [ROWS or 1, DH / 2]."""
    even, odd = tl.split(x.reshape(ROWS, DH // 2, 2))
    return tl.join(even * cos - odd * sin, even * sin + odd * cos).reshape(ROWS, DH)


@triton.jit
def rms_normalize(x, DH: tl.constexpr, EPS: tl.constexpr):
    """Each row of fp32 x [ROWS, DH] divided by its root mean square."""
    return x * tl.rsqrt(tl.sum(x * x, axis=1) / DH + EPS)[:, None]


@triton.jit
def _wait_for_own_stores():
    """On AMD, waits until what this wavefront stored is in L2. Elsewhere it is nothing.

    There, a barrier does not wait for stores, and the release before an atomic waits for those of its own wavefront
    alone: its write-back of L2 could miss others. LLVM's AMDGPU user guide (memory models, release) states no order
    across wavefronts. llvm-project pull request 160501 adds the same wait for GFX10 and newer.
    """
    if not INTERPRETED and is_hip():
        tl.inline_asm_elementwise(
            "s_waitcnt vmcnt(0)\n v_mov_b32 $0, 0", "=v", [], dtype=tl.int32, is_pure=False, pack=1
        )


@triton.jit
def last_to_arrive(counter_ptr, n):
    """Called by n programs: true in the last of them, which then sees whatever the others stored before.

    The counter is zero before. The last program sets it back, when no other touches it any more.
    """
    _wait_for_own_stores()
    tl.debug_barrier()  # what every thread stored comes before the count
    seen = tl.atomic_add(counter_ptr, 1, sem="acq_rel", scope="gpu")
    tl.debug_barrier()  # and what every thread loads comes after it
    last = seen == n - 1
    if last:
        tl.store(counter_ptr, 0)
    return last
