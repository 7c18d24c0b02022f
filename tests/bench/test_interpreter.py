"""Bounds, undefined lanes and order: each check of bench.proof.interpreter on a seeded bug and on its correct twin."""

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime import interpreter

from zonos2_triton.bench.proof.interpreter import NoWait, OutOfBounds, checked
from zonos2_triton.bench.proof.poison import poisoned
from zonos2_triton.kernels._dependent_launch import (
    begin_early_loads,
    end_early_loads,
    prefetch_l2,
    wait_for_previous_launch,
)
from zonos2_triton.kernels._interpreter import repair
from zonos2_triton.kernels._launch_config import early_loads

pytestmark = pytest.mark.interpreter
repair()

in_every_order = pytest.mark.parametrize("order", [None, "reversed", 0, 1, 2, 3])


@triton.jit
def _add_one(x):
    return x + 1


@triton.jit
def _copy_kernel(x_ptr, y_ptr, n, BLOCK: tl.constexpr, MASKED: tl.constexpr):
    """y = x + 1, a block a program."""
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = (offs < n) if MASKED else (offs >= 0)
    tl.store(y_ptr + offs, _add_one(tl.load(x_ptr + offs, mask=mask, other=0.0)), mask=mask)


@triton.jit
def _gather_kernel(table_ptr, ids_ptr, y_ptr, D: tl.constexpr):
    """y[p] = table[ids[p]]."""
    row = tl.load(ids_ptr + tl.program_id(0)).to(tl.int64)
    offs = tl.arange(0, D)
    tl.store(y_ptr + tl.program_id(0) * D + offs, tl.load(table_ptr + row * D + offs))


@triton.jit
def _float_order_kernel(x_ptr, y_ptr):
    """y += x[p] atomically: which is rounded first depends on the order."""
    tl.atomic_add(y_ptr, tl.load(x_ptr + tl.program_id(0)), sem="relaxed")


@triton.jit
def _assert_kernel(x_ptr, limit):
    tl.device_assert(tl.load(x_ptr) < limit, "too large")


