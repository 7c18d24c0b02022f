"""The compile gate: seeded defects, each of which it must name, and what it makes of numbers.

The compiler runs in processes of its own: where there is no GPU, this one has Triton's interpreter.
"""

import dataclasses
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from zonos2_triton.bench.catalogue import KERNELS
from zonos2_triton.bench.compiler.cubin_stats import TARGETS, Stats, statistics, sums
from zonos2_triton.bench.compiler.gate import Expected, Row, compare, judge, main, read_baseline, role, write_baseline
from zonos2_triton.bench.compiler.offline_compile import fake_tensors

CLEAN = Stats(registers=64, stack=0, spills=0, shared=32768, warps=4, blocks=4, occupancy=0.25, instructions=500,
              loads={"16": 8, "async 16": 4, "2": 3}, matrix={"HGMMA": 8})  # fmt: skip
MEANT = Expected(max_instructions=600, matrix=True, warpgroup=True, stream16=True)

# A catalogue of toys: what is wrong with each is in its name.
TOYS = """
import os
from dataclasses import dataclass
from types import SimpleNamespace
import torch, triton
import triton.language as tl
from zonos2_triton.bench.compiler.gate import Expected

@triton.jit
def _scale_kernel(x_ptr, y_ptr, n, factor, BLOCK: tl.constexpr):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + offs, tl.load(x_ptr + offs, mask=offs < n, other=0.0) * factor, mask=offs < n)

@triton.jit
def _center_kernel(x_ptr, y_ptr, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offs).to(tl.float32)
    tl.store(y_ptr + offs, (x - tl.sum(x) / BLOCK).to(tl.bfloat16))

@triton.jit
def _dot_kernel(x_ptr, y_ptr, K, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr):
    i, k = tl.arange(0, BLOCK), tl.arange(0, BLOCK_K)
    acc = tl.zeros((BLOCK, BLOCK), tl.float32)
    for start in range(0, K, BLOCK_K):
        x = tl.load(x_ptr + i[:, None] * K + start + k[None, :])
        acc = tl.dot(x, x.trans(), acc)
        y = tl.load(y_ptr + i[:, None] * K + start + k[None, :])
        acc = tl.dot(y, x.trans(), acc)
    tl.store(y_ptr + i[:, None] * BLOCK + i[None, :], acc.to(tl.bfloat16))

@triton.jit
def _columns_kernel(x_ptr, y_ptr, K: tl.constexpr, BLOCK: tl.constexpr):
    k, i = tl.arange(0, K), tl.arange(0, BLOCK)
    x = tl.load(x_ptr + k[:, None] * BLOCK + i[None, :]).to(tl.float32)
    tl.store(y_ptr + i, tl.sum(x, axis=0).to(tl.bfloat16))

@triton.jit
def _broken_kernel(x_ptr):
    tl.store(x_ptr + tl.arange(0, 48), 0.0)

@triton.jit
def _refused_kernel(x_ptr, y_ptr, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    tl.store(y_ptr + offs, tl.load(x_ptr + offs, cache_modifier=".cg", eviction_policy="evict_first"))

def _scaled(x, n, BLOCK):
    y = torch.empty_like(x)
    _scale_kernel[lambda meta: (triton.cdiv(n, meta["BLOCK"]),)](x, y, n, 2.0, BLOCK=BLOCK)
    return y

def clean(x):
    arch = triton.runtime.driver.active.get_current_target().arch
    for factor in range(3):
        _scale_kernel[(2,)](x, torch.empty_like(x), x.shape[0], 0.5 * factor, BLOCK=4096 if arch == 90 else 2048)
    _scaled(x, x.shape[0], 8192)

def spills(x): _center_kernel[(1,)](x, torch.empty_like(x), BLOCK=8192, num_warps=1, maxnreg=64)
def odd_length(x): _scaled(x, x.shape[0] - 1, 2048)
def odd_view(x): _scaled(x[1:], x.shape[0], 2048)
def large_tiles(x): _dot_kernel[(1,)](x, x, 4096, BLOCK=128, BLOCK_K=64, num_warps=8, num_stages=5)
def no_matrix(x): _scaled(x, x.shape[0], 2048)
def long(x): _center_kernel[(1,)](x, torch.empty_like(x), BLOCK=8192, num_warps=4)
def broken(x):
    _broken_kernel[(1,)](x)
    _scaled(x, x.shape[0], 2048)
def refused(x): _refused_kernel[(1,)](x, torch.empty_like(x), BLOCK=2048)
def host(x): raise ValueError("x must have two axes")
def silent(x): pass
def batch_dependent(x): _columns_kernel[(1,)](x, torch.empty_like(x), K=64, BLOCK=x.shape[0] // 1024)
def unstated(x): _scaled(x, x.shape[0], 2048)
def crash(x): os._exit(3)

@dataclass(frozen=True)
class Kernel:
    op: object
    expects: dict
    targets: tuple = ("sm_90", "sm_120", "gfx942")
    workloads: tuple = (SimpleNamespace(name="M64", sizes={"M": 65536}, real=True),
                        SimpleNamespace(name="toy", sizes={}, real=False))

    def make(self, device, dtype, M):
        return {"x": torch.randn(M, device=device, dtype=dtype)}

scale = {"_scale_*": Expected(400, stream16=True)}
center = {"*": Expected(10_000)}
EXPECTS = {clean: scale, spills: center, odd_length: scale, odd_view: scale,
           large_tiles: {"*": Expected(10_000, matrix=True)}, no_matrix: {"*": Expected(400, matrix=True)},
           long: {"*": Expected(100)}, broken: scale, refused: center, host: center, silent: center,
           unstated: {"_other_kernel": Expected(400)}, crash: center}
KERNELS = {f.__name__: Kernel(SimpleNamespace(_init_fn=f), expects) for f, expects in EXPECTS.items()}
batches = tuple(SimpleNamespace(name=f"decode-B{M}", sizes={"M": M * 1024}, real=True) for M in (16, 128))
KERNELS["batch_dependent"] = Kernel(
    SimpleNamespace(_init_fn=batch_dependent), {"*": Expected(10_000, invariant=True)}, workloads=batches)
"""

