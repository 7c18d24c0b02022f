"""Call one kernel, and compare it with its reference.

    python -m zonos2_triton.bench.examples.call_kernel                      # GPU: the compiled kernel
    TRITON_INTERPRET=1 python -m zonos2_triton.bench.examples.call_kernel   # CPU: Triton's interpreter

The sum is exact. The norm differs by less than 5e-7, a rounding of fp32: the kernel adds in another order. Without the
variable, an operator on a CPU is its reference, and both differences are zero.
"""

import torch

from zonos2_triton.kernels.add_rms_norm import add_rms_norm
from zonos2_triton.reference.ops import REFERENCE


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device).manual_seed(0)
    x, residual = torch.randn(2, 4, 2048, generator=generator, device=device)  # 4 tokens of 2048 channels, each
    weight = torch.rand(2048, generator=generator, device=device)

    kernel = add_rms_norm(x, residual, weight, eps=1e-5)
    reference = REFERENCE.add_rms_norm(x, residual, weight, eps=1e-5)
    for name, got, want in zip(("sum", "norm"), kernel, reference, strict=True):
        print(f"{name}: largest difference {(got - want).abs().max():.1e}")


if __name__ == "__main__":
    main()
