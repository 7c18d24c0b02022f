"""NumPy scalars as Python's, without importing numpy or torch."""

from numbers import Integral, Real
from typing import Any


def as_python(value: Any) -> Any:
    """Numbers and booleans as int, float or bool, also in lists and tuples; other values as they are."""
    if isinstance(value, list | tuple):
        return type(value)(map(as_python, value))
    if type(value).__module__ == "numpy" and type(value).__name__ in ("bool", "bool_"):
        return bool(value)
    if isinstance(value, int) or not isinstance(value, Real):
        return value
    return int(value) if isinstance(value, Integral) else float(value)


def as_int(value: object) -> int | None:
    """An integer as int; None for anything else, booleans and floats included."""
    number = as_python(value)
    return number if isinstance(number, int) and not isinstance(number, bool) else None
