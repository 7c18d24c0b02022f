"""Each check of zonos2_triton.bench.proof.interpreter on a seeded bug and on its correct twin."""

import ctypes

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from triton.runtime import interpreter

from zonos2_triton.bench.proof.interpreter import DataRace, OutOfBounds, checked
from zonos2_triton.bench.proof.poison import GuardBandTouched, poisoned
from zonos2_triton.kernels._interpreter import repair

pytestmark = pytest.mark.interpreter
repair()

ORDERS = [None, "reversed", 0, 1, 2, 3]


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
def _sum_kernel(x_ptr, y_ptr, n, BLOCK: tl.constexpr, OTHER: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offs, mask=offs < n, other=0) if OTHER else tl.load(x_ptr + offs, mask=offs < n)
    tl.store(y_ptr, tl.sum(x, axis=0))


@triton.jit
def _loop_kernel(x_ptr, y_ptr, n):
    """y = the sum of x over a loop whose bound is known at run time only."""
    total = 0.0
    for i in range(n):
        total += tl.load(x_ptr + i)
    tl.store(y_ptr, total)


@triton.jit
def _claim_kernel(y_ptr, STRIDE: tl.constexpr, BLOCK: tl.constexpr):
    """Each program stores its number to BLOCK elements; they overlap where STRIDE < BLOCK."""
    offs = tl.program_id(0) * STRIDE + tl.arange(0, BLOCK)
    tl.store(y_ptr + offs, tl.zeros((BLOCK,), tl.float32) + tl.program_id(0))


@triton.jit
def _neighbour_kernel(x_ptr, y_ptr, n, SHIFT: tl.constexpr):
    """y[p] = x[p]; z = y[p + SHIFT], which another program stores unless SHIFT is 0, kept in x."""
    p = tl.program_id(0)
    tl.store(y_ptr + p, tl.load(x_ptr + p))
    tl.debug_barrier()
    tl.store(x_ptr + p, tl.load(y_ptr + (p + SHIFT) % n))


@triton.jit
def _reverse_kernel(x_ptr, scratch_ptr, y_ptr, BLOCK: tl.constexpr, BARRIER: tl.constexpr):
    """y = x[::-1] by way of memory."""
    offs = tl.arange(0, BLOCK)
    tl.store(scratch_ptr + offs, tl.load(x_ptr + offs))
    if BARRIER:
        tl.debug_barrier()
    tl.store(y_ptr + offs, tl.load(scratch_ptr + BLOCK - 1 - offs))


@triton.jit
def _last_arriver_kernel(
    x_ptr,
    partial_ptr,
    counter_ptr,
    y_ptr,
    n,
    BLOCK: tl.constexpr,
    SEM: tl.constexpr,
    BARRIER: tl.constexpr,
    EARLY: tl.constexpr,
    LAST_OF_GRID: tl.constexpr,
):
    """y = sum(x): each program stores the sum of its block, the last to arrive adds them up and resets the counter."""
    p = tl.program_id(0)
    offs = tl.arange(0, BLOCK)
    tl.store(partial_ptr + p, tl.sum(tl.load(x_ptr + p * BLOCK + offs), axis=0))
    if BARRIER:
        tl.debug_barrier()
    mask = offs < n
    early = tl.load(partial_ptr + offs, mask=mask & (offs != p), other=0.0) if EARLY else tl.zeros((BLOCK,), tl.float32)
    arrived = tl.atomic_add(counter_ptr, 1, sem=SEM)
    last = (p == n - 1) if LAST_OF_GRID else (arrived == n - 1)
    if last:
        tl.debug_barrier()
        tl.store(y_ptr, tl.sum(tl.load(partial_ptr + offs, mask=mask, other=0.0) + early * 0.0, axis=0))
        tl.store(counter_ptr, 0)


