"""Names that a user may choose from."""

from collections.abc import Collection, Iterable
from difflib import get_close_matches


def chosen(what: str, names: Collection[str] | None, known: Iterable[str]) -> list[str]:
    """In the order of `known`; None: all. ValueError: one that is not known, with the nearest that is; or none are."""
    accepted = list(known)
    if not accepted:
        raise ValueError(f"there is no {what} to choose from")
    for name in names or ():
        if name not in accepted:
            near = " or ".join(map(repr, get_close_matches(name, accepted, 2, 0.6)))
            hint = f"; did you mean {near}?" if near else ""
            raise ValueError(f"{what} must be one of {', '.join(accepted)}, got {name!r}{hint}")
    return [name for name in accepted if names is None or name in names]
