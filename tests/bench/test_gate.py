"""The compile gate: seeded defects, each of which it must name, some real kernels, the command, and figures.

The compiler runs in a process of its own, once: where there is no GPU, this one has Triton's interpreter.
"""

import dataclasses
import fcntl
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from zonos2_triton.bench.catalogue import KERNELS
from zonos2_triton.bench.compiler import gate
from zonos2_triton.bench.compiler.cubin_stats import TARGETS, Stats, statistics, sums
from zonos2_triton.bench.compiler.estimate import Counted
from zonos2_triton.bench.compiler.expected import Expected, Row, judge, variant_of
from zonos2_triton.bench.compiler.gate import SNAPSHOTS
from zonos2_triton.bench.compiler.offline_compile import fake_tensors
from zonos2_triton.bench.compiler.snapshot import compare, read_snapshot, write_snapshot
from zonos2_triton.model.cli import main

DEFECTS = [
    ("spills", "sm_90", "spills or local arrays"),
    ("odd_length", "sm_90", "no 16-byte loads"),
    ("odd_view", "sm_90", "no 16-byte loads"),
    ("large_tiles", "sm_120", "bytes of shared memory, sm_120 has 101376"),
    ("batch_dependent", "sm_90", "adds in another order than decode-B16-bfloat16"),
    ("broken", "sm_90", "does not compile: ValueError: line 2 of the function: arange's range must be a power of 2"),
    ("refused", "sm_90", "Modifier '.evict_first' cannot be combined with modifier '.cg'"),
    ("host", "sm_90", "the host code failed: ValueError: x must have two axes"),
    ("silent", "sm_90", "the op launches no kernel"),
    ("after_load", "sm_90", "ahead of the wait for the previous launch, and no early load, from x_ptr: `"),
    ("early_trigger", "sm_90", "the next launch may start ahead of the wait for the previous one: `griddepcontrol"),
    ("early_store", "sm_90", "ahead of the wait for the previous launch: `"),
    ("early_count", "sm_90", "ahead of the wait for the previous launch: `"),
    ("early_choice", "sm_90", "ahead of the wait for the previous launch, and no early load, from x_ptr: `"),
    ("early_other", "sm_90", "ahead of the wait for the previous launch, and no early load, from x_ptr: `"),
    ("twice", "sm_90", "2 waits for the previous launch; there must be one"),
    ("branch", "sm_90", "not every path waits for the previous launch"),
    ("early_return", "sm_90", "not every path waits for the previous launch"),
    ("loop", "sm_90", "not every path waits for the previous launch"),
    ("nowhere", "sm_90", "0 waits for the previous launch; there must be one"),
    ("no_attribute", "sm_90", "it waits for the previous launch, but has no launch_pdl"),
    ("unstated", "sm_90", "the catalogue states no expectation for _scale_kernel"),
]


def compiling(*command):
    """The output of a command in a process that compiles."""
    path = f"{Path(__file__).parent}:{os.environ.get('PYTHONPATH', '')}"
    environment = os.environ | {"TRITON_INTERPRET": "0", "PYTHONPATH": path}
    return subprocess.run([sys.executable, "-m", *command], env=environment, capture_output=True, text=True)


@pytest.fixture(scope="session")
def found(tmp_path_factory):
    """The findings of `gate_toys`; of several workers of xdist, the first compiles, the others wait."""
    folder = tmp_path_factory.getbasetemp()
    path = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "gate_toys"
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            run = compiling("gate_toys", path)
            assert run.returncode == 0, run.stderr
    return pickle.loads(path.read_bytes())


@pytest.fixture
def command(monkeypatch, tmp_path, found, capsys):
    """The command -> its status and what it prints; it finds the rows of these toys, and keeps its own snapshots."""
    monkeypatch.setattr(gate, "SNAPSHOTS", tmp_path)

    def execute(*options, kernels=("clean",)):
        monkeypatch.setattr(gate, "run", lambda *_, **__: [row for row in found["rows"] if row.kernel in kernels])
        return main(["compile", *options]), capsys.readouterr().out

    return execute


@pytest.mark.parametrize(("kernel", "target", "words"), DEFECTS, ids=lambda value: value.split()[0])
def test_every_seeded_defect_is_named(found, kernel, target, words):
    [failure] = [f for row in found["rows"] if (row.kernel, row.target) == (kernel, target) for f in row.failures]
    assert words in failure


