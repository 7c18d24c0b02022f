"""The command for a GPU, as far as it goes without one: what it would run, its budget, its file, what it withholds."""

import dataclasses
import json
import math
import os
import subprocess
import sys
from datetime import date
from types import SimpleNamespace

import pytest
import torch

from zonos2_triton.bench import device_checks, environment, gpu, timing
from zonos2_triton.bench.catalogue import KERNELS
from zonos2_triton.bench.frame import frame_cost
from zonos2_triton.bench.frame_timing import FrameTimer
from zonos2_triton.bench.interpreter import checked
from zonos2_triton.bench.record import Budget, Item, NotRun, Record, Withheld
from zonos2_triton.bench.timing import Device, Rotation, measure, quantiles, rates, rotation, time_kernel
from zonos2_triton.bench.verify import Mismatch
from zonos2_triton.bench.vocoder_timing import WORKS, VocoderTimer, Work, step_costs
from zonos2_triton.model.ops import vocoder_ops
from zonos2_triton.reference import backbone as reference
from zonos2_triton.reference.delay import shear_up
from zonos2_triton.reference.vocoder import VocoderConfig, layout

HERE = {"card": "NVIDIA H100 80GB HBM3", "commit": "0123456789ab", "sources": "s", "torch": "2.11", "triton": "3.6",
        "arch": "sm_90", "driver": "1"}  # fmt: skip
CPU = Device("cpu", 0, lambda: None, lambda run: 0.4, None)


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def record(tmp_path):
    return Record.open(tmp_path, HERE, date(2026, 1, 2))


def items(part, clock, *names, seconds=1.0, spend=2.0, done=None):
    def run(name, left):
        clock.now += spend
        if done is not None:
            done.append(name)
        return {"left": left}

    return [Item(part, name, seconds, lambda left, name=name: run(name, left)) for name in names]


def broken(part, name, error):
    def run(left):
        raise error

    return Item(part, name, 0, run)


def on_disk(record):
    return json.loads(record.path.read_text(encoding="utf-8"))


def go(record, parts, todo, clock, budget=1000.0, **more):
    said = []
    status = gpu.run(record, parts, todo, Budget(budget, clock), say=said.append, **more)
    return status, "\n".join(said)


def test_what_would_run_covers_the_catalogue():
    listed = gpu.plan(None, gpu.chosen_parts(None), None)
    names = {part: [item.name for item in listed if item.part == part] for part in gpu.PARTS}
    assert all(len(set(mine)) == len(mine) for mine in names.values())
    real = {f"{kernel.name}/{w.name}" for kernel in KERNELS.values() for w in kernel.workloads if w.real}
    small = {f"{kernel.name}/{w.name}" for kernel in KERNELS.values() for w in kernel.workloads if not w.real}
    assert set(names["timings"]) == real
    assert set(names["kernels"]) == {f"{name}/bfloat16" for name in real | small} | {
        f"{name}/{dtype}" for name in small for dtype in ("float16", "float32")
    }
    # What is timed is checked before the budget can end.
    assert {name.removesuffix("/bfloat16") for name in names["kernels"][: len(real)]} == real
    timed = [name.split("/")[1] for name in names["timings"]]
    assert timed[:9] == ["decode-B1"] * 9
    assert (
        timed.index("decode-B16") < timed.index("decode-B64") < timed.index("prefill-2048") < timed.index("decode-B4")
    )


def test_without_a_gpu_it_lists_and_succeeds():
    clean = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "error", "-m", "zonos2_triton.bench.gpu", "--json", "--only", "kernels,timings"]
    run = subprocess.run(command, capture_output=True, text=True, env=clean | {"CUDA_VISIBLE_DEVICES": ""})
    assert run.returncode == 0, run.stderr
    report = json.loads(run.stdout)
    assert not report["ran"]
    assert "no CUDA or ROCm device" in report["reason"]
    assert {part: len(names) for part, names in report["would_run"].items()} == {
        part: len(gpu.plan(None, [part], None)) for part in ("kernels", "timings")
    }


