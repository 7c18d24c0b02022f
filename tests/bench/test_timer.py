"""How calls are timed: what takes turns, what is cleared, what is counted."""

import dataclasses
import time

import pytest
import torch

from zonos2_triton.bench.catalogue import KERNELS
from zonos2_triton.bench.specs.roofline import UNKNOWN, Roofline
from zonos2_triton.bench.timing import timer
from zonos2_triton.bench.timing.timer import Device, measure, quantiles, rates, rotation, time_kernel

CPU = Device("cpu", 0, lambda: None, lambda run: 0.4, None)


def kernel_and_workload(name, workload="tiny"):
    return KERNELS[name], next(w for w in KERNELS[name].workloads if w.name == workload)


@pytest.mark.parametrize(
    ("touched", "held", "want"),
    [
        pytest.param(200 << 20, 200 << 20, (1, "rotated"), id="larger than the cache"),
        pytest.param(38 << 20, 604 << 20, (3, "rotated"), id="one expert of many"),
        pytest.param(10 << 20, 604 << 20, (1, "flushed"), id="no room for enough sets"),
        pytest.param(16 << 10, 16 << 10, (1, "warm"), id="a row"),
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
    assert found["p20_us"] < found["median_us"] < found["p80_us"]
    log.clear()
    assert measure(calls[:1], device, 0.0, "flushed", least=5)["calls_per_sample"] == 1
    assert log == [0] * 4 + ["clear", 0] * 7


def test_what_cannot_be_captured_runs_as_it_is():
    def refuse(run):
        raise RuntimeError("operation not permitted\nwhen capturing")

    device = dataclasses.replace(CPU, capture=refuse)
    found = measure([lambda: None], device, 0.0)
    assert (found["launch"], found["not_captured"]) == ("eager", "operation not permitted")
    assert measure([lambda: None], device, 0.0, graph=False)["launch"] == "eager"
    assert len(measure([lambda: None], device, 10.0)["samples_us"]) == timer.MOST_SAMPLES


def test_quantiles_and_rates():
    assert quantiles([float(n) for n in range(11)]) == (2, 5, 8)
    assert quantiles([7.0]) == (7, 7, 7)
    assert (timer.ratio(4, 3), timer.ratio(1, 3e6)) == (1.333, 3.333e-7)
    assert rates(3_000_000, 6_000_000, 2.0, Roofline(3000, 12), Roofline(6000, None)) == {
        "bytes": 3_000_000, "flops": 6_000_000, "gb_per_s": 1500, "tflop_per_s": 3, "pct_measured_bandwidth": 50,
        "pct_measured_tflops": 25, "floor_us": 1, "pct_floor": 50, "pct_datasheet": 25}  # fmt: skip
    nothing = rates(1, 1, 1.0)
    assert all(nothing[name] is None for name in nothing if name.startswith("percent") or name == "floor_us")
    # A floor is the slower of the two.
    assert Roofline(1000, 1).floor_us(2e9, 1e9) == 2000
    assert Roofline(1000, 1).floor_us(1e6, 3e6) == 3
    assert Roofline(1000, None).floor_us(1e6, 3e6) == 1
    assert UNKNOWN.floor_us(1, 1) is None


def test_a_rehearsal_takes_few_samples_by_the_host_s_clock():
    calls = []
    found = measure([lambda: calls.append(time.sleep(0.002))], timer.cpu_device(), 9.0)
    assert len(found["samples_us"]) == 1
    assert found["median_us"] >= 2000
    assert len(calls) == 1 + 1 + 1 + 1  # warm, how long it takes, one that says how many samples there is time for, one


def test_sets_of_inputs_share_no_memory():
    """And keep what is shared within a set: gate and up are views of one tensor. The last is a copy."""
    kernel, workload = kernel_and_workload("moe_experts")
    l2 = kernel.cost_of(workload, 4).bytes * timer.OWN_VALUES // 2 + 1
    sets, _ = timer.input_sets(kernel, workload, dataclasses.replace(CPU, l2=l2), torch.float32)
    made, other, *_, copy = sets
    assert len(sets) == timer.OWN_VALUES + 1
    assert not torch.equal(other["x"], made["x"])
    for name in (name for name, value in made.items() if isinstance(value, torch.Tensor)):
        assert torch.equal(copy[name], made[name])
        assert len({one[name].untyped_storage().data_ptr() for one in sets}) == len(sets)
    assert copy["up"].untyped_storage().data_ptr() == copy["gate"].untyped_storage().data_ptr()


def test_a_kernel_is_timed_on_sets_that_exceed_the_cache():
    kernel, workload = kernel_and_workload("moe_router", "one-row")
    touched = kernel.cost_of(workload, 2).bytes
    found = time_kernel(kernel, workload, dataclasses.replace(CPU, l2=touched), seconds=0)
    assert (found["copies"], found["cache"]) == (2, "rotated")


def test_calibration():
    device = dataclasses.replace(CPU, elapsed=lambda run: 0.5)
    assert timer.copy_bandwidth(device, 1 << 20, 0)["gb_per_s"] == pytest.approx(2 * (1 << 20) / 0.5e-3 / 1e9, abs=0.1)
    assert timer.matmul_rate(device, 64, 0)["tflop_per_s"] == pytest.approx(2 * 64**3 / 0.5e-3 / 1e12, abs=0.01)