def test_what_is_clean_passes(found):
    clean = [row for row in found["rows"] if row.kernel == "clean" and row.target == "sm_90"]
    three, other = ("M64-bfloat16", 3, (2,)), ("M64-bfloat16#2", 1, (8,))
    assert [(row.config, row.launches, row.grid) for row in clean] == [three, other]
    assert all(not row.failures and row.stats.loads.keys() == {"16"} and not row.stats.matrix for row in clean)
    assert all(not row.failures for row in found["rows"] if row.kernel in ("before", "early"))
    [tiles] = [row for row in found["rows"] if row.kernel == "large_tiles" and row.target == "sm_90"]
    assert not tiles.failures
    assert (tiles.stats.matrix.keys(), tiles.stats.loads.keys()) == ({"HGMMA"}, {"async 16"})
    # A launch that does not compile does not stop the others of its op.
    assert [row.function for row in found["rows"] if row.kernel == "broken"] == ["_broken_kernel", "_scale_kernel"]


def test_real_kernels_pass_and_are_what_the_snapshot_says(found):
    import triton

    rows = [row for row in found["rows"] if row.kernel in KERNELS]
    assert {row.kernel for row in rows} == {"rotary", "output_projection", "sample_codes"}
    assert all(not row.failures for row in rows)
    snapshot = read_snapshot(SNAPSHOTS / f"triton-{'.'.join(triton.__version__.split('.')[:2])}.json")
    # Without a snapshot `compile` fails; this has then nothing to compare with.
    assert snapshot is None or all(change.text == "gone" for change in compare(rows, snapshot))
    assert not found["fused"]


def test_an_offline_compile_lists_what_would_run_and_leaves_no_trace(found):
    for launches, arch in zip(found["launches"], (90, 120), strict=True):
        assert launches == [("_scale_kernel", (2,), 3, None, arch), ("_scale_kernel", (8,), 1, None, arch)]
    assert found["no_trace"]


def test_what_hindered_a_workload_is_said(found):
    (binaries, nothing), (none, why) = found["warmed_up"]
    assert (binaries, nothing, none) == (1, "", 0)
    assert why == "ZeroDivisionError: division by zero"


def test_status_table_and_snapshot(command):
    status, text = command()
    assert status == 1
    assert text.endswith(".json to compare with; --update-snapshot makes it\n")
    assert "6 rows, 0 failed, there is no triton-3." in text
    status, text = command("--update-snapshot", "--json")
    report = json.loads(text)
    assert (status, report["snapshot"], report["failed"], report["changes"]) == (0, None, 0, [])
    status, table = command()
    assert status == 0
    assert table.splitlines()[0].split()[:4] == ["kernel", "function", "workload", "target"]
    assert "clean   _scale_kernel  M64-bfloat16#2  gfx942" in table
    assert "6 rows, 0 failed, 0 worse than triton-3." in table
    status, text = command("--json", kernels=("clean", "large_tiles"))
    report = json.loads(text)
    assert (status, report["failed"], report["worse"]) == (1, 1, 0)
    new = [f"large_tiles/_dot_kernel/M64-bfloat16/{target}" for target in ("sm_90", "sm_120")]
    assert report["changes"] == [{"key": key, "text": "new", "worse": False} for key in new]
    status, text = command(kernels=("large_tiles",))
    assert f"changed: {new[0]}: new" in text
    assert "FAIL: 131072 bytes of shared memory" in text


@pytest.mark.interpreter
def test_an_interpreter_process_is_refused(monkeypatch, capsys):
    """Also one that was an interpreter when Triton was imported."""
    import triton

    for command in (["compile", "--target=sm_90"], ["verify", "--compiled", "sm_90", "--kernel", "rotary"]):
        assert main(command) == 2
        assert "this command needs Triton's compiler, but TRITON_INTERPRET is set" in capsys.readouterr().err
        monkeypatch.setattr(triton.knobs.runtime, "interpret", False)


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


def test_other_sizes_are_compiled_and_compared_with_no_snapshot(command, monkeypatch):
    status, said = command("--set", "M=7")
    assert (status, said.splitlines()[-1].split(", ")[-1]) == (0, "compared with no snapshot")
    monkeypatch.undo()
    monkeypatch.setattr(gate, "check_compiler", lambda: None)
    monkeypatch.setattr(gate, "compile_all", lambda tasks, jobs: [tasks])
    [task] = gate.run(["sm_90"], ["rotary"], dtypes=["bfloat16"], settings=["M=7", "H=3"])
    [workload] = task.workloads
    assert (workload.name, workload.sizes["M"], workload.sizes["H"]) == ("decode-B1,M=7,H=3", 7, 3)


