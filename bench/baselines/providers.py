"""Every kernel beside other ways to compute the same: eager PyTorch, torch.compile, and libraries where installed.

reference   the eager PyTorch reference, launched by the host; it may read on the host
compiled    `torch_ops`, PyTorch of fixed shapes, under torch.compile; on a CPU its graph as traced. Not of the vocoder,
            whose plain PyTorch reads on the host; it is compiled as a whole (`timing.vocoder`)
sdpa        PyTorch's fused attention (`sdpa`)
flash-attn  the flash-attn package, version 2 (`flash_attention`)
flashinfer  FlashInfer (`flash_infer`)
liger       Liger's Triton kernels (`liger`)

`Provider.prepare` does what an engine does once a step on the host or once at load: plans, lengths, layouts. It
is not timed. What it returns is: the kernel's function on those inputs, the same results in the same order and the same
arguments changed. Nothing is timed before it has been compared with the reference on the same inputs (`time_provider`).
"""

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch

from zonos2_triton.bench.baselines import flash_attention, flash_infer, liger, sdpa
from zonos2_triton.bench.baselines.attention_adapter import Call, Inputs, Prepare
from zonos2_triton.bench.baselines.torch_ops import TORCH_OPS
from zonos2_triton.bench.catalogue import KERNELS
from zonos2_triton.bench.proof.bounds import RATIO, SPREAD
from zonos2_triton.bench.proof.verify import Case, Report
from zonos2_triton.bench.specs.spec import Kernel, Workload
from zonos2_triton.bench.suite.recorder import NotRun, lacking
from zonos2_triton.bench.timing import timer
from zonos2_triton.reference.numeric import exact_numerics
from zonos2_triton.reference.ops import VOCODER_OPERATORS

HALF = (torch.float16, torch.bfloat16)
HALF_AND_FP32 = (*HALF, torch.float32)

# Ratio and spread of `verify.Case.compare`: what passes as the same function. The reference is its own measure, the
# kernels' bounds are for it. Others round at other places; what was seen is on a CPU, over the small workloads.
EXACT = RATIO, SPREAD
# An attention's scores and weights are rounded to half precision (ratios up to 2.7), and a compiler sums in an order of
# its own and contracts a * b + c (1.7 in fp32).
COMPILED = 4.0, 12.0
# An attention's weights are rounded before they meet the values, and its result once more before the gate (up to 2.1);
# so are the sum before Liger's norm and the SiLU of its gate.
LIBRARY = 3.0, 8.0


@dataclass(frozen=True)
class Provider:
    """One other way, for the kernels that it has."""

    name: str
    prepares: Mapping[str, Prepare]  # by kernel
    package: str = ""  # that it is imported from
    install: str = ""
    dtypes: tuple[torch.dtype, ...] = (*HALF_AND_FP32, torch.float64)
    fits: Callable[[Kernel, Workload], str | None] = lambda kernel, workload: None  # or why it cannot express it
    bound: tuple[float, float] = LIBRARY
    captured: bool = True  # by a CUDA graph; False: it reads on the host
    seconds: float = 2.0  # not begun with less left: what compiling takes

    def missing(self, kernel: Kernel, workload: Workload | None, dtype: torch.dtype, device: str) -> str | None:
        """Why it cannot run, or None. workload None: at any."""
        if kernel.name not in self.prepares:
            return f"{self.name} has nothing for {kernel.name}"
        if self.package and importlib.util.find_spec(self.package) is None:
            return f"{self.install} is not installed"
        if self.package and device != "cuda":
            return f"{self.install} needs a CUDA device"
        if dtype not in self.dtypes:
            return f"{self.name} does not take {str(dtype).removeprefix('torch.')}"
        return None if workload is None else self.fits(kernel, workload)

    def prepare(self, kernel: Kernel, inputs: Inputs) -> Call:
        """The timed call, on these inputs."""
        return self.prepares[kernel.name](inputs)

    def verify(self, case: Case) -> Report:
        """Raises Mismatch unless the results are as exact as `bound` asks for."""
        return case.compare(case.run(lambda **inputs: self.prepare(case.kernel, inputs)()), *self.bound)


def providers_of(kernel: Kernel) -> tuple[Provider, ...]:
    """Those that have the kernel's function."""
    return tuple(one for one in ALL if kernel.name in one.prepares)


