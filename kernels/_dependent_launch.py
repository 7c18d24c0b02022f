"""Programmatic dependent launch, on sm_90 and newer: a kernel starts while the launch before it still runs.

Every program waits, then triggers. A launch can start when all programs of the launch before it have triggered. So when
launch n starts, every program of n - 1 has passed its wait, and n - 2 has ended with its memory visible. While n - 1
runs, programs of n ask for weights in L2, load what is settled, and wait until n - 1 has ended.

What a program may do before its wait:

* Ask for weights in L2, in any launch; for more, at addresses that it has loaded early. A prefetch changes no value, as
  every load after it reads L2.
* Load, into registers or shared memory, between `begin_early_loads` and `end_early_loads`: weights, tables, and what
  launches up to n - 2 wrote. Never what n - 1 writes. The first call names the pointers; others are not loaded.
* Compute with these. Nothing is stored or counted, and there is no trigger: the launch after would take n - 1 for done.

Early loads need a caller who promises all that of launch n - 1. It may be a kernel of another library that writes the
cache or a weight, or one that triggers before it waits. So they are off unless the caller is inside of
`_launch_config.early_loads()`: PDL is then "early" instead of True, and `begin_early_loads` does not wait. The frames
and prompts of `model/runtime/model_runner.py` are inside; integrations and single calls of operators are not.

Why early loads are right there. Launch n - 1 is one of ours, or a plain launch, which starts when n - 2 has ended and
lets n start when it has ended itself. Weights and tables do not change. A frame is an embedding, layers, a draw:

    launch              n - 2        n - 1              n
    does                anything     writes qkvg        looks up positions, pages and angles early
    first layer         embedding    qkv_projection     decode_attention

The host's copies, a prompt's keys and the last frame's positions come before the embedding, whether the slot is new,
or was another request's. So does all that stands before a CUDA graph, which starts when that has ended. Memory that
changes is read past L1 (`cache_modifier=".cg"`): a line of L1 may be older than launch n - 2.

What else makes dependent launch safe:

* Every program waits, once, on every path, before it stores. So a launch ends after the one before it has ended, and a
  program that has waited for one launch has waited for all before it. A kernel may then overwrite what an earlier one
  reads, early too.
* The wait stands outside of loops and branches. Triton 3.7.1 moves loads above a wait in a loop (triton-lang/triton
  issue 11905).
* A launch has the attribute only if its kernel waits: `_launch_config` gives both, PDL and launch_pdl, or neither.
* After a launch of another library, or a copy, the wait lasts until that has ended with its memory visible. Without a
  launch before it, as at the start of a CUDA graph, it returns at once.
* Where launches are no dependent ones, each starts when the one before has ended. The loads are the same, and no wait
  is compiled.

`bench/proof/interpreter.py` and the compile gate check the rules.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from zonos2_triton.kernels._math import INTERPRETED


@triton.jit
def wait_for_previous_launch(PDL: tl.constexpr):
    """Waits for the previous launch, then lets the next one start. Nothing may be read or written before this."""
    if PDL and not INTERPRETED:
        gdc_wait()
        gdc_launch_dependents()


@triton.jit
def begin_early_loads(PDL: tl.constexpr, POINTERS: tl.constexpr):
    """From here to `end_early_loads`, in place of one wait, arguments of these names may be loaded: "a_ptr b_ptr".

    Waits here if the caller does not promise that they are settled.
    """
    if PDL != "early":
        wait_for_previous_launch(PDL)


@triton.jit
def end_early_loads(PDL: tl.constexpr):
    """Waits here for the previous launch if `begin_early_loads` has not."""
    if PDL == "early":
        wait_for_previous_launch(PDL)


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