@pytest.mark.slow
def test_a_compiler_that_dies_fails_its_row_alone(tmp_path):
    run = compiling("gate_toys", tmp_path / "found", "crash", "clean")
    assert run.returncode == 0, run.stderr
    rows = pickle.loads((tmp_path / "found").read_bytes())["rows"]
    died, *others = sorted(rows, key=lambda row: row.kernel != "crash")
    assert died.failures == ("the compiler ended its process",)
    assert len(others) == 6
    assert not any(row.failures for row in others)


@pytest.mark.slow
def test_the_catalogue_passes_on_sm_90():
    """Every kernel at the real shapes, against the snapshot of this version of Triton; `make gate` has all targets."""
    run = compiling("zonos2_triton", "compile", "--target=sm_90", "--dtype=bfloat16", "--json")
    report = json.loads(run.stdout)
    assert [row for row in report["rows"] if row["failures"]] == []
    assert [change for change in report["changes"] if change["worse"]] == []
    assert run.returncode == 0
    assert {row["kernel"] for row in report["rows"]} == KERNELS.keys()
    without = {(row["function"], variant_of(row["config"])) for row in report["rows"] if not row["stats"]["sums"]}
    moves = {(function, kind) for function, kind in without if function == "_rotary_kernel"}
    # None reduces: rows of an embedding and squares of 16 columns are added in pairs, keys are copied.
    pairs = {("_frame_embedding_kernel", "no-norm"), ("_prepare_norm_kernel", "unprepared")}
    integers = {("_sample_codes_kernel", "decode")}  # whose sums have no order
    assert without - moves == pairs | integers | {("_write_cache_kernel", "no-preamble")}


CLEAN = Stats(registers=64, stack=0, spills=0, shared=32768, warps=4, blocks=4, occupancy=0.25, instructions=500,
              loads={"16": 8, "async 16": 4, "2": 3}, matrix={"HGMMA": 8})  # fmt: skip
MEANT = Expected(max_instructions=600, matrix=True, warpgroup=True, stream16=True)


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
        ({"traps": 1, "instructions": 16}, "sm_90", "a trap in place of the kernel: 16 instructions, 1 of them traps"),
    ],
)
def test_judge_names(change, target, words):
    [failure] = judge(dataclasses.replace(CLEAN, **change), target, MEANT)
    assert words in failure


@pytest.mark.parametrize(
    ("change", "target", "meant"),
    [
        ({}, "sm_90", {}),
        ({"traps": 1}, "sm_90", {}),  # an assertion beside the kernel
        *[({"matrix": {"HMMA": 8}}, target, {}) for target in ("sm_80", "sm_120", "gfx942")],  # there are no others
        ({"loads": {"tma": 1, "4": 9}}, "sm_90", {}),  # one loads a whole tile
        ({"loads": {"16": 2, "2": 50}}, "sm_90", {"max_narrow": 50}),
    ],
)
def test_judge_passes(change, target, meant):
    assert judge(dataclasses.replace(CLEAN, **change), target, dataclasses.replace(MEANT, **meant)) == []


def row(name="op/_op_kernel/M1-bfloat16/sm_90", launches=1, **change):
    kernel, function, config, target = name.split("/")
    return Row(kernel, function, config, target, (), dataclasses.replace(CLEAN, **change), (1,), launches)


def baseline_of(tmp_path, *rows, known=("op", "other")):
    path = tmp_path / "snapshots" / "triton-3.6.json"
    write_snapshot(path, rows, known)
    return read_snapshot(path)


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
        ({"launches": 0}, "launches 1 -> 0", False),
    ],
)
def test_compare(tmp_path, change, text, worse):
    snapshot = baseline_of(tmp_path, row())
    assert compare([row()], snapshot) == []
    [found] = compare([row(**change)], snapshot)
    assert (found.text, found.worse) == (text, worse)


COUNTED = Counted(launch=0, live=264, wavefronts=3800, issued=15200, chain=9500, round_trips=2, conflict=1.0, exposed=0,
                  under_way=28_000, moved=10**6, through_l2=10**6, loaded=10_000, early_loaded=10**6, loaded_after=0,
                  wavefronts_after=3800, issued_after=15200, chain_before=900, chain_after=9500, registers=64,
                  shared=32768, warps=2, resident=4)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "kept", "worse"),
    [
        ("wavefronts", 4040, 4041), ("issued", 16770, 16771), ("chain", 10550, 10551), ("round_trips", 2, 3),
        ("conflict", 1.05, 1.06), ("exposed", 0, 1), ("under_way", 25_200, 25_199), ("live", 1, None),
        ("through_l2", 1_050_000, 1_050_001), ("loaded", 10_500, 10_501), ("early_loaded", 900_000, 899_999),
        ("chain_after", 10550, 10551),
    ],
)  # fmt: skip
def test_compare_counts(tmp_path, name, kept, worse):
    """Counts may grow a little; a snapshot without them is not compared."""
    counted = dataclasses.replace(row(), counted=COUNTED)
    without, before = baseline_of(tmp_path, row()), baseline_of(tmp_path, counted)
    for value, is_worse in ((kept, False), (worse, True)):
        if value is not None:
            now = dataclasses.replace(row(), counted=dataclasses.replace(COUNTED, **{name: value}))
            assert [change.worse for change in compare([now], before)] == [is_worse] * (value != getattr(COUNTED, name))
            assert compare([now], without) == []


