"""Samples of numbers, and what a format rounds a fraction to."""

import math
from fractions import Fraction

import numpy as np

from zonos2_triton.bench.compiler.ptx.floats import read
from zonos2_triton.bench.compiler.ptx.operations import UNSIGNED

SAMPLES = 200
INF, NEGATIVE, QUIET = 0x7F800000, 0x80000000, 0x7FC00000  # bits of fp32
# Of a float: (bits, bits of the significand with the leading one, least exponent, largest finite number)
FORMATS = {
    "f32": (32, 24, -126, Fraction(2) ** 128 - Fraction(2) ** 104),
    "f16": (16, 11, -14, Fraction(65504)),
    "bf16": (16, 8, -126, Fraction(2) ** 128 - Fraction(2) ** 120),
    "tf32": (32, 11, -126, Fraction(2) ** 128 - Fraction(2) ** 117),
}


def sample(bits, seed):
    """Random patterns, half of them near the edges of the type."""
    rng = np.random.default_rng(seed)
    edges = [0, 1, 2, 31, 32, 33, (1 << bits) - 1, (1 << bits) - 2, 1 << (bits - 1), (1 << (bits - 1)) - 1]
    values = rng.integers(0, 1 << bits, SAMPLES, dtype=np.uint64)
    some = rng.integers(0, 2, SAMPLES) == 1
    values[some] = rng.choice(np.array(edges, np.uint64), int(some.sum()))
    return values.astype(UNSIGNED[bits])


def signed(x, bits):
    return x - (1 << bits) if x >> (bits - 1) else x


def f32(*numbers):
    return np.array(numbers, np.float32).view(np.uint32)


def rounded(x, kind, mode="rn"):
    """A fraction to the format; beyond its largest number infinity, or that number where the mode stops there."""
    _, precision, least, largest = FORMATS[kind]
    if x == 0:
        return 0.0
    exponent = max(math.floor(math.log2(abs(x.numerator)) - math.log2(x.denominator)), least)
    while abs(x) >= Fraction(2) ** (exponent + 1):
        exponent += 1
    while abs(x) < Fraction(2) ** exponent and exponent > least:
        exponent -= 1
    unit = Fraction(2) ** (exponent - precision + 1)
    low = math.floor(x / unit)
    rest = x / unit - low
    up = {"rz": x < 0 and rest > 0, "rm": False, "rp": rest > 0}.get(mode)
    if mode == "rn":
        up = rest > Fraction(1, 2) or (rest == Fraction(1, 2) and low % 2 == 1)
    if mode == "rna":
        up = rest > Fraction(1, 2) or (rest == Fraction(1, 2) and x > 0)
    found = (low + up) * unit
    if abs(found) > largest:
        stops = mode == "rz" or (mode == "rm" and x > 0) or (mode == "rp" and x < 0)
        return math.copysign(float(largest) if stops else math.inf, x)
    return float(found)


def numbers(kind, seed):
    """Finite numbers of a format: random patterns, neighbours of powers of two, and near ones, so that sums cancel."""
    bits = FORMATS[kind][0]
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 1 << bits, SAMPLES, dtype=np.uint64).astype(UNSIGNED[bits])
    one = {"f32": 0x3F800000, "f16": 0x3C00, "bf16": 0x3F80}[kind]
    near = rng.integers(-40, 41, SAMPLES) + one
    sign = rng.integers(0, 2, SAMPLES) << (bits - 1)
    x = np.where(rng.integers(0, 2, SAMPLES) == 1, x, (near | sign).astype(x.dtype))
    x[:6] = [0, 1, 1 << (bits - 1), one, one + 1, one - 1]
    return np.where(np.isfinite(values(kind, x)), x, x.dtype.type(one))


def values(kind, bits):
    with np.errstate(invalid="ignore"):
        return read(kind)(bits).astype(np.float64)