def test_the_listing_is_for_people_too(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--out", str(tmp_path / "none")]) == 0
    said = capsys.readouterr().out
    assert said.startswith("nothing was run: torch ")
    assert "calibration: 2 items" in said
    assert "  rotary decode-B1, " in said
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "kernels,timing"], "--only takes parts of environment, tests, kernels, invariance, graph, "
         "calibration, frames, vocoder, timings, got 'timing'; did you mean 'timings'?"),
        (["--only", ""], "got ''"),
        (["--budget", "0"], "--budget must be a number of seconds above 0, got 0"),
        (["--budget", "nan"], "above 0, got nan"),
    ],
)  # fmt: skip
def test_bad_arguments(arguments, said, capsys):
    assert gpu.main(arguments) == 2
    assert said in capsys.readouterr().err


def test_an_interpreting_process_measures_nothing(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu, "interpreted", lambda: True)
    assert gpu.main([]) == 2
    assert "unset TRITON_INTERPRET" in capsys.readouterr().err


def test_the_command_writes_reports_and_goes_on(monkeypatch, capsys, tmp_path, clock):
    done = []
    todo = [*items("kernels", clock, "a/x/bfloat16", done=done), broken("timings", "a/x", Withheld("a/y failed"))]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name, stand_in in {"interpreted": lambda: False, "environment": lambda seed: HERE, "_alive": lambda: True,
                           "plan": lambda record, parts, device: todo}.items():  # fmt: skip
        monkeypatch.setattr(gpu, name, stand_in)
    monkeypatch.setattr(timing, "cuda_device", lambda: CPU)
    assert gpu.main(["--out", str(tmp_path), "--json"]) == 1
    out, err = capsys.readouterr()
    assert "withheld a/x: a/y failed" in err
    assert json.loads(out)["parts"]["timings"]["items"]["a/x"]["reason"] == "a/y failed"
    assert gpu.main(["--out", str(tmp_path)]) == 1
    assert "a       x         withheld" in capsys.readouterr().out
    assert done == ["a/x/bfloat16"]


def test_a_failure_leaves_what_came_before_on_disk(record, clock):
    def look(left):
        assert on_disk(record)["parts"]["kernels"]["items"]["one"]["status"] == "passed"
        raise KeyboardInterrupt

    todo = [*items("kernels", clock, "one"), broken("kernels", "two", Mismatch("off")), Item("graph", "three", 0, look)]
    with pytest.raises(KeyboardInterrupt):
        go(record, ["kernels", "graph"], todo, clock)
    found = on_disk(record)
    assert found["schema"] == 1
    assert found["environment"] == HERE
    assert found["parts"]["kernels"]["items"]["two"] | {"seconds": 0} == {
        "status": "failed", "error": "Mismatch: off", "seconds": 0}  # fmt: skip
    assert not [path for path in record.path.parent.iterdir() if path != record.path]


def test_a_failed_write_leaves_the_file_before(record):
    record.keep("graph", "one", {"status": "passed"})
    with pytest.raises(ValueError, match="JSON"):
        record.keep("graph", "two", {"status": "passed", "value": float("nan")})
    assert [*on_disk(record)["parts"]["graph"]["items"]] == ["one"]
    assert not [path for path in record.path.parent.iterdir() if path != record.path]


def test_the_budget_ends_and_says_what_it_left_out(record, clock):
    status, said = go(record, ["kernels"], items("kernels", clock, "a", "b", "c", "d"), clock, budget=4.5)
    assert status == 0
    assert [*record.items("kernels")] == ["a", "b"]
    assert on_disk(record)["parts"]["kernels"]["not_run"] == {"c": "no time left", "d": "no time left"}
    assert "kernels: 2 passed" in said
    assert "not run, no time left (2): c, d" in said


def test_early_parts_leave_time_for_later_ones(record, clock):
    todo = [*items("kernels", clock, "a", "b", spend=30), *items("timings", clock, "t")]
    go(record, ["kernels", "timings"], todo, clock, budget=gpu.PARTS["timings"] + 20)
    assert [*record.items("kernels")] == ["a"]
    assert [*record.items("timings")] == ["t"]
    assert gpu.reserve("timings", gpu.PARTS) == 0
    assert gpu.reserve("tests", ["tests", "graph"]) == gpu.PARTS["graph"]


