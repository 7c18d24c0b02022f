"""How far from fp64 a kernel's results may be: the one place that says it, for `verify`, the tests and the README."""

from collections.abc import Collection

import torch

# Times plain PyTorch's RMS error on the same inputs, at the same precision.
RATIO = 1.5
# The same on samples so large that luck has no part in it; but for ATTENTION, whose softmax weights are rounded for the
# matrix units.
SAMPLE_RATIO = 1.05
ATTENTION = ("decode_attention", "prefill_attention")
# Times plain PyTorch's largest error: for the largest one of all elements, which an RMS over many would hide.
SPREAD = 4.0
# In a small sample, plain PyTorch may be better by luck than it is. So this much passes whatever its error is, in
# epsilons of the inputs' dtype times the RMS of the results (for SPREAD: times the largest). In half precision the last
# rounding, 0.2 epsilons, is most of an error, and 0.2 to 0.4 were seen; in fp32 it is the sums before it, up to 1.9.
FLOOR_HALF, FLOOR_FP32 = 0.5, 2.0
# The router's probabilities, times the same: they pass four products, two GELUs and an exponential, and those of a row
# share one error of its logits, so that a workload of one to three rows has as many errors as rows. Over 40 seeds of
# `tiny` in fp16 the kernel was off by 0.52 epsilons in RMS, plain PyTorch by 0.55: the same. On one seed, either was
# off by up to 2 and by less than 0.01, and their ratio is anything from 0.07 to 4.7. So the floor is a choice, not a
# limit: of 1,200 small samples, by 40 seeds, the kernel misses it in 5, by up to 1.5 times. The tests take seed 0.
ROUTER_FLOOR = 4


def sample_ratio(kernel: str) -> float:
    """The bound on the ratio to plain PyTorch's error, of a large sample."""
    return RATIO if kernel in ATTENTION else SAMPLE_RATIO


def floor(dtype: torch.dtype, output: str) -> float:
    """The relative error that passes whatever plain PyTorch's is, of an output by its name, in epsilons of dtype."""
    return (FLOOR_FP32 if dtype == torch.float32 else FLOOR_HALF) * (ROUTER_FLOOR if output == "probs" else 1)


def statement(kernels: Collection[str]) -> str:
    """Markdown, for the page of the kernels."""
    exceptions = " and ".join(f"`{name}`" for name in kernels if name in ATTENTION)
    half, single = FLOOR_HALF * ROUTER_FLOOR, FLOOR_FP32 * ROUTER_FLOOR
    return f"""\
`verify` and the tests hold the {len(kernels)} kernels to these bounds against fp64 (`bench/proof/bounds.py`):

* **RMS error**: at most {RATIO:g} times that of plain PyTorch on the same inputs in the same dtype, or the floor if
  that is larger. On the tests' large samples there is no floor, and the ratio is at most {SAMPLE_RATIO:g}.
  For {exceptions} it is {RATIO:g}, because softmax weights are rounded.
* **Floor**: {FLOOR_HALF:g} epsilons of the results' RMS in bf16 and fp16, {FLOOR_FP32:g} in fp32. In a small sample
  plain PyTorch may be right by luck. For the router's probabilities it is {half:g} and {single:g}, because those of a
  token share one error.
* **Largest error** of an element: at most {SPREAD:g} times that of plain PyTorch, or {SPREAD:g} floors of the largest
  result.
* **Exact operations**, such as copies and codes, must give equal results.
"""
