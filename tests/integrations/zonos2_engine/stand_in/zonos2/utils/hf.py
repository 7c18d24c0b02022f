"""The checkpoint's params.json."""

from types import SimpleNamespace as Zonos2Config  # noqa: F401