def test_it_goes_on_where_it_stopped(record, clock):
    done = []
    todo = items("kernels", clock, "a", "b", "c", done=done)
    go(record, ["kernels"], todo, clock, budget=3)
    again = Record.open(record.path.parent, HERE, date(2026, 1, 5))
    assert again.path == record.path
    go(again, ["kernels"], todo, clock)
    assert done == ["a", "b", "c"]
    assert on_disk(record)["parts"]["kernels"]["not_run"] == {}
    go(again, ["kernels"], todo, clock, again=True)
    assert done == ["a", "b", "c"] * 2


def test_another_commit_card_or_version_begins_anew(record, tmp_path):
    assert record.path.name == "nvidia-h100-80gb-hbm3-2026-01-02-0123456789ab.json"
    for name, number in (("torch", 2), ("sources", 3)):
        other = Record.open(tmp_path, HERE | {name: "other"}, date(2026, 1, 2))
        assert other.path.name == f"nvidia-h100-80gb-hbm3-2026-01-02-0123456789ab-{number}.json"
    assert Record.open(tmp_path, HERE | {"commit": "f"}, date(2026, 1, 2)).path.name.endswith("-2026-01-02-f.json")
    assert Record.open(tmp_path, HERE | {"card": "RTX"}).path.name.startswith("rtx-")
    record.path.write_text("[1]", encoding="utf-8")  # no record: kept, not gone on with
    assert Record.open(tmp_path, HERE, date(2026, 1, 2)).path != record.path


def test_a_lost_device_ends_the_run(record, clock):
    todo = items("kernels", clock, "a", "b")
    answers = iter([True, False])
    status, said = go(record, ["kernels"], [*todo[:1], *todo], clock, alive=lambda: next(answers), again=True)
    assert status == 1
    assert "no longer answers" in said
    assert record.items("kernels")["a"]["error"] == "the device failed after it"


@pytest.mark.parametrize("error", [NotRun("no pytest"), torch.OutOfMemoryError("no room\nand more")], ids=repr)
def test_what_could_not_run_is_tried_again(record, clock, error):
    status, said = go(record, ["tests"], [broken("tests", "a", error)], clock)
    assert status == 0
    assert record.items("tests") == {}
    assert f"tests: nothing run\n  not run, {str(error).splitlines()[0]} (1): a" in said


def kernel_and_workload(name="add_rms_norm", workload="tiny", **changes):
    kernel = dataclasses.replace(KERNELS[name], **changes)
    return kernel, next(w for w in kernel.workloads if w.name == workload)


def test_times_of_a_wrong_kernel_are_withheld(record, clock):
    kernel, workload = kernel_and_workload(op=lambda x, residual, weight, eps: (x + residual, x))
    timed = Item("timings", "add_rms_norm/tiny", 0, lambda left: gpu._timed(kernel, workload, record, CPU, left))
    status, said = go(record, ["timings"], [timed], clock)
    assert status == 1
    assert "withheld add_rms_norm/tiny: add_rms_norm/tiny/bfloat16 failed" in said
    assert record.items("kernels")["add_rms_norm/tiny/bfloat16"]["error"].startswith("Mismatch: add_rms_norm tiny")


def test_times_are_withheld_where_any_check_of_the_kernel_failed(record):
    kernel, workload = kernel_and_workload()
    record.keep("kernels", "head/tiny/bfloat16", {"status": "failed", "error": "not this one"})
    gpu.prove(kernel, workload, record, CPU, 9)
    assert record.items("kernels")["add_rms_norm/tiny/bfloat16"]["status"] == "passed"
    record.keep("invariance", "add_rms_norm/batches", {"status": "failed", "error": ""})
    with pytest.raises(Withheld, match=r"^add_rms_norm/batches failed$"):
        gpu.prove(kernel, workload, record, CPU, 9)


