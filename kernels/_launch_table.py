"""Which tiles a launch is made of: data by operation, role, dtype and architecture.

A row's bits depend on its role (decoding or prefill), never on how many rows come with it: BLOCK_M alone follows the
number of rows, and no sum runs over it. The compile gate checks what that rests on: within a role, every BLOCK_M gets
the same matrix instruction and the same order of every reduction.

A file that ZONOS2_TRITON_CONFIG names replaces numbers of the table, whatever the architecture. It is a JSON list of
objects: "op" and "role" as in TABLE; "dtype", of KINDS, and "rows", [least, most], where it is for some alone; and the
numbers. Of several that fit, the later ones win. BLOCK_K, a step of a sum, cannot be had for some rows alone.
"""

import logging
from functools import cache
from typing import Any, NamedTuple

import torch
import triton

from zonos2_triton import _settings
from zonos2_triton.kernels._operator import Launch, interpreted

LOG = logging.getLogger("zonos2_triton")

ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "gfx942")


def _tile(num_warps: int, num_stages: int, **blocks: int) -> Launch:
    # Without fusion a * b + c is rounded twice wherever it stands: no bit depends on what the compiler made one of.
    return {**blocks, "num_warps": num_warps, "num_stages": num_stages, "enable_fp_fusion": False}


def _product(n: int, k: int, m: int, num_warps: int, num_stages: int) -> Launch:
    return _tile(num_warps, num_stages, BLOCK_N=n, BLOCK_K=k, BLOCK_M=m)


def _amd(launch: Launch) -> Launch:
    """The 16 x 16 instruction at every width: the 32 x 32 one, which wide tiles would get, adds in another order."""
    return {**launch, "num_stages": 2, "matrix_instr_nonkdim": 16}