@triton.jit
def _groups_kernel(x_ptr, counters_ptr, GROUP: tl.constexpr, EVERYONE: tl.constexpr):
    """Programs of a group read x[group]; its last arriver overwrites it, or where EVERYONE that of the next group."""
    group = tl.program_id(0) // GROUP
    x = tl.load(x_ptr + group)
    tl.debug_barrier()
    if tl.atomic_add(counters_ptr + group, 1, sem="acq_rel") == GROUP - 1:
        tl.store(x_ptr + (group + EVERYONE) % (tl.num_programs(0) // GROUP), x + 1)


@triton.jit
def _silent_kernel(x_ptr, counter_ptr, SILENT: tl.constexpr):
    """All load x; all but SILENT count; the last of those that count overwrites x."""
    x = tl.load(x_ptr)
    if tl.program_id(0) != SILENT:
        tl.debug_barrier()
        if tl.atomic_add(counter_ptr, 1) == tl.num_programs(0) - (2 if SILENT >= 0 else 1):
            tl.store(x_ptr, x + 1)


@triton.jit
def _collect_kernel(partial_ptr, counter_ptr, y_ptr, n, BLOCK: tl.constexpr):
    """Producers only release, and the last program of the grid only acquires; y is set if all of them were done."""
    p = tl.program_id(0)
    if p < n:
        tl.store(partial_ptr + p, 1.0)
        tl.debug_barrier()
        tl.atomic_add(counter_ptr, 1, sem="release")
    elif tl.atomic_add(counter_ptr, 0, sem="acquire") == n:
        offs = tl.arange(0, BLOCK)
        tl.store(y_ptr, tl.sum(tl.load(partial_ptr + offs, mask=offs < n, other=0.0), axis=0))


@triton.jit
def _accumulate_kernel(acc_ptr, counter_ptr, y_ptr, n, BLOCK: tl.constexpr, BARRIER: tl.constexpr):
    """acc += 1 by atomics of all threads; the last to arrive stores acc to y."""
    offs = tl.arange(0, BLOCK)
    tl.atomic_add(acc_ptr + offs, tl.full((BLOCK,), 1.0, tl.float32), sem="relaxed")
    if BARRIER:
        tl.debug_barrier()
    if tl.atomic_add(counter_ptr, 1, sem="acq_rel") == n - 1:
        tl.store(y_ptr + offs, tl.load(acc_ptr + offs))


@triton.jit
def _message_kernel(data_ptr, flag_ptr, y_ptr, HOW: tl.constexpr, SEM: tl.constexpr, SCOPE: tl.constexpr):
    """Program 0 stores data and raises a flag; the other, if it sees the flag, loads the data."""
    if tl.program_id(0) == 0:
        tl.store(data_ptr, 7.0)
        tl.debug_barrier()
        if HOW == "store":
            tl.atomic_store(flag_ptr, 1, sem="relaxed" if SEM == "relaxed" else "release", scope=SCOPE)
        else:
            tl.atomic_xchg(flag_ptr, 1, sem=SEM, scope=SCOPE)
    else:
        if HOW == "store":
            flag = tl.atomic_load(flag_ptr, sem="relaxed" if SEM == "relaxed" else "acquire", scope=SCOPE)
        else:
            flag = tl.atomic_cas(flag_ptr, 1, 1, sem=SEM, scope=SCOPE)
        if flag == 1:
            tl.store(y_ptr, tl.load(data_ptr))


@triton.jit
def _block_message_kernel(data_ptr, flags_ptr, y_ptr, BARRIER: tl.constexpr):
    """As _message_kernel, but the flags are two, and looked at by two threads."""
    if tl.program_id(0) == 0:
        tl.store(data_ptr, 7.0)
        tl.debug_barrier()
        tl.atomic_xchg(flags_ptr, 1)
    else:
        flags = tl.atomic_add(flags_ptr + tl.arange(0, 2), 0)
        if BARRIER:
            tl.debug_barrier()
        if tl.sum(flags, axis=0) == 1:
            tl.store(y_ptr, tl.load(data_ptr))


@triton.jit
def _reset_kernel(counter_ptr, LAST_ONLY: tl.constexpr, SEM: tl.constexpr):
    """Counts, then resets the counter: the last to arrive alone, or everyone."""
    arrived = tl.atomic_add(counter_ptr, 1, sem=SEM)
    if (arrived == tl.num_programs(0) - 1) | (not LAST_ONLY):
        tl.store(counter_ptr, 0)


@triton.jit
def _float_order_kernel(x_ptr, y_ptr):
    """y += x[p] atomically: which is rounded first depends on the order."""
    tl.atomic_add(y_ptr, tl.load(x_ptr + tl.program_id(0)), sem="relaxed")


@triton.jit
def _assert_kernel(x_ptr, limit):
    tl.device_assert(tl.load(x_ptr) < limit, "too large")


@triton.jit
def _head_kernel(y_ptr, n, BLOCK: tl.constexpr):
    """Stores whole blocks only: the tail of y stays as it was."""
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + offs, tl.zeros((BLOCK,), tl.float32), mask=offs - offs % BLOCK + BLOCK <= n)


def copy(x: Tensor, n: int, masked: bool = True) -> Tensor:
    y = torch.zeros(x.shape)
    with checked():
        _copy_kernel[(triton.cdiv(n, 16),)](x, y, n, BLOCK=16, MASKED=masked)
    return y


def test_bounds(seeded):
    x = seeded(40)
    assert torch.equal(copy(x, 40), x + 1)
    with pytest.raises(
        OutOfBounds, match=r"_copy_kernel: program \(2, 0, 0\) loads 8 of 16 lanes .* past the end of x_ptr"
    ):
        copy(x, 40, masked=False)
    with pytest.raises(OutOfBounds, match="loads 3 of 11 lanes"):
        copy(x, 43)


def test_bounds_of_a_view_are_not_those_of_its_storage(seeded):
    storage = seeded(64)
    assert torch.equal(copy(storage[:40], 40), storage[:40] + 1)
    with pytest.raises(OutOfBounds, match="the first 4 bytes past the end of x_ptr"):
        copy(storage[:40], 48)


@pytest.mark.parametrize(
    ("ids", "side"), [([3, 0, 2], None), ([3, 4, 0], "past the end"), ([0, -1, 0], "before the start")]
)
def test_bounds_of_a_gather(seeded, ids, side):
    table, y = seeded(1000, 16)[500:504], torch.zeros(3, 16)

    def gather():
        with checked():
            _gather_kernel[(3,)](table, torch.tensor(ids), y, D=16)

    if side:
        with pytest.raises(OutOfBounds, match=rf"program \(1, 0, 0\) loads 16 of 16 lanes .* {side} of table_ptr"):
            gather()
    else:
        gather()
        assert torch.equal(y, table[ids])


def test_bounds_of_a_store_and_of_an_atomic():
    with pytest.raises(OutOfBounds, match="stores 8 of 8 lanes"), checked():
        _claim_kernel[(3,)](torch.zeros(16), STRIDE=8, BLOCK=8)
    with pytest.raises(OutOfBounds, match="atomically updates 1 of 1 lanes"), checked():
        _groups_kernel[(4,)](torch.zeros(4), torch.zeros(1, dtype=torch.int32), GROUP=2, EVERYONE=False)


def test_bounds_where_a_launch_has_no_memory():
    with pytest.raises(OutOfBounds, match="no tensor argument"), checked():
        _assert_kernel[(1,)](torch.zeros(0), 1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int32], ids=str)
