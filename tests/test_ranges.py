import contextlib

import pytest

from zonos2_triton.model import ranges


@pytest.fixture(autouse=True)
def forget():
    """The switch is read once per process."""
    ranges._domain.cache_clear()
    yield
    ranges._domain.cache_clear()


def test_off_unless_asked_for(monkeypatch):
    monkeypatch.delenv(ranges.SWITCH, raising=False)
    assert isinstance(ranges.annotate("model/generate"), contextlib.nullcontext)


def test_a_range_is_closed_when_its_block_fails(monkeypatch):
    nvtx = pytest.importorskip("nvtx")
    calls = []

    class Domain:
        def get_event_attributes(self, message):
            return message

        def push_range(self, attributes):
            calls.append(attributes)

        def pop_range(self):
            calls.append("end")

    monkeypatch.setenv(ranges.SWITCH, "1")
    monkeypatch.setattr(nvtx, "get_domain", lambda name: calls.append(name) or Domain())
    with pytest.raises(KeyError), ranges.annotate("model/generate"):
        raise KeyError
    assert calls == ["zonos2_triton", "model/generate", "end"]
