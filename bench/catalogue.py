"""Every kernel, once.

Tests, benches, the compile gate and the README's table iterate over KERNELS; one that is not here does not exist.
"""

from collections.abc import Mapping

from zonos2_triton.bench.frame_kernels import FRAME
from zonos2_triton.bench.kernel_record import Kernel
from zonos2_triton.bench.vocoder_kernels import VOCODER

KERNELS: Mapping[str, Kernel] = {kernel.name: kernel for kernel in (*FRAME, *VOCODER)}
