"""Named ranges "category/name" for profilers: stages, layers and operations of the model.

Categories: model (prompts, frames, layers), kernel (one operation of a layer), codec (frames to samples). A range costs
about 0.1 us without a listener. Ranges inside a CUDA graph exist only while it is captured. A replay is one range;
layers show with BatchingOptions(cuda_graphs="off").
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache, partial
from typing import Any, TypeVar, cast

from zonos2_triton import _settings

LOG = logging.getLogger("zonos2_triton")
SWITCH = _settings.NVTX
DOMAIN = "zonos2_triton"

Range = AbstractContextManager[object]
Sink = Callable[[str, int | None], Range]  # name, payload
Table = TypeVar("Table")  # of operations: a dataclass or a named tuple


class _Off:
    """A context of built-in functions that ignore their arguments, at half the time of Python methods."""

    __slots__ = ()
    __enter__ = __exit__ = "".format


OFF = cast(Range, _Off())


class _NvtxRange(AbstractContextManager[None]):
    def __init__(self, domain: Any, attributes: object) -> None:
        self._domain, self._attributes = domain, attributes

    def __enter__(self) -> None:
        self._domain.push_range(self._attributes)

    def __exit__(self, *_: object) -> None:
        self._domain.pop_range()


def nvtx_ranges(domain: Any) -> Sink:
    """Ranges of a domain of the nvtx package, made once for each name and payload."""

    def made(name: str, payload: int | None) -> Range:
        return _NvtxRange(domain, domain.get_event_attributes(name, None, name.partition("/")[0], payload))

    return cache(made)


def sink_of(on: bool | None) -> Sink | None:
    """The NVTX sink if it is on and the package is installed; else None."""
    if not on:
        return None
    try:
        import nvtx
    except ImportError:
        LOG.warning("%s=1 has no effect: the package nvtx is not installed", SWITCH)
        return None
    return nvtx_ranges(nvtx.get_domain(DOMAIN))


_sink = sink_of(_settings.at_import(_settings.nvtx))  # read once, at import


def annotate(name: str, payload: int | None = None) -> Range:
    """A range "category/name" around a block. payload: a layer's number, tokens or frames."""
    return OFF if _sink is None else _sink(name, payload)


@contextmanager
def recorded(sink: Sink | None) -> Iterator[None]:
    """Inside, every range of the process goes to `sink` instead of NVTX; None: nowhere."""
    global _sink
    before, _sink = _sink, sink
    try:
        yield
    finally:
        _sink = before


def ranged(ops: Table) -> Table:
    """The table with a range "kernel/name" around each operation; the table itself without a listener."""
    if _sink is None:
        return ops
    fields: dict[str, Any] = ops._asdict() if isinstance(ops, tuple) else vars(ops)  # type: ignore[attr-defined]
    within = {name: partial(_within, f"kernel/{name}", op) for name, op in fields.items() if callable(op)}
    return type(ops)(**(fields | within))


def _within(name: str, op: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    with annotate(name, len(args[0])):
        return op(*args, **kwargs)