def test_compare_new_and_gone(tmp_path):
    second = row("op/_op_kernel/M1-bfloat16#2/sm_90")
    rest = [row("op/_op_kernel/M9-bfloat16/sm_90"), row("op/_k/M1-bfloat16/sm_80"), row("other/_k/M1-bfloat16/sm_90")]
    snapshot = baseline_of(tmp_path, row(), second, *rest)
    changes = compare([row(launches=2), row("op/_op_kernel/M4-bfloat16/sm_90")], snapshot)
    assert {(change.key, change.text, change.worse) for change in changes} == {
        ("op/_op_kernel/M4-bfloat16/sm_90", "new", False),
        ("op/_op_kernel/M1-bfloat16#2/sm_90", "gone", False),  # two launches before and after
        ("op/_op_kernel/M9-bfloat16/sm_90", "gone", False),
    }


def test_a_baseline_keeps_what_was_not_run(tmp_path):
    op = "op/_k/M1-bfloat16/sm_90"
    names = [op, op.replace("M1", "M4"), op.replace("90", "80"), op.replace("op", "other")]
    baseline_of(tmp_path, *map(row, names))
    snapshot = baseline_of(tmp_path, row(names[0], registers=70), known=("op",))
    assert snapshot.keys() == {names[0], names[2]}
    assert snapshot[names[0]]["registers"] == 70
    assert len((tmp_path / "snapshots" / "triton-3.6.json").read_text().splitlines()) == 4


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
#blocked = #ttg.blocked<{sizePerThread = [8, 1], threadsPerWarp = [16, 2], warpsPerCTA = [1, 4], order = [0, 1]}>
#mma = #ttg.nvidia_mma<{versionMajor = 2, versionMinor = 0, warpsPerCTA = [1, 4], instrShape = [16, 8]}>
  %9 = tt.dot %w, %x, %acc : tensor<16x128xbf16, #ttg.dot_op<{opIdx = 0, parent = #mma}>> * tensor<128x32xbf16, \
#ttg.dot_op<{opIdx = 1, parent = #mma}>> -> tensor<16x32xf32, #mma> loc(#loc1)
  %10 = "tt.reduce"(%9) <{axis = 0 : i32}> ({
  }) : (tensor<128x32xf32, #blocked>) -> tensor<32xf32, #ttg.slice<{dim = 0, parent = #blocked}>> loc(#loc2)
""".replace("\\\n", "")


def test_sums_are_what_a_batch_must_not_change():
    """More rows, and warps that share the rows out, add as before; another step or instruction does not."""
    assert len(sums(TTGIR)) == 2
    assert sums(TTGIR) == sums(TTGIR.replace("32x", "64x").replace("[1, 4], order", "[1, 8], order"))
    for place, other in [("128", "64"), ("Major = 2", "Major = 3"), ("[16, 2]", "[8, 4]")]:
        assert sums(TTGIR) != sums(TTGIR.replace(place, other))


def test_a_sum_of_two_numbers_has_no_order():
    pairs = TTGIR.replace("128x32xf32", "2x32xf32").replace("[8, 1]", "[2, 1]")
    assert sums(pairs) == sums(TTGIR)[:1]
    assert sums(pairs) == sums(pairs.replace("[16, 2]", "[8, 4]"))


def test_sums_of_slices_are_what_a_batch_must_not_change():
    """The number of slices counts, not the height of their tiles or the length of a step."""
    sliced = TTGIR.replace("<16x128", "<4x16x128").replace("<128x32xbf16", "<4x128x32xbf16")
    sliced = sliced.replace("<16x32", "<4x16x32").replace("[16, 8]", "[1, 16, 8]")
    assert sums(sliced) == sums(sliced.replace("4x16x", "4x32x")) != sums(TTGIR)
    assert sums(sliced) == sums(sliced.replace("x32x", "x8x"))
    assert sums(sliced) == sums(sliced.replace("x128xbf16", "x64xbf16"))
    assert sums(sliced) != sums(sliced.replace("4x16x128", "2x16x128"))
