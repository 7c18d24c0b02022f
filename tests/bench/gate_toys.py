"""A catalogue of toys for the compile gate, whose names say what is wrong with them, and some real kernels.

The compiler runs in a process of its own: `python -m gate_toys FILE` there pickles what tests look at into the file.
"""

import os
import pickle
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from zonos2_triton.bench import catalogue
from zonos2_triton.bench.compiler import warmup
from zonos2_triton.bench.compiler.expected import Expected
from zonos2_triton.bench.compiler.gate import run
from zonos2_triton.bench.compiler.offline_compile import compile_only, fake_tensors
from zonos2_triton.kernels._dependent_launch import (
    begin_early_loads,
    end_early_loads,
    prefetch_l2,
    wait_for_previous_launch,
)


@triton.jit
def _scale_kernel(x_ptr, y_ptr, n, factor, BLOCK: tl.constexpr):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + offs, tl.load(x_ptr + offs, mask=offs < n, other=0.0) * factor, mask=offs < n)


@triton.jit
def _center_kernel(x_ptr, y_ptr, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offs).to(tl.float32)
    tl.store(y_ptr + offs, (x - tl.sum(x) / BLOCK).to(tl.bfloat16))


@triton.jit
def _dot_kernel(x_ptr, y_ptr, K, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr):
    i, k = tl.arange(0, BLOCK), tl.arange(0, BLOCK_K)
    acc = tl.zeros((BLOCK, BLOCK), tl.float32)
    for start in range(0, K, BLOCK_K):
        x = tl.load(x_ptr + i[:, None] * K + start + k[None, :])
        acc = tl.dot(x, x.trans(), acc)
    tl.store(y_ptr + i[:, None] * BLOCK + i[None, :], acc.to(tl.bfloat16))


@triton.jit
def _columns_kernel(x_ptr, y_ptr, K: tl.constexpr, BLOCK: tl.constexpr):
    k, i = tl.arange(0, K), tl.arange(0, BLOCK)
    x = tl.load(x_ptr + k[:, None] * BLOCK + i[None, :]).to(tl.float32)
    tl.store(y_ptr + i, tl.sum(x, axis=0).to(tl.bfloat16))


@triton.jit
def _broken_kernel(x_ptr):
    tl.store(x_ptr + tl.arange(0, 48), 0.0)