# (operation, role): {architecture: tiles}. "*": any card that is not named. "fp32": every card in fp32, which is there
# for tests and asks for small tiles. "interpreter": few programs, yet several of each kind at the sizes tests use.
# Of several tiles a launch takes the first whose BLOCK_M holds its rows, else the last. In decoding, BLOCK_N is so
# small that the weights of one row spread over every multiprocessor of a large card, and the stages are so many that
# each has about 28 KB of them under way.
Tiles = dict[str, tuple[Launch, ...]]
_ROW: Tiles = {"*": (_tile(4, 1),), "interpreter": (_tile(1, 1),)}
_FP32 = (_product(16, 64, 16, 4, 2),)
_INTERPRETER = (_product(32, 64, 16, 1, 1), _product(32, 64, 32, 1, 1))
_NORMED: Tiles = {  # the norm folded in: sums of squares are registers by BLOCK_K and BLOCK_M
    "*": (_product(16, 128, 16, 4, 8), _product(16, 128, 32, 4, 6), _product(32, 128, 64, 8, 3)),
    "fp32": _FP32,
    "interpreter": _INTERPRETER,
}
_NORMED["gfx942"] = tuple(_amd(launch) for launch in _NORMED["*"])
_PLAIN: Tiles = {
    "*": (_product(16, 128, 16, 4, 8), _product(16, 128, 32, 4, 6), _product(32, 128, 64, 4, 3)),
    "fp32": _FP32,
    "interpreter": _INTERPRETER,
}
_PLAIN["gfx942"] = tuple(_amd(launch) for launch in _PLAIN["*"])
_HEAD: Tiles = {
    "*": (_product(32, 128, 16, 4, 6), _product(32, 128, 32, 4, 4), _product(32, 128, 64, 8, 3)),
    "fp32": _FP32,
    "interpreter": (_product(512, 64, 16, 1, 1), _product(512, 64, 32, 1, 1)),
}
_HEAD["gfx942"] = tuple(_amd(launch) for launch in _HEAD["*"])
_PREFILL: Tiles = {
    "*": (_product(64, 64, 64, 4, 3),),
    "sm_90": (_product(64, 64, 32, 4, 4), _product(128, 64, 128, 8, 4)),
    "sm_100": (_product(128, 64, 32, 4, 4), _product(128, 64, 128, 8, 4)),
    "fp32": (_product(32, 32, 32, 4, 2),),
    "interpreter": (_product(64, 64, 32, 1, 1),),
}
# Of a convolution of clips: one tile for all lengths, so that no bit depends on them.
_TAPS: Tiles = {
    "*": (_product(64, 64, 64, 8, 3),),
    "gfx942": (_product(64, 64, 64, 4, 2),),
    "sm_90": (_product(128, 64, 64, 8, 4),),
    "sm_100": (_product(128, 64, 64, 8, 4),),
    "tf32": (_product(64, 32, 64, 4, 3),),
    "fp32": (_product(32, 32, 32, 4, 2),),
    "interpreter": (_product(64, 64, 256, 1, 1),),
}
_DOWN: Tiles = {
    "*": (_tile(4, 6, BLOCK_R=16, BLOCK_K=128),),
    "gfx942": (_tile(4, 2, BLOCK_R=16, BLOCK_K=128),),
    "fp32": (_tile(4, 2, BLOCK_R=16, BLOCK_K=64),),
    "interpreter": (_tile(1, 1, BLOCK_R=16, BLOCK_K=64),),
}
TABLE: dict[tuple[str, str], Tiles] = {
    ("add_rms_norm", "row"): _ROW,
    ("frame_embedding", "row"): _ROW,
    ("rotary", "row"): _ROW,
    ("sample_codes", "row"): {"*": (_tile(8, 1),), "interpreter": (_tile(1, 1),)},
    ("advance_frame", "row"): {"*": (_tile(1, 1),)},
    ("qkv_projection", "decode"): _NORMED,
    ("qkv_projection", "prefill"): _PREFILL,
    ("output_projection", "decode"): _PLAIN,
    ("output_projection", "prefill"): _PREFILL,
    ("codebook_head", "decode"): _HEAD,
    ("codebook_head", "prefill"): {
        **_PREFILL,
        "*": (_product(64, 64, 64, 8, 3),),
        "interpreter": (_product(512, 64, 64, 1, 1),),
    },
    ("moe_router", "down"): _DOWN,
    ("moe_router", "normed"): {**_DOWN, "sm_120": (_tile(4, 8, BLOCK_R=16, BLOCK_K=64),)},  # at 128, Triton 3.6 spills
    ("moe_experts_up", "decode"): {
        **_NORMED,
        "*": (_product(16, 128, 16, 4, 6), _product(16, 128, 32, 4, 4), _product(32, 128, 64, 8, 2)),
        "gfx942": _NORMED["gfx942"][:2],
    },
    ("moe_experts_up", "prefill"): {
        **_PREFILL,
        "sm_90": (_product(64, 64, 32, 4, 4), _product(64, 64, 128, 8, 3)),
        "sm_100": (_product(128, 64, 32, 4, 3), _product(128, 64, 128, 8, 3)),
    },
    ("moe_experts_down", "decode"): _PLAIN,
    ("moe_experts_down", "prefill"): _PREFILL,
    ("decode_attention", "split"): {
        "*": (_tile(4, 3, SPLIT=128, BLOCK_S=64),),
        "gfx942": (_tile(4, 2, SPLIT=128, BLOCK_S=64),),
        "fp32": (_tile(4, 2, SPLIT=128, BLOCK_S=32),),
        "interpreter": (_tile(1, 1, SPLIT=16, BLOCK_S=8),),
    },
    ("rvq_decode", "frames"): {
        "*": (_tile(4, 1, BLOCK_M=16, BLOCK_N=64),),
        "interpreter": (_tile(1, 1, BLOCK_M=16, BLOCK_N=32),),
    },
    ("conv1d_snake", "first"): {**_TAPS, **dict.fromkeys(("*", "sm_90", "sm_100"), (_product(64, 64, 32, 4, 4),))},
    ("conv1d_snake", "taps"): _TAPS,
    ("conv_transpose1d_snake", "taps"): {**_TAPS, "sm_100": (_product(128, 64, 64, 8, 3),)},
    ("residual_unit", "wide"): {
        "*": (_tile(8, 3, BLOCK_K=64, BLOCK_M=32),),
        **dict.fromkeys(("sm_90", "gfx942"), (_tile(8, 3, BLOCK_K=64, BLOCK_M=64),)),
        **dict.fromkeys(("fp32", "tf32"), (_tile(4, 2, BLOCK_K=32, BLOCK_M=16),)),
        "interpreter": (_tile(1, 1, BLOCK_K=64, BLOCK_M=256),),
    },
    ("residual_unit", "narrow"): {
        "*": (_tile(8, 3, BLOCK_K=32, BLOCK_M=32),),
        **dict.fromkeys(("sm_90", "gfx942"), (_tile(8, 3, BLOCK_K=32, BLOCK_M=64),)),
        **dict.fromkeys(("fp32", "tf32"), (_tile(4, 2, BLOCK_K=32, BLOCK_M=16),)),
        "interpreter": (_tile(1, 1, BLOCK_K=64, BLOCK_M=256),),
    },
    ("conv1d_tanh", "taps"): {
        "*": (_product(16, 32, 64, 4, 3),),
        "interpreter": (_product(16, 64, 256, 1, 1),),
    },
    ("prefill_attention", "write"): {"*": (_tile(4, 1, BLOCK_Q=16),), "interpreter": (_tile(1, 1, BLOCK_Q=16),)},
    ("prefill_attention", "attend"): {
        "*": (_tile(8, 2, BLOCK_M=128, BLOCK_S=32),),
        "sm_90": (_tile(8, 2, BLOCK_M=128, BLOCK_S=64),),
        "fp32": (_tile(4, 1, BLOCK_M=16, BLOCK_S=32),),
        "interpreter": (_tile(1, 1, BLOCK_M=32, BLOCK_S=16),),
    },
}


