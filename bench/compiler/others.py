"""Other people's Triton kernels beside this project's: the same shapes, counted by the same machine.

    git clone https://github.com/Zyphra/ZONOS2 others/ZONOS2
    zonos2-triton compile --compare others

The folder holds checkouts of `OTHERS`, some or all, by the names of the repositories. What is compared is imported from
there, so it runs with the rights of this process. Of an autotuned kernel the configuration with the shortest estimate
counts.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from unittest.mock import MagicMock, patch

import torch

from zonos2_triton.bench.compiler.cubin_stats import TARGETS, statistics
from zonos2_triton.bench.compiler.estimate import Counted, Step, steps, summary
from zonos2_triton.bench.compiler.ptx.launch import counting
from zonos2_triton.bench.specs.backbone import DH, HKV, HQ, D, E, I
from zonos2_triton.bench.specs.inputs import Inputs
from zonos2_triton.bench.specs.spec import Kernel
from zonos2_triton.kernels._operator import Cost
from zonos2_triton.model.tables import text_table

TARGET, CONTEXT = "sm_90", 1000
HEADS = (
    "kernel", "batch", "programs", "wavefronts", "ideal", "conflict", "instructions", "exposed", "KB", "us", "limit",
    "floor",
)  # fmt: skip


class Counting(NamedTuple):
    """One launch."""

    name: str
    counted: Counted
    totals: tuple[float, float, float]  # wavefronts, as many as without conflicts, warp instructions


def compare(folder: Path, kernels: dict[str, Kernel], batch_sizes: Sequence[int] = (1, 4, 16, 64)) -> str:
    """A table of the kernels of every checkout in `folder`, below ours. ValueError: there is none."""
    present = {name: others for name, others in OTHERS.items() if (folder / name.partition("/")[2]).is_dir()}
    if not present:
        raise ValueError(f"--compare must name a folder that holds a checkout of {' or '.join(OTHERS)}, got {folder}")
    lines: list[tuple[str, ...]] = [HEADS]
    for name, others in present.items():
        repository = name.partition("/")[2]
        for operator, prepare in others:
            call = prepare(folder / repository)
            for batch_size in batch_sizes:
                lines += _compared(kernels[operator], batch_size, call, repository)
    return text_table(lines)


def _compared(kernel: Kernel, batch_size: int, call: "Call", owner: str) -> list[tuple[str, ...]]:
    """The lines of our launches and of theirs at one batch size."""
    one = next(each for each in kernel.workloads if each.name == "decode-B1")
    workload = kernel.resized(one, [f"{'M' if 'M' in one.sizes else 'B'}={batch_size}"])

    def ours() -> None:
        kernel.op._init_fn(**kernel.make_inputs("cpu", torch.bfloat16, **workload.sizes))

    lines, cost = [], kernel.cost_of(workload, itemsize=2)
    for found in (
        counts_of(ours, "ours"),
        counts_of(lambda: call(Inputs("cpu", torch.bfloat16, 0), batch_size), owner),
    ):
        estimated = steps(cost, [(each.name, each.counted) for each in found], certain=True)
        lines += [_line(each, step, batch_size) for each, step in zip(found, estimated, strict=True)]
    return lines


def counts_of(call: Callable[[], Any], owner: str) -> list[Counting]:
    """The counts of the launches of a call."""
    with counting(TARGET) as made:
        call()
    found = []
    for i, (launch, counts) in enumerate(made):
        kept = summary(counts, i, statistics(launch.kernel, TARGETS[TARGET]))
        issued = sum(counts.total(kind) for kind in counts.instructions if kind != "other")
        totals = counts.total("wavefronts"), counts.total("ideal_wavefronts"), issued
        found.append(Counting(f"{owner}: {counts.kernel}", kept, totals))
    return found


def _line(each: Counting, step: Step, batch_size: int) -> tuple[str, ...]:
    counted, found = each.counted, step.estimate
    numbers = (str(batch_size), str(counted.live), *(f"{n:.0f}" for n in each.totals[:2]), f"{counted.conflict:g}")
    waits = f"{each.totals[2]:.0f}", str(counted.exposed), f"{counted.under_way / 1e3:.0f}"
    return (each.name, *numbers, *waits, f"{found.us:.1f}", found.limit, f"{found.floor:.1f}")


def loaded(path: Path, **stubs: Any) -> ModuleType:
    """A file as a module. stubs: modules that it imports, by name with __ for dots."""
    spec = importlib.util.spec_from_file_location(f"others_{path.stem}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ValueError(f"--compare: the checkout has no {path}; a kernel moved, or the checkout is another one")
    module = importlib.util.module_from_spec(spec)
    named = {name.replace("__", "."): stub for name, stub in stubs.items()}
    sys.modules |= {spec.name: module, **named}  # Triton looks up a function by its module
    try:
        spec.loader.exec_module(module)
    finally:
        for name in named:
            del sys.modules[name]
    return module


Call = Callable[[Inputs, int], Any]


def zonos2_moe(checkout: Path) -> Call:
    """The official engine's experts, both products. Between them is a CUDA kernel, which is not counted."""
    folder = checkout / "python/zonos2"
    kernel = loaded(folder / "kernel/triton/fused_moe.py")
    host = loaded(folder / "kernel/moe_impl.py", zonos2__kernel__triton__fused_moe=kernel)
    rest = {"sgl_kernel": MagicMock(), "zonos2__kernel__moe_impl": host, "zonos2__kernel__triton__fused_moe": kernel}
    rest["zonos2__layers__moe__fused_moe__topk"] = MagicMock()
    impl = loaded(folder / "layers/moe/fused_moe/fused_moe_impl.py", **rest)

    def call(new: Inputs, M: int) -> None:
        config = impl.get_default_config(M, E, I, D, 1, False)
        block, ids = config["BLOCK_SIZE_M"], new.choices(M, 1, E, False)
        slots: list[int] = []
        owners: list[int] = []
        for expert in range(E):  # as sgl_kernel's moe_align_block_size, whose padding is slot M
            mine = (ids[:, 0] == expert).nonzero()[:, 0].tolist()
            mine += [M] * (-len(mine) % block)
            slots, owners = slots + mine, owners + [expert] * (len(mine) // block)
        room = M + (E + 1) * (block - 1)
        n, padded = new.int32([len(slots)]), new.int32(slots + [M] * (room - len(slots)))
        experts = new.int32(owners + [0] * (-(-room // block) - len(owners)))
        x, weights = new.randn(M, D), new.randn(M, 1, dtype=torch.float32)
        up, h, y = new.randn(M, 1, 2 * I), new.randn(M, I), new.randn(1, M, D)
        route, kind = (weights, ids, padded, experts, n), kernel.tl.bfloat16
        host.fused_moe_kernel_triton(x, new.randn(E, 2 * I, D), up, *route, False, 1, config, kind)
        host.fused_moe_kernel_triton(h, new.randn(E, D, I), y, *route, True, 1, config, kind)

    return call


def imported(checkout: Path, module: str) -> ModuleType:
    """A module of the package under src/ of a checkout."""
    with patch.object(sys, "path", [str(checkout / "src"), *sys.path]):
        return importlib.import_module(module)


def liger_norm(checkout: Path) -> Call:
    """RMSNorm alone, without a residual."""
    module = imported(checkout, "liger_kernel.ops.rms_norm")
    return lambda new, M: module.rms_norm_forward(new.randn(M, D), new.gain(D), 1e-5, 0.0, "llama", None)


def qwen3_norm(checkout: Path) -> Call:
    """RMSNorm with a residual."""
    module = imported(checkout, "qwen3_tts_triton.kernels.fused_norm_residual")
    return lambda new, M: module.triton_fused_add_rms_norm(new.randn(M, D), new.randn(M, D), new.gain(D))


def fla_attention(checkout: Path) -> Call:
    """Decode attention over a contiguous cache: no pages, no split, no norms, no rotary, no gate, no cache write."""
    import triton.language as tl

    utils = MagicMock(autotune_cache_kwargs={}, check_shared_mem=lambda *_: True)  # as on a Hopper GPU
    stubs = {"fla__utils": utils, "fla__ops__utils__op": MagicMock(exp=tl.exp), "fla__ops__utils__cumsum": MagicMock()}
    module = loaded(checkout / "fla/ops/attn/decoding.py", **stubs)
    tuner = module.naive_attn_decoding_kernel.fn

    def call(new: Inputs, B: int) -> None:
        q, k, v = new.randn(1, B, HQ, DH), *(new.randn(1, B * CONTEXT, HKV, DH) for _ in range(2))
        ends = torch.arange(B + 1) * CONTEXT
        module.attn_decoding_one_step(q, k, v, cu_seqlens=ends)

    def us(config: Any) -> float:
        tuner.configs = [config]
        found = counts_of(lambda: call(Inputs("cpu", torch.bfloat16, 0), 1), "")
        return sum(step.estimate.us for step in steps(Cost(1, 1), [(each.name, each.counted) for each in found], True))

    tuner.configs = [min(tuner.configs, key=us)]
    return call


OTHERS: dict[str, tuple[tuple[str, Callable[[Path], Call]], ...]] = {
    "Zyphra/ZONOS2": (("moe_experts", zonos2_moe),),
    "fla-org/flash-linear-attention": (("decode_attention", fla_attention),),
    "linkedin/Liger-Kernel": (("add_rms_norm", liger_norm),),
    "newgrit1004/qwen3-tts-triton": (("add_rms_norm", qwen3_norm),),
}