@triton.jit
def _refused_kernel(x_ptr, y_ptr, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    tl.store(y_ptr + offs, tl.load(x_ptr + offs, cache_modifier=".cg", eviction_policy="evict_first"))


@triton.jit
def _dependent_kernel(x_ptr, n, WHERE: tl.constexpr, PDL: tl.constexpr):
    """The wait where it should be, or where it should not be."""
    p = tl.program_id(0)
    prefetch_l2(x_ptr + p * 8, 8, PDL)
    x = 0.0
    if WHERE == "after load":
        x += tl.load(x_ptr + p).to(tl.float32)
    if WHERE == "twice":
        wait_for_previous_launch(PDL)
    if WHERE == "branch":
        if p < n:
            wait_for_previous_launch(PDL)
            x += tl.load(x_ptr + p).to(tl.float32)
    elif WHERE == "early return":
        if p >= n:
            return
        wait_for_previous_launch(PDL)
    elif WHERE == "loop":
        for i in range(n // 8192):
            wait_for_previous_launch(PDL)
            x += tl.load(x_ptr + i * 1024 + p).to(tl.float32)
    elif WHERE != "nowhere":
        wait_for_previous_launch(PDL)
    tl.store(x_ptr + p, x.to(tl.bfloat16))


WAITS = "before", "after load", "twice", "branch", "early return", "loop", "nowhere"


@triton.jit
def _early_kernel(x_ptr, w_ptr, ids_ptr, y_ptr, n, WHERE: tl.constexpr, PDL: tl.constexpr):
    """y = w[ids] + x. Before the wait it loads ids and w, as it declares, and does what it should not."""
    p = tl.program_id(0)
    begin_early_loads(PDL, "ids_ptr w_ptr")
    x = 0.0
    if WHERE == "early trigger":
        gdc_launch_dependents()
    if WHERE == "early store":
        tl.store(y_ptr + p, 1.0)
    if WHERE == "early count":
        tl.atomic_add(ids_ptr + p, 1)
    if WHERE == "early choice":  # of a pointer that is declared and one that is not
        x += tl.load(tl.where(p < n, w_ptr, x_ptr) + p).to(tl.float32)
    w = 0.0
    if p < n:
        w += tl.load(w_ptr + tl.load(ids_ptr + p)).to(tl.float32)
    if WHERE == "early other":
        x += tl.load(x_ptr + p).to(tl.float32)
    end_early_loads(PDL)
    tl.store(y_ptr + p, (tl.load(x_ptr + p).to(tl.float32) + x + w).to(tl.bfloat16))


EARLY = "early", "early trigger", "early store", "early count", "early choice", "early other"


def _early(where):
    def run(x):
        ids = torch.empty(64, dtype=torch.int32, device=x.device)
        _early_kernel[(64,)](x, x, ids, x, 32, WHERE=where, PDL="early", launch_pdl=True)

    return _toy(run)


def _dependent(where, **more):
    return _toy(lambda x: _dependent_kernel[(64,)](x, x.shape[0], WHERE=where, PDL=True, **more))


def _scaled(x, n, BLOCK):
    y = torch.empty_like(x)
    _scale_kernel[lambda meta: (triton.cdiv(n, meta["BLOCK"]),)](x, y, n, 2.0, BLOCK=BLOCK)
    return y


def clean(x):
    arch = driver.active.get_current_target().arch
    for factor in range(3):
        _scale_kernel[(2,)](x, torch.empty_like(x), x.shape[0], 0.5 * factor, BLOCK=4096 if arch == 90 else 2048)
    _scaled(x, x.shape[0], 8192)


def broken(x):
    _broken_kernel[(1,)](x)
    _scaled(x, x.shape[0], 2048)


def host(x):
    raise ValueError("x must have two axes")


def _workload(name: str, M: int, real: bool = True) -> SimpleNamespace:
    return SimpleNamespace(name=name, sizes={"M": M}, real=real)


def _make(device: Any, dtype: torch.dtype, M: int) -> dict[str, Any]:
    return {"x": torch.randn(M, device=device, dtype=dtype)}


MEANT = {"*": Expected(10_000)}
SCALE = {"_scale_*": Expected(400, stream16=True)}
SIZES = _workload("M64", 65536), _workload("toy", 0, real=False)
BATCHES = _workload("decode-B16", 16), _workload("decode-B128", 128)


def _toy(run: Any, expects: Any = MEANT, targets: Any = ("sm_90",), workloads: Any = SIZES) -> SimpleNamespace:
    op = SimpleNamespace(_init_fn=run)
    return SimpleNamespace(op=op, make_inputs=_make, expects=expects, targets=targets, workloads=workloads)


KERNELS: dict[str, Any] = {
    "clean": _toy(clean, SCALE, ("sm_90", "sm_120", "gfx942")),
    "spills": _toy(lambda x: _center_kernel[(1,)](x, x, BLOCK=4096, num_warps=1, maxnreg=64)),
    "odd_length": _toy(lambda x: _scaled(x, x.shape[0] - 1, 2048), SCALE),
    "odd_view": _toy(lambda x: _scaled(x[1:], x.shape[0] - 16, 2048), SCALE),
    "large_tiles": _toy(
        lambda x: _dot_kernel[(1,)](x, x, 512, BLOCK=128, BLOCK_K=128, num_warps=8, num_stages=5),
        {"*": Expected(10_000, matrix=True)},
        ("sm_90", "sm_120"),
    ),
    "broken": _toy(broken, SCALE),
    "refused": _toy(lambda x: _refused_kernel[(1,)](x, x, BLOCK=2048)),
    "host": _toy(host),
    "silent": _toy(lambda x: None),
    "unstated": _toy(lambda x: _scaled(x, x.shape[0], 2048), {"_other_kernel": Expected(400)}),
    "crash": _toy(lambda x: os._exit(3)),
    **{where.replace(" ", "_"): _dependent(where, launch_pdl=True) for where in WAITS},
    **{where.replace(" ", "_"): _early(where) for where in EARLY},
    "no_attribute": _dependent("before", launch_pdl=False),
    "batch_dependent": _toy(
        lambda x: _columns_kernel[(1,)](x.new_empty(64 * x.shape[0]), x, K=64, BLOCK=x.shape[0]),
        {"*": Expected(10_000, invariant=True)},
        workloads=BATCHES,
    ),
}
# Of the real ones, one that moves, one that multiplies, and one that draws, at a few of their sizes.
for name, sizes in {"rotary": ["B1"], "output_projection": ["B1", "B64"], "sample_codes": ["B1"]}.items():
    spec = catalogue.KERNELS[name]
    some = tuple(workload for workload in spec.workloads if workload.name.removeprefix("decode-") in sizes)
    KERNELS[name] = replace(spec, targets=("sm_90",), workloads=some)


def launches(target: str) -> list[tuple[str, tuple[int, ...], int, str | None, int]]:
    with compile_only(target) as found, fake_tensors():
        clean(torch.empty(65536, dtype=torch.bfloat16, device="cuda"))
    return [(x.function, x.grid, x.count, x.error, x.kernel.metadata.target.arch) for x in found]


def no_trace() -> bool:
    """Whether an offline compile that fails leaves Triton as it was."""
    before = JITFunction.run, driver._active
    try:
        with compile_only("sm_90"):
            host(None)
    except ValueError:
        return before == (JITFunction.run, driver._active) and not _scale_kernel.device_caches
    return False


def warmed_up() -> list[tuple[int, str]]:
    """The answers of `compile_one` for a workload, and of one whose inputs are lacking."""
    found = [warmup.compile_one("rotary", "tiny", "float32", "sm_90")]
    object.__setattr__(catalogue.KERNELS["rotary"], "make_inputs", lambda *_, **__: {"x": 1 / 0})
    return [*found, warmup.compile_one("rotary", "tiny", "float32", "sm_90")]


def fused() -> bool:
    """Whether a product and a sum of the draw are rounded as one: that would draw other codes."""
    spec = catalogue.KERNELS["sample_codes"]
    with compile_only("sm_90") as found, fake_tensors():
        spec.op._init_fn(**spec.make_inputs(torch.device("cuda"), torch.bfloat16, **spec.workloads[0].sizes))
    return any("fma." in launch.kernel.asm["ptx"] for launch in found)


if __name__ == "__main__":
    names = sys.argv[2:] or [name for name in KERNELS if name != "crash"]
    found: dict[str, Any] = {"rows": run(None, names, 1, "gate_toys", ["bfloat16"])}
    if not sys.argv[2:]:
        found |= {"launches": [launches("sm_90"), launches("sm_120")], "fused": fused()}
        found |= {"no_trace": no_trace(), "warmed_up": warmed_up()}
    Path(sys.argv[1]).write_bytes(pickle.dumps(found))
