"""The PTX machine on short programs whose counts and results are known."""

import re

import numpy as np
import pytest

from zonos2_triton.bench.compiler.ptx.hazards import Hazard
from zonos2_triton.bench.compiler.ptx.launch import _sample, on_cpu
from zonos2_triton.bench.compiler.ptx.machine import Deadlock, Machine
from zonos2_triton.bench.compiler.ptx.memory import GlobalMemory, Segment
from zonos2_triton.bench.compiler.ptx.parse import PtxError, UnknownInstruction, parse

TEXT = """
.version 8.0
.target sm_80
.address_size 64
.extern .shared .align 16 .b8 global_smem[];
.visible .entry kernel(
	.param .u64 .ptr .global .align 1 kernel_param_0,
	.param .u64 .ptr .global .align 1 kernel_param_1
)
.reqntid {threads}
{{
	.reg .pred %p<9>;
	.reg .b16 %rs<9>;
	.reg .b32 %r<40>;
	.reg .b64 %rd<20>;
	.loc 1 7 0 // kernel.py:7:0
	ld.param.b64 %rd1, [kernel_param_0];
	ld.param.b64 %rd2, [kernel_param_1];
	mov.u32 %r1, %tid.x;
	mov.u32 %r2, %ctaid.x;
{body}
	ret;
}}
"""
# %rd3, %rd4: the address of this thread's word in the first and second tensor
WORDS = """
	mul.wide.u32 %rd9, %r1, 4;
	add.s64 %rd3, %rd1, %rd9;
	add.s64 %rd4, %rd2, %rd9;
"""


def machine(body, first=None, second=None, threads=32, values=True, shared=8192):
    """A launch whose tensors change."""
    function = parse(TEXT.format(body=body, threads=threads))
    tensors = [np.zeros(1024, np.uint32) if x is None else x for x in (first, second)]
    bases = [1 << 20, 1 << 30]
    segments = [
        Segment(name, base, x.nbytes, x.view(np.uint8))
        for name, base, x in zip(("first", "second"), bases, tensors, strict=True)
    ]
    params = {f"kernel_param_{i}": base for i, base in enumerate(bases)}
    return Machine(function, params, GlobalMemory(segments), shared, values)


def run(body, *tensors, grid=(1,), **options):
    """The counts of a launch."""
    return machine(body, *tensors, **options).run(grid)


# Banks and sectors


@pytest.mark.parametrize(
    ("access", "wavefronts", "ideal"),
    [
        ("shl.b32 %r3, %r1, 2; st.shared.b32 [%r3], %r1;", 1, 1),
        ("shl.b32 %r3, %r1, 3; st.shared.b32 [%r3], %r1;", 2, 1),  # every second word
        ("shl.b32 %r3, %r1, 7; st.shared.b32 [%r3], %r1;", 32, 1),  # a column of 32 words a row
        ("xor.b32 %r4, %r1, 5; mad.lo.s32 %r3, %r1, 32, %r4; shl.b32 %r3, %r3, 2; st.shared.b32 [%r3], %r1;", 1, 1),
        ("mov.u32 %r3, 64; ld.shared.b32 %r4, [%r3];", 1, 1),  # one word for all
        ("shl.b32 %r3, %r1, 1; mov.u16 %rs1, 1; st.shared.b16 [%r3], %rs1;", 1, 1),  # two lanes a word
        ("shl.b32 %r3, %r1, 3; ld.shared.v2.b32 {%r4, %r5}, [%r3];", 2, 2),
        ("shl.b32 %r3, %r1, 4; ld.shared.v4.b32 {%r4, %r5, %r6, %r7}, [%r3];", 4, 4),
        ("shl.b32 %r3, %r1, 5; ld.shared.v4.b32 {%r4, %r5, %r6, %r7}, [%r3];", 8, 4),
        ("shl.b32 %r3, %r1, 7; ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r4, %r5, %r6, %r7}, [%r3];", 32, 4),
        ("mul.lo.s32 %r3, %r1, 144; ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r4, %r5, %r6, %r7}, [%r3];", 4, 4),
        ("shl.b32 %r3, %r1, 4; ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r4}, [%r3];", 1, 1),
        ("setp.lt.u32 %p1, %r1, 2; shl.b32 %r3, %r1, 7; @%p1 st.shared.b32 [%r3], %r1;", 2, 1),
    ],
)
def test_bank_conflicts(access, wavefronts, ideal):
    counts = run(access)
    assert counts.traffic["wavefronts"] == (wavefronts,)
    assert counts.traffic["ideal_wavefronts"] == (ideal,)
    assert counts.ways == wavefronts / ideal
    assert len(counts.conflicts) == (wavefronts > ideal)


