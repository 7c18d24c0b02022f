"""The race check of zonos2_triton.bench.proof.interpreter on seeded bugs and on their correct twins."""

import pytest
import torch
import triton
import triton.language as tl

from zonos2_triton.bench.proof.interpreter import DataRace, OutOfBounds, checked

pytestmark = pytest.mark.interpreter
in_every_order = pytest.mark.parametrize("order", [None, "reversed", 0, 1, 2, 3])


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
def _last_arriver_kernel(x_ptr, part_ptr, seen_ptr, y_ptr, n, SEM: tl.constexpr, BUG: tl.constexpr):
    """y = sum(x): each program stores the sum of its block, the last to arrive adds them up and resets the counter."""
    p = tl.program_id(0)
    offs = tl.arange(0, 8)
    tl.store(part_ptr + p, tl.sum(tl.load(x_ptr + p * 8 + offs), axis=0))
    if BUG != "no barrier":
        tl.debug_barrier()
    mask = offs < n
    early = tl.load(part_ptr + offs, mask=mask & (offs != p) & (BUG == "early"), other=0.0)
    arrived = tl.atomic_add(seen_ptr, 1, sem=SEM)
    last = (p == n - 1) if BUG == "last of the grid" else (arrived == n - 1)
    if last:
        tl.debug_barrier()
        tl.store(y_ptr, tl.sum(tl.load(part_ptr + offs, mask=mask, other=0.0) + early * 0.0, axis=0))
        tl.store(seen_ptr, 0)


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


def launch(kernel, programs, *arguments, order=None, **constants):
    with checked(order=order):
        kernel[(programs,)](*arguments, **constants)


def counters(n=1):
    return torch.zeros(n, dtype=torch.int32)


def test_bounds_of_a_store_and_of_an_atomic():
    with pytest.raises(OutOfBounds, match="stores 8 of 8 lanes"):
        launch(_claim_kernel, 3, torch.zeros(16), STRIDE=8, BLOCK=8)
    with pytest.raises(OutOfBounds, match="atomically updates 1 of 1 lanes"):
        launch(_silent_kernel, 4, torch.zeros(1), counters(0), SILENT=-1)


@in_every_order
def test_race_of_two_stores(order):
    launch(_claim_kernel, 3, torch.zeros(24), order=order, STRIDE=8, BLOCK=8)
    with pytest.raises(DataRace, match=r"stores (4|8) elements of y_ptr .* that program \(\d, 0, 0\) stored"):
        launch(_claim_kernel, 3, torch.zeros(24), order=order, STRIDE=4, BLOCK=8)


@pytest.mark.parametrize("order", [None, "reversed"])
def test_race_of_a_store_and_a_load(order):
    x, y = torch.arange(4.0), torch.zeros(4)
    launch(_neighbour_kernel, 4, x, y, 4, order=order, SHIFT=0)
    assert torch.equal(y, x)
    stored, loaded = ("loads", "stored") if order else ("stores", "loaded")
    with pytest.raises(DataRace, match=f"{stored} 1 elements of y_ptr .*{loaded}"):
        launch(_neighbour_kernel, 4, x, y, 4, order=order, SHIFT=1)
    with checked(order=order, races=False):
        _neighbour_kernel[(4,)](x, y, 4, SHIFT=1)


def test_race_of_threads(seeded):
    x, y = seeded(64), torch.zeros(64)
    launch(_reverse_kernel, 1, x, torch.zeros(64), y, BLOCK=64, BARRIER=True)
    assert torch.equal(y, x.flip(0))
    with pytest.raises(DataRace, match=r"loads 64 elements of scratch_ptr .* that it stored, with no tl.debug_barrier"):
        launch(_reverse_kernel, 1, x, torch.zeros(64), y, BLOCK=64, BARRIER=False)