def test_a_time_with_its_rates_and_reference(record, monkeypatch):
    record.keep("calibration", "copy", {"status": "passed", "gb_per_s": 2.0})
    kernel, workload = kernel_and_workload()
    workload = dataclasses.replace(workload, name="decode-B1")
    found = gpu._timed(kernel, workload, record, CPU, 9)
    assert found["median_us"] == pytest.approx(400 / 3)  # 0.4 ms, of three calls
    assert found["gb_per_s"] == pytest.approx((4 * 3 * 48 + 48) * 2 / 133.3e-6 / 1e9, abs=0.01)
    assert found["percent_of_copy"] == pytest.approx(50 * found["gb_per_s"], abs=1)
    assert found["reference"]["median_us"] == pytest.approx(400)
    record.keep("timings", "add_rms_norm/decode-B1", {"status": "passed"} | found)
    assert gpu.table(record).splitlines()[1].split()[:4] == ["add_rms_norm", "decode-B1", "133.3", "133.3"]


@pytest.mark.parametrize(
    ("touched", "held", "want"),
    [
        pytest.param(200 << 20, 200 << 20, Rotation(1, "rotated"), id="larger than the cache"),
        pytest.param(38 << 20, 604 << 20, Rotation(3, "rotated"), id="one expert of many"),
        pytest.param(10 << 20, 604 << 20, Rotation(1, "flushed"), id="no room for enough sets"),
        pytest.param(16 << 10, 16 << 10, Rotation(1, "warm"), id="a row"),
    ],
)
def test_rotation(touched, held, want):
    assert rotation(touched, held, 50 << 20) == want


def test_samples_take_turns_and_clear_the_cache():
    log, times = [], iter([0.2, 3.0, 3.1, *(3.2 + n / 10 for n in range(20)), *[0.2] * 9])
    calls = [lambda n=n: log.append(n) for n in range(3)]

    def elapsed(run):
        run()
        return next(times)

    device = Device("cpu", 0, lambda: log.append("clear"), elapsed, lambda run: run)
    found = measure(calls, device, 0.0)
    assert found["launch"] == "graph"
    assert len(found["samples_us"]) == 20
    assert found["calls_per_sample"] == 5
    assert log[:4] == [0, 1, 2, 0]  # to warm up, and to see how long a call takes
    assert log[4:16] == ["clear", 0, 1, 2, 0, 1] * 2
    assert found["median_us"] == pytest.approx((3.2 + 5.1) / 2 * 1e3 / 5)  # three came before
    assert found["low_us"] < found["median_us"] < found["high_us"]
    log.clear()
    flushed = measure(calls[:1], device, 0.0, "flushed", least=5)
    assert flushed["calls_per_sample"] == 1
    assert log == [0] * 4 + ["clear", 0] * 7


def test_what_cannot_be_captured_runs_as_it_is():
    def refuse(run):
        raise RuntimeError("operation not permitted\nwhen capturing")

    device = dataclasses.replace(CPU, capture=refuse)
    found = measure([lambda: None], device, 0.0)
    assert (found["launch"], found["not_captured"]) == ("eager", "operation not permitted")
    assert measure([lambda: None], device, 0.0, graph=False)["launch"] == "eager"
    assert len(measure([lambda: None], device, 10.0)["samples_us"]) == timing.MOST_SAMPLES


def test_quantiles_and_rates():
    assert quantiles([float(n) for n in range(11)]) == (2, 5, 8)
    assert quantiles([7.0]) == (7, 7, 7)
    assert rates(3_000_000, 6_000_000, 2.0, 3000) == {
        "gb_per_s": 1500, "tflop_per_s": 3, "percent_of_copy": 50}  # fmt: skip
    assert rates(1, 1, 1.0, None)["percent_of_copy"] is None


def test_sets_of_inputs_share_no_memory():
    """And keep what is shared within a set: gate and up are views of one tensor."""
    kernel, workload = kernel_and_workload("experts")
    made = kernel.make("cpu", torch.float32, **workload.sizes)
    other, copy = (timing._another(kernel, workload, made, "cpu", torch.float32, n) for n in (1, 4))
    assert not torch.equal(other["x"], made["x"])
    for name, value in made.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(copy[name], value)
            assert copy[name].data_ptr() != value.data_ptr()
    shared = copy["gate"].untyped_storage().data_ptr()
    assert copy["up"].untyped_storage().data_ptr() == shared != made["up"].untyped_storage().data_ptr()