def test_a_conflict_names_its_instruction_and_the_worst_comes_first():
    counts = run("shl.b32 %r3, %r1, 3; st.shared.b32 [%r3], %r1; shl.b32 %r3, %r1, 7; ld.shared.b32 %r4, [%r3];")
    worst, other = counts.conflicts
    assert (worst.text, worst.source, worst.ways) == ("ld.shared.b32 %r4, [%r3]", "kernel.py:7", 32)
    assert (other.ways, other.executions, other.transactions, other.ideal) == (2, 1, 2, 1)


@pytest.mark.parametrize(
    ("access", "sectors", "size"),
    [
        ("ld.global.b32 %r4, [%rd3];", 4, 128),
        ("ld.global.b32 %r4, [%rd3+4];", 5, 128),
        ("mad.wide.u32 %rd5, %r1, 32, %rd1; ld.global.b32 %r4, [%rd5];", 32, 128),
        ("mad.wide.u32 %rd5, %r1, 16, %rd1; ld.global.v4.b32 {%r4, %r5, %r6, %r7}, [%rd5];", 16, 512),
        ("ld.global.b32 %r4, [%rd1];", 1, 128),
        ("setp.lt.u32 %p1, %r1, 9; @%p1 ld.global.b32 %r4, [%rd3];", 2, 36),
        ("xor.b32 %r3, %r1, 31; mad.wide.u32 %rd5, %r3, 4, %rd1; ld.global.b32 %r4, [%rd5];", 4, 128),  # reversed
    ],
)
def test_sectors(access, sectors, size):
    counts = run(WORDS + access)
    kinds = ("load_sectors", "load_requests", "load_bytes")
    assert [counts.traffic[kind] for kind in kinds] == [(sectors,), (1,), (size,)]


# Hazards

STORE = "shl.b32 %r3, %r1, 2; st.shared.b32 [%r3], %r1; "
OTHER = "xor.b32 %r4, %r3, 128; "  # the word of a thread of the other warp
COPY = "cp.async.ca.shared.global [%r3], [%rd3], 0x4; cp.async.commit_group; "


@pytest.mark.parametrize(
    ("body", "first", "second"),
    [
        (STORE + OTHER + "ld.shared.b32 %r5, [%r4];", "ld.shared", "st.shared"),
        (STORE + OTHER + "bar.sync 0; ld.shared.b32 %r5, [%r4]; st.shared.b32 [%r3], %r5;", "st.shared", "ld.shared"),
        (STORE + OTHER + "st.shared.b32 [%r4], %r1;", "st.shared", "st.shared"),
        (WORDS + "shl.b32 %r3, %r1, 2;" + COPY + "ld.shared.b32 %r5, [%r3];", "ld.shared", "cp.async"),
        (
            WORDS
            + "shl.b32 %r3, %r1, 2;"
            + COPY
            + COPY.replace("[%r3]", "[%r3+512]")
            + "cp.async.wait_group 1; bar.sync 0; ld.shared.b32 %r5, [%r3+512];",
            "ld.shared",
            "cp.async",
        ),
        (
            WORDS + "shl.b32 %r3, %r1, 2;" + COPY + OTHER + "cp.async.wait_group 0; ld.shared.b32 %r5, [%r4];",
            "ld.shared",
            "cp.async",
        ),
    ],
)
def test_hazards_name_both_instructions(body, first, second):
    with pytest.raises(Hazard, match=rf"kernel: `{first}.*kernel.py:7.*`{second}.*kernel.py:7"):
        run(body, threads=64)