def tiles(op: str, role: str, dtype: torch.dtype, rows: int = 1, tf32: bool = False) -> Launch:
    """Keyword arguments of a launch for so many rows: blocks, num_warps, num_stages."""
    by_architecture, card = TABLE[op, role], architecture()
    if card != "interpreter" and dtype == torch.float32:
        card = "tf32" if tf32 else "fp32"
    choice = by_architecture.get(card, by_architecture["*"])
    launch = next((launch for launch in choice if launch.get("BLOCK_M", rows) >= rows), choice[-1])
    kind = "tf32" if tf32 else str(dtype).removeprefix("torch.")
    for override in overrides().get((op, role), ()):
        if override.dtype in (None, kind) and override.least <= rows <= override.most:
            launch = {**launch, **override.numbers}
    return launch


KINDS = ("float32", "tf32", "float16", "bfloat16")
MOST_ROWS = 2**31 - 1
# The least and the most of each number; all but num_stages are powers of two. Matrix units take no fewer than 16.
LIMITS = {"num_warps": (1, 32), "num_stages": (1, 16)}
BLOCKS = (16, 1024)


class Override(NamedTuple):
    """Numbers that replace those of the table, for a dtype (None: all) and so many rows."""

    dtype: str | None
    least: int
    most: int
    numbers: Launch


@cache  # so that the file is read once
def overrides() -> dict[tuple[str, str], list[Override]]:
    """What the file of ZONOS2_TRITON_CONFIG says, by operation and role, in its order. ValueError: it is wrong."""
    found = _settings.config()
    if found is None:
        return {}
    path, entries = found
    made: dict[tuple[str, str], list[Override]] = {}
    where = f"{_settings.CONFIG}: {path}"
    if not isinstance(entries, list):
        raise ValueError(f"{where}: must be a list of objects, got {type(entries).__name__}")
    for i, entry in enumerate(entries):
        acc_up, override = _override(f"{where}: [{i}]", entry)
        made.setdefault(acc_up, []).append(override)
    LOG.info("launch parameters of %s: %s", path, entries)
    return made