def test_a_kernel_is_timed_on_sets_that_exceed_the_cache():
    kernel, workload = kernel_and_workload("router", "one-row")
    touched = kernel.cost_of(workload, 2).bytes
    found = time_kernel(kernel, workload, dataclasses.replace(CPU, l2=touched), seconds=0)
    assert (found["copies"], found["cache"]) == (2, "rotated")


def test_calibration():
    device = dataclasses.replace(CPU, elapsed=lambda run: 0.5)
    assert timing.copy_bandwidth(device, 1 << 20, 0)["gb_per_s"] == pytest.approx(2 * (1 << 20) / 0.5e-3 / 1e9, abs=0.1)
    assert timing.matmul_rate(device, 64, 0)["tflop_per_s"] == pytest.approx(2 * 64**3 / 0.5e-3 / 1e12, abs=0.01)


SMALL = {"qkv_projection": "tiny", "output_projection": "tiny", "router": "tiny", "experts": "top2", "head": "tiny",
         "decode_attention": "tiny", "sample": "tiny"}  # fmt: skip


def small(kernel, workload, **sizes):
    found = device_checks.workload_sizes(kernel, workload)
    return {name: value for name, value in found.items() if name != "contexts"} | sizes


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of the row of NaN
@pytest.mark.parametrize("kernel", device_checks.BATCHED)
def test_batch_invariance_in_the_interpreter(kernel):
    rows = {"B" if kernel in ("decode_attention", "sample") else "M": 3}
    device_checks.batch_invariance(kernel, small(kernel, SMALL[kernel], **rows), "cpu", torch.float32, (1, 2, 3))


@pytest.mark.parametrize("kernel", ["output_projection", "router", "experts"])
def test_prefill_rows_in_the_interpreter(kernel):
    sizes = small(kernel, "tiny" if kernel == "router" else "prefill", M=18)
    device_checks.prefill_rows(kernel, sizes, "cpu", torch.float32, (1, 7, 40))


def test_prefill_in_chunks_in_the_interpreter():
    device_checks.prefill_in_chunks(small("prefill_attention", "tiny"), "cpu", torch.float32, (1, 7, 16))


def test_a_difference_is_named(monkeypatch):
    """An operation whose rows know how many they are."""
    kernel, _ = kernel_and_workload("head", op=lambda x, *_, **__: x + 1e-6 * (len(x) == 2))
    monkeypatch.setattr(device_checks, "KERNELS", {"head": kernel})
    with pytest.raises(Mismatch, match=r"^head, 2 rows from 0: result 0 differs in \d+ of 96: .* instead of .* at \[0"):
        device_checks.batch_invariance("head", small("head", "tiny", M=3), "cpu", torch.float32, (1, 2, 3))


def test_a_captured_step_in_the_interpreter():
    chain = device_checks.layer_chain(small=True)
    device_checks.graph_capture(chain, "cpu", torch.float32, 1, 5, capture=lambda run: run)
    with pytest.raises(Mismatch, match="a replayed decode step"):  # the capture's own result is not the replay's
        device_checks.graph_capture(chain, "cpu", torch.float32, 1, 5, capture=lambda run: (run(), lambda: None)[1])


CODEC = VocoderConfig(latent_dim=8, decoder_dim=6, decoder_rates=(5,), n_codebooks=3, codebook_size=16, codebook_dim=4)


@pytest.fixture
def quick():
    """The interpreter without its checks of each access."""
    with checked(bounds=False, undefined=False, races=False):
        yield


@pytest.mark.usefixtures("quick")
def test_the_vocoder_in_steps_in_the_interpreter():
    device_checks.vocoder_steps(CODEC, "cpu", torch.float32, frames=9, chunks=(1, 7), rows=3)


@pytest.mark.usefixtures("quick")
def test_a_step_whose_bits_know_its_frames(monkeypatch):
    ops = vocoder_ops(torch.bfloat16)

    def later(*args, **more):
        return ops.waveform(*args, **more) + 1e-3 * (args[4] == 7)  # `frames`

    monkeypatch.setattr(device_checks, "vocoder_ops", lambda _: ops._replace(waveform=later))
    with pytest.raises(Mismatch, match=r"^vocoder, steps of 7 frames: result 0 differs in \d+ of 44: "):
        device_checks.vocoder_steps(CODEC, "cpu", torch.float32, frames=9, chunks=(7,), rows=1)


