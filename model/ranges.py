"""Named ranges for profilers: stages of the model, never inside an operation."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any

SWITCH = "ZONOS2_TRITON_NVTX"


@cache
def _domain() -> Any:
    """The NVTX domain, or None: switched off, or the package is not installed."""
    if os.environ.get(SWITCH) != "1":
        return None
    try:
        import nvtx
    except ImportError:
        return None
    return nvtx.get_domain("zonos2_triton")


def annotate(name: str) -> AbstractContextManager[None]:
    """A range "category/name" while the block runs, if the environment says ZONOS2_TRITON_NVTX=1; else nothing."""
    domain = _domain()
    return nullcontext() if domain is None else _range(domain, name)


@contextmanager
def _range(domain: Any, name: str) -> Iterator[None]:
    domain.push_range(domain.get_event_attributes(message=name))
    try:
        yield
    finally:
        domain.pop_range()
