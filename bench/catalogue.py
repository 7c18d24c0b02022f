"""Every kernel, once.

Tests, benches, the compile gate and the README's table iterate over KERNELS; one that is not here does not exist.
"""

from collections.abc import Mapping

from zonos2_triton.bench.specs.backbone import FRAME
from zonos2_triton.bench.specs.spec import Kernel
from zonos2_triton.bench.specs.vocoder import VOCODER

KERNELS: Mapping[str, Kernel] = {kernel.name: kernel for kernel in (*FRAME, *VOCODER)}