def test_undefined(dtype):
    """A sum gives away that two lanes were masked off and given no value."""
    x, y = torch.ones(64, dtype=dtype), torch.zeros(1)

    def total(other, **options):
        with checked(**options):
            _sum_kernel[(1,)](x, y, 62, BLOCK=64, OTHER=other)
        return y.item()

    assert total(other=True) == 62
    assert not abs(total(other=False)) < 1e6
    assert total(other=False, undefined=False) == 62


@triton.jit
def _undefined_kernel(x_ptr, y_ptr, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    tl.store(y_ptr + offs, tl.load(x_ptr + offs, mask=offs < BLOCK // 2))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_undefined_is_nan_in_every_float(dtype):
    x, y = torch.ones(8).to(dtype), torch.zeros(8).to(dtype)
    with checked():
        _undefined_kernel[(1,)](x, y, BLOCK=8)
    assert y.float().isnan().tolist() == [False] * 4 + [True] * 4
    assert torch.equal(y[:4].float(), torch.ones(4))


@pytest.mark.parametrize("order", ORDERS)
def test_race_of_two_stores(order):
    with checked(order=order):
        _claim_kernel[(3,)](torch.zeros(24), STRIDE=8, BLOCK=8)
    with (
        pytest.raises(DataRace, match=r"stores (4|8) elements of y_ptr .* that program \(\d, 0, 0\) stored"),
        checked(order=order),
    ):
        _claim_kernel[(3,)](torch.zeros(24), STRIDE=4, BLOCK=8)


@pytest.mark.parametrize("order", [None, "reversed"])
def test_race_of_a_store_and_a_load(order):
    """Whichever of the two runs first."""
    x, y = torch.arange(4.0), torch.zeros(4)
    with checked(order=order):
        _neighbour_kernel[(4,)](x, y, 4, SHIFT=0)
    assert torch.equal(y, x)
    stored, loaded = ("loads", "stored") if order else ("stores", "loaded")
    with pytest.raises(DataRace, match=f"{stored} 1 elements of y_ptr .*{loaded}"), checked(order=order):
        _neighbour_kernel[(4,)](x, y, 4, SHIFT=1)
    with checked(order=order, races=False):
        _neighbour_kernel[(4,)](x, y, 4, SHIFT=1)


def test_race_of_threads(seeded):
    x, y = seeded(64), torch.zeros(64)
    with checked():
        _reverse_kernel[(1,)](x, torch.zeros(64), y, BLOCK=64, BARRIER=True)
    assert torch.equal(y, x.flip(0))
    with (
        pytest.raises(DataRace, match=r"loads 64 elements of scratch_ptr .* that it stored, with no tl.debug_barrier"),
        checked(),
    ):
        _reverse_kernel[(1,)](x, torch.zeros(64), y, BLOCK=64, BARRIER=False)


def last_arriver(order, sem="acq_rel", barrier=True, early=False, last_of_grid=False):
    n = 5
    x, partial, y = torch.arange(n * 8.0), torch.full((n,), float("nan")), torch.zeros(1)
    counter = torch.zeros(1, dtype=torch.int32)
    with checked(order=order) as checks:
        for _ in range(2):  # the counter is as it was, so the kernel can be launched again
            _last_arriver_kernel[(n,)](
                x, partial, counter, y, n, BLOCK=8, SEM=sem, BARRIER=barrier, EARLY=early, LAST_OF_GRID=last_of_grid
            )
    assert checks.launches == 2
    assert counter.item() == 0
    return y.item() == x.sum().item()


@pytest.mark.parametrize("order", ORDERS)
def test_last_arriver_is_ordered(order):
    assert last_arriver(order)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    "bug",
    [{"barrier": False}, {"sem": "relaxed"}, {"sem": "release"}, {"sem": "acquire"}, {"early": True}],
    ids=str,
)
def test_last_arriver_is_not_ordered(order, bug):
    with pytest.raises(DataRace, match="_last_arriver_kernel"):
        last_arriver(order, **bug)


def test_last_of_the_grid_is_not_the_last_to_arrive():
    """A bug that the order of the grid hides."""
    assert last_arriver(None, last_of_grid=True)
    with pytest.raises(DataRace, match="_last_arriver_kernel"):
        last_arriver("reversed", last_of_grid=True)


@pytest.mark.parametrize("order", ORDERS)
def test_store_is_ordered_after_several_loads(order):
    x, counters = torch.arange(3.0), torch.zeros(3, dtype=torch.int32)
    with checked(order=order):
        _groups_kernel[(12,)](x, counters, GROUP=4, EVERYONE=False)
    assert x.tolist() == [1, 2, 3]
    with pytest.raises(DataRace), checked(order=order):
        _groups_kernel[(12,)](x, torch.zeros_like(counters), GROUP=4, EVERYONE=True)


@pytest.mark.parametrize("order", ORDERS)
def test_store_is_compared_with_each_load(order):
    """Not only with the last one."""

    def overwrite(silent):
        x = torch.zeros(1)
        with checked(order=order):
            _silent_kernel[(5,)](x, torch.zeros(1, dtype=torch.int32), SILENT=silent)
        return x.item()

    assert overwrite(silent=-1) == 1
    for silent in range(5):
        with pytest.raises(DataRace, match="x_ptr"):
            overwrite(silent)


@pytest.mark.parametrize(("order", "total"), [(None, 3), ("reversed", 0)])
def test_releases_add_up(order, total):
    y = torch.zeros(1)
    with checked(order=order):
        _collect_kernel[(4,)](torch.zeros(3), torch.zeros(1, dtype=torch.int32), y, 3, BLOCK=4)
    assert y.item() == total


@pytest.mark.parametrize("order", ORDERS)
def test_atomics_of_all_threads_need_the_barrier(order):
    def total(barrier):
        acc, y, counter = torch.zeros(8), torch.zeros(8), torch.zeros(1, dtype=torch.int32)
        with checked(order=order):
            _accumulate_kernel[(3,)](acc, counter, y, 3, BLOCK=8, BARRIER=barrier)
        return y

    assert total(barrier=True).tolist() == [3] * 8
    with pytest.raises(DataRace, match=r"loads 8 elements of acc_ptr .* atomically updated"):
        total(barrier=False)


@pytest.mark.parametrize("how", ["exchange", "store"])
@pytest.mark.parametrize(("sem", "scope"), [("acq_rel", "gpu"), ("relaxed", "gpu"), ("acq_rel", "cta")])
def test_message(how, sem, scope):
    if how == "store" and not hasattr(tl, "atomic_store"):
        pytest.skip("this Triton has no atomic_store")

    def send(order):
        y, flag = torch.zeros(1), torch.zeros(1, dtype=torch.int32)
        with checked(order=order):
            _message_kernel[(2,)](torch.zeros(1), flag, y, HOW=how, SEM=sem, SCOPE=scope)
        return y.item()

    assert send("reversed") == 0
    if (sem, scope) == ("acq_rel", "gpu"):
        assert send(None) == 7
    else:
        with pytest.raises(DataRace, match="loads 1 elements of data_ptr"):
            send(None)


def test_message_to_a_block_needs_a_barrier():
    def send(barrier):
        y = torch.zeros(1)
        with checked():
            _block_message_kernel[(2,)](torch.zeros(1), torch.zeros(2, dtype=torch.int32), y, BARRIER=barrier)
        return y.item()

    assert send(barrier=True) == 7
    with pytest.raises(DataRace, match="loads 1 elements of data_ptr"):
        send(barrier=False)


@pytest.mark.parametrize("order", ORDERS)
def test_reset_of_a_counter(order):
    def reset(**options):
        counter = torch.zeros(1, dtype=torch.int32)
        with checked(order=order):
            _reset_kernel[(4,)](counter, **options)
        return counter.item()

    assert reset(LAST_ONLY=True, SEM="acq_rel") == 0
    for options in ({"LAST_ONLY": False, "SEM": "acq_rel"}, {"LAST_ONLY": True, "SEM": "relaxed"}):
        with pytest.raises(DataRace, match="counter_ptr"):
            reset(**options)


def test_order_shows_in_bits():
    x = torch.tensor([1e8, 1.0, -1e8, 1.0])

    def bits(order):
        y = torch.zeros(1)
        with checked(order=order):
            _float_order_kernel[(4,)](x, y)
        return y.item()

    assert bits(None) == 1
    assert bits("reversed") == 0
    assert {bits(order) for order in range(8)} > {bits(0)}
    assert bits(3) == bits(3)


def test_order_runs_each_program_of_a_grid_once():
    y = torch.zeros(24)
    for order in ORDERS:
        y.fill_(-1)
        with checked(order=order):
            _grid_kernel[(2, 3, 4)](y)
        assert y.tolist() == list(range(24))


@triton.jit
def _grid_kernel(y_ptr):
    p = (tl.program_id(0) * 3 + tl.program_id(1)) * 4 + tl.program_id(2)
    tl.store(y_ptr + p, p.to(tl.float32))


def test_device_assert():
    x = torch.ones(1)
    with checked():
        _assert_kernel[(1,)](x, 2.0)
    with pytest.raises(AssertionError, match="too large"), checked():
        _assert_kernel[(1,)](x, 1.0)
    with checked(asserts=False):
        _assert_kernel[(1,)](x, 1.0)


def test_loop_with_a_bound_known_at_run_time():
    y = torch.zeros(1)
    with checked():
        _loop_kernel[(1,)](torch.arange(5.0), y, 5)
    assert y.item() == 10


def state():
    owners = (interpreter, interpreter.GridExecutor, interpreter.InterpretedFunction, interpreter.interpreter_builder)
    members = [dict(vars(owner)) for owner in (*owners, torch, Tensor, tl, tl.tensor)]
    for name in ("grid_dim", "grid_idx"):  # each launch leaves its own there
        members[3].pop(name, None)
    return members


@pytest.mark.parametrize("fast", [True, False])
def test_everything_is_restored(seeded, fast):
    def fail():
        with checked(fast=fast), poisoned():
            assert torch.empty(1).isnan()
            copy_kernel(seeded(40), torch.zeros(40), 40, BLOCK=16, MASKED=False)

    copy_kernel = _copy_kernel[(3,)]
    before = state()
    with pytest.raises(OutOfBounds):
        fail()
    for then, now in zip(before, state(), strict=True):
        assert then.keys() == now.keys()
        assert all(now[name] is value for name, value in then.items())
    with checked(fast=fast):
        pass


def test_repair_is_done_once():
    before = interpreter._patch_lang_tensor
    repair()
    assert interpreter._patch_lang_tensor is before


def test_blocks_do_not_nest():
    with checked(), pytest.raises(RuntimeError, match="already inside"), checked():
        pass


def test_compiled_kernels_are_refused(monkeypatch):
    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET=1"), checked():
        pass


@pytest.mark.parametrize(
    ("allocate", "dtype"),
    [
        (lambda: torch.empty(3, 5), torch.float32),
        (lambda: torch.empty((7,), dtype=torch.bfloat16), torch.bfloat16),
        (lambda: torch.empty_like(torch.zeros(4, 6).t(), dtype=torch.float8_e4m3fn), torch.float8_e4m3fn),
        (lambda: torch.zeros(2).new_empty(3, dtype=torch.complex64), torch.complex64),
        (lambda: torch.empty_strided((2, 3), (8, 2)), torch.float32),
        (lambda: torch.empty(5, dtype=torch.int32), torch.int32),
        (lambda: torch.empty(5, dtype=torch.bool), torch.bool),
    ],
    ids=["empty", "bfloat16", "empty_like", "new_empty", "empty_strided", "int32", "bool"],
)
def test_poison(allocate, dtype):
    plain = allocate()
    with poisoned(guard=40) as poison:
        x = allocate()
        assert (x.shape, x.stride(), x.dtype) == (plain.shape, plain.stride(), dtype)
        assert x.data_ptr() % 16 == 0
        assert x._base is None
        if dtype == torch.int32:
            assert (x == torch.iinfo(dtype).min).all()
        else:
            assert x.all() if dtype == torch.bool else x.to(torch.complex64).isnan().all()
        x.zero_()
        poison.verify()


def test_poison_leaves_alone_what_has_no_memory():
    out = torch.zeros(2)
    with poisoned() as poison:
        assert torch.empty(3, device="meta").is_meta
        with FakeTensorMode():
            assert type(torch.empty(3)) is FakeTensor
        assert torch.empty(0).numel() == 0
        assert torch.empty(2, out=out) is out
        assert torch.empty(2, requires_grad=True).requires_grad
        assert len(poison.allocations) == 1


def test_poison_without_guard_bands():
    with poisoned(guard=0):
        assert torch.empty(3).isnan().all()


def test_poison_keeps_a_forgotten_tail():
    with poisoned(), checked():
        y = torch.empty(40)
        _head_kernel[(3,)](y, 40, BLOCK=16)
    assert y.isnan().tolist() == [False] * 32 + [True] * 8


@pytest.mark.parametrize(("offset", "side"), [(-1, "before"), (24, "after")])
def test_guard_bands(offset, side):
    def touch():
        with poisoned() as poison:
            torch.empty(8)
            x = torch.empty(2, 3)
            ctypes.memset(x.data_ptr(), 0, 24)
            poison.verify()
            ctypes.memset(x.data_ptr() + offset, 0, 1)

    with pytest.raises(GuardBandTouched, match=rf"1 bytes {side} the extent of empty\(\[2, 3\], torch.float32\)"):
        touch()
