"""Values of the PTX instructions that work on each lane by itself, on numpy arrays of bit patterns.

`operation(opcode)` looks an instruction up once; its function then maps sources to results, lane by lane. Registers are
unsigned: pred bool, b16 uint16, b32 uint32, b64 uint64. A source may be a scalar of its type, for an immediate.
Integers wrap. Callers hold `np.errstate(all="ignore")`.

add, sub, mul, fma, cvt, and div, rcp, sqrt with .rn are correctly rounded; fma rounds once. NaN results are canonical
in fp32, fp16 and bf16, as on the chip. The other functions are approximate on the chip. Here they round the fp64 value
to nearest, so that their error is at most 0.5001 ulp. The PTX ISA allows:

    div.full                2 ulp
    div.approx              2 ulp, for divisors of 2^-126 .. 2^126; beyond them 0, here too
    rcp.approx              1 ulp
    sqrt.approx             relative error 2^-23
    rsqrt.approx            relative error 2^-22.9
    ex2.approx              2 ulp
    lg2.approx              absolute error 2^-22.6 in 0.5 .. 2, relative error 2^-22.6 elsewhere
    sin.approx, cos.approx  absolute error 2^-20.5 in -pi .. pi
    tanh.approx             relative error 2^-11

A chip's result and this one therefore differ by at most the sum of both bounds. A quotient of integers by 0, which PTX
leaves open, has all bits set.
"""

from functools import cache

import numpy as np

from zonos2_triton.bench.compiler.ptx import conversions, floats, integers
from zonos2_triton.bench.compiler.ptx.operations import Bits, Modifiers, Operation
from zonos2_triton.bench.compiler.ptx.parse import UnknownInstruction

_FAMILIES = {**integers.FAMILIES, **floats.FAMILIES, **conversions.FAMILIES}


@cache
def operation(opcode: tuple[str, ...]) -> Operation:
    """The operation of an opcode, such as ("mad", "lo", "s32"). UnknownInstruction: it has no meaning here."""
    name, *modifiers = opcode
    try:
        words = Modifiers(modifiers)
        found = _FAMILIES[name](words)
        if words:
            raise ValueError
    except (KeyError, ValueError, IndexError):
        raise UnknownInstruction(".".join(opcode)) from None
    return found


def evaluate(opcode: str, *sources: Bits) -> tuple[Bits, ...]:
    """The results of one instruction. UnknownInstruction: it has no meaning here."""
    with np.errstate(all="ignore"):
        return operation(tuple(opcode.split("."))).function(*sources)
