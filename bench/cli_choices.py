"""Names that a user may choose from."""

from collections.abc import Collection, Iterable

from zonos2_triton.model.hints import did_you_mean


def chosen(what: str, names: Collection[str] | None, known: Iterable[str]) -> list[str]:
    """In the order of `known`; None: all. ValueError: one that is not known, with the nearest that is; or none are."""
    accepted = list(known)
    if not accepted:
        raise ValueError(f"there is no {what} to choose from")
    for name in names or ():
        if name not in accepted:
            hint = did_you_mean(name, accepted)
            raise ValueError(f"{what} must be one of {', '.join(accepted)}, got {name!r}{hint}")
    return [name for name in accepted if names is None or name in names]
