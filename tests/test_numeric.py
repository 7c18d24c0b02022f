import threading

import pytest
import torch

from zonos2_triton.reference.numeric import SWITCHES, exact_numerics, wide


def state():
    return [getattr(owner, name) for owner, name, _ in SWITCHES]


@pytest.fixture
def loose():
    """A process that has allowed everything."""
    before = state()
    for owner, name, value in SWITCHES:
        setattr(owner, name, "tf32" if value == "ieee" and owner is not torch.backends.mkldnn.matmul else value)
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.deterministic = False
    yield state()
    for (owner, name, _), value in zip(SWITCHES, before, strict=True):
        setattr(owner, name, value)


def test_exact_inside_and_as_before_outside(loose):
    with exact_numerics():
        assert state() == [value for _, _, value in SWITCHES]
    assert state() == loose
    with pytest.raises(KeyError), exact_numerics():
        raise KeyError
    assert state() == loose


def test_two_threads_share_the_switches(loose):
    """The first to leave does not change them for the other."""
    entered, leave, seen = threading.Event(), threading.Event(), []

    def other():
        with exact_numerics():
            entered.set()
            leave.wait(10)
            seen.append(state())

    thread = threading.Thread(target=other)
    with exact_numerics():
        thread.start()
        assert entered.wait(10)
    leave.set()
    thread.join()
    assert seen == [[value for _, _, value in SWITCHES]]
    assert state() == loose


@pytest.mark.parametrize(
    ("dtype", "wider"),
    [(torch.float64, torch.float64), (torch.float32, torch.float32), (torch.bfloat16, torch.float32)],
    ids=str,
)
def test_wide(dtype, wider):
    assert wide(torch.zeros(1, dtype=dtype)).dtype == wider
