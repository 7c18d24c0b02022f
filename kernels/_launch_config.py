"""Chooses the launch configuration of a kernel by operator, variant, dtype, architecture and number of rows.

ZONOS2_TRITON_LAUNCH_CONFIG names a JSON file that replaces numbers of `_launch_table`, on any architecture. It is a
list of objects: "op" and "variant" as in LAUNCH_CONFIGS; optionally "dtype", of DTYPES, and "rows", [least, most]; and
the numbers. Of several that fit, the later ones win. BLOCK_K, a step of a sum, cannot change with the number of rows.
"""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import torch
import triton

from zonos2_triton import _settings
from zonos2_triton.kernels._launch_table import ARCHITECTURES, LAUNCH_CONFIGS
from zonos2_triton.kernels._operator import Launch, interpreted

LOG = logging.getLogger("zonos2_triton")


_kept: dict[tuple[Any, ...], tuple[object, Launch]] = {}  # by what a choice follows from: the overrides, and the choice


def launch_config(op: str, variant: str, dtype: torch.dtype, rows: int = 1, tf32: bool = False) -> Launch:
    """Keyword arguments of a launch for so many rows: blocks, num_warps, num_stages, and those of dependent launch.

    A choice is made once and kept: callers must not change it.
    """
    key, found = (op, variant, dtype, rows, tf32, _target(), wanted_pdl(), early_loads_are_on()), overrides()
    kept = _kept.get(key)
    if kept is None or kept[0] is not found:
        kept = _kept[key] = found, _chosen(op, variant, dtype, rows, tf32)
    return kept[1]


def _chosen(op: str, variant: str, dtype: torch.dtype, rows: int, tf32: bool) -> Launch:
    configs, arch = LAUNCH_CONFIGS[op, variant], architecture()
    if arch != "interpreter" and dtype == torch.float32:
        arch = "tf32" if tf32 else "fp32"
    choice = configs.get(arch, configs["*"])
    launch = next((launch for launch in choice if launch.get("BLOCK_M", rows) >= rows), choice[-1])
    kind = "tf32" if tf32 else str(dtype).removeprefix("torch.")
    for override in overrides().get((op, variant), ()):
        if override.dtype in (None, kind) and override.least <= rows <= override.most:
            launch = {**launch, **override.numbers}
    if launch.get("BLOCK_M", 16) < 16 and architecture() == "gfx942":
        raise ValueError(f"{_settings.LAUNCH_CONFIG}: BLOCK_M of {op} {variant} must be at least 16 on gfx942, got 8")
    return {**launch, **dependent_launch()}


DTYPES = ("float32", "tf32", "float16", "bfloat16")
MAX_ROWS = 2**31 - 1
# The least and the most of each number; all but num_stages are powers of two. Matrix units take no fewer than 16, but
# NVIDIA's take 8 tokens, where the table has such a BLOCK_M; a slice of K is no shorter either.
LIMITS = {"num_warps": (1, 32), "num_stages": (1, 16), "BLOCK_H": (1, 64)}
BLOCKS = (16, 1024)
FIXED = {
    "enable_fp_fusion",
    "matrix_instr_nonkdim",
    "K_SLICES",
    "EARLY_PARTS",
    "maxnreg",
}  # no file replaces them: bits rest on most


class Override(NamedTuple):
    """Numbers that replace those of the table, for a dtype (None: all) and so many rows."""

    dtype: str | None
    least: int
    most: int
    numbers: Launch


@cache  # so that the file is read once
def overrides() -> dict[tuple[str, str], list[Override]]:
    """Entries of the file that ZONOS2_TRITON_LAUNCH_CONFIG names, by (op, variant). ValueError: one is wrong."""
    found = _settings.launch_config()
    if found is None:
        return {}
    path, entries = found
    made: dict[tuple[str, str], list[Override]] = {}
    where = f"{_settings.LAUNCH_CONFIG}: {path}"
    if not isinstance(entries, list):
        raise ValueError(f"{where}: must be a list of objects, got {type(entries).__name__}")
    for i, entry in enumerate(entries):
        key, override = _override(f"{where}: [{i}]", entry)
        made.setdefault(key, []).append(override)
    LOG.info("launch parameters of %s: %s", path, entries)
    return made


def _override(where: str, entry: Any) -> tuple[tuple[str, str], Override]:
    if not isinstance(entry, dict):
        raise ValueError(f"{where}: must be an object, got {entry!r}")
    op, variant = (entry.get(key) for key in ("op", "variant"))
    if op not in (ops := sorted({op for op, _ in LAUNCH_CONFIGS})):
        raise ValueError(f"{where}.op: must be one of {', '.join(ops)}, got {op!r}")
    if variant not in (variants := [variant for name, variant in LAUNCH_CONFIGS if name == op]):
        raise ValueError(f"{where}.variant: must be one of {', '.join(variants)} of {op}, got {variant!r}")
    dtype = entry.get("dtype")
    if "dtype" in entry and dtype not in DTYPES:
        raise ValueError(f"{where}.dtype: must be one of {', '.join(DTYPES)}, got {dtype!r}")
    table = [launch for launches in LAUNCH_CONFIGS[op, variant].values() for launch in launches]
    known = {key for launch in table for key in launch}
    known -= FIXED
    numbers = {key: entry[key] for key in entry if key not in ("op", "variant", "dtype", "rows")}
    for key, number in numbers.items():
        if key not in known:
            raise ValueError(f"{where}.{key}: {op} {variant} has no such number; it has {', '.join(sorted(known))}")
        _check_number(f"{where}.{key}", key, number, table)
    if not numbers:
        raise ValueError(f"{where}: must have at least one of {', '.join(sorted(known))}")
    least, most = 1, MAX_ROWS
    if "rows" in entry:
        least, most = _rows(f"{where}.rows", entry["rows"], variant)
        if "BLOCK_K" in numbers:
            raise ValueError(f"{where}.BLOCK_K: cannot be had for some rows alone: bits would depend on the batch")
    return (op, variant), Override(dtype, least, most, numbers)


