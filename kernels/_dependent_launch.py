"""Programmatic dependent launch, on sm_90 and newer: a kernel starts while the launch before it still runs.

Its programs ask for their weights in L2 and wait. When the launch before has ended and its stores can be seen, they
go on. Each launch lets the next one start as soon as its own programs have started. Rules that make this safe:

* Every program waits, once, on every path, before it does anything else. So a launch ends after the one before it has
  ended, and a program that has waited for one launch has waited for all before it. A kernel may then overwrite what an
  earlier one reads, however many of them have started.
* Before the wait nothing is loaded, stored or counted. A prefetch into L2 changes no value, whatever happens to its
  bytes, because every load after it reads L2. Its addresses come from arguments and program ids alone.
* The wait stands outside of loops and branches. Triton 3.7.1 moves loads above a wait in a loop (triton-lang/triton
  issue 11905).
* A launch has the attribute only if its kernel waits: `_launch_config` gives both, PDL and launch_pdl, or neither.

After a launch of another library, or a copy, the wait lasts until that has ended. Without a launch before it, as at the
start of a CUDA graph, it returns at once. `bench/proof/interpreter.py` and the compile gate check the rules.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from zonos2_triton.kernels._math import INTERPRETED


@triton.jit
def wait_for_previous_launch(PDL: tl.constexpr):
    """Lets the next launch start, and waits for the previous one. Nothing may be read or written before this."""
    if PDL and not INTERPRETED:
        gdc_launch_dependents()
        gdc_wait()


@triton.jit
def prefetch_l2(ptr, count, PDL: tl.constexpr):
    """Asks for `count` elements from ptr on in L2: weights that this program is sure to read. At most 0: for nothing.

    ptr and the count are multiples of 16 bytes. Without dependent launch there is no time in which they could come.
    """
    if PDL and not INTERPRETED:
        ITEMSIZE: tl.constexpr = ptr.dtype.element_ty.primitive_bitwidth // 8
        tl.inline_asm_elementwise(
            """{
            .reg .pred p; .reg .b32 t;
            mov.u32 t, %tid.x;
            setp.eq.u32 p, t, 0;
            setp.gt.and.s32 p, $2, 0, p;
            @p cp.async.bulk.prefetch.L2.global [$1], $2;
            mov.u32 $0, 0;
            }""",
            "=r,l,r",
            [ptr.to(tl.uint64), count * ITEMSIZE],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )


@triton.jit
def prefetch_rows(
    w_ptr,  # [N, width], rows of weights that lie `stride` apart
    first,
    N,
    width,
    stride,
    BLOCK_N: tl.constexpr,
    PDL: tl.constexpr,
):
    """Asks for rows first .. first + BLOCK_N - 1 in L2, in the programs of the first tile of tokens alone."""
    rows = tl.minimum(N - first, BLOCK_N)
    count = tl.where(tl.program_id(0) == 0, (rows - 1) * stride + width, 0)
    prefetch_l2(w_ptr + first.to(tl.int64) * stride, count, PDL)
