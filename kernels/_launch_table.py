"""The launch configuration of every kernel: block sizes, num_warps, num_stages. Data alone; `_launch_config` reads it.

LAUNCH_CONFIGS[operator, variant][architecture] holds one or more configurations. Of several, a launch takes the first
whose BLOCK_M holds its rows, else the last. "*" is an architecture that is not named. "fp32" is every GPU in fp32,
for tests. "interpreter" makes few programs, yet several of each kind at the sizes of tests.

Bits depend on the variant (decode or prefill), never on how many rows come together: BLOCK_M alone follows the number
of rows, and no sum runs over it. The compile gate checks that every BLOCK_M of a variant gets the same matrix
instruction and the same order of every reduction.

In decoding, a product reads its weights once, and shared memory must keep up with that. Counted for an H200, whose
multiprocessor gets 32 GB/s, or 28 KB in a round trip of 0.9 us:

* BLOCK_N = 16, an instruction's height, spreads few weights over all multiprocessors: 128 programs for 2,048 outputs.
  Above 16 tokens each program would load more of x than weights, through the L2 cache, so all but experts' gate and up
  take 32: that has two tiles of weights for one of x.
* BLOCK_M = 8, an instruction's width on NVIDIA, halves what 1 to 8 tokens move through shared memory; so do few tokens
  of one expert. AMD's instructions take 16.
* K_SLICES = 4: a chain of dependent matrix instructions is a quarter of K. 2 warps sum two slices each, 4 one each; no
  two read the same tile. Gate and up have two chains, and take 2.
* BLOCK_K, of all slices, is 512 up to 16 tokens. Triton 3.9 swizzles a tile of slices by its rows only if a thread
  copies more than one of them: rows are so long, or tiles so high. Above, 256 takes fewer registers. It changes no sum.
* num_stages leaves 24 to 32 KB of weights under way. Blackwell's and Ada's small chips have 99 KB of shared memory.
* EARLY_PARTS is how many BLOCK_K of weights a program can load before its wait for the previous launch (`_gemm`).
"""

import triton

from zonos2_triton.kernels._operator import Launch

ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "gfx942")


def _config(num_warps: int, num_stages: int, **blocks: int) -> Launch:
    # Without fusion, a * b + c is rounded twice everywhere: no bit depends on what the compiler fuses.
    return {**blocks, "num_warps": num_warps, "num_stages": num_stages, "enable_fp_fusion": False}


def _gemm(n: int, k: int, m: int, num_warps: int, num_stages: int) -> Launch:
    return _config(num_warps, num_stages, BLOCK_N=n, BLOCK_K=k, BLOCK_M=m)


def _amd(launch: Launch) -> Launch:
    """The 16 x 16 instruction at every width. Wide tiles would get the 32 x 32 one, which adds in another order.

    One slice: Triton does not swizzle tiles of slices there.
    """
    return {**launch, "BLOCK_K": 128, "num_stages": 2, "K_SLICES": 1, "matrix_instr_nonkdim": 16}


# Triton 3.7 copies activations of this form with bank conflicts; 3.9 copies weights after the wait, and spills.
TRITON_COPIES_EARLY = triton.__version__.startswith("3.6.")
Configs = dict[str, tuple[Launch, ...]]
_ROW: Configs = {"*": (_config(4, 1),), "interpreter": (_config(1, 1),)}


def _decode(
    *tiles: tuple[int, int, int, int, int], slices: int, early: Launch | None = None, interpreter_n: int = 32
) -> Configs:
    """tiles: BLOCK_N, BLOCK_M, BLOCK_K, num_warps and num_stages for more and more tokens.

    early: the numbers of a form of the first tile that loads its weights early.
    """
    launches = [{**_gemm(n, k, m, warps, stages), "K_SLICES": slices} for n, m, k, warps, stages in tiles]
    # Without a limit the assembler stops at 168 registers for the largest tile, and spills on Triton 3.7.
    cuda = tuple({**launch, "maxnreg": 255} if launch["BLOCK_N"] > 16 else launch for launch in launches)
    with_early = ({**cuda[0], **early}, *cuda[1:]) if early and TRITON_COPIES_EARLY else cuda
    parts = {"EARLY_PARTS": 4} if early else {}
    return {
        "*": cuda,
        **dict.fromkeys(("sm_90", "sm_100"), with_early),
        "gfx942": tuple(_amd(launch) for launch in launches if launch["BLOCK_M"] >= 16),
        "fp32": (_gemm(16, 64, 16, 4, 2),),
        "interpreter": (
            {**_gemm(interpreter_n, 64, 16, 1, 1), "K_SLICES": slices, **parts},
            {**_gemm(interpreter_n, 64, 32, 1, 1), "K_SLICES": slices},
        ),
    }