def _check_number(where: str, key: str, number: Any, table: list[Launch]) -> None:
    low, high = LIMITS.get(key, BLOCKS)
    if key == "BLOCK_M":
        low = min(low, *(launch["BLOCK_M"] for launch in table))
    if key == "BLOCK_K":
        low *= max(launch.get("K_SLICES", 1) for launch in table)
    whole = isinstance(number, int) and not isinstance(number, bool) and low <= number <= high
    if not whole or (key != "num_stages" and number & (number - 1)):
        kind = "an integer" if key == "num_stages" else "a power of two"
        raise ValueError(f"{where}: must be {kind} in {low}..{high}, got {number!r}")


def _rows(where: str, rows: Any, variant: str) -> tuple[int, int]:
    if variant not in ("decode", "prefill"):
        raise ValueError(f"{where}: variant {variant} has the same tiles for any number of rows")
    whole = isinstance(rows, list) and len(rows) == 2 and all(type(n) is int for n in rows)
    if not whole or not 1 <= rows[0] <= rows[1] <= MAX_ROWS:
        raise ValueError(f"{where}: must be [least, most], both at least 1, got {rows!r}")
    return rows[0], rows[1]


def gemm_config(op: str, prefill: bool, dtype: torch.dtype, rows: int, K: int) -> Launch:
    """`launch_config` of a matrix product over K."""
    launch = launch_config(op, "prefill" if prefill else "decode", dtype, rows)
    even = K % launch["BLOCK_K"] == 0
    launch = {"K_SLICES": 1, **launch, "EVEN_K": even}
    if op in EARLY_OPS:
        parts, most = K // launch["BLOCK_K"], launch.pop("EARLY_PARTS", 0)
        launch["K_PARTS"] = parts if even and parts <= most else 0
    return launch


EARLY_OPS = ("qkv_projection", "output_projection", "moe_experts_down")  # those with a form that loads weights early


FIRST_WITH_PDL = 90  # sm_90


@cache  # so that the variable is read once
def wanted_pdl() -> bool | None:
    """Whether ZONOS2_TRITON_PDL wants dependent launch; None: where the GPU has it."""
    return _settings.dependent_launch()


_thread = threading.local()


@contextmanager
def early_loads() -> Iterator[None]:
    """Inside, on this thread, dependent launches may load early what `_dependent_launch` lists.

    The caller promises that the launch before each one writes none of that, and does not trigger before it waits.
    Weights and tables must be older than the launch before the block.
    """
    before = early_loads_are_on()
    _thread.early = True
    try:
        yield
    finally:
        _thread.early = before


def early_loads_are_on() -> bool:
    """Whether this thread is inside of `early_loads`."""
    return getattr(_thread, "early", False)


def dependent_launch() -> Launch:
    """The arguments of dependent launch (`_dependent_launch`): on where the GPU has it and ZONOS2_TRITON_PDL allows it.

    PDL is False, True, or "early" inside of `early_loads`.
    ValueError: ZONOS2_TRITON_PDL=1 asks for it on another device.
    """
    target, wanted = _target(), wanted_pdl()
    exists = target is not None and target.backend == "cuda" and target.arch >= FIRST_WITH_PDL
    if wanted and not exists:
        name = "the interpreter" if target is None else _name(target)
        raise ValueError(
            f"{_settings.PDL} is '1', but {name} has no programmatic dependent launch; sm_{FIRST_WITH_PDL} and newer "
            "have it; accepted here: 0, or unset"
        )
    if not exists or wanted is False:
        return {"PDL": False}
    return {"PDL": "early" if early_loads_are_on() else True, "launch_pdl": True}


def architecture() -> str:
    """The current device's architecture, of ARCHITECTURES, or "interpreter"."""
    target = _target()
    return "interpreter" if target is None else _nearest(_name(target))


def _target() -> Any:
    """Triton's target for the current device; None: the interpreter."""
    if interpreted():
        return None
    driver = triton.runtime.driver.active
    return _target_of(driver, driver.get_current_device())


@cache  # of drivers and their devices: a driver asks the device each time
def _target_of(driver: Any, device: Any) -> Any:
    return driver.get_current_target()


def _name(target: Any) -> str:
    return f"sm_{target.arch}" if target.backend == "cuda" else str(target.arch)


@cache  # so that the log says it once
def _nearest(arch: str) -> str:
    """The architecture whose configurations an unknown one takes.

    NVIDIA: the newest of its generation that is not newer, else sm_86, which needs the least. AMD: gfx942.
    """
    if arch in ARCHITECTURES:
        return arch
    nearest = "gfx942"
    if arch.startswith("sm_"):
        number = int(arch.removeprefix("sm_"))
        known = [int(name.removeprefix("sm_")) for name in ARCHITECTURES if name.startswith("sm_")]
        nearest = f"sm_{max((n for n in known if n // 10 == number // 10 and n <= number), default=86)}"
    LOG.warning("no tiles were chosen for %s; it runs with those of %s", arch, nearest)
    return nearest
