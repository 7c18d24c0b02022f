"""The environment variables ZONOS2_TRITON_*, which are read here alone: what each accepts and means.

And the home folder in paths.

LOG and NVTX take effect when the package is imported, the others when they are first needed. A value that is not
accepted is a ValueError that names the variable. At import no caller could catch it, so there it is a line in the log.
"""

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

Value = TypeVar("Value")
PREFIX = "ZONOS2_TRITON_"
BACKEND, DISABLE, LOG, NVTX, LAUNCH_CONFIG, PDL, SGLANG = VARIABLES = tuple(
    PREFIX + name for name in ("BACKEND", "DISABLE", "LOG", "NVTX", "LAUNCH_CONFIG", "PDL", "SGLANG")
)
NO_VARIABLE = f"no variable of this name; there are {', '.join(VARIABLES)}"
BACKENDS = ("reference", "triton", "auto")
LEVELS = {
    "debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR,
    "off": logging.CRITICAL + 1,
}  # fmt: skip
SGLANG_COMPONENTS = ("attention", "experts", "sampler", "vocoder")
LOGGER = logging.getLogger("zonos2_triton")


def local_path(name: str | Path) -> Path:
    """The path with ~ expanded, as a shell would; a shell itself leaves it in --out=~/x.wav and within quotes.

    ~ of an unknown user stays as it is. FileNotFoundError: the name is empty, which pathlib reads as ".".
    """
    if not str(name):
        raise FileNotFoundError("a file or a folder must be named, got ''")
    return Path(os.path.expanduser(name))


def backend() -> str:
    """The meaning of backend="auto", one of BACKENDS. "auto" is the kernels on a GPU and the reference on a CPU."""
    return _one_of(BACKEND, BACKENDS) or "auto"


def disabled() -> bool:
    """Whether every choice of a backend is the reference, and `accelerate` patches nothing."""
    return _switch(DISABLE)


def nvtx() -> bool:
    """Whether NVTX ranges are emitted."""
    return _switch(NVTX)


def launch_config() -> tuple[str, Any] | None:
    """The path and the parsed JSON of the launch configurations, not validated; None: no file is named."""
    path = os.environ.get(LAUNCH_CONFIG)
    if not path:
        return None
    try:
        with open(local_path(path), encoding="utf-8") as file:
            return path, json.load(file)
    except OSError as error:
        raise ValueError(f"{LAUNCH_CONFIG} names {path!r}, which cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # of the text, or of the JSON in it
        raise ValueError(f"{LAUNCH_CONFIG} names {path!r}, which is not JSON: {error}") from error


def dependent_launch() -> bool | None:
    """Whether launches are programmatic dependent ones; None: where the GPU has them."""
    return _switch(PDL) if os.environ.get(PDL) else None


def sglang_components() -> frozenset[str]:
    """The components of SGLang's model that run on the kernels, of SGLANG_COMPONENTS."""
    value = os.environ.get(SGLANG, "")
    if value in ("", "0"):
        return frozenset()
    if value in ("1", "all"):
        return frozenset(SGLANG_COMPONENTS)
    components = frozenset(name.strip() for name in value.split(","))
    if not components <= {*SGLANG_COMPONENTS}:
        raise _wrong(SGLANG, value, f"0, 1, all, or a list of {', '.join(SGLANG_COMPONENTS)} with commas between them")
    return components


def log_level() -> str | None:
    """The level, one of LEVELS; None: not set."""
    return _one_of(LOG, tuple(LEVELS))


def present() -> dict[str, tuple[str, str | None]]:
    """Every variable with this prefix that is set: its value, and what is wrong with it, or None."""
    functions = (backend, disabled, log_level, nvtx, launch_config, dependent_launch, sglang_components)
    readers = dict(zip(VARIABLES, functions, strict=True))
    found: dict[str, tuple[str, str | None]] = {}
    for name, value in sorted(os.environ.items()):
        if name in readers:
            found[name] = value, _fault(readers[name])
        elif name.startswith(PREFIX):
            found[name] = value, NO_VARIABLE
    return found


def _fault(reader: Callable[[], object]) -> str | None:
    try:
        reader()
    except ValueError as error:
        return str(error)
    return None


def at_import(reader: Callable[[], Value]) -> Value | None:
    """The result of one of these functions. A wrong value is a line in the log, because it must not stop an import."""
    try:
        return reader()
    except ValueError as error:
        LOGGER.warning("%s; it counts as unset", error)
        return None


def start_log() -> None:
    """Sets the level of LOG, and a handler for standard error that is silent where the application has its own.

    If LOG is not set, logging stays as it is: without a handler, Python shows warnings.
    """
    level = at_import(log_level)
    if level is None:
        return
    LOGGER.setLevel(LEVELS[level])
    if level != "off" and not any(map(_is_ours, LOGGER.handlers)):
        handler = logging.StreamHandler()
        handler.set_name(LOGGER.name)
        handler.addFilter(_nobody_else)
        handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
        LOGGER.addHandler(handler)


def _is_ours(handler: logging.Handler) -> bool:
    return handler.name == LOGGER.name


def _nobody_else(record: logging.LogRecord) -> bool:
    """Whether no other handler gets the line, which would show it twice. They may come later: it asks each time."""
    handlers = [*LOGGER.handlers, *(logging.getLogger().handlers if LOGGER.propagate else [])]
    return all(_is_ours(handler) or isinstance(handler, logging.NullHandler) for handler in handlers)


def _one_of(name: str, accepted: tuple[str, ...]) -> str | None:
    """The value; None: unset or empty."""
    value = os.environ.get(name)
    if value and value not in accepted:
        raise _wrong(name, value, ", ".join(accepted))
    return value or None


def _switch(name: str) -> bool:
    return _one_of(name, ("0", "1")) == "1"


def _wrong(name: str, value: str, accepted: str) -> ValueError:
    return ValueError(f"{name} is {value!r}; accepted: {accepted}")


def warn_unknown() -> None:
    """Warns of variables with this prefix that nothing reads: a slip, or an old name."""
    for name in sorted(name for name in os.environ if name.startswith(PREFIX) and name not in VARIABLES):
        LOGGER.warning("%s is set: %s", name, NO_VARIABLE)


start_log()
warn_unknown()
