"""The launch configuration of every kernel: block sizes, num_warps, num_stages. Data alone; `_launch_config` reads it.

LAUNCH_CONFIGS[operator, variant][architecture] holds one or more configurations. Of several, a launch takes the first
whose BLOCK_M holds its rows, else the last. "*" is an architecture that is not named. "fp32" is every GPU in fp32,
for tests. "interpreter" makes few programs, yet several of each kind at the sizes of tests.

Bits depend on the variant (decode or prefill), never on how many rows come together: BLOCK_M alone follows the number
of rows, and no sum runs over it. The compile gate checks that every BLOCK_M of a variant gets the same matrix
instruction and the same order of every reduction.

In decoding, BLOCK_N is so small that the weights of one token spread over every multiprocessor of a large GPU. So many
stages are in flight that each multiprocessor waits for about 28 KB of weights.
"""

from zonos2_triton.kernels._operator import Launch

ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "gfx942")

# Operators whose kernels wait for the previous launch, and so may start before its end.
DEPENDENT = frozenset({"advance_frame", "output_projection", "prefill_attention", "rotary", "sample_codes"})


def _config(num_warps: int, num_stages: int, **blocks: int) -> Launch:
    # Without fusion, a * b + c is rounded twice everywhere: no bit depends on what the compiler fuses.
    return {**blocks, "num_warps": num_warps, "num_stages": num_stages, "enable_fp_fusion": False}


def _gemm(n: int, k: int, m: int, num_warps: int, num_stages: int) -> Launch:
    return _config(num_warps, num_stages, BLOCK_N=n, BLOCK_K=k, BLOCK_M=m)


def _amd(launch: Launch) -> Launch:
    """The 16 x 16 instruction at every width. Wide tiles would get the 32 x 32 one, which adds in another order."""
    return {**launch, "num_stages": 2, "matrix_instr_nonkdim": 16}


Configs = dict[str, tuple[Launch, ...]]
_ROW: Configs = {"*": (_config(4, 1),), "interpreter": (_config(1, 1),)}
_INTERPRETER = (_gemm(32, 64, 16, 1, 1), _gemm(32, 64, 32, 1, 1))


def _decode(*launches: Launch, interpreter: tuple[Launch, ...] = _INTERPRETER) -> Configs:
    amd = tuple(_amd(launch) for launch in launches)
    return {"*": launches, "gfx942": amd, "fp32": (_gemm(16, 64, 16, 4, 2),), "interpreter": interpreter}


# The norm folded in: sums of squares are registers by BLOCK_K and BLOCK_M.
_NORMED = _decode(_gemm(16, 128, 16, 4, 8), _gemm(16, 128, 32, 4, 6), _gemm(32, 128, 64, 8, 3))
_NO_NORM = _decode(_gemm(16, 128, 16, 4, 8), _gemm(16, 128, 32, 4, 6), _gemm(32, 128, 64, 4, 3))
_HEAD = _decode(
    *(_gemm(32, 128, 16, 4, 6), _gemm(32, 128, 32, 4, 4), _gemm(32, 128, 64, 8, 3)),
    interpreter=(_gemm(512, 64, 16, 1, 1), _gemm(512, 64, 32, 1, 1)),
)
_PREFILL: Configs = {
    "*": (_gemm(64, 64, 64, 4, 3),),
    "sm_90": (_gemm(64, 64, 32, 4, 4), _gemm(128, 64, 128, 8, 4)),
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
_DOWN: Configs = {
    "*": (_config(4, 6, BLOCK_R=16, BLOCK_K=128),),
    "gfx942": (_config(4, 2, BLOCK_R=16, BLOCK_K=128),),
    "fp32": (_config(4, 2, BLOCK_R=16, BLOCK_K=64),),
    "sm_120": (_config(4, 8, BLOCK_R=16, BLOCK_K=64),),  # 128: Triton 3.6 spills
    "interpreter": (_config(1, 1, BLOCK_R=16, BLOCK_K=64),),
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
    ("advance_frame", "row"): {"*": (_config(1, 1),)},
    ("qkv_projection", "decode"): _NORMED,
    ("qkv_projection", "prefill"): _PREFILL,
    ("output_projection", "decode"): _NO_NORM,
    ("output_projection", "prefill"): _PREFILL,
    ("codebook_head", "decode"): _HEAD,
    ("codebook_head", "prefill"): {
        **_PREFILL,
        "*": (_gemm(64, 64, 64, 8, 3),),
        "interpreter": (_gemm(512, 64, 64, 1, 1),),
    },
    ("moe_router", "down"): _DOWN,
    ("moe_experts_up", "decode"): {
        **_NORMED,
        "*": (_gemm(16, 128, 16, 4, 6), _gemm(16, 128, 32, 4, 4), _gemm(32, 128, 64, 8, 2)),
        "gfx942": _NORMED["gfx942"][:2],
    },
    ("moe_experts_up", "prefill"): {
        **_PREFILL,
        "sm_90": (_gemm(64, 64, 32, 4, 4), _gemm(64, 64, 128, 8, 3)),
        "sm_100": (_gemm(128, 64, 32, 4, 3), _gemm(128, 64, 128, 8, 3)),
    },
    ("moe_experts_down", "decode"): _NO_NORM,
    ("moe_experts_down", "prefill"): _PREFILL,
    ("decode_attention", "split"): {
        "*": (_config(4, 3, KV_PER_SPLIT=128, BLOCK_KV=64),),
        "gfx942": (_config(4, 2, KV_PER_SPLIT=128, BLOCK_KV=64),),
        "fp32": (_config(4, 2, KV_PER_SPLIT=128, BLOCK_KV=32),),
        "interpreter": (_config(1, 1, KV_PER_SPLIT=16, BLOCK_KV=8),),
    },
    ("rvq_decode", "frames"): {
        "*": (_config(4, 1, BLOCK_M=16, BLOCK_N=64),),
        "interpreter": (_config(1, 1, BLOCK_M=16, BLOCK_N=32),),
    },
    ("conv1d_snake", "first"): {**_CONV, **dict.fromkeys(("*", "sm_90", "sm_100"), (_gemm(64, 64, 32, 4, 4),))},
    ("conv1d_snake", "taps"): _CONV,
    ("conv_transpose1d_snake", "taps"): {**_CONV, "sm_100": (_gemm(128, 64, 64, 8, 3),)},
    ("residual_unit", "wide"): _unit(64),
    ("residual_unit", "narrow"): _unit(32),
    ("conv1d_tanh", "taps"): {"*": (_gemm(16, 32, 64, 4, 3),), "interpreter": (_gemm(16, 64, 256, 1, 1),)},
    ("prefill_attention", "write"): {"*": (_config(4, 1, BLOCK_Q=16),), "interpreter": (_config(1, 1, BLOCK_Q=16),)},
    ("prefill_attention", "attend"): {
        "*": (_config(8, 2, BLOCK_M=128, BLOCK_KV=32),),
        "sm_90": (_config(8, 2, BLOCK_M=128, BLOCK_KV=64),),
        "fp32": (_config(4, 1, BLOCK_M=16, BLOCK_KV=32),),
        "interpreter": (_config(1, 1, BLOCK_M=32, BLOCK_KV=16),),
    },
}