def test_ordered_accesses_are_no_hazard():
    out = np.zeros(64, np.uint32)
    body = WORDS + STORE + OTHER + "bar.sync 0; ld.shared.b32 %r5, [%r4]; bar.sync 0; st.shared.b32 [%r3], %r5;"
    run(body + "st.global.b32 [%rd3], %r5;", out, threads=64)
    assert out.tolist() == [*range(32, 64), *range(32)]


def test_copies_arrive_at_their_wait():
    source, out = np.arange(1024, dtype=np.uint32), np.zeros(1024, np.uint32)
    body = WORDS + "shl.b32 %r3, %r1, 2;" + COPY + OTHER + "cp.async.wait_group 0; bar.sync 0;"
    counts = run(body + "ld.shared.b32 %r5, [%r4]; st.global.b32 [%rd4], %r5;", source, out, threads=64)
    assert out[:64].tolist() == [*range(32, 64), *range(32)]
    assert counts.bytes_under_way == 256
    assert counts.round_trips == (1,)


def test_copies_of_nothing_are_not_waited_for_as_long():
    body = WORDS + "shl.b32 %r3, %r1, 2; mov.u32 %r9, {size};" + COPY.replace("0x4", "0x4, %r9")
    body += "cp.async.wait_group 0; bar.sync 0; ld.shared.b32 %r5, [%r3]; st.global.b32 [%rd4], %r5;"
    source, out = np.arange(1024, dtype=np.uint32), np.ones(1024, np.uint32)
    whole, empty = (run(body.format(size=size), source, out) for size in (4, 0))
    assert not out[:32].any()
    assert whole.cycles[0] - empty.cycles[0] > 600


def test_one_address_gets_different_values():
    with pytest.raises(Hazard, match="different values of two threads"):
        run("mov.u32 %r3, 0; st.shared.b32 [%r3], %r1;")


# Control

LOOP = """
	mov.u32 %r3, 0;
	mov.u32 %r6, 0;
$L0:
{load}
	add.s32 %r3, %r3, 1;
	setp.lt.u32 %p1, %r3, 4;
	@%p1 bra $L0;
	st.global.b32 [%rd4], %r6;
"""
EXPOSED = "ld.global.b32 %r4, [%rd3]; add.s32 %r6, %r6, %r4; add.s64 %rd3, %rd3, 128;"
PIPELINED = "add.s32 %r6, %r6, %r4; ld.global.b32 %r5, [%rd3]; mov.b32 %r4, %r5; add.s64 %rd3, %rd3, 128;"


def test_loads_in_a_loop_that_are_used_at_once():
    counts = run(WORDS + LOOP.format(load=EXPOSED))
    assert [(load.text, load.source, load.executions) for load in counts.exposed_loads] == [
        ("ld.global.b32 %r4, [%rd3]", "kernel.py:7", 4)
    ]
    pipelined = run(WORDS + "mov.u32 %r4, 0;" + LOOP.format(load=PIPELINED))
    assert pipelined.exposed_loads == ()
    assert run(WORDS + "ld.global.b32 %r4, [%rd3]; st.global.b32 [%rd4], %r4;").exposed_loads == ()
    assert pipelined.cycles[0] < counts.cycles[0]


