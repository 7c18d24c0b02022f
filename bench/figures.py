"""How numbers look."""

NONE = "–"


def number(value: float | None) -> str:
    """Three digits or more."""
    if value is None:
        return NONE
    size = abs(value)
    return f"{value:,.{0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3}f}"


def engineering(value: float, unit: str) -> str:
    for factor, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"


def percent(ratio: float) -> str:
    """How far a ratio is from 1."""
    return f"{100 * (ratio - 1):+.1f} %"
