"""GPUs by name: how much memory they have, how fast it is, and how fast their matrix units are, as their makers say.

Multiprocessors are compute units on AMD; clocks are boost clocks.
Memory is the label's, in GB; what a GPU reports to a program differs by a few percent. Bandwidth is that of the data
sheet in GB/s, of which copies reach some 90 %. TFLOP/s are dense ones in bf16 with fp32 sums: data sheets often print
twice as much, with sparsity; a GeForce's AI TOPS are of FP8 with sparsity (Ada), eight times as many.
GPUs that come with several memories under one name of torch's (RTX 3060, 4060 Ti, 5060 Ti) are left out.
"""

import re
from dataclasses import dataclass

from zonos2_triton.bench.cli_choices import chosen
from zonos2_triton.bench.specs.roofline import Roofline


@dataclass(frozen=True)
class Gpu:
    """A kind of GPU."""

    name: str
    pattern: str  # of all names that torch may give it
    arch: str
    memory_gb: float
    gb_per_s: float
    tflop_per_s: float
    multiprocessors: int  # of AMD: compute units
    clock_ghz: float  # boost
    source: str

    @property
    def roofline(self) -> Roofline:
        """The roofline of the data sheet."""
        return Roofline(self.gb_per_s, self.tflop_per_s)


GPUS = (
    Gpu("h200", r"NVIDIA H200", "sm_90", 141, 4800, 989.5, 132, 1.98, "NVIDIA H200 data sheet"),
    Gpu("h100", r"NVIDIA H100 80GB HBM3", "sm_90", 80, 3350, 989.4, 132, 1.98, "NVIDIA H100 white paper"),
    Gpu("h100-pcie", r"NVIDIA H100 PCIe", "sm_90", 80, 2000, 756, 114, 1.755, "NVIDIA H100 PCIe product brief"),
    Gpu("b200", r"NVIDIA B200", "sm_100", 180, 8000, 2250, 148, 1.965, "NVIDIA DGX B200 data sheet, an eighth"),
    Gpu("a100", r"(NVIDIA )?A100-SXM4-80GB", "sm_80", 80, 2039, 312, 108, 1.41, "NVIDIA A100 data sheet"),
    Gpu("a100-40gb", r"(NVIDIA )?A100-(SXM4|PCIE)-40GB", "sm_80", 40, 1555, 312, 108, 1.41, "NVIDIA A100 white paper"),
    Gpu("l40s", r"NVIDIA L40S", "sm_89", 48, 864, 362.05, 142, 2.52, "NVIDIA L40S data sheet"),
    Gpu("l4", r"NVIDIA L4", "sm_89", 24, 300, 121, 58, 2.04, "NVIDIA L4 data sheet"),
    Gpu("a10g", r"NVIDIA A10G", "sm_86", 24, 600, 70, 80, 1.71, "NVIDIA A10G data sheet"),
    Gpu("rtx3070", r"NVIDIA GeForce RTX 3070", "sm_86", 8, 448, 40.6, 46, 1.725, "NVIDIA Ampere GA102 white paper"),
    Gpu("rtx3090", r"NVIDIA GeForce RTX 3090", "sm_86", 24, 936, 71, 82, 1.695, "NVIDIA Ampere GA102 white paper"),
    Gpu("rtx4060", r"NVIDIA GeForce RTX 4060", "sm_89", 8, 272, 30.2, 24, 2.46, "NVIDIA product page, AI TOPS / 8"),
    Gpu("rtx4070", r"NVIDIA GeForce RTX 4070", "sm_89", 12, 504, 58.2, 46, 2.475, "NVIDIA product page, AI TOPS / 8"),
    Gpu("rtx4080", r"NVIDIA GeForce RTX 4080", "sm_89", 16, 716.8, 97.5, 76, 2.505, "NVIDIA Ada GPU white paper"),
    Gpu("rtx4090", r"NVIDIA GeForce RTX 4090", "sm_89", 24, 1008, 165.2, 128, 2.52, "NVIDIA Ada GPU white paper"),
    Gpu("rtx5070", r"NVIDIA GeForce RTX 5070", "sm_120", 12, 672, 61.7, 48, 2.512,
         "NVIDIA RTX Blackwell GPU white paper"),
    Gpu("rtx5080", r"NVIDIA GeForce RTX 5080", "sm_120", 16, 960, 112.6, 84, 2.617,
         "NVIDIA RTX Blackwell GPU white paper"),
    Gpu("rtx5090", r"NVIDIA GeForce RTX 5090", "sm_120", 32, 1792, 209.5, 170, 2.407,
         "NVIDIA RTX Blackwell GPU white paper"),
    Gpu("rtx-pro-6000", r"NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "sm_120", 96, 1792, 503.8, 188, 2.617,
         "NVIDIA RTX Blackwell PRO white paper"),
    Gpu("mi300x", r"AMD Instinct MI300X( OAM| VF)?", "gfx942", 192, 5300, 1307.4, 304, 2.1,
         "AMD Instinct MI300X data sheet"),
    Gpu("mi355x", r"AMD Instinct MI355X( OAM| VF)?", "gfx950", 288, 8000, 2516.6, 256, 2.4,
         "AMD Instinct MI355X data sheet"),
)  # fmt: skip


def find_gpu(name: str) -> Gpu:
    """By its name here, however it is spaced, or by torch's name for it. ValueError: an unknown one."""
    known = {_key(gpu.name): gpu for gpu in GPUS}
    if found := known.get(_key(name)) or recognised(name):
        return found
    (own,) = chosen("the GPU", [name], [gpu.name for gpu in GPUS])  # raises: it is none of them
    return known[own]


def recognised(device_name: str) -> Gpu | None:
    """The GPU that torch calls so. A part of one, or a laptop's, is none."""
    return next((gpu for gpu in GPUS if re.fullmatch(gpu.pattern, device_name)), None)


def _key(name: str) -> str:
    """A name without its maker and what people write between its parts."""
    return re.sub(r"nvidia|geforce|amd|instinct|[^a-z0-9]", "", name.lower())