def _early(parts: int, registers: int) -> Launch:
    """4 warps have registers for all that is loaded at a time. Beside the launches before and after there is room."""
    return {"BLOCK_K": 512, "num_warps": 4, "num_stages": 1, "EARLY_PARTS": parts, "maxnreg": registers}


_TILES = (16, 8, 512, 2, 3), (16, 16, 512, 2, 3), (32, 32, 256, 4, 4), (32, 64, 256, 4, 3)
# Two matrices: twice the weights in a stage.
_GATED = _decode((16, 8, 256, 2, 3), (16, 16, 256, 2, 3), (16, 32, 128, 2, 5), (16, 64, 128, 2, 4), slices=2)
_PREFILL: Configs = {
    "*": (_gemm(64, 64, 64, 4, 3),),
    # To 128 tokens, tiles of 64 weights: 49 programs for 3,088 outputs. Above, the L2 cache decides: tiles of 128.
    "sm_90": (_gemm(64, 64, 32, 4, 4), _gemm(64, 64, 64, 4, 4), _gemm(64, 64, 128, 4, 4), _gemm(128, 64, 128, 8, 4)),
    "sm_100": (_gemm(128, 64, 32, 4, 4), _gemm(128, 64, 128, 8, 4)),
    "fp32": (_gemm(32, 32, 32, 4, 2),),
    "interpreter": (_gemm(64, 64, 32, 1, 1),),
}
# One configuration for all lengths of a clip, so that no bit depends on the length.
_CONV: Configs = {
    "*": (_gemm(64, 64, 64, 8, 3),),
    "gfx942": (_gemm(64, 64, 64, 4, 2),),
    "sm_90": (_gemm(128, 64, 64, 8, 4),),
    "sm_100": (_gemm(128, 64, 64, 8, 4),),
    "tf32": (_gemm(64, 32, 64, 4, 3),),
    "fp32": (_gemm(32, 32, 32, 4, 2),),
    "interpreter": (_gemm(64, 64, 256, 1, 1),),
}
_ROUTER: Configs = {
    # 8 warps: vectors of R have fewer elements than threads, and no conversion that would wait between loads. Without a
    # limit the assembler stops at 128 registers, and spills.
    "*": ({**_config(8, 1, BLOCK_R=16, BLOCK_K=256), "maxnreg": 255},),
    "gfx942": (_config(8, 1, BLOCK_R=16, BLOCK_K=256),),
    "fp32": (_config(8, 1, BLOCK_R=16, BLOCK_K=64),),
    "interpreter": (_config(1, 1, BLOCK_R=16, BLOCK_K=32),),
}


def _unit(k: int) -> Configs:
    return {
        "*": (_config(8, 3, BLOCK_K=k, BLOCK_M=32),),
        **dict.fromkeys(("sm_90", "gfx942"), (_config(8, 3, BLOCK_K=k, BLOCK_M=64),)),
        **dict.fromkeys(("fp32", "tf32"), (_config(4, 2, BLOCK_K=32, BLOCK_M=16),)),
        "interpreter": (_config(1, 1, BLOCK_K=64, BLOCK_M=256),),
    }


