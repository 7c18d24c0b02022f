"""Scalars of numpy, which this file needs as little as torch, as Python's own."""

from numbers import Integral, Real
from typing import Any


def as_python(value: Any) -> Any:
    """A number or truth value as int, float or bool, also within lists and tuples; anything else as it is."""
    if isinstance(value, list | tuple):
        return type(value)(map(as_python, value))
    if type(value).__module__ == "numpy" and type(value).__name__ in ("bool", "bool_"):
        return bool(value)
    if isinstance(value, int) or not isinstance(value, Real):
        return value
    return int(value) if isinstance(value, Integral) else float(value)


def as_int(value: object) -> int | None:
    """None: no integer; True and False are none, nor are floats."""
    number = as_python(value)
    return number if isinstance(number, int) and not isinstance(number, bool) else None