@pytest.mark.parametrize(
    ("body", "trips"),
    [
        ("ld.global.b32 %r4, [%rd3]; ld.global.b32 %r5, [%rd4];", 1),
        ("ld.global.b32 %r4, [%rd3]; mad.wide.u32 %rd5, %r4, 4, %rd1; ld.global.b32 %r5, [%rd5];", 2),
        (
            "ld.global.b32 %r4, [%rd3]; shl.b32 %r6, %r1, 2; st.shared.b32 [%r6], %r4; bar.sync 0;"
            "ld.shared.b32 %r7, [%r6]; mad.wide.u32 %rd5, %r7, 4, %rd1; ld.global.b32 %r5, [%rd5];",
            2,
        ),
        ("ld.global.b32 %r4, [%rd3]; setp.eq.b32 %p1, %r4, 0; @%p1 bra $L9; $L9: ld.global.b32 %r5, [%rd4];", 2),
        ("st.global.b32 [%rd3], %r1; atom.global.gpu.acq_rel.add.u32 %r5, [%rd2], 1;", 2),  # the stores, the atomic
        ("atom.global.gpu.relaxed.add.u32 %r5, [%rd2], 1; setp.eq.b32 %p1, %r5, 0; @%p1 ld.global.b32 %r6, [%rd4];", 2),
    ],
)
def test_round_trips(body, trips):
    assert run(WORDS + body).round_trips == (trips,)


def test_threads_and_programs_that_part_meet_again():
    out = np.zeros(96, np.uint32)
    body = """
	mad.lo.s32 %r3, %r2, 32, %r1;
	mad.wide.u32 %rd3, %r3, 4, %rd1;
	setp.lt.u32 %p1, %r1, 5;
	mov.u32 %r4, 100;
	@%p1 bra $L1;
	mov.u32 %r4, 200;
	setp.eq.b32 %p2, %r2, 1;
	@%p2 bra $L1;
	add.s32 %r4, %r4, 7;
$L1:
	mov.u32 %r5, 0;
$L2:
	add.s32 %r4, %r4, 1000;
	add.s32 %r5, %r5, 1;
	setp.le.u32 %p3, %r5, %r2;
	@%p3 bra $L2;
	bar.sync 0;
	st.global.b32 [%rd3], %r4;
"""
    counts = run(body, out, grid=(3,))
    want = [[100 if t < 5 else 200 if p == 1 else 207 for t in range(32)] for p in range(3)]
    assert out.reshape(3, 32).tolist() == [[x + 1000 * (p + 1) for x in row] for p, row in enumerate(want)]
    turns = np.diff([sum(counts.instructions[kind][p] for kind in ("int", "branch")) for p in range(3)])
    assert turns.tolist() == [4 - 1, 4 + 1]  # a turn of the loop more; program 1 skips the addition of 7


def test_programs_without_work_are_not_live():
    body = WORDS + "setp.gt.u32 %p1, %r2, 1; @%p1 ret; st.global.b32 [%rd3], %r1;"
    counts = run(body, grid=(5,))
    assert counts.live == (True, True, False, False, False)
    assert counts.live_programs == 2


def test_atomics_in_the_order_of_programs():
    counter, out = np.zeros(1, np.uint32), np.zeros(8, np.uint32)
    body = """
	setp.eq.b32 %p1, %r1, 0;
	@%p1 atom.global.gpu.acq_rel.add.u32 %r4, [%rd1], 3;
	mad.wide.u32 %rd5, %r2, 4, %rd2;
	@%p1 st.global.b32 [%rd5], %r4;
"""
    run(body, counter, out, grid=(8,))
    assert counter.tolist() == [24]
    assert out.tolist() == [3 * p for p in range(8)]


def test_a_loop_that_does_not_end():
    waiting = machine("$L1: ld.global.b32 %r3, [%rd1]; setp.eq.b32 %p1, %r3, 0; @%p1 bra $L1;")
    waiting.turns = 100
    with pytest.raises(PtxError, match=r"`@%p1 bra \$L1`.*reached 100 times: the loop does not end"):
        waiting.run((1,))


def test_counts_need_no_floats():
    """Addresses from integers that went through shared memory, beside a product of floats."""
    body = """
	ld.global.b32 %r4, [%rd3];
	cvt.rn.f32.u32 %r5, %r1;
	mul.rn.f32 %r6, %r5, %r5;
	shl.b32 %r7, %r1, 2;
	st.shared.b32 [%r7], %r4;
	st.shared.b32 [%r7+128], %r6;
	bar.sync 0;
	ld.shared.b32 %r8, [%r7];
	ld.shared.b32 %r9, [%r7+128];
	shl.b32 %r10, %r8, 2;
	st.shared.b32 [%r10+256], %r9;
"""
    strided = np.arange(0, 1024, 8, dtype=np.uint32)
    found = [run(WORDS + body, strided, values=values) for values in (True, False)]
    assert found[0] == found[1]
    assert found[0].ways == 8