@pytest.mark.usefixtures("quick")
def test_captured_steps_of_the_vocoder_in_the_interpreter():
    device_checks.vocoder_graph(CODEC, "cpu", torch.float32, 9, 5, 2, capture=lambda run: run)
    with pytest.raises(Mismatch, match="a replayed step of the vocoder"):
        device_checks.vocoder_graph(CODEC, "cpu", torch.float32, 9, 5, 2, capture=lambda run: (run(), lambda: None)[1])


def test_codes_for_the_checks():
    codes = device_checks.random_codes(CODEC, 2, 5, "cpu")
    assert torch.equal(shear_up(device_checks.as_delayed(codes)[1].long(), 17)[:5], codes[1].long())


def test_the_chain_has_the_sizes_of_the_8b_model():
    config = device_checks.layer_chain()
    assert (config.dim, config.heads, config.kv_heads, config.ffn_dim) == (2048, 16, 4, 3072)
    assert [config.experts_per_token(layer) for layer in config.moe_layers] == [1, 2]


def test_the_environment_of_a_card(monkeypatch, tmp_path):
    card = SimpleNamespace(name="Card", major=9, minor=0, total_memory=80 << 30, multi_processor_count=132, uuid="u-1")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)
    script = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    script.write_text('#!/bin/sh\n[ "$4" = GPU-u-1 ] && echo 580.1.2, 1980, 2619, 1980, 2619, 700.00, 71.5, [N/A]\n')
    script.chmod(0o755)
    found = environment.environment(3)
    assert found | {"driver": "580.1.2", "clock_mhz": 1980, "power_limit_w": 700, "temperature_c": None} == found
    assert found | {"card": "Card", "arch": "sm_90", "seed": 3, "memory_gib": 80.0, "l2_bytes": None} == found
    assert len(found["sources"]) == 12
    script.write_text("#!/bin/sh\nexit 9\n")
    assert environment.environment(3)["driver"] is None
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert environment.commit() == "unknown"
    assert environment.smi("u-1") == {}


def test_the_tests_of_a_device_run_in_a_process_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    (tmp_path / "test_other.py").write_text("import what_this_machine_lacks\n", encoding="utf-8")
    with pytest.raises(NotRun, match="no tests marked gpu"):
        environment.run_tests(60, tmp_path)
    body = """
import os, time, pytest
pytestmark = pytest.mark.gpu
def test_compiled():
    assert "TRITON_INTERPRET" not in os.environ
"""
    (tmp_path / "test_one.py").write_text(body, encoding="utf-8")
    assert environment.run_tests(60, tmp_path) == {"tests": 1, "failures": 0, "errors": 0, "skipped": 0}
    (tmp_path / "test_two.py").write_text(body + "def test_wrong():\n    assert 1 == 2\n", encoding="utf-8")
    with pytest.raises(AssertionError, match=r"'tests': 3, 'failures': 1.*test_two::test_wrong: .*assert 1 == 2"):
        environment.run_tests(60, tmp_path)
    with pytest.raises(NotRun, match="not done after 0 s"):
        environment.run_tests(0.01, tmp_path)


def test_a_frame_is_timed_with_its_draw_and_without():
    """On a small model, interpreted: what is measured runs, from the same context before each sample."""
    config = device_checks.layer_chain(small=True)
    timer = FrameTimer(config, "cpu", torch.float32)
    found = timer.time(2, 5, CPU, 0.0, graph=False, least=1)
    assert (found["streams"], found["context"]) == (2, 5)
    assert found["bytes"] == sum(cost.bytes for cost in frame_cost(config, 2, 5, 4).values())
    assert {"median_us", "forward_us", "draw_us", "draw_share", "gb_per_s"} <= found.keys()
    timer.model = dataclasses.replace(timer.model, out_norm=timer.model.out_norm * float("nan"))
    running = dataclasses.replace(CPU, elapsed=lambda run: (run(), 0.4)[1])
    with pytest.raises(FloatingPointError, match="a stream ended while it was timed"):
        timer.time(1, 5, running, 0.0, graph=False, least=1)


