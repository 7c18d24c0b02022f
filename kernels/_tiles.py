"""Which tiles a launch is made of: data by operation, role, dtype and architecture.

A row's bits depend on its role (decoding or prefill), never on how many rows come with it: BLOCK_M alone follows the
number of rows, and no sum runs over it. The compile gate checks what that rests on: within a role, every BLOCK_M gets
the same matrix instruction and the same order of every reduction.
"""

import logging
from functools import cache

import torch
import triton

from zonos2_triton.kernels._common import Launch, interpreted

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
TABLE: dict[tuple[str, str], Tiles] = {
    ("add_rms_norm", "row"): _ROW,
    ("frame_embedding", "row"): _ROW,
    ("rotary", "row"): _ROW,
    ("sample", "row"): {"*": (_tile(8, 1),), "interpreter": (_tile(1, 1),)},
    ("advance", "row"): {"*": (_tile(1, 1),)},
    ("qkv_projection", "decode"): _NORMED,
    ("qkv_projection", "prefill"): _PREFILL,
    ("output_projection", "decode"): _PLAIN,
    ("output_projection", "prefill"): _PREFILL,
    ("head", "decode"): _HEAD,
    ("head", "prefill"): {
        **_PREFILL,
        "*": (_product(64, 64, 64, 8, 3),),
        "interpreter": (_product(512, 64, 64, 1, 1),),
    },
    ("router", "down"): {
        "*": (_tile(4, 6, BLOCK_R=16, BLOCK_K=128),),
        "gfx942": (_tile(4, 2, BLOCK_R=16, BLOCK_K=128),),
        "fp32": (_tile(4, 2, BLOCK_R=16, BLOCK_K=64),),
        "interpreter": (_tile(1, 1, BLOCK_R=16, BLOCK_K=64),),
    },
    ("experts_up", "decode"): {
        **_NORMED,
        "*": (_product(16, 128, 16, 4, 6), _product(16, 128, 32, 4, 4), _product(32, 128, 64, 8, 2)),
        "gfx942": _NORMED["gfx942"][:2],
    },
    ("experts_up", "prefill"): {
        **_PREFILL,
        "sm_90": (_product(64, 64, 32, 4, 4), _product(64, 64, 128, 8, 3)),
        "sm_100": (_product(128, 64, 32, 4, 3), _product(128, 64, 128, 8, 3)),
    },
    ("experts_down", "decode"): _PLAIN,
    ("experts_down", "prefill"): _PREFILL,
    ("decode_attention", "split"): {
        "*": (_tile(4, 3, SPLIT=128, BLOCK_S=64),),
        "gfx942": (_tile(4, 2, SPLIT=128, BLOCK_S=64),),
        "fp32": (_tile(4, 2, SPLIT=128, BLOCK_S=32),),
        "interpreter": (_tile(1, 1, SPLIT=16, BLOCK_S=8),),
    },
    ("codebook_sum", "frames"): {
        "*": (_tile(4, 1, BLOCK_M=16, BLOCK_N=64),),
        "interpreter": (_tile(1, 1, BLOCK_M=16, BLOCK_N=32),),
    },
    ("convolution", "first"): {**_TAPS, **dict.fromkeys(("*", "sm_90", "sm_100"), (_product(64, 64, 32, 4, 4),))},
    ("convolution", "taps"): _TAPS,
    ("transposed_convolution", "taps"): {**_TAPS, "sm_100": (_product(128, 64, 64, 8, 3),)},
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
    ("waveform", "taps"): {
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
    return next((launch for launch in choice if launch.get("BLOCK_M", rows) >= rows), choice[-1])


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