def last_arriver(order, sem="acq_rel", bug=""):
    n, y, counter = 5, torch.zeros(1), counters()
    x, partial = torch.arange(n * 8.0), torch.full((n,), float("nan"))
    with checked(order=order) as checks:
        for _ in range(2):  # the counter is as it was, so the kernel can be launched again
            _last_arriver_kernel[(n,)](x, partial, counter, y, n, SEM=sem, BUG=bug)
    assert checks.launches == 2
    assert counter.item() == 0
    return y.item() == x.sum().item()


@in_every_order
def test_last_arriver(order):
    assert last_arriver(order)
    for bug in [("acq_rel", "no barrier"), ("relaxed",), ("release",), ("acquire",), ("acq_rel", "early")]:
        with pytest.raises(DataRace, match="_last_arriver_kernel"):
            last_arriver(order, *bug)


def test_last_of_the_grid_is_not_the_last_to_arrive():
    assert last_arriver(None, bug="last of the grid")
    with pytest.raises(DataRace, match="_last_arriver_kernel"):
        last_arriver("reversed", bug="last of the grid")


@in_every_order
def test_store_is_compared_with_each_load(order):
    """It is ordered after all, and not only compared with the last one."""
    x = torch.zeros(1)
    launch(_silent_kernel, 5, x, counters(), order=order, SILENT=-1)
    assert x.item() == 1
    for silent in range(5):
        with pytest.raises(DataRace, match="x_ptr"):
            launch(_silent_kernel, 5, x, counters(), order=order, SILENT=silent)


@pytest.mark.parametrize(("order", "total"), [(None, 3), ("reversed", 0)])
def test_releases_add_up(order, total):
    y = torch.zeros(1)
    launch(_collect_kernel, 4, torch.zeros(3), counters(), y, 3, order=order, BLOCK=4)
    assert y.item() == total


@in_every_order
def test_atomics_of_all_threads_need_the_barrier(order):
    y = torch.zeros(8)
    launch(_accumulate_kernel, 3, torch.zeros(8), counters(), y, 3, order=order, BLOCK=8, BARRIER=True)
    assert y.tolist() == [3] * 8
    with pytest.raises(DataRace, match=r"loads 8 elements of acc_ptr .* atomically updated"):
        launch(_accumulate_kernel, 3, torch.zeros(8), counters(), y, 3, order=order, BLOCK=8, BARRIER=False)


# Only newer Tritons have atomic_store.
@pytest.mark.parametrize("how", ["exchange", *["store"] * hasattr(tl, "atomic_store")])
@pytest.mark.parametrize(("sem", "scope"), [("acq_rel", "gpu"), ("relaxed", "gpu"), ("acq_rel", "cta")])
def test_message(how, sem, scope):
    def send(order):
        y = torch.zeros(1)
        launch(_message_kernel, 2, torch.zeros(1), counters(), y, order=order, HOW=how, SEM=sem, SCOPE=scope)
        return y.item()

    assert send("reversed") == 0
    if (sem, scope) == ("acq_rel", "gpu"):
        assert send(None) == 7
    else:
        with pytest.raises(DataRace, match="loads 1 elements of data_ptr"):
            send(None)


def test_message_to_a_block_needs_a_barrier():
    y = torch.zeros(1)
    launch(_block_message_kernel, 2, torch.zeros(1), counters(2), y, BARRIER=True)
    assert y.item() == 7
    with pytest.raises(DataRace, match="loads 1 elements of data_ptr"):
        launch(_block_message_kernel, 2, torch.zeros(1), counters(2), y, BARRIER=False)


@in_every_order
def test_reset_of_a_counter(order):
    counter = counters()
    launch(_reset_kernel, 4, counter, order=order, LAST_ONLY=True, SEM="acq_rel")
    assert counter.item() == 0
    for options in ({"LAST_ONLY": False, "SEM": "acq_rel"}, {"LAST_ONLY": True, "SEM": "relaxed"}):
        with pytest.raises(DataRace, match="counter_ptr"):
            launch(_reset_kernel, 4, counters(), order=order, **options)