@triton.jit
def _undefined_kernel(x_ptr, y_ptr, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    tl.store(y_ptr + offs, tl.load(x_ptr + offs, mask=offs < BLOCK // 2))


@triton.jit
def _grid_kernel(y_ptr):
    p = (tl.program_id(0) * 3 + tl.program_id(1)) * 4 + tl.program_id(2)
    tl.store(y_ptr + p, p.to(tl.float32))


@triton.jit
def _wait_inside(PDL: tl.constexpr):
    wait_for_previous_launch(PDL)


@triton.jit
def _dependent_kernel(x_ptr, n, WHERE: tl.constexpr, PDL: tl.constexpr):
    """x += 1 in the first n programs, with the wait where it should not be, or where it should."""
    p = tl.program_id(0)
    prefetch_l2(x_ptr + p, 4, PDL)
    if WHERE == "before":
        _wait_inside(PDL)
    if WHERE == "before load" or WHERE == "after load":
        if WHERE == "after load":
            tl.load(x_ptr + p)
        wait_for_previous_launch(PDL)
    if p < n:
        if WHERE == "branch":
            wait_for_previous_launch(PDL)
        if WHERE == "after store":
            tl.store(x_ptr + p, 1.0)
            wait_for_previous_launch(PDL)
        elif WHERE == "after atomic":
            tl.atomic_add(x_ptr + p, 1.0)
            wait_for_previous_launch(PDL)
        else:
            tl.store(x_ptr + p, tl.load(x_ptr + p) + 1)


@triton.jit
def _early_kernel(x_ptr, w_ptr, WHERE: tl.constexpr, PDL: tl.constexpr):
    """x += w, where w is loaded before the wait, and what should not happen there."""
    p = tl.program_id(0)
    if WHERE == "unknown":
        begin_early_loads(PDL, "w_ptr y_ptr")
    if WHERE == "load first":
        tl.load(w_ptr + p)
    begin_early_loads(PDL, "w_ptr")
    w = tl.load(w_ptr + p)
    if WHERE == "load":
        w += tl.load(x_ptr + p)
    if WHERE == "store":
        tl.store(w_ptr + p, w)
    if WHERE == "atomic":
        tl.atomic_add(w_ptr + p, w)
    if WHERE != "no end":
        end_early_loads(PDL)
    tl.store(x_ptr + p, tl.load(x_ptr + p) + w)


def launch(kernel, programs, *arguments, order=None, **constants):
    grid = programs if isinstance(programs, tuple) else (programs,)
    with checked(order=order):
        kernel[grid](*arguments, **constants)


def copy(x: Tensor, n: int, masked: bool = True) -> Tensor:
    y = torch.zeros(x.shape)
    launch(_copy_kernel, triton.cdiv(n, 16), x, y, n, BLOCK=16, MASKED=masked)
    return y


def test_bounds(seeded):
    x = seeded(40)
    assert torch.equal(copy(x, 40), x + 1)
    with pytest.raises(OutOfBounds, match=r"_copy_kernel: program \(2, 0, 0\) loads 8 of 16 lanes.* past the end of x"):
        copy(x, 40, masked=False)
    with pytest.raises(OutOfBounds, match="loads 3 of 11 lanes"):
        copy(x, 43)


def test_bounds_of_a_view_are_not_those_of_its_storage(seeded):
    storage = seeded(64)
    assert torch.equal(copy(storage[:40], 40), storage[:40] + 1)
    with pytest.raises(OutOfBounds, match="the first 4 bytes past the end of x_ptr"):
        copy(storage[:40], 48)


def test_bounds_of_a_gather(seeded):
    table, y = seeded(1000, 16)[500:504], torch.zeros(3, 16)
    launch(_gather_kernel, 3, table, torch.tensor([3, 0, 2]), y, D=16)
    assert torch.equal(y, table[[3, 0, 2]])
    for wrong, side in ((4, "past the end"), (-1, "before the start")):
        with pytest.raises(OutOfBounds, match=rf"program \(1, 0, 0\) loads 16 of 16 lanes .* {side} of table_ptr"):
            launch(_gather_kernel, 3, table, torch.tensor([0, wrong, 0]), y, D=16)


def test_bounds_without_memory():
    with pytest.raises(OutOfBounds, match="no tensor argument"):
        launch(_assert_kernel, 1, torch.zeros(0), 1.0)


FLOATS = torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2


@pytest.mark.parametrize("dtype", [*FLOATS, torch.int32], ids=str)
def test_undefined_lanes(dtype):
    """They are NaN or a large integer, and 0 where that is not checked."""
    x, y = torch.ones(8).to(dtype), torch.zeros(8).to(dtype)
    for undefined in (True, False):
        with checked(undefined=undefined):
            _undefined_kernel[(1,)](x, y, BLOCK=8)
        assert torch.equal(y[:4].float(), torch.ones(4))
        assert all(abs(value) < 1e6 for value in y[4:].tolist()) == (not undefined)
    assert torch.equal(y[4:].float(), torch.zeros(4))


def test_order_shows_in_bits():
    x = torch.tensor([1e8, 1.0, -1e8, 1.0])

    def bits(order):
        y = torch.zeros(1)
        launch(_float_order_kernel, 4, x, y, order=order)
        return y.item()

    assert (bits(None), bits("reversed")) == (1, 0)
    assert {bits(order) for order in range(8)} > {bits(0)}
    assert bits(3) == bits(3)


@in_every_order
def test_order_runs_each_program_of_a_grid_once(order):
    y = torch.full((24,), -1.0)
    launch(_grid_kernel, (2, 3, 4), y, order=order)
    assert y.tolist() == list(range(24))


def test_device_assert():
    launch(_assert_kernel, 1, torch.ones(1), 2.0)
    with pytest.raises(AssertionError, match="too large"):
        launch(_assert_kernel, 1, torch.ones(1), 1.0)


@pytest.mark.parametrize(
    ("where", "programs", "words"),
    [
        ("after load", 2, r"_dependent_kernel: program \(0, 0, 0\) loads 1 elements? .*x_ptr before its wait"),
        ("after store", 2, r"program \(0, 0, 0\) stores 1 elements? .*x_ptr before its wait"),
        ("after atomic", 2, r"program \(0, 0, 0\) atomically updates 1 elements? .*x_ptr before its wait"),
        ("nowhere", 2, r"program \(0, 0, 0\) loads"),
        ("branch", 3, r"_dependent_kernel: program \(2, 0, 0\) ended without a wait"),
        ("branch", 4, r"_dependent_kernel: program \(2, 0, 0\) ended without a wait"),
    ],
)
def test_wait_for_the_previous_launch(where, programs, words):
    with pytest.raises(NoWait, match=words):
        launch(_dependent_kernel, programs, torch.zeros(4), 2, WHERE=where, PDL=False)


@pytest.mark.parametrize("where", ["before", "before load"])
def test_a_wait_before_everything_passes(where):
    x = torch.zeros(4)
    launch(_dependent_kernel, 4, x, 2, WHERE=where, PDL=False)
    assert x.tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("load first", r"_early_kernel: program \(0, 0, 0\) loads 1 elements? .*w_ptr before its wait"),
        ("load", "loads 1 elements? .*x_ptr before its wait"),
        ("store", "stores 1 elements? .*w_ptr before its wait"),
        ("atomic", "atomically updates 1 elements? .*w_ptr before its wait"),
        ("no end", "loads 1 elements? .*x_ptr before its wait"),
        ("unknown", "_early_kernel: early loads of y_ptr, which it has no argument of"),
    ],
)
def test_early_loads(where, words):
    x, w = torch.ones(4), torch.ones(4)
    launch(_early_kernel, 4, x, w, WHERE="", PDL=False)
    assert x.tolist() == [2, 2, 2, 2]
    with pytest.raises(NoWait, match=words):
        launch(_early_kernel, 4, x, w, WHERE=where, PDL=False)
    with pytest.raises(NoWait, match=r"loads 1 elements? of .*x_ptr.* before its wait"):  # one tensor as two arguments
        launch(_early_kernel, 4, x, x, WHERE="", PDL=False)


def test_early_loads_of_what_the_launch_before_has_written():
    x, w = torch.ones(4), torch.ones(4)
    with checked():
        _early_kernel[(4,)](x, w, WHERE="", PDL=False)
        _early_kernel[(4,)](w, x, WHERE="", PDL=False)  # no caller has promised anything
        with early_loads():
            _early_kernel[(4,)](w, w.clone(), WHERE="", PDL=False)
            _early_kernel[(4,)](x, x.clone(), WHERE="", PDL=False)
            _early_kernel[(4,)](x, w, WHERE="", PDL=False)  # w is of the launch before the one before
            with pytest.raises(NoWait, match="early loads of w_ptr, which _early_kernel has just written"):
                _early_kernel[(4,)](w, x, WHERE="", PDL=False)
    assert x.tolist() == [10, 10, 10, 10]


def state():
    owners = (interpreter, interpreter.GridExecutor, interpreter.InterpretedFunction, interpreter.interpreter_builder)
    members = [dict(vars(owner)) for owner in (*owners, torch, Tensor, tl, tl.tensor)]
    for name in ("grid_dim", "grid_idx"):  # each launch leaves its own there
        members[3].pop(name, None)
    return members


def test_everything_is_restored():
    before = state()
    with pytest.raises(OutOfBounds), poisoned():
        copy(torch.empty(40), 40, masked=False)
    for then, now in zip(before, state(), strict=True):
        assert then.keys() == now.keys()
        assert all(now[name] is value for name, value in then.items())
    with checked():
        pass


def test_repair_is_done_once():
    before = interpreter._patch_lang_tensor
    repair()
    assert interpreter._patch_lang_tensor is before


def test_blocks_nest(seeded):
    x, y = seeded(40), torch.zeros(40)
    with checked(order="reversed") as outer, checked(order=0, bounds=False) as inner:
        _copy_kernel[(3,)](x, y, 40, BLOCK=16, MASKED=True)
        with pytest.raises(OutOfBounds):
            _copy_kernel[(3,)](x, y, 41, BLOCK=16, MASKED=True)
    assert torch.equal(y, x + 1)
    assert (outer.launches, inner.launches) == (2, 2)


def test_compiled_kernels_are_refused(monkeypatch):
    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET=1"), checked():
        pass