def test_whole_frames_are_the_8b_model_s():
    shapes = reference.layout(device_checks.whole_model()).values()
    assert sum(math.prod(shape) for shape in shapes) == pytest.approx(7.668e9, rel=1e-3)


def test_frames_are_withheld_where_a_check_failed(record):
    record.keep("invariance", "router/batches", {"status": "failed"})
    item = next(item for item in gpu.plan(record, ["frames"], CPU) if item.name == "B1")
    with pytest.raises(Withheld, match="router/batches failed"):
        item.run(10.0)


def test_a_vocoder_is_timed_beside_pytorch(monkeypatch):
    """On a small codec, interpreted: clips in several steps, and a step of streams; compiled or not."""
    timer = VocoderTimer(CODEC, "cpu", torch.float32)
    monkeypatch.setattr(timer.vocoder, "_frames_together", lambda rows: 12)
    monkeypatch.setattr(timer, "_compiled", lambda mode: timer._plain)
    with checked(bounds=False, undefined=False, races=False):
        found = timer.time(Work(2, 5, True), CPU, 0.0, graph=False, least=1)
        assert (found["rows"], found["frames"], found["frames_of_a_step"]) == (2, 5, 12)
        assert found["audio_s_per_s"] == pytest.approx(2 * 5 * 5 / 44100 / 400e-6, abs=0.1)
        assert found["agreement_db"] > 90
        assert found["eager"]["speed_up"] == found["compiled"]["speed_up"] == 1
        assert found["compiled"]["mode"] == "default"
        assert timer.time(Work(1, 4, False), CPU, 0.0, None, graph=False, least=1)["compiled"] == {
            "not_timed": "no time left"}  # fmt: skip

        def broken(mode):
            raise RuntimeError("no C compiler\nand more")

        monkeypatch.setattr(timer, "_compiled", lambda mode: broken)
        found = timer.time(Work(1, 4, False), CPU, 0.0, graph=False, least=1)
        assert found["compiled"] == {"not_timed": "RuntimeError: no C compiler", "mode": "default"}
        monkeypatch.setattr(timer, "_plain", lambda ids: torch.ones(1, 59))
        with pytest.raises(
            Withheld, match=r"are .* dB from the plain decoder's, which is less than 90 in torch\.float32"
        ):
            timer.time(Work(1, 4, False), CPU, 0.0, graph=False, least=1)


def test_the_cost_of_a_step_is_that_of_its_launches():
    """At the 44.1 kHz sizes: 25 launches, 1.6 GFLOP a frame, weights read once."""
    config = VocoderConfig()
    one, two = (step_costs(config, 1, frames, 2) for frames in (16, 32))
    assert len(one) == 25
    weights = sum(math.prod(s) for name, s in layout(config).items() if name.endswith("weight") and "book" not in name)
    assert sum(cost.flops for cost in one) == pytest.approx(16 * 1.6e9, rel=0.02)
    moved = [sum(cost.bytes for cost in costs) for costs in (one, two)]
    assert 2 * moved[0] - moved[1] == pytest.approx(2 * weights, rel=1e-3)


def test_times_of_the_vocoder_are_withheld_where_a_check_of_its_own_failed(record):
    record.keep("kernels", "router/tiny/bfloat16", {"status": "failed"})
    items = gpu.plan(record, ["vocoder"], CPU)
    assert [item.name for item in items[:5]] == [*(f"{name}/bfloat16" for name in WORKS), "clips-1/float16"]
    gpu._proven(record, lambda kernel: kernel in gpu.VOCODER)
    record.keep("graph", "vocoder/step", {"status": "failed"})
    record.keep("kernels", "waveform/tiny/float16", {"status": "failed"})
    with pytest.raises(Withheld, match=r"^waveform/tiny/float16, vocoder/step failed$"):
        items[0].run(10.0)
    frames = gpu.plan(record, ["frames"], CPU)[0]
    with pytest.raises(Withheld, match=r"^router/tiny/bfloat16 failed$"):
        frames.run(10.0)