def time_provider(
    one: Provider, kernel: Kernel, workload: Workload, device: timer.Device, dtype: torch.dtype,
    ours_us: float | None, seconds: float = 0.2,
) -> dict[str, Any]:  # fmt: skip
    """Its time, the ratio of its error, and speed_up: how many times longer it takes than ours_us, where that is known.

    NotRun: this machine lacks it or something that it needs. Mismatch: it is not the same function. Any other error is
    its own.
    """
    if why := one.missing(kernel, workload, dtype, device.name):
        raise NotRun(why)
    # In one mode and with the same switches throughout: what is compiled for the comparison is what is timed.
    with torch.inference_mode(), exact_numerics():
        try:
            ratio = one.verify(Case(kernel, workload, device.name, dtype)).ratio
            sets, cache_state = timer.input_sets(kernel, workload, device, dtype)
            calls = [one.prepare(kernel, inputs) for inputs in sets]
            found = timer.measure(calls, device, seconds, cache_state, graph=one.captured, least=5)
        except Exception as error:
            if lacking(error) or (one.package and isinstance(error, ImportError)):
                raise NotRun(timer.first_line(error)) from error
            raise
        finally:
            torch.compiler.reset()
    return found | {"ratio": round(ratio, 3), "speed_up": ours_us and timer.ratio(found["median_us"], ours_us)}


@cache
def _compiler(name: str) -> Callable[..., Any]:
    function = getattr(TORCH_OPS, name, KERNELS[name].reference)
    backend = "inductor" if torch.cuda.is_available() else "eager"
    return torch.compile(function, dynamic=False, fullgraph=True, backend=backend)


def _compiled(name: str) -> Prepare:
    return lambda inputs: partial(_compiler(name), **inputs)


def _eager(kernel: Kernel) -> Prepare:
    return lambda inputs: partial(kernel.reference, **inputs)


def _compiled_fits(kernel: Kernel, workload: Workload) -> str | None:
    contexts = workload.sizes.get("contexts", (workload.sizes.get("context"),))
    if kernel.name == "decode_attention" and -1 in contexts:
        return "compiled takes no idle rows"
    if kernel.name == "prefill_attention" and (workload.sizes["B"] > 1 or any(contexts)):
        return "compiled takes one prompt from its begin"
    return None


def _flash_infer_fits(kernel: Kernel, workload: Workload) -> str | None:
    if kernel.name == "rotary" and workload.sizes["H"] < 2:
        return "flashinfer turns queries and keys together: two heads at least"
    width = workload.sizes.get("DH")
    if width is not None and width not in flash_infer.HEAD_DIMS:
        return f"flashinfer has heads of {', '.join(map(str, flash_infer.HEAD_DIMS))}, not of {width}"
    return None


def _liger_fits(kernel: Kernel, workload: Workload) -> str | None:
    if kernel.name == "moe_experts" and workload.sizes.get("routed", True):
        return "liger's mixture of experts is made for training: it sorts the rows and keeps what a backward pass needs"
    return None


_ATTENTIONS = ("decode_attention", "prefill_attention")
_EAGER = {name: _eager(kernel) for name, kernel in KERNELS.items()}
_COMPILED = {name: _compiled(name) for name in KERNELS if name not in VOCODER_OPERATORS}
_SDPA = {name: getattr(sdpa, name) for name in _ATTENTIONS}
_FLASH = dict(zip(_ATTENTIONS, (flash_attention.prepare_decode, flash_attention.prepare_prefill), strict=True))
_FLASH_INFER = {name: getattr(flash_infer, name) for name in (*_ATTENTIONS, "add_rms_norm", "rotary")}
_LIGER = {name: getattr(liger, name) for name in ("add_rms_norm", "rotary", "moe_experts")}
ALL = (
    Provider("reference", _EAGER, bound=EXACT, captured=False),
    Provider("compiled", _COMPILED, fits=_compiled_fits, bound=COMPILED, seconds=20.0),
    Provider("sdpa", _SDPA, seconds=15.0),
    Provider("flash-attn", _FLASH, "flash_attn", "flash-attn", HALF, seconds=15.0),
    Provider("flashinfer", _FLASH_INFER, "flashinfer", "flashinfer-python", HALF, _flash_infer_fits, seconds=60.0),
    Provider("liger", _LIGER, "liger_kernel", "liger-kernel", HALF_AND_FP32, _liger_fits, seconds=10.0),
)