def _override(where: str, entry: Any) -> tuple[tuple[str, str], Override]:
    if not isinstance(entry, dict):
        raise ValueError(f"{where}: must be an object, got {entry!r}")
    op, role = (entry.get(key) for key in ("op", "role"))
    if op not in (ops := sorted({op for op, _ in TABLE})):
        raise ValueError(f"{where}.op: must be one of {', '.join(ops)}, got {op!r}")
    if role not in (roles := [role for name, role in TABLE if name == op]):
        raise ValueError(f"{where}.role: must be one of {', '.join(roles)} of {op}, got {role!r}")
    dtype = entry.get("dtype")
    if "dtype" in entry and dtype not in KINDS:
        raise ValueError(f"{where}.dtype: must be one of {', '.join(KINDS)}, got {dtype!r}")
    known = {key for launches in TABLE[op, role].values() for launch in launches for key in launch}
    known -= {"enable_fp_fusion", "matrix_instr_nonkdim"}  # every bit rests on them
    numbers = {key: entry[key] for key in entry if key not in ("op", "role", "dtype", "rows")}
    for key, number in numbers.items():
        if key not in known:
            raise ValueError(f"{where}.{key}: {op} {role} has no such number; it has {', '.join(sorted(known))}")
        _check_number(f"{where}.{key}", key, number)
    if not numbers:
        raise ValueError(f"{where}: must have at least one of {', '.join(sorted(known))}")
    least, most = 1, MOST_ROWS
    if "rows" in entry:
        least, most = _rows(f"{where}.rows", entry["rows"], role)
        if "BLOCK_K" in numbers:
            raise ValueError(f"{where}.BLOCK_K: cannot be had for some rows alone: bits would depend on the batch")
    return (op, role), Override(dtype, least, most, numbers)


def _check_number(where: str, key: str, number: Any) -> None:
    low, high = LIMITS.get(key, BLOCKS)
    whole = isinstance(number, int) and not isinstance(number, bool) and low <= number <= high
    if not whole or (key != "num_stages" and number & (number - 1)):
        kind = "an integer" if key == "num_stages" else "a power of two"
        raise ValueError(f"{where}: must be {kind} in {low}..{high}, got {number!r}")


def _rows(where: str, rows: Any, role: str) -> tuple[int, int]:
    if role not in ("decode", "prefill"):
        raise ValueError(f"{where}: role {role} has the same tiles for any number of rows")
    whole = isinstance(rows, list) and len(rows) == 2 and all(type(n) is int for n in rows)
    if not whole or not 1 <= rows[0] <= rows[1] <= MOST_ROWS:
        raise ValueError(f"{where}: must be [least, most], both at least 1, got {rows!r}")
    return rows[0], rows[1]


def product_tiles(op: str, prefill: bool, dtype: torch.dtype, rows: int, K: int) -> Launch:
    """`tiles` of a matrix product over K."""
    launch = tiles(op, "prefill" if prefill else "decode", dtype, rows)
    return {**launch, "EVEN_K": K % launch["BLOCK_K"] == 0}


def architecture() -> str:
    """The row of the table that fits the current device: of ARCHITECTURES, or "interpreter"."""
    if interpreted():
        return "interpreter"
    target = triton.runtime.driver.active.get_current_target()
    return _nearest(f"sm_{target.arch}" if target.backend == "cuda" else str(target.arch))


@cache  # so that the log says it once
def _nearest(card: str) -> str:
    """An unknown NVIDIA card is served as the newest known one of its generation that is not newer, else as sm_86,
    which asks for least; another AMD card as gfx942."""
    if card in ARCHITECTURES:
        return card
    nearest = "gfx942"
    if card.startswith("sm_"):
        number = int(card.removeprefix("sm_"))
        known = [int(name.removeprefix("sm_")) for name in ARCHITECTURES if name.startswith("sm_")]
        nearest = f"sm_{max((n for n in known if n // 10 == number // 10 and n <= number), default=86)}"
    LOG.warning("no tiles were chosen for %s; it runs with those of %s", card, nearest)
    return nearest