CHILD = """
import argparse, contextlib, io, json, sys
from pathlib import Path
from zonos2_triton.bench.compiler.gate import command

parser = argparse.ArgumentParser()
execute = command(parser, "toys", Path("baselines"))
results = []
for arguments in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        try:
            status = execute(parser.parse_args(arguments))
        except ValueError as error:
            status, printed = 2, io.StringIO(str(error))
    results.append([status, printed.getvalue()])
print(json.dumps(results))
"""

DRY_RUN = """
import torch, toys
from triton.runtime import driver
from triton.runtime.jit import JITFunction
from zonos2_triton.bench.compiler.offline_compile import dry_run, fake_tensors

before = JITFunction.run, driver._active
archs = []
for target in ("sm_90", "sm_120"):
    with dry_run(target) as launches, fake_tensors():
        toys.clean(torch.empty(65536, dtype=torch.bfloat16, device="cuda"))
    assert [(x.function, x.grid, x.count, x.error) for x in launches] == [
        ("_scale_kernel", (2,), 3, None), ("_scale_kernel", (8,), 1, None)]
    archs.append(launches[0].kernel.metadata.target.arch)
assert archs == [90, 120]
try:
    with dry_run("sm_90"):
        toys.host(None)
except ValueError:
    pass
assert before == (JITFunction.run, driver._active) and not toys._scale_kernel.device_caches
"""


