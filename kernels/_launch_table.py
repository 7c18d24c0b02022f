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
  At 64 tokens a tile of x is four times the weights' and costs each program the same, so qkv_projection and
  codebook_head take 32. The product of gate and up has two tiles of weights for one of x, and stays at 16.
* BLOCK_M = 8, an instruction's width on NVIDIA, halves what 1 to 8 tokens move through shared memory; so do few tokens
  of one expert. AMD's instructions take 16.
* K_SLICES = 2 for 2 warps: each sums its own half of K. Without slices two warps would read a tile twice.
* BLOCK_K, of both slices, is 256 up to 16 tokens. Triton 3.9 swizzles a tile of slices by its rows only if a thread
  copies more than one of them: rows are so long, or tiles so high. Above, 128 takes fewer registers. It changes no sum.
* num_stages leaves 24 to 32 KB of weights under way. Blackwell's and Ada's small chips have 99 KB of shared memory.
"""

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


Configs = dict[str, tuple[Launch, ...]]
_ROW: Configs = {"*": (_config(4, 1),), "interpreter": (_config(1, 1),)}


def _decode(*tiles: tuple[int, int, int, int], interpreter_n: int = 32) -> Configs:
    """tiles: BLOCK_N, BLOCK_M, BLOCK_K and num_stages for more and more tokens."""
    launches = [{**_gemm(n, k, m, 2, stages), "K_SLICES": 2} for n, m, k, stages in tiles]
    # Without a limit the assembler stops at 168 registers for the largest tile, and spills on Triton 3.7.
    cuda = tuple({**launch, "maxnreg": 255} if launch["BLOCK_N"] > 16 else launch for launch in launches)
    return {
        "*": cuda,
        "gfx942": tuple(_amd(launch) for launch in launches if launch["BLOCK_M"] >= 16),
        "fp32": (_gemm(16, 64, 16, 4, 2),),
        "interpreter": tuple({**_gemm(interpreter_n, 64, m, 1, 1), "K_SLICES": 2} for m in (16, 32)),
    }


_TALL = (16, 8, 256, 5), (16, 16, 256, 5), (32, 32, 128, 6), (32, 64, 128, 4)  # 3,088 outputs and more
# 2,048: no taller, or multiprocessors would idle.
_SHORT = _decode((16, 8, 256, 5), (16, 16, 256, 5), (16, 32, 128, 7), (16, 64, 128, 5))
# Two matrices: twice the weights in a stage.
_GATED = _decode((16, 8, 256, 3), (16, 16, 256, 3), (16, 32, 128, 5), (16, 64, 128, 4))
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
    ("qkv_projection", "decode"): _decode(*_TALL),
    ("qkv_projection", "prefill"): _PREFILL,
    ("output_projection", "decode"): _SHORT,
    ("output_projection", "prefill"): {
        **_PREFILL,
        "sm_100": (_gemm(128, 64, 32, 8, 4), _gemm(128, 64, 128, 8, 4)),  # 4 warps: Triton 3.9 spills in fp16
    },
    ("codebook_head", "decode"): _decode(*_TALL, interpreter_n=512),
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
    ("moe_experts_down", "decode"): _SHORT,
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