def test_a_barrier_that_not_all_reach():
    body = "setp.lt.u32 %p1, %r1, 32; @%p1 bra $L1; bar.sync 1, 64; $L1: bar.sync 2, 64;"
    with pytest.raises(Deadlock, match=r"deadlock: threads wait at `bar.sync [12], 64`.*; `bar.sync [12], 64`"):
        run(body, threads=64)


def test_executed_instructions_by_class():
    body = (
        WORDS + "cvt.rn.f32.u32 %r4, %r1; ex2.approx.f32 %r5, %r4; shfl.sync.bfly.b32 %r6, %r5, 1, 31, -1; bar.sync 0;"
    )
    counts = run(body, threads=64)
    found = {name: n for name, (n,) in counts.instructions.items() if n}
    assert found == {"int": 6, "float": 2, "special": 2, "shuffle": 2, "barrier": 2, "branch": 2, "other": 8}
    assert counts.longest_warp == (12,)


# Errors


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (
            "ld.global.b32 %r4, [%rd3+4096];",
            r"`ld.global.b32 .*4 bytes that lie 4096 bytes into first, which has 4096",
        ),
        ("st.global.b32 [%rd4+-8], %r1;", "8 bytes before second"),
        ("ld.global.b32 %r4, [%rd3+2];", "no multiple of its 4 bytes"),
        ("mov.u32 %r3, 8192; ld.shared.b32 %r4, [%r3];", "4 bytes at 8192 of 8192 shared"),
        ("trap;", "`trap`.*was reached"),
    ],
)
def test_accesses_outside(body, words):
    with pytest.raises(PtxError, match=words):
        run(WORDS + body)


@pytest.mark.parametrize("body", ["frobnicate.b32 %r4, %r1;", "add.q7 %r4, %r1, %r1;", "ld.local.b32 %r4, [%r1];"])
def test_an_unknown_instruction_stops_the_machine_where_it_runs(body):
    with pytest.raises(UnknownInstruction, match=re.escape(f"kernel: `{body[:-1]}` (PTX line 21, kernel.py:7)")):
        run(body)
    run(f"bra $L1; {body} $L1: mov.u32 %r5, 0;")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (".amdgcn_target", "is no PTX with a kernel"),
        ("", "is no PTX with a kernel"),
        (TEXT.format(body="add.s32 %r3, %r1", threads=32).rsplit("ret", 1)[0], "ends within the function"),
        (TEXT.format(body="add.s32 %x, %r1, %r1;", threads=32), "%x is not declared"),
        (TEXT.format(body="mov.b32 %r1, 0fZZ;", threads=32), "the number 0fZZ is not known"),
        (TEXT.format(body="bra $L7;", threads=32), "a label that is not there"),
        (TEXT.replace(".reqntid {threads}", "").format(body="", threads=32), "no .reqntid"),
    ],
)
def test_text_that_cannot_be_read(text, words):
    with pytest.raises(PtxError, match=words):
        parse(text)


def test_targets_without_ptx():
    with pytest.raises(ValueError, match=r"target.*sm_75"), on_cpu("sm_75"):
        pass
    with pytest.raises(PtxError, match=r"gfx942 has no PTX"), on_cpu("gfx942"):
        pass


@pytest.mark.parametrize(
    ("grid", "threads", "ran"), [((8, 64), 128, None), ((8, 1000), 128, 512), ((7, 999), 128, 511)]
)
def test_a_large_grid_is_counted_by_whole_rows(grid, threads, ran):
    found = _sample(grid, threads)
    assert ran == (found if found is None else len(found))
    if found:
        assert np.array(found).reshape(-1, grid[0]).tolist() == [
            [row * grid[0] + x for x in range(grid[0])] for row in sorted({n // grid[0] for n in found})
        ]
    assert len(_sample((100_000,), 128)) == 512