def in_child(folder, code, *arguments, **variables):
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])}
    command = [sys.executable, "-c", code, *arguments]
    run = subprocess.run(command, cwd=folder, env=environment | variables, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gate")
    (folder / "toys.py").write_text(TOYS, encoding="utf-8")
    return folder


DEFECTS = [
    ("spills", "sm_90", "spills or local arrays"),
    ("odd_length", "sm_90", "no 16-byte loads"),
    ("odd_view", "sm_90", "no 16-byte loads"),
    ("large_tiles", "sm_120", "bytes of shared memory, sm_120 has 101376"),
    ("no_matrix", "sm_90", "no matrix instructions"),
    ("long", "sm_90", "at most 100 meant"),
    ("batch_dependent", "sm_90", "adds in another order than decode-B16-bfloat16"),
    ("broken", "sm_90", "does not compile: ValueError: line 2 of the function: arange's range must be a power of 2"),
    ("refused", "sm_90", "Modifier '.evict_first' cannot be combined with modifier '.cg'"),
    ("host", "sm_90", "the host code failed: ValueError: x must have two axes"),
    ("silent", "sm_90", "the op launches no kernel"),
    ("unstated", "sm_90", "the catalogue states no expectation for _scale_kernel"),
]


@pytest.fixture(scope="module")
def gate(folder):
    """Status and output of the gate over the toys, of two further runs, and of refused ones."""
    toys = ["--kernel", "clean", *(name for name, _, _ in DEFECTS)]
    arguments = [
        [*toys, "--target", "sm_90", "--dtype", "bfloat16", "--json", "--update-baseline"],
        ["--kernel", "large_tiles", "--target", "sm_120", "--dtype", "bfloat16", "--json"],
        ["--kernel", "clean", "--target", "sm_90", "gfx942"],
        ["--kernel", "cleen"],
        ["--target", "sm90"],
        ["--jobs", "0"],
    ]
    toys, other, again, *refused = json.loads(in_child(folder, CHILD, json.dumps(arguments)))
    rows = [row for _, printed in (toys, other) for row in json.loads(printed)["rows"]]
    return SimpleNamespace(toys=toys, other=other, again=again, refused=refused, rows=rows)


@pytest.mark.parametrize(("kernel", "target", "words"), DEFECTS, ids=lambda value: value.split()[0])
def test_every_seeded_defect_is_named(gate, kernel, target, words):
    failures = [f for row in gate.rows if (row["kernel"], row["target"]) == (kernel, target) for f in row["failures"]]
    assert len(failures) == 1
    assert words in failures[0]


def test_what_is_clean_passes(gate):
    clean = [row for row in gate.rows if row["kernel"] == "clean"]
    assert [(row["config"], row["launches"], row["grid"]) for row in clean] == [
        ("M64-bfloat16", 3, [2]),
        ("M64-bfloat16#2", 1, [8]),
    ]
    assert all(row["failures"] == [] and row["stats"]["loads"].keys() == {"16"} for row in clean)
    assert clean[0]["stats"]["matrix"] == {}
    tiles = {row["target"]: row for row in gate.rows if row["kernel"] == "large_tiles"}
    assert tiles["sm_90"]["failures"] == []
    assert tiles["sm_90"]["stats"]["matrix"].keys() == {"HGMMA"}
    assert tiles["sm_90"]["stats"]["loads"].keys() == {"async 16"}
    # A launch that does not compile does not stop the others of its op.
    assert [row["function"] for row in gate.rows if row["kernel"] == "broken"] == ["_broken_kernel", "_scale_kernel"]


def test_status_table_and_baseline(gate):
    assert gate.toys[0] == 1
    report = json.loads(gate.toys[1])
    assert report["failed"] == sum(bool(row["failures"]) for row in report["rows"])
    assert report["baseline"] is None
    assert gate.other[0] == 1
    assert json.loads(gate.other[1])["changes"] == [
        {"key": "large_tiles/_dot_kernel/M64-bfloat16/sm_120", "text": "new", "worse": False}
    ]
    status, table = gate.again
    assert status == 0, table
    assert table.splitlines()[0].split()[:4] == ["kernel", "function", "workload", "target"]
    assert "clean   _scale_kernel  M64-float16#2   sm_90" in table
    assert table.count("changed: clean/_scale_kernel/M64-") == 6
    assert "changed: clean/_scale_kernel/M64-float16#2/gfx942: new" in table
    assert "8 rows, 0 failed, 0 worse than triton-3." in table


def test_bad_input(gate):
    (status, kernel), (_, target), (_, jobs) = gate.refused
    assert status == 2
    assert "kernel must be one of clean, spills, " in kernel
    assert "got 'cleen'; did you mean 'clean'?" in kernel
    assert target == f"target must be one of {', '.join(TARGETS)}, got 'sm90'; did you mean 'sm_90' or 'sm_89'?"
    assert jobs == "jobs must be at least 1, got 0"


def test_main_reports_bad_input(capsys):
    assert main(["--target", "gfx9"]) == 2
    assert "error: target must be one of sm_80" in capsys.readouterr().err


def test_an_interpreter_process_is_refused(folder):
    code = "import triton.language, os; os.environ.pop('TRITON_INTERPRET', None)\n" + CHILD
    for script in (CHILD, code):
        [[status, message]] = json.loads(in_child(folder, script, '[["--target", "sm_90"]]', TRITON_INTERPRET="1"))
        assert status == 2
        assert message.startswith("the compile gate needs Triton's compiler, but TRITON_INTERPRET is set")


def test_fake_tensors_index_as_real_ones():
    real = torch.arange(240).reshape(4, 6, 10)
    indices = [1, -1, slice(1, 3), slice(None, None, 2), ..., None, (1, 2), (..., slice(3, None)), (None, 0, ..., 5),
               (slice(1, 3), None, slice(2, 4)), (2, slice(None), 1), torch.tensor([2, 0, 2]),
               (slice(None), torch.tensor([[1, 5]]))]  # fmt: skip
    with fake_tensors():
        fake = torch.empty(4, 6, 10, dtype=torch.int64, device="cuda")
        for index in indices:
            found, like = fake[index], real[index]
            assert (found.shape, found.stride(), found.device.type) == (like.shape, like.stride(), "cuda")
            assert found.data_ptr() == 8 * like.storage_offset()
        fake[1:, 2] = 0


def test_dry_run_leaves_no_trace(folder):
    in_child(folder, DRY_RUN)


def test_a_compiler_that_dies_fails_its_row(folder):
    arguments = ["--kernel", "crash", "--target", "sm_90", "--json"]
    [[status, printed]] = json.loads(in_child(folder, CHILD, json.dumps([arguments])))
    assert status == 1
    assert [row["failures"] for row in json.loads(printed)["rows"]] == [["the compiler ended its process"]]


def test_judge_passes_what_is_meant():
    assert judge(CLEAN, "sm_90", MEANT) == []


@pytest.mark.parametrize(
    ("change", "target", "words"),
    [
        ({"spills": 2}, "sm_90", "2 local accesses, 0 bytes of stack"),
        ({"stack": 32}, "sm_90", "0 local accesses, 32 bytes of stack"),
        ({"spills": 1, "stack": 8}, "gfx942", "1 local accesses, 8 bytes of stack"),
        ({"shared": 102_400}, "sm_86", "102400 bytes of shared memory, sm_86 has 101376"),
        ({"shared": 65_537}, "gfx942", "gfx942 has 65536"),
        ({"tensor_memory": 912, "matrix": {"UTCHMMA": 7}}, "sm_100", "912 columns of tensor memory, sm_100 has 512"),
        ({"loads": {"8": 16}}, "sm_90", "no 16-byte loads: 16 narrower ones"),
        ({"loads": {"16": 2, "2": 3}}, "sm_90", "3 loads narrower than 16 bytes beside 2 of 16"),
        ({"matrix": {}}, "sm_80", "no matrix instructions"),
        ({"matrix": {"HMMA": 8}}, "sm_90", "no matrix instructions of a warpgroup, only HMMA"),
        ({"instructions": 601}, "sm_90", "601 instructions, at most 600 meant"),
        ({"blocks": 0}, "sm_90", "no block fits"),
    ],
)
def test_judge_names(change, target, words):
    [failure] = judge(dataclasses.replace(CLEAN, **change), target, MEANT)
    assert words in failure


def test_judge_names_a_binary_that_only_traps():
    trap = dataclasses.replace(CLEAN, instructions=16, traps=1, loads={}, matrix={}, tensor_memory=912)
    failures = judge(trap, "sm_100", Expected(600))
    assert failures[0] == "a trap in place of the kernel: 16 instructions, 1 of them traps"
    assert judge(dataclasses.replace(CLEAN, traps=1), "sm_90", MEANT) == []  # an assertion beside the kernel


@pytest.mark.parametrize("target", ["sm_80", "sm_120", "gfx942"])
def test_matrix_instructions_of_a_warp_do_where_there_are_no_others(target):
    assert judge(dataclasses.replace(CLEAN, matrix={"HMMA": 8}), target, MEANT) == []


def test_narrow_loads_can_be_meant():
    stats = dataclasses.replace(CLEAN, loads={"16": 2, "2": 50})
    assert judge(stats, "sm_90", dataclasses.replace(MEANT, max_narrow=50)) == []
    assert judge(dataclasses.replace(CLEAN, loads={"tma": 1, "4": 9}), "sm_90", MEANT) == []  # one loads a whole tile


def row(name="op/_op_kernel/M1-bfloat16/sm_90", launches=1, **change):
    kernel, function, config, target = name.split("/")
    return Row(kernel, function, config, target, (), dataclasses.replace(CLEAN, **change), (1,), launches)


def baseline_of(tmp_path, *rows, known=("op", "other")):
    path = tmp_path / "baselines" / "triton-3.6.json"
    write_baseline(path, rows, known)
    return read_baseline(path)


@pytest.mark.parametrize(
    ("change", "text", "worse"),
    [
        ({"registers": 72}, "registers 64 -> 72", False),
        ({"registers": 73}, "registers 64 -> 73", True),
        ({"registers": 50}, "registers 64 -> 50", False),
        ({"spills": 1}, "spills 0 -> 1", True),
        ({"shared": 40_000}, "shared 32768 -> 40000", False),
        ({"instructions": 575}, "instructions 500 -> 575", False),
        ({"instructions": 576}, "instructions 500 -> 576", True),
        ({"loads": {"16": 11, "2": 3}}, "wide 12 -> 11", True),
        ({"loads": {"16": 12, "2": 4}}, "narrow 3 -> 4", False),
        ({"matrix": {"HMMA": 4}}, "matrix 8 -> 4", True),
        ({"matrix": {"HMMA": 16}}, "matrix 8 -> 16", False),
        ({"launches": 2}, "launches 1 -> 2", True),
    ],
)
def test_compare(tmp_path, change, text, worse):
    baseline = baseline_of(tmp_path, row())
    assert compare([row()], baseline) == []
    [found] = compare([row(**change)], baseline)
    assert (found.text, found.worse) == (text, worse)


def test_compare_new_and_gone(tmp_path):
    second = row("op/_op_kernel/M1-bfloat16#2/sm_90")
    rest = [row("op/_op_kernel/M9-bfloat16/sm_90"), row("op/_k/M1-bfloat16/sm_80"), row("other/_k/M1-bfloat16/sm_90")]
    baseline = baseline_of(tmp_path, row(), second, *rest)
    changes = compare([row(launches=2), row("op/_op_kernel/M4-bfloat16/sm_90")], baseline)
    assert {(change.key, change.text, change.worse) for change in changes} == {
        ("op/_op_kernel/M4-bfloat16/sm_90", "new", False),
        ("op/_op_kernel/M1-bfloat16#2/sm_90", "gone", False),  # two launches before and after
        ("op/_op_kernel/M9-bfloat16/sm_90", "gone", False),
    }


def test_a_baseline_keeps_what_was_not_run(tmp_path):
    names = [
        "op/_k/M1-bfloat16/sm_90",
        "op/_k/M4-bfloat16/sm_90",
        "op/_k/M1-bfloat16/sm_80",
        "other/_k/M1-bfloat16/sm_90",
    ]
    baseline_of(tmp_path, *map(row, names))
    baseline = baseline_of(tmp_path, row(names[0], registers=70), known=("op",))
    assert baseline.keys() == {names[0], names[2]}
    assert baseline[names[0]]["registers"] == 70
    assert len((tmp_path / "baselines" / "triton-3.6.json").read_text().splitlines()) == 4


def test_statistics_of_an_amd_kernel():
    text = """
    s_load_dwordx2 s[2:3], s[0:1], 0x0
    buffer_load_dwordx4 v[0:3], v8, s[0:3], 0 offen
    global_load_dwordx2 v[0:1], v[2:3], off
    global_load_ushort v0, v[2:3], off
    v_mfma_f32_16x16x16_bf16 a[0:3], v[0:1], v[2:3], a[0:3]
    scratch_store_dword off, v1, s32
    s_barrier
    s_nop 0
    s_endpgm
    .agpr_count: 4
    .private_segment_fixed_size: 8
    .sgpr_count: 16
    .vgpr_count: 60
    .vgpr_spill_count: 2
    ; Occupancy: 8
    """
    metadata = SimpleNamespace(num_warps=4, shared=32768)
    stats = statistics(SimpleNamespace(asm={"amdgcn": text}, metadata=metadata), TARGETS["gfx942"])
    assert stats == Stats(registers=60, stack=8, spills=3, shared=32768, warps=4, blocks=2, occupancy=0.25,
                          instructions=8, accumulators=4, scalar_registers=16, loads={"16": 1, "8": 1, "2": 1},
                          matrix={"mfma": 1}, barriers=1)  # fmt: skip


TTGIR = """
#blocked = #ttg.blocked<{sizePerThread = [8, 1], threadsPerWarp = [16, 2], warpsPerCTA = [1, WARPS], order = [0, 1]}>
#mma = #ttg.nvidia_mma<{versionMajor = VERSION, versionMinor = 0, warpsPerCTA = [1, 4], instrShape = [16, 8]}>
  %9 = tt.dot %w, %x, %acc : tensor<16xSTEPxbf16, #ttg.dot_op<{opIdx = 0, parent = #mma}>> * tensor<STEPxROWSxbf16, \
#ttg.dot_op<{opIdx = 1, parent = #mma}>> -> tensor<16xROWSxf32, #mma> loc(#loc1)
  %10 = "tt.reduce"(%9) <{axis = 0 : i32}> ({
  }) : (tensor<STEPxROWSxf32, #blocked>) -> tensor<ROWSxf32, #ttg.slice<{dim = 0, parent = #blocked}>> loc(#loc2)
""".replace("\\\n", "")


def ttgir(**values):
    text = TTGIR
    for name, value in ({"WARPS": 4, "VERSION": 2, "STEP": 128, "ROWS": 16} | values).items():
        text = text.replace(name, str(value))
    return text


def test_sums_are_what_a_batch_must_not_change():
    """More rows, and warps that share the rows out, add as before; another step or instruction does not."""
    assert len(sums(ttgir())) == 2
    assert sums(ttgir()) == sums(ttgir(ROWS=64, WARPS=8))
    assert sums(ttgir()) != sums(ttgir(STEP=64))
    assert sums(ttgir()) != sums(ttgir(VERSION=3))
    assert sums(ttgir()) != sums(ttgir().replace("threadsPerWarp = [16, 2]", "threadsPerWarp = [8, 4]"))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ("decode-B1-bfloat16", "decode"),
        ("decode-B64-top2-bfloat16", "decode"),
        ("decode-B64-bfloat16#2", "decode"),
        ("prefill-2048-float16", "prefill"),
        ("dense-prefill-2048-bfloat16", "dense-prefill"),
        ("decode-top2-bfloat16", "decode-top2"),
    ],
)
def test_role_of_a_workload(config, expected):
    assert role(config) == expected


def test_the_catalogue_passes_on_sm_90():
    """Every kernel at the real shapes, against the baseline of this version of Triton; `make gate` has all targets."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "zonos2_triton.bench.compiler.gate", "--target", "sm_90"]
    command += ["--dtype", "bfloat16", "--json"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    report = json.loads(run.stdout)
    assert [row for row in report["rows"] if row["failures"]] == []
    assert [change for change in report["changes"] if change["worse"]] == []
    assert run.returncode == 0
    assert {row["kernel"] for row in report["rows"]} == KERNELS.keys()
    without = {(row["function"], role(row["config"])) for row in report["rows"] if not row["stats"]["sums"]}
    moves = {(function, kind) for function, kind in without if function in ("_rotary_kernel", "_advance_kernel")}
    # Neither norms: the sum of an embedding's rows is no reduction, keys are copied.
    assert without - moves == {("_frame_embedding_kernel", "no-norm"), ("_write_cache_kernel", "plain")}