LAUNCH_CONFIGS: dict[tuple[str, str], Configs] = {
    ("add_rms_norm", "row"): _ROW,
    ("frame_embedding", "row"): _ROW,
    ("rotary", "row"): _ROW,
    ("sample_codes", "row"): {"*": (_config(8, 1),), "interpreter": (_config(1, 1),)},
    ("qkv_projection", "decode"): _decode(*_TILES, slices=4, early=_early(4, 144)),
    ("qkv_projection", "prefill"): _PREFILL,
    ("output_projection", "decode"): _decode(*_TILES, slices=4, early=_early(4, 144)),
    ("output_projection", "prefill"): {
        **_PREFILL,
        "sm_100": (_gemm(128, 64, 32, 8, 4), _gemm(128, 64, 128, 8, 4)),  # 4 warps: Triton 3.9 spills in fp16
    },
    ("codebook_head", "decode"): _decode(*_TILES, slices=4, interpreter_n=512),
    ("codebook_head", "prefill"): {
        **_PREFILL,
        "*": (_gemm(64, 64, 64, 8, 3),),
        "sm_90": (_gemm(64, 64, 32, 4, 4), _gemm(128, 64, 128, 8, 4)),  # 73 programs for 9,234 outputs
        "sm_100": (_gemm(128, 64, 32, 4, 4), _gemm(128, 64, 64, 8, 4)),  # 128: Triton 3.9 spills
        "interpreter": (_gemm(512, 64, 64, 1, 1),),
    },
    ("moe_router", "down"): _ROUTER,
    ("moe_experts_up", "decode"): _GATED,
    ("moe_experts_up", "prefill"): {
        **_PREFILL,
        "sm_90": (_gemm(64, 64, 32, 4, 4), _gemm(64, 64, 64, 4, 4), _gemm(64, 64, 128, 8, 3)),
        "sm_100": (_gemm(128, 64, 32, 4, 3), _gemm(128, 64, 128, 8, 3)),
    },
    ("moe_experts_down", "decode"): _decode(*_TILES, slices=4, early=_early(6, 208)),
    ("moe_experts_down", "prefill"): _PREFILL,
    ("decode_attention", "split"): {
        "*": (_config(4, 3, BLOCK_KV=64, SPLITS=32, BLOCK_H=4, PROGRAMS=256),),
        "gfx942": (_config(4, 2, BLOCK_KV=64, SPLITS=32, BLOCK_H=4, PROGRAMS=256),),
        "fp32": (_config(4, 2, BLOCK_KV=32, SPLITS=32, BLOCK_H=4, PROGRAMS=256),),
        "interpreter": (_config(1, 1, BLOCK_KV=8, SPLITS=4, BLOCK_H=2, PROGRAMS=8),),
    },
    ("rvq_decode", "frames"): {
        "*": (_config(4, 1, BLOCK_M=16, BLOCK_N=64),),
        "interpreter": (_config(1, 1, BLOCK_M=16, BLOCK_N=32),),
    },
    ("conv1d_snake", "first"): {**_CONV, **dict.fromkeys(("*", "sm_90", "sm_100"), (_gemm(64, 128, 32, 4, 4),))},
    ("conv1d_snake", "taps"): _CONV,
    ("conv_transpose1d_snake", "taps"): {**_CONV, "sm_100": (_gemm(128, 64, 64, 8, 3),)},
    ("residual_unit", "wide"): _unit(64),
    # 128 registers: two programs on a multiprocessor. Triton 3.6 would take 132 by itself.
    ("residual_unit", "narrow"): {**_unit(32), "sm_90": ({**_config(8, 3, BLOCK_K=32, BLOCK_M=64), "maxnreg": 128},)},
    ("conv1d_tanh", "taps"): {"*": (_gemm(16, 32, 64, 4, 3),), "interpreter": (_gemm(16, 64, 256, 1, 1),)},
    ("prefill_attention", "write"): {"*": (_config(4, 1, BLOCK_Q=16),), "interpreter": (_config(1, 1, BLOCK_Q=16),)},
    ("prefill_attention", "attend"): {
        "*": (_config(8, 2, BLOCK_M=128, BLOCK_KV=32),),
        "sm_90": (_config(8, 3, BLOCK_M=128, BLOCK_KV=64),),
        **dict.fromkeys(("sm_86", "sm_89", "sm_120"), (_config(8, 2, BLOCK_M=64, BLOCK_KV=32),)),  # 128: 3.9 spills
        "fp32": (_config(4, 1, BLOCK_M=16, BLOCK_KV=32),),
        "interpreter": (_config(1, 1, BLOCK_M=32, BLOCK_KV=16),),
    },
}
